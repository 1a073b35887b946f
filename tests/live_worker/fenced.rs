//! Movers, and a whole worker, that stand still for longer than a dead holder of a lease is waited for, while another host's worker takes over
//! what they hold, and that go on then: nothing of theirs is published, nothing of theirs is left, and what the other one has made of the
//! chains stays.

use std::time::Duration;

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, Completed, RunDetail};
use longshore::message::job::{BackupPart, InstancePart, RetryPart};
use longshore::model::id::JobId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::damaged::Damaged;
use crate::delete::{Chain, deletion};
use crate::fleet::{Fleet, JOB, Settings};
use crate::image::equal;
use crate::lab::{LabInstance, eventually};
use crate::share::Share;
use crate::slate::movers_of;

/// The other host's worker waits until the leases have stood still for two minutes.
const TAKEN_OVER: Duration = Duration::from_secs(300);
/// A signal is delivered within this, also to whoever waits for a slow share.
const DELIVERED: Duration = Duration::from_secs(20);
/// Longer than they stand still: their worker is not to end them before.
const STALL_SECONDS: u64 = 900;

/// Processes that stand still until this is dropped.
struct StandStill(Vec<i32>);

impl StandStill {
    fn begin(processes: Vec<i32>) -> Self {
        let still = Self(processes);
        still.signal(Signal::SIGSTOP);
        let stands = |pid: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().any(|line| line.starts_with("State:\tT"))
        };
        eventually("they stand still", DELIVERED, || still.0.iter().all(stands));
        still
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // One that has ended needs none.
            let _gone = kill(Pid::from_raw(*pid), signal);
        }
    }
}

impl Drop for StandStill {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

/// A host whose movers stand still, one that stands still as a whole, one that takes over, a share of all, and what there is to be done on it
/// for each kind of job that writes.
struct Scene {
    old: Fleet,
    hung: Fleet,
    new: Fleet,
    share: Share,
    suspended: Running,
    pulled: Running,
    pushed: Running,
    damaged: Damaged,
}

/// A running instance with a full backup, from which it differs by then.
struct Running {
    bare: LabInstance,
    full: BackupSummary,
}

impl Running {
    fn new(fleet: &Fleet, share: &Share) -> Self {
        let bare = LabInstance::bare();
        let full = fleet.completed(fleet.back_up(&bare, share, "off"));
        bare.overwrite(0, 0x41, "48M");
        Self { bare, full }
    }

    fn backup(&self, fleet: &Fleet, share: &Share, transfer: &str) -> JobMessage {
        let backup = Some(BackupPart { transfer: Some(transfer.to_owned()), ..BackupPart::default() });
        JobMessage { backup, ..fleet.job(&self.bare, share) }
    }

    /// Deletes what the backup that stands still is based on.
    fn deletion(&self, fleet: &Fleet, share: &Share) -> JobMessage {
        let instance = InstancePart { id: Some(self.bare.id.to_string()), name: None };
        deletion(fleet, share, &self.bare, instance, self.full.backup_id, "leaf_only")
    }

    fn nothing_is_there(&self, share: &Share) {
        assert_eq!(share.entries_of(&self.bare.id), [".highest-number"]);
    }

    /// The next backup of it is what it holds.
    fn is_backed_up(&self, fleet: &Fleet, share: &Share, transfer: &str) {
        let next = fleet.completed(fleet.publish(&self.backup(fleet, share, transfer)));
        assert_eq!((next.parent, next.number), (None, 2), "the first one was deleted: {next:?}");
        equal_to(&self.bare, share, &next);
    }
}

/// Stops the instance and holds its volumes against the backup.
fn equal_to(bare: &LabInstance, share: &Share, backup: &BackupSummary) {
    bare.stop();
    let images = share.path.join(&backup.directory);
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &images.join("vda.qcow2"), "qcow2");
    equal(&bare.folder.join("vdb.raw"), "raw", &images.join("vdb.qcow2"), "qcow2");
}

impl Scene {
    fn new() -> Self {
        let old = Fleet::with("fenced-old", Settings { stall_seconds: STALL_SECONDS, ..Settings::default() });
        let (hung, new) = (Fleet::start("fenced-hung"), Fleet::start("fenced-new"));
        let share = Share::faulty("fenced");
        let [suspended, pulled, pushed] = [(); 3].map(|()| Running::new(&old, &share));
        let damaged = Damaged::new(&old, &share);
        Self { old, hung, new, share, suspended, pulled, pushed, damaged }
    }

    /// A job that is tried again if need be, of a worker that stands still with its mover.
    fn hangs(&self) -> (JobId, StandStill) {
        let job = self.hung.publish(&self.suspended.backup(&self.hung, &self.share, "pull"));
        self.hung.is_copying(job);
        let pids = movers_of(&self.hung.folder).into_iter().chain([self.hung.worker_pid().try_into().unwrap()]);
        (job, StandStill::begin(pids.collect()))
    }

    /// One job of each kind, which is tried once, and whose movers all stand still with bytes on their way.
    fn begins(&self, chain: &Chain<'_>) -> ([JobId; 4], StandStill) {
        let (old, share) = (&self.old, &self.share);
        let once = |job: JobMessage| {
            let retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
            old.publish(&JobMessage { retry, ..job })
        };
        let pull = once(self.pulled.backup(old, share, "pull"));
        let push = once(self.pushed.backup(old, share, "push"));
        let merge = once(chain.job_of(old, 1, "only"));
        for (job, step) in [(pull, "copy"), (push, "push"), (merge, "merge")] {
            old.is_moving(job, step);
        }
        // What is read is not held up by the bandwidth of writes.
        share.order(r#"{"bw_mb": 1, "delay_ms": 50}"#);
        let restore = once(old.restore_job(&self.damaged.bare, share, &self.damaged.backup));
        old.is_moving(restore, "restore");
        let stand_still = StandStill::begin(movers_of(&old.folder));
        share.heal();
        let jobs = [pull, push, merge, restore];
        for job in jobs {
            assert!(!old.heard.events_of(job).iter().any(|event| event.detail.is_final()), "a job has ended before");
        }
        (jobs, stand_still)
    }

    /// The other host's worker deletes what the three backups are based on, merges what is being merged, and backs up what is being restored.
    fn takes_over(&self, chain: &Chain<'_>) -> Completed {
        let (new, share) = (&self.new, &self.share);
        let chains = [&self.suspended, &self.pulled, &self.pushed].map(|running| running.deletion(new, share));
        let deletions = chains.into_iter().chain([chain.job_of(new, 1, "only")]).map(|job| new.publish(&job));
        let deletions: Vec<_> = deletions.collect();
        let backup = new.back_up(&self.damaged.bare, share, "off");
        for job in deletions {
            ended_well(new, job);
        }
        ended_well(new, backup)
    }
}

fn ended_well(fleet: &Fleet, job: JobId) -> Completed {
    let RunDetail::Completed(completed) = fleet.heard.end_of(job, TAKEN_OVER) else { panic!("it did not complete") };
    assert!(completed.warnings.is_empty() && completed.left_overs.is_empty(), "{completed:?}");
    completed
}

#[test]
fn who_stood_still_while_another_host_took_over_publishes_nothing_and_leaves_nothing() {
    let scene = Scene::new();
    let Scene { old, hung, share, suspended, pulled, pushed, damaged, .. } = &scene;
    let chain = Chain::new(old, share, &pulled.bare);
    share.order(r#"{"bw_mb": 1}"#);
    let (hanging, hung_up) = scene.hangs();
    let (jobs, stand_still) = scene.begins(&chain);
    assert!(pulled.bare.has_backup_job() && suspended.bare.has_backup_job());
    let newer = scene.takes_over(&chain).backup.unwrap();
    let looks = || {
        [pulled, pushed].iter().for_each(|running| running.nothing_is_there(share));
        assert_eq!(chain.left(), [0, 2]);
        let backups = [damaged.backup.backup_id, newer.backup_id].map(|id| id.to_string());
        assert!(share.entries_of(&damaged.bare.id).iter().all(|name| backups.contains(name)));
    };
    suspended.nothing_is_there(share);
    looks();

    drop((stand_still, hung_up));
    for job in jobs {
        let RunDetail::Failed(failed) = old.heard.end_of(job, JOB) else { panic!("it did not fail") };
        assert_eq!(failed.failure.code, "lease_lost", "{failed:#?}");
        assert!(failed.left_overs.is_empty(), "{failed:#?}");
    }
    looks();
    assert!(!pulled.bare.has_backup_job() && !pushed.bare.has_backup_job());
    damaged.is_still_damaged();

    // It goes on from there, on the old hosts as well.
    let again = ended_well(hung, hanging).backup.unwrap();
    assert_eq!((again.parent, again.number), (None, 2), "by another attempt: {again:?}");
    equal_to(&suspended.bare, share, &again);
    pulled.is_backed_up(old, share, "pull");
    pushed.is_backed_up(old, share, "push");
    old.restored(old.publish(&old.restore_job(&damaged.bare, share, &damaged.backup)));
    assert!(damaged.is_as_at_the_backup());
    drop(chain);
    let Scene { old, hung, new, share, suspended, pulled, pushed, damaged } = scene;
    let instances = [&suspended.bare, &pulled.bare, &pushed.bare, &damaged.bare];
    [old, hung, new].into_iter().for_each(|fleet| fleet.finish(&instances, &[&share]));
}
