//! What the reader of the dead letters has to do, with any broker.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::Broker;
use longshore::broker::letters::{HeldLetter, LETTERS_AT_ONCE, LetterReader, Occupation, ReadLettersError};
use longshore::broker::topology::DEAD_EXCHANGE;
use tokio::time::timeout;

use super::broker::{Ground, message, some_host};

/// Longest wait for anything that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// More letters than are held at a time, twice.
const MANY: usize = 2 * LETTERS_AT_ONCE as usize + 37;

/// Runs the suite.
pub async fn all(ground: &dyn Ground) {
    let broker = ground.client("letters");
    take_all(broker.as_ref(), |_| true).await;
    nothing_is_there_and_nothing_is_waited_for(broker.as_ref()).await;
    publish(&broker).await;
    all_are_read_in_their_order_and_stay(broker.as_ref()).await;
    there_is_one_reader_at_a_time(broker.as_ref(), ground).await;
    what_is_acknowledged_goes_and_the_rest_keeps_its_order(broker.as_ref()).await;
    a_reader_that_dies_leaves_what_it_held(broker.as_ref()).await;
    take_all(broker.as_ref(), |_| true).await;
    assert_eq!(bodies(broker.as_ref()).await, [""; 0]);
}

async fn open(broker: &dyn Broker) -> Box<dyn LetterReader> {
    // Whoever read before has closed; the broker may hear of one that was dropped a moment later.
    let opened = async {
        loop {
            match broker.read_letters().await {
                Ok(reader) => return reader,
                Err(ReadLettersError::InUse { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(PATIENCE, opened).await.expect("the letters stay in use")
}

async fn next(reader: &mut dyn LetterReader) -> Option<HeldLetter> {
    timeout(PATIENCE, reader.next()).await.expect("neither a letter nor an end").unwrap()
}

fn body(letter: &HeldLetter) -> String {
    String::from_utf8_lossy(&letter.message.body).into_owned()
}

/// Reads all, and acknowledges those that are wanted.
async fn take_all(broker: &dyn Broker, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut reader = open(broker).await;
    let mut read = Vec::new();
    while let Some(letter) = next(reader.as_mut()).await {
        let body = body(&letter);
        if wanted(&body) {
            assert!(letter.settle.ack().await);
        }
        read.push(body);
    }
    reader.close().await.unwrap();
    read
}

/// Reads all.
async fn bodies(broker: &dyn Broker) -> Vec<String> {
    take_all(broker, |_| false).await
}

async fn publish(broker: &Arc<dyn Broker>) {
    let (publisher, host) = (broker.publisher(), some_host());
    for number in 0..MANY {
        let key = format!("backup.internal.{host}");
        publisher.publish(message(DEAD_EXCHANGE, key, number.to_string().as_bytes())).await.unwrap();
    }
}

fn numbers(taken: impl Fn(usize) -> bool) -> Vec<String> {
    (0..MANY).filter(|number| taken(*number)).map(|number| number.to_string()).collect()
}

async fn nothing_is_there_and_nothing_is_waited_for(broker: &dyn Broker) {
    assert_eq!(bodies(broker).await, [""; 0]);
}

async fn all_are_read_in_their_order_and_stay(broker: &dyn Broker) {
    for _ in 0..2 {
        assert_eq!(bodies(broker).await, numbers(|_| true));
    }
}

async fn there_is_one_reader_at_a_time(broker: &dyn Broker, ground: &dyn Ground) {
    let mut reader = open(broker).await;
    let other = ground.client("other");
    let refused = other.read_letters().await.err().map(|error| error.to_string());
    assert!(refused.as_ref().is_some_and(|said| said.starts_with("somebody else is reading")), "{refused:?}");
    // It answers as soon as it can be heard.
    let held = async {
        loop {
            match other.letters_holder().await.unwrap() {
                Some(holder) => return holder,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let held = timeout(PATIENCE, held).await.expect("nobody says who reads");
    let Occupation { since, machine, account, .. } = held.occupation;
    assert_eq!((held.user.as_str(), account.is_some(), machine.is_some()), ("guest", true, true));
    assert!(since <= Timestamp::now() && since > Timestamp::now() - PATIENCE, "{since}");
    assert!(next(reader.as_mut()).await.is_some(), "the first one is not disturbed");
    reader.close().await.unwrap();
    assert_eq!(other.letters_holder().await.unwrap(), None, "nobody reads");
    open(other.as_ref()).await.close().await.unwrap();
}

async fn what_is_acknowledged_goes_and_the_rest_keeps_its_order(broker: &dyn Broker) {
    let odd = |number: usize| number % 2 == 1;
    let read = take_all(broker, |body| body.parse().is_ok_and(odd)).await;
    assert_eq!(read, numbers(|_| true), "acknowledging on the way loses sight of none");
    assert_eq!(bodies(broker).await, numbers(|number| !odd(number)));
}

async fn a_reader_that_dies_leaves_what_it_held(broker: &dyn Broker) {
    let mut reader = open(broker).await;
    let mut held = Vec::new();
    for _ in 0..LETTERS_AT_ONCE / 2 {
        held.extend(next(reader.as_mut()).await);
    }
    drop((reader, held));
    let left: BTreeSet<_> = bodies(broker).await.into_iter().collect();
    assert_eq!(left.len(), MANY.div_ceil(2));
}
