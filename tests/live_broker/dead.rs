//! `longshore dead`, as an operator runs it, on a broker with letters of one host.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use longshore::broker::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE};
use longshore::broker::{Broker, Heard, HostSession, Outgoing, Properties, Subscription, WantedJobs};
use longshore::failure::Code;
use longshore::message::event::LetterDetail;
use longshore::message::job::JobMessage;
use longshore::message::{Encoding, Event, decode_event, decode_job};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::timeout;

use crate::contract::broker::{Ground, nothing_arrives, open_up};
use crate::dead_job::{HOST, dead, host, job};
use crate::rabbit::Rabbit;
use crate::{PATIENCE, blocking};

/// Letters that are replayed so slowly that somebody can die meanwhile.
const MANY: usize = 40;

/// An operator's shell, and what is on the broker.
struct Desk {
    rabbit: Arc<Rabbit>,
    broker: Arc<dyn Broker>,
}

impl Desk {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.arg("dead").args(words).env("LONGSHORE__BROKER__URI", self.rabbit.uri()).stdin(Stdio::null());
        command
    }

    async fn run(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        blocking(move || command.output().unwrap()).await
    }

    async fn lines(&self, words: &[&str]) -> Vec<Value> {
        let output = self.run(words).await;
        assert!(output.status.success(), "{words:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn letters(&self) -> Vec<Value> {
        self.lines(&["list", "--json"]).await
    }

    async fn die(&self, jobs: &[JobMessage]) {
        for job in jobs {
            self.publish(dead(job, Code::MountFailed, HOST, Encoding::MessagePack)).await;
        }
    }

    async fn publish(&self, letter: Outgoing) {
        self.broker.publisher().publish(letter).await.unwrap();
    }
}

/// Small trips to one broker, whose queue of letters is empty before and after each.
pub async fn all(rabbit: &Arc<Rabbit>) {
    let desk = Desk { rabbit: Arc::clone(rabbit), broker: rabbit.client("letters") };
    let mut session = open_up(desk.broker.as_ref(), &host(HOST)).await;
    session.want_jobs(WantedJobs::All);
    letters_are_listed_counted_shown_and_exported(&desk).await;
    a_letter_is_replayed_and_told_of(&desk, session.as_mut()).await;
    what_cannot_be_replayed_is_named_and_stays(&desk, session.as_mut()).await;
    a_second_operator_is_told_of_the_first(&desk).await;
    a_replay_that_is_killed_loses_none_and_doubles_none(&desk, session.as_mut()).await;
    session.close().await;
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ids(letters: &[Value]) -> Vec<&str> {
    letters.iter().map(|letter| letter["letter_id"].as_str().unwrap()).collect()
}

async fn letters_are_listed_counted_shown_and_exported(desk: &Desk) {
    assert_eq!(desk.letters().await, [Value::Null; 0]);
    let nobody = desk.run(&["show", "0192f3a0-0000-7000-8000-00000000dead"]).await;
    assert_eq!(nobody.status.code(), Some(10), "{nobody:?}");

    desk.die(&[job(1), job(1)]).await;
    let properties = Properties { message_id: "odd".to_owned(), persistent: true, ..Properties::default() };
    let odd = Outgoing {
        exchange: DEAD_EXCHANGE,
        routing_key: format!("backup.internal.{HOST}"),
        properties,
        body: b"\x1b[2J\xff".to_vec(),
    };
    desk.publish(odd).await;

    let listed = desk.letters().await;
    let codes: Vec<_> = listed.iter().map(|letter| letter["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["mount_failed", "mount_failed", "unreadable_letter"]);
    assert_eq!(
        (listed[0]["instance"].as_str(), listed[0]["labels"]["schedule"].as_str()),
        (Some("web"), Some("nightly"))
    );
    assert_eq!(listed[0]["doubt"], Value::Null, "{listed:?}");
    assert_eq!(desk.lines(&["list", "--json", "--code", "mount_failed", "--label", "schedule=nightly"]).await.len(), 2);
    assert_eq!(desk.lines(&["list", "--json", "--kind", "restore"]).await.len(), 0);
    let groups = desk.lines(&["list", "--json", "--group-by", "code"]).await;
    let groups: Vec<_> = groups.iter().map(|group| (group["key"].as_str(), group["count"].as_u64())).collect();
    assert_eq!(groups, [(Some("mount_failed"), Some(2)), (Some("unreadable_letter"), Some(1))]);

    let shown = text(&desk.run(&["show", ids(&listed)[0]]).await.stdout);
    for said in
        ["mount_failed (transient)", "cannot mount `nas:/backups`", "no route to host", "\"schedule\": \"nightly\""]
    {
        assert!(shown.contains(said), "no `{said}` in\n{shown}");
    }
    let odd = text(&desk.run(&["show", "odd"]).await.stdout);
    assert!(odd.contains("1b 5b 32 4a ff") && !odd.contains('\u{1b}'), "{odd}");
    let exported = desk.lines(&["export", "odd"]).await;
    assert_eq!(exported[0]["body_base64"], "G1sySv8=");

    let all = desk.run(&["discard", "--all"]).await;
    assert_eq!(all.status.code(), Some(2), "a reason is asked for: {all:?}");
    let none = desk.run(&["discard", "--reason", "x"]).await;
    assert_eq!(none.status.code(), Some(2), "all are meant only where that is said: {none:?}");
    assert_eq!(desk.letters().await.len(), 3, "all of it was looking");
    let discarded = desk.lines(&["discard", "--all", "--reason", "of a test", "--json"]).await;
    assert_eq!(discarded.len(), 3);
    assert_eq!(desk.letters().await, [Value::Null; 0]);
}

async fn next_of_letters(events: &mut dyn Subscription) -> longshore::message::event::LetterEvent {
    match timeout(PATIENCE, events.next()).await.expect("no event") {
        Some(Heard::Message(message)) => match decode_event(&message.properties, &message.body).unwrap() {
            Event::Letter(event) => event,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

async fn taken(session: &mut dyn HostSession) -> longshore::model::job::Job {
    let delivery = timeout(PATIENCE, session.next()).await.expect("no job");
    let job = decode_job(&delivery.properties, &delivery.body, &host(HOST)).unwrap();
    assert!(delivery.settle.ack().await);
    job
}

async fn a_letter_is_replayed_and_told_of(desk: &Desk, session: &mut dyn HostSession) {
    let mut events = desk.broker.subscribe(EVENTS_EXCHANGE, &["letter.#".to_owned()]).await.unwrap();
    let (first, second) = (job(1), job(2));
    desk.die(&[first.clone(), second.clone()]).await;
    let id = ids(&desk.letters().await)[1].to_owned();

    let planned = text(&desk.run(&["replay", &id, "--dry-run", "--set", "backup.quiesce=prefer"]).await.stdout);
    assert!(
        planned.contains("would be")
            && planned.contains("backup of web on nas:/backups as run 3 to host guest, with other backup.quiesce"),
        "{planned}"
    );
    nothing_arrives(session).await;
    let words =
        ["replay", &id, "--set", "backup.quiesce=prefer", "--reason", "the share is back", "--requested-by", "ann"];
    let output = desk.run(&words).await;
    assert!(output.status.success(), "{output:?}");
    let job = taken(session).await;
    assert_eq!((job.key.job_id.to_string(), job.key.run), (second.job_id, 3));
    let event = next_of_letters(events.as_mut()).await;
    assert_eq!((event.user.as_str(), event.letter_id, event.run), (HOST, id, Some(2)));
    assert_eq!((event.reason.as_deref(), event.requested_by.as_deref()), (Some("the share is back"), Some("ann")));
    assert!(matches!(event.detail, LetterDetail::Replayed(replayed) if replayed.run == 3));

    let left = desk.letters().await;
    assert_eq!((left.len(), left[0]["job_id"].as_str()), (1, Some(first.job_id.as_str())));
    let output = desk.run(&["discard", "--job", &first.job_id, "--reason", "no longer needed"]).await;
    assert!(output.status.success(), "{output:?}");
    let event = next_of_letters(events.as_mut()).await;
    assert!(matches!(event.detail, LetterDetail::Discarded(_)) && event.reason.as_deref() == Some("no longer needed"));
    nothing_arrives(session).await;
}

async fn what_cannot_be_replayed_is_named_and_stays(desk: &Desk, session: &mut dyn HostSession) {
    let first = job(1);
    let again = JobMessage { run: 2, ..first.clone() };
    let elsewhere = JobMessage { host: "kvm-09".to_owned(), ..job(1) };
    desk.die(&[first, again, elsewhere]).await;
    let output = desk.run(&["replay", "--all"]).await;
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(
        said.contains("run 2 of the same job is dead as well") && said.contains("the job names the host `kvm-09`"),
        "{said}"
    );
    assert_eq!(taken(session).await.key.run, 3);
    let nowhere = desk.run(&["replay", "--to-host", "kvm-09", "--all"]).await;
    assert!(text(&nowhere.stdout).contains("no host has a queue for `kvm-09`"), "{nowhere:?}");
    assert_eq!(desk.letters().await.len(), 2);
    desk.lines(&["discard", "--all", "--reason", "of a test", "--json"]).await;
}

async fn a_second_operator_is_told_of_the_first(desk: &Desk) {
    let reader = desk.broker.read_letters().await.unwrap();
    let second = desk.run(&["list"]).await;
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("somebody else is reading the dead letters"), "{second:?}");
    reader.close().await.unwrap();
    desk.letters().await;
}

/// Killed amid its work, and run again: each job is there, and one that is there twice is the same message.
async fn a_replay_that_is_killed_loses_none_and_doubles_none(desk: &Desk, session: &mut dyn HostSession) {
    let jobs: Vec<_> = (0..MANY).map(|_| job(1)).collect();
    desk.die(&jobs).await;
    let mut bodies: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    let mut slow = desk.command(&["replay", "--all", "--per-second", "5"]);
    let mut slow = Killed(slow.stdout(Stdio::piped()).spawn().unwrap());
    let said = slow.0.stdout.take().unwrap();
    // It has said so of the first one: there are thirty-nine more, at five a second.
    let line = blocking(move || {
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).unwrap();
        line
    });
    assert!(line.await.contains("replayed"));
    take(session, &mut bodies).await;
    slow.kill();
    // The broker hears of the end of its connection in its own time.
    let rest = async {
        loop {
            let output = desk.run(&["replay", "--all", "--json"]).await;
            match output.status.code() {
                Some(1) if text(&output.stderr).contains("somebody else") => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                _ => return output,
            }
        }
    };
    let output = timeout(PATIENCE, rest).await.expect("a dead operator's hold stays");
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).lines().count() < MANY, "the first one has done something");
    assert_eq!(desk.letters().await, [Value::Null; 0]);
    while bodies.len() < MANY {
        take(session, &mut bodies).await;
    }
    let wanted: Vec<_> = jobs.iter().map(|job| job.job_id.clone()).collect();
    assert!(wanted.iter().all(|job| bodies.contains_key(job)));
    assert!(bodies.values().all(|copies| copies.iter().all(|copy| *copy == copies[0])), "the host does each once");
    while let Ok(delivery) = timeout(crate::contract::broker::QUIET, session.next()).await {
        assert!(bodies[&delivery.properties.message_id].contains(&delivery.body));
        assert!(delivery.settle.ack().await);
    }
}

async fn take(session: &mut dyn HostSession, bodies: &mut BTreeMap<String, Vec<Vec<u8>>>) {
    let delivery = timeout(PATIENCE, session.next()).await.expect("no job");
    bodies.entry(delivery.properties.message_id.clone()).or_default().push(delivery.body.clone());
    assert!(delivery.settle.ack().await);
}

/// An operator's command that ends before it is done.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "it was faster");
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
        self.0.wait().unwrap();
    }
}
