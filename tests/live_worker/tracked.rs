//! What a bitmap tells when the disk, the image or the instance is not what it was when the bitmap began: it is believed where all of what
//! was written is in it, and nowhere else, and the content is right in any case.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use longshore::model::manifest::TransferUsed;

use crate::fleet::Fleet;
use crate::image::{equal, qemu_io};
use crate::incremental::{BY_BITMAP, BY_HASHES, back_up, checkpoints, found_by, image};
use crate::lab::{LabInstance, virsh};

const MIB: u64 = 1 << 20;
/// Where a qcow2 image says of which features a program that does not know them has to strike them out.
const AUTOCLEAR_AT: u64 = 88;

#[test]
fn a_disk_with_an_external_snapshot_or_another_size_is_read_whole_once_and_then_goes_by_its_bitmap_again() {
    let fleet = Fleet::start("snapshot");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let reference = fleet.folder.join("reference.raw");
    std::fs::copy(bare.folder.join("vda.reference.raw"), &reference).unwrap();
    let write = |command: &str| {
        bare.qemu_io(0, command);
        qemu_io(&reference, "raw", &[command]);
    };
    back_up(&fleet, &bare, &share);

    write("write -P 0x11 0 1M");
    let overlay = bare.folder.join("overlay.qcow2");
    let on_vda = format!("vda,snapshot=external,file={}", overlay.display());
    let snapshot = ["--disk-only", "--no-metadata", "--diskspec", &on_vda, "--diskspec", "vdb,snapshot=no"];
    virsh(&[&["snapshot-create-as", bare.name.as_str(), "between"], &snapshot[..]].concat());
    write("write -P 0x22 2M 1M");
    let over = back_up(&fleet, &bare, &share);
    assert_eq!((found_by(&over), over.disks[0].data_bytes), (BY_HASHES, 2 * MIB), "it is another file");
    equal(&reference, "raw", &image(&share, &over, "vda"), "qcow2");

    write("write -P 0x33 4M 1M");
    virsh(&["blockresize", &bare.name, "vda", &format!("{}B", 66 * MIB + 512)]);
    std::fs::File::options().write(true).open(&reference).unwrap().set_len(66 * MIB + 512).unwrap();
    write(&format!("write -P 0x44 {} 512", 66 * MIB));
    let grown = back_up(&fleet, &bare, &share);
    assert_eq!((found_by(&grown), grown.parent), (BY_HASHES, Some(over.backup_id)), "what is new need not be marked");
    equal(&reference, "raw", &image(&share, &grown, "vda"), "qcow2");

    write(&format!("write -P 0x55 {} 1M", 65 * MIB));
    let last = back_up(&fleet, &bare, &share);
    assert_eq!((found_by(&last), last.disks[0].data_bytes), (BY_BITMAP, MIB));
    bare.stop();
    equal(&overlay, "qcow2", &image(&share, &last, "vda"), "qcow2");
    equal(&reference, "raw", &image(&share, &last, "vda"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn what_was_written_to_a_stopped_instance_is_found_by_the_bitmap_from_when_it_ran_also_where_its_image_was_put_back() {
    let fleet = Fleet::start("tracked");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let volume = bare.folder.join("vda.qcow2");
    let back_up = || {
        let made = back_up(&fleet, &bare, &share);
        equal(&volume, "qcow2", &image(&share, &made, "vda"), "qcow2");
        made
    };
    let full = self::back_up(&fleet, &bare, &share);
    bare.overwrite(0, 0x11, "1M");
    bare.stop();
    // Any QEMU that writes keeps the bitmap.
    qemu_io(&volume, "qcow2", &["write -P 0x22 4M 128k", "write -z 6M 64k"]);
    let first = back_up();
    assert_eq!((first.transfer, first.parent), (TransferUsed::Stopped, Some(full.backup_id)));
    assert_eq!((found_by(&first), first.disks[0].data_bytes), (BY_BITMAP, MIB + 128 * 1024));
    let kept = keep(&volume);

    qemu_io(&volume, "qcow2", &["write -P 0x33 8M 64k", "write -P 0x34 4M 64k", "write -P 0x35 10M 1M"]);
    let second = back_up();
    assert_eq!((second.parent, found_by(&second)), (Some(first.backup_id), BY_BITMAP));
    // The bitmap of the older image knows nothing of what was written to the newer one.
    std::fs::rename(&kept, &volume).unwrap();
    let back = back_up();
    assert_eq!((back.parent, found_by(&back)), (Some(second.backup_id), BY_BITMAP));

    bare.start();
    bare.overwrite(0, 0x44, "64k");
    let running = self::back_up(&fleet, &bare, &share);
    assert_eq!((running.transfer, found_by(&running)), (TransferUsed::Pull, BY_BITMAP), "since before it was stopped");
    assert_eq!(checkpoints(&bare).len(), 1);
    bare.stop();
    equal(&volume, "qcow2", &image(&share, &running, "vda"), "qcow2");

    // A program that does not know bitmaps has written.
    let file = std::fs::File::options().write(true).open(&volume).unwrap();
    file.write_all_at(&[0; 8], AUTOCLEAR_AT).unwrap();
    qemu_io(&volume, "qcow2", &["write -P 0x55 12M 1M"]);
    let unknown = back_up();
    assert_eq!((found_by(&unknown), unknown.disks[0].data_bytes), (BY_HASHES, MIB));
    fleet.finish(&[&bare], &[&share]);
}

/// A copy beside it.
fn keep(volume: &Path) -> PathBuf {
    let kept = volume.with_extension("kept");
    std::fs::copy(volume, &kept).unwrap();
    kept
}
