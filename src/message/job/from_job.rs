//! From a checked job back to its message: what the command line publishes has passed the same checks as what comes in.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::{
    BackupPart, CredentialsPart, DeletePart, InstancePart, JobMessage, RepositoryPart, RestoreNewPart, RestorePart,
    RetryPart, SealedPart, ValidatePart,
};
use crate::model::id::InstanceRef;
use crate::model::job::{BackupSpec, DeleteSpec, Job, RestoreSpec, ValidateSpec, Work};
use crate::model::repository::{Credentials, MountOption, Sealed};

/// The word under which a value of a fixed set stands in a message.
pub(super) fn word_of(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

impl From<&Job> for JobMessage {
    /// The message that is read back as this job.
    fn from(job: &Job) -> Self {
        let (mut backup, mut restore, mut restore_new, mut delete, mut validate) = (None, None, None, None, None);
        match &job.work {
            Work::Backup(spec) => backup = Some(BackupPart::from(spec)),
            Work::Restore(spec) => restore = Some(RestorePart::from(spec)),
            Work::RestoreNew(spec) => restore_new = Some(RestoreNewPart::from(spec)),
            Work::Delete(spec) => delete = Some(DeletePart::from(spec)),
            Work::RepoValidate(spec) => validate = Some(ValidatePart::from(spec)),
        }
        Self {
            job_id: job.key.job_id.to_string(),
            run: job.key.run,
            kind: job.kind().as_str().to_owned(),
            host: job.host.to_string(),
            instance: job.instance.as_ref().map(InstancePart::from),
            repository: RepositoryPart {
                id: job.repository.id.to_string(),
                repository_type: word_of(job.repository.repository_type),
                address: job.repository.address.clone(),
                options: job.repository.options.iter().map(MountOption::to_element).collect::<Vec<_>>().join(","),
                credentials: job.repository.credentials.as_ref().map(credentials_of),
            },
            backup,
            restore,
            restore_new,
            validate,
            delete,
            retry: Some(RetryPart {
                attempts: Some(job.retry.attempts),
                first_pause_seconds: Some(job.retry.first_pause.as_secs()),
                longest_pause_seconds: Some(job.retry.longest_pause.as_secs()),
            }),
            start_before: job.start_before.map(|time| time.to_string()),
            deadline_seconds: Some(job.deadline.as_secs()),
            labels: job.labels.clone(),
            requested_by: job.requested_by.clone(),
        }
    }
}

impl From<&InstanceRef> for InstancePart {
    fn from(instance: &InstanceRef) -> Self {
        match instance {
            InstanceRef::Id(id) => Self { id: Some(id.to_string()), name: None },
            InstanceRef::Name(name) => Self { id: None, name: Some(name.to_string()) },
        }
    }
}

impl From<&BackupSpec> for BackupPart {
    fn from(spec: &BackupSpec) -> Self {
        Self {
            mode: Some(word_of(spec.mode)),
            full_every: Some(spec.full_every.0),
            transfer: Some(word_of(spec.transfer)),
            quiesce: Some(word_of(spec.quiesce)),
            verification: Some(word_of(spec.verification)),
            exclude_disks: spec.exclude_disks.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&RestoreSpec> for RestorePart {
    fn from(spec: &RestoreSpec) -> Self {
        Self {
            backup_id: spec.backup_id.to_string(),
            disks: spec.disks.iter().map(ToString::to_string).collect(),
            onto: spec.onto.iter().map(|(disk, target)| (disk.to_string(), target.to_string())).collect(),
            keep_previous: spec.keep_previous,
            dry_run: spec.dry_run,
            overwrite: spec.overwrite,
        }
    }
}

impl From<&ValidateSpec> for ValidatePart {
    fn from(spec: &ValidateSpec) -> Self {
        Self {
            level: Some(word_of(spec.level)),
            sweep: spec.sweep,
            instances: spec.instances.iter().map(ToString::to_string).collect(),
            max_bytes_per_second: spec.max_bytes_per_second,
        }
    }
}

impl From<&DeleteSpec> for DeletePart {
    fn from(spec: &DeleteSpec) -> Self {
        Self { backup_id: spec.backup_id.to_string(), mode: Some(word_of(spec.mode)), dry_run: spec.dry_run }
    }
}

impl From<&Sealed> for SealedPart {
    fn from(sealed: &Sealed) -> Self {
        Self { enc: STANDARD.encode(&sealed.enc), ciphertext: STANDARD.encode(&sealed.ciphertext) }
    }
}

fn credentials_of(credentials: &Credentials) -> CredentialsPart {
    match credentials {
        Credentials::Reference { name } => CredentialsPart { reference: Some(name.clone()), sealed: None },
        Credentials::Sealed(sealed) => CredentialsPart { reference: None, sealed: Some(SealedPart::from(sealed)) },
    }
}
