//! The worker of one host: takes jobs from its queues into its journal, does them, and tells what became of them.
//!
//! It promises: a job is acknowledged only after it is in the journal, and from then on ends in exactly one final event; what runs
//! at once is bounded per host and per repository, and an instance has one job at a time; a stop, polite or not, loses
//! nothing. It deliberately never touches a share, and knows no libvirt and no lapin: it has doors.
//!
//! [`driver`] decides what happens next; [`intake`] turns a delivery into a run; [`attempt`] executes one; [`settle`], [`admit`],
//! [`circuit`], [`lane`] and [`rest`] are the decisions, pure; [`pause`], [`drain`] and [`announce`] do what controllers want of the host; [`outbox`],
//! [`pulse`] and [`standing`] speak.

pub mod admit;
mod announce;
mod attempt;
mod backlog;
mod circuit;
mod conclude;
mod drain;
mod driver;
mod ended;
mod intake;
pub mod jobs;
mod lane;
mod left_images;
mod left_over;
mod outbox;
mod pace;
mod pause;
mod pulse;
mod report;
mod rest;
mod run;
pub mod settle;
mod shared;
mod standing;
mod status;
mod step_times;
mod summary;
mod supersede;
mod take_up;
mod unwind;
pub mod work;

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use ended::Ended;
pub use outbox::{Counters, FLUSH_MAX};
pub use shared::Settings;
pub use unwind::{Unwound, UnwoundEnd, unwind};

use crate::broker::{Broker, Publisher, SessionState, WantedJobs};
use crate::failure::Failure;
use crate::host::hypervisor::Hypervisor;
use crate::journal::Journal;
use crate::model::id::HostId;
use crate::shutdown::{self, Shutdown, Stage};
use crate::supervisor::Supervisor;
use driver::Driver;
use shared::Shared;
use work::Work;

/// What a worker is made of.
pub struct Parts {
    /// The configuration.
    pub settings: Settings,
    /// The broker's door.
    pub broker: Arc<dyn Broker>,
    /// The durable record.
    pub journal: Journal,
    /// Does jobs.
    pub work: Arc<dyn Work>,
    /// Asked for the inventory.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Whoever started the process.
    pub supervisor: Supervisor,
}

/// Why a worker ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// What an earlier worker left cannot be read.
    #[error(transparent)]
    Journal(#[from] Failure),
    /// The journal's writer has ended, and with it everything that could be promised.
    #[error("the journal is not written any more; the next start goes on from what is in it")]
    JournalDied,
    /// Another worker has held the host id ever since this one started.
    #[error("another worker holds the host id `{host}`: stop it, or give this one an id of its own")]
    HostIdInUse {
        /// The host id.
        host: HostId,
    },
}

/// Runs until `shutdown` or a controller asks for a stop and everything is given back or kept in the journal, as far as that goes. Dropping the future is the same as
/// the end of the process: nothing of it goes on, and the next worker unwinds what was under way.
///
/// # Errors
/// When the journal cannot be read at start or dies, or the host id turns out to be another's before it was ever this worker's. One
/// that has held it stays: it has jobs to end, and the other may go.
pub async fn run(parts: Parts, shutdown: Shutdown) -> Result<Ended, WorkerError> {
    let journal = parts.journal.clone();
    tokio::select! {
        ended = work_until(parts, shutdown) => ended,
        () = journal.died() => Err(WorkerError::JournalDied),
    }
}

async fn work_until(parts: Parts, shutdown: Shutdown) -> Result<Ended, WorkerError> {
    let Parts { settings, broker, journal, work, hypervisor, supervisor } = parts;
    let publisher = broker.publisher();
    let host = settings.host.clone();
    let shared = Arc::new(Shared::new(settings, journal.clone(), work, hypervisor));
    let (over, until_over) = shutdown::switch();
    let (told, until_told) = shutdown::switch();
    let mut driver = Driver::new(shared.clone(), publisher.clone(), supervisor);
    driver.take_up().await?;
    let mut session = broker.open_host(&host).await;
    let state = session.state();
    let pump = pump_once_held(journal.clone(), publisher.clone(), shared.clone(), state.clone(), until_told);
    let heart = pulse::beat(shared.clone(), publisher.clone(), state.clone(), until_over.clone());
    let inventories = pulse::take_inventory(shared.clone(), publisher.clone(), state.clone(), until_over.clone());
    let pauses = pause::follow(shared.clone(), until_over.clone());
    let images = left_images::look(shared.clone(), state.clone(), until_over.clone());
    let states = follow_state(shared.clone(), state.clone(), until_over);
    let pump = AbortOnDropHandle::new(tokio::spawn(pump));
    let heart = AbortOnDropHandle::new(tokio::spawn(heart));
    let inventories = AbortOnDropHandle::new(tokio::spawn(inventories));
    let pauses = AbortOnDropHandle::new(tokio::spawn(pauses));
    let images = AbortOnDropHandle::new(tokio::spawn(images));
    let states = AbortOnDropHandle::new(tokio::spawn(states));

    let ended = tokio::select! {
        ended = driver.drive(session.as_mut(), &shutdown) => Some(ended),
        () = taken_by_another(state.clone()) => None,
    };
    session.want_jobs(WantedJobs::None);
    match ended {
        None => driver.let_unwind().await,
        Some(Ended { evicted: true, .. }) => driver.has_told_all(&state, &shutdown).await,
        Some(_) => {}
    }
    driver.has_told(&shutdown).await;
    session.close().await;
    over.raise(Stage::Now);
    let tasks = [
        (heart, "heartbeat"),
        (inventories, "inventory"),
        (pauses, "watch of pauses"),
        (images, "look at left images"),
        (states, "session watch"),
    ];
    for (task, what) in tasks {
        finish(task, what).await;
    }
    // Last: until then somebody may have something to tell.
    told.raise(Stage::Now);
    finish(pump, "outbox").await;
    match ended {
        None => Err(WorkerError::HostIdInUse { host }),
        Some(ended) if ended.evicted => Ok(Ended { untold: journal.outbox_depth().await?, ..ended }),
        Some(ended) => Ok(ended),
    }
}

/// Sends what the outbox holds, but nothing before the host id is known to be ours: until then it would be another worker's word.
async fn pump_once_held(
    journal: Journal,
    publisher: Arc<dyn Publisher>,
    shared: Arc<Shared>,
    state: watch::Receiver<SessionState>,
    over: Shutdown,
) {
    tokio::select! {
        biased;
        () = pulse::held(state) => {}
        () = over.reached(Stage::Now) => return,
    }
    outbox::pump(journal, publisher, shared.counters.clone(), over).await;
}

async fn finish(task: AbortOnDropHandle<()>, what: &str) {
    if let Err(error) = task.await {
        tracing::error!(%error, "the {what} ended in a panic");
    }
}

/// Resolves when the host id turns out to be in use before it was ever ours.
async fn taken_by_another(mut state: watch::Receiver<SessionState>) {
    let settled = |state: &SessionState| !matches!(state, SessionState::Connecting { .. });
    if let Ok(settled) = state.wait_for(settled).await.map(|state| state.clone())
        && !pulse::is_held(&settled)
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Says `worker.online` whenever the session has come up, and logs its other states.
async fn follow_state(shared: Arc<Shared>, mut state: watch::Receiver<SessionState>, over: Shutdown) {
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            SessionState::Up => {
                tracing::info!(host = %shared.settings.host, "takes jobs");
                if let Err(failure) = announce::say_online(&shared).await {
                    tracing::warn!(failure = format!("{failure:#}"), "cannot say that the worker is online");
                }
            }
            SessionState::Connecting { reason } => tracing::info!(reason, "connecting to the broker"),
            SessionState::HostIdInUse => {
                tracing::error!(host = %shared.settings.host, "another worker has this host id")
            }
            SessionState::Blocked { reason } => tracing::warn!(reason, "the broker takes nothing for now"),
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = over.reached(Stage::Now) => return,
        }
    }
}
