//! Whole jobs of an instance whose disks are logical volumes, one of them thin: on the only host of these tests that has a device mapper.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use longshore::message::event::{BackupSummary, Completed, RestoreSummary};
use longshore::message::job::{BackupPart, JobMessage};
use longshore::model::manifest::{Proof, TransferUsed};

use crate::fleet::{Fleet, Settings};
use crate::image::{equal, qemu_img};
use crate::lab::{LabInstance, virsh};
use crate::logical::{Group, name_of};
use crate::loops::tool;
use crate::share::Share;

/// Of the disk that the group is on.
const GROUP_BYTES: u64 = 96 << 20;
/// What every byte of the group held before: nothing may be taken for zeros.
const OLD: u8 = 0xee;
/// Of the pool, where a restore leaves room to others as well.
const POOL_BYTES: u64 = 40 << 20;
/// What the disks hold (`table.rs` has the same), one extent of the group's or two.
const DISKS: &str = "vda:qcow2:8,vdb:raw:2";
const VOLUMES: [(&str, u64); 2] = [("web", 8 << 20), ("data", 4 << 20)];
/// What the guest writes, and what whoever damages a volume does.
const WRITTEN: u8 = 0x5a;
const DAMAGE: u8 = 0xdd;
const DAMAGED_BYTES: usize = 1 << 20;
/// Nobody waits for heartbeats.
const HEARTBEAT: u64 = 15;

/// An instance on two logical volumes, shut off.
struct OnVolumes {
    // In this order they go.
    bare: LabInstance,
    group: Group,
    definition: String,
    /// What the device mapper has.
    mapped: BTreeSet<String>,
}

impl OnVolumes {
    fn new(fleet: &Fleet) -> Self {
        let group = Group::new(fleet.folder.join("pv"), GROUP_BYTES, OLD);
        let [(web, web_bytes), (data, data_bytes)] = VOLUMES;
        group.linear(web, web_bytes);
        group.pool("pool", POOL_BYTES);
        group.thin("pool", data, data_bytes);
        let bare = LabInstance::bare_off_with(DISKS);
        // The one is named as in its group, the other as by the device mapper.
        let paths = [group.path(web), Path::new("/dev/mapper").join(format!("{}-{data}", group.name))];
        for (path, format) in paths.iter().zip(["qcow2", "raw"]) {
            let (disk, path) = (disk_of(&bare, format), path.to_str().unwrap());
            qemu_img(&["convert", "-n", "-f", format, "-O", "raw", disk.to_str().unwrap(), path]);
        }
        bare.redefine(|definition| {
            let definition = definition.replace("<disk type='file'", "<disk type='block'");
            let definition = definition.replace("type='qcow2'", "type='raw'");
            let [vda, vdb] = ["qcow2", "raw"].map(|format| format!("file='{}'", disk_of(&bare, format).display()));
            let [web, data] = paths.map(|path| format!("dev='{}'", path.display()));
            definition.replace(&vda, &web).replace(&vdb, &data)
        });
        let definition = defined(&bare);
        assert_eq!(definition.matches("<source dev=").count(), VOLUMES.len(), "{definition}");
        let mapped = mapped(&group);
        Self { bare, group, definition, mapped }
    }

    fn path(&self, volume: usize) -> PathBuf {
        self.group.path(VOLUMES[volume].0)
    }

    fn content(&self) -> [Vec<u8>; 2] {
        [0, 1].map(|volume| fs::read(self.path(volume)).unwrap())
    }

    fn damage(&self) {
        for volume in [0, 1] {
            let file = File::options().write(true).open(self.path(volume)).unwrap();
            file.write_all_at(&[DAMAGE; DAMAGED_BYTES], DAMAGED_BYTES as u64).unwrap();
            file.sync_all().unwrap();
        }
    }

    /// A backup as it has to be, of what the volumes hold.
    fn back_up(&self, fleet: &Fleet, share: &Share, transfer: TransferUsed) -> BackupSummary {
        let asked = (transfer == TransferUsed::Pull).then(|| "pull".to_owned());
        let backup = Some(BackupPart { transfer: asked, ..BackupPart::default() });
        let made = fleet.completed(fleet.publish(&JobMessage { backup, ..fleet.job(&self.bare, share) }));
        assert_eq!((made.transfer, made.verification), (transfer, Proof::Compared));
        made
    }

    fn restore_job(&self, fleet: &Fleet, share: &Share, backup: &BackupSummary, keep_previous: bool) -> JobMessage {
        let mut job = fleet.restore_job(&self.bare, share, backup);
        job.restore.as_mut().unwrap().keep_previous = keep_previous;
        job
    }

    /// Of a restore of both, on the host and by a job.
    fn plan_says_what_the_job_says(&self, fleet: &Fleet, share: &Share, backup: &BackupSummary) {
        let (directory, backup_id) = (share.path.to_str().unwrap(), backup.backup_id.to_string());
        let output =
            fleet.command_on_host(&["backup", "plan-restore", directory, &backup_id, "--json"]).output().unwrap();
        let said = [output.stdout.clone(), output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        assert_eq!(output.status.code(), Some(0), "{said}");
        let mut dry = self.restore_job(fleet, share, backup, false);
        dry.restore.as_mut().unwrap().dry_run = true;
        let told = *fleet.done(fleet.publish(&dry)).restore_plan.unwrap();
        let paths: Vec<_> = told.volumes.iter().map(|volume| (volume.path.as_str(), volume.replaces)).collect();
        let mapped = format!("/dev/mapper/{}-data", self.group.name);
        assert_eq!(paths, [(self.path(0).to_str().unwrap(), true), (mapped.as_str(), true)]);
        let mut told = serde_json::to_value(told).unwrap();
        told["warnings"] = serde_json::json!([]);
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(), told);
    }

    fn start(&self) {
        name_by_number();
        self.bare.start();
    }

    /// The instance is defined as it was, and its group holds nothing else than it did, but for `besides`.
    fn is_as_before(&self, besides: &[PathBuf]) {
        assert_eq!(defined(&self.bare), self.definition);
        let names = besides.iter().map(|path| name_of(path));
        let mut names: Vec<_> = ["data", "pool", "web"].map(str::to_owned).into_iter().chain(names).collect();
        names.sort();
        assert_eq!(self.group.volumes(), names);
        assert_eq!(self.group.row("segtype", "web"), "linear");
        assert_eq!(self.group.row("segtype,pool_lv", "data").split_whitespace().collect::<Vec<_>>(), ["thin", "pool"]);
        assert_eq!(mapped(&self.group).len(), self.mapped.len() + besides.len());
        assert!(besides.is_empty() == (mapped(&self.group) == self.mapped));
    }
}

fn disk_of(bare: &LabInstance, format: &str) -> PathBuf {
    bare.folder.join(if format == "raw" { "vdb.raw" } else { "vda.qcow2" })
}

fn defined(bare: &LabInstance) -> String {
    virsh(&["dumpxml", "--inactive", &bare.name])
}

/// Gives every block device the name by which libvirt looks for what is below a logical volume, as udev does, which this host does not have.
fn name_by_number() {
    fs::create_dir_all("/dev/block").unwrap();
    for entry in fs::read_dir("/sys/dev/block").unwrap() {
        let entry = entry.unwrap();
        let (name, device) = (Path::new("/dev/block").join(entry.file_name()), fs::canonicalize(entry.path()).unwrap());
        // By a number that is free again another device may have gone.
        fs::remove_file(&name).unwrap_or_default();
        symlink(Path::new("/dev").join(device.file_name().unwrap()), name).unwrap();
    }
}

/// The device mapper's names of what is in the group.
fn mapped(group: &Group) -> BTreeSet<String> {
    let said = tool("dmsetup", &["info", "--columns", "--noheadings", "--options", "name"]);
    said.lines().filter(|name| name.starts_with(&format!("{}-", group.name))).map(str::to_owned).collect()
}

/// Where the old volumes are that were kept.
fn kept(restored: &RestoreSummary) -> Vec<PathBuf> {
    restored.volumes.iter().filter_map(|volume| volume.previous.as_ref().map(PathBuf::from)).collect()
}

#[test]
fn an_instance_on_logical_volumes_is_backed_up_restored_in_place_and_started() {
    let fleet = Fleet::with("logical", Settings { heartbeat_seconds: HEARTBEAT, ..Settings::default() });
    let share = fleet.share();
    let on = OnVolumes::new(&fleet);
    let [vda, vdb] = ["vda", "vdb"].map(|disk| on.bare.folder.join(format!("{disk}.reference.raw")));
    let at_first = on.content();
    let stopped = on.back_up(&fleet, &share, TransferUsed::Stopped);
    on.start();
    // Of what runs, the guest's writes since.
    on.bare.overwrite(0, WRITTEN, "256k");
    on.bare.overwrite(1, WRITTEN, "64k");
    let running = on.back_up(&fleet, &share, TransferUsed::Pull);
    on.bare.stop();
    let at_the_pull = on.content();
    assert!(at_first != at_the_pull);
    for (disk, reference) in [("vda", &vda), ("vdb", &vdb)] {
        equal(reference, "raw", &share.path.join(&stopped.directory).join(format!("{disk}.qcow2")), "qcow2");
    }
    on.damage();
    let damaged = on.content();
    on.plan_says_what_the_job_says(&fleet, &share, &running);
    // A restore that is refused leaves nothing behind.
    let user = File::open(on.path(1)).unwrap();
    let mut refused = on.restore_job(&fleet, &share, &running, true);
    refused.retry.as_mut().unwrap().attempts = Some(1);
    let failed = fleet.failed(fleet.publish(&refused));
    assert_eq!((failed.failure.code.as_str(), &failed.left_overs[..]), ("in_use_elsewhere", &[][..]), "{failed:?}");
    drop(user);
    on.is_as_before(&[]);
    assert!(on.content() == damaged);
    let restored = fleet.restored(fleet.publish(&on.restore_job(&fleet, &share, &running, true)));
    assert!(on.content() == at_the_pull);
    let previous = kept(&restored);
    on.is_as_before(&previous);
    for (path, damaged) in previous.iter().zip(&damaged) {
        assert!(fs::read(path).unwrap() == *damaged, "`{}` is the old one", path.display());
        on.group.remove(&name_of(path));
    }
    on.start();
    on.bare.qemu_io(0, &format!("read -P {WRITTEN} 0 256k"));
    on.bare.qemu_io(1, &format!("read -P {WRITTEN} 0 64k"));
    on.bare.stop();
    on.damage();
    let restored: Completed = fleet.done(fleet.publish(&on.restore_job(&fleet, &share, &stopped, false)));
    assert!(kept(restored.restore.as_ref().unwrap()).is_empty());
    assert!(on.content() == at_first);
    on.is_as_before(&[]);
    on.start();
    assert_eq!(virsh(&["domstate", &on.bare.name]), "running");
    on.bare.stop();
    fleet.finish(&[&on.bare], &[&share]);
}
