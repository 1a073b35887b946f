//! The jobs that are published: each for an instance of its own, so that none waits for another.

use jiff::Timestamp;
use longshore::message::job::{BackupPart, InstancePart, JobMessage, RepositoryPart};
use longshore::message::{Encoded, Encoding, encode_job};
use longshore::model::id::{HostId, JobId, RepositoryId};

/// Messages for `host`. The correlation id of each is its job's.
pub fn messages(host: &HostId, count: usize) -> Vec<Encoded> {
    let repository = RepositoryId::draw();
    let message = |number| encode_job(&job(host, repository, number), Encoding::MessagePack, Timestamp::now()).unwrap();
    (0..count).map(message).collect()
}

fn job(host: &HostId, repository: RepositoryId, number: usize) -> JobMessage {
    JobMessage {
        job_id: JobId::draw().to_string(),
        run: 1,
        kind: "backup".to_owned(),
        host: host.to_string(),
        instance: Some(InstancePart { id: None, name: Some(format!("instance-{number}")) }),
        repository: RepositoryPart {
            id: repository.to_string(),
            repository_type: "nfs".to_owned(),
            address: "nas.example.org:/volume1/backups".to_owned(),
            options: "vers=4.2,hard,nconnect=4".to_owned(),
            credentials: None,
        },
        backup: Some(BackupPart { quiesce: Some("prefer".to_owned()), ..BackupPart::default() }),
        restore: None,
        restore_new: None,
        validate: None,
        delete: None,
        retry: None,
        start_before: None,
        deadline_seconds: Some(3600),
        labels: [("tenant".to_owned(), "4f1c3d62".to_owned())].into(),
        requested_by: Some("bench".to_owned()),
    }
}
