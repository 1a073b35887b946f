//! The restore in place of an instance with a file and an RBD image: both are as they were at the backup, or both are as they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use longshore::message::event::{BackupSummary, RunDetail};
use longshore::message::job::{NewInstancePart, RestorePart};
use longshore::model::id::JobId;
use longshore::model::instance::{DiskSource, ImageFormat};
use longshore::model::manifest::Manifest;
use longshore::model::network::SecretRef;
use longshore::mover::protocol::{Reply, Request, RestoredVolume, VolumePlace};

use crate::asked::Asked;
use crate::elsewhere::{Forgotten, completed, new_instance, to};
use crate::fleet::{Fleet, JOB};
use crate::image::{equal, qemu_io};
use crate::incremental::{back_up, image};
use crate::lab::{LabInstance, eventually, forget, virsh};
use crate::rbd::Opened;
use crate::rbd_images::{OnRbd, POOL, cluster};
use crate::running::manifest_in;
use crate::share::Share;
use crate::slate::processes_of;

/// The next worker waits until the dead one's lease has stood still for two minutes.
const TAKEN_OVER: Duration = Duration::from_secs(240);

/// An instance with a backup, all of its volumes damaged since.
struct Damaged {
    on_rbd: OnRbd,
    backup: BackupSummary,
}

impl Damaged {
    fn new(fleet: &Fleet, share: &Share) -> Self {
        let on_rbd = OnRbd::new(POOL);
        let backup = back_up(fleet, &on_rbd.bare, share);
        let damaged = Self { on_rbd, backup };
        damaged.damage();
        damaged
    }

    fn damage(&self) {
        for (disk, format) in [("vda.qcow2", "qcow2"), ("vdb.raw", "raw")] {
            qemu_io(&self.bare().folder.join(disk), format, &["write -P 0xee 1M 3M"]);
        }
        cluster().qemu_io(&self.on_rbd.image, "write -P 0xee 1M 3M");
    }

    fn bare(&self) -> &LabInstance {
        &self.on_rbd.bare
    }

    fn is_restored(&self, share: &Share) -> bool {
        let files = [("vda", "vda.qcow2", "qcow2"), ("vdb", "vdb.raw", "raw")];
        for (disk, file, format) in files {
            equal(&self.bare().folder.join(file), format, &image(share, &self.backup, disk), "qcow2");
        }
        cluster().reads_as(&self.on_rbd.image, &self.on_rbd.reference(), "raw")
    }

    fn is_still_damaged(&self) {
        cluster().qemu_io(&self.on_rbd.image, "read -P 0xee 1M 3M");
        qemu_io(&self.bare().folder.join("vdb.raw"), "raw", &["read -P 0xee 1M 3M"]);
        assert_eq!(self.images(), [self.bare().name.clone()]);
    }

    /// Names of all images that a restore could have made, and the image's own.
    fn images(&self) -> Vec<String> {
        cluster().images(POOL, &self.bare().name)
    }
}

#[test]
fn a_file_and_an_image_are_put_back_as_they_were_and_the_instance_starts() {
    let fleet = Fleet::start("rbd-restore");
    let share = fleet.share();
    let damaged = Damaged::new(&fleet, &share);
    let restored = fleet.restored(fleet.publish(&fleet.restore_job(damaged.bare(), &share, &damaged.backup)));
    assert_eq!(
        (restored.volumes[2].volume.as_str(), &restored.volumes[2].previous),
        (damaged.on_rbd.image.as_str(), &None)
    );
    assert!(damaged.is_restored(&share));
    assert_eq!(damaged.images(), [damaged.bare().name.clone()]);
    let features = cluster().rbd(&["info", "--format=json", &damaged.on_rbd.image]);
    assert!(features.contains("exclusive-lock") && features.contains("fast-diff"), "{features}");
    damaged.bare().start();
    damaged.bare().overwrite(2, 0x77, "64k");
    // The next backup of it goes on where the chain is.
    let next = back_up(&fleet, damaged.bare(), &share);
    assert_eq!((next.parent, next.disks[2].data_bytes), (Some(damaged.backup.backup_id), 1 << 20));
    fleet.finish(&[damaged.bare()], &[&share]);
}

#[test]
fn an_image_with_snapshots_is_only_replaced_where_it_is_kept_and_one_that_is_open_is_not() {
    let fleet = Fleet::start("rbd-keeps");
    let share = fleet.share();
    let damaged = Damaged::new(&fleet, &share);
    let job = |keep_previous: bool| {
        let mut job = fleet.restore_job(damaged.bare(), &share, &damaged.backup);
        let restore = job.restore.take().unwrap();
        job.restore = Some(RestorePart { keep_previous, ..restore });
        job.retry.as_mut().unwrap().attempts = Some(1);
        job
    };
    let code = |job: JobId| fleet.failed(job).failure.code;
    let user = Opened::new(cluster(), &damaged.on_rbd.image);
    assert_eq!(code(fleet.publish(&job(false))), "in_use_elsewhere");
    drop(user);
    cluster().rbd(&["snap", "create", "--no-progress", &format!("{}@monday", damaged.on_rbd.image)]);
    cluster().rbd(&["image-meta", "set", &damaged.on_rbd.image, "note", "as it was"]);
    assert_eq!(code(fleet.publish(&job(false))), "disk_unsupported");
    damaged.is_still_damaged();
    let RunDetail::Completed(completed) = fleet.heard.end_of(fleet.publish(&job(true)), JOB) else { panic!() };
    let previous = completed.restore.as_ref().unwrap().volumes[2].previous.clone().unwrap();
    assert!(damaged.is_restored(&share));
    cluster().qemu_io(&previous, "read -P 0xee 1M 3M");
    assert!(cluster().rbd(&["snap", "ls", &previous]).contains("monday"));
    for image in [&previous, &damaged.on_rbd.image] {
        assert_eq!(cluster().rbd(&["image-meta", "get", image, "note"]).trim_end(), "as it was");
    }
    // It is the operator's: nothing asks after it.
    assert!(completed.warnings.is_empty() && completed.left_overs.is_empty(), "{completed:?}");
    fleet.finish(&[damaged.bare()], &[&share]);
}

/// A file and an image that are exchanged for others, by movers of our own.
struct Exchanged {
    asked: Asked,
    volumes: Vec<RestoredVolume>,
}

impl Exchanged {
    fn new(damaged: &Damaged, manifest: &Manifest) -> Self {
        let volumes = manifest.disks.iter().skip(1).map(|disk| {
            let place = match &disk.source {
                DiskSource::File { path, .. } => VolumePlace::File {
                    volume: path.clone(),
                    fresh: with(path, "new"),
                    previous: with(path, "previous"),
                },
                DiskSource::Network { name, access, .. } => {
                    let volume = Path::new(name);
                    let (fresh, previous) = (with(volume, "new"), with(volume, "previous"));
                    VolumePlace::Rbd { access: access.clone(), volume: volume.to_owned(), fresh, previous }
                }
                other => panic!("{other:?}"),
            };
            let (virtual_bytes, content_root) = (disk.virtual_bytes, disk.content_root.clone());
            RestoredVolume { disk: disk.target.clone(), virtual_bytes, content_root, format: ImageFormat::Raw, place }
        });
        let secret = SecretRef::Uuid(damaged.on_rbd.secret.uuid.parse().unwrap());
        Self { asked: Asked::new(cluster().key_named(secret)), volumes: volumes.collect() }
    }

    fn ask(&self, request: Request) -> Result<Reply, longshore::failure::Failure> {
        self.asked.ask(request)
    }

    /// New volumes beside the old ones, which hold what was backed up.
    fn make_fresh(&self, damaged: &Damaged) {
        let reference = damaged.on_rbd.reference();
        std::fs::copy(&reference, self.volumes[0].place.fresh().unwrap()).unwrap();
        cluster().fill(self.volumes[1].place.fresh().unwrap().to_str().unwrap(), &reference);
    }
}

fn with(volume: &Path, what: &str) -> PathBuf {
    let mut name = volume.as_os_str().to_owned();
    name.push(format!(".longshore-test.{what}"));
    name.into()
}

#[test]
fn another_mover_goes_on_wherever_an_exchange_was_cut_off_or_puts_everything_back() {
    let fleet = Fleet::start("rbd-cut-off");
    let share = fleet.share();
    let damaged = Damaged::new(&fleet, &share);
    let asked = Exchanged::new(&damaged, &manifest_in(&share.path.join(&damaged.backup.directory)));
    let [file, on_rbd] = &asked.volumes[..] else { panic!("two volumes") };
    let name = |path: Option<&Path>| path.unwrap().to_str().unwrap().to_owned();
    let [fresh, previous] = [name(on_rbd.place.fresh()), name(on_rbd.place.previous())];
    let image = damaged.on_rbd.image.clone();
    let away = || {
        cluster().rbd(&["rename", &image, &previous]);
        std::fs::rename(file.place.volume(), file.place.previous().unwrap()).unwrap();
    };
    let exchange = |only_go_on| Request::Exchange { volumes: asked.volumes.clone(), only_go_on };

    // Killed between the two renames, and given up.
    asked.make_fresh(&damaged);
    away();
    assert_eq!(asked.ask(Request::RemoveFresh { volumes: asked.volumes.clone() }).unwrap(), Reply::Done);
    damaged.is_still_damaged();

    // Not begun: another one begins none.
    asked.make_fresh(&damaged);
    let refused = asked.ask(exchange(true)).unwrap_err();
    assert_eq!(refused.code.as_str(), "interrupted", "{refused:#}");
    // Killed between the two renames, and after the first image was in its place.
    for in_place in [false, true] {
        away();
        if in_place {
            cluster().rbd(&["rename", &fresh, &image]);
        }
        for _twice in 0..2 {
            assert_eq!(asked.ask(exchange(true)).unwrap(), Reply::Done);
        }
        assert!(cluster().reads_as(&image, &damaged.on_rbd.reference(), "raw"));
        cluster().qemu_io(&previous, "read -P 0xee 1M 3M");
        if !in_place {
            // As it was before.
            cluster().rbd(&["rename", &image, &fresh]);
            cluster().rbd(&["rename", &previous, &image]);
            std::fs::rename(file.place.volume(), file.place.fresh().unwrap()).unwrap();
            std::fs::rename(file.place.previous().unwrap(), file.place.volume()).unwrap();
        }
    }
    assert_eq!(asked.ask(Request::RemovePrevious { volumes: asked.volumes.clone() }).unwrap(), Reply::Done);
    assert_eq!(damaged.images(), [damaged.bare().name.clone()]);
    equal(file.place.volume(), "raw", &damaged.on_rbd.reference(), "raw");

    removes_no_image_by_another_name(&asked, &image, &previous);
    assert!(cluster().reads_as(&image, &damaged.on_rbd.reference(), "raw"));
    assert_eq!(damaged.images(), [damaged.bare().name.clone()]);
    fleet.finish(&[damaged.bare()], &[&share]);
}

/// As renames leave it that were cut off, or mended by half: the image that is in use has the other name in its pool's list.
fn removes_no_image_by_another_name(asked: &Exchanged, image: &str, previous: &str) {
    let id_object = |image: &str| format!("rbd_id.{}", image.rsplit('/').next().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id");
    let rados = |action: &str, of: &str, file: &[&str]| {
        cluster().rados(&[&["-p", POOL, action, &id_object(of)], file].concat());
    };
    let id = &[file.to_str().unwrap()][..];
    let remove = || asked.ask(Request::RemovePrevious { volumes: asked.volumes.clone() });
    rados("get", image, id);
    cluster().rbd(&["rename", image, previous]);
    rados("put", image, id);
    let refused = remove().unwrap_err();
    assert!(format!("{refused:#}").contains("NEVER `rbd rm`"), "{refused:#}");
    // Only the list knows of the name any more, by which `rbd rm` would find the image.
    rados("rm", previous, &[]);
    assert!(cluster().info(previous).is_none() && cluster().info(image).is_some());
    assert_eq!(remove().unwrap(), Reply::Done);
    rados("put", previous, id);
    rados("rm", image, &[]);
    cluster().rbd(&["rename", previous, image]);
}

#[test]
fn a_restore_whose_worker_is_killed_is_done_by_the_next_one() {
    let mut fleet = Fleet::start("rbd-killed");
    let share = Share::faulty("rbd-killed");
    let damaged = Damaged::new(&fleet, &share);
    share.order(r#"{"bw_mb": 2}"#);
    let mut job = fleet.restore_job(damaged.bare(), &share, &damaged.backup);
    job.restore.as_mut().unwrap().disks = vec!["vdc".to_owned()];
    let job = fleet.publish(&job);
    fleet.is_moving(job, "restore");
    fleet.kill_worker();
    eventually("the mover is gone", JOB, || processes_of(&fleet.folder).is_empty());
    share.heal();
    fleet.start_worker();
    let RunDetail::Completed(completed) = fleet.heard.end_of(job, TAKEN_OVER) else { panic!("it did not complete") };
    assert!(completed.left_overs.is_empty(), "{:?}", completed.left_overs);
    assert!(cluster().reads_as(&damaged.on_rbd.image, &damaged.on_rbd.reference(), "raw"));
    assert_eq!(damaged.images(), [damaged.bare().name.clone()]);
    fleet.finish(&[damaged.bare()], &[&share]);
}

#[test]
fn a_new_instance_is_made_of_it_with_files_for_its_volumes() {
    let fleet = Fleet::start("rbd-elsewhere");
    let share = fleet.share();
    let on_rbd = OnRbd::new(POOL);
    let backup = back_up(&fleet, &on_rbd.bare, &share);
    let name = format!("{}-new", on_rbd.bare.name);
    let _forgotten = Forgotten(name.clone());
    let directory = Some(on_rbd.bare.folder.to_str().unwrap().to_owned());
    let part =
        new_instance(NewInstancePart { name: name.clone(), directory, start: true, ..NewInstancePart::default() });
    let (told, _) = completed(&fleet, fleet.publish(&to(&fleet, &on_rbd.bare, &share, &backup, part)));
    let definition = virsh(&["dumpxml", "--inactive", &name]);
    assert!(!definition.contains("rbd'") && !definition.contains("<auth"), "{definition}");
    assert_eq!(virsh(&["domstate", &name]), "running");
    forget(&name);
    let [_, _, vdc] = &told.volumes[..] else { panic!("{told:?}") };
    assert_eq!(vdc.target.as_str(), "vdc");
    equal(Path::new(&vdc.volume), "qcow2", &on_rbd.reference(), "raw");
    fleet.finish(&[&on_rbd.bare], &[&share]);
}
