//! What was read of one instance's directory. Nouns alone; what they mean is said elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::manifest::{CHAIN_IMAGES_MAX, Manifest, ManifestDisk};
use crate::model::validation::FindingCode;

/// An instance's directory.
#[derive(Clone, Debug)]
pub(in crate::mover) struct InstanceFacts {
    /// The instance.
    pub instance: InstanceId,
    /// Directories with the name of a backup.
    pub backups: BTreeMap<BackupId, BackupFacts>,
    /// Directories of work in progress, or of work that was cut off.
    pub hidden: Vec<Hidden>,
    /// Whatever else lies there, by its printable name.
    pub foreign: Vec<String>,
    /// Not all of it was looked at.
    pub cut_short: bool,
    /// Who is at work there.
    pub lease: LeaseFacts,
}

/// A directory with a backup's name.
#[derive(Clone, Debug)]
pub(in crate::mover) struct BackupFacts {
    /// What it says of itself.
    pub manifest: Result<Manifest, Fault>,
    /// BLAKE3 of the manifest's file, where there is one.
    pub digest: Option<blake3::Hash>,
    /// What lies in it, by name.
    pub files: BTreeMap<String, Seen>,
    /// Names in it that are no text, as they may be printed.
    pub foreign: Vec<String>,
    /// Not all of it was looked at.
    pub cut_short: bool,
    /// The hashes of its records, where they have the length that the manifest names.
    pub records: BTreeMap<String, Result<String, Fault>>,
}

/// An entry of a backup's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mover) enum Seen {
    /// A regular file.
    File {
        /// Length.
        bytes: u64,
        /// When it was written last: seconds and nanoseconds.
        written: (i64, i64),
    },
    /// A directory, a link, a pipe.
    Other,
    /// It is there, and what it is can't be seen.
    Unreadable(Option<Errno>),
}

impl BackupFacts {
    /// Something of it could not be read, which may be so of the share as a whole.
    pub fn is_unreadable(&self) -> bool {
        let is_unreadable = |fault: &Fault| fault.code == FindingCode::Unreadable;
        self.manifest.as_ref().is_err_and(is_unreadable)
            || self.files.values().any(|seen| matches!(seen, Seen::Unreadable(_)))
    }
}

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mover) struct Fault {
    /// What kind of finding that is.
    pub code: FindingCode,
    /// In a sentence.
    pub text: String,
}

/// A directory whose name begins with a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mover) struct Hidden {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: HiddenKind,
    /// When something was made or removed in it last, seconds since 1970 by the share's clock.
    pub touched_seconds: i64,
}

/// Kinds of hidden directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mover) enum HiddenKind {
    /// A backup that is being written.
    Staging,
    /// One whose writer lost its lease.
    Fenced,
    /// One on its way out.
    Deleting,
}

/// The instance's lease, as it can be seen without taking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mover) enum LeaseFacts {
    /// Nobody has it.
    Free,
    /// Somebody took it, who said so last at that time by the share's clock, seconds since 1970.
    Taken {
        /// None where that can't be seen.
        heard_seconds: Option<i64>,
    },
}

impl InstanceFacts {
    /// The manifest of a backup, where it can be read and is that backup's.
    pub fn manifest(&self, backup: BackupId) -> Option<&Manifest> {
        let manifest = self.backups.get(&backup)?.manifest.as_ref().ok()?;
        (manifest.backup_id == backup && manifest.instance_id == self.instance).then_some(manifest)
    }

    /// A disk of a backup.
    pub fn disk(&self, backup: BackupId, target: &DiskTarget) -> Option<&ManifestDisk> {
        self.manifest(backup)?.disks.iter().find(|disk| disk.target == *target)
    }

    /// A backup and what it is based on, itself first; as far as manifests lead, and one more than a chain may have.
    pub fn line(&self, backup: BackupId) -> Vec<BackupId> {
        let mut known = BTreeSet::new();
        let parent = |at: &BackupId| self.manifest(*at).and_then(Manifest::parent);
        let line = std::iter::successors(Some(backup), parent).take_while(|id| known.insert(*id));
        line.take(CHAIN_IMAGES_MAX + 1).collect()
    }

    /// Backups whose manifests can be read, oldest first: what another one is based on comes before it.
    pub fn by_number(&self) -> Vec<BackupId> {
        let mut known: Vec<_> =
            self.backups.keys().filter_map(|id| self.manifest(*id).map(|manifest| (manifest.number, *id))).collect();
        known.sort();
        known.into_iter().map(|(_, id)| id).collect()
    }
}
