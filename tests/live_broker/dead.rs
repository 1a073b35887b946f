//! `longshore dead`, as an operator runs it, on a broker with letters of one host.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use longshore::broker::letters::{LetterReader, ReadLettersError};
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
use crate::dead_job::{HOST, dead, dead_long_ago, host, job, mark};
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

    /// All that lies in the queue, marks too.
    async fn in_queue(&self) -> usize {
        let mut reader = self.until_free().await;
        let mut count = 0;
        while timeout(PATIENCE, reader.next()).await.expect("neither a message nor an end").unwrap().is_some() {
            count += 1;
        }
        reader.close().await.unwrap();
        count
    }

    /// Reads as soon as the broker has heard of the end of whoever read before.
    async fn until_free(&self) -> Box<dyn LetterReader> {
        let opened = async {
            loop {
                match self.broker.read_letters().await {
                    Ok(reader) => return reader,
                    Err(ReadLettersError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(PATIENCE, opened).await.expect("the letters stay in use")
    }

    async fn discard_all(&self) {
        self.lines(&["discard", "--all", "--reason", "of a test", "--json"]).await;
        assert_eq!(self.letters().await, [Value::Null; 0]);
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
    a_second_operator_is_told_who_the_first_is(&desk).await;
    what_a_later_success_has_superseded_is_marked_and_passed_over(&desk, session.as_mut()).await;
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

async fn a_second_operator_is_told_who_the_first_is(desk: &Desk) {
    // It goes on for as many seconds, and has said so of the first one.
    let jobs: Vec<_> = (0..MANY).map(|_| job(1)).collect();
    desk.die(&jobs).await;
    let mut first = desk.command(&["replay", "--all", "--per-second", "1", "--to-host", HOST]);
    let mut first = Killed(first.stdout(Stdio::piped()).spawn().unwrap());
    let said = first.0.stdout.take().unwrap();
    let line = blocking(move || {
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).unwrap();
        line
    });
    assert!(line.await.contains("replayed"));
    // It begins to answer a little after it has begun to read.
    let answers = async {
        while desk.broker.letters_holder().await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, answers).await.expect("nobody says who reads");
    let second = desk.run(&["list"]).await;
    let told = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    let machine = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert!(
        told.contains(&format!(
            "somebody else is reading the dead letters: broker user `{HOST}` says that it reads them, as "
        )) && told.contains(&format!("@{machine}, with `longshore dead replay`, since "))
            && told.contains("try again when that has ended"),
        "{told}"
    );
    first.kill();
    // One that does not say who it is, as of an older version: nobody has made the exchange.
    let quiet = desk.rabbit.ctl(&[
        "eval",
        "rabbit_exchange:delete(rabbit_misc:r(<<\"/\">>, exchange, <<\"longshore.letters\">>), false, <<\"test\">>).",
    ]);
    let reader = desk.until_free().await;
    let third = desk.run(&["list"]).await;
    let told = text(&third.stderr);
    assert!(told.contains("does not say who") && told.contains("list_connections"), "{quiet} {told}");
    reader.close().await.unwrap();
    desk.discard_all().await;
}

/// A success has superseded two letters of three, of which one is wanted all the same.
async fn what_a_later_success_has_superseded_is_marked_and_passed_over(desk: &Desk, session: &mut dyn HostSession) {
    while let Ok(delivery) = timeout(crate::contract::broker::QUIET, session.next()).await {
        assert!(delivery.settle.ack().await);
    }
    let jobs = [job(1), job(1), job(1)];
    let long_ago = jiff::Timestamp::now() - longshore::letters::STRAY_AFTER;
    let letters = jobs.each_ref().map(dead_long_ago);
    for letter in &letters {
        desk.publish(letter.clone()).await;
    }
    for letter in [&letters[0], &letters[1], &dead_long_ago(&job(1))] {
        desk.publish(mark(letter, long_ago)).await;
    }
    let listed = desk.letters().await;
    let by = |letter: &Value| letter["made_good_by"]["job_id"].is_string() && letter["made_good_by"]["run"] == 1;
    assert_eq!(listed.iter().map(by).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(listed[0]["made_good_by"]["time"], long_ago.to_string());
    let people = text(&desk.run(&["list"]).await.stdout);
    assert!(
        people.contains("[superseded by ")
            && people.contains("3 letters, 1 host, 1 code, 2 superseded")
            && people.contains("1 marks of letters"),
        "{people}"
    );
    let groups = desk.lines(&["list", "--json", "--group-by", "code"]).await;
    assert_eq!((&groups[0]["count"], &groups[0]["made_good"]), (&3.into(), &2.into()));
    assert_eq!(desk.lines(&["list", "--json", "--superseded", "--since", "24h"]).await.len(), 2);
    assert_eq!(desk.lines(&["list", "--json", "--until", "24h"]).await.len(), 0);
    let exported = desk.lines(&["export"]).await;
    assert_eq!(exported.iter().map(by).collect::<Vec<_>>(), [true, true, false]);
    let first = ids(&listed)[0].to_owned();
    let end = &first[first.len() - 12..];
    let shown = text(&desk.run(&["show", end]).await.stdout);
    assert!(shown.contains("superseded  job ") && shown.contains(&first), "{shown}");
    let several = desk.run(&["show", &first[..6]]).await;
    assert_eq!(several.status.code(), Some(2));
    assert!(text(&several.stderr).contains("stands for 3"), "{several:?}");

    let output = desk.run(&["replay", "--all"]).await;
    let said = text(&output.stdout);
    assert_eq!((output.status.code(), said.matches("kept").count()), (Some(3), 2), "{output:?}");
    assert!(said.contains("superseded: job "), "{said}");
    assert_eq!(taken(session).await.key.job_id.to_string(), jobs[2].job_id);
    // The mark without a letter went with that; those of letters that stay have stayed.
    let left = text(&desk.run(&["list"]).await.stdout);
    assert!(left.contains("2 letters, 1 host, 1 code, 2 superseded") && !left.contains("marks of letters"), "{left}");
    let named = desk.run(&["replay", end]).await;
    assert!(named.status.success(), "{named:?}");
    assert_eq!(taken(session).await.key.job_id.to_string(), jobs[0].job_id);
    let discarded = desk.lines(&["discard", "--superseded", "--reason", "superseded", "--json"]).await;
    assert_eq!(discarded.len(), 1);
    assert_eq!(desk.in_queue().await, 0, "the marks have gone with their letters");
    // Where there is nothing but a mark, and a young one, who throws all away has done something.
    desk.publish(mark(&dead_long_ago(&job(1)), jiff::Timestamp::now())).await;
    assert_eq!(desk.run(&["replay", "--all"]).await.status.code(), Some(10), "its letter may come yet");
    let output = desk.run(&["discard", "--all", "--reason", "of a test"]).await;
    assert!(output.status.success() && text(&output.stderr).contains("1 marks were taken away"), "{output:?}");
    assert_eq!(desk.in_queue().await, 0);
    nothing_arrives(session).await;
}

/// Killed amid its work, and run again: each job is there, and one that is there twice is the same message.
async fn a_replay_that_is_killed_loses_none_and_doubles_none(desk: &Desk, session: &mut dyn HostSession) {
    let jobs: Vec<_> = (0..MANY).map(|_| job(1)).collect();
    let long_ago = jiff::Timestamp::now() - longshore::letters::STRAY_AFTER;
    for letter in jobs.iter().map(dead_long_ago) {
        let mark = mark(&letter, long_ago);
        desk.publish(letter).await;
        desk.publish(mark).await;
    }
    let mut bodies: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    let mut slow = desk.command(&["replay", "--superseded", "--per-second", "5"]);
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
            let output = desk.run(&["replay", "--superseded", "--json"]).await;
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
    assert_eq!(desk.in_queue().await, 0, "no letter, and no mark");
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
