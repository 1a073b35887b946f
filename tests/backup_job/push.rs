//! Backups that QEMU writes to the share itself: nobody believes that it did, and a share that hurts QEMU does not keep the guest.

use std::time::Duration;

use longshore::failure::{Code, Failure, Remains};
use longshore::host::hypervisor::Hypervisor;
use longshore::host::hypervisor::fake::PushFate;
use longshore::host::mover::Movers;
use longshore::model::instance::PowerState;
use longshore::model::job::{BackupSpec, Quiesce, Transfer};
use longshore::model::manifest::{Consistency, Proof, TransferUsed};

use super::world::{SHARE, World, completed, failed, running, stopped};

fn pushed(quiesce: Quiesce) -> BackupSpec {
    BackupSpec { quiesce, transfer: Transfer::Push, ..BackupSpec::default() }
}

#[tokio::test(start_paused = true)]
async fn a_running_instance_is_frozen_pushed_and_its_structure_proven() {
    let world = World::of(running(), pushed(Quiesce::Require));
    let manifest = completed(&world.run().await).manifest;
    assert_eq!(world.movers.published(SHARE), std::slice::from_ref(&manifest));
    assert_eq!((manifest.transfer, manifest.verification), (TransferUsed::Push, Proof::Structure));
    assert_eq!(manifest.quiesce.consistency, Consistency::FileSystem);
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), Some(true));
    assert_eq!(manifest.disks.iter().map(|disk| disk.file.as_str()).collect::<Vec<_>>(), ["vda.qcow2", "vdb.qcow2"]);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_instance_has_nobody_who_could_push() {
    let world = World::of(stopped(), pushed(Quiesce::Off));
    let manifest = completed(&world.run().await).manifest;
    assert_eq!((manifest.transfer, manifest.verification), (TransferUsed::Stopped, Proof::Compared));
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_stays_qemus_is_told_of_with_the_backup() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.movers.warn("inspect", "disk `vda`: its image still belongs to user 64055");
    let manifest = completed(&world.run().await).manifest;
    assert_eq!(manifest.warnings, ["disk `vda`: its image still belongs to user 64055"]);
    assert_eq!(world.movers.published(SHARE)[0].warnings, manifest.warnings);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn what_libvirt_calls_completed_is_not_published_when_its_images_are_not_whole() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.movers.fail("inspect", 1, Failure::new(Code::ImageDamaged, "what is stored belongs to nothing"));
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::ImageDamaged, Some("inspect")));
    world.assert_nothing_published();
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_push_that_libvirt_calls_failed_is_not_even_looked_at() {
    for (message, code) in
        [("No space left on device", Code::RepositoryFull), ("Input/output error", Code::RepositoryIo)]
    {
        let world = World::of(running(), pushed(Quiesce::Prefer));
        world.hypervisor.next_push(world.instance, PushFate::Fails(message));
        let failure = failed(&world.run().await);
        assert_eq!((failure.code, failure.step.as_deref()), (code, Some("push")));
        world.assert_nothing_published();
        world.assert_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_a_full_share_paused_runs_again_at_once_and_the_event_says_so() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.hypervisor.next_push(world.instance, PushFate::PausesGuest);
    let began = tokio::time::Instant::now();
    let outcome = world.run().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(failed(&outcome).code, Code::RepositoryFull);
    assert!(outcome.warnings.iter().any(|warning| warning.text.contains("was resumed")), "{outcome:?}");
    assert!(world.hypervisor.guest_can_write(world.instance));
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_somebody_else_had_paused_stays_paused() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.hypervisor.set_state(world.instance, PowerState::Paused);
    completed(&world.run().await);
    assert_eq!(world.hypervisor.state(world.instance).await.unwrap(), PowerState::Paused);
}

#[tokio::test(start_paused = true)]
async fn a_share_that_hangs_is_cut_off_so_that_qemu_is_free_again() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.hypervisor.next_push(world.instance, PushFate::Stands);
    // QEMU waits for the share, and whoever asks QEMU waits for QEMU.
    world.hypervisor.hang("abort_job");
    let freed = async {
        world.until(|world| !world.movers.were_cut_off().is_empty()).await;
        world.hypervisor.let_go("abort_job");
    };
    let (outcome, ()) = tokio::join!(world.run(), freed);
    assert_eq!(failed(&outcome).code, Code::Stalled);
    assert!(outcome.left_over.is_empty(), "{:?}", outcome.left_over);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_does_not_end_is_left_to_the_guard_with_what_can_free_qemu() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.hypervisor.next_push(world.instance, PushFate::Stands);
    world.hypervisor.hang("abort_job");
    let outcome = world.run().await;
    assert_eq!(failed(&outcome).code, Code::Stalled);
    let place = world.movers.exposed();
    let left = outcome.left_over.iter().find(|left| left.step == "source").expect("it is named");
    let remains = left.failure.remains.as_deref();
    assert!(
        matches!(remains, Some(Remains::Process { directories, .. }) if *directories == place[..]),
        "it goes when the guard has ended: {remains:?}"
    );
    assert_eq!(world.guards.standing(), 1);
    world.hypervisor.let_go("abort_job");
    world.until(|world| world.guards.standing() == 0).await;
    world.movers.unmount(&place[0]).await.unwrap();
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_share_that_qemu_cannot_write_to_is_found_out_before_the_guest_is_touched() {
    let world = World::of(running(), pushed(Quiesce::Require));
    world.movers.fail("expose", 1, Failure::new(Code::PushNotPossible, "mounts do not spread"));
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::PushNotPossible, Some("source")));
    assert_eq!(world.hypervisor.latest_moment_was_frozen(world.instance), None);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_stopped_under_its_push_says_so() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.hypervisor.next_push(world.instance, PushFate::Stands);
    let stopped = async {
        world.until_asked("push").await;
        world.hypervisor.set_state(world.instance, PowerState::ShutOff);
    };
    let (outcome, ()) = tokio::join!(world.run(), stopped);
    assert_eq!(failed(&outcome).code, Code::InstanceStopped);
    // Its checkpoint goes with the next backup of the running instance.
    world.hypervisor.set_state(world.instance, PowerState::Running);
    let world = world.next(pushed(Quiesce::Off));
    completed(&world.run().await);
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_in_the_middle_leaves_nothing_of_a_push() {
    let world = World::of(running(), pushed(Quiesce::Off));
    world.hypervisor.next_push(world.instance, PushFate::Stands);
    let crashed = world.crash_when(|world| world.hypervisor.job(world.instance).is_some()).await;
    world.unwind(&crashed).await;
    world.assert_nothing_published();
    world.assert_clean().await;
    completed(&world.run().await);
}
