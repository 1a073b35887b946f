//! Backups that go through the queue: of an instance that is here and of one that is nowhere, and what is left can be read.

use std::fs;
use std::path::PathBuf;

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, DeleteSummary, RunDetail};
use longshore::message::job::{DeletePart, InstancePart};
use longshore::model::id::{BackupId, JobId};
use longshore::model::manifest::Manifest;
use longshore::model::pin::Pin;

use crate::chains::{Next, content, content_of, directory, put_child, put_full};
use crate::fleet::{Fleet, JOB};
use crate::lab::{LabInstance, eventually};
use crate::share::Share;
use crate::slate::processes_of;

const MIB: u64 = 1 << 20;

/// A full backup and two on top of it, of an instance that nobody has any more.
pub struct Chain<'f> {
    fleet: &'f Fleet,
    share: &'f Share,
    bare: &'f LabInstance,
    backups: [Manifest; 3],
    held: [Vec<u8>; 3],
}

impl<'f> Chain<'f> {
    pub fn new(fleet: &'f Fleet, share: &'f Share, bare: &'f LabInstance) -> Self {
        let instances = instances(share);
        let full = put_full(&instances, share.id.parse().unwrap(), &[("vda", 32 * MIB, &["write -P 1 0 24M"])]);
        let middle = put_child(&instances, &full, &[Next::writes("vda", &["write -P 2 4M 12M", "write -z 0 1M"])]);
        let leaf = put_child(&instances, &middle, &[Next::writes("vda", &["write -P 3 12M 8M"])]);
        let backups = [full, middle, leaf];
        let held = backups.each_ref().map(|backup| content(&instances, backup, "vda"));
        Self { fleet, share, bare, backups, held }
    }

    fn job(&self, point: usize, mode: &str) -> JobMessage {
        self.job_of(self.fleet, point, mode)
    }

    /// Likewise, of another host's worker.
    pub fn job_of(&self, fleet: &Fleet, point: usize, mode: &str) -> JobMessage {
        let id = self.backups[point].instance_id.to_string();
        deletion(
            fleet,
            self.share,
            self.bare,
            InstancePart { id: Some(id), name: None },
            self.backups[point].backup_id,
            mode,
        )
    }

    /// Which of them are left. Those hold what they held.
    pub fn left(&self) -> Vec<usize> {
        let instances = instances(self.share);
        let there = |point: &usize| directory(&instances, &self.backups[*point]).join(Manifest::FILE).exists();
        let left: Vec<_> = (0..3).filter(there).collect();
        for point in &left {
            assert!(content(&instances, &self.backups[*point], "vda") == self.held[*point], "{point}");
        }
        let others = self.share.entries_of(&self.backups[0].instance_id);
        assert!(!others.iter().any(|name| name.starts_with('.') && name != ".highest-number"), "{others:?}");
        left
    }
}

/// Seen past every fault of the share.
fn instances(share: &Share) -> PathBuf {
    share.backups_of(&"").parent().unwrap().join("instances")
}

pub fn deletion(
    fleet: &Fleet,
    share: &Share,
    bare: &LabInstance,
    instance: InstancePart,
    backup: BackupId,
    mode: &str,
) -> JobMessage {
    let delete = DeletePart { backup_id: backup.to_string(), mode: Some(mode.to_owned()), dry_run: false };
    JobMessage {
        kind: "backup-delete".to_owned(),
        instance: Some(instance),
        backup: None,
        delete: Some(delete),
        ..fleet.job(bare, share)
    }
}

/// Waits for the deletion's good end.
fn deleted(fleet: &Fleet, job: JobId) -> DeleteSummary {
    *fleet.done(job).delete.expect("a deletion says what it deleted")
}

fn ids(summary: &DeleteSummary) -> Vec<BackupId> {
    summary.deleted.iter().map(|deleted| deleted.backup_id).collect()
}

#[test]
fn backups_of_an_instance_that_is_nowhere_are_merged_pinned_and_deleted() {
    let fleet = Fleet::start("delete");
    let (share, bare) = (fleet.share(), LabInstance::bare());
    let chain = Chain::new(&fleet, &share, &bare);
    let [full, middle, leaf] = chain.backups.each_ref().map(|backup| backup.backup_id);

    let mut dry = chain.job(1, "only");
    dry.delete.as_mut().unwrap().dry_run = true;
    let told = deleted(&fleet, fleet.publish(&dry));
    assert!(told.dry_run && ids(&told) == [middle] && told.merged.len() == 1, "{told:?}");
    assert_eq!(chain.left(), [0, 1, 2]);
    assert_eq!(fleet.failed(fleet.publish(&chain.job(1, "leaf_only"))).failure.code, "backup_has_children");

    let pin = directory(&instances(&share), &chain.backups[1]).join(Pin::FILE);
    fs::write(&pin, r#"{"reason": "an audit"}"#).unwrap();
    for mode in ["only", "chain"] {
        assert_eq!(fleet.failed(fleet.publish(&chain.job(1, mode))).failure.code, "backup_pinned");
    }
    assert_eq!(chain.left(), [0, 1, 2]);
    fs::remove_file(pin).unwrap();

    let told = deleted(&fleet, fleet.publish(&chain.job(1, "only")));
    assert_eq!((ids(&told), told.dry_run), (vec![middle], false));
    let merged = told.merged[0];
    assert_eq!((merged.backup_id, merged.from, merged.onto), (leaf, middle, Some(full)));
    assert!(told.freed_bytes > 3 * MIB && told.freed_bytes < 5 * MIB, "the leaf covered 4 of its 12 MiB: {told:?}");
    assert_eq!(chain.left(), [0, 2]);
    assert_eq!(fleet.failed(fleet.publish(&chain.job(1, "only"))).failure.code, "backup_not_found");
    let told = deleted(&fleet, fleet.publish(&chain.job(0, "chain")));
    assert_eq!(ids(&told), [leaf, full]);
    assert_eq!(chain.left(), [0; 0]);
    fleet.finish(&[&bare], &[&share]);
}

/// From the command line, by the instance's name.
fn delete_by_hand(fleet: &Fleet, share: &Share, bare: &LabInstance, backup: &BackupSummary) -> String {
    let id = backup.backup_id.to_string();
    let job = ["job", "publish", "backup-delete", "--watch", "--host", &fleet.host, "--instance", &bare.name];
    let on = ["--repository-id", &share.id, "--address", share.path.to_str().unwrap(), "--backup", &id];
    let output = fleet.command(&[&job[..], &on].concat()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("deleted      backup {id} (number {})", backup.number)), "{said}");
    said
}

#[test]
fn points_of_a_running_instances_chain_go_from_the_command_line_and_the_chain_goes_on() {
    let fleet = Fleet::start("delete-cli");
    let (share, bare) = (fleet.share(), LabInstance::bare());
    let back_up = || fleet.completed(fleet.back_up(&bare, &share, "off"));
    let full = back_up();
    bare.overwrite(0, 0x11, "3M");
    let second = back_up();
    bare.overwrite(0, 0x22, "128k");
    let third = back_up();
    assert_eq!((second.parent, third.parent), (Some(full.backup_id), Some(second.backup_id)));
    let image = |backup: &BackupSummary, disk: &str| share.path.join(&backup.directory).join(format!("{disk}.qcow2"));
    let held = ["vda", "vdb"].map(|disk| content_of(&image(&third, disk)));

    let said = delete_by_hand(&fleet, &share, &bare, &second);
    let merged = format!("merged       what backup {} held, into {}", second.backup_id, third.backup_id);
    assert!(said.contains(&merged), "{said}");
    assert!(["vda", "vdb"].map(|disk| content_of(&image(&third, disk))) == held);
    delete_by_hand(&fleet, &share, &bare, &full);
    assert!(["vda", "vdb"].map(|disk| content_of(&image(&third, disk))) == held);
    let mut left = share.entries_of(&bare.id);
    left.sort();
    assert_eq!(left, [".highest-number".to_owned(), third.backup_id.to_string()]);

    // What is left is what the next one is based on, and its number is its own.
    bare.overwrite(0, 0x33, "64k");
    let fourth = back_up();
    assert_eq!((fourth.parent, fourth.number), (Some(third.backup_id), 4));
    assert_eq!(fourth.disks[0].data_bytes, 64 << 10, "by the bitmap");
    delete_by_hand(&fleet, &share, &bare, &fourth);
    let fifth = back_up();
    assert_eq!((fifth.parent, fifth.number), (Some(third.backup_id), 5));
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_deletion_whose_worker_is_killed_is_done_by_the_next_one() {
    let mut fleet = Fleet::start("killed-delete");
    let (share, bare) = (Share::faulty("killed-delete"), LabInstance::bare());
    let (job, backups, held) = {
        let chain = Chain::new(&fleet, &share, &bare);
        (chain.job(1, "only"), chain.backups, chain.held)
    };
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.publish(&job);
    fleet.is_moving(job, "merge");
    fleet.kill_worker();
    eventually("the mover is gone", JOB, || processes_of(&fleet.folder).is_empty());
    share.heal();
    // As if the dead one's lease had been watched until it was clear that nobody holds it any more, which takes minutes.
    let locks = instances(&share).with_file_name("locks").join(backups[0].instance_id.to_string());
    let held_by_the_dead = fs::read_dir(locks).unwrap().map(|lease| lease.unwrap().path()).max().unwrap();
    fs::write(held_by_the_dead.join("released"), "").unwrap();
    fleet.start_worker();
    let retrying = fleet.heard.of_run(job, "the run goes on", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
    assert_eq!((retrying.failure.code.as_str(), &retrying.left_overs[..]), ("interrupted", &[][..]));
    let RunDetail::Completed(completed) = fleet.heard.end_of(job, JOB) else { panic!("it is not done") };
    assert!(completed.warnings.iter().all(|warning| warning.contains("an earlier attempt")), "{completed:?}");
    assert_eq!((completed.warnings.len(), completed.delete.unwrap().deleted.len()), (1, 1));
    let chain = Chain { fleet: &fleet, share: &share, bare: &bare, backups, held };
    assert_eq!(chain.left(), [0, 2]);
    fleet.finish(&[&bare], &[&share]);
}
