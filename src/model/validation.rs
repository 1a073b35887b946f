//! What a look at a whole repository finds: levels, findings with stable codes, and the report of it. Pure values, bounded, since what
//! they tell of may be anything that somebody has put on a share.

mod code;
mod findings;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{BackupId, DiskTarget, InstanceId};

pub use code::FindingCode;
pub use findings::Findings;

/// Longest path that a finding names, characters; of a longer one the end is left out.
pub const PATH_CHARACTERS_MAX: usize = 300;
/// Longest text of a finding, characters.
pub const TEXT_CHARACTERS_MAX: usize = 500;
/// Instances whose sizes are told: the largest.
pub const INSTANCES_TOLD_MAX: usize = 100;
/// The repository itself, as the path of a finding.
pub const ROOT: &str = ".";

/// How far a repository is looked at. Each level includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationLevel {
    /// It can be mounted, is the one that is meant, can be written to and has room.
    Reachable,
    /// Manifests can be read and belong there; every file that they name is there with its size; chains have all their links.
    #[default]
    Catalogue,
    /// Images and block hashes are whole, and images are as their manifests say.
    Structure,
    /// Every block of every disk of every backup is read and held against its hash.
    Content,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is wrong.
    Note,
    /// No backup is damaged, but somebody should look.
    Warning,
    /// Something can't be backed up or restored.
    Error,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The stable code. New ones may come within v1, so a reader must bear one that it does not know.
    #[schemars(with = "String", regex(pattern = r"^[a-z_]{1,64}$"))]
    pub code: FindingCode,
    /// How bad it is.
    pub severity: Severity,
    /// Where, relative to the repository, as it may be printed; `.` for the repository itself.
    pub path: String,
    /// The instance, where one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The backup, where one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<BackupId>,
    /// The disk, where one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskTarget>,
    /// Where on the disk as the guest sees it, bytes, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// What was found, in a sentence.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
}

/// What an instance's backups take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceSize {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its backups.
    pub backups: u64,
    /// The files of its backups, bytes.
    pub file_bytes: u64,
}

/// What a repository was found to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Validation {
    /// How far it was looked at.
    pub level: ValidationLevel,
    /// Instances that were looked at.
    pub instances: u64,
    /// Backups that were looked at, damaged ones among them.
    pub backups: u64,
    /// Bytes that were read for it.
    pub bytes_read: u64,
    /// Size of the file system, bytes.
    pub capacity_bytes: u64,
    /// What of it is taken, bytes.
    pub used_bytes: u64,
    /// What of it is free for backups, bytes.
    pub free_bytes: u64,
    /// How far the share's clock is ahead of the host's, seconds; behind where negative. Absent where nothing could be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_seconds: Option<i64>,
    /// What each instance takes, the largest first, at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instance_sizes: Vec<InstanceSize>,
    /// Instances that `instance_sizes` leaves out.
    #[serde(default)]
    pub instance_sizes_left_out: u64,
    /// Findings that are errors, also those that are left out.
    pub errors: u64,
    /// Findings that are warnings.
    pub warnings: u64,
    /// Findings that are notes.
    pub notes: u64,
    /// What was found, the worst first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Findings that had no room.
    #[serde(default)]
    pub findings_left_out: u64,
}

impl Finding {
    /// Of that code, at that path, as bad as such findings are.
    pub fn new(code: FindingCode, path: &str, text: impl AsRef<str>) -> Self {
        Self {
            code,
            severity: code.severity(),
            path: bounded(path, PATH_CHARACTERS_MAX),
            instance_id: None,
            backup_id: None,
            disk: None,
            offset: None,
            text: bounded(text.as_ref(), TEXT_CHARACTERS_MAX),
            remedy: code.remedy().to_owned(),
        }
    }

    /// About that instance.
    #[must_use]
    pub fn of_instance(mut self, instance: InstanceId) -> Self {
        self.instance_id = Some(instance);
        self
    }

    /// About that backup of it.
    #[must_use]
    pub fn of_backup(mut self, backup: BackupId) -> Self {
        self.backup_id = Some(backup);
        self
    }

    /// About that disk of it.
    #[must_use]
    pub fn of_disk(mut self, disk: &DiskTarget) -> Self {
        self.disk = Some(disk.clone());
        self
    }

    /// At that place of the disk.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl Validation {
    /// The same with so many findings and sizes at most, for who has little room.
    #[must_use]
    pub fn with_at_most(mut self, kept: usize) -> Self {
        let count = |left_out: usize| u64::try_from(left_out).unwrap_or(u64::MAX);
        self.findings_left_out += count(self.findings.len().saturating_sub(kept));
        self.findings.truncate(kept);
        self.instance_sizes_left_out += count(self.instance_sizes.len().saturating_sub(kept));
        self.instance_sizes.truncate(kept);
        self
    }

    /// Takes in what became of something that was found: this takes the place of what was said of its path. Where that had no room to be
    /// told it was counted as `counted_as`.
    pub fn replace(&mut self, finding: Finding, counted_as: Severity, kept: usize) {
        let told = self.findings.iter().position(|before| before.path == finding.path);
        let before = match told {
            Some(at) => Some(self.findings.remove(at).severity),
            None => (self.findings_left_out > 0).then_some(counted_as),
        };
        match before {
            Some(Severity::Error) => self.errors = self.errors.saturating_sub(1),
            Some(Severity::Warning) => self.warnings = self.warnings.saturating_sub(1),
            Some(Severity::Note) => self.notes = self.notes.saturating_sub(1),
            None => {}
        }
        self.add(vec![finding], kept);
    }

    /// Takes in what was found later.
    pub fn add(&mut self, later: Vec<Finding>, kept: usize) {
        let before = std::mem::take(&mut self.findings);
        let mut findings = Findings::new(kept);
        before.into_iter().chain(later.iter().cloned()).for_each(|finding| findings.add(finding));
        for finding in &later {
            match finding.severity {
                Severity::Error => self.errors += 1,
                Severity::Warning => self.warnings += 1,
                Severity::Note => self.notes += 1,
            }
        }
        self.findings = findings.into_worst_first();
        let told = u64::try_from(self.findings.len()).unwrap_or(u64::MAX);
        self.findings_left_out = (self.errors + self.warnings + self.notes).saturating_sub(told);
    }
}

/// Without what would break a line, and no longer than that.
fn bounded(text: &str, characters_max: usize) -> String {
    let mut shown = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == characters_max {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_share_says_is_bounded_and_breaks_no_line() {
        let finding = Finding::new(FindingCode::ForeignFile, &"ä\n".repeat(1000), "x".repeat(10_000));
        assert!(finding.path.starts_with("ä\\nä") && finding.path.ends_with('…'));
        assert_eq!(finding.text.chars().count(), TEXT_CHARACTERS_MAX + 1);
        assert_eq!(finding.severity, Severity::Warning);
    }

    #[test]
    fn what_is_found_later_counts_and_the_worst_stays() {
        let of = |code| Finding::new(code, ROOT, "");
        let mut findings = Findings::new(2);
        findings.add(of(FindingCode::ForeignFile));
        findings.add(of(FindingCode::Superseded));
        let mut validation = Validation {
            level: ValidationLevel::Catalogue,
            instances: 0,
            backups: 0,
            bytes_read: 0,
            capacity_bytes: 0,
            used_bytes: 0,
            free_bytes: 0,
            clock_ahead_seconds: None,
            instance_sizes: Vec::new(),
            instance_sizes_left_out: 0,
            errors: 0,
            warnings: 1,
            notes: 1,
            findings: findings.into_worst_first(),
            findings_left_out: 0,
        };
        validation.add(vec![of(FindingCode::LeftOverRemoved), of(FindingCode::FileMissing)], 2);
        assert_eq!((validation.errors, validation.warnings, validation.notes), (1, 1, 2));
        let codes: Vec<_> = validation.findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [FindingCode::FileMissing, FindingCode::ForeignFile]);
        assert_eq!(validation.findings_left_out, 2);
        let elsewhere = Finding::new(FindingCode::LeftOverRemoved, "of the left out", "");
        let mut swept = validation.clone();
        swept.replace(elsewhere, Severity::Warning, 2);
        assert_eq!((swept.errors, swept.warnings, swept.notes), (1, 0, 3), "one that was not told is gone");
        validation.replace(of(FindingCode::LeftOverRemoved), Severity::Warning, 2);
        assert_eq!(
            (validation.errors, validation.warnings, validation.notes),
            (0, 1, 3),
            "the worst of that path is gone"
        );
        let short = validation.with_at_most(1);
        assert_eq!((short.findings.len(), short.findings_left_out, short.warnings), (1, 3, 1));
    }
}
