//! A broker that is killed while a job runs: the job does not notice, and its end is told when the broker is back.

use std::process::Stdio;
use std::time::Duration;

use longshore::model::id::JobId;

use crate::consumer::Consumer;
use crate::fleet::{Fleet, Settings};
use crate::lab::{LabInstance, eventually};
use crate::rabbit::{Rabbit, Release};
use crate::share::Share;

#[test]
fn a_publisher_that_watches_hears_the_end_though_the_broker_was_killed_meanwhile() {
    let bare = LabInstance::bare();
    let mut rabbit = Rabbit::start_managed(Release::Debian12);
    let (broker_uri, management_uri) = (rabbit.uri(), Some(rabbit.management()));
    let fleet = Fleet::with("watched", Settings { broker_uri, management_uri, ..Settings::default() });
    let share = Share::faulty("watched");
    share.order(r#"{"bw_mb": 4}"#);
    let mut publish = fleet.command(&["job", "publish", "backup", "--host", &fleet.host, "--instance", &bare.name]);
    let job = JobId::draw();
    publish.args(["--repository-id", &share.id, "--address", share.path.to_str().unwrap()]);
    publish.args(["--job-id", &job.to_string(), "--watch", "--json", "--timeout-seconds", "120"]);
    let publish = publish.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fleet.is_copying(job);
    rabbit.kill();
    share.heal();
    eventually("the backup is published without a broker", Duration::from_secs(60), || {
        share.entries_of(&bare.id).iter().any(|name| !name.starts_with('.'))
    });
    rabbit.boot();
    let publish = publish.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&publish.stderr);
    assert_eq!(publish.status.code(), Some(0), "{said}");
    assert!(said.contains("events are missed until the broker is back"), "{said}");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn the_end_of_a_job_is_told_though_the_broker_was_killed_meanwhile() {
    let bare = LabInstance::bare();
    let mut rabbit = Rabbit::start();
    let fleet = Fleet::with("lost", Settings { broker_uri: rabbit.uri(), management_uri: None, ..Settings::default() });
    let share = Share::faulty("lost");
    share.order(r#"{"bw_mb": 4}"#);
    let consumer = Consumer::declare("consumer", &rabbit.uri());
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    rabbit.kill();
    share.heal();
    eventually("the backup is published without a broker", Duration::from_secs(60), || {
        share.entries_of(&bare.id).iter().any(|name| !name.starts_with('.'))
    });
    rabbit.boot();
    let (uri, job) = (rabbit.uri(), job.to_string());
    let mut told = Vec::new();
    eventually("the final event is told", Duration::from_secs(60), || {
        told.extend(consumer.read(&uri));
        told.iter().any(|told| told.job == job && told.word == "completed")
    });
    let mut words: Vec<_> = told.iter().map(|told| told.word.as_str()).collect();
    words.retain(|word| *word != "progress");
    words.dedup();
    assert_eq!(words, ["accepted", "started", "completed"]);
    fleet.finish(&[&bare], &[&share]);
}
