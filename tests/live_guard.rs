//! Real guards on a real libvirt with a real guest: what happens to a frozen guest and a pull job when the worker can't
//! look after them. Needs the laboratory: `scripts/lab up`, then `eval "$(scripts/lab env)"`.
//!
//! The worker is this test program, started again as [`the_worker`] with a guest to freeze; the test then kills or stops it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "support/lab.rs"]
mod lab;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::{LabInstance, eventually, guard_stands};
use longshore::failure::Code;
use longshore::host::guard::{GuardDuty, Guards, JobDuty, ProcessGuards, ScratchDuty};
use longshore::host::hypervisor::libvirt::Libvirt;
use longshore::host::hypervisor::{DomainJob, Hypervisor, PullBackup, PullDisk};
use longshore::model::id::InstanceId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};

const AGENT: Duration = Duration::from_secs(10);
const SECONDS: Duration = Duration::from_secs(10);
const GUARD_DONE: Duration = Duration::from_secs(90);
const LIMIT: u64 = 64 << 20;

fn guards() -> ProcessGuards {
    ProcessGuards::of_program(Path::new(env!("CARGO_BIN_EXE_longshore")), &lab::libvirt_uri())
}

fn duty(instance: InstanceId, folder: &Path, freeze_limit: Duration, scratch_limit_bytes: u64) -> GuardDuty {
    let scratch =
        ScratchDuty { files: vec![folder.join("vda.scratch")], limit_bytes: scratch_limit_bytes, reserve_bytes: 0 };
    let ours = DomainJob::Pull { socket: folder.join("pull.sock") };
    GuardDuty { instance, freeze_limit, job: Some(JobDuty { ours, was_running: true, scratch: Some(scratch) }) }
}

fn backup(folder: &Path) -> PullBackup {
    let disk = PullDisk { target: "vda".parse().unwrap(), scratch: folder.join("vda.scratch"), since: None };
    PullBackup { socket: folder.join("pull.sock"), disks: vec![disk], checkpoint: None }
}

/// Freezes, begins, and then never goes on: the part that the other tests start as a process of its own, with the instance
/// in `WORKER_INSTANCE`. As one test among the others, without that variable, there is nothing for it to do.
#[test]
fn the_worker() {
    let Ok(instance) = std::env::var("WORKER_INSTANCE") else { return };
    let instance: InstanceId = instance.parse().unwrap();
    let folder = PathBuf::from(lab::variable("WORKER_FOLDER"));
    let freeze_limit = Duration::from_secs(lab::variable("WORKER_FREEZE_LIMIT_SECONDS").parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let hypervisor = Libvirt::new(&lab::libvirt_uri());
        let mut guard = guards().arm(&duty(instance, &folder, freeze_limit, LIMIT)).await.unwrap();
        guard.beginning().await.unwrap();
        guard.freezing().await.unwrap();
        hypervisor.freeze(instance, AGENT).await.unwrap();
        hypervisor.begin_pull(instance, &backup(&folder)).await.unwrap();
        println!("\nfrozen");
        tokio::time::sleep(Duration::from_secs(600)).await;
        guard.disarm().await.unwrap();
    });
}

struct Worker(Child);

impl Worker {
    /// Returns when the guest is frozen and the job has begun.
    fn freezes(guest: &LabInstance, freeze_limit_seconds: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_worker", "--nocapture"])
            // By its home `lab down` finds a guard that outlives the test.
            .env("HOME", &guest.folder)
            .env("WORKER_INSTANCE", guest.id.to_string())
            .env("WORKER_FOLDER", &guest.folder)
            .env("WORKER_FREEZE_LIMIT_SECONDS", freeze_limit_seconds.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "frozen"), "the worker did not come to its freeze");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn when_the_worker_is_killed_the_frozen_guest_is_thawed_and_the_job_ends() {
    let guest = LabInstance::guest();
    let worker = Worker::freezes(&guest, 60);
    assert!(guest.is_frozen() && guest.has_backup_job() && guard_stands(guest.id));
    worker.signal(Signal::SIGKILL);
    let thawed = eventually("the guest is thawed", SECONDS, || !guest.is_frozen());
    let ended = eventually("the job is gone", SECONDS, || !guest.has_backup_job());
    println!("after SIGKILL: thawed in {thawed:?}, the job gone {ended:?} later");
    eventually("the guard is done", GUARD_DONE, || !guard_stands(guest.id));
    assert!(!guest.is_frozen() && !guest.folder.join("vda.scratch").exists());
}

#[test]
fn when_the_worker_hangs_the_guest_is_thawed_at_the_limit() {
    let guest = LabInstance::guest();
    let limit_seconds = 8;
    let worker = Worker::freezes(&guest, limit_seconds);
    worker.signal(Signal::SIGSTOP);
    assert!(guest.is_frozen(), "the limit has not passed yet");
    let limit = Duration::from_secs(limit_seconds.into());
    let thawed = eventually("the guest is thawed", limit + SECONDS, || !guest.is_frozen());
    println!("after SIGSTOP: thawed in {thawed:?} with a limit of {limit:?}");
    eventually("the job is gone", SECONDS, || !guest.has_backup_job());
    drop(worker);
    eventually("the guard is done", GUARD_DONE, || !guard_stands(guest.id));
}

#[tokio::test]
async fn scratch_at_its_limit_ends_the_job_and_the_guest_runs_on() {
    let bare = LabInstance::bare();
    let hypervisor = Libvirt::new(&lab::libvirt_uri());
    let mut guard = guards().arm(&duty(bare.id, &bare.folder, AGENT, 4 << 20)).await.unwrap();
    hypervisor.begin_pull(bare.id, &backup(&bare.folder)).await.unwrap();
    assert_eq!(guard.fired().await.unwrap(), None);
    // What the guest overwrites is copied before. The zeros among it take no room: about 5 MiB are left.
    bare.overwrite(0, 7, "7M");
    eventually("the job is gone", SECONDS, || !bare.has_backup_job());
    assert_eq!(guard.fired().await.unwrap().map(|failure| failure.code), Some(Code::ScratchFull));
    assert_eq!(lab::virsh(&["domstate", &bare.name]), "running");
    guard.disarm().await.unwrap();
    assert!(!guard_stands(bare.id));
}

/// On two threads, since the waiting here blocks one and leaving a guard goes on beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_job_outlives_our_guard() {
    let bare = LabInstance::bare();
    let hypervisor = Libvirt::new(&lab::libvirt_uri());
    let theirs = PullBackup { socket: bare.folder.join("theirs.sock"), ..backup(&bare.folder) };
    let guard = guards().arm(&duty(bare.id, &bare.folder, AGENT, LIMIT)).await.unwrap();
    hypervisor.begin_pull(bare.id, &theirs).await.unwrap();
    let pid = guard.leave(Box::pin(async {}));
    let guard = Pid::from_raw(pid.try_into().unwrap());
    assert_eq!(getsid(Some(guard)).unwrap(), guard, "a signal to our group or session does not reach it");
    eventually("the guard is done", GUARD_DONE, || !guard_stands(bare.id));
    assert!(bare.has_backup_job());
}

#[tokio::test]
async fn a_disarmed_guard_leaves_nothing_and_the_next_can_be_armed() {
    let bare = LabInstance::bare();
    for _ in 0..2 {
        let mut guard = guards().arm(&duty(bare.id, &bare.folder, AGENT, LIMIT)).await.unwrap();
        assert!(guard_stands(bare.id));
        assert_eq!(guard.fired().await.unwrap(), None);
        guard.disarm().await.unwrap();
        assert!(!guard_stands(bare.id));
    }
}

#[tokio::test]
async fn a_guard_that_cannot_reach_libvirt_is_not_armed() {
    let program = Path::new(env!("CARGO_BIN_EXE_longshore"));
    let guards = ProcessGuards::of_program(program, "qemu+unix:///system?socket=/nonexistent");
    let instance = InstanceId::draw();
    let failure = guards.arm(&duty(instance, Path::new("/nowhere"), AGENT, LIMIT)).await.map(drop).unwrap_err();
    assert_eq!(failure.code, Code::GuardFailed, "{failure:#}");
    eventually("the process is gone", SECONDS, || !guard_stands(instance));
}
