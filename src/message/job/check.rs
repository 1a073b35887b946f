//! From the message to the job: every value looked at, the first wrong one named.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::de::value::{Error as WordError, StrDeserializer};

use super::{
    BackupPart, CredentialsPart, DeletePart, InstancePart, JobMessage, RepositoryPart, RestorePart, RetryPart,
    SealedPart, ValidatePart,
};
use crate::failure::Code;
use crate::message::refusal::Refusal;
use crate::model::id::{DiskTarget, InstanceRef, JobId, RepositoryId};
use crate::model::job::{
    BackupSpec, DeleteSpec, FullEvery, Job, JobKind, RestoreSpec, RetryPolicy, RunKey, ValidateSpec, Work,
};
use crate::model::manifest::CHAIN_IMAGES_MAX;
use crate::model::repository::{Credentials, InvalidRepository, Repository, Sealed, parse_address, parse_options};

/// Labels of a job at most.
pub const LABELS_MAX: usize = 64;
/// Longest name of a label, bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 128;
/// Longest value of a label, bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 1024;
/// All labels of a job together at most, bytes as JSON writes them: they stand in each of its events.
pub const LABELS_BYTES_MAX: usize = 16 * 1024;
/// Longest `requested_by`, bytes.
pub const REQUESTED_BY_BYTES_MAX: usize = 255;
/// Failed attempts that a job may ask for.
pub const RETRY_ATTEMPTS_MAX: u32 = 100;
/// Longest pause between attempts that a job may ask for: a week.
pub const PAUSE_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;
/// Longest deadline that a job may ask for: 30 days.
pub const DEADLINE_SECONDS_MAX: u64 = 30 * 24 * 60 * 60;
/// Disks that a job may leave out by name.
pub const EXCLUDED_DISKS_MAX: usize = 256;
/// Disks that a restore may name.
pub const RESTORED_DISKS_MAX: usize = 256;
/// Instances that a validation may name.
pub const VALIDATED_INSTANCES_MAX: usize = 1024;
/// Slowest reading that a validation may ask for, bytes a second: a block of a disk.
pub const READ_BYTES_PER_SECOND_MIN: u64 = 1024 * 1024;
/// Longest sealed part, bytes before decoding.
pub const SEALED_BYTES_MAX: usize = 16 * 1024;

pub(super) fn invalid(field: &str, why: impl Display) -> Refusal {
    // Parsers of others repeat a wrong character as it is, and publishers name labels.
    let escaped = |text: &str| {
        let mut shown = String::new();
        for c in text.chars() {
            if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
        }
        shown
    };
    let what = escaped(&format!(" has a value that is not allowed: {why}"));
    Refusal::of_field(Code::InvalidField, &escaped(field), what)
}

pub(super) fn parsed<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error: T::Err| invalid(field, error))
}

fn moment(text: &str) -> Result<Timestamp, Refusal> {
    text.parse().map_err(|_| invalid("start_before", "it is no RFC 3339 time such as `2026-03-01T06:00:00Z`"))
}

/// A text that is one word of a fixed set.
fn word<T: DeserializeOwned>(field: &str, text: &str) -> Result<T, Refusal> {
    // The default error repeats the text; a longer one than any word of ours says nothing worth repeating.
    let shown: String = text.chars().take(40).flat_map(char::escape_default).collect();
    T::deserialize(StrDeserializer::<WordError>::new(&shown)).map_err(|error| invalid(field, error))
}

pub(super) fn word_or_default<T: DeserializeOwned + Default>(field: &str, text: Option<&String>) -> Result<T, Refusal> {
    text.map_or_else(|| Ok(T::default()), |text| word(field, text))
}

pub(super) fn at_most<T: PartialOrd + Display>(field: &str, value: T, max: T) -> Result<T, Refusal> {
    if value <= max { Ok(value) } else { Err(invalid(field, format_args!("it is over {max}"))) }
}

fn at_least_one<T: PartialOrd + From<u8> + Display>(field: &str, value: T) -> Result<T, Refusal> {
    if value >= T::from(1) { Ok(value) } else { Err(invalid(field, "it is less than 1")) }
}

impl JobMessage {
    /// Checks every value. A publisher does this before it publishes, a worker when it takes the job.
    ///
    /// # Errors
    /// `invalid_field`, `unknown_kind`, `malformed_message` for a missing part, and for the repository
    /// `secret_in_options` and `invalid_mount_option`.
    pub fn check(&self) -> Result<Job, Refusal> {
        let job_id = parsed("job_id", &self.job_id)?;
        let run = at_least_one("run", self.run)?;
        let kind =
            word::<JobKind>("kind", &self.kind).map_err(|refusal| Refusal { code: Code::UnknownKind, ..refusal })?;
        let repository = self.repository.check(job_id, &self.host)?;
        let work = match kind {
            JobKind::Backup => Work::Backup(own_part(kind, self.backup.as_ref())?.check()?),
            JobKind::Restore => Work::Restore(own_part(kind, self.restore.as_ref())?.check()?),
            JobKind::RestoreNew => Work::RestoreNew(own_part(kind, self.restore_new.as_ref())?.check()?),
            JobKind::RepoValidate => Work::RepoValidate(own_part(kind, self.validate.as_ref())?.check()?),
            JobKind::BackupDelete => Work::Delete(own_part(kind, self.delete.as_ref())?.check()?),
        };
        let deadline = match self.deadline_seconds {
            Some(seconds) => {
                let seconds = at_least_one("deadline_seconds", seconds)?;
                Duration::from_secs(at_most("deadline_seconds", seconds, DEADLINE_SECONDS_MAX)?)
            }
            None => Job::DEFAULT_DEADLINE,
        };
        check_labels(&self.labels)?;
        if let Some(who) = &self.requested_by {
            check_words("requested_by", who, REQUESTED_BY_BYTES_MAX)?;
        }
        Ok(Job {
            key: RunKey { job_id, run },
            host: parsed("host", &self.host)?,
            instance: self.check_instance(kind)?,
            repository,
            work,
            retry: self.retry.as_ref().map_or_else(|| Ok(RetryPolicy::default()), RetryPart::check)?,
            start_before: self.start_before.as_deref().map(moment).transpose()?,
            deadline,
            labels: self.labels.clone(),
            requested_by: self.requested_by.clone(),
        })
    }

    fn check_instance(&self, kind: JobKind) -> Result<Option<InstanceRef>, Refusal> {
        match (kind, &self.instance) {
            (JobKind::RepoValidate, None) => Ok(None),
            (JobKind::RepoValidate, Some(_)) => {
                let rule = "a job of the kind `repo-validate` is about no instance; `validate.instances` says whose backups are looked at";
                Err(invalid("instance", rule))
            }
            (_, Some(instance)) => instance.check().map(Some),
            (_, None) => {
                let text = format!("a job of the kind `{}` has no `instance`", kind.as_str());
                Err(Refusal::new(Code::MalformedMessage, text))
            }
        }
    }
}

fn own_part<T>(kind: JobKind, part: Option<&T>) -> Result<&T, Refusal> {
    part.ok_or_else(|| {
        let text = format!("a job of the kind `{}` has no part `{}`", kind.as_str(), kind.part());
        Refusal::new(Code::MalformedMessage, text)
    })
}

fn check_words(field: &str, text: &str, bytes_max: usize) -> Result<(), Refusal> {
    if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) {
        return Err(invalid(field, format_args!("it has 1 to {bytes_max} bytes and no control character")));
    }
    Ok(())
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(invalid("labels", format_args!("there are more than {LABELS_MAX}")));
    }
    for (key, value) in labels {
        check_words("labels (a name)", key, LABEL_KEY_BYTES_MAX)?;
        if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            let field = format!("labels.{}", key.escape_default());
            let rule = format_args!("it has at most {LABEL_VALUE_BYTES_MAX} bytes and no control character");
            return Err(invalid(&field, rule));
        }
    }
    let bytes = serde_json::to_vec(labels).map_err(|error| invalid("labels", error))?.len();
    at_most("labels (bytes of all together)", bytes, LABELS_BYTES_MAX).map(drop)
}

impl InstancePart {
    fn check(&self) -> Result<InstanceRef, Refusal> {
        self.check_as("instance")
    }

    pub(super) fn check_as(&self, field: &str) -> Result<InstanceRef, Refusal> {
        match (&self.id, &self.name) {
            (Some(id), None) => parsed(&format!("{field}.id"), id).map(InstanceRef::Id),
            (None, Some(name)) => parsed(&format!("{field}.name"), name).map(InstanceRef::Name),
            _ => Err(invalid(field, "it has either `id` or `name`")),
        }
    }
}

impl RepositoryPart {
    /// What this part's credentials are sealed for, in a job of that id for that host, where `id` is this part's own: whoever copies
    /// them can have another job, host or share try them in vain. A job in which a line feed is in any of it is refused.
    pub fn bound_to(&self, job_id: JobId, host: &str, id: RepositoryId) -> String {
        format!("{host}\n{job_id}\n{id}\n{}\n{}\n{}", self.repository_type, self.address, self.options)
    }

    fn check(&self, job_id: JobId, host: &str) -> Result<Repository, Refusal> {
        let refused = |field: &'static str| {
            move |error: InvalidRepository| {
                let code = match error {
                    InvalidRepository::Secret { .. } => Code::SecretInOptions,
                    _ => Code::InvalidMountOption,
                };
                Refusal::of_field(code, field, format_args!(": {error}"))
            }
        };
        // Secrets first: they are to be told as such, whatever else is wrong.
        let options = parse_options(&self.options).map_err(refused("repository.options"))?;
        let repository_type = word("repository.type", &self.repository_type)?;
        let id = parsed("repository.id", &self.id)?;
        Ok(Repository {
            id,
            repository_type,
            address: parse_address(repository_type, &self.address).map_err(refused("repository.address"))?,
            options,
            credentials: self
                .credentials
                .as_ref()
                .map(|part| part.check(self.bound_to(job_id, host, id)))
                .transpose()?,
        })
    }
}

impl CredentialsPart {
    fn check(&self, bound_to: String) -> Result<Credentials, Refusal> {
        match (&self.reference, &self.sealed) {
            (Some(name), None) => {
                let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
                if !characters || !(1..=128).contains(&name.len()) || name.starts_with('.') {
                    let rule = "a file name has 1 to 128 of a-z, A-Z, 0-9, `_`, `.` and `-` and begins with no dot";
                    return Err(invalid("repository.credentials.reference", rule));
                }
                Ok(Credentials::Reference { name: name.clone() })
            }
            (None, Some(sealed)) => sealed.check(bound_to),
            _ => Err(invalid("repository.credentials", "it has either `reference` or `sealed`")),
        }
    }
}

impl SealedPart {
    fn check(&self, bound_to: String) -> Result<Credentials, Refusal> {
        let bytes = |field: &str, text: &String| {
            at_most(&format!("{field} (length)"), text.len(), SEALED_BYTES_MAX)?;
            STANDARD.decode(text).map_err(|_| invalid(field, "it is not base64"))
        };
        Ok(Credentials::Sealed(Sealed {
            enc: bytes("repository.credentials.sealed.enc", &self.enc)?,
            ciphertext: bytes("repository.credentials.sealed.ciphertext", &self.ciphertext)?,
            bound_to,
        }))
    }
}

impl BackupPart {
    fn check(&self) -> Result<BackupSpec, Refusal> {
        at_most("backup.exclude_disks (count)", self.exclude_disks.len(), EXCLUDED_DISKS_MAX)?;
        Ok(BackupSpec {
            mode: word_or_default("backup.mode", self.mode.as_ref())?,
            full_every: self.full_every.map_or_else(|| Ok(FullEvery::default()), full_every)?,
            transfer: word_or_default("backup.transfer", self.transfer.as_ref())?,
            quiesce: word_or_default("backup.quiesce", self.quiesce.as_ref())?,
            verification: word_or_default("backup.verification", self.verification.as_ref())?,
            exclude_disks: targets("backup.exclude_disks", &self.exclude_disks)?,
        })
    }
}

fn full_every(backups: u32) -> Result<FullEvery, Refusal> {
    let backups = at_least_one("backup.full_every", backups)?;
    let max = u32::try_from(CHAIN_IMAGES_MAX).unwrap_or(u32::MAX);
    at_most("backup.full_every", backups, max).map(FullEvery)
}

impl RestorePart {
    /// What it asks for, if that can be asked for.
    pub(crate) fn check(&self) -> Result<RestoreSpec, Refusal> {
        at_most("restore.disks (count)", self.disks.len(), RESTORED_DISKS_MAX)?;
        at_most("restore.onto (count)", self.onto.len(), RESTORED_DISKS_MAX)?;
        if self.overwrite && self.keep_previous {
            let rule = format_args!("of what is written over nothing can be kept, as `keep_previous` asks for");
            return Err(invalid("restore.overwrite", rule));
        }
        let disks: Vec<DiskTarget> = targets("restore.disks", &self.disks)?;
        let mut onto = BTreeMap::new();
        for (disk, target) in &self.onto {
            let disk = parsed("restore.onto (a disk of the backup)", disk)?;
            if !disks.is_empty() && !disks.contains(&disk) {
                return Err(invalid("restore.onto", format_args!("`{disk}` is none of the disks to be restored")));
            }
            onto.insert(disk, parsed("restore.onto (a disk of the instance)", target)?);
        }
        Ok(RestoreSpec {
            backup_id: parsed("restore.backup_id", &self.backup_id)?,
            disks,
            onto,
            keep_previous: self.keep_previous,
            dry_run: self.dry_run,
            overwrite: self.overwrite,
        })
    }
}

impl ValidatePart {
    fn check(&self) -> Result<ValidateSpec, Refusal> {
        at_most("validate.instances (count)", self.instances.len(), VALIDATED_INSTANCES_MAX)?;
        let named = self.instances.iter().enumerate();
        let instances = named.map(|(index, id)| parsed(&format!("validate.instances[{index}]"), id));
        if self.max_bytes_per_second.is_some_and(|bytes| bytes < READ_BYTES_PER_SECOND_MIN) {
            let rule = format_args!("it is less than {READ_BYTES_PER_SECOND_MIN}");
            return Err(invalid("validate.max_bytes_per_second", rule));
        }
        Ok(ValidateSpec {
            level: word_or_default("validate.level", self.level.as_ref())?,
            sweep: self.sweep,
            instances: instances.collect::<Result<_, _>>()?,
            max_bytes_per_second: self.max_bytes_per_second,
        })
    }
}

impl DeletePart {
    fn check(&self) -> Result<DeleteSpec, Refusal> {
        Ok(DeleteSpec {
            backup_id: parsed("delete.backup_id", &self.backup_id)?,
            mode: word_or_default("delete.mode", self.mode.as_ref())?,
            dry_run: self.dry_run,
        })
    }
}

pub(super) fn targets(field: &str, disks: &[String]) -> Result<Vec<DiskTarget>, Refusal> {
    disks.iter().enumerate().map(|(index, disk)| parsed(&format!("{field}[{index}]"), disk)).collect()
}

impl RetryPart {
    fn check(&self) -> Result<RetryPolicy, Refusal> {
        let default = RetryPolicy::default();
        let attempts = at_least_one("retry.attempts", self.attempts.unwrap_or(default.attempts))?;
        let first = self.first_pause_seconds.unwrap_or(default.first_pause.as_secs());
        let longest = self.longest_pause_seconds.unwrap_or_else(|| first.max(default.longest_pause.as_secs()));
        at_most("retry.longest_pause_seconds", longest, PAUSE_SECONDS_MAX)?;
        at_most("retry.first_pause_seconds", first, longest)?;
        Ok(RetryPolicy {
            attempts: at_most("retry.attempts", attempts, RETRY_ATTEMPTS_MAX)?,
            first_pause: Duration::from_secs(first),
            longest_pause: Duration::from_secs(longest),
        })
    }
}
