//! libvirt's daemon is killed while jobs of every kind are at what they do with it, and another one is started: each run ends in one final
//! event, guests run and are thawed, nothing is left, and the next backups are right. The daemon is everybody's, so that this target is
//! alone in its laboratory while it runs: `scripts/lab up`, then `eval "$(scripts/lab env)"`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/damaged.rs"]
mod damaged;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/gate.rs"]
mod gate;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/image.rs"]
mod image;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/share.rs"]
mod share;
#[path = "support/slate.rs"]
mod slate;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, Completed, RunDetail};
use longshore::message::job::{AttachPart, BackupPart, InstancePart, NewVolumePart, RestoreNewPart};
use longshore::model::id::JobId;
use longshore::model::manifest::Consistency;

use damaged::Damaged;
use fleet::{Fleet, JOB, Settings};
use gate::{ATTACH, BEGIN, FREEZE, Gate, Keeps};
use image::{equal, holds};
use lab::{LabInstance, eventually, variable, virsh};
use share::Share;
use slate::process_of_qemu;

/// Longest time for a job that has to find out what became of what it had asked for.
const FOUND_OUT: Duration = Duration::from_secs(300);
/// Longest time for a guest to run and to be thawed once there is a daemon again.
const FREE: Duration = Duration::from_secs(60);

/// `scripts/lab libvirt kill` or `start`.
fn libvirt(verb: &str) {
    let output = Command::new(variable("LONGSHORE_LAB_TOOL")).args(["libvirt", verb]).output().unwrap();
    assert!(output.status.success(), "libvirt {verb}: {}", String::from_utf8_lossy(&output.stderr));
}

fn backup(fleet: &Fleet, instance: &LabInstance, share: &Share, transfer: &str) -> JobMessage {
    let backup = Some(BackupPart { transfer: Some(transfer.to_owned()), ..BackupPart::default() });
    JobMessage { backup, ..fleet.job(instance, share) }
}

/// It has completed, and left nothing.
fn ended_well(fleet: &Fleet, job: JobId) -> Completed {
    let RunDetail::Completed(completed) = fleet.heard.end_of(job, FOUND_OUT) else { panic!("it did not complete") };
    assert!(completed.left_overs.is_empty(), "{completed:?}");
    for warning in &completed.warnings {
        eprintln!("{job}: {warning}");
    }
    completed
}

fn image_of(share: &Share, backup: &BackupSummary, disk: &str) -> PathBuf {
    share.path.join(&backup.directory).join(format!("{disk}.qcow2"))
}

/// Bytes that a file of the share takes.
fn allocated(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |file| file.blocks() * 512)
}

/// A worker that has asked libvirt for something of an instance and was not told what came of it.
struct Untold {
    instance: LabInstance,
    gate: Gate,
    fleet: Fleet,
    share: Share,
}

impl Untold {
    fn new(host: &str, instance: LabInstance, procedure: u32, keeps: Keeps) -> Self {
        let gate = Gate::new(&instance.folder, procedure, keeps);
        let fleet = Fleet::with(host, Settings { libvirt_uri: gate.uri(), ..Settings::default() });
        let share = fleet.share();
        Self { instance, gate, fleet, share }
    }

    /// It asks in a backup, and `so` is what comes of that.
    fn begins(&self, quiesce: &str, so: impl Fn(&LabInstance) -> bool) -> JobId {
        let job = self.fleet.back_up(&self.instance, &self.share, quiesce);
        eventually("libvirt has done it", JOB, || self.gate.has_held() && so(&self.instance));
        job
    }

    /// The backup is made by another attempt, and the next one after it.
    fn ends_backed_up(self, job: JobId, quiesce: &str, consistency: Consistency) {
        let backup = ended_well(&self.fleet, job).backup.unwrap();
        let next = self.fleet.completed(self.fleet.back_up(&self.instance, &self.share, quiesce));
        assert_eq!((backup.consistency, next.consistency), (consistency, consistency), "{backup:?}");
        assert_eq!((next.parent, next.number), (Some(backup.backup_id), 2), "{next:?}");
        self.fleet.finish(&[&self.instance], &[&self.share]);
    }
}

/// One that has asked for a volume to become a disk of the running instance.
struct Attaching {
    untold: Untold,
    keeps: Keeps,
    backup: BackupSummary,
}

impl Attaching {
    fn new(keeps: Keeps) -> Self {
        let host = if keeps == Keeps::Answer { "attach-answer" } else { "attach-call" };
        let untold = Untold::new(host, LabInstance::bare_with("vda:qcow2:16"), ATTACH, keeps);
        let backup = untold.fleet.completed(untold.fleet.back_up(&untold.instance, &untold.share, "off"));
        Self { untold, keeps, backup }
    }

    fn begins(&self) -> JobId {
        let Untold { instance: bare, gate, fleet, share } = &self.untold;
        let by_name = InstancePart { id: None, name: Some(bare.name.clone()) };
        let attach = Some(AttachPart { instance: by_name, target: "vdb".to_owned(), bus: None });
        let path = bare.folder.join("new.raw").to_str().unwrap().to_owned();
        let part = RestoreNewPart {
            backup_id: self.backup.backup_id.to_string(),
            volume: Some(NewVolumePart { path, format: Some("raw".to_owned()), attach }),
            ..RestoreNewPart::default()
        };
        let job = JobMessage {
            kind: "restore-new".to_owned(),
            instance: Some(InstancePart { id: Some(bare.id.to_string()), name: None }),
            backup: None,
            restore_new: Some(part),
            ..fleet.job(bare, share)
        };
        let job = fleet.publish(&job);
        eventually("it attaches", JOB, || gate.has_held() && self.is_attached(&[]) == (self.keeps == Keeps::Answer));
        job
    }

    fn is_attached(&self, when: &[&str]) -> bool {
        let disks = virsh(&[&["domblklist", &self.untold.instance.name][..], when].concat());
        disks.lines().any(|line| line.contains("vdb") && line.ends_with("new.raw"))
    }

    /// Once, and it is what was backed up.
    fn ends_attached(self, job: JobId) {
        let told = ended_well(&self.untold.fleet, job).restore.unwrap();
        assert!(self.is_attached(&[]) && self.is_attached(&["--inactive"]));
        let Untold { instance: bare, fleet, share, .. } = self.untold;
        assert_eq!(told.attached_to.unwrap().id, bare.id);
        let both = fleet.completed(fleet.back_up(&bare, &share, "off"));
        assert_eq!(both.disks[1].content_root, told.volumes[0].content_root);
        fleet.finish(&[&bare], &[&share]);
    }
}

/// A worker with a pull, a push and a restore in place, all of which move bytes.
struct Moving {
    fleet: Fleet,
    share: Share,
    restored_from: Share,
    pulled: LabInstance,
    pushed: LabInstance,
    damaged: Damaged,
}

impl Moving {
    fn new() -> Self {
        let fleet = Fleet::start("libvirtd");
        let [share, restored_from] = ["libvirtd", "libvirtd-restore"].map(Share::faulty);
        let damaged = Damaged::new(&fleet, &restored_from);
        Self { fleet, share, restored_from, pulled: LabInstance::bare(), pushed: LabInstance::bare(), damaged }
    }

    fn begins(&self) -> [JobId; 3] {
        let Self { fleet, share, restored_from, pulled, pushed, damaged } = self;
        share.order(r#"{"bw_mb": 1}"#);
        let pull = fleet.publish(&backup(fleet, pulled, share, "pull"));
        let push = fleet.publish(&backup(fleet, pushed, share, "push"));
        // What is read is held up by no bandwidth: slow enough to be seen to move, and then hardly at all.
        restored_from.order(r#"{"delay_ms": 50}"#);
        let restore = fleet.publish(&fleet.restore_job(&damaged.bare, restored_from, &damaged.backup));
        fleet.is_moving(restore, "restore");
        restored_from.order(r#"{"delay_ms": 3000}"#);
        fleet.is_moving(pull, "copy");
        fleet.is_moving(push, "push");
        [pull, push, restore]
    }

    fn heal(&self) {
        self.share.heal();
        self.restored_from.heal();
    }

    /// Nothing of a job has come to its end yet.
    fn all_move(&self, jobs: &[JobId]) {
        assert!(self.pulled.has_backup_job() && self.pushed.has_backup_job());
        for job in jobs {
            assert!(!self.fleet.heard.events_of(*job).iter().any(|event| event.detail.is_final()), "it has ended");
        }
    }

    fn end(&self, [pull, push, restore]: [JobId; 3]) -> [BackupSummary; 2] {
        let backups = [pull, push].map(|job| ended_well(&self.fleet, job).backup.unwrap());
        ended_well(&self.fleet, restore);
        assert!(self.damaged.is_as_at_the_backup());
        self.damaged.has_no_other_files();
        assert!(!self.pulled.has_backup_job() && !self.pushed.has_backup_job());
        backups
    }

    /// All bytes are where they go, and only libvirt is missing.
    fn are_at_the_end_of_their_bytes(&self, jobs: [JobId; 3], written: &Path, bytes: u64) {
        let compares =
            |detail: &RunDetail| matches!(detail, RunDetail::Progress(progress) if progress.step == "compare");
        for job in [jobs[0], jobs[2]] {
            self.fleet.heard.of_run(job, "it compares", JOB, |event| compares(&event.detail));
        }
        eventually("QEMU has pushed all of it", JOB, || staged(written).iter().any(|image| allocated(image) >= bytes));
    }
}

impl Moving {
    /// The next backups of changes are right, and all points are.
    fn goes_on(self, firsts: &[BackupSummary; 2], seconds: &[BackupSummary; 2]) {
        let Self { fleet, share, restored_from, pulled, pushed, damaged } = self;
        assert_eq!(seconds[0].parent, Some(firsts[0].backup_id), "{seconds:?}");
        // Nobody could tell whether all of it had been pushed, so that another attempt has pushed everything.
        let reason = seconds[1].disks[0].full_reason.as_deref().unwrap_or_default();
        assert!(reason.contains("an earlier attempt has failed"), "{seconds:?}");
        for (number, (instance, transfer)) in [(&pulled, "pull"), (&pushed, "push")].into_iter().enumerate() {
            let (first, second) = (&firsts[number], &seconds[number]);
            instance.overwrite(0, 0x52, "1M");
            let third = fleet.completed(fleet.publish(&backup(&fleet, instance, &share, transfer)));
            assert_eq!((third.parent, third.disks[0].data_bytes), (Some(second.backup_id), 1 << 20), "{third:?}");
            instance.stop();
            for (target, format) in [("vda", "qcow2"), ("vdb", "raw")] {
                let reference = instance.folder.join(format!("{target}.reference.raw"));
                equal(&reference, "raw", &image_of(&share, first, target), "qcow2");
                let volume = instance.folder.join(format!("{target}.{format}"));
                equal(&volume, format, &image_of(&share, &third, target), "qcow2");
            }
            holds(&image_of(&share, second, "vda"), "qcow2", 0x51, "32M");
        }
        fleet.finish(&[&pulled, &pushed, &damaged.bare], &[&share, &restored_from]);
    }
}

/// The images of `vda` that are being made in that directory.
fn staged(instance: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(instance).unwrap().map(|entry| entry.unwrap().path());
    let is_staging = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".staging-");
    entries.filter(is_staging).map(|directory| directory.join("vda.qcow2")).collect()
}

#[test]
fn a_killed_daemon_costs_no_job_and_no_guest() {
    let moving = Moving::new();
    let freezing = Untold::new("freezing", LabInstance::guest(), FREEZE, Keeps::Answer);
    let beginning = Untold::new("beginning", LabInstance::bare(), BEGIN, Keeps::Answer);
    let attaching = [Keeps::Answer, Keeps::Call].map(Attaching::new);
    let untold = [&freezing, &beginning, &attaching[0].untold, &attaching[1].untold];
    let instances = [&moving.pulled, &moving.pushed].into_iter().chain(untold.map(|untold| &untold.instance));
    let words: Vec<_> = instances.map(|instance| format!("guest={},", instance.name)).collect();
    let qemus = || words.iter().map(|word| process_of_qemu(word)).collect::<Vec<_>>();
    let before = qemus();

    let moved = moving.begins();
    let attached = attaching.each_ref().map(Attaching::begins);
    let begun = beginning.begins("off", LabInstance::has_backup_job);
    let frozen = freezing.begins("require", LabInstance::is_frozen);
    moving.all_move(&moved);
    libvirt("kill");
    untold.iter().for_each(|untold| untold.gate.open());
    libvirt("start");
    assert_eq!(qemus(), before);
    moving.heal();
    let guest = &freezing.instance;
    let thawed = eventually("the guest is thawed", FREE, || guest.agent_answers() && !guest.is_frozen());
    eprintln!("thawed {thawed:?} after there was a daemon again");
    freezing.ends_backed_up(frozen, "require", Consistency::FileSystem);
    beginning.ends_backed_up(begun, "off", Consistency::Crash);
    attaching.into_iter().zip(attached).for_each(|(attaching, job)| attaching.ends_attached(job));
    let firsts = moving.end(moved);

    // Once more, on top of these, and nothing is left to be done but libvirt's part when there is a daemon again.
    moving.damaged.damage();
    [&moving.pulled, &moving.pushed].iter().for_each(|instance| instance.overwrite(0, 0x51, "32M"));
    let moved = moving.begins();
    moving.all_move(&moved);
    libvirt("kill");
    moving.heal();
    moving.are_at_the_end_of_their_bytes(moved, &moving.share.backups_of(&moving.pushed.id), 32 << 20);
    libvirt("start");
    let seconds = moving.end(moved);

    moving.goes_on(&firsts, &seconds);
}
