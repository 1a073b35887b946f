//! A consumer of events in another language, whose durable queue outlives the broker.
#![allow(dead_code)] // Each live target uses its own part.

use std::process::Command;

use crate::lab::variable;

/// `declare` makes the queue, `read` empties it.
const PROGRAM: &str = r#"
import sys, pika
verb, queue, uri = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(uri))
channel = connection.channel()
if verb == "declare":
    channel.queue_declare(queue, durable=True)
    channel.queue_bind(queue, "longshore.events", "backup.#")
while verb == "read":
    method, properties, _ = channel.basic_get(queue, auto_ack=True)
    if method is None:
        break
    print(properties.correlation_id, properties.message_id, method.routing_key.split(".")[1])
connection.close()
"#;

/// An event about a backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub job: String,
    /// The event's.
    pub id: String,
    pub word: String,
}

impl Told {
    pub fn is_final(&self) -> bool {
        ["completed", "failed", "cancelled"].contains(&self.word.as_str())
    }
}

/// The queue, by its name.
pub struct Consumer(String);

impl Consumer {
    pub fn declare(queue: &str, uri: &str) -> Self {
        let consumer = Self(queue.to_owned());
        consumer.run("declare", uri);
        consumer
    }

    /// What has come since the last time.
    pub fn read(&self, uri: &str) -> Vec<Told> {
        let told = |line: &str| {
            let [job, id, word] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            Told { job: job.to_owned(), id: id.to_owned(), word: word.to_owned() }
        };
        self.run("read", uri).lines().map(told).collect()
    }

    fn run(&self, verb: &str, uri: &str) -> String {
        let python = variable("LONGSHORE_LAB_PYTHON");
        let output = Command::new(python).args(["-c", PROGRAM, verb, &self.0, uri]).output().unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
