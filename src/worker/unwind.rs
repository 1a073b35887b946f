//! Unwinding without a worker: what its next start would do with the attempts that an earlier one left open, and no more.

use std::sync::Arc;

use super::attempt::recover;
use super::left_over;
use super::shared::{Settings, Shared};
use super::take_up::read;
use super::work::Work;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::journal::{Journal, RunState};
use crate::model::id::JobId;
use crate::model::job::RunKey;

/// What became of a run whose attempt was cut off.
#[derive(Clone, Debug)]
pub struct Unwound {
    /// The run.
    pub key: RunKey,
    /// What came of it; or why nothing was done, as this worker cannot read the run: its host may have another name in the configuration.
    pub end: Result<UnwoundEnd, Failure>,
    /// What could not be removed, in words.
    pub left_overs: Vec<String>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnwoundEnd {
    /// Another attempt follows, once there is a worker.
    Waits,
    /// The run has ended; the journal says how, and the worker will tell.
    Ended,
}

/// Unwinds the attempts that are open, or those of one job alone. Nobody else may have the journal open, and the broker is not asked whether the host
/// id is this worker's: whoever holds its journal may take back what is written there. A run that cannot be read is left as it is.
///
/// # Errors
/// The journal cannot be read or written.
pub async fn unwind(
    settings: Settings,
    journal: Journal,
    work: Arc<dyn Work>,
    hypervisor: Arc<dyn Hypervisor>,
    only: Option<JobId>,
) -> Result<Vec<Unwound>, Failure> {
    let shared = Arc::new(Shared::new(settings, journal, work, hypervisor));
    tokio::select! {
        unwound = unwind_all(&shared, only) => unwound,
        () = shared.journal.died() => Err(Failure::new(Code::JournalFailed, "the journal is not written any more")),
    }
}

async fn unwind_all(shared: &Arc<Shared>, only: Option<JobId>) -> Result<Vec<Unwound>, Failure> {
    left_over::take_up(shared).await?;
    let mut unwound = Vec::new();
    for open in shared.journal.open_runs().await? {
        let (key, attempt) = (open.key, open.attempt);
        if open.state != RunState::Running || only.is_some_and(|only| only != key.job_id) {
            continue;
        }
        let end = match read(shared, open).await? {
            Ok(run) => match recover(shared.clone(), run).await {
                Some(_) => Ok(UnwoundEnd::Waits),
                None => Ok(UnwoundEnd::Ended),
            },
            Err(unread) => Err(unread.failure),
        };
        let left_overs = shared.status.left_overs().into_iter().filter(|left| left.is_of(key, attempt));
        let left_overs = left_overs.map(|left| format!("{}: {}", left.report.what, left.report.reason)).collect();
        unwound.push(Unwound { key, end, left_overs });
    }
    Ok(unwound)
}
