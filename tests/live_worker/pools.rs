//! Disks that are volumes of a storage pool: their definition names pool and volume, and libvirt alone knows where they are.

use std::fs;

use longshore::message::event::RunDetail;
use longshore::message::job::{NewInstancePart, RestoreNewPart};
use longshore::model::manifest::{Manifest, TransferUsed};

use crate::elsewhere::Forgotten;
use crate::fleet::{Fleet, JOB};
use crate::image::{equal, qemu_io};
use crate::incremental::{BY_BITMAP, back_up, found_by, image};
use crate::lab::{LabInstance, Pool, virsh};

const DISKS: &str = "vda:qcow2:16,vdb:raw:8";

#[test]
fn volumes_of_a_storage_pool_are_backed_up_and_put_back_where_the_pool_has_them_then() {
    let fleet = Fleet::start("pools");
    let share = fleet.share();
    let bare = LabInstance::bare_off_with(DISKS);
    let pool = Pool::over(&bare.name, &bare.folder);
    bare.put_into_pool(&pool.0);
    bare.start();

    let full = back_up(&fleet, &bare, &share);
    assert_eq!((full.transfer, full.disks.len()), (TransferUsed::Pull, 2));
    let manifest = fs::read_to_string(share.path.join(&full.directory).join(Manifest::FILE)).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    let named = manifest.disks.iter().map(|disk| disk.pool_volume.clone().unwrap());
    let expected = ["vda.qcow2", "vdb.raw"].map(|volume| (bare.name.clone(), volume.to_owned()));
    assert_eq!(named.map(|name| (name.pool, name.volume)).collect::<Vec<_>>(), expected);

    bare.overwrite(0, 0x11, "1M");
    bare.overwrite(1, 0x12, "1M");
    let running = back_up(&fleet, &bare, &share);
    assert_eq!((running.parent, found_by(&running)), (Some(full.backup_id), BY_BITMAP));
    bare.stop();
    let stopped = back_up(&fleet, &bare, &share);
    assert_eq!((stopped.transfer, found_by(&stopped)), (TransferUsed::Stopped, BY_BITMAP));
    for (volume, format, disk) in [("vda.qcow2", "qcow2", "vda"), ("vdb.raw", "raw", "vdb")] {
        equal(&bare.folder.join(volume), format, &image(&share, &stopped, disk), "qcow2");
        equal(&bare.folder.join(volume), format, &image(&share, &running, disk), "qcow2");
    }

    // A new instance has files, wherever the first one's volumes are.
    let name = format!("{}-new", bare.name);
    let _forgotten = Forgotten(name.clone());
    let mut job = fleet.restore_job(&bare, &share, &running);
    (job.kind, job.restore) = ("restore-new".to_owned(), None);
    let directory = Some(bare.folder.to_str().unwrap().to_owned());
    job.restore_new = Some(RestoreNewPart {
        backup_id: running.backup_id.to_string(),
        new_instance: Some(NewInstancePart {
            name: name.clone(),
            directory,
            start: true,
            ..NewInstancePart::default()
        }),
        ..RestoreNewPart::default()
    });
    let RunDetail::Completed(new) = fleet.heard.end_of(fleet.publish(&job), JOB) else {
        panic!("it has to come to be")
    };
    assert_eq!(new.restore.unwrap().volumes.len(), 2);
    virsh(&["destroy", &name]);
    let definition = virsh(&["dumpxml", &name]);
    assert!(!definition.contains("pool="), "{definition}");
    equal(&bare.folder.join(format!("{name}-vda.qcow2")), "qcow2", &bare.folder.join("vda.qcow2"), "qcow2");
    equal(&bare.folder.join(format!("{name}-vdb.raw")), "raw", &bare.folder.join("vdb.raw"), "raw");

    // The pool is on another storage now, and nothing but its name tells which volume is which.
    drop(pool);
    let moved = bare.folder.join("moved");
    fs::create_dir(&moved).unwrap();
    ["vda.qcow2", "vdb.raw"].iter().for_each(|name| fs::rename(bare.folder.join(name), moved.join(name)).unwrap());
    let pool = Pool::over(&bare.name, &moved);
    qemu_io(&moved.join("vda.qcow2"), "qcow2", &["write -P 0x21 0 2M"]);
    qemu_io(&moved.join("vdb.raw"), "raw", &["write -P 0x22 0 2M"]);
    let restored = fleet.restored(fleet.publish(&fleet.restore_job(&bare, &share, &full)));
    let volumes: Vec<_> = restored.volumes.iter().map(|volume| volume.volume.as_str()).collect();
    assert_eq!(volumes, [moved.join("vda.qcow2").to_str().unwrap(), moved.join("vdb.raw").to_str().unwrap()]);
    equal(&moved.join("vda.qcow2"), "qcow2", &bare.folder.join("vda.reference.raw"), "raw");
    equal(&moved.join("vdb.raw"), "raw", &bare.folder.join("vdb.reference.raw"), "raw");
    bare.start();
    bare.stop();

    // Of a pool that is not active nobody knows.
    drop(pool);
    for job in [fleet.job(&bare, &share), fleet.restore_job(&bare, &share, &full)] {
        let failed = fleet.failed(fleet.publish(&job)).failure;
        assert_eq!(failed.code, "disk_unsupported", "{failed:?}");
        assert!(failed.text.contains(&format!("volume `vda.qcow2` of the storage pool `{}`", bare.name)), "{failed:?}");
    }
    fleet.finish(&[&bare], &[&share]);
}
