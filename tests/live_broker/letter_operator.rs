//! The operator of dead letters on a secured broker: it reads them, publishes jobs, and tells what it did in its own name alone; what
//! readers make of those who tell it in its place; and that its rights are all that `longshore dead` needs.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE, LETTERS_EXCHANGE, control_key, letters_held_key,
};
use longshore::broker::{Outgoing, PublishError};
use longshore::failure::Code;
use longshore::message::event::{Discarded, LetterDetail, Replayed};
use longshore::message::{
    DeadLetter, Encoding, Event, JobMessage, LetterEvent, decode_dead_letter, encode_dead_letter, encode_event,
};
use longshore::model::id::{EventId, HostId};
use serde_json::Value;
use tokio::time::timeout;

use crate::contract::broker::{job, message};
use crate::dead_job;
use crate::rabbit::Release;
use crate::raw::Raw;
use crate::secured::{HERE, LETTERS, NIGHT, Operator, VHOST, WALL, refused, said};
use crate::{PATIENCE, blocking};

/// A pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

pub async fn all(operator: &Arc<Operator>, release: Release) {
    it_reads_letters_and_publishes_jobs(operator).await;
    a_job_has_died(operator).await;
    it_speaks_of_letters_in_its_own_name_and_of_nothing_else(operator).await;
    nobody_is_believed_in_its_place(operator, release).await;
    who_reads_is_told_to_those_who_may_ask(operator).await;
    let operator = Arc::clone(operator);
    blocking(move || the_commands_need_no_more_than_its_rights(&operator)).await;
}

fn here() -> HostId {
    HERE.parse().unwrap()
}

fn told(user: &str, detail: LetterDetail) -> Outgoing {
    let event = Event::Letter(LetterEvent {
        user: user.to_owned(),
        letter_id: "019a0f3e-9000-7000-8000-00000000000d".to_owned(),
        letter_host: Some(here()),
        job_id: None,
        run: None,
        kind: None,
        code: "internal".to_owned(),
        time: Timestamp::now(),
        requested_by: None,
        reason: Some("the share was moved".to_owned()),
        detail,
    });
    let encoded = encode_event(&event, EventId::draw(), Encoding::Json, None).unwrap();
    let routing_key = event.routing_key();
    Outgoing { exchange: EVENTS_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body }
}

fn discarded(user: &str) -> Outgoing {
    told(user, LetterDetail::Discarded(Discarded {}))
}

fn replayed(user: &str) -> Outgoing {
    told(user, LetterDetail::Replayed(Replayed { run: 2, host: here(), changed: Vec::new() }))
}

/// Both of those who read letters find what a host has written, and one of them may publish what was in it.
async fn it_reads_letters_and_publishes_jobs(operator: &Operator) {
    let letter = message(DEAD_EXCHANGE, format!("backup.internal.{HERE}"), b"given up");
    operator.broker(HERE).publisher().publish(letter).await.unwrap();
    let night = operator.broker(NIGHT);
    for broker in [operator.broker(LETTERS), Arc::clone(&night)] {
        let mut reader = broker.read_letters().await.unwrap();
        let first = timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
        assert!(first.is_some(), "there is a letter");
        drop(first);
        reader.close().await.unwrap();
        broker.subscribe(DEAD_EXCHANGE, &["#".to_owned()]).await.unwrap();
        assert!(broker.subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await.is_err(), "it reads events");
    }
    night.publisher().publish(job(&here(), b"job")).await.unwrap();
    refused(operator.broker(LETTERS).as_ref(), job(&here(), b"job")).await;
}

async fn it_speaks_of_letters_in_its_own_name_and_of_nothing_else(operator: &Operator) {
    let night = operator.broker(NIGHT);
    for own in [replayed(NIGHT), discarded(NIGHT)] {
        match night.publisher().publish(own).await {
            Err(PublishError::Unroutable { .. }) => {}
            other => panic!("nobody listens, and the broker lets it tell: {other:?}"),
        }
    }
    let keys = [
        format!("letter.discarded.{LETTERS}"),
        format!("letter.discarded.{HERE}"),
        format!("letter.discarded.{NIGHT}.x"),
        // The dots of its name are dots, and no other character.
        "letter.discarded.fleetxnight_shift".to_owned(),
        format!("letter.read.{NIGHT}"),
        format!("backup.completed.{HERE}"),
        format!("worker.online.{NIGHT}"),
    ];
    for key in keys {
        refused(night.as_ref(), message(EVENTS_EXCHANGE, key, b"event")).await;
    }
    refused(night.as_ref(), message(DEAD_EXCHANGE, format!("backup.internal.{HERE}"), b"letter")).await;
    refused(night.as_ref(), message(CONTROL_EXCHANGE, control_key(&here(), "drain"), b"")).await;
    let host = operator.broker(HERE);
    refused(host.as_ref(), discarded(NIGHT)).await;
    refused(operator.broker(LETTERS).as_ref(), discarded(LETTERS)).await;
}

/// A host tells it under its own name, which the broker has to let pass; the operator tells it as another's, or copies it to a host's key.
async fn nobody_is_believed_in_its_place(operator: &Arc<Operator>, release: Release) {
    let reader = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["events", "--json", "--count", "2", "--key", "letter.#", "--key", &format!("backup.completed.{HERE}")])
        .env("LONGSHORE__BROKER__URI", operator.uri(WALL))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (host, night) = (operator.broker(HERE), operator.broker(NIGHT));
    // Until the reader listens nobody does.
    let heard = async {
        while host.publisher().publish(discarded(HERE)).await.is_err() {
            tokio::time::sleep(LOOK).await
        }
    };
    timeout(PATIENCE, heard).await.expect("the reader does not listen");
    let of_another = Outgoing { routing_key: format!("letter.replayed.{NIGHT}"), ..replayed(LETTERS) };
    night.publisher().publish(of_another).await.unwrap();
    let (password, to) = (operator.password(NIGHT), operator.address());
    let copied = blocking(move || {
        let (own, others) = (format!("letter.discarded.{NIGHT}"), format!("backup.completed.{HERE}"));
        Raw::connect_as(to, NIGHT, &password, VHOST).publish_copied(EVENTS_EXCHANGE, &own, &others, NIGHT)
    })
    .await;
    match release {
        Release::Debian12 => copied.expect("it is known to let that pass"),
        Release::Debian13 => assert!(copied.unwrap_err().contains("ACCESS_REFUSED")),
    }
    for own in [replayed(NIGHT), discarded(NIGHT)] {
        night.publisher().publish(own).await.unwrap();
    }
    let (printed, all) = ended(reader).await;
    let keys: Vec<_> = printed.iter().map(|line| line["routing_key"].as_str().unwrap()).collect();
    assert_eq!(keys, [format!("letter.replayed.{NIGHT}"), format!("letter.discarded.{NIGHT}")]);
    assert!(printed.iter().all(|line| line["body"]["user"] == NIGHT), "{printed:?}");
    assert!(
        all.contains("`kvm-07`, which is one that a host has") && all.contains("`cloudEvents_source` does not"),
        "{all}"
    );
}

/// The second of two hears of whom, in both directions; where the right is missing it hears how to find out.
async fn who_reads_is_told_to_those_who_may_ask(operator: &Arc<Operator>) {
    for (first, second) in [(NIGHT, LETTERS), (LETTERS, NIGHT)] {
        let reader = operator.broker(first).read_letters().await.unwrap();
        let asks = operator.broker(second);
        let answered = async {
            loop {
                match asks.letters_holder().await.unwrap() {
                    Some(holder) => return holder,
                    None => tokio::time::sleep(LOOK).await,
                }
            }
        };
        let holder = timeout(PATIENCE, answered).await.expect("nobody says who reads");
        assert_eq!((holder.user.as_str(), holder.occupation.machine.is_some()), (first, true));
        let told = listed(operator, second, 1).await;
        assert!(told.contains(&format!("broker user `{first}` says that it reads them")), "{told}");
        reader.close().await.unwrap();
    }
    let as_another = |user| message(LETTERS_EXCHANGE, letters_held_key(user), b"{}");
    refused(operator.broker(NIGHT).as_ref(), as_another(LETTERS)).await;
    refused(operator.broker(HERE).as_ref(), as_another(HERE)).await;

    let of_before = [r"^amq\.gen-.*$", r"^amq\.gen-.*$", r"^(amq\.gen-.*|longshore\.dead)$"];
    let [configure, write, read] = of_before;
    operator.rabbit.ctl(&["set_permissions", "-p", VHOST, LETTERS, configure, write, read]);
    for (first, second) in [(NIGHT, LETTERS), (LETTERS, NIGHT)] {
        let reader = operator.broker(first).read_letters().await.unwrap();
        let told = listed(operator, second, 1).await;
        assert!(told.contains("does not say who") && told.contains("list_connections"), "{told}");
        reader.close().await.unwrap();
    }
    let of_operator = Arc::clone(operator);
    let mended = blocking(move || said(&of_operator.setup(&[]), 0)).await;
    assert!(mended.contains("rights"), "{mended}");
}

async fn listed(operator: &Arc<Operator>, user: &'static str, code: i32) -> String {
    let operator = Arc::clone(operator);
    blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.args(["dead", "list"]).env("LONGSHORE__BROKER__URI", operator.uri(user));
        said(&command.stdin(Stdio::null()).output().unwrap(), code)
    })
    .await
}

/// A letter of the host whose job a host would take.
async fn a_job_has_died(operator: &Operator) {
    let job = JobMessage { host: HERE.to_owned(), ..dead_job::job(1) };
    let written = dead_job::dead(&job, Code::MountFailed, HERE, Encoding::Json);
    let letter = decode_dead_letter(&written.properties, &written.body).unwrap();
    let letter = DeadLetter { host: here(), ..letter };
    let encoded = encode_dead_letter(&letter, EventId::draw(), Encoding::Json).unwrap();
    let routing_key = letter.routing_key();
    let outgoing =
        Outgoing { exchange: DEAD_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body };
    operator.broker(HERE).publisher().publish(outgoing).await.unwrap();
}

/// Who may only look changes nothing, whatever it tries.
fn the_commands_need_no_more_than_its_rights(operator: &Operator) {
    let dead = |user: &str, words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.arg("dead").args(words).env("LONGSHORE__BROKER__URI", operator.uri(user));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let (replay, discard) =
        (["replay", "--code", "mount_failed", "--reason", "it is back"], ["discard", "--all", "--reason", "looked at"]);
    let letters = || said(&dead(LETTERS, &["list", "--json"]), 0).lines().count();
    let before = letters();
    assert!(before > 1);
    for words in [&replay[..], &discard] {
        let refused = said(&dead(LETTERS, words), 1);
        assert!(refused.contains("ACCESS_REFUSED"), "{refused}");
    }
    assert_eq!(letters(), before);
    let done = said(&dead(NIGHT, &replay), 0);
    assert!(done.contains("replayed"), "{done}");
    assert_eq!(letters(), before - 1);
    let done = said(&dead(NIGHT, &discard), 0);
    assert_eq!((done.matches("discarded").count(), letters()), (before - 1, 0), "{done}");
}

/// What the reader printed, line by line, and all that it said.
async fn ended(mut reader: Child) -> (Vec<Value>, String) {
    let ended = async {
        while reader.try_wait().unwrap().is_none() {
            tokio::time::sleep(LOOK).await
        }
    };
    timeout(PATIENCE, ended).await.expect("the reader ends with the events that are true");
    let output = reader.wait_with_output().unwrap();
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), said(&output, 0))
}
