//! Random forests of backups, each with a content of its own: whatever is planned for them, what is left can be read as before.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// Blocks of a disk of the tests.
const BLOCKS: usize = 4;

/// The blocks that an image holds itself; the others are its parent's.
type Image = [Option<u8>; BLOCKS];

fn id(index: usize) -> BackupId {
    BackupId(Uuid::from_u128(index as u128 + 1))
}

/// For each backup which earlier one it is based on, if any, whether it is pinned, and what its image holds.
fn forests() -> impl Strategy<Value = Vec<(Option<usize>, bool, Image)>> {
    let one = (any::<prop::sample::Index>(), 0_u8..8, prop::array::uniform4(prop::option::of(any::<u8>())));
    prop::collection::vec(one, 1..12).prop_map(|all| {
        let link = |(index, (parent, dice, image)): (usize, (prop::sample::Index, u8, Image))| {
            let parent = (index > 0 && dice > 1).then(|| parent.index(index.max(1)));
            (parent, dice == 7, image)
        };
        all.into_iter().enumerate().map(link).collect()
    })
}

fn member(index: usize, parent: Option<usize>, pinned: bool) -> Member {
    Member {
        backup_id: id(index),
        number: Some(index as u64 + 1),
        based_on: parent.map(id).into_iter().collect(),
        images_on: parent.map(id).into_iter().collect(),
        unclear: None,
        bytes: 100,
        pinned,
    }
}

/// The share: what each backup is based on, and what its image holds.
#[derive(Clone)]
struct Share(BTreeMap<BackupId, (Option<BackupId>, Image)>);

impl Share {
    /// The content of a backup; none where something of its chain is missing.
    fn content(&self, backup: BackupId) -> Option<[u8; BLOCKS]> {
        let mut content = [None; BLOCKS];
        let mut next = Some(backup);
        while let Some(backup) = next {
            let (parent, image) = self.0.get(&backup)?;
            content.iter_mut().zip(image).for_each(|(block, own)| *block = block.or(*own));
            next = *parent;
        }
        Some(content.map(Option::unwrap_or_default))
    }

    fn merge(&mut self, merge: MergedBackup) {
        let (below, of_parent) = self.0[&merge.from];
        let (parent, image) = self.0.get_mut(&merge.backup_id).unwrap();
        assert_eq!((*parent, below), (Some(merge.from), merge.onto));
        image.iter_mut().zip(of_parent).for_each(|(own, parents)| *own = own.or(parents));
        *parent = merge.onto;
    }

    /// Everything that is there can be read, and holds what it did.
    fn is_as(&self, before: &Share) -> bool {
        self.0.keys().all(|backup| self.content(*backup).is_some() && self.content(*backup) == before.content(*backup))
    }
}

proptest! {
    #[test]
    fn whatever_is_planned_leaves_every_other_backup_as_it_was_at_every_step(
        forest in forests(), wanted in any::<prop::sample::Index>(), mode in 0_usize..3,
    ) {
        let mode = [DeleteMode::Only, DeleteMode::Chain, DeleteMode::LeafOnly][mode];
        let members: Vec<_> =
            forest.iter().enumerate().map(|(index, (parent, pinned, _))| member(index, *parent, *pinned)).collect();
        let before = Share(
            forest.iter().enumerate().map(|(index, (parent, _, image))| (id(index), (parent.map(id), *image))).collect(),
        );
        let wanted = id(wanted.index(forest.len()));
        let children = children_of(&members, wanted).len();
        match plan(&members, wanted, mode) {
            Ok(plan) => {
                let mut share = before.clone();
                if let Some(merge) = plan.merged {
                    share.merge(merge);
                    prop_assert!(share.is_as(&before));
                }
                for deleted in &plan.deleted {
                    prop_assert!(share.0.remove(&deleted.backup_id).is_some(), "{plan:?}");
                    prop_assert!(share.is_as(&before), "after {} of {plan:?}", deleted.backup_id);
                }
                let pinned = |backup: &DeletedBackup| members.iter().any(|m| m.backup_id == backup.backup_id && m.pinned);
                prop_assert!(!plan.deleted.iter().any(pinned));
                prop_assert_eq!(plan.deleted.last().map(|last| last.backup_id), Some(wanted));
                prop_assert_eq!(plan.freed_bytes, plan.deleted.len() as u64 * 100);
                prop_assert!(mode == DeleteMode::Chain || plan.deleted.len() == 1);
                prop_assert_eq!(plan.merged.is_some(), mode == DeleteMode::Only && children == 1);
            }
            Err(failure) if failure.code == Code::BackupHasChildren => {
                prop_assert!(children > usize::from(mode == DeleteMode::Only) && mode != DeleteMode::Chain);
            }
            Err(failure) => {
                prop_assert_eq!(failure.code, Code::BackupPinned);
                prop_assert!(members.iter().any(|member| member.pinned));
            }
        }
    }
}

#[test]
fn a_refusal_names_what_is_in_the_way() {
    let family = [member(0, None, false), member(1, Some(0), false), member(2, Some(0), true)];
    let refused = |members: &[Member], index: usize, mode| plan(members, id(index), mode).unwrap_err();
    for mode in [DeleteMode::Only, DeleteMode::LeafOnly] {
        let refusal = refused(&family, 0, mode);
        assert_eq!(refusal.code, Code::BackupHasChildren);
        assert!([1, 2].iter().all(|child| refusal.text.contains(&id(*child).to_string())), "{refusal}");
    }
    for (index, mode) in [(0, DeleteMode::Chain), (2, DeleteMode::Only), (2, DeleteMode::LeafOnly)] {
        let refusal = refused(&family, index, mode);
        assert_eq!(refusal.code, Code::BackupPinned);
        assert!(refusal.text.contains(&id(2).to_string()), "{refusal}");
    }
    assert_eq!(refused(&family, 7, DeleteMode::Chain).code, Code::BackupNotFound);
    let wide: Vec<_> = (0..20).map(|index| member(index, (index > 0).then_some(0), false)).collect();
    assert!(refused(&wide, 0, DeleteMode::Only).text.contains(" and 9 more are based on it"));
}

#[test]
fn a_pinned_child_may_take_over_what_its_parent_held() {
    let chain = [member(0, None, false), member(1, Some(0), true)];
    let planned = plan(&chain, id(0), DeleteMode::Only).unwrap();
    assert_eq!(planned.merged, Some(MergedBackup { backup_id: id(1), from: id(0), onto: None }));
}

#[test]
fn what_cannot_be_read_goes_but_is_never_merged() {
    let unreadable = |index, parents: &[usize]| Member {
        number: None,
        images_on: parents.iter().map(|parent| id(*parent)).collect(),
        ..member(index, None, false)
    };
    let alone = [member(0, None, false), unreadable(1, &[])];
    assert_eq!(plan(&alone, id(1), DeleteMode::Only).unwrap().deleted.len(), 1);
    for chain in [[unreadable(0, &[]), member(1, Some(0), false)], [member(0, None, false), unreadable(1, &[0])]] {
        assert_eq!(plan(&chain, id(0), DeleteMode::Only).unwrap_err().code, Code::BackupDamaged);
        assert_eq!(plan(&chain, id(0), DeleteMode::Chain).unwrap().deleted.len(), 2);
    }
}

/// The second of four was being merged into the third when that was cut off.
fn cut_off() -> Vec<Member> {
    let mut chain: Vec<_> = (0..4_usize).map(|index| member(index, index.checked_sub(1), false)).collect();
    chain[2].images_on = [id(0)].into();
    chain
}

#[test]
fn what_a_merge_that_was_cut_off_has_based_on_it_stays() {
    let chain = cut_off();
    for mode in [DeleteMode::Only, DeleteMode::LeafOnly] {
        let refusal = plan(&chain, id(0), mode).unwrap_err();
        assert_eq!(refusal.code, Code::BackupHasChildren);
        let text = format!("merging backup `{}` into `{}` was cut off", id(1), id(2));
        assert!(refusal.text.contains(&text), "{refusal}");
    }
    // With the child out of the way, there is nothing to be broken.
    let all = plan(&chain, id(0), DeleteMode::Chain).unwrap().deleted;
    assert_eq!(all.iter().map(|one| one.backup_id).collect::<Vec<_>>(), [3, 2, 1, 0].map(id));
    let finished = plan(&chain, id(1), DeleteMode::Only).unwrap();
    assert_eq!(finished.merged, Some(MergedBackup { backup_id: id(2), from: id(1), onto: Some(id(0)) }));
    // Whoever asks the mover for it finds the same, whatever else is merged.
    assert_eq!(may_go(&chain, Some((id(1), id(0))), &[id(0)]).unwrap_err().code, Code::BackupHasChildren);
    may_go(&chain, Some((id(2), id(1))), &[id(1)]).unwrap();
    may_go(&chain, None, &[id(3), id(2)]).unwrap();
    may_go(&chain, None, &[id(7)]).unwrap();
    // Nor is another merge begun for a child that says that it is based on somebody else.
    let stray = [member(0, None, false), Member { images_on: [id(0)].into(), ..member(1, None, false) }];
    let refusal = plan(&stray, id(0), DeleteMode::Only).unwrap_err();
    assert!(refusal.code == Code::BackupHasChildren && refusal.text.contains("its images do"), "{refusal}");
}

#[test]
fn nothing_goes_that_might_be_what_an_image_needs_which_says_nothing() {
    let why = || Some(Failure::new(Code::BackupDamaged, "scripted"));
    let unclear = |member: Member| Member { unclear: why(), images_on: BTreeSet::new(), ..member };
    // Of a chain of three and one that stands alone, the last of the chain says nothing.
    let mut all: Vec<_> = (0..3_usize).map(|index| member(index, index.checked_sub(1), false)).collect();
    all.push(member(3, None, false));
    all[2] = unclear(all[2].clone());
    for (index, mode) in [(0, DeleteMode::Only), (1, DeleteMode::Only)] {
        let refusal = plan(&all, id(index), mode).unwrap_err();
        assert_eq!(refusal.code, Code::BackupDamaged, "{index}");
        assert!(refusal.text.contains(&id(2).to_string()) && refusal.causes == ["scripted"], "{refusal:#}");
    }
    for (index, count) in [(0, 3), (1, 2), (2, 1), (3, 1)] {
        assert_eq!(plan(&all, id(index), DeleteMode::Chain).unwrap().deleted.len(), count);
    }
    // Without a manifest it might be based on any.
    all[2] = Member { number: None, based_on: BTreeSet::new(), ..all[2].clone() };
    for index in [0, 1, 3] {
        assert_eq!(plan(&all, id(index), DeleteMode::Chain).unwrap_err().code, Code::BackupDamaged, "{index}");
    }
    assert_eq!(plan(&all, id(2), DeleteMode::LeafOnly).unwrap().deleted.len(), 1);
}

#[test]
fn the_manifests_may_lead_in_a_circle() {
    let mut circle = vec![member(0, Some(1), false), member(1, Some(0), false), member(2, Some(0), false)];
    circle.push(member(3, None, false));
    circle[2].unclear = Some(Failure::new(Code::RepositoryIo, "scripted"));
    may_go(&circle, None, &[id(3)]).unwrap();
    // What may pass is tried again, and what can't be read itself may go.
    assert_eq!(may_go(&circle, None, &[id(1)]).unwrap_err().code, Code::RepositoryIo);
    may_go(&circle, None, &[id(2)]).unwrap();
}

#[test]
fn backups_that_somebody_has_based_on_each_other_end_the_search() {
    let circle = [member(0, Some(1), false), member(1, Some(0), false)];
    assert_eq!(plan(&circle, id(0), DeleteMode::Chain).unwrap_err().code, Code::BackupHasChildren);
    let long: Vec<_> = (0..1000).map(|index: usize| member(index, index.checked_sub(1), false)).collect();
    assert_eq!(plan(&long, id(0), DeleteMode::Chain).unwrap().deleted.len(), 1000);
}
