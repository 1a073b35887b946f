//! One line of the table: a job on a share, what goes wrong with it, and what must have come of it everywhere one can look.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use longshore::message::event::{BackupSummary, RunDetail};
use longshore::message::job::{BackupPart, JobMessage, RetryPart};
use longshore::model::id::JobId;
use longshore::model::manifest::{ChangesFoundBy, Proof, TransferUsed};

use crate::fleet::{Fleet, JOB};
use crate::image::equal;
use crate::lab::{LabInstance, eventually, guard_stands, virsh};
use crate::nas::{Nas, WRONG, by};
use crate::share::Share;
use crate::slate::{everything_in, mounts_below, processes_of};
use crate::times;

/// Jobs that may be over before what goes wrong with them has begun.
const TRIES_MAX: u32 = 3;

/// How long the server of a push is away: several times what the mounts of these tests wait for an answer.
const AWAY: Duration = Duration::from_secs(20);

/// Longest time for what a job releases last to be gone.
const SOON: Duration = Duration::from_secs(60);

/// How the bytes get from the instance to the share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pull,
    Push,
    Stopped,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Pull => "pull",
            Mode::Push => "push",
            Mode::Stopped => "stopped",
        }
    }

    /// What the job asks for: a stopped instance has only one way.
    fn transfer(self) -> Option<String> {
        (self != Mode::Stopped).then(|| self.name().to_owned())
    }

    /// What the backup must say of itself.
    fn proven(self) -> (TransferUsed, Proof) {
        match self {
            Mode::Pull => (TransferUsed::Pull, Proof::Compared),
            Mode::Push => (TransferUsed::Push, Proof::Structure),
            Mode::Stopped => (TransferUsed::Stopped, Proof::Compared),
        }
    }

    /// The step in which bytes are on their way.
    fn step(self) -> &'static str {
        match self {
            Mode::Pull | Mode::Stopped => "copy",
            Mode::Push => "push",
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// Nor does anything here: the guest has written since the backup before, of which the rest is left to it.
    Changed,
    ReadOnly,
    WrongName,
    WrongPassword,
    /// The server is stopped while bytes are on their way, and started when the instance is free again; that of a push after
    /// [`AWAY`] at the latest.
    ServerStopped,
    /// Somebody else takes all the room while bytes are on their way, and gives it back when the instance is free again.
    ShareFull,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Nothing => "nothing",
            Fault::Changed => "changed",
            Fault::ReadOnly => "read-only",
            Fault::WrongName => "wrong-name",
            Fault::WrongPassword => "wrong-password",
            Fault::ServerStopped => "server-stopped",
            Fault::ShareFull => "share-full",
        }
    }

    /// The codes that say so; none where the job completes.
    fn codes(self) -> &'static [&'static str] {
        match self {
            Fault::Nothing | Fault::Changed => &[],
            Fault::ReadOnly => &["repository_read_only"],
            Fault::WrongName => &["repository_not_found"],
            Fault::WrongPassword => &["mount_denied"],
            // A client that waits for its server for long keeps the lease's counter from being written as well.
            Fault::ServerStopped => &["repository_io", "lease_lost"],
            Fault::ShareFull => &["repository_full"],
        }
    }
}

/// A host with both kinds of instance.
pub struct Host {
    pub fleet: Fleet,
    pub running: LabInstance,
    pub stopped: LabInstance,
}

/// Where the backups of a host go.
pub struct Place<'a> {
    pub nas: Nas,
    pub host: &'a Host,
    pub good: Share,
    pub small: Option<Share>,
    pub read_only: Share,
}

impl Place<'_> {
    fn instance(&self, mode: Mode) -> &LabInstance {
        match mode {
            Mode::Pull | Mode::Push => &self.host.running,
            Mode::Stopped => &self.host.stopped,
        }
    }

    fn share(&self, fault: Fault) -> &Share {
        match fault {
            Fault::ReadOnly => &self.read_only,
            Fault::ShareFull => self.small(),
            _ => &self.good,
        }
    }

    fn small(&self) -> &Share {
        self.small.as_ref().expect("a share with little room")
    }

    fn job(&self, mode: Mode, fault: Fault) -> JobMessage {
        let mut job = self.host.fleet.job(self.instance(mode), self.share(fault));
        // What goes wrong does so while all bytes are on their way.
        let full = !matches!(fault, Fault::Nothing | Fault::Changed);
        let stored = full.then(|| "full".to_owned());
        job.backup = Some(BackupPart { mode: stored, transfer: mode.transfer(), ..BackupPart::default() });
        job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
        match fault {
            Fault::WrongName => job.repository.address = self.nas.part("nowhere").address,
            Fault::WrongPassword => job.repository.credentials = Some(by(WRONG)),
            _ => {}
        }
        job
    }

    /// Does the job, and answers its line of the transcript; an error is the same with what is not as it should be.
    pub fn try_out(&self, mode: Mode, fault: Fault) -> Result<String, String> {
        let began = Instant::now();
        if fault == Fault::Changed {
            self.change();
        }
        let Some(job) = (0..TRIES_MAX).find_map(|_| self.publish_and_strike(mode, fault)) else {
            return Err(format!("{mode:?} {fault:?}: {TRIES_MAX} jobs had ended before anything could go wrong"));
        };
        let end = self.host.fleet.heard.end_of(job, JOB);
        let seconds = began.elapsed().as_secs_f64();
        let outcome = match &end {
            RunDetail::Failed(failed) => failed.failure.code.clone(),
            other => other.word().to_owned(),
        };
        let (nas, mode_name, fault_name) = (self.nas.name(), mode.name(), fault.name());
        let share = times::of_share(&self.host.fleet, job);
        let line = format!("{nas} {mode_name} {fault_name} -> {outcome} in {seconds:.1} s{share}");
        let mut wrong = match (&end, fault.codes()) {
            // A push may be over, in this host's cache, when the server stops, and is whole once it is back.
            (RunDetail::Completed(completed), codes)
                if completed.warnings.is_empty()
                    && (codes.is_empty() || (mode, fault) == (Mode::Push, Fault::ServerStopped)) =>
            {
                let backup = completed.backup.as_ref().expect("a backup job makes a backup");
                let mut wrong = self.proven(mode, backup);
                wrong.extend((fault == Fault::Changed).then(|| only_changed(backup)).flatten());
                wrong
            }
            (RunDetail::Failed(failed), codes)
                if codes.contains(&failed.failure.code.as_str()) && failed.left_overs.is_empty() =>
            {
                self.told_in_a_letter(job, &failed.failure.code)
            }
            _ => vec![format!("{end:#?}")],
        };
        wrong.extend(self.left(mode, fault));
        if wrong.is_empty() { Ok(line) } else { Err(format!("{line}\n{}", wrong.join("\n"))) }
    }

    /// The guest writes, and so does whoever keeps what its disk must read as.
    fn change(&self) {
        self.host.running.overwrite(0, CHANGED, "256k");
        // It is a link to what nobody can write to here.
        let reference = self.host.running.folder.join("vda.reference.raw");
        let mut content = fs::read(&reference).unwrap();
        content[..CHANGED_BYTES].fill(CHANGED);
        fs::remove_file(&reference).unwrap();
        fs::write(&reference, content).unwrap();
    }

    /// The job, if what goes wrong with it did so in time: disks of this size are written within a second or two.
    fn publish_and_strike(&self, mode: Mode, fault: Fault) -> Option<JobId> {
        let job = self.host.fleet.publish(&self.job(mode, fault));
        let in_time = self.strike(mode, fault, job);
        if !in_time {
            self.host.fleet.completed(job);
        }
        in_time.then_some(job)
    }

    /// Whether it went wrong while bytes were on their way.
    fn strike(&self, mode: Mode, fault: Fault, job: JobId) -> bool {
        let moves = || self.host.fleet.moves_before_its_end(job, mode.step());
        match fault {
            Fault::ServerStopped => {
                if !moves() {
                    return false;
                }
                self.nas.stop_server();
                match mode {
                    Mode::Push => self.is_away_for_a_while(mode),
                    Mode::Pull | Mode::Stopped => self.is_let_go(mode),
                }
                self.nas.start_server();
            }
            Fault::ShareFull => {
                if !moves() {
                    return false;
                }
                let filling = self.small().path.join("filling");
                fill(&filling);
                self.is_let_go(mode);
                fs::remove_file(&filling).unwrap();
            }
            Fault::Nothing | Fault::Changed | Fault::ReadOnly | Fault::WrongName | Fault::WrongPassword => {}
        }
        true
    }

    /// What tells others that the job is over can't be written to the share before it is back, so it is looked for here.
    fn is_let_go(&self, mode: Mode) {
        let instance = self.instance(mode);
        eventually("the instance is let go", JOB, || !instance.has_backup_job());
    }

    /// An image that QEMU opens on NFS 4 at that moment is waited for in the kernel until the server is back, and libvirt's one thread
    /// for the events of all domains waits as well: the jobs of the other table too.
    fn is_away_for_a_while(&self, mode: Mode) {
        let (instance, began) = (self.instance(mode), Instant::now());
        while instance.has_backup_job() && began.elapsed() < AWAY {
            std::thread::sleep(LOOK);
        }
    }

    /// What is published, read past the mount, is what the disks hold.
    fn proven(&self, mode: Mode, summary: &BackupSummary) -> Vec<String> {
        let found = (summary.transfer, summary.verification);
        let backup = self.good.path.join(&summary.directory);
        for (target, reference) in [("vda", "vda.reference.raw"), ("vdb", "vdb.reference.raw")] {
            let reference = self.instance(mode).folder.join(reference);
            equal(&reference, "raw", &backup.join(format!("{target}.qcow2")), "qcow2");
        }
        if found == mode.proven() { Vec::new() } else { vec![format!("the backup says {found:?}")] }
    }

    fn told_in_a_letter(&self, job: JobId, code: &str) -> Vec<String> {
        let letter = self.host.fleet.heard.letter_of(job, JOB);
        if letter.failure.code == code { Vec::new() } else { vec![format!("{letter:#?}")] }
    }

    /// What the job has left on the host or on the share, and should not have.
    fn left(&self, mode: Mode, fault: Fault) -> Vec<String> {
        let (instance, folder) = (self.instance(mode), &self.host.fleet.folder);
        let mut left = Vec::new();
        let began = Instant::now();
        while !processes_of(&folder.join("run")).is_empty() && began.elapsed() < SOON {
            std::thread::sleep(LOOK);
        }
        left.extend(processes_of(&folder.join("run")).into_iter().map(|line| format!("a process is left: {line}")));
        left.extend(mounts_below(&folder.join("run")).into_iter().map(|point| format!("mounted is still {point}")));
        for directory in ["run", "scratch"] {
            left.extend(
                everything_in(&folder.join(directory)).into_iter().map(|path| format!("on the host is left {path}")),
            );
        }
        if instance.has_backup_job() || guard_stands(instance.id) {
            left.push("a libvirt job or its guard is left".to_owned());
        }
        let state = virsh(&["domstate", &instance.name]);
        if state != if mode == Mode::Stopped { "shut off" } else { "running" } {
            left.push(format!("the instance is {state}"));
        }
        let is_staging = |name: &String| name.starts_with('.');
        let entries = self.share(fault).entries_of(&instance.id);
        left.extend(entries.into_iter().filter(is_staging).map(|name| format!("on the share is left {name}")));
        left
    }
}

/// What is not as it has to be with a backup of no more than what [`Place::change`] wrote.
fn only_changed(backup: &BackupSummary) -> Option<String> {
    let vda = &backup.disks[0];
    let found = (backup.parent.is_some(), vda.found_by, vda.data_bytes);
    let right = (true, Some(ChangesFoundBy::Bitmap), CHANGED_BYTES as u64);
    (found != right).then(|| format!("of what has changed the backup says {backup:?}"))
}

/// What the guest writes, and how much of it.
const CHANGED: u8 = 0x5a;
const CHANGED_BYTES: usize = 256 * 1024;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Takes all the room of the file system on which `path` is, half of it at a time: somebody else takes of it as well.
fn fill(path: &Path) {
    let file = fs::File::create(path).unwrap();
    let mut filled = 0;
    for _ in 0..FILLED_AFTER {
        let room = nix::sys::statvfs::fstatvfs(&file).unwrap();
        if room.blocks_available() == 0 {
            return;
        }
        let bytes = (room.blocks_available().div_ceil(2) * room.fragment_size()).cast_signed();
        match nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), filled, bytes) {
            Ok(()) => filled += bytes,
            Err(nix::errno::Errno::ENOSPC) => {}
            Err(errno) => panic!("{}: {errno}", path.display()),
        }
    }
    panic!("`{}` was not filled", path.display());
}

/// Halves of any file system's room, and some that others took first.
const FILLED_AFTER: u32 = 200;
