//! The guard's watching and rescue on the fake hypervisor, with a clock that the test turns.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fake::FakeGuards;
use super::{Guard, GuardDuty, Guards, JobDuty, ScratchDuty};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::fake::{FakeAgent, FakeHypervisor, FakeInstance};
use crate::host::hypervisor::{DomainJob, Hypervisor, PullBackup, PullDisk};
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

const AGENT: Duration = Duration::from_secs(5);
const FREEZE_LIMIT: Duration = Duration::from_secs(30);
/// Longest time from one try to the end of the next, late ones.
const LONGEST_TRY: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SOCKET: &str = "/scratch/ours.sock";

struct Scene {
    hypervisor: FakeHypervisor,
    guards: FakeGuards,
    instance: InstanceId,
    scratch: PathBuf,
    scratch_reserve_bytes: u64,
}

impl Scene {
    fn new() -> Self {
        let instance = FakeInstance::running("web").disk("vda", 1 << 30);
        let id = instance.id();
        let hypervisor = FakeHypervisor::new().with_instance(instance);
        let guards = FakeGuards::new(hypervisor.clone());
        let scratch = std::env::temp_dir().join("longshore-no-such-scratch");
        Self { hypervisor, guards, instance: id, scratch, scratch_reserve_bytes: 0 }
    }

    async fn armed(&self) -> Box<dyn Guard> {
        let scratch = ScratchDuty {
            files: vec![self.scratch.clone()],
            limit_bytes: 1 << 20,
            reserve_bytes: self.scratch_reserve_bytes,
        };
        let ours = DomainJob::Pull { socket: SOCKET.into() };
        self.armed_for(JobDuty { ours, was_running: true, scratch: Some(scratch) }).await
    }

    async fn armed_for(&self, job: JobDuty) -> Box<dyn Guard> {
        let duty = GuardDuty { instance: self.instance, freeze_limit: FREEZE_LIMIT, job: Some(job) };
        self.guards.arm(&duty).await.unwrap()
    }

    async fn begin(&self, socket: &str) {
        let disk = PullDisk { target: "vda".parse().unwrap(), scratch: self.scratch.clone(), since: None };
        let backup = PullBackup { socket: socket.into(), disks: vec![disk], checkpoint: None };
        self.hypervisor.begin_pull(self.instance, &backup).await.unwrap();
    }

    /// Until no guard stands any more; how long that took.
    async fn guards_are_done(&self) -> Duration {
        let began = Instant::now();
        while self.guards.standing() > 0 {
            assert!(began.elapsed() < Duration::from_secs(2 * 60 * 60), "a guard stays for ever");
            sleep(Duration::from_millis(100)).await;
        }
        began.elapsed()
    }

    /// Until all is as it was, or panics with what isn't.
    async fn clean_within(&self, limit: Duration) {
        let began = Instant::now();
        while !self.hypervisor.is_clean() {
            assert!(began.elapsed() <= limit, "after {limit:?}: {:?}", self.hypervisor.leftovers());
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_goes_well_leaves_the_guard_nothing_to_do() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.begin(SOCKET).await;
    assert_eq!(guard.fired().await.unwrap(), None);
    scene.hypervisor.thaw(scene.instance, AGENT).await.unwrap();
    guard.thawed().await.unwrap();

    sleep(FREEZE_LIMIT * 10).await;
    assert_eq!(guard.fired().await.unwrap(), None, "the limit is for the freeze, not for the copying");
    assert!(scene.hypervisor.job(scene.instance).is_some());
    guard.disarm().await.unwrap();
    assert!(scene.guards_are_done().await < Duration::from_secs(1));
    assert!(scene.hypervisor.job(scene.instance).is_some(), "a disarmed guard ends no job");
}

#[tokio::test(start_paused = true)]
async fn when_the_worker_goes_while_the_guest_is_frozen_it_is_thawed_and_the_job_ends() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.begin(SOCKET).await;
    drop(guard);
    scene.clean_within(Duration::from_secs(2)).await;
    scene.guards_are_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_hangs_is_not_waited_for_past_the_limit() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.begin(SOCKET).await;
    sleep(FREEZE_LIMIT - Duration::from_secs(1)).await;
    assert!(scene.hypervisor.frozen(scene.instance));
    sleep(Duration::from_secs(3)).await;
    assert!(scene.hypervisor.is_clean(), "{:?}", scene.hypervisor.leftovers());

    assert_eq!(guard.thawed().await.unwrap_err().code, Code::GuardFired, "the worker wakes up and is told");
    assert_eq!(guard.freezing().await.unwrap_err().code, Code::GuardFired, "and can't freeze again under this guard");
    guard.disarm().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_freezes_after_its_worker_died_is_thawed() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.late_freeze(scene.instance, Duration::from_secs(20));
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap_err();
    drop(guard);
    scene.clean_within(Duration::from_secs(25)).await;
    scene.guards_are_done().await;
    assert!(scene.hypervisor.is_clean());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_back_late_is_thawed_then() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.set_agent(scene.instance, FakeAgent::Silent);
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap_err();
    assert_eq!(guard.leave(Box::pin(async {})), super::fake::FAKE_PID);
    sleep(Duration::from_secs(30 * 60)).await;
    assert_eq!(scene.guards.standing(), 1, "it goes on while the guest may be frozen");
    scene.hypervisor.set_agent(scene.instance, FakeAgent::Answering);
    assert!(scene.hypervisor.frozen(scene.instance));
    scene.clean_within(LONGEST_TRY).await;
    scene.guards_are_done().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_away_for_a_day_is_thawed_when_it_comes_back() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.hypervisor.set_agent(scene.instance, FakeAgent::Silent);
    drop(guard);
    sleep(DAY).await;
    assert!(scene.hypervisor.frozen(scene.instance) && scene.guards.standing() == 1, "it never gives up");
    scene.hypervisor.set_agent(scene.instance, FakeAgent::Answering);
    scene.clean_within(LONGEST_TRY).await;
    scene.guards_are_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_stands_when_libvirt_comes_back_after_a_day_is_ended() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.beginning().await.unwrap();
    scene.begin(SOCKET).await;
    scene.hypervisor.hang("domain_job");
    drop(guard);
    sleep(DAY).await;
    assert_eq!(scene.guards.standing(), 1, "it never gives up");
    scene.hypervisor.set_state(scene.instance, PowerState::PausedByIoError);
    scene.hypervisor.let_go("domain_job");
    scene.clean_within(LONGEST_TRY).await;
    assert!(scene.hypervisor.guest_can_write(scene.instance));
    scene.guards_are_done().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_gone_has_nothing_left_to_do() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.set_agent(scene.instance, FakeAgent::Silent);
    drop(guard);
    sleep(DAY).await;
    scene.hypervisor.remove(scene.instance);
    assert!(scene.guards_are_done().await < LONGEST_TRY + super::SETTLE * 2);
}

#[tokio::test(start_paused = true)]
async fn a_pause_from_before_the_begin_is_not_ours_to_end() {
    let scene = Scene::new();
    let guard = scene.armed().await;
    scene.hypervisor.set_state(scene.instance, PowerState::PausedByIoError);
    drop(guard);
    scene.guards_are_done().await;
    assert!(!scene.hypervisor.guest_can_write(scene.instance));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_shut_off_has_nothing_to_thaw() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.hypervisor.set_state(scene.instance, PowerState::ShutOff);
    drop(guard);
    assert!(scene.guards_are_done().await < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_takes_effect_after_its_worker_died_is_ended() {
    let scene = Scene::new();
    drop(scene.armed().await);
    sleep(Duration::from_secs(30)).await;
    scene.begin(SOCKET).await;
    scene.clean_within(Duration::from_secs(5)).await;
    scene.guards_are_done().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_with_another_socket_is_left_alone() {
    let scene = Scene::new();
    let foreign = DomainJob::Pull { socket: "/elsewhere/theirs.sock".into() };
    scene.hypervisor.begin_foreign_job(scene.instance, foreign.clone());
    drop(scene.armed().await);
    scene.guards_are_done().await;
    assert_eq!(scene.hypervisor.job(scene.instance), Some(foreign));
}

#[tokio::test(start_paused = true)]
async fn libvirt_that_fails_for_a_while_is_asked_again() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.begin(SOCKET).await;
    for call in ["thaw", "domain_job"] {
        scene.hypervisor.fail(call, 20, Failure::new(Code::HypervisorUnavailable, "libvirt restarts"));
    }
    scene.hypervisor.hang("abort_job");
    drop(guard);
    sleep(Duration::from_secs(60)).await;
    assert!(!scene.hypervisor.frozen(scene.instance), "a job that can't be ended does not keep the guest frozen");
    scene.hypervisor.let_go("abort_job");
    scene.clean_within(Duration::from_secs(30)).await;
    scene.guards_are_done().await;
}

#[tokio::test]
async fn scratch_at_its_limit_ends_the_job_and_the_guest_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene { scratch: folder.path().join("vda"), ..Scene::new() };
    let mut guard = scene.armed().await;
    scene.begin(SOCKET).await;
    std::fs::write(&scene.scratch, vec![1; 512 << 10]).unwrap();
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(guard.fired().await.unwrap(), None, "half of the limit is allowed");

    std::fs::write(&scene.scratch, vec![1; 900 << 10]).unwrap();
    scene.clean_within(Duration::from_secs(10)).await;
    assert_eq!(guard.fired().await.unwrap().unwrap().code, Code::ScratchFull);
    assert!(scene.hypervisor.guest_can_write(scene.instance));
    guard.disarm().await.unwrap();
}

#[tokio::test]
async fn a_file_system_that_runs_full_ends_the_job_and_a_guest_that_was_paused_by_it_runs_on() {
    let scene = Scene { scratch_reserve_bytes: u64::MAX, ..Scene::new() };
    scene.begin(SOCKET).await;
    scene.hypervisor.set_state(scene.instance, PowerState::PausedByIoError);
    let mut guard = scene.armed().await;
    guard.beginning().await.unwrap();
    scene.clean_within(Duration::from_secs(10)).await;
    assert_eq!(guard.fired().await.unwrap().unwrap().code, Code::ScratchFull);
    assert!(scene.hypervisor.guest_can_write(scene.instance));
    guard.disarm().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn scratch_that_cannot_be_measured_is_not_trusted() {
    let scene = Scene { scratch: "/longshore/no/such/directory/vda".into(), ..Scene::new() };
    let mut guard = scene.armed().await;
    scene.begin(SOCKET).await;
    scene.clean_within(Duration::from_secs(15)).await;
    assert_eq!(guard.fired().await.unwrap().unwrap().code, Code::ScratchFull);
    guard.disarm().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_fired_goes_on_until_it_is_told_otherwise() {
    let scene = Scene::new();
    let mut guard = scene.armed().await;
    guard.freezing().await.unwrap();
    sleep(FREEZE_LIMIT * 10).await;
    // The worker's freeze, and its begin, come about long after the guard has fired and all was well.
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    scene.begin(SOCKET).await;
    scene.clean_within(Duration::from_secs(10)).await;
    assert_eq!(guard.thawed().await.unwrap_err().code, Code::GuardFired);
    scene.hypervisor.freeze(scene.instance, AGENT).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert!(scene.hypervisor.frozen(scene.instance), "after it was told thawed, a freeze is somebody else's");
    scene.hypervisor.thaw(scene.instance, AGENT).await.unwrap();
    guard.disarm().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_was_left_stays_while_a_call_is_late() {
    let scene = Scene::new();
    let guard = scene.armed().await;
    let (over, late) = tokio::sync::oneshot::channel::<()>();
    guard.leave(Box::pin(async { drop(late.await) }));
    sleep(Duration::from_secs(30 * 60)).await;
    scene.begin(SOCKET).await;
    scene.clean_within(Duration::from_secs(10)).await;
    assert_eq!(scene.guards.standing(), 1);
    over.send(()).unwrap();
    scene.guards_are_done().await;
}
