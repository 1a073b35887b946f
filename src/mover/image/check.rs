//! Whether an image is whole as a qcow2 file: no errors, nothing leaked, nothing cut off.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::server::pseudo_name;
use super::target::{CLUSTER_BYTES, Target};
use super::{chain, target};
use crate::failure::{Code, Failure};
use crate::mover::command::{Command, CommandError, Finished, shown_end};

/// How long a check may take; it reads all metadata, about 1.5 MiB a 10 GiB of data.
const CHECK_DEADLINE_SECONDS: u64 = 900;

/// What `qemu-img check --output=json` says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    #[serde(default)]
    check_errors: u64,
    #[serde(default)]
    corruptions: u64,
    #[serde(default)]
    leaks: u64,
    image_end_offset: Option<u64>,
}

/// Runs the check on what is on the storage.
pub(super) async fn check(target: &Target) -> Result<(), Failure> {
    let shown = target.path().display().to_string();
    let check =
        Command::new("qemu-img").args(["check", "--output=json", "-T", target.cache().word()]).arg(target.name());
    let ran = check.run(Duration::from_secs(CHECK_DEADLINE_SECONDS)).await;
    let finished = ran.map_err(|error| error.failure(Code::ImageToolFailed, format!("cannot check `{shown}`")))?;
    let damage = damage(&finished, target.file_bytes().await?);
    match damage {
        None => Ok(()),
        Some(damage) => {
            Err(Failure::new(Code::ImageDamaged, format!("the image `{shown}` does not pass its check"))
                .caused_by(damage))
        }
    }
}

/// How the image of a published backup was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mover) enum Checked {
    /// Whole.
    Whole,
    /// Whole, but parts of its file belong to nothing.
    Leaks(String),
    /// Not whole, in words.
    Damaged(String),
    /// It took too long to find out.
    NotKnown(String),
}

/// Checks the image at that path, which nobody else can change to lead elsewhere, without what it is based on.
pub(in crate::mover) async fn check_file(path: &Path, file_bytes: u64) -> Result<Checked, Failure> {
    let (name, cache) = (pseudo_name(&chain::node(&[path.to_owned()])?), target::cache_of(path).await);
    let check = Command::new("qemu-img").args(["check", "--output=json", "-T", cache.word()]).arg(name);
    match check.run(Duration::from_secs(CHECK_DEADLINE_SECONDS)).await {
        Ok(finished) => Ok(sorted(&finished, file_bytes)),
        Err(error @ CommandError::Deadline { .. }) => Ok(Checked::NotKnown(error.to_string())),
        Err(error) => Err(error.failure(Code::ImageToolFailed, format!("cannot check the image `{}`", path.display()))),
    }
}

/// An image that was merged of two may have more room than it needs, which harms nobody.
fn sorted(finished: &Finished, file_bytes: u64) -> Checked {
    let Some(damage) = damage(finished, file_bytes) else { return Checked::Whole };
    match serde_json::from_slice::<Report>(&finished.stdout) {
        Ok(Report { check_errors: 0, corruptions: 0, image_end_offset: Some(end), .. }) if end <= file_bytes => {
            Checked::Leaks(damage)
        }
        _ => Checked::Damaged(damage),
    }
}

/// What is wrong, in words.
fn damage(finished: &Finished, file_bytes: u64) -> Option<String> {
    let Ok(report) = serde_json::from_slice::<Report>(&finished.stdout) else {
        return Some(format!("qemu-img gives no report, {}: {}", finished.status, shown_end(&finished.stderr)));
    };
    let Report { check_errors, corruptions, leaks, image_end_offset } = report;
    if check_errors + corruptions + leaks > 0 {
        return Some(format!(
            "{corruptions} corruptions, {leaks} leaked clusters, {check_errors} errors while checking"
        ));
    }
    // A file may end within its last cluster: QEMU writes no more of a fresh image's first table than is in use.
    let cluster = u64::try_from(CLUSTER_BYTES).unwrap_or(u64::MAX);
    if image_end_offset != file_bytes.checked_next_multiple_of(cluster) {
        let end = image_end_offset.map_or("nowhere".to_owned(), |end| end.to_string());
        return Some(format!("the image ends at {end} and its file at {file_bytes}"));
    }
    if !finished.status.success() {
        return Some(format!("{}: {}", finished.status, shown_end(&finished.stderr)));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn report(json: &str, exit: i32) -> Finished {
        let status = std::process::ExitStatus::from_raw(exit << 8);
        Finished { status, stdout: json.as_bytes().to_vec(), stderr: String::new() }
    }

    #[test]
    fn only_a_clean_report_with_the_end_at_the_files_end_passes() {
        let clean = r#"{"image-end-offset": 262144, "total-clusters": 160, "check-errors": 0}"#;
        assert_eq!(damage(&report(clean, 0), 262_144), None);
        assert_eq!(damage(&report(clean, 0), 196_616 + 4096), None);
        assert!(damage(&report(clean, 0), 196_608).unwrap().contains("ends at 262144"));
        assert!(damage(&report(clean, 0), 262_145).is_some());
        assert!(damage(&report(clean, 1), 262_144).is_some());
        let leaky = r#"{"image-end-offset": 262144, "leaks": 1, "check-errors": 0}"#;
        assert!(damage(&report(leaky, 3), 262_144).unwrap().contains("1 leaked"));
        assert_eq!(sorted(&report(clean, 0), 262_144), Checked::Whole);
        assert!(matches!(sorted(&report(leaky, 3), 262_144), Checked::Leaks(_)));
        assert!(matches!(sorted(&report(clean, 0), 327_681), Checked::Leaks(_)));
        assert!(matches!(sorted(&report(clean, 0), 131_072), Checked::Damaged(_)), "its end is missing");
        let corrupt = r#"{"image-end-offset": 262144, "corruptions": 1, "check-errors": 0}"#;
        assert!(matches!(sorted(&report(corrupt, 2), 262_144), Checked::Damaged(_)));
        for broken in ["", "{", "[]", r#"{"check-errors": -1}"#, r#"{"check-errors": 0}"#] {
            assert!(damage(&report(broken, 0), 262_144).is_some(), "{broken}");
        }
    }
}
