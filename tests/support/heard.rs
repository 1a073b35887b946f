//! Everything that a host says: its events and its dead letters, kept in the order in which they came.
#![allow(dead_code)] // Each live target uses its own part.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore::broker::topology::{DEAD_EXCHANGE, EVENTS_EXCHANGE};
use longshore::broker::{Broker, Heard as Said};
use longshore::message::event::RunDetail;
use longshore::message::{
    DeadLetter, Event, HostEvent, RunEvent, Superseded, decode_dead_letter, decode_event, decode_superseded,
};
use longshore::model::id::JobId;

/// Pause between two looks at what has come.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Kept {
    runs: Vec<RunEvent>,
    hosts: Vec<HostEvent>,
    letters: Vec<DeadLetter>,
    marks: Vec<Superseded>,
    bodies: Vec<Vec<u8>>,
    /// Jobs whose `started` has come, each time.
    started: Vec<JobId>,
}

/// A listener. It hears from the moment it was made.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Kept>>);

impl Heard {
    /// Subscribes to all that `host` says.
    pub async fn listen(broker: &dyn Broker, host: &str) -> Self {
        let heard = Self::default();
        let keys = [format!("*.*.{host}")];
        let mut events = broker.subscribe(EVENTS_EXCHANGE, &keys).await.unwrap();
        let kept = heard.0.clone();
        tokio::spawn(async move {
            while let Some(said) = events.next().await {
                let Said::Message(message) = said else { continue };
                let event = decode_event(&message.properties, &message.body).unwrap();
                let mut kept = kept.lock().unwrap();
                kept.bodies.push(message.body);
                if let Event::Run(event) = &event
                    && event.detail.word() == "started"
                {
                    kept.started.push(event.job_id);
                }
                match event {
                    // One that its worker could not see confirmed comes twice, the same to the letter.
                    Event::Run(event) if kept.runs.contains(&event) => {}
                    Event::Run(event) => kept.runs.push(event),
                    Event::Host(event) => kept.hosts.push(event),
                    // No host tells them, and none of its keys ends so.
                    Event::Letter(event) => panic!("a letter's event under a host's key: {event:?}"),
                }
            }
        });
        let mut letters = broker.subscribe(DEAD_EXCHANGE, &keys).await.unwrap();
        let kept = heard.0.clone();
        tokio::spawn(async move {
            while let Some(said) = letters.next().await {
                let Said::Message(message) = said else { continue };
                let mut kept = kept.lock().unwrap();
                match decode_superseded(&message.properties, &message.body) {
                    Ok(mark) => kept.marks.push(mark),
                    Err(_) => kept.letters.push(decode_dead_letter(&message.properties, &message.body).unwrap()),
                }
                kept.bodies.push(message.body);
            }
        });
        heard
    }

    /// The bodies of all that has come, as they came.
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().bodies.clone()
    }

    /// How often `started` of a job has come, the same ones too.
    pub fn times_started(&self, job: JobId) -> usize {
        self.0.lock().unwrap().started.iter().filter(|started| **started == job).count()
    }

    /// Waits until a look at what has come finds something.
    fn find<T>(&self, what: &str, limit: Duration, look: impl Fn(&Kept) -> Option<T>) -> T {
        let until = Instant::now() + limit;
        loop {
            if let Some(found) = look(&self.0.lock().unwrap()) {
                return found;
            }
            if Instant::now() >= until {
                let said: Vec<_> = self.0.lock().unwrap().runs.iter().map(in_short).collect();
                panic!("not within {limit:?}: {what}; heard\n{}", said.join("\n"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The first event of the job that is as wanted.
    pub fn of_run(&self, job: JobId, what: &str, limit: Duration, wanted: impl Fn(&RunEvent) -> bool) -> RunEvent {
        self.find(what, limit, |kept| kept.runs.iter().find(|event| event.job_id == job && wanted(event)).cloned())
    }

    /// The first event of the host that is as wanted, of those after the first `skipped`.
    pub fn of_host(&self, what: &str, limit: Duration, skipped: usize, wanted: impl Fn(&HostEvent) -> bool) {
        self.find(what, limit, |kept| kept.hosts.iter().skip(skipped).find(|event| wanted(event)).map(drop));
    }

    /// Events of the host so far.
    pub fn host_events(&self) -> usize {
        self.0.lock().unwrap().hosts.len()
    }

    /// The job's final event, after a look at the order of all of its events.
    pub fn end_of(&self, job: JobId, limit: Duration) -> RunDetail {
        let last = self.of_run(job, "the run ends", limit, |event| event.detail.is_final());
        in_order(&self.events_of(job));
        last.detail
    }

    /// What has come of a job.
    pub fn events_of(&self, job: JobId) -> Vec<RunEvent> {
        self.0.lock().unwrap().runs.iter().filter(|event| event.job_id == job).cloned().collect()
    }

    /// The job's dead letter.
    pub fn letter_of(&self, job: JobId, limit: Duration) -> DeadLetter {
        let letter = |kept: &Kept| kept.letters.iter().find(|letter| letter.job_id == Some(job)).cloned();
        self.find("the dead letter comes", limit, letter)
    }

    /// The mark on the job's letter.
    pub fn mark_on(&self, job: JobId, limit: Duration) -> Superseded {
        let mark = |kept: &Kept| kept.marks.iter().find(|mark| mark.job_id == job).cloned();
        self.find("the mark on the dead letter comes", limit, mark)
    }

    /// No letter of the job has come.
    pub fn no_letter_of(&self, job: JobId) -> bool {
        !self.0.lock().unwrap().letters.iter().any(|letter| letter.job_id == Some(job))
    }
}

fn in_short(event: &RunEvent) -> String {
    let RunEvent { job_id, attempt, sequence, .. } = event;
    let detail = serde_json::to_string(&event.detail).unwrap();
    format!("{job_id} {attempt}.{sequence} {} {detail}", event.detail.word())
}

/// The order that the contract promises: `accepted`, then for each attempt `started`, its progress and, if another
/// attempt follows, `retrying`; one final event, and nothing after it.
pub fn in_order(events: &[RunEvent]) {
    let words: Vec<_> = events.iter().map(|event| event.detail.word()).collect();
    assert!(
        matches!(events, [first, .., last] if first.detail.word() == "accepted" && last.detail.is_final()),
        "{words:?}"
    );
    assert_eq!(events.iter().filter(|event| event.detail.is_final()).count(), 1, "{words:?}");
    let places: Vec<_> = events.iter().map(|event| (event.run, event.attempt, event.sequence)).collect();
    assert!(places.is_sorted_by(|one, next| one < next), "{places:?}");
    let mut running = false;
    for event in &events[1..] {
        match event.detail.word() {
            "started" => running = !std::mem::replace(&mut running, true) || panic!("started twice: {words:?}"),
            "progress" => assert!(running, "progress of no attempt: {words:?}"),
            "retrying" => assert!(std::mem::take(&mut running), "retrying without an attempt: {words:?}"),
            _ => {}
        }
    }
}
