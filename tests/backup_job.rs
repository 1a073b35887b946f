//! The backup job against a host in memory: everything that has left guests frozen, shares littered or false backups listed
//! elsewhere is done to it here, and then the world is looked at. Time is paused, so that two minutes pass at once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "backup_job/incremental.rs"]
mod incremental;
#[path = "backup_job/push.rs"]
mod push;
#[path = "backup_job/world.rs"]
mod world;

use std::time::Duration;

use longshore::failure::{Code, Failure, Remains};
use longshore::host::hypervisor::fake::FakeInstance;
use longshore::host::hypervisor::{DomainJob, GuestFileSystem, GuestInfo, Hypervisor};
use longshore::model::instance::PowerState;
use longshore::model::job::{BackupSpec, Quiesce, Verification};
use longshore::model::manifest::{Consistency, Proof, TransferUsed};
use longshore::saga::{End, Stopper};
use world::{SHARE, World, completed, failed, running, stopped};

fn quiesced(quiesce: Quiesce) -> BackupSpec {
    BackupSpec { quiesce, ..BackupSpec::default() }
}

#[tokio::test(start_paused = true)]
async fn a_running_instance_is_frozen_for_the_moment_and_its_backup_published() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    let result = completed(&world.run().await);
    let manifest = result.manifest;
    assert_eq!(world.movers.published(SHARE), std::slice::from_ref(&manifest));
    assert_eq!((manifest.number, manifest.transfer), (1, TransferUsed::Pull));
    assert_eq!(manifest.quiesce.consistency, Consistency::FileSystem);
    assert!(manifest.quiesce.frozen_ms.is_some() && manifest.quiesce.reason.is_none(), "{:?}", manifest.quiesce);
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), Some(true));
    assert_eq!(manifest.verification, Proof::Compared);
    let records: Vec<_> = manifest.records.iter().map(|record| record.file.as_str()).collect();
    assert_eq!(records, ["agent.json", "domain.xml"]);
    assert_eq!(manifest.disks.iter().map(|disk| disk.file.as_str()).collect::<Vec<_>>(), ["vda.qcow2", "vdb.qcow2"]);
    let progress = *world.progress.borrow();
    assert!(progress.step == "compare" && progress.done_bytes == progress.total_bytes, "{progress:?}");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_instance_is_backed_up_from_its_volumes_and_never_touched() {
    let world = World::of(stopped(), quiesced(Quiesce::Require));
    let manifest = completed(&world.run().await).manifest;
    assert_eq!((manifest.transfer, manifest.instance_state), (TransferUsed::Stopped, PowerState::ShutOff));
    assert!(manifest.taken_at < manifest.finished_at, "the moment is that from which its volumes had to stand still");
    assert_eq!(manifest.quiesce.consistency, Consistency::Crash);
    assert!(manifest.quiesce.reason.unwrap().contains("shut off"));
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), None);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn the_nvram_is_recorded_a_missing_one_is_a_warning_and_an_unreadable_one_fails_the_backup() {
    let (mut instance, directory) = (running(), tempfile::tempdir().unwrap());
    let nvram = directory.path().join("web_VARS.fd");
    instance = instance.nvram(&nvram);
    let world = World::of(instance.clone(), BackupSpec::default());
    let warnings = completed(&world.run().await).manifest.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("web_VARS.fd")), "{warnings:?}");
    std::fs::create_dir(&nvram).unwrap();
    let world = World::of(instance, BackupSpec::default());
    assert_eq!(failed(&world.run().await).code, Code::HostIo);
    world.assert_clean().await;
    std::fs::remove_dir(&nvram).unwrap();
    std::fs::write(&nvram, b"variables").unwrap();
    let manifest = completed(&world.run().await).manifest;
    let record = manifest.records.iter().find(|record| record.file == "nvram").unwrap();
    assert_eq!((record.bytes, record.blake3.as_str()), (9, blake3::hash(b"variables").to_hex().as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_share_that_fills_up_during_the_copy_hurts_the_job_only() {
    let world = World::of(running(), quiesced(Quiesce::Prefer));
    world.movers.fail("copy", 1, Failure::new(Code::RepositoryFull, "no space"));
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::RepositoryFull, Some("copy")));
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn too_little_room_is_seen_before_the_guest_is_touched() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.movers.repository(SHARE, |share| share.free_bytes = 1 << 20);
    assert_eq!(failed(&world.run().await).code, Code::RepositoryFull);
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), None);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_hangs_times_out_and_the_guest_is_never_touched() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.movers.hang("open");
    assert_eq!(failed(&world.run().await).code, Code::MountTimedOut);
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), None);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_unmount_after_the_commit_is_a_warning() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.fail("close", 9, Failure::new(Code::RepositoryIo, "target is busy"));
    let outcome = world.run().await;
    completed(&outcome);
    assert!(outcome.warnings.iter().any(|warning| warning.text.contains("busy")), "{outcome:?}");
    assert_eq!(world.movers.published(SHARE).len(), 1);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_share_that_dies_under_the_copy_stalls_the_job_and_not_the_guest() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    for word in ["copy", "discard", "release", "close"] {
        world.movers.hang(word);
    }
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::Stalled);
    // What the dead share holds can't be removed now, and is named.
    let left: Vec<_> = outcome.left_over.iter().map(|left| left.step.as_str()).collect();
    assert_eq!(left, ["lease", "staging"]);
    assert!(world.hypervisor.is_clean() && world.movers.running().is_empty());
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_comes_late_is_thawed() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.late_freeze(world.instance, Duration::from_secs(40));
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::AgentSilent, Some("moment")));
    world.assert_clean().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.hypervisor.guest_can_write(world.instance), "the late freeze was missed");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_confirm_its_thaw_ends_the_job_and_is_left_to_the_guard() {
    let world = World::of(running(), quiesced(Quiesce::Prefer));
    world.hypervisor.hang("thaw");
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::GuestMaybeFrozen);
    assert!(outcome.left_over.iter().any(|left| left.step == "moment"), "{outcome:?}");
    assert!(world.hypervisor.frozen(world.instance) && world.guards.standing() == 1);
    assert_eq!(world.hypervisor.job(world.instance), None, "the pull job is ended all the same");
    world.assert_nothing_published();
    world.hypervisor.let_go("thaw");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_hangs_while_the_guest_is_frozen_is_given_up_within_the_freeze_limit() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.hang("begin_pull");
    let limit = world.settings.freeze_limit;
    let run = world.run();
    let frozen_for = async {
        world.until(|world| world.hypervisor.frozen(world.instance)).await;
        let since = tokio::time::Instant::now();
        world.until(|world| !world.hypervisor.frozen(world.instance)).await;
        let frozen_for = since.elapsed();
        // The begin comes about when nobody waits for it any more, and its job has to go as well.
        world.until(|world| !world.hypervisor.stuck_calls().is_empty()).await;
        world.hypervisor.let_go("begin_pull");
        assert!(world.hypervisor.job(world.instance).is_some());
        frozen_for
    };
    let (outcome, frozen_for) = tokio::join!(run, frozen_for);
    assert_eq!(failed(&outcome).code, Code::HypervisorTimedOut);
    assert!(frozen_for <= limit, "frozen for {frozen_for:?}");
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_never_comes_back_is_left_to_the_guard_and_named() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.hang("begin_pull");
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::HypervisorTimedOut);
    let left = outcome.left_over.iter().find(|left| left.step == "source").expect("the source is left");
    assert!(format!("{left:?}").contains("its guard"), "{left:?}");
    let Some(Remains::Process { directories, .. }) = left.failure.remains.as_deref() else { panic!("{left:?}") };
    let run = world.settings.run_dir.read_dir().unwrap().chain(world.settings.scratch_dir.read_dir().unwrap());
    let there: Vec<_> = run.map(|entry| entry.unwrap().path()).collect();
    assert_eq!((directories, there.len()), (&there, 2), "they go when the guard has ended");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.guards.standing(), 1, "it stays for as long as the call may come back");
    world.hypervisor.let_go("begin_pull");
    assert!(world.hypervisor.job(world.instance).is_some());
    let late = world.hypervisor.checkpoints(world.instance).await.unwrap();
    let is_clean = |world: &World| world.hypervisor.leftovers_beside(&late).is_empty();
    world.until(|world| is_clean(world) && world.guards.standing() == 0).await;
    world.assert_nothing_published();
    // The checkpoint that came with it counts for nothing, and goes with the next backup.
    let world = world.next(BackupSpec::default());
    completed(&world.run().await);
    assert!(!world.hypervisor.checkpoints(world.instance).await.unwrap().contains(&late[0]));
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_hangs_in_the_hypervisor_is_thawed_when_it_comes_about() {
    for (quiesce, late_seconds) in [(Quiesce::Require, 30), (Quiesce::Prefer, 30), (Quiesce::Prefer, 600)] {
        let world = World::of(running(), quiesced(quiesce));
        world.hypervisor.hang("freeze");
        let (outcome, ()) = tokio::join!(world.run(), async {
            world.until(|world| !world.hypervisor.stuck_calls().is_empty()).await;
            tokio::time::sleep(Duration::from_secs(late_seconds)).await;
            world.hypervisor.let_go("freeze");
            assert!(world.hypervisor.frozen(world.instance));
        });
        // Longer than a person is made to wait for the report, it is the guard's.
        let code = if late_seconds > 120 { Code::GuestMaybeFrozen } else { Code::FreezeFailed };
        assert_eq!(failed(&outcome).code, code, "{outcome:?}");
        world.until(|world| world.hypervisor.guest_can_write(world.instance)).await;
        world.assert_clean().await;
        world.assert_nothing_published();
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_thawed_before_the_begin_is_no_quiesced_backup() {
    for quiesce in [Quiesce::Prefer, Quiesce::Require] {
        let world = World::of(running(), quiesced(quiesce));
        world.hypervisor.hang("begin_pull");
        let (outcome, ()) = tokio::join!(world.run(), async {
            world.until(|world| world.hypervisor.frozen(world.instance)).await;
            world.hypervisor.thaw(world.instance, Duration::from_secs(5)).await.unwrap();
            world.hypervisor.let_go("begin_pull");
        });
        match quiesce {
            Quiesce::Require => assert_eq!(failed(&outcome).code, Code::FreezeIncomplete),
            _ => {
                let record = completed(&outcome).manifest.quiesce;
                assert_eq!(record.consistency, Consistency::Crash);
                assert!(record.reason.unwrap().contains("thawed before"));
            }
        }
        assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), Some(false));
        world.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_an_io_error_paused_gives_the_backup_up_and_runs_on() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        world.hypervisor.set_state(world.instance, PowerState::PausedByIoError);
    });
    assert_eq!(failed(&outcome).code, Code::HypervisorFailed);
    assert!(outcome.warnings.iter().any(|warning| warning.text.contains("was resumed")), "{outcome:?}");
    assert!(world.hypervisor.guest_can_write(world.instance));
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_changed_after_its_plan_is_not_touched() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.movers.hang("open");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_asked("repository").await;
        // Replaced by one of the same id, as a definition with another disk is.
        world.hypervisor.add(running().with_id(world.instance).disk("vdc", 1 << 20));
        world.movers.unhang("open");
    });
    assert_eq!(failed(&outcome).code, Code::SourceChanged);
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), None);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_freeze_is_recorded_when_it_was_preferred_and_ends_the_job_when_required() {
    for (quiesce, published) in [(Quiesce::Prefer, 1), (Quiesce::Require, 0)] {
        let world = World::of(running(), quiesced(quiesce));
        world.hypervisor.fail("freeze", 1, Failure::new(Code::FreezeFailed, "a hook said no"));
        let outcome = world.run().await;
        assert_eq!(world.movers.published(SHARE).len(), published, "{quiesce:?}: {outcome:?}");
        if quiesce == Quiesce::Prefer {
            let record = completed(&outcome).manifest.quiesce;
            assert_eq!(record.consistency, Consistency::Crash);
            assert!(record.reason.unwrap().contains("a hook said no"));
        } else {
            assert_eq!(failed(&outcome).code, Code::FreezeFailed);
        }
        world.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_is_never_asked_to_freeze() {
    use longshore::host::hypervisor::fake::FakeAgent;
    for quiesce in [Quiesce::Prefer, Quiesce::Require] {
        let world = World::of(running().agent(FakeAgent::Silent), quiesced(quiesce));
        let outcome = world.run().await;
        match quiesce {
            Quiesce::Require => assert_eq!(failed(&outcome).code, Code::AgentSilent),
            _ => assert_eq!(completed(&outcome).manifest.quiesce.consistency, Consistency::Crash),
        }
        // A freeze that waited in its channel would come about now.
        world.hypervisor.set_agent(world.instance, FakeAgent::Answering);
        assert!(world.hypervisor.guest_can_write(world.instance), "{quiesce:?}");
        world.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_file_systems_to_freeze_is_no_quiesced_backup() {
    let bare = || running().guest_info(GuestInfo::default());
    let world = World::of(bare(), quiesced(Quiesce::Require));
    assert_eq!(failed(&world.run().await).code, Code::FreezeIncomplete);
    world.assert_clean().await;
    let efi = GuestFileSystem {
        mount_point: "/boot/efi".into(),
        kind: "vfat".into(),
        device: "vda1".into(),
        disks: vec!["vda".parse().unwrap()],
    };
    let world = World::of(
        bare().guest_info(GuestInfo { file_systems: vec![efi], ..GuestInfo::default() }),
        quiesced(Quiesce::Prefer),
    );
    let record = completed(&world.run().await).manifest.quiesce;
    assert_eq!((record.consistency, record.not_frozen), (Consistency::Crash, vec!["/boot/efi".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_started_during_its_stopped_backup_is_abandoned() {
    let world = World::of(stopped(), BackupSpec::default());
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        world.hypervisor.set_state(world.instance, PowerState::Running);
    });
    assert_eq!(failed(&outcome).code, Code::InstanceStarted);
    assert!(world.hypervisor.guest_can_write(world.instance));
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_stops_during_its_backup_is_the_reason_that_is_given() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        world.hypervisor.set_state(world.instance, PowerState::ShutOff);
    });
    assert_eq!(failed(&outcome).code, Code::InstanceStopped);
    // Its checkpoint can only be deleted where QEMU runs: by the next backup that finds it running.
    assert_eq!(world.hypervisor.checkpoints(world.instance).await.unwrap().len(), 1);
    world.hypervisor.set_state(world.instance, PowerState::Running);
    world.movers.unhang("copy");
    let world = world.next(BackupSpec::default());
    completed(&world.run().await);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_error_because_the_job_was_lost_names_the_loss() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.hang("copy");
    world.movers.fail("copy", 1, Failure::new(Code::SourceReadFailed, "the export is gone"));
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        world.hypervisor.lose_job(world.instance);
        world.movers.unhang("copy");
    });
    assert_eq!(failed(&outcome).code, Code::HypervisorFailed);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_scratch_that_fills_up_gives_the_backup_up_before_the_guest_notices() {
    const LIMIT_BYTES: usize = 64 << 20;
    let mut world = World::of(running(), BackupSpec::default());
    world.settings.scratch_limit_bytes = Some(LIMIT_BYTES as u64);
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        let attempt = std::fs::read_dir(&world.settings.scratch_dir).unwrap().next().unwrap().unwrap().path();
        std::fs::write(attempt.join("vda.scratch.qcow2"), vec![1; LIMIT_BYTES / 10 * 9]).unwrap();
    });
    assert_eq!(failed(&outcome).code, Code::ScratchFull);
    assert!(world.hypervisor.guest_can_write(world.instance));
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_cancels_what_is_done_under_it() {
    let world = World::of(running(), quiesced(Quiesce::Prefer));
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        world.movers.lose_lease(SHARE, world.instance);
    });
    assert_eq!(failed(&outcome).code, Code::LeaseLost);
    assert!(outcome.left_over.is_empty(), "{outcome:?}");
    assert!(world.hypervisor.is_clean() && world.movers.running().is_empty());
    assert!(world.movers.staging(SHARE).is_empty());
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_another_worker_holds_is_not_waited_out_twice() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.lose_lease(SHARE, world.instance);
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::LeaseHeld);
    assert!(outcome.left_over.is_empty(), "{outcome:?}");
    assert!(world.movers.is_leased(SHARE, world.instance), "the other's lease stands");
}

#[tokio::test(start_paused = true)]
async fn what_differs_from_the_source_is_not_published() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.fail("compare", 1, Failure::new(Code::ContentMismatch, "block 7 of `vda`"));
    assert_eq!(failed(&world.run().await).code, Code::ContentMismatch);
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn volumes_that_changed_while_they_were_read_are_not_published() {
    let world = World::of(stopped(), BackupSpec { verification: Verification::Unverified, ..BackupSpec::default() });
    world.movers.fail("sources_unchanged", 1, Failure::new(Code::SourceChanged, "`vda` changed"));
    assert_eq!(failed(&world.run().await).code, Code::SourceChanged);
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn an_unverified_backup_says_so() {
    let world = World::of(running(), BackupSpec { verification: Verification::Unverified, ..BackupSpec::default() });
    world.movers.fail("compare", 1, Failure::new(Code::ContentMismatch, "nobody asked"));
    assert_eq!(completed(&world.run().await).manifest.verification, Proof::Unverified);
}

#[tokio::test(start_paused = true)]
async fn a_publish_whose_answer_was_lost_is_found_by_another_mover() {
    for code in [Code::MoverDied, Code::MoverUnresponsive] {
        let world = World::of(running(), BackupSpec::default());
        world.movers.fail_after("publish", 1, Failure::new(code, "it gives no answer"));
        let manifest = completed(&world.run().await).manifest;
        assert_eq!(world.movers.published(SHARE), [manifest]);
        world.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_mover_that_is_silent_when_it_is_to_look_whether_it_was_published_is_replaced_too() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.hang("publish");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_asked("publish").await;
        let [mover] = world.movers.running().try_into().unwrap();
        world.movers.fail("open", 1, Failure::new(Code::MoverUnresponsive, "the share does not answer"));
        assert!(world.movers.kill(&mover));
        world.movers.unhang("publish");
    });
    assert_eq!(failed(&outcome).code, Code::MoverDied, "the third one has looked");
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn a_mover_that_dies_before_publishing_leaves_no_backup_and_no_litter() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.hang("publish");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_asked("publish").await;
        let [mover] = world.movers.running().try_into().unwrap();
        assert!(world.movers.kill(&mover));
        world.movers.unhang("publish");
    });
    assert_eq!(failed(&outcome).code, Code::MoverDied);
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn a_mover_that_dies_while_copying_is_replaced_to_clear_up() {
    let world = World::of(running(), BackupSpec::default());
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        let [mover] = world.movers.running().try_into().unwrap();
        assert!(world.movers.kill(&mover));
    });
    assert_eq!(failed(&outcome).code, Code::MoverDied);
    assert!(outcome.left_over.is_empty(), "{outcome:?}");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_copying_unwinds() {
    let world = World::of(running(), quiesced(Quiesce::Prefer));
    world.movers.hang("copy");
    let (stopper, stop) = Stopper::new();
    let (outcome, ()) = tokio::join!(world.run_until(&stop), async {
        world.until_copying().await;
        stopper.stop(Failure::new(Code::HostDraining, "the host is drained"));
    });
    assert!(matches!(&outcome.end, End::Stopped { failure } if failure.code == Code::HostDraining), "{outcome:?}");
    world.assert_clean().await;
    world.assert_nothing_published();
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_the_guest_is_frozen_thaws_it_at_once() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.hang("begin_pull");
    let (stopper, stop) = Stopper::new();
    let (outcome, thawed_after) = tokio::join!(world.run_until(&stop), async {
        world.until(|world| world.hypervisor.frozen(world.instance)).await;
        let since = tokio::time::Instant::now();
        stopper.stop(Failure::new(Code::DeadlineExceeded, "the deadline passed"));
        world.until(|world| !world.hypervisor.frozen(world.instance)).await;
        let thawed_after = since.elapsed();
        world.hypervisor.let_go("begin_pull");
        thawed_after
    });
    assert!(matches!(outcome.end, End::Stopped { .. }), "{outcome:?}");
    // The guard alone would have needed the freeze limit.
    assert!(thawed_after < Duration::from_secs(1), "thawed after {thawed_after:?}");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn another_job_on_the_instance_is_left_alone() {
    use longshore::host::hypervisor::DomainJob;
    let world = World::of(running(), BackupSpec::default());
    world.hypervisor.begin_foreign_job(world.instance, DomainJob::Other);
    assert_eq!(failed(&world.run().await).code, Code::InstanceBusy);
    assert_eq!(world.hypervisor.job(world.instance), Some(DomainJob::Other));
    world.hypervisor.lose_job(world.instance);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_guard_nothing_begins() {
    let world = World::of(running(), quiesced(Quiesce::Prefer));
    world.guards.refuse(true);
    assert_eq!(failed(&world.run().await).code, Code::GuardFailed);
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), None);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_while_the_guest_is_frozen_is_cleared_up_after() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.hang("begin_pull");
    let crashed = world.crash_when(|world| world.hypervisor.frozen(world.instance)).await;
    world.hypervisor.let_go("begin_pull");
    assert_eq!(failed(&world.unwind(&crashed).await).code, Code::Interrupted);
    assert!(world.hypervisor.guest_can_write(world.instance));
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_cannot_be_read_touches_nothing() {
    let world = World::of(FakeInstance::running("web").disk("vda", 1 << 30), BackupSpec::default());
    let failure = world.unwind_with(&serde_json::json!({ "backup_id": 7 }), &[]).await.unwrap_err();
    assert_eq!(failure.code, Code::Internal);
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_not_frozen_for_a_begin_that_would_be_refused() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.late_freeze(world.instance, Duration::from_secs(3600));
    for theirs in ["/elsewhere/theirs/nbd", "/elsewhere/kvm-07.0123456789ab.1.1/nbd"] {
        let theirs = DomainJob::Pull { socket: theirs.into() };
        world.hypervisor.begin_foreign_job(world.instance, theirs.clone());
        let failure = failed(&world.run().await);
        assert_eq!((failure.code, failure.step.as_deref()), (Code::InstanceBusy, Some("moment")));
        assert_eq!(world.hypervisor.job(world.instance), Some(theirs), "another's job is not ended");
    }
    world.hypervisor.lose_job(world.instance);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_backup_that_an_earlier_attempt_left_is_ended_before_the_next_begins() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    let left = world.settings.run_dir.join("kvm-07.0123456789ab.1.1");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("nbd"), b"").unwrap();
    world.hypervisor.begin_foreign_job(world.instance, DomainJob::Pull { socket: left.join("nbd") });
    completed(&world.run().await);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_stops_around_the_begin_is_tried_again() {
    for quiesce in [Quiesce::Off, Quiesce::Require] {
        let world = World::of(running(), quiesced(quiesce));
        world.hypervisor.hang("begin_pull");
        let (outcome, ()) = tokio::join!(world.run(), async {
            world.until_asked("moment").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            // The watch over the source misses it this once.
            world.hypervisor.fail("state", 1, Failure::new(Code::HypervisorUnavailable, "libvirt restarts"));
            world.hypervisor.set_state(world.instance, PowerState::ShutOff);
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.hypervisor.let_go("begin_pull");
        });
        let failure = failed(&outcome);
        assert_eq!((failure.code, failure.step.as_deref()), (Code::InstanceStopped, Some("moment")), "{failure:#}");
        world.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_released_before_a_begin_needs_no_answer_from_libvirt() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.guards.refuse(true);
    world.hypervisor.hang("domain_job");
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::GuardFailed);
    assert!(outcome.left_over.is_empty(), "{outcome:?}");
    world.hypervisor.let_go("domain_job");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_from_before_the_begin_is_left_as_it_is() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.hypervisor.hang("watch");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_asked("source").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.hypervisor.set_state(world.instance, PowerState::PausedByIoError);
        world.hypervisor.let_go("watch");
    });
    assert_eq!(failed(&outcome).code, Code::InstanceStateUnsupported);
    world.until(|world| world.guards.standing() == 0).await;
    assert!(!world.hypervisor.guest_can_write(world.instance), "it was not paused by the backup");
    world.hypervisor.set_state(world.instance, PowerState::Running);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_guest_noticed_is_recorded() {
    let world = World::of(running(), quiesced(Quiesce::Require));
    world.movers.hang("copy");
    let (outcome, ()) = tokio::join!(world.run(), async {
        world.until_copying().await;
        for each_ms in [3, 40, 5] {
            world.hypervisor.guest_writes(world.instance, 10, Duration::from_millis(each_ms));
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        world.movers.unhang("copy");
    });
    let guest = completed(&outcome).manifest.guest.expect("it ran");
    assert_eq!((guest.begin_ms, guest.worst_write_ms), (0, Some(40)));
    let world = World::of(stopped(), BackupSpec::default());
    assert_eq!(completed(&world.run().await).manifest.guest, None);
}

#[tokio::test(start_paused = true)]
async fn what_a_restore_would_miss_is_a_warning() {
    let instance =
        running().unrecorded("the state of the TPM is not in the backup").live_definition("<domain id='7'/>");
    let manifest = completed(&World::of(instance, BackupSpec::default()).run().await).manifest;
    let records: Vec<_> = manifest.records.iter().map(|record| record.file.as_str()).collect();
    assert_eq!(records, ["agent.json", "domain-live.xml", "domain.xml"]);
    for word in ["TPM", "domain-live.xml"] {
        assert!(manifest.warnings.iter().any(|warning| warning.contains(word)), "{word}: {:?}", manifest.warnings);
    }
}

#[tokio::test(start_paused = true)]
async fn room_that_may_be_too_little_is_a_warning_where_nobody_knows_what_a_disk_holds() {
    let world = World::of(running().unmeasured(), BackupSpec::default());
    assert_eq!(completed(&world.run().await).manifest.warnings, Vec::<String>::new());
    let world = World::of(running().unmeasured(), BackupSpec::default());
    world.movers.repository(SHARE, |share| share.free_bytes = 1 << 29);
    let warnings = completed(&world.run().await).manifest.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("how much some disks hold")), "{warnings:?}");
    world.assert_clean().await;
}
