//! An instance that goes to another host and comes back: its bitmaps travel in the images, the names of its checkpoints do not, and the worker
//! of either host goes on with the chain.

use crate::fleet::{Fleet, Settings};
use crate::image::equal;
use crate::incremental::{BY_BITMAP, back_up, checkpoints, found_by, image};
use crate::lab::{LabInstance, Twin};

const MIB: u64 = 1 << 20;

#[test]
fn a_migrated_instance_stays_incremental_on_either_host() {
    let twin = Twin::start();
    let here = Fleet::start("here");
    let there = Fleet::with("there", Settings { libvirt_uri: twin.libvirt_uri.clone(), ..Settings::default() });
    let share = here.share();
    let bare = LabInstance::bare();
    let full = back_up(&here, &bare, &share);
    let known = checkpoints(&bare);
    assert_eq!(known.len(), 1);

    // Written before, and after.
    bare.overwrite(0, 0x11, "1M");
    twin.migrate_to_it(&bare);
    assert_eq!(twin.virsh(&["checkpoint-list", &bare.name, "--name"]), "", "names of checkpoints stay behind");
    twin.overwrite(&bare, 0, 0x12, "2M 64k");
    let second = back_up(&there, &bare, &share);
    assert_eq!((second.parent, found_by(&second)), (Some(full.backup_id), BY_BITMAP));
    assert_eq!(second.disks[0].data_bytes, MIB + (64 << 10));
    let failed = here.failed(here.back_up(&bare, &share, "off")).failure;
    assert_eq!(failed.code, "instance_not_here", "{failed:?}");

    twin.overwrite(&bare, 0, 0x13, "4M 128k");
    twin.migrate_back(&bare);
    let third = back_up(&here, &bare, &share);
    assert_eq!((third.parent, found_by(&third)), (Some(second.backup_id), BY_BITMAP));
    assert_eq!(third.disks[0].data_bytes, 128 << 10);
    assert_eq!(checkpoints(&bare).len(), 1);

    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &third, "vda"), "qcow2");
    equal(&bare.folder.join("vdb.raw"), "raw", &image(&share, &third, "vdb"), "qcow2");
    there.finish(&[], &[]);
    here.finish(&[&bare], &[&share]);
}
