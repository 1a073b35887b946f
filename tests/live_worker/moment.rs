//! All disks at one moment: what is written while the backup is copied is in none of its images.

use std::path::PathBuf;
use std::process::Command;

use crate::fleet::Fleet;
use crate::image::equal;
use crate::lab::LabInstance;
use crate::share::Share;

/// Slow enough for both disks to be overwritten before the first bytes of either are all read.
const SLOW: &str = r#"{"bw_mb": 1}"#;

#[test]
fn what_is_written_to_either_disk_during_the_copy_is_not_in_the_backup() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("moment");
    let share = Share::faulty("moment");
    share.order(SLOW);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    bare.overwrite(1, 7, "16M");
    bare.overwrite(0, 8, "64M");
    assert!(bare.has_backup_job() && share.entries_of(&bare.id).iter().all(|name| name.starts_with('.')));
    share.heal();
    let summary = fleet.completed(job);
    let worst = summary.guest.expect("it ran");
    assert!(worst.begin_ms < 10_000, "{worst:?}");
    let backup = share.backups_of(&bare.id).join(summary.backup_id.to_string());
    for target in ["vda", "vdb"] {
        equal(&reference(&bare, target), "raw", &backup.join(format!("{target}.qcow2")), "qcow2");
    }
    bare.stop();
    for (target, format) in [("vda", "qcow2"), ("vdb", "raw")] {
        let disk = bare.folder.join(format!("{target}.{format}"));
        let arguments = ["compare", "-q", "-f", "raw", "-F", format];
        let compared =
            Command::new("qemu-img").args(arguments).arg(reference(&bare, target)).arg(&disk).status().unwrap();
        assert_eq!(compared.code(), Some(1), "{target} was really overwritten");
    }
    fleet.finish(&[&bare], &[&share]);
}

/// What a quiet disk read as when it was made.
fn reference(bare: &LabInstance, target: &str) -> PathBuf {
    bare.folder.join(format!("{target}.reference.raw"))
}
