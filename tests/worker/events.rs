//! A reader of events, as a manager is one: it keeps everything in the order in which it came.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use longshore::broker::topology::EVENTS_EXCHANGE;
use longshore::broker::{Broker, EventMessage, Heard, Properties};
use longshore::message::event::{HostDetail, RunDetail};
use longshore::message::{Event, RunEvent, decode_event};
use longshore::model::job::RunKey;
use tokio_util::task::AbortOnDropHandle;

/// An event that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub routing_key: String,
    pub properties: Properties,
    pub event: Event,
}

/// What has come so far.
pub struct Reader {
    seen: Arc<Mutex<Vec<Seen>>>,
    _reading: AbortOnDropHandle<()>,
}

impl Reader {
    pub async fn of(broker: &dyn Broker) -> Self {
        let mut subscription = broker.subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let reading = tokio::spawn(async move {
            while let Some(heard) = subscription.next().await {
                if let Heard::Message(message) = heard {
                    kept.lock().unwrap().push(read(*message));
                }
            }
        });
        Self { seen, _reading: AbortOnDropHandle::new(reading) }
    }

    /// Everything, duplicates as well.
    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Those after the first `skipped`.
    pub fn after(&self, skipped: usize) -> Vec<Seen> {
        self.seen.lock().unwrap()[skipped..].to_vec()
    }

    /// How many have come, duplicates as well.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// Each event once, as a reader that drops duplicates by event id has them.
    pub fn once(&self) -> Vec<Seen> {
        let mut known = BTreeSet::new();
        self.all().into_iter().filter(|seen| known.insert(seen.properties.message_id.clone())).collect()
    }

    pub fn of_host(&self) -> Vec<HostDetail> {
        let details = self.once().into_iter().filter_map(|seen| match seen.event {
            Event::Host(event) => Some(event.detail),
            Event::Run(_) | Event::Letter(_) => None,
        });
        details.collect()
    }

    pub fn of_run(&self, key: RunKey) -> Vec<RunEvent> {
        self.runs().remove(&key).unwrap_or_default()
    }

    /// The words of a run's events but progress, with the attempt of each, in the order in which a reader has to put them.
    pub fn story(&self, key: RunKey) -> Vec<(u32, &'static str)> {
        let mut events = self.of_run(key);
        events.sort_by_key(|event| (event.attempt, event.sequence));
        let told = events.iter().filter(|event| !matches!(event.detail, RunDetail::Progress(_)));
        told.map(|event| (event.attempt, event.detail.word())).collect()
    }

    pub fn final_of(&self, key: RunKey) -> Option<RunDetail> {
        self.of_run(key).into_iter().map(|event| event.detail).find(RunDetail::is_final)
    }

    /// Each run has told one beginning and one end, and no place twice.
    pub fn assert_consistent(&self) {
        let mut bodies = BTreeMap::new();
        for seen in self.all() {
            assert_eq!(seen.routing_key, seen.event.routing_key());
            let before = bodies.insert(seen.properties.message_id.clone(), seen.event.clone());
            assert!(before.is_none_or(|before| before == seen.event), "one event id, two events: {seen:?}");
        }
        for (key, events) in self.runs() {
            let places: BTreeSet<_> = events.iter().map(|event| (event.attempt, event.sequence)).collect();
            assert_eq!(places.len(), events.len(), "a place of {key} is there twice: {events:?}");
            let finals = events.iter().filter(|event| event.detail.is_final()).count();
            assert_eq!(finals, 1, "final events of {key}: {events:?}");
            let last = events.iter().max_by_key(|event| (event.attempt, event.sequence)).unwrap();
            assert!(last.detail.is_final(), "something follows the end of {key}: {events:?}");
        }
    }

    /// Every run that was taken has told its end.
    pub fn runs_ended(&self) -> bool {
        self.runs().values().all(|events| events.iter().any(|event| event.detail.is_final()))
    }

    /// Failed runs and refused messages.
    pub fn failures(&self) -> usize {
        let failed = self.once().into_iter().filter(|seen| match &seen.event {
            Event::Run(event) => matches!(event.detail, RunDetail::Failed(_)),
            Event::Host(event) => matches!(event.detail, HostDetail::MessageRefused(_)),
            Event::Letter(_) => false,
        });
        failed.count()
    }

    fn runs(&self) -> BTreeMap<RunKey, Vec<RunEvent>> {
        let mut runs: BTreeMap<RunKey, Vec<RunEvent>> = BTreeMap::new();
        for seen in self.once() {
            if let Event::Run(event) = seen.event {
                runs.entry(RunKey { job_id: event.job_id, run: event.run }).or_default().push(event);
            }
        }
        runs
    }
}

fn read(message: EventMessage) -> Seen {
    let event = decode_event(&message.properties, &message.body).unwrap();
    Seen { routing_key: message.routing_key, properties: message.properties, event }
}
