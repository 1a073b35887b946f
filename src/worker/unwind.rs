//! Unwinding without a worker: what its next start would do with the attempts that an earlier one left open, and no more.

use std::sync::Arc;

use super::attempt::recover;
use super::left_over;
use super::shared::{Settings, Shared};
use super::take_up::read_back;
use super::work::Work;
use crate::failure::Failure;
use crate::host::hypervisor::Hypervisor;
use crate::journal::{Journal, RunState};
use crate::model::job::RunKey;

/// What became of a run whose attempt was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwound {
    /// The run.
    pub key: RunKey,
    /// Another attempt follows, once there is a worker. Else the run has ended, and the worker tells so.
    pub waits: bool,
    /// What could not be removed, in words.
    pub left_overs: Vec<String>,
}

/// Unwinds the attempts that are open, or that of one run alone. Nobody else may have the journal open, and the host is not asked whether it is
/// this worker's: whoever holds its journal may take back what is written there.
///
/// # Errors
/// The journal cannot be read or written.
pub async fn unwind(
    settings: Settings,
    journal: Journal,
    work: Arc<dyn Work>,
    hypervisor: Arc<dyn Hypervisor>,
    only: Option<RunKey>,
) -> Result<Vec<Unwound>, Failure> {
    let shared = Arc::new(Shared::new(settings, journal, work, hypervisor));
    left_over::take_up(&shared).await?;
    let mut unwound = Vec::new();
    for open in shared.journal.open_runs().await? {
        let key = open.key;
        if open.state != RunState::Running || only.is_some_and(|only| only != key) {
            continue;
        }
        let known: Vec<_> = shared.status.left_overs().into_iter().map(|left| left.name).collect();
        let waits = match read_back(&shared, open).await? {
            Some(run) => recover(shared.clone(), run).await.is_some(),
            None => false,
        };
        let new = shared.status.left_overs().into_iter().filter(|left| !known.contains(&left.name));
        let left_overs = new.map(|left| format!("{}: {}", left.report.what, left.report.reason)).collect();
        unwound.push(Unwound { key, waits, left_overs });
    }
    Ok(unwound)
}
