//! What the steps of every kind of job hand to each other. After a crash it is built from the plan alone.

use std::sync::Arc;

use tokio::sync::watch;

use super::session::Session;
use super::settings::JobSettings;
use super::{Attempt, Doors, JobProgress};
use crate::failure::{Code, Failure};
use crate::host::mover::MoverName;
use crate::model::id::InstanceId;
use crate::model::job::Job;
use crate::model::owner::Owner;
use crate::mover::protocol::{Reply, Request};
use crate::saga::step::Named;

/// What a job wants of its mover and its repository.
#[derive(Clone, Debug)]
pub(super) struct Wants {
    /// Name of the mover.
    pub mover_name: String,
    /// The instance whose lease is held, for a job that holds one all along.
    pub instance: Option<InstanceId>,
    /// Free bytes without which the job has no sense.
    pub need_bytes: u64,
    /// Who else will write to the share.
    pub writer: Option<Owner>,
}

/// The state that the steps of every kind share.
pub(super) struct Common {
    /// The doors.
    pub doors: Doors,
    /// The host's settings.
    pub settings: Arc<JobSettings>,
    /// The job.
    pub job: Job,
    /// What it wants.
    pub wants: Wants,
    /// The mover, and how far it is.
    pub session: Session,
    /// A mover for what is to be done though the job's own does not answer.
    pub aside: Session,
    /// Free bytes of the repository when it was opened.
    pub free_bytes: u64,
    /// Where progress goes.
    pub progress: watch::Sender<JobProgress>,
    /// What is unusual, and belongs to what the job makes.
    pub warnings: Vec<String>,
    /// What went wrong too late for that, or does not belong into it.
    pub late_warnings: Vec<Failure>,
}

/// The context of one kind of job.
pub(super) trait JobContext: Send {
    /// What it has in common with the others.
    fn common(&mut self) -> &mut Common;
}

impl Common {
    /// At the beginning of an attempt, or of its unwinding.
    pub fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        wants: Wants,
        progress: &watch::Sender<JobProgress>,
    ) -> Self {
        Self {
            doors: doors.clone(),
            settings: Arc::new(settings.clone()),
            job: attempt.job.clone(),
            wants,
            session: Session::default(),
            aside: Session::default(),
            free_bytes: 0,
            progress: progress.clone(),
            warnings: Vec::new(),
            late_warnings: Vec::new(),
        }
    }

    /// The name of the mover.
    pub fn mover_name(&self) -> Result<MoverName, Failure> {
        let name = self.wants.mover_name.parse::<MoverName>();
        name.map_err(|error| Failure::new(Code::Internal, "a mover cannot be named").because(&error))
    }

    /// Asks for something that moves bytes, and fails as `stalled` when none moves for the stall limit.
    pub async fn ask_moving(&mut self, step: &(dyn Named + Sync), request: Request) -> Result<Reply, Failure> {
        let (name, sender) = (step.name(), self.progress.clone());
        let report = move |progress: crate::host::mover::Progress| {
            let crate::host::mover::Progress { done_bytes, total_bytes, data_bytes } = progress;
            sender.send_replace(JobProgress { step: name, done_bytes, total_bytes, data_bytes });
        };
        self.session.ask_moving(request, step.deadline(), self.settings.stall_limit, report).await
    }
}
