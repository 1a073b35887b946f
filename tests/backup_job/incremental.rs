//! Which backups are based on which, and what is told where one is not.

use longshore::failure::{Code, Failure};
use longshore::host::hypervisor::Hypervisor;
use longshore::host::hypervisor::fake::PushFate;
use longshore::job::backup::release_tracking;
use longshore::model::id::{InstanceRef, RepositoryId};
use longshore::model::instance::PowerState;
use longshore::model::job::{BackupMode, BackupSpec, FullEvery, Transfer, Verification};
use longshore::model::manifest::{ChangesFoundBy, Manifest, Proof};

use super::world::{SHARE, World, completed, failed, running, stopped};

fn mode(mode: BackupMode) -> BackupSpec {
    BackupSpec { mode, ..BackupSpec::default() }
}

async fn backed_up(world: &World) -> Manifest {
    let manifest = completed(&world.run().await).manifest;
    world.assert_clean().await;
    manifest
}

/// Why each disk stands alone.
fn reasons(manifest: &Manifest) -> Vec<String> {
    manifest.disks.iter().map(|disk| disk.full_reason.clone().unwrap_or_default()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_next_backup_is_based_on_the_latest_one_whether_the_instance_runs_or_not() {
    for instance in [running(), stopped()] {
        let world = World::of(instance, BackupSpec::default());
        let first = backed_up(&world).await;
        assert_eq!(first.parent(), None);
        assert!(reasons(&first).iter().all(|reason| reason.contains("first backup")), "{first:?}");
        let world = world.next(BackupSpec::default());
        let second = backed_up(&world).await;
        for (disk, before) in second.disks.iter().zip(&first.disks) {
            let based_on = disk.based_on.as_ref().expect("it stands alone");
            assert_eq!((based_on.backup_id, &based_on.content_root), (first.backup_id, &before.content_root));
        }
        assert_eq!(backed_up(&world.next(mode(BackupMode::Incremental))).await.parent(), Some(second.backup_id));
    }
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_followed_by_a_full_backup_when_it_is_as_long_as_the_job_says() {
    let every = BackupSpec { full_every: FullEvery(2), ..BackupSpec::default() };
    let mut world = World::of(running(), every.clone());
    let mut parents = Vec::new();
    for _ in 0..4 {
        parents.push(backed_up(&world).await.parent().is_some());
        world = world.next(every.clone());
    }
    assert_eq!(parents, [false, true, false, true]);
    let full = backed_up(&world.next(mode(BackupMode::Full))).await;
    assert_eq!((full.parent(), reasons(&full)), (None, vec![String::new(); 2]), "that is what was asked for");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_verified_or_is_damaged_is_no_basis() {
    let unverified = BackupSpec { verification: Verification::Unverified, ..BackupSpec::default() };
    let world = World::of(running(), unverified);
    let first = backed_up(&world).await;
    let world = world.next(BackupSpec::default());
    let second = backed_up(&world).await;
    assert!(reasons(&second).iter().all(|reason| reason.contains("was not verified")), "{first:?}");
    world.movers.damage(SHARE, second.backup_id);
    let third = backed_up(&world.next(BackupSpec::default())).await;
    assert!(reasons(&third).iter().all(|reason| reason.contains("not what was backed up")), "{third:?}");
}

#[tokio::test(start_paused = true)]
async fn a_push_goes_by_the_bitmaps_of_pulls_and_pushes_and_a_pull_not_by_those_of_pushes() {
    let world = World::of(running(), BackupSpec::default());
    backed_up(&world).await;
    let push = || BackupSpec { transfer: Transfer::Push, ..BackupSpec::default() };
    let world = world.next(push());
    let pushed = backed_up(&world).await;
    assert_eq!(found_by(&pushed), [Some(ChangesFoundBy::Bitmap); 2]);
    assert_eq!((pushed.verification, checkpoints(&world).await), (Proof::Structure, checkpoint(&pushed)));
    let world = world.next(push());
    let again = backed_up(&world).await;
    assert_eq!((again.parent(), found_by(&again)), (Some(pushed.backup_id), vec![Some(ChangesFoundBy::Bitmap); 2]));
    let after = backed_up(&world.next(BackupSpec::default())).await;
    assert_eq!(found_by(&after), [Some(ChangesFoundBy::Hashes); 2], "nothing was compared");
}

#[tokio::test(start_paused = true)]
async fn what_qemu_cannot_be_told_of_is_pushed_whole_and_it_is_told_why() {
    let push = || BackupSpec { transfer: Transfer::Push, ..BackupSpec::default() };
    let world = World::of(running(), push());
    assert!(reasons(&backed_up(&world).await).iter().all(|reason| reason.contains("first backup")));

    let world = world.next(push());
    world.hypervisor.fail("begin_push", 1, refused());
    let refused = backed_up(&world).await;
    assert!(reasons(&refused).iter().all(|reason| reason.contains("libvirt error 109")), "{refused:?}");
    assert_eq!((refused.parent(), checkpoint(&refused).len()), (None, 1));

    let world = world.next(push());
    world.hypervisor.forget_checkpoints(world.instance);
    world.hypervisor.fail("redefine_checkpoint", 1, self::refused());
    let forgotten = backed_up(&world).await;
    assert!(reasons(&forgotten).iter().all(|reason| reason.contains("does not know")), "{forgotten:?}");

    let world = world.next(push()).attempt(2);
    let again = backed_up(&world).await;
    assert!(reasons(&again).iter().all(|reason| reason.contains("earlier attempt")), "{again:?}");

    world.movers.damage(SHARE, again.backup_id);
    let damaged = backed_up(&world.next(push()).attempt(1)).await;
    assert!(reasons(&damaged).iter().all(|reason| reason.contains("not what was backed up")), "{damaged:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_instance_goes_by_the_bitmap_from_when_it_ran_and_one_that_runs_again_does_too() {
    let world = World::of(running(), BackupSpec::default());
    let first = backed_up(&world).await;
    world.hypervisor.set_state(world.instance, PowerState::ShutOff);
    let mut world = world;
    let mut parent = first.backup_id;
    for _twice in 0..2 {
        world = world.next(BackupSpec::default());
        let stopped = backed_up(&world).await;
        assert_eq!((stopped.parent(), found_by(&stopped)), (Some(parent), vec![Some(ChangesFoundBy::Bitmap); 2]));
        assert_eq!((checkpoint(&stopped).len(), checkpoints(&world).await), (0, checkpoint(&first)));
        parent = stopped.backup_id;
    }
    world.hypervisor.set_state(world.instance, PowerState::Running);
    let world = world.next(BackupSpec::default());
    let running = backed_up(&world).await;
    assert_eq!(found_by(&running), [Some(ChangesFoundBy::Bitmap); 2]);
    assert_eq!(checkpoints(&world).await, checkpoint(&running));
    let push = BackupSpec { transfer: Transfer::Push, ..BackupSpec::default() };
    world.hypervisor.set_state(world.instance, PowerState::ShutOff);
    let world = world.next(BackupSpec::default());
    backed_up(&world).await;
    world.hypervisor.set_state(world.instance, PowerState::Running);
    let pushed = backed_up(&world.next(push)).await;
    assert!(reasons(&pushed).iter().all(|reason| reason.contains("nothing tells it")), "{pushed:?}");
}

#[tokio::test(start_paused = true)]
async fn room_is_wanted_for_what_is_stored_whole() {
    let world = World::of(running(), BackupSpec::default());
    backed_up(&world).await;
    world.movers.repository(SHARE, |repository| repository.free_bytes = 100 << 20).unwrap();
    let world = world.next(BackupSpec::default());
    assert!(backed_up(&world).await.parent().is_some(), "what has changed may well fit");
    let world = world.next(mode(BackupMode::Full));
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::RepositoryFull, Some("basis")));
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_push_of_changes_that_becomes_a_push_of_everything_is_not_begun_where_that_does_not_fit() {
    let push = || BackupSpec { transfer: Transfer::Push, ..BackupSpec::default() };
    let world = World::of(running(), push());
    backed_up(&world).await;
    world.movers.repository(SHARE, |repository| repository.free_bytes = 100 << 20).unwrap();
    let world = world.next(push());
    let fits = backed_up(&world).await;
    let [warning] = &fits.warnings[..] else { panic!("{:?}", fits.warnings) };
    assert!(fits.parent().is_some() && warning.contains("guest is paused"), "{warning}");

    let world = world.next(push());
    world.hypervisor.fail("begin_push", 1, refused());
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::RepositoryFull, Some("moment")), "{failure:#}");
    world.assert_clean().await;
    let world = world.next(push()).attempt(2);
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::RepositoryFull, Some("tracking")), "{failure:#}");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_push_over_a_restart_of_libvirts_daemon_is_made_again_where_nobody_can_tell_what_was_to_be_written() {
    let push = || BackupSpec { transfer: Transfer::Push, ..BackupSpec::default() };
    let world = World::of(running(), push());
    world.hypervisor.next_push(world.instance, PushFate::CompletesUnseen);
    let full = backed_up(&world).await;
    let world = world.next(push());
    world.hypervisor.next_push(world.instance, PushFate::CompletesUnseen);
    let failure = failed(&world.run().await);
    assert_eq!((failure.code, failure.step.as_deref()), (Code::HypervisorFailed, Some("push")), "{failure:#}");
    world.assert_clean().await;
    assert_eq!(world.movers.published(SHARE), [full]);
}

/// How it was found what had changed, disk by disk.
fn found_by(manifest: &Manifest) -> Vec<Option<ChangesFoundBy>> {
    let of = manifest.disks.iter().map(|disk| disk.based_on.as_ref().map(|based_on| based_on.found_by));
    of.collect()
}

/// The instance's checkpoints.
async fn checkpoints(world: &World) -> Vec<String> {
    world.hypervisor.checkpoints(world.instance).await.unwrap()
}

fn checkpoint(manifest: &Manifest) -> Vec<String> {
    let mut names: Vec<_> = manifest.disks.iter().filter_map(|disk| disk.checkpoint.clone()).collect();
    names.dedup();
    names
}

fn refused() -> Failure {
    Failure::new(Code::HypervisorFailed, "checkpoint inconsistent (libvirt error 109)")
}

#[tokio::test(start_paused = true)]
async fn what_a_running_guest_writes_is_kept_in_mind_from_one_backup_to_the_next() {
    let stranger = "longshore-019a0f3e-7c00-7000-8000-0000000000ff-019a0f3e-7c00-7000-8000-000000000001-1";
    let world = World::of(running().checkpoint(stranger), BackupSpec::default());
    let first = backed_up(&world).await;
    assert_eq!(found_by(&first), [None; 2]);
    assert_eq!(checkpoints(&world).await, [&[stranger.to_owned()], &checkpoint(&first)[..]].concat());
    let world = world.next(BackupSpec::default());
    let second = backed_up(&world).await;
    assert_eq!(found_by(&second), [Some(ChangesFoundBy::Bitmap); 2]);
    assert_eq!(checkpoints(&world).await, [&[stranger.to_owned()], &checkpoint(&second)[..]].concat());
    assert_ne!(checkpoint(&first), checkpoint(&second));
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_the_hypervisor_will_not_hear_of_costs_the_reading_and_nothing_else() {
    for refusals in 1..=2 {
        let world = World::of(running(), BackupSpec::default());
        backed_up(&world).await;
        let world = world.next(BackupSpec::default());
        world.hypervisor.fail("begin_pull", refusals, refused());
        let second = backed_up(&world).await;
        assert_eq!(found_by(&second), [Some(ChangesFoundBy::Hashes); 2]);
        assert!(second.warnings.iter().any(|warning| warning.contains("libvirt error 109")), "{:?}", second.warnings);
        assert_eq!(checkpoint(&second).len(), usize::from(refusals == 1), "asked for alone it may be had");
        assert_eq!(checkpoints(&world).await, checkpoint(&second), "the old one counts for nothing");
    }
    let world = World::of(running(), BackupSpec::default());
    world.hypervisor.fail("begin_pull", 3, refused());
    assert_eq!(failed(&world.run().await).code, Code::HypervisorFailed, "it is something else");
    world.assert_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_fails_leaves_the_checkpoint_of_the_latest_one_and_none_of_its_own() {
    let mut world = World::of(running(), BackupSpec::default());
    let first = backed_up(&world).await;
    for word in ["copy", "compare", "seal", "publish"] {
        world = world.next(BackupSpec::default());
        world.movers.fail(word, 1, Failure::new(Code::RepositoryIo, "EIO"));
        assert_eq!(failed(&world.run().await).code, Code::RepositoryIo);
        world.assert_clean().await;
        assert_eq!(checkpoints(&world).await, checkpoint(&first), "{word}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_a_new_definition_has_lost_is_made_known_again() {
    let world = World::of(running(), BackupSpec::default());
    backed_up(&world).await;
    world.hypervisor.forget_checkpoints(world.instance);
    let world = world.next(BackupSpec::default());
    let second = backed_up(&world).await;
    assert_eq!(found_by(&second), [Some(ChangesFoundBy::Bitmap); 2]);
    assert_eq!(checkpoints(&world).await, checkpoint(&second));
    world.hypervisor.forget_checkpoints(world.instance);
    world.hypervisor.fail("redefine_checkpoint", 1, refused());
    let third = backed_up(&world.next(BackupSpec::default())).await;
    assert_eq!(found_by(&third), [Some(ChangesFoundBy::Hashes); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_second_attempt_trusts_no_bitmap() {
    let world = World::of(running(), BackupSpec::default());
    backed_up(&world).await;
    let again = backed_up(&world.next(BackupSpec::default()).attempt(2)).await;
    assert_eq!(found_by(&again), [Some(ChangesFoundBy::Hashes); 2]);
}

#[tokio::test(start_paused = true)]
async fn who_only_wants_full_backups_gets_no_checkpoint_and_who_has_one_keeps_it() {
    let world = World::of(running(), mode(BackupMode::Full));
    backed_up(&world).await;
    assert_eq!(checkpoints(&world).await, [""; 0]);
    let world = world.next(BackupSpec::default());
    backed_up(&world).await;
    let world = world.next(mode(BackupMode::Full));
    let full = backed_up(&world).await;
    assert_eq!((checkpoints(&world).await, checkpoint(&full).len()), (checkpoint(&full), 1));
    let after = backed_up(&world.next(BackupSpec::default())).await;
    assert_eq!(found_by(&after), [Some(ChangesFoundBy::Bitmap); 2]);
}

#[tokio::test(start_paused = true)]
async fn tracking_is_released_of_a_running_instance_and_of_the_repository_that_is_named() {
    let stranger = "backup-of-another-program";
    let world = World::of(running().checkpoint(stranger), BackupSpec::default());
    let first = backed_up(&world).await;
    let release =
        async |repository| release_tracking(&world.hypervisor, &InstanceRef::Id(world.instance), repository).await;
    assert_eq!(release(Some(RepositoryId::draw())).await.unwrap(), [""; 0]);
    world.hypervisor.set_state(world.instance, PowerState::ShutOff);
    assert_eq!(release(None).await.unwrap_err().code, Code::InstanceStateUnsupported);
    world.hypervisor.set_state(world.instance, PowerState::Running);
    assert_eq!(release(Some(first.repository_id)).await.unwrap(), checkpoint(&first));
    assert_eq!(checkpoints(&world).await, [stranger]);
    assert_eq!(release(None).await.unwrap(), [""; 0]);
    let next = backed_up(&world.next(BackupSpec::default())).await;
    assert_eq!(found_by(&next), [Some(ChangesFoundBy::Hashes); 2]);
}
