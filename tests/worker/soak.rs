//! Many jobs of every kind under whatever the dice let go wrong, and what holds all the same: each run has one end and its events in
//! order, letters are those of the failed, no instance has two jobs at once, and nothing is left on the host, on the shares, in the
//! journal or in the broker.
//!
//! The seed is printed, and `LONGSHORE_SOAK_SEED` has the same things asked for and go wrong once more, in the same order; which step of a
//! job that hits is up to the machine. `LONGSHORE_SOAK_JOBS` says how many jobs there are.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use longshore::broker::Properties;
use longshore::host::hypervisor::fake::FakeInstance;
use longshore::journal::Keep;
use longshore::message::{Encoded, JobMessage};
use longshore::model::id::InstanceId;
use longshore::model::instance::PowerState;
use longshore::model::job::RunKey;
use longshore::worker::admit::Slots;
use tokio::time::{Instant, sleep};

use crate::fleet::{Fleet, PATIENCE, encoded, key};
use account::Account;
use dice::Dice;
use faults::Standing;
use wishes::{RUNNING, SHARES, STOPPED};

#[path = "soak/account.rs"]
mod account;
#[path = "soak/dice.rs"]
mod dice;
#[path = "soak/faults.rs"]
mod faults;
#[path = "soak/rest.rs"]
mod rest;
#[path = "soak/wishes.rs"]
mod wishes;

/// Jobs, where the environment does not say.
const JOBS: usize = 25;
/// A seed that everybody has.
const SEED: u64 = 20_260_301;
/// Size of each instance's disk.
const DISK_BYTES: u64 = 1 << 30;
/// Runs that are open at a time.
const OPEN_MAX: usize = 12;
/// Jobs from one lull to the next.
const BETWEEN_LULLS: usize = 40;
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Longest time until the runs that are open have ended, on a machine with other things to do.
const ALL_END: Duration = Duration::from_secs(300);
/// A run that waits for its repository to work again need not wait longer.
const KNOCK_AGAIN: Duration = Duration::from_secs(2);

#[tokio::test]
async fn jobs_under_faults_that_everybody_knows_each_end_once_and_leave_nothing() {
    soak(SEED, JOBS).await;
}

#[tokio::test]
async fn jobs_under_faults_that_nobody_chose_each_end_once_and_leave_nothing() {
    let of_environment = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let drawn = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64;
    let jobs = of_environment("LONGSHORE_SOAK_JOBS").map_or(JOBS, |jobs| usize::try_from(jobs).unwrap());
    soak(of_environment("LONGSHORE_SOAK_SEED").unwrap_or_else(drawn), jobs).await;
}

async fn soak(seed: u64, jobs: usize) {
    println!("LONGSHORE_SOAK_SEED={seed} LONGSHORE_SOAK_JOBS={jobs}");
    let begun = Instant::now();
    let mut soak = Soak::new(seed).await;
    for number in 0..jobs {
        soak.ask(number).await;
        if soak.dice.one_in(2) {
            soak.disturb().await;
        }
        if soak.dice.one_in(5) {
            soak.make_one_good().await;
        }
        soak.until_few_are_open().await;
        if number % BETWEEN_LULLS == BETWEEN_LULLS - 1 {
            soak.lull().await;
        }
    }
    soak.lull().await;
    soak.show(begun.elapsed());
    soak.assert_journal_is_bounded();
    soak.last_backups().await;
    soak.fleet.finish().await;
}

/// One from which another instance can be made.
fn definition(name: &str, id: InstanceId) -> String {
    format!(
        "<domain type='kvm'><name>{name}</name><uuid>{id}</uuid><devices><disk type='file'>\
         <source file='/fake/{name}/vda.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>"
    )
}

/// A fleet, what was asked of it, and what is wrong with it.
pub struct Soak {
    fleet: Fleet,
    dice: Dice,
    account: Account,
    standing: Vec<Standing>,
    /// The runs that knocked last.
    knocks: Vec<RunKey>,
    /// What went wrong, and how often.
    noted: BTreeMap<&'static str, usize>,
    /// Bytes of the journal's database that are in use, and of its log, in each lull.
    sizes: Vec<(u64, u64)>,
}

impl Soak {
    async fn new(seed: u64) -> Self {
        let mut fleet = Fleet::without_worker(&[&RUNNING[..], &STOPPED].concat()).await;
        fleet.settings.slots = Slots { host: 6, repository: 3 };
        fleet.settings.keep = Keep { rows: Duration::ZERO, ..Keep::default() };
        fleet.shares = SHARES.to_vec();
        for share in &SHARES[1..] {
            fleet.movers.add_repository(share);
        }
        for name in RUNNING.iter().chain(&STOPPED) {
            let id = fleet.id_of(name);
            let instance = FakeInstance::running(name).with_id(id).disk("vda", DISK_BYTES);
            fleet.hypervisor.add(instance.definition(&definition(name, id)));
        }
        for name in STOPPED {
            fleet.hypervisor.set_state(fleet.id_of(name), PowerState::ShutOff);
            fleet.movers.add_volume(format!("/fake/{name}/vda.qcow2").as_ref());
        }
        fleet.start().await;
        let (dice, account) = (Dice::new(seed), Account::default());
        let (standing, knocks, noted, sizes) = Default::default();
        Self { fleet, dice, account, standing, knocks, noted, sizes }
    }

    fn note(&mut self, what: &'static str) {
        *self.noted.entry(what).or_default() += 1;
    }

    /// One more job, and now and then another message beside it.
    async fn ask(&mut self, number: usize) {
        let job = wishes::wish(&self.fleet, &mut self.dice, number);
        let one_in_twelve = self.dice.below(12);
        match one_in_twelve {
            0 => {
                self.note("a run is cancelled before it comes");
                self.fleet.cancel(key(&job), "never mind").await;
            }
            1 => self.pause().await,
            _ => {}
        }
        self.publish(job.clone()).await;
        let other = self.account.any(self.dice.below(1000)).map(|(key, job)| (key, job.clone()));
        match (one_in_twelve, other) {
            (2 | 3, _) => {
                self.note("a message comes twice");
                self.send(&job).await;
            }
            (4, Some((_, old))) => {
                self.note("an old message comes again");
                self.send(&old).await;
            }
            (5, Some((_, old))) => {
                self.note("another message of a known run comes");
                self.send(&JobMessage { requested_by: Some("somebody else".to_owned()), ..old }).await;
            }
            (6, Some((key, old))) if !self.account.is_open(key) => self.replay(old).await,
            (7 | 8, Some((key, _))) => {
                self.note("a run is cancelled");
                self.fleet.cancel(key, "never mind").await;
            }
            (9, _) => {
                self.note("garbage comes");
                let message_id = format!("garbage-{number}");
                let properties = Properties { persistent: true, message_id, ..Properties::default() };
                self.fleet.publish_raw(properties, b"garbage".to_vec()).await;
            }
            _ => {}
        }
    }

    async fn publish(&mut self, job: JobMessage) {
        self.account.asks(key(&job), job.clone());
        if self.dice.one_in(5) {
            self.fleet.publish_urgent(&job).await;
        } else {
            self.send(&job).await;
        }
    }

    async fn send(&self, job: &JobMessage) {
        let Encoded { properties, body } = encoded(job);
        self.fleet.publish_raw(properties, body).await;
    }

    /// Once more, as the next run of the job.
    async fn replay(&mut self, old: JobMessage) {
        let job = JobMessage { run: old.run + 1, ..old };
        if self.account.asked(key(&job)) {
            return;
        }
        self.note("a job is replayed");
        self.publish(job).await;
    }

    /// Waits until a look shows something.
    async fn wait<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "{what} does not come about; {}", self.scene());
            sleep(LOOK_AGAIN).await;
        }
    }

    /// What there is to see of it, for whoever looks for the reason.
    fn scene(&self) -> String {
        format!(
            "open are\n{}\n{} attempts at work; there are {:#?}; so far {:#?}",
            self.account.shown(),
            self.fleet.witness.at_work(),
            self.fleet.left_behind(),
            self.noted
        )
    }

    /// Waits for so many events, heartbeats among them.
    async fn some_events(&self, count: usize) {
        let before = self.fleet.events.count();
        self.wait("some events", |soak| (soak.fleet.events.count() >= before + count).then_some(())).await;
    }

    async fn until_few_are_open(&mut self) {
        self.account.read(&self.fleet.events);
        if self.account.open().len() < OPEN_MAX {
            return;
        }
        self.make_good().await;
        self.until_open(OPEN_MAX - 1).await;
    }

    /// Until no more than so many runs are open, knocking at repositories that runs are kept waiting for.
    async fn until_open(&mut self, most: usize) {
        let (deadline, mut knocks) = (Instant::now() + ALL_END, Instant::now() + KNOCK_AGAIN);
        loop {
            self.account.read(&self.fleet.events);
            if self.account.open().len() <= most {
                return;
            }
            assert!(Instant::now() < deadline, "not all runs end; {}", self.scene());
            // Who knocks comes before all others, so that it is not to be done without end.
            if self.knocks.iter().any(|key| self.account.is_open(*key)) {
                knocks = Instant::now() + KNOCK_AGAIN;
            } else if Instant::now() > knocks {
                self.knock().await;
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}
