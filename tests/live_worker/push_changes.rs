//! What QEMU pushes of what has changed: every point comes back byte for byte, and where QEMU can't be told it pushes everything.

use std::path::PathBuf;

use longshore::message::event::{BackupSummary, RunDetail};
use longshore::model::manifest::{ChangesFoundBy, Proof, TransferUsed};

use crate::fleet::{Fleet, JOB};
use crate::image::{equal, qemu_img, qemu_io};
use crate::incremental::{BY_HASHES, back_up, checkpoints, found_by, image, kill_and_start};
use crate::lab::{LabInstance, virsh};
use crate::push::push_job;
use crate::share::Share;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// What `vda` grows to: no whole number of clusters.
const GROWN_BYTES: u64 = 70 * MIB + 1024;

/// An instance whose `vda` is written to, and a raw file to which the same is done.
struct Scene {
    fleet: Fleet,
    share: Share,
    bare: LabInstance,
    reference: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let fleet = Fleet::start("pushchanges");
        let (share, bare) = (fleet.share(), LabInstance::bare());
        let reference = fleet.folder.join("reference.raw");
        std::fs::copy(bare.folder.join("vda.reference.raw"), &reference).unwrap();
        Self { fleet, share, bare, reference }
    }

    fn write(&self, commands: &[&str]) {
        commands.iter().for_each(|command| self.bare.qemu_io(0, command));
        qemu_io(&self.reference, "raw", commands);
    }

    /// What the disk holds now, kept for later.
    fn keep(&self, name: &str) -> PathBuf {
        let kept = self.fleet.folder.join(name);
        std::fs::copy(&self.reference, &kept).unwrap();
        kept
    }

    /// What is pushed of the disk now is what it holds now.
    fn push(&self) -> BackupSummary {
        let pushed = self.fleet.completed(self.fleet.publish(&push_job(&self.fleet, &self.bare, &self.share, "off")));
        assert_eq!((pushed.transfer, pushed.verification), (TransferUsed::Push, Proof::Structure));
        equal(&self.reference, "raw", &image(&self.share, &pushed, "vda"), "qcow2");
        let [kept] = &checkpoints(&self.bare)[..] else { panic!("{:?}", checkpoints(&self.bare)) };
        assert!(kept.contains(&pushed.backup_id.to_string()), "{kept}");
        pushed
    }

    /// Likewise; only what has changed was pushed of it, and so many bytes of that are data.
    fn push_changes(&self, parent: &BackupSummary, data_bytes: u64) -> BackupSummary {
        let pushed = self.push();
        // A raw image keeps no bitmap.
        assert_eq!((pushed.parent, found_by(&pushed)), (Some(parent.backup_id), BY_BITMAP_ALONE), "{pushed:?}");
        assert_eq!(pushed.disks[0].data_bytes, data_bytes);
        assert!(reason(&pushed, 1).contains("nothing tells it"), "{pushed:?}");
        pushed
    }
}

const BY_BITMAP_ALONE: [Option<ChangesFoundBy>; 2] = [Some(ChangesFoundBy::Bitmap), None];

fn reason(pushed: &BackupSummary, disk: usize) -> &str {
    pushed.disks[disk].full_reason.as_deref().unwrap_or_default()
}

#[test]
fn what_qemu_pushes_of_what_has_changed_is_the_disk_byte_for_byte() {
    let scene = Scene::new();
    let full = scene.push();
    assert_eq!((full.parent, found_by(&full)), (None, [None; 2]));

    // A part of a cluster, across two of them, zeros over one, zeros in a part of one, and a discarded one beside it.
    scene.write(&["write -P 0x11 4k 8k", "write -P 0x22 3140k 100k", "write -z 4M 64k", "write -z 4224k 4k"]);
    scene.bare.qemu_io(0, "discard 5M 64k");
    qemu_io(&scene.reference, "raw", &["write -z 5M 64k"]);
    let changed = scene.push_changes(&full, 4 * 64 * KIB);
    let info = qemu_img(&["info", "--output=json", image(&scene.share, &changed, "vda").to_str().unwrap()]);
    assert!(info.contains(&format!("../{}/vda.qcow2", full.backup_id)), "{info}");
    let second = scene.keep("second.raw");

    scene.write(&["write -z 2M 3M"]);
    let zeros = scene.push_changes(&changed, 0);
    let nothing = scene.push_changes(&zeros, 0);
    // The bitmap of a pull is as good; that of a push is none for a pull, whose blocks are all compared.
    let pulled = back_up(&scene.fleet, &scene.bare, &scene.share);
    assert_eq!((pulled.parent, found_by(&pulled)), (Some(nothing.backup_id), BY_HASHES));
    scene.write(&["write -P 0x33 10M 1M"]);
    scene.push_changes(&pulled, MIB);

    virsh(&["blockresize", &scene.bare.name, "vda", &format!("{GROWN_BYTES}B")]);
    std::fs::File::options().write(true).open(&scene.reference).unwrap().set_len(GROWN_BYTES).unwrap();
    scene.write(&["write -P 0x44 69M 4k"]);
    let grown = scene.push();
    assert!(grown.parent.is_none() && reason(&grown, 0).contains("nothing tells it"), "{grown:?}");
    scene.write(&[&format!("write -P 0x55 {} 512", GROWN_BYTES - 512), "write -P 0x66 66M 64k"]);
    scene.push_changes(&grown, 64 * KIB + 1024);

    // What QEMU has not written down yet a kill takes with it.
    scene.bare.qemu_io(0, "flush");
    kill_and_start(&scene.bare);
    scene.write(&["write -P 0x77 0 64k"]);
    let job = scene.fleet.publish(&push_job(&scene.fleet, &scene.bare, &scene.share, "off"));
    let RunDetail::Completed(lost) = scene.fleet.heard.end_of(job, JOB) else { panic!("it did not complete") };
    let lost = lost.backup.unwrap();
    assert!(lost.parent.is_none() && reason(&lost, 0).contains("checkpoint"), "{lost:?}");
    equal(&scene.reference, "raw", &image(&scene.share, &lost, "vda"), "qcow2");

    scene.bare.stop();
    equal(&scene.reference, "raw", &scene.bare.folder.join("vda.qcow2"), "qcow2");
    let job = scene.fleet.publish(&scene.fleet.restore_job(&scene.bare, &scene.share, &changed));
    let RunDetail::Completed(restored) = scene.fleet.heard.end_of(job, JOB) else { panic!("it was not restored") };
    assert!(restored.warnings.iter().all(|warning| warning.contains("bytes and has")), "{:?}", restored.warnings);
    equal(&second, "raw", &scene.bare.folder.join("vda.qcow2"), "qcow2");
    scene.fleet.finish(&[&scene.bare], &[&scene.share]);
}
