//! What could not be removed from the host yet: named in heartbeats, and kept in the journal, until it is gone.
//!
//! It is gone when its process has ended, its path is empty, and its volume group has no such volume, which each heartbeat looks at. What
//! can't be seen from the host, such as a lease on a share, counts as gone when a later job of the same instance in the same repository
//! has completed, since that takes the lease over; and a volume whose group or directory is not seen any more, when that was a backup. One that only says what it
//! would do takes nothing over. What lies on a cluster is [looked at](super::left_images) by a mover. Whatever it is, a person may have it
//! forgotten, who removes nothing with that.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::attempt::persist;
use super::run::Run;
use super::shared::Shared;
use crate::failure::{Failure, Remains};
use crate::host::remains::{self, Seen};
use crate::message::event::LeftOver;
use crate::model::id::{InstanceRef, RepositoryId};
use crate::model::job::{JobKind, RunKey, Work};
use crate::saga;

/// Longest time for which a heartbeat waits for looks at left-overs. What is found later counts as well.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// One left-over, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLeftOver {
    /// Its name: the attempt and step that left it.
    pub name: String,
    /// As it is reported.
    pub report: LeftOver,
    /// By what it can be seen whether it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remains: Option<Remains>,
    /// The instance of its job; none for one about its repository alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceRef>,
    /// The repository of its job.
    pub repository: RepositoryId,
}

impl KnownLeftOver {
    /// What a step of the run's attempt could not take back.
    pub fn of_step(run: &Run, attempt: u32, left: &saga::LeftOver) -> Self {
        let (step, job) = (&left.step, &run.job);
        let remains = left.failure.remains.as_deref().cloned();
        let what = match &remains {
            Some(remains) => format!("{remains}, of step `{step}`"),
            None => {
                let address = &job.repository.address;
                let instance =
                    job.instance.as_ref().map_or(String::new(), |instance| format!("instance `{instance}` and "));
                format!("what step `{step}` began, for {instance}repository `{address}`")
            }
        };
        let reason = format!("{:#}", left.failure);
        Self { remains, ..Self::new(run, attempt, step, LeftOver { what, reason, job_id: None }) }
    }

    /// Whatever the run's attempt held, of which nothing is known.
    pub fn of_attempt(run: &Run, attempt: u32, reason: &str) -> Self {
        let report = LeftOver { what: format!("what attempt {attempt} held"), reason: reason.to_owned(), job_id: None };
        Self::new(run, attempt, "any", report)
    }

    /// A mover that looked at it, or whatever else is left of that look.
    pub fn of_look(&self, failure: &Failure, remains: Remains) -> Self {
        let report = LeftOver {
            what: format!("{remains}, of a look at what was left"),
            reason: format!("{failure:#}"),
            job_id: self.report.job_id,
        };
        Self { name: format!("{}, look", self.name), report, remains: Some(remains), ..self.clone() }
    }

    /// Whether that attempt of the run left it.
    pub fn is_of(&self, key: RunKey, attempt: u32) -> bool {
        self.name.starts_with(&of_attempt(key, attempt))
    }

    fn new(run: &Run, attempt: u32, step: &str, report: LeftOver) -> Self {
        Self {
            name: format!("{}{step}", of_attempt(run.job.key, attempt)),
            report: LeftOver { job_id: Some(run.job.key.job_id), ..report },
            remains: None,
            instance: run.job.instance.clone(),
            repository: run.job.repository.id,
        }
    }
}

/// How the names of what an attempt left begin.
fn of_attempt(key: RunKey, attempt: u32) -> String {
    format!("{key}, attempt {attempt}, ")
}

/// Takes up what an earlier worker kept.
pub async fn take_up(shared: &Shared) -> Result<(), Failure> {
    for (name, value) in shared.journal.left_overs().await? {
        match serde_json::from_value(value) {
            Ok(left_over) => shared.status.left_over(left_over),
            Err(error) => {
                tracing::error!(name, %error, "cannot read a left-over of the journal; it stays there and is not told")
            }
        }
    }
    Ok(())
}

/// Keeps and names what an attempt has left.
pub async fn keep(shared: &Shared, left_overs: &[KnownLeftOver]) {
    if left_overs.is_empty() {
        return;
    }
    let values = || left_overs.iter().map(|left| (left.name.clone(), json!(left))).collect();
    if let Err(failure) = persist("keep left-overs", || shared.journal.keep_left_overs(values())).await {
        tracing::error!(failure = format!("{failure:#}"), "left-overs are told by this worker only");
    }
    for left_over in left_overs {
        shared.status.left_over(left_over.clone());
    }
}

/// Whether such a job does more than to look.
fn takes_over(work: &Work) -> bool {
    match work {
        Work::Backup(_) | Work::RepoValidate(_) => true,
        Work::Restore(spec) => !spec.dry_run,
        Work::RestoreNew(spec) => !spec.dry_run,
        Work::Delete(spec) => !spec.dry_run,
    }
}

/// Forgets what that run has taken care of by having completed.
pub async fn made_good(shared: &Shared, run: &Run, now_left: &[KnownLeftOver]) {
    let known_as = |instance: &Option<InstanceRef>| instance.as_ref().map(|instance| shared.known_as(instance));
    let (instance, repository) = (known_as(&run.job.instance), run.job.repository.id);
    let (takes_over, is_backup) = (takes_over(&run.job.work), run.job.kind() == JobKind::Backup);
    let names = shared.status.left_overs().into_iter().filter(|left| {
        let same = known_as(&left.instance) == instance && left.repository == repository;
        let unseen = left.remains.is_none() && takes_over || is_backup && shared.status.is_nowhere(&left.name);
        unseen && same && !now_left.contains(left)
    });
    forget(shared, names.map(|left| left.name).collect()).await;
}

/// Forgets what a person had forgotten, wherever it is.
async fn forget_as_told(shared: &Shared) {
    match shared.journal.forgotten_left_overs().await {
        Ok(told) if told.is_empty() => {}
        Ok(told) => {
            for (name, reason) in &told {
                tracing::warn!(
                    name,
                    reason,
                    "a left-over is not named any more, as somebody has said; nothing is removed"
                );
            }
            drop_from(shared, told.into_iter().map(|(name, _)| name).collect()).await;
        }
        Err(failure) => tracing::warn!(failure = format!("{failure:#}"), "cannot read which left-overs to forget"),
    }
}

/// Forgets what is gone by now. Each is looked at by itself, and not again before the last look at it has ended.
pub async fn look(shared: &Arc<Shared>) {
    forget_as_told(shared).await;
    let mut looks = JoinSet::new();
    for left in shared.status.left_overs() {
        let Some(remains) = left.remains.filter(|_| shared.status.begin_look(&left.name)) else { continue };
        let shared = shared.clone();
        looks.spawn(async move {
            let seen = remains::look(&remains).await;
            shared.status.looked(&left.name, seen);
            if seen == Seen::Gone {
                forget(&shared, vec![left.name]).await;
            }
        });
    }
    let ended = timeout(LOOK_MAX, async { while looks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::warn!("a left-over cannot be looked at in time");
        looks.detach_all();
    }
}

pub(super) async fn forget(shared: &Shared, names: Vec<String>) {
    if names.is_empty() {
        return;
    }
    tracing::info!(?names, "left-overs are gone");
    drop_from(shared, names).await;
}

async fn drop_from(shared: &Shared, names: Vec<String>) {
    shared.status.forget(&names);
    // Told again by the next worker, which finds out the same.
    if let Err(failure) = shared.journal.drop_left_overs(names).await {
        tracing::warn!(failure = format!("{failure:#}"), "cannot take left-overs out of the journal");
    }
}
