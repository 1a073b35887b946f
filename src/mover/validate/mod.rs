//! Whether a repository and the backups in it are whole: what is read of it, and what that means.
//!
//! It promises that whatever lies on the share, looking at it ends, in bounded memory, and changes nothing but the file with which it is
//! tried whether the share can be written to; that each damage is named where it is; and that a backup which was deleted or replaced
//! while it was looked at counts as no damage, since no lease is taken. What is read ([`read`]) is kept apart from what it means
//! ([`judge`], [`links`]), which is pure.
//!
//! ```text
//!   reach ─▶ select instances ─▶ measure ─▶ for each instance:  read ─▶ judge ─▶ examine each disk ─▶ heirs of what is damaged
//!                                                                          └─ changed meanwhile? ─┘
//! ```

pub(super) mod examine;
pub(super) mod facts;
pub(super) mod hidden;
pub(super) mod judge;
pub(super) mod known;
pub(super) mod links;
pub(super) mod reach;
pub(super) mod read;
pub(super) mod select;
pub(super) mod superseded;
pub(super) mod telling;
#[cfg(test)]
mod tests;

use crate::failure::Failure;
use crate::model::id::{BackupId, InstanceId};
use crate::model::validation::{Finding, FindingCode};
use crate::mover::share::{Dir, INSTANCES, ShareError, read_identity};
use facts::Fault;

/// What a finding says of an operation on the share that did not work.
pub(super) fn fault(root: &Dir, error: &ShareError) -> Fault {
    let code = match error {
        ShareError::NotWhatItSays { .. } | ShareError::NotPlain { .. } => FindingCode::NotWhatItSays,
        ShareError::TooMuch { .. } => FindingCode::TooMany,
        ShareError::Refused { .. } => FindingCode::Unreadable,
    };
    let mut text = error.to_string();
    if let ShareError::Refused { errno, .. } = error {
        text = format!("{text}: {errno}");
    }
    Fault { code, text: without_root(root, &text) }
}

/// A text of ours without the place at which the repository happens to be mounted.
pub(super) fn without_root(root: &Dir, text: &str) -> String {
    text.replace(&format!("{}/", root.path().display()), "")
}

/// Tells a share that is gone from one on which something is damaged: where its identity can't be read any more, nothing that is said
/// about its files means anything.
pub(super) fn must_be_there(root: &Dir) -> Result<(), Failure> {
    read_identity(root).map(drop)
}

/// As [`must_be_there`], where anything was found that a share which is gone would show as well.
pub(super) fn must_be_there_for(root: &Dir, found: &[Finding]) -> Result<(), Failure> {
    match found.iter().any(|finding| finding.code == FindingCode::Unreadable) {
        true => must_be_there(root),
        false => Ok(()),
    }
}

/// Names that file servers give to what is their own, in any directory: snapshots, thumbnails, waste bins, files that are open yet.
pub(super) fn is_of_the_server(name: &str) -> bool {
    let known = [".snapshot", ".snapshots", ".zfs", "@eaDir", "#recycle", "@Recycle", "#snapshot", "lost+found"];
    let is_hex = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    known.contains(&name)
        || matches!(name, "System Volume Information" | "$RECYCLE.BIN")
        || name.strip_prefix(".nfs").is_some_and(is_hex)
}

/// The path of an instance's directory.
pub(super) fn instance_path(instance: InstanceId) -> String {
    format!("{INSTANCES}/{instance}")
}

/// The path of a backup's directory.
pub(super) fn backup_path(instance: InstanceId, backup: BackupId) -> String {
    format!("{INSTANCES}/{instance}/{backup}")
}
