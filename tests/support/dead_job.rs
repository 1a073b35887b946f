//! Dead letters as a worker writes them, for brokers that have no other users than `guest`: it is the host, so that it is believed.
#![allow(dead_code, clippy::unwrap_used)] // Each target uses its own part.

use jiff::Timestamp;
use longshore::broker::Outgoing;
use longshore::broker::topology::{DEAD_EXCHANGE, jobs_queue};
use longshore::failure::{Code, Failure};
use longshore::letters::STRAY_AFTER;
use longshore::message::dead_letter::{Origin, Original};
use longshore::message::event::FailureReport;
use longshore::message::job::{BackupPart, InstancePart, JobMessage, RepositoryPart};
use longshore::message::told::ToldEvent;
use longshore::message::{
    DeadLetter, Encoding, Superseded, decode_dead_letter, encode_dead_letter, encode_job, encode_superseded,
};
use longshore::model::id::{EventId, HostId, JobId};
use longshore::model::job::JobKind;
use serde_json::{Value, json};

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

/// The same, of longer ago than a letter may be on its way.
pub fn dead_long_ago(job: &JobMessage) -> Outgoing {
    let encoded = encode_job(job, Encoding::Json, Timestamp::now()).unwrap();
    let time = Timestamp::now() - 2 * STRAY_AFTER;
    dead_at(time, Original::new(&encoded.properties, &encoded.body), job, Code::MountFailed, HOST)
}

pub fn dead_of(original: Original, job: &JobMessage, code: Code, key: &str) -> Outgoing {
    dead_at(Timestamp::now(), original, job, code, key)
}

fn dead_at(time: Timestamp, original: Original, job: &JobMessage, code: Code, key: &str) -> Outgoing {
    let failure = Failure::new(code, "cannot mount `nas:/backups`").caused_by("no route to host");
    let letter = DeadLetter {
        host: host(HOST),
        time,
        job_id: job.job_id.parse().ok(),
        run: Some(job.run),
        kind: Some(JobKind::Backup),
        attempts: 3,
        failure: FailureReport::from(&failure),
        origin: Origin { queue: jobs_queue(&host(HOST)), routing_key: key.to_owned() },
        original,
        events: told(),
        events_left_out: 0,
    };
    let encoded = encode_dead_letter(&letter, EventId::draw(), Encoding::MessagePack).unwrap();
    let routing_key = letter.routing_key();
    Outgoing { exchange: DEAD_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body }
}

/// What the third attempt of three told, and why there were two more.
fn told() -> Vec<ToldEvent> {
    let time = Timestamp::now();
    let of = |attempt: u32, sequence: u64, event: &str, more: Value| {
        let mut told = json!({ "attempt": attempt, "sequence": sequence, "time": time, "event": event });
        told.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(told).unwrap()
    };
    let failure =
        json!({ "code": "mount_failed", "class": "transient", "step": "open", "text": "cannot mount `nas:/backups`" });
    let retrying = || json!({ "failure": failure, "next_attempt_at": time });
    let progress =
        |step: &str| json!({ "step": step, "done_bytes": 1 << 30, "total_bytes": 4_u64 << 30, "since": time });
    vec![
        of(0, 1, "accepted", json!({})),
        of(1, 4, "retrying", retrying()),
        of(2, 4, "retrying", retrying()),
        of(3, 1, "started", json!({})),
        of(3, 30, "progress", progress("copy")),
        of(3, 31, "progress", progress("verify")),
        of(3, 32, "failed", json!({})),
    ]
}

/// The mark that a later success of another job leaves on a letter of [`dead`].
pub fn mark(letter: &Outgoing, time: Timestamp) -> Outgoing {
    let of = decode_dead_letter(&letter.properties, &letter.body).unwrap();
    let mark = Superseded {
        host: of.host,
        time,
        letter_id: letter.properties.message_id.parse().unwrap(),
        kind: of.kind.unwrap(),
        job_id: of.job_id.unwrap(),
        run: of.run.unwrap(),
        by_job_id: JobId::draw(),
        by_run: 1,
    };
    let encoded = encode_superseded(&mark, EventId::draw(), Encoding::Json).unwrap();
    let routing_key = mark.routing_key();
    Outgoing { exchange: DEAD_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body }
}
