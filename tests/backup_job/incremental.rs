//! Which backups are based on which, and what is told where one is not.

use longshore::failure::Code;
use longshore::model::job::{BackupMode, BackupSpec, FullEvery, Transfer, Verification};
use longshore::model::manifest::Manifest;

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
async fn a_push_stores_everything_and_says_so() {
    let world = World::of(running(), BackupSpec::default());
    backed_up(&world).await;
    let push = BackupSpec { transfer: Transfer::Push, ..BackupSpec::default() };
    let pushed = backed_up(&world.next(push)).await;
    assert!(reasons(&pushed).iter().all(|reason| reason.contains("push")), "{pushed:?}");
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
