//! Bad input through the queue: each has its code, a letter with the original and an event of the host, and the worker goes on.

use longshore::message::dead_letter::DeadLetter;
use longshore::message::event::HostDetail;
use longshore::message::{Encoded, JobMessage, Properties};
use serde_json::{Value, json};

use crate::fleet::{Fleet, SHARE, encoded, key};

const SECRET: &str = "hunter2-and-a-half";

/// Publishes it, waits for its letter and shows that the worker still works.
async fn refused(fleet: &Fleet, message: Encoded, code: &str) -> DeadLetter {
    let id = message.properties.message_id.clone();
    fleet.publish_raw(message.properties, message.body.clone()).await;
    let find = |fleet: &Fleet| fleet.letters().into_iter().find(|letter| letter.original.message_id == id);
    let letter = fleet.until(&format!("the letter of `{id}`"), find).await;
    assert_eq!(letter.failure.code, code, "{}", letter.failure.text);
    assert_eq!(letter.attempts, 0);
    let told = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().find_map(|detail| match detail {
            HostDetail::MessageRefused(refused) if refused.message_id == id => Some(refused),
            _ => None,
        })
    };
    let event = fleet.until(&format!("`message.refused` of `{id}`"), told).await;
    assert_eq!((event.code.as_str(), &event.text), (code, &letter.failure.text));
    letter
}

async fn still_works(fleet: &Fleet) {
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
}

fn json_message(body: &[u8]) -> Encoded {
    let properties = Properties {
        content_type: "application/json".to_owned(),
        message_type: JobMessage::MESSAGE_TYPE.to_owned(),
        message_id: uuid::Uuid::now_v7().to_string(),
        persistent: true,
        ..Properties::default()
    };
    Encoded { properties, body: body.to_vec() }
}

/// A good job as JSON, changed.
fn changed(fleet: &Fleet, change: impl FnOnce(&mut Value)) -> Encoded {
    let mut job = serde_json::to_value(fleet.job("web")).unwrap();
    change(&mut job);
    json_message(job.to_string().as_bytes())
}

#[tokio::test]
async fn what_is_no_job_at_all_is_refused_with_its_original() {
    let fleet = Fleet::with(&["web"]).await;
    for body in [&b"\xc1\xff\x00"[..], b"", b"{\"job_id\":", b"[1,2,3]", b"null"] {
        let letter = refused(&fleet, json_message(body), "malformed_message").await;
        assert_eq!(letter.original.body.bytes().unwrap(), body);
    }
    let mut broken_off = encoded(&fleet.job("web"));
    broken_off.body.truncate(broken_off.body.len() / 2);
    let letter = refused(&fleet, broken_off, "malformed_message").await;
    assert_eq!(letter.routing_key(), "backup.malformed_message.kvm-07");
    still_works(&fleet).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_secret_in_a_message_id_is_told_to_nobody() {
    let fleet = Fleet::with(&["web"]).await;
    let mut message = json_message(b"null");
    message.properties.message_id = format!("smb://bob:{SECRET}@nas/{}", uuid::Uuid::now_v7());
    fleet.publish_raw(message.properties, message.body).await;
    let told = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().find_map(|detail| match detail {
            HostDetail::MessageRefused(refused) => Some(refused.message_id),
            _ => None,
        })
    };
    let told = fleet.until("`message.refused`", told).await;
    assert_eq!(told, "smb://bob:[redacted]");
    let letters =
        format!("{:?}", fleet.until("the letter", |fleet| Some(fleet.letters()).filter(|all| !all.is_empty())).await);
    assert!(!letters.contains(SECRET), "{letters}");
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_too_large_or_too_deep_is_refused_and_cut() {
    const BODY_BYTES_MAX: usize = 256 * 1024;
    let fleet = Fleet::with(&["web"]).await;
    let letter = refused(&fleet, json_message(&vec![b'['; 3 * BODY_BYTES_MAX]), "message_too_large").await;
    assert_eq!(letter.original.body.bytes().unwrap().len(), BODY_BYTES_MAX);
    assert!(letter.original.altered);
    let deep = changed(&fleet, |job| job["x"] = (0..40).fold(json!(1), |inner, _| json!([inner])));
    refused(&fleet, deep, "message_too_large").await;
    still_works(&fleet).await;
    fleet.finish().await;
}

#[tokio::test]
async fn another_content_type_message_type_or_version_is_refused() {
    let fleet = Fleet::with(&["web"]).await;
    for content_type in ["", "text/plain", "application/json; charset=utf-16"] {
        let mut message = encoded(&fleet.job("web"));
        message.properties.content_type = content_type.to_owned();
        refused(&fleet, message, "unsupported_content_type").await;
    }
    for message_type in ["", "longshore.job.v2", "longshore.event.started.v1"] {
        let mut message = encoded(&fleet.job("web"));
        message.properties.message_type = message_type.to_owned();
        refused(&fleet, message, "unsupported_version").await;
    }
    still_works(&fleet).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_job_of_unknown_kind_or_for_another_host_is_refused_with_its_identity() {
    let fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    job.kind = "defragment.#".to_owned();
    let letter = refused(&fleet, encoded(&job), "unknown_kind").await;
    assert_eq!((letter.job_id, letter.run), (Some(key(&job).job_id), Some(1)));
    let mut job = fleet.job("web");
    job.host = "kvm-08".to_owned();
    let letter = refused(&fleet, encoded(&job), "wrong_host").await;
    assert!(letter.failure.text.contains("kvm-08"), "{}", letter.failure.text);
    still_works(&fleet).await;
    fleet.finish().await;
}

#[tokio::test]
async fn hostile_names_and_options_reach_nothing() {
    let fleet = Fleet::with(&["web"]).await;
    for name in ["../../etc/passwd", "a\nb", "", "$(reboot)/x", "web\u{0}"] {
        let message = changed(&fleet, |job| job["instance"]["name"] = json!(name));
        refused(&fleet, message, "invalid_field").await;
    }
    for disk in ["../vda", "vda,readonly=off", ""] {
        let message = changed(&fleet, |job| job["backup"]["exclude_disks"] = json!([disk]));
        refused(&fleet, message, "invalid_field").await;
    }
    for (field, value) in
        [("options", "ro\nsuid"), ("options", "x;reboot"), ("address", "/share/../etc"), ("address", "")]
    {
        let message = changed(&fleet, |job| job["repository"][field] = json!(value));
        refused(&fleet, message, "invalid_mount_option").await;
    }
    assert!(fleet.movers.published(SHARE).is_empty());
    still_works(&fleet).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_secret_in_a_job_is_in_no_letter_no_event_and_not_in_the_journal() {
    let fleet = Fleet::with(&["web"]).await;
    let options = format!("vers=3.0,password={SECRET}");
    for kind in ["cifs", "directory"] {
        let message = changed(&fleet, |job| {
            job["repository"]["type"] = json!(kind);
            job["repository"]["options"] = json!(options);
        });
        let letter = refused(&fleet, message, "secret_in_options").await;
        assert!(letter.original.altered && letter.original.body.text.unwrap().contains("vers=3.0"));
    }
    assert_nowhere(&fleet);
    still_works(&fleet).await;
    fleet.finish().await;
}

/// A field that this version does not know is skipped, but the body is kept until the run has ended and beyond.
#[tokio::test]
async fn a_secret_in_a_field_that_nobody_reads_is_refused_and_not_kept_either() {
    let fleet = Fleet::with(&["web"]).await;
    let message = changed(&fleet, |job| job["repository"]["password"] = json!(SECRET));
    refused(&fleet, message, "secret_in_options").await;
    assert_nowhere(&fleet);
    still_works(&fleet).await;
    assert_nowhere(&fleet);
    fleet.finish().await;
}

fn assert_nowhere(fleet: &Fleet) {
    let files: Vec<_> = std::fs::read_dir(fleet.journal_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.iter().any(|file| file.ends_with("journal.sqlite")), "{files:?}");
    for file in files {
        let content = std::fs::read(&file).unwrap();
        let found = content.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        assert!(!found, "the secret stands in {}", file.display());
    }
    let letters = fleet.server.ready_messages(longshore::broker::topology::DEAD_QUEUE);
    for letter in &letters {
        assert!(!String::from_utf8_lossy(&letter.body).contains(SECRET), "the secret stands in a letter");
    }
    for letter in fleet.letters() {
        let original = letter.original.body.bytes().unwrap();
        assert!(!String::from_utf8_lossy(&original).contains(SECRET), "the secret stands in an original");
    }
    assert!(!format!("{:?}", fleet.events.all()).contains(SECRET), "the secret stands in an event");
}

#[tokio::test]
async fn an_instance_or_a_disk_that_is_not_here_fails_the_run_at_once() {
    let fleet = Fleet::with(&["web"]).await;
    let run = fleet.publish(&fleet.job("elsewhere")).await;
    assert_eq!(fleet.failed(run).await.code, "instance_not_here");
    let mut job = fleet.job("web");
    job.backup.as_mut().unwrap().exclude_disks = vec!["vdz".to_owned()];
    let run = fleet.publish(&job).await;
    assert_eq!(fleet.failed(run).await.code, "disk_not_found");
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(run)).await;
    assert_eq!((letter.failure.code.as_str(), letter.attempts), ("disk_not_found", 1));
    assert_eq!(letter.routing_key(), "backup.disk_not_found.kvm-07");
    assert_eq!(letter.original.body.bytes().unwrap(), encoded(&job).body);
    still_works(&fleet).await;
    fleet.finish().await;
}
