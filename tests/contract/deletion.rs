//! How backups go: the same questions, put to the real mover and to its fake.

use longshore::failure::Code;
use longshore::host::mover::Mover;
use longshore::model::deletion::Member;
use longshore::model::id::{BackupId, InstanceId};
use longshore::model::manifest::Manifest;
use longshore::mover::protocol::{Merger, Reply, Request};

use super::{SOON, World, done, lease, opened, publish, published, refused, sealed};

/// What of an instance's backups is based on what, by their numbers.
pub async fn chains(mover: &mut Box<dyn Mover>, instance: InstanceId) -> Vec<Member> {
    let reply = mover.ask(Request::Chains { instance }, SOON).await.unwrap();
    let Reply::Chains { mut members } = reply else { panic!("{reply:?}") };
    members.sort_by_key(|member| member.number);
    members
}

pub fn merge(child: &Manifest, from: &Manifest) -> Request {
    Request::Merge { instance: child.instance_id, merger: merger(child, from), suffix: "installation.1".into() }
}

pub fn merger(child: &Manifest, from: &Manifest) -> Merger {
    Merger { child: child.backup_id, from: from.backup_id }
}

/// Without a merge.
pub fn delete(backups: &[&Manifest]) -> Request {
    let ids = backups.iter().map(|backup| backup.backup_id).collect();
    Request::Delete { instance: backups[0].instance_id, merger: None, backups: ids }
}

/// With the child's taking over.
pub fn delete_merged(child: &Manifest, from: &Manifest) -> Request {
    let (instance, merger) = (child.instance_id, Some(merger(child, from)));
    Request::Delete { instance, merger, backups: vec![from.backup_id] }
}

/// What is there, with what each is based on.
fn standing(world: &dyn World) -> Vec<(BackupId, Option<BackupId>)> {
    world.published().iter().map(|manifest| (manifest.backup_id, manifest.parent())).collect()
}

/// A full backup with two on top of it, and a mover that holds the lease.
pub async fn chain_of_three(world: &dyn World, name: &str) -> (Box<dyn Mover>, [Manifest; 3]) {
    let (mover, full) = published(world, name).await;
    let middle = world.put_child(&full);
    let leaf = world.put_child(&middle);
    (mover, [full, middle, leaf])
}

async fn leave(mut mover: Box<dyn Mover>) {
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

pub async fn backups_go_leaf_first_and_their_numbers_are_not_given_again(world: &dyn World) {
    let (mut mover, [full, middle, leaf]) = chain_of_three(world, "goes").await;
    let instance = full.instance_id;
    let found = chains(&mut mover, instance).await;
    let links: Vec<_> = found.iter().map(|member| (member.backup_id, member.based_on.first().copied())).collect();
    let wanted = [&full, &middle, &leaf].map(|manifest| (manifest.backup_id, manifest.parent()));
    assert_eq!(links, wanted);
    assert!(found.iter().all(|member| member.bytes > 0 && !member.pinned && member.based_on.len() < 2), "{found:?}");

    for wrong in [delete(&[&full]), delete(&[&middle, &leaf])] {
        let failure = refused(&mut mover, wrong).await;
        assert_eq!(failure.code, Code::BackupHasChildren, "{failure:#}");
    }
    assert_eq!(standing(world), wanted);
    assert!(world.staging().is_empty(), "{:?}", world.staging());
    for _twice in 0..2 {
        done(&mut mover, delete(&[&leaf, &middle])).await;
        assert_eq!(standing(world), wanted[..1]);
        done(&mut mover, Request::RemoveDeleted { instance }).await;
        assert!(world.staging().is_empty(), "{:?}", world.staging());
    }
    assert_eq!(chains(&mut mover, instance).await.len(), 1);
    assert_eq!(chains(&mut mover, InstanceId::draw()).await, []);
    let next = sealed(world, &mut mover, instance, BackupId::draw()).await;
    assert_eq!(publish(&mut mover, &next).await, 4, "the leaf had the third place");
    leave(mover).await;
}

pub async fn a_child_takes_over_what_its_parent_held(world: &dyn World) {
    let (mut mover, [full, middle, leaf]) = chain_of_three(world, "merges").await;
    let wanted = [&full, &middle, &leaf].map(|manifest| (manifest.backup_id, manifest.parent()));
    assert_eq!(refused(&mut mover, delete_merged(&leaf, &middle)).await.code, Code::Interrupted, "nothing was merged");
    for _twice in 0..2 {
        let reply = mover.ask(merge(&leaf, &middle), SOON).await.unwrap();
        let Reply::Merged { bytes, replaced_bytes } = reply else { panic!("{reply:?}") };
        assert!(bytes > 0 && replaced_bytes == leaf.disks.iter().map(|disk| disk.file_bytes).sum::<u64>());
        let progress = *mover.progress().borrow();
        assert!(progress.total_bytes > 0 && progress.done_bytes == progress.total_bytes, "{progress:?}");
        assert_eq!(standing(world), wanted, "nothing is changed");
        assert!(!world.staging().is_empty());
        done(&mut mover, Request::Discard).await;
        assert!(world.staging().is_empty(), "{:?}", world.staging());
        assert_eq!(refused(&mut mover, delete_merged(&leaf, &middle)).await.code, Code::Interrupted, "it is no more");
    }
    assert!(matches!(mover.ask(merge(&leaf, &middle), SOON).await, Ok(Reply::Merged { .. })));
    done(&mut mover, delete_merged(&leaf, &middle)).await;
    leave(mover).await;
    // Another mover, which knows nothing, finds out that it was done.
    let mut mover = opened(world, "merges-again").await;
    done(&mut mover, lease(full.instance_id)).await;
    for _twice in 0..2 {
        done(&mut mover, delete_merged(&leaf, &middle)).await;
        done(&mut mover, Request::RemoveDeleted { instance: full.instance_id }).await;
        assert_eq!(standing(world), [(full.backup_id, None), (leaf.backup_id, Some(full.backup_id))]);
        assert!(world.staging().is_empty(), "{:?}", world.staging());
    }
    // And now onto nothing.
    assert!(matches!(mover.ask(merge(&leaf, &full), SOON).await, Ok(Reply::Merged { .. })));
    done(&mut mover, delete_merged(&leaf, &full)).await;
    assert_eq!(standing(world), [(leaf.backup_id, None)]);
    done(&mut mover, Request::RemoveDeleted { instance: full.instance_id }).await;
    leave(mover).await;
}

pub async fn a_pinned_backup_stays_and_what_is_not_leased_as_well(world: &dyn World) {
    let (mut mover, [full, middle, leaf]) = chain_of_three(world, "pinned").await;
    let instance = full.instance_id;
    world.pin(&middle, true);
    assert!(chains(&mut mover, instance).await[1].pinned);
    let failure = refused(&mut mover, delete(&[&leaf, &middle])).await;
    assert_eq!(failure.code, Code::BackupPinned, "{failure:#}");
    let left = [&full, &middle, &leaf].map(|manifest| (manifest.backup_id, manifest.parent()));
    assert_eq!(standing(world), left, "nor does what would go before it");
    assert!(world.staging().is_empty(), "{:?}", world.staging());
    world.pin(&middle, false);
    done(&mut mover, Request::Release).await;
    for request in [delete(&[&leaf]), Request::RemoveDeleted { instance }, merge(&middle, &full)] {
        assert_eq!(refused(&mut mover, request).await.code, Code::Internal, "the lease is given back");
    }
    assert_eq!(chains(&mut mover, instance).await.len(), 3, "but may be looked at");
    done(&mut mover, lease(InstanceId::draw())).await;
    assert_eq!(refused(&mut mover, delete(&[&leaf])).await.code, Code::Internal, "it is another's lease");
    assert_eq!(standing(world), left);
    leave(mover).await;
}

pub async fn what_cannot_be_merged_is_refused_and_nothing_is_made(world: &dyn World) {
    let (mut mover, [full, middle, leaf]) = chain_of_three(world, "unmerged").await;
    let unknown = Manifest { backup_id: BackupId::draw(), ..middle.clone() };
    for (child, from) in [(&unknown, &middle), (&leaf, &unknown)] {
        assert_eq!(refused(&mut mover, merge(child, from)).await.code, Code::BackupNotFound);
    }
    let nothing = Reply::Merged { bytes: 0, replaced_bytes: 0 };
    assert_eq!(mover.ask(merge(&leaf, &full), SOON).await.unwrap(), nothing, "it is not based on that one");
    world.damage(&middle);
    let failure = refused(&mut mover, merge(&leaf, &middle)).await;
    assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
    done(&mut mover, Request::Discard).await;
    assert!(world.staging().is_empty(), "{:?}", world.staging());
    assert_eq!(world.published().len(), 3);
    // What is damaged can go with all that depends on it.
    done(&mut mover, delete(&[&leaf, &middle])).await;
    done(&mut mover, Request::RemoveDeleted { instance: full.instance_id }).await;
    leave(mover).await;
}
