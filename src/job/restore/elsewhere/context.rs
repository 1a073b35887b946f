//! What the steps of one restore to elsewhere hand to each other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::choose::{Becomes, Choice};
use super::names::GiveNames;
use super::plan::ElsewherePlan;
use crate::failure::{Code, Failure};
use crate::job::common::{Common, JobContext};
use crate::job::restore::result::{DryRun, Named, RestoreResult, Volume};
use crate::job::settings::JobSettings;
use crate::job::{Attempt, Doors, JobProgress};
use crate::mover::protocol::{CopiedDisk, NewContent, NewFile, NewFiles};
use crate::saga::{End, Outcome};

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::job::restore) struct Made {
    /// What the new volumes hold.
    pub disks: Vec<CopiedDisk>,
    /// The inode of each new file.
    pub inodes: Vec<u64>,
}

/// The steps' common state.
pub(in crate::job::restore) struct Context {
    /// What it has in common with every other job.
    pub common: Common,
    /// The plan.
    pub plan: Arc<ElsewherePlan>,
    /// What was decided; after a crash from the records.
    pub choice: Option<Choice>,
    /// The new files, once they are made; after a crash from the records.
    pub made: Made,
    /// What a dry run says; after a crash from the records.
    pub told: Option<DryRun>,
    /// Libvirt may have been asked for what the files become; after a crash, whenever it is found out.
    pub place_begun: bool,
    /// The worker that began it is gone, and nothing is known of what has happened on the host since.
    pub is_found_out: bool,
    /// Names that were given could not be taken back, or were not yet looked at.
    pub names_may_be_given: bool,
}

impl Context {
    /// At the beginning of an attempt, or of its unwinding.
    pub fn new(
        doors: &Doors,
        settings: &JobSettings,
        attempt: &Attempt,
        plan: ElsewherePlan,
        progress: &watch::Sender<JobProgress>,
    ) -> Self {
        Self {
            common: Common::new(doors, settings, attempt, plan.wants(), progress),
            plan: Arc::new(plan),
            choice: None,
            made: Made::default(),
            told: None,
            place_begun: false,
            is_found_out: false,
            names_may_be_given: false,
        }
    }

    /// What was decided, in a step that comes after that.
    pub fn choice(&self) -> Result<&Choice, Failure> {
        self.choice
            .as_ref()
            .ok_or_else(|| Failure::new(Code::Internal, "a volume was to be made before it was decided which"))
    }

    /// The files that were chosen, with all that is known of them.
    pub fn new_files(&self) -> Result<NewFiles, Failure> {
        let mut new = self.choice()?.new.clone();
        if !self.made.inodes.is_empty() {
            must_be_as_many(&new, &self.made.inodes)?;
        }
        new.files.iter_mut().zip(&self.made.inodes).for_each(|(file, inode)| file.made = Some(*inode));
        Ok(new)
    }

    /// Of a restore whose files have their names.
    pub fn result(&self) -> Result<RestoreResult, Failure> {
        let choice = self.choice()?;
        let (new_instance, attached_to) = match &choice.becomes {
            Becomes::Instance(new) => (Some(Named { id: new.id, name: new.name.clone() }), None),
            Becomes::Disk { instance_id, instance_name, .. } => {
                (None, Some(Named { id: *instance_id, name: instance_name.clone() }))
            }
            Becomes::File => (None, None),
        };
        Ok(RestoreResult {
            backup_id: self.plan.backup_id,
            number: choice.number,
            taken_at: choice.taken_at,
            volumes: choice.new.files.iter().filter_map(|file| self.volume(choice, file)).collect(),
            new_instance,
            attached_to,
            warnings: choice.warnings.iter().chain(&self.common.warnings).cloned().collect(),
        })
    }

    fn volume(&self, choice: &Choice, file: &NewFile) -> Option<Volume> {
        let NewContent::Disk { disk, virtual_bytes, content_root, format } = &file.content else { return None };
        let target = if let Becomes::Disk { disk: attached, .. } = &choice.becomes { &attached.target } else { disk };
        Some(Volume {
            disk: disk.clone(),
            target: target.clone(),
            volume: file.path.clone(),
            format: *format,
            previous: None,
            virtual_bytes: *virtual_bytes,
            data_bytes: self
                .made
                .disks
                .iter()
                .find(|copied| copied.target == *disk)
                .map_or(0, |copied| copied.data_bytes),
            content_root: content_root.clone(),
        })
    }

    /// Adds what the steps could only warn of, and where to look when nobody knows what became of the files.
    pub fn finish(self, mut outcome: Outcome) -> Outcome {
        let named = outcome.left_over.iter().any(|left| left.step == GiveNames::NAME);
        if let (true, End::Failed { failure } | End::Stopped { failure }) = (named, &mut outcome.end) {
            // Another attempt would find what is left of this one.
            let failure = Failure { code: Code::RestoreUnfinished, ..failure.clone() };
            outcome.end = End::Failed { failure };
        }
        if let (End::Failed { failure }, Some(choice)) = (&outcome.end, &self.choice)
            && failure.code == Code::RestoreUnfinished
        {
            outcome.warnings.extend(choice.new.files.iter().map(whereabouts));
        }
        outcome.warnings.extend(self.common.late_warnings);
        outcome
    }
}

/// Of each new file something is told, in their order.
pub(in crate::job::restore) fn must_be_as_many(new: &NewFiles, told: &[u64]) -> Result<(), Failure> {
    match new.files.len() == told.len() {
        true => Ok(()),
        false => {
            let text = format!("of {} new files {} inodes are known", new.files.len(), told.len());
            Err(Failure::new(Code::Internal, text))
        }
    }
}

fn whereabouts(file: &NewFile) -> Failure {
    let [path, fresh] = [&file.path, &file.fresh].map(|path| path.display());
    let text = format!("what was made is `{fresh}` if that is there, else `{path}`");
    Failure::new(Code::RestoreUnfinished, text)
}

impl JobContext for Context {
    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}
