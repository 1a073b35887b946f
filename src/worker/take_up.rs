//! From the journal back to a run in memory: at start, and after an attempt that ended in a panic.

use std::sync::Arc;

use super::attempt::{persist, recover};
use super::conclude::{Told, conclude};
use super::report::properties_of;
use super::run::Run;
use super::settle::{Ending, INTERRUPTIONS_MAX, Past};
use super::shared::Shared;
use crate::failure::{Code, Failure};
use crate::journal::{OpenRun, RunState};
use crate::message::decode_job;
use crate::message::event::LeftOver;
use crate::model::job::RunKey;

/// A run from its message. One that cannot be read any more, which only another version's journal can hold, stays in the journal.
pub async fn read_back(shared: &Shared, open: OpenRun) -> Result<Option<Run>, Failure> {
    let message = shared.journal.message(open.key).await?.ok_or_else(|| {
        Failure::new(Code::Internal, format!("the journal has the open run `{}` without its message", open.key))
    })?;
    let properties = properties_of(&message);
    let job = match decode_job(&properties, &message.body, &shared.settings.host) {
        Ok(job) => job,
        Err(refusal) => {
            tracing::error!(run = %open.key, reason = refusal.text, "cannot read an open run of the journal; it is left there");
            return Ok(None);
        }
    };
    let not_before = match open.state {
        RunState::Waiting { not_before } => not_before,
        RunState::Running | RunState::Ended { .. } => None,
    };
    let past = Past { charged: open.failures, interruptions: open.crashes };
    let run = Run::new(job, &properties, open.urgent, 0);
    Ok(Some(Run { instance: shared.known_as(&run.instance), attempts: open.attempt, past, not_before, ..run }))
}

/// Goes on with a run whose attempt, or whose unwinding, has ended in its `panics`th panic: unwinds the attempt as after a crash.
/// Where that panics as well, again and again, the run is given up with what the attempt held named as a left-over.
pub async fn after_a_panic(shared: Arc<Shared>, key: RunKey, panics: u32) -> Option<Run> {
    shared.status.leave(key);
    let open = persist("read the open runs", || shared.journal.open_runs()).await;
    // Not there: the panic came after the settlement.
    let open = open.into_iter().find(|open| open.key == key)?;
    let running = open.state == RunState::Running;
    let run = persist("read a run back", || read_back(&shared, open.clone())).await?;
    if !running {
        return Some(run);
    }
    if panics < INTERRUPTIONS_MAX {
        return recover(shared, run).await;
    }
    let (number, text) = (run.attempts, format!("attempt {} ended in a panic and could not be unwound", run.attempts));
    let failure = Failure::new(Code::Internal, text.clone());
    let left_over = LeftOver { what: format!("what attempt {number} held"), reason: text, job_id: None };
    conclude(&shared, run, number, Told::of(Ending::Failed(failure)).with_left_over(left_over)).await
}
