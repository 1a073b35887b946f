//! Which waiting run starts next: pure, so that it can be asked anything.
//!
//! Urgent runs go before normal ones, older before younger; but a run that cannot start now (its instance or its
//! repository is busy, or its time has not come) does not hold up those behind it. A slot is kept for urgent work: normal
//! runs never take the last one, if there is more than one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Bound;
use std::sync::Arc;

use jiff::Timestamp;

use super::circuit::Circuits;
use crate::model::id::{InstanceId, InstanceName, InstanceRef, RepositoryId};
use crate::model::job::RunKey;

/// What is known of a run when places are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The run.
    pub key: RunKey,
    /// It came through the urgent queue.
    pub urgent: bool,
    /// It waits while its repository fails.
    pub may_be_held: bool,
    /// Order in which it was taken.
    pub order: u64,
    /// Not before this moment.
    pub not_before: Option<Timestamp>,
    /// Not after this moment.
    pub start_before: Option<Timestamp>,
    /// The instance it is about, as the job names it; none keeps nobody waiting, and waits for nobody.
    pub instance: Option<InstanceRef>,
    /// The repository it uses.
    pub repository: RepositoryId,
}

/// How much may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// On this host.
    pub host: usize,
    /// On one repository.
    pub repository: usize,
}

/// Why a waiting run does not start now, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// Its time has not come.
    NotBefore,
    /// Its instance has a job already.
    Instance,
    /// Its repository has as many jobs as it may have.
    Repository,
    /// Its repository fails, and another job tries it, or will.
    RepositoryFails,
    /// The host has as many jobs as it may have.
    Host,
}

/// Which instance has which name on this host, so that two jobs that name one differently are kept apart.
pub type Names = BTreeMap<InstanceName, InstanceId>;

/// The instance by its uuid, where its name is known.
pub fn known_as<'a>(names: &Names, instance: &'a InstanceRef) -> Cow<'a, InstanceRef> {
    match instance {
        InstanceRef::Name(name) => {
            names.get(name).map_or(Cow::Borrowed(instance), |id| Cow::Owned(InstanceRef::Id(*id)))
        }
        InstanceRef::Id(_) => Cow::Borrowed(instance),
    }
}

/// What runs now, counted, so that asking costs the same however much runs.
#[derive(Clone, Debug, Default)]
pub struct Occupied {
    runs: BTreeMap<RunKey, Candidate>,
    names: Arc<Names>,
    /// As known by `names`.
    instances: HashMap<InstanceRef, usize>,
    repositories: HashMap<RepositoryId, usize>,
}

impl Occupied {
    /// Notes that a run has started.
    pub fn enter(&mut self, run: Candidate) {
        // Recovered runs are entered without being asked about, so an instance may be counted twice.
        if let Some(instance) = &run.instance {
            *self.instances.entry(known_as(&self.names, instance).into_owned()).or_default() += 1;
        }
        *self.repositories.entry(run.repository).or_default() += 1;
        self.runs.insert(run.key, run);
    }

    /// Notes that a run's attempt has ended.
    pub fn leave(&mut self, key: RunKey) {
        if let Some(run) = self.runs.remove(&key) {
            if let Some(instance) = &run.instance {
                take_one(&mut self.instances, &known_as(&self.names, instance));
            }
            take_one(&mut self.repositories, &run.repository);
        }
    }

    /// Knows instances by these names from now on, those of running runs as well.
    pub fn learn(&mut self, names: Arc<Names>) {
        self.instances.clear();
        for instance in self.runs.values().filter_map(|run| run.instance.as_ref()) {
            *self.instances.entry(known_as(&names, instance).into_owned()).or_default() += 1;
        }
        self.names = names;
    }

    /// How many run.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether a run may start now, or what is in its way.
    pub fn may_start(&self, run: &Candidate, slots: Slots, now: Timestamp) -> Result<(), Hindrance> {
        if run.not_before.is_some_and(|moment| moment > now) {
            return Err(Hindrance::NotBefore);
        }
        let kept_for_urgent = usize::from(!run.urgent && slots.host > 1);
        if self.runs.len() + kept_for_urgent >= slots.host {
            return Err(Hindrance::Host);
        }
        let busy = |instance| self.instances.contains_key(known_as(&self.names, instance).as_ref());
        if run.instance.as_ref().is_some_and(busy) {
            return Err(Hindrance::Instance);
        }
        if self.repositories.get(&run.repository).is_some_and(|count| *count >= slots.repository) {
            return Err(Hindrance::Repository);
        }
        Ok(())
    }
}

fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => *count -= 1,
        _ => _ = counts.remove(key),
    }
}

/// The runs that wait, in the order in which they would like to start. What is asked with every event of a worker, when the next
/// moment comes and who is late, costs the same however many wait.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    runs: BTreeMap<Place, Candidate>,
    /// When the time of those that wait for it comes.
    not_before: BTreeSet<(Timestamp, Place)>,
    /// When it is too late for those that have such a moment.
    start_before: BTreeSet<(Timestamp, Place)>,
}

/// `false` sorts first: urgent runs are the ones with `!urgent == false`.
type Place = (bool, u64);

impl Waiting {
    /// Adds a run.
    pub fn add(&mut self, run: Candidate) {
        let place = (!run.urgent, run.order);
        self.not_before.extend(run.not_before.map(|moment| (moment, place)));
        self.start_before.extend(run.start_before.map(|moment| (moment, place)));
        self.runs.insert(place, run);
    }

    /// Takes that run out.
    pub fn take(&mut self, run: &Candidate) -> Option<Candidate> {
        self.remove((!run.urgent, run.order))
    }

    fn remove(&mut self, place: Place) -> Option<Candidate> {
        let run = self.runs.remove(&place)?;
        if let Some(moment) = run.not_before {
            self.not_before.remove(&(moment, place));
        }
        if let Some(moment) = run.start_before {
            self.start_before.remove(&(moment, place));
        }
        Some(run)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Takes out the first run that may start now.
    pub fn take_next(
        &mut self,
        occupied: &Occupied,
        circuits: &Circuits,
        slots: Slots,
        now: Timestamp,
    ) -> Option<Candidate> {
        let mut chosen = None;
        for (place, run) in &self.runs {
            match occupied.may_start(run, slots, now).and_then(|()| circuits.may_start(run, now)) {
                Ok(()) => {
                    chosen = Some(*place);
                    break;
                }
                // Urgent runs come first: what is full for one is full for everybody behind it.
                Err(Hindrance::Host) => break,
                Err(_) => {}
            }
        }
        self.remove(chosen?)
    }

    /// Takes out the first run whose time to be started has passed.
    pub fn take_late(&mut self, now: Timestamp) -> Option<Candidate> {
        let (moment, place) = self.start_before.first().copied()?;
        if moment <= now { self.remove(place) } else { None }
    }

    /// The earliest moment at which a run that waits for its time may start, or may not be started any more.
    pub fn next_moment(&self, now: Timestamp) -> Option<Timestamp> {
        let after = (Bound::Excluded((now, (true, u64::MAX))), Bound::Unbounded);
        let first = |moments: &BTreeSet<(Timestamp, Place)>| moments.range(after).next().map(|(moment, _)| *moment);
        first(&self.not_before).into_iter().chain(first(&self.start_before)).min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::id::JobId;
    use uuid::Uuid;

    const SLOTS: Slots = Slots { host: 3, repository: 2 };

    fn run(order: u64, instance: &str, repository: u128, urgent: bool) -> Candidate {
        Candidate {
            key: RunKey { job_id: JobId(Uuid::from_u128(order.into())), run: 1 },
            urgent,
            may_be_held: !urgent,
            order,
            not_before: None,
            start_before: None,
            instance: Some(InstanceRef::Name(instance.parse::<InstanceName>().unwrap())),
            repository: RepositoryId(Uuid::from_u128(repository)),
        }
    }

    fn started(waiting: &mut Waiting, occupied: &mut Occupied) -> Vec<u64> {
        let mut orders = Vec::new();
        while let Some(run) = waiting.take_next(occupied, &Circuits::default(), SLOTS, Timestamp::UNIX_EPOCH) {
            orders.push(run.order);
            occupied.enter(run);
        }
        orders
    }

    #[test]
    fn one_job_per_instance_at_a_time_and_nobody_waits_behind_it_in_vain() {
        let (mut waiting, mut occupied) = (Waiting::default(), Occupied::default());
        for run in [run(1, "a", 1, false), run(2, "a", 1, false), run(3, "b", 1, false)] {
            waiting.add(run);
        }
        assert_eq!(started(&mut waiting, &mut occupied), [1, 3]);
        occupied.leave(run(1, "a", 1, false).key);
        assert_eq!(started(&mut waiting, &mut occupied), [2]);
    }

    #[test]
    fn names_that_are_learned_late_keep_apart_what_runs_and_what_waits() {
        let id = InstanceId(Uuid::from_u128(77));
        let by_id = Candidate { instance: Some(InstanceRef::Id(id)), ..run(2, "a", 1, false) };
        let mut occupied = Occupied::default();
        occupied.enter(run(1, "a", 1, false));
        assert_eq!(occupied.may_start(&by_id, SLOTS, Timestamp::UNIX_EPOCH), Ok(()), "nobody knows better");
        occupied.learn(Arc::new([("a".parse().unwrap(), id)].into()));
        assert_eq!(occupied.may_start(&by_id, SLOTS, Timestamp::UNIX_EPOCH), Err(Hindrance::Instance));
        occupied.leave(run(1, "a", 1, false).key);
        occupied.enter(by_id.clone());
        let by_name = run(3, "a", 1, false);
        assert_eq!(occupied.may_start(&by_name, SLOTS, Timestamp::UNIX_EPOCH), Err(Hindrance::Instance));
        occupied.leave(by_id.key);
        assert_eq!(occupied.may_start(&by_name, SLOTS, Timestamp::UNIX_EPOCH), Ok(()));
    }

    #[test]
    fn a_run_that_is_too_late_is_found_though_nothing_can_start() {
        let mut waiting = Waiting::default();
        let moment = Timestamp::from_second(100).unwrap();
        waiting.add(run(1, "a", 1, false));
        waiting.add(Candidate { start_before: Some(moment), ..run(2, "b", 1, false) });
        assert_eq!(waiting.next_moment(Timestamp::UNIX_EPOCH), Some(moment));
        assert_eq!(waiting.take_late(Timestamp::UNIX_EPOCH), None);
        assert_eq!(waiting.take_late(moment).map(|run| run.order), Some(2));
        assert_eq!((waiting.take_late(moment), waiting.len()), (None, 1));
    }

    #[test]
    fn the_last_slot_is_kept_for_urgent_work() {
        let (mut waiting, mut occupied) = (Waiting::default(), Occupied::default());
        for order in 1..=4 {
            waiting.add(run(order, &format!("i{order}"), order.into(), false));
        }
        assert_eq!(started(&mut waiting, &mut occupied), [1, 2]);
        waiting.add(run(9, "u", 9, true));
        assert_eq!(started(&mut waiting, &mut occupied), [9]);
    }

    #[test]
    fn a_single_slot_serves_both_kinds() {
        let slots = Slots { host: 1, repository: 1 };
        let (mut waiting, occupied) = (Waiting::default(), Occupied::default());
        waiting.add(run(1, "a", 1, false));
        assert!(waiting.take_next(&occupied, &Circuits::default(), slots, Timestamp::UNIX_EPOCH).is_some());
    }

    #[test]
    fn a_repository_has_no_more_jobs_than_it_may_have() {
        let (mut waiting, mut occupied) = (Waiting::default(), Occupied::default());
        let slots = Slots { host: 10, repository: 2 };
        for order in 1..=3 {
            waiting.add(run(order, &format!("i{order}"), 1, false));
        }
        waiting.add(run(4, "i4", 2, false));
        let mut orders = Vec::new();
        while let Some(run) = waiting.take_next(&occupied, &Circuits::default(), slots, Timestamp::UNIX_EPOCH) {
            orders.push(run.order);
            occupied.enter(run);
        }
        assert_eq!(orders, [1, 2, 4]);
    }

    #[test]
    fn what_is_about_no_instance_waits_for_none_but_for_its_repository() {
        let (mut waiting, mut occupied) = (Waiting::default(), Occupied::default());
        let about_none = |order| Candidate { instance: None, ..run(order, "a", 1, true) };
        for run in [run(1, "a", 1, true), about_none(2), about_none(3)] {
            waiting.add(run);
        }
        assert_eq!(started(&mut waiting, &mut occupied), [1, 2], "two on one repository");
        occupied.learn(Arc::new(Names::default()));
        occupied.leave(about_none(2).key);
        assert_eq!(started(&mut waiting, &mut occupied), [3]);
    }

    #[test]
    fn a_run_waits_for_its_moment_and_the_moment_is_known() {
        let (mut waiting, occupied) = (Waiting::default(), Occupied::default());
        let moment = Timestamp::from_second(100).unwrap();
        waiting.add(Candidate { not_before: Some(moment), ..run(1, "a", 1, false) });
        assert!(waiting.take_next(&occupied, &Circuits::default(), SLOTS, Timestamp::UNIX_EPOCH).is_none());
        assert_eq!(waiting.next_moment(Timestamp::UNIX_EPOCH), Some(moment));
        assert!(waiting.take_next(&occupied, &Circuits::default(), SLOTS, moment).is_some());
    }
}
