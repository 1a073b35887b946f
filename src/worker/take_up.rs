//! From the journal back to a run in memory: at start, and after an attempt that ended in a panic.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::time::sleep;

use super::attempt::{persist, recover};
use super::report::{orphan_rows, properties_of};
use super::run::Run;
use super::settle::Past;
use super::shared::Shared;
use crate::failure::{Code, Failure};
use crate::journal::{OpenRun, RunState, Settlement, StoredMessage};
use crate::message::decode_job;
use crate::model::job::RunKey;

/// Pause before a run waits again whose end, and not its attempt, was a panic: what is to end it, as an eviction, does so at once.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// Events of an earlier worker that are read back: more than a letter has room for.
const RECALLED_MAX: u32 = 32;

/// A run from its message. One that this worker cannot read (its host has another name now, another version took it, or its row is
/// damaged) ends here, as failed, so that whoever waits for it hears of it.
pub async fn read_back(shared: &Shared, open: OpenRun) -> Result<Option<Run>, Failure> {
    match read(shared, open.clone()).await? {
        Ok(run) => Ok(Some(run)),
        Err(Unread { message, failure }) => give_up(shared, &open, &message, &failure).await,
    }
}

/// A run that this worker cannot read.
pub struct Unread {
    /// What there is of its message.
    message: StoredMessage,
    /// Why.
    pub failure: Failure,
}

/// A run from its message, and nothing is done where it cannot be read.
pub async fn read(shared: &Shared, open: OpenRun) -> Result<Result<Run, Unread>, Failure> {
    let unread = |message, failure| Ok(Err(Unread { message, failure }));
    let found = match shared.journal.message(open.key).await {
        Ok(found) => found,
        Err(failure) if failure.code == Code::JournalFailed => return Err(failure),
        Err(failure) => return unread(StoredMessage::default(), failure),
    };
    let Some(message) = found else {
        let failure =
            Failure::new(Code::Internal, format!("the journal has no message of the open run `{}`", open.key));
        return unread(StoredMessage::default(), failure);
    };
    let properties = properties_of(&message);
    let job = match decode_job(&properties, &message.body, &shared.settings.host) {
        Ok(job) => job,
        Err(refusal) => return unread(message, refusal.failure()),
    };
    let (not_before, held) = match open.state {
        RunState::Waiting { not_before, held } => (not_before, held),
        RunState::Running | RunState::Ended { .. } => (None, false),
    };
    let past = Past { charged: open.failures, interruptions: open.crashes };
    let run = Run::new(job, &properties, open.urgent, 0);
    if open.attempt > 0 {
        // What was told of it goes into its letter, should it come to that.
        run.voice.recall(&shared.journal.told(open.key, RECALLED_MAX).await?);
    }
    Ok(Ok(Run { attempts: open.attempt, past, not_before, held, cancelled: open.cancelled, ..run }))
}

/// Ends a run without a job in hand. What a running attempt of it held cannot be taken back by us, and is named.
async fn give_up<T>(
    shared: &Shared,
    open: &OpenRun,
    message: &StoredMessage,
    failure: &Failure,
) -> Result<Option<T>, Failure> {
    tracing::error!(run = %open.key, failure = format!("{failure:#}"), "cannot read an open run of the journal; it ends here");
    let rows = orphan_rows(&shared.settings.host, open, message, failure);
    let settlement = Settlement::Ended { outcome: json!(failure.code), at: Timestamp::now() };
    shared.journal.settle(open.key, open.attempt, settlement, rows).await?;
    Ok(None)
}

/// Goes on with a run whose attempt, or whose unwinding, has ended in a panic: as after a crash, which bounds it as well.
pub async fn after_a_panic(shared: Arc<Shared>, key: RunKey) -> Option<Run> {
    shared.status.leave(key);
    let found = async {
        let open = persist("read the open runs", || shared.journal.open_runs()).await?;
        // Not there: the panic came after the settlement.
        let Some(open) = open.into_iter().find(|open| open.key == key) else { return Ok(None) };
        let running = open.state == RunState::Running;
        let run = persist("read a run back", || read_back(&shared, open.clone())).await?;
        Ok::<_, Failure>(run.map(|run| (run, running)))
    };
    match found.await {
        Ok(Some((run, true))) => recover(shared, run).await,
        Ok(Some((run, false))) => {
            sleep(PANIC_PAUSE).await;
            Some(run)
        }
        Ok(None) => None,
        Err(failure) => {
            tracing::error!(run = %key, failure = format!("{failure:#}"), "cannot go on with a run; the next start does");
            None
        }
    }
}
