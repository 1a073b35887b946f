//! Two hosts with one repository: a deletion on one of them and a backup of the same instance on the other wait for each other, whichever
//! was first, and the chain is whole after both.

use std::time::Duration;

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, RunDetail};
use longshore::message::job::{InstancePart, RetryPart, ValidatePart};
use longshore::model::id::JobId;

use crate::chains::content_of;
use crate::delete::deletion;
use crate::fleet::{Fleet, JOB};
use crate::image::equal;
use crate::incremental::{BY_BITMAP, BY_HASHES, back_up, found_by, image};
use crate::lab::LabInstance;
use crate::share::Share;

/// Attempts of whoever waits for the other: each takes ten seconds, in which the lease is watched.
const PATIENT_ATTEMPTS: u32 = 30;
/// Longest time for those that wait.
const AFTER_EACH_OTHER: Duration = Duration::from_secs(300);

/// A host, and what it publishes.
struct Host<'s> {
    fleet: Fleet,
    share: &'s Share,
}

impl<'s> Host<'s> {
    fn new(name: &str, share: &'s Share) -> Self {
        Self { fleet: Fleet::start(name), share }
    }

    fn backup(&self, bare: &LabInstance) -> JobMessage {
        self.fleet.job(bare, self.share)
    }

    fn deletion(&self, bare: &LabInstance, backup: &BackupSummary) -> JobMessage {
        let instance = InstancePart { id: Some(bare.id.to_string()), name: None };
        deletion(&self.fleet, self.share, bare, instance, backup.backup_id, "only")
    }

    fn publish(&self, job: JobMessage, attempts: u32) -> JobId {
        let pause = Some(1);
        let retry = RetryPart { attempts: Some(attempts), first_pause_seconds: pause, longest_pause_seconds: pause };
        self.fleet.publish(&JobMessage { retry: Some(retry), ..job })
    }

    /// It was refused by the lease that the worker of `other` holds.
    fn refused_by(&self, job: JobId, other: &Host<'_>) {
        let failure = self.fleet.failed(job).failure;
        assert_eq!((failure.code.as_str(), failure.step.as_deref()), ("lease_held", Some("lease")), "{failure:#?}");
        assert!(failure.text.contains(&format!("host `{}`", other.fleet.host)), "{failure:#?}");
    }

    fn waits(&self, job: JobId) {
        let waits =
            |detail: &RunDetail| matches!(detail, RunDetail::Retrying(told) if told.failure.code == "lease_held");
        self.fleet.heard.of_run(job, "it waits for the lease", JOB, |event| waits(&event.detail));
    }

    fn done(&self, job: JobId) -> RunDetail {
        let end = self.fleet.heard.end_of(job, AFTER_EACH_OTHER);
        let RunDetail::Completed(completed) = &end else { panic!("it did not complete: {end:#?}") };
        // What a deletion's later attempt can't know.
        let known = |warning: &String| completed.delete.is_some() && warning.contains("an earlier attempt");
        assert!(completed.warnings.iter().all(known) && completed.left_overs.is_empty(), "{completed:?}");
        end
    }

    fn backed_up(&self, job: JobId) -> BackupSummary {
        let RunDetail::Completed(completed) = self.done(job) else { panic!("it has completed") };
        completed.backup.unwrap()
    }
}

#[test]
fn a_deletion_and_a_backup_of_one_instance_on_two_hosts_wait_for_each_other() {
    let share = Share::faulty("two-hosts");
    let (here, there) = (Host::new("two-here", &share), Host::new("two-there", &share));
    let (one, other) = (LabInstance::bare(), LabInstance::bare());
    let base = back_up(&here.fleet, &one, &share);
    one.overwrite(0, 0x11, "56M");
    back_up(&here.fleet, &other, &share);
    other.overwrite(0, 0x22, "56M");
    let middle = back_up(&here.fleet, &other, &share);
    other.overwrite(0, 0x33, "128k");
    let leaf = back_up(&here.fleet, &other, &share);
    let held = content_of(&image(&share, &leaf, "vda"));
    other.overwrite(0, 0x44, "1M");

    // Of the one instance the backup is first, and of the other one the deletion.
    share.order(r#"{"bw_mb": 1}"#);
    let backing_up = here.publish(here.backup(&one), 1);
    let merging = there.publish(there.deletion(&other, &middle), 1);
    here.fleet.is_moving(backing_up, "copy");
    there.fleet.is_moving(merging, "merge");
    let hasty = (there.publish(there.deletion(&one, &base), 1), here.publish(here.backup(&other), 1));
    there.refused_by(hasty.0, &here);
    here.refused_by(hasty.1, &there);
    let deleting = there.publish(there.deletion(&one, &base), PATIENT_ATTEMPTS);
    let next = here.publish(here.backup(&other), PATIENT_ATTEMPTS);
    there.waits(deleting);
    here.waits(next);
    share.heal();

    let second = here.backed_up(backing_up);
    assert_eq!((second.parent, found_by(&second)), (Some(base.backup_id), BY_BITMAP), "what it is based on stayed");
    there.done(merging);
    there.done(deleting);
    let next = here.backed_up(next);
    assert_eq!((next.parent, found_by(&next)), (Some(leaf.backup_id), BY_HASHES), "a later attempt trusts no bitmap");
    assert!(content_of(&image(&share, &leaf, "vda")) == held, "the leaf has taken over what it needs");
    for (bare, backup) in [(&one, &second), (&other, &next)] {
        bare.stop();
        equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, backup, "vda"), "qcow2");
        equal(&bare.folder.join("vdb.raw"), "raw", &image(&share, backup, "vdb"), "qcow2");
    }
    let part = ValidatePart { level: Some("content".to_owned()), ..ValidatePart::default() };
    let found = here.fleet.validated(here.fleet.publish(&here.fleet.validate_job(&share, part)));
    assert_eq!((found.errors, found.backups), (0, 4), "{found:?}");
    let (here, there) = (here.fleet, there.fleet);
    here.finish(&[&one, &other], &[&share]);
    there.finish(&[&one, &other], &[&share]);
}
