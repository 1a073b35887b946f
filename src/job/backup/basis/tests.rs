//! Which backup the next one is based on, disk by disk.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::job::backup::plan::{PushPlan, SourcePlan};
use crate::model::id::{BackupId, InstanceId, JobId, RepositoryId};
use crate::model::instance::{DiskSource, ImageFormat, PowerState};
use crate::model::job::Quiesce;
use crate::model::manifest::{BasedOn, ChangesFoundBy, Consistency, MadeBy, QuiesceRecord, TransferUsed};

const BYTES: u64 = 8 << 30;

fn disk(target: &str) -> ManifestDisk {
    ManifestDisk {
        target: target.parse().unwrap(),
        serial: None,
        source: DiskSource::File { path: "/x".into(), format: ImageFormat::Qcow2 },
        pool_volume: None,
        file: format!("{target}.qcow2"),
        virtual_bytes: BYTES,
        file_bytes: 0,
        data_bytes: 0,
        blocks_file: format!("{target}.blocks"),
        content_root: format!("{target} then"),
        based_on: None,
        full_reason: None,
        checkpoint: None,
    }
}

fn backup(number: u64, disks: Vec<ManifestDisk>) -> Manifest {
    Manifest {
        format: Manifest::FORMAT,
        backup_id: BackupId::draw(),
        number,
        repository_id: RepositoryId::draw(),
        instance_id: InstanceId::draw(),
        instance_name: "web".parse().unwrap(),
        instance_state: PowerState::Running,
        job_id: JobId::draw(),
        run: 1,
        attempt: 1,
        transfer: TransferUsed::Pull,
        taken_at: jiff::Timestamp::UNIX_EPOCH,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
        quiesce: QuiesceRecord {
            requested: Quiesce::Off,
            consistency: Consistency::Crash,
            not_frozen: Vec::new(),
            frozen_ms: None,
            reason: None,
        },
        guest: None,
        verification: Proof::Compared,
        disks,
        skipped_disks: Vec::new(),
        records: Vec::new(),
        made_by: MadeBy {
            host: "kvm-07".parse().unwrap(),
            longshore: "0.1.0".into(),
            libvirt: "11.3.0".into(),
            qemu: "10.0.0".into(),
        },
        labels: BTreeMap::new(),
        warnings: Vec::new(),
    }
}

/// A full backup of those disks and so many on top of it, the latest last.
fn chain(targets: &[&str], above: usize) -> Vec<Manifest> {
    let mut backups: Vec<Manifest> = Vec::new();
    for number in 0..=above {
        let parent = backups.last();
        let based_on = |target: &str| {
            let found_by = ChangesFoundBy::Hashes;
            parent.map(|parent| BasedOn {
                backup_id: parent.backup_id,
                content_root: format!("{target} then"),
                found_by,
            })
        };
        let disks = targets.iter().map(|target| ManifestDisk { based_on: based_on(target), ..disk(target) }).collect();
        backups.push(backup(number as u64 + 1, disks));
    }
    backups
}

fn plan(mode: BackupMode, targets: &[&str]) -> BackupPlan {
    let plan: BackupPlan = serde_json::from_str(include_str!("../../../../tests/fixtures/backup-plan.json")).unwrap();
    let disks = targets.iter().map(|target| PlannedDisk {
        target: target.parse().unwrap(),
        serial: None,
        source: DiskSource::File { path: "/x".into(), format: ImageFormat::Qcow2 },
        pool_volume: None,
        data_elsewhere: false,
        virtual_bytes: Some(BYTES),
        allocated_bytes: None,
    });
    BackupPlan { mode, disks: disks.collect(), ..plan }
}

/// The repository that all of it is in.
fn repository() -> RepositoryId {
    "01890000-0000-7000-8000-00000000000c".parse().unwrap()
}

fn chosen(plan: &BackupPlan, backups: &[Manifest]) -> Basis {
    choose(plan, repository(), backups, 0)
}

fn reason(basis: &Basis, target: &str) -> String {
    basis.full_reason(&target.parse().unwrap()).unwrap_or_default().to_owned()
}

#[test]
fn a_disk_is_based_on_what_the_latest_backup_holds_of_it() {
    let backups = chain(&["vda"], 2);
    let basis = chosen(&plan(BackupMode::Auto, &["vda", "vdb"]), &backups);
    let base = basis.base(&"vda".parse().unwrap()).unwrap();
    assert_eq!((base.backup, base.content_root.as_str()), (backups[2].backup_id, "vda then"));
    assert!(reason(&basis, "vdb").contains("has no such disk"));
}

#[test]
fn a_full_backup_is_based_on_nothing_and_nobody_asks_why() {
    let basis = chosen(&plan(BackupMode::Full, &["vda"]), &chain(&["vda"], 0));
    assert!(basis.disks.is_empty(), "{basis:?}");
    assert!(reason(&chosen(&plan(BackupMode::Incremental, &["vda"]), &[]), "vda").contains("first backup"));
}

#[test]
fn a_chain_becomes_as_long_as_the_job_says_and_never_longer_than_can_be_restored() {
    let of = |mode, images: usize| chosen(&plan(mode, &["vda"]), &chain(&["vda"], images - 1));
    let target = "vda".parse().unwrap();
    assert!(of(BackupMode::Auto, 6).base(&target).is_some());
    assert!(reason(&of(BackupMode::Auto, 7), "vda").contains("has 7 images, and may have 7"));
    assert!(of(BackupMode::Incremental, CHAIN_IMAGES_MAX - 1).base(&target).is_some());
    assert!(reason(&of(BackupMode::Incremental, CHAIN_IMAGES_MAX), "vda").contains("20 images"));
}

#[test]
fn what_cannot_be_stood_on_is_told() {
    let plan = |mode| plan(mode, &["vda"]);
    let change = |change: &dyn Fn(&mut Manifest)| {
        let mut backups = chain(&["vda"], 1);
        change(backups.last_mut().unwrap());
        reason(&chosen(&plan(BackupMode::Auto), &backups), "vda")
    };
    assert!(change(&|latest| latest.verification = Proof::Unverified).contains("was not verified"));
    assert!(change(&|latest| latest.disks[0].serial = Some("another".into())).contains("has no such disk"));
    assert!(change(&|latest| latest.disks[0].virtual_bytes = BYTES + 1).contains("became smaller"));
    let mut broken = chain(&["vda"], 1);
    broken.remove(0);
    assert!(reason(&chosen(&plan(BackupMode::Auto), &broken), "vda").contains("chain"));
    let push = PushPlan { place: "/run/x".into(), images: Vec::new(), qemu_owner: None };
    assert!(reason(&choose(&plan(BackupMode::Auto), repository(), &[], 3), "vda").contains("none of the 3"));
    let pushed = BackupPlan { source: SourcePlan::Push(push), ..plan(BackupMode::Auto) };
    assert!(reason(&chosen(&pushed, &chain(&["vda"], 0)), "vda").contains("nothing tells it"));
}

/// The checkpoints since which changes may be asked for, of a latest backup that was changed so.
fn believed(change: impl FnOnce(&mut Manifest)) -> usize {
    let mut backups = chain(&["vda"], 1);
    let latest = backups.last_mut().unwrap();
    latest.disks[0].checkpoint = Some(tracking::name(repository(), latest.backup_id, 1));
    change(latest);
    let basis = chosen(&plan(BackupMode::Auto, &["vda"]), &backups);
    assert!(basis.base(&"vda".parse().unwrap()).is_some(), "hashes are right in any case");
    basis.since.len()
}

#[test]
fn a_bitmap_is_believed_only_of_the_very_volume_that_was_compared_and_by_the_name_that_we_give() {
    assert_eq!(believed(|_| {}), 1);
    let elsewhere = DiskSource::File { path: "/y".into(), format: ImageFormat::Qcow2 };
    assert_eq!(believed(|latest| latest.disks[0].source = elsewhere), 0, "it has another disk's bitmap of that name");
    assert_eq!(believed(|latest| latest.verification = Proof::Structure), 0, "nothing was compared");
    for name in [
        "another-programs".to_owned(),
        tracking::name(RepositoryId::draw(), BackupId::draw(), 1),
        tracking::name(repository(), BackupId::draw(), 1),
    ] {
        assert_eq!(believed(|latest| latest.disks[0].checkpoint = Some(name)), 0);
    }
}

/// A plan that pushes the disk, and what it would have QEMU told of a latest backup that was changed so.
fn told(plan: impl FnOnce(&mut BackupPlan), change: impl FnOnce(&mut Manifest)) -> bool {
    let mut backups = chain(&["vda"], 1);
    let latest = backups.last_mut().unwrap();
    latest.disks[0].checkpoint = Some(tracking::name(repository(), latest.backup_id, 1));
    change(latest);
    let push = PushPlan { place: "/run/x".into(), images: Vec::new(), qemu_owner: None };
    let checkpoint = Some("new".to_owned());
    let mut pushed = self::plan(BackupMode::Auto, &["vda"]);
    (pushed.source, pushed.checkpoint) = (SourcePlan::Push(push), checkpoint);
    plan(&mut pushed);
    let basis = chosen(&pushed, &backups);
    assert_eq!(basis.base(&"vda".parse().unwrap()).is_some(), !basis.since.is_empty(), "it has no hashes to go by");
    let mut elsewhere = pushed.clone();
    elsewhere.disks.iter_mut().for_each(|disk| disk.data_elsewhere = true);
    assert!(chosen(&elsewhere, &backups).since.is_empty(), "others may write to its data");
    !basis.since.is_empty()
}

#[test]
fn qemu_is_told_since_when_only_where_all_that_it_leaves_out_is_what_it_was() {
    assert!(told(|_| {}, |_| {}));
    assert!(told(|_| {}, |latest| latest.verification = Proof::Structure), "it is proven as far as this one will be");
    assert!(!told(|_| {}, |latest| latest.verification = Proof::Unverified));
    assert!(!told(|plan| plan.disks[0].virtual_bytes = Some(BYTES + 512), |_| {}), "it grew");
    assert!(!told(|plan| plan.checkpoint = None, |_| {}), "this hypervisor has no checkpoints");
    assert!(!told(|_| {}, |latest| latest.disks[0].checkpoint = None));
}

#[test]
fn a_backup_without_a_checkpoint_leaves_its_place_to_that_of_the_one_that_it_stands_on() {
    let since = |at: usize, change: &dyn Fn(&mut [Manifest])| {
        let mut backups = chain(&["vda"], 3);
        backups[at].disks[0].checkpoint = Some(tracking::name(repository(), backups[at].backup_id, 1));
        change(&mut backups);
        let basis = chosen(&plan(BackupMode::Auto, &["vda"]), &backups);
        let found = basis.since.values().next().map(|since| since.held.backup);
        let named = basis.checkpoints.values().flatten().count();
        (found == Some(backups[at].backup_id), basis.since.len(), named)
    };
    for at in 0..4 {
        assert_eq!(since(at, &|_| {}), (true, 1, 1), "{at}");
    }
    assert_eq!(since(1, &|backups| backups[2].verification = Proof::Structure).1, 0);
    let elsewhere = DiskSource::File { path: "/y".into(), format: ImageFormat::Qcow2 };
    assert_eq!(since(1, &|backups| backups[2].disks[0].source = elsewhere.clone()).1, 0, "it was another volume");
    let later = |backups: &mut [Manifest]| {
        backups[3].disks[0].checkpoint = Some("another-programs".to_owned());
    };
    assert_eq!(since(1, &later).1, 0, "none is passed over");
}

#[test]
fn the_latest_backups_checkpoint_is_known_whatever_is_based_on_it() {
    let mut backups = chain(&["vda", "vdb"], 0);
    let name = tracking::name(repository(), backups[0].backup_id, 2);
    for disk in &mut backups[0].disks {
        disk.checkpoint = Some(name.clone());
    }
    let basis = chosen(&plan(BackupMode::Full, &["vda"]), &backups);
    let lost: Vec<_> = tracking::unknown(&basis, &[]).map(|lost| (lost.name, lost.disks.len())).collect();
    assert_eq!(lost, [(name.clone(), 2)]);
    assert_eq!(tracking::unknown(&basis, &[name]).count(), 0);
}

#[test]
fn a_raw_disk_whose_size_is_no_whole_sector_has_not_become_smaller() {
    let mut odd = plan(BackupMode::Auto, &["vda"]);
    odd.disks[0].virtual_bytes = Some(BYTES - 100);
    assert!(chosen(&odd, &chain(&["vda"], 0)).base(&"vda".parse().unwrap()).is_some());
}
