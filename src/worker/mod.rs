//! The worker of one host: takes jobs from its queues into its journal, does them, and tells what became of them.
//!
//! It promises: a job is acknowledged only after it is in the journal, and from then on ends in exactly one final event; what runs
//! at once is bounded per host and per repository, and an instance has one job at a time; a stop, polite or not, loses
//! nothing. It deliberately never touches a share, and knows no libvirt and no lapin: it has doors.
//!
//! [`driver`] decides what happens next; [`intake`] turns a delivery into a run; [`attempt`] executes one; [`settle`] and
//! [`admit`] are the decisions, pure; [`outbox`] and [`pulse`] speak.

pub mod admit;
mod attempt;
mod conclude;
mod driver;
mod intake;
pub mod jobs;
mod outbox;
mod pace;
mod pulse;
mod report;
mod run;
pub mod settle;
mod shared;
mod status;
mod summary;
pub mod work;

use std::sync::Arc;

pub use outbox::{Counters, FLUSH_MAX};
pub use shared::Settings;

use crate::broker::{Broker, SessionState};
use crate::failure::Failure;
use crate::host::hypervisor::Hypervisor;
use crate::journal::Journal;
use crate::message::Encoding;
use crate::message::JobMessage;
use crate::message::event::{Draining, HostDetail, Online};
use crate::model::job::JobKind;
use crate::shutdown::{self, Shutdown, Stage};
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
}

/// Runs until `shutdown` asks for a stop and everything is given back or kept in the journal.
///
/// # Errors
/// When the journal cannot be read at start.
pub async fn run(parts: Parts, shutdown: Shutdown) -> Result<(), Failure> {
    let Parts { settings, broker, journal, work, hypervisor } = parts;
    let publisher = broker.publisher();
    let host = settings.host.clone();
    let shared = Arc::new(Shared::new(settings, journal.clone(), work, hypervisor));
    let (over, until_over) = shutdown::switch();
    let pump = outbox::pump(journal, publisher.clone(), shared.counters.clone(), until_over.clone());
    let pump = tokio::spawn(pump);
    let mut driver = Driver::new(shared.clone());
    driver.take_up().await?;
    let pulse = tokio::spawn(pulse::beat(shared.clone(), publisher.clone(), until_over.clone()));
    let mut session = broker.open_host(&host).await;
    let states = tokio::spawn(follow_state(shared.clone(), session.state(), until_over));

    driver.drive(session.as_mut(), &shutdown).await;

    session.want_jobs(false);
    let (waiting, running) = driver.counts();
    let limit_seconds = shared.settings.drain_limit.as_secs();
    tracing::info!(waiting, running, limit_seconds, "stopping");
    let draining = Draining { running: running as u32, waiting: waiting as u32, limit_seconds };
    pulse::tell(&shared, publisher.as_ref(), HostDetail::Draining(draining)).await;
    driver.drain(&shutdown).await;
    session.close().await;
    over.raise(Stage::Now);
    for (task, what) in [(pump, "outbox"), (pulse, "heartbeat"), (states, "session watch")] {
        if let Err(error) = task.await {
            tracing::error!(%error, "the {what} ended in a panic");
        }
    }
    Ok(())
}

/// Says `worker.online` whenever the session has come up, and logs its other states.
async fn follow_state(shared: Arc<Shared>, mut state: tokio::sync::watch::Receiver<SessionState>, over: Shutdown) {
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            SessionState::Up => {
                tracing::info!(host = %shared.settings.host, "takes jobs");
                let event = shared.voice.event(HostDetail::Online(online(&shared)));
                let rows = vec![report::host_draft(move || event)];
                if let Err(failure) = shared.journal.post(None, rows).await {
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

fn online(shared: &Shared) -> Online {
    Online {
        installation: shared.journal.installation(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        content_types: Encoding::READ.map(str::to_owned).to_vec(),
        message_types: vec![JobMessage::MESSAGE_TYPE.to_owned()],
        kinds: vec![JobKind::Backup],
        slots: shared.settings.slots.host as u32,
    }
}
