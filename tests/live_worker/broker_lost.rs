//! A broker that is killed while a job runs: the job does not notice, and its end is told when the broker is back.

use std::process::{Command, Stdio};
use std::time::Duration;

use longshore::model::id::JobId;

use crate::fleet::{Fleet, Settings};
use crate::lab::{LabInstance, eventually, variable};
use crate::rabbit::{Rabbit, Release};
use crate::share::Share;

/// A consumer in another language, whose durable queue outlives the broker: `declare`, then `read` all words in it.
const CONSUMER: &str = r#"
import sys, pika
connection = pika.BlockingConnection(pika.URLParameters(sys.argv[2]))
channel = connection.channel()
if sys.argv[1] == "declare":
    channel.queue_declare("consumer", durable=True)
    channel.queue_bind("consumer", "longshore.events", "backup.#")
while sys.argv[1] == "read":
    method, properties, _ = channel.basic_get("consumer", auto_ack=True)
    if method is None:
        break
    print(properties.correlation_id, properties.message_id, method.routing_key.split(".")[1])
connection.close()
"#;

fn consumer(verb: &str, uri: &str) -> String {
    let python = variable("LONGSHORE_LAB_PYTHON");
    let output = Command::new(python).args(["-c", CONSUMER, verb, uri]).output().unwrap();
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

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
    consumer("declare", &rabbit.uri());
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
        told.extend(consumer("read", &uri).lines().map(str::to_owned));
        told.iter().any(|line| line.starts_with(&job) && line.ends_with(" completed"))
    });
    let mut words: Vec<_> = told.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    words.retain(|word| *word != "progress");
    words.dedup();
    assert_eq!(words, ["accepted", "started", "completed"]);
    fleet.finish(&[&bare], &[&share]);
}
