//! Dead letters as a worker writes them, for brokers that have no other users than `guest`: it is the host, so that it is believed.
#![allow(dead_code)] // Each target uses its own part.

use jiff::Timestamp;
use longshore::broker::Outgoing;
use longshore::broker::topology::{DEAD_EXCHANGE, jobs_queue};
use longshore::failure::{Code, Failure};
use longshore::message::dead_letter::{Origin, Original};
use longshore::message::event::FailureReport;
use longshore::message::job::{BackupPart, InstancePart, JobMessage, RepositoryPart};
use longshore::message::{DeadLetter, Encoding, encode_dead_letter, encode_job};
use longshore::model::id::{EventId, HostId, JobId};
use longshore::model::job::JobKind;

/// The host.
pub const HOST: &str = "guest";

pub fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

/// A nightly backup that no other test knows.
pub fn job(run: u32) -> JobMessage {
    JobMessage {
        job_id: JobId::draw().to_string(),
        run,
        kind: "backup".to_owned(),
        host: HOST.to_owned(),
        instance: Some(InstancePart { id: None, name: Some("web".to_owned()) }),
        repository: RepositoryPart {
            id: "0192f3a0-0000-7000-8000-000000000001".to_owned(),
            repository_type: "nfs".to_owned(),
            address: "nas:/backups".to_owned(),
            options: String::new(),
            credentials: None,
        },
        backup: Some(BackupPart::default()),
        restore: None,
        restore_new: None,
        validate: None,
        delete: None,
        retry: None,
        start_before: None,
        deadline_seconds: None,
        labels: [("schedule".to_owned(), "nightly".to_owned())].into(),
        requested_by: None,
    }
}

/// A letter as the worker of [`HOST`] writes it.
pub fn dead(job: &JobMessage, code: Code, key: &str, encoding: Encoding) -> Outgoing {
    let encoded = encode_job(job, encoding, Timestamp::now()).unwrap();
    dead_of(Original::new(&encoded.properties, &encoded.body), job, code, key)
}

pub fn dead_of(original: Original, job: &JobMessage, code: Code, key: &str) -> Outgoing {
    let failure = Failure::new(code, "cannot mount `nas:/backups`").caused_by("no route to host");
    let letter = DeadLetter {
        host: host(HOST),
        time: Timestamp::now(),
        job_id: job.job_id.parse().ok(),
        run: Some(job.run),
        kind: Some(JobKind::Backup),
        attempts: 3,
        failure: FailureReport::from(&failure),
        origin: Origin { queue: jobs_queue(&host(HOST)), routing_key: key.to_owned() },
        original,
    };
    let encoded = encode_dead_letter(&letter, EventId::draw(), Encoding::MessagePack).unwrap();
    let routing_key = letter.routing_key();
    Outgoing { exchange: DEAD_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body }
}
