//! What is done with the backups that a table has left, through the same mounts: a chain is restored in place and to a new instance, one
//! of its backups is deleted, and all that are left are read again.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use longshore::message::JobMessage;
use longshore::message::event::{Completed, RunDetail};
use longshore::message::job::{DeletePart, NewInstancePart, RestoreNewPart, RestorePart, ValidatePart};
use longshore::model::instance::ImageFormat;
use longshore::model::manifest::Manifest;
use longshore::model::validation::{FindingCode, ValidationLevel};

use crate::fleet::JOB;
use crate::image::equal;
use crate::lab::{forget, virsh};
use crate::row::Place;
use crate::times;

/// The volumes of the running instance, and what they must read as.
const VOLUMES: [(&str, &str, &str); 2] =
    [("vda.qcow2", "qcow2", "vda.reference.raw"), ("vdb.raw", "raw", "vdb.reference.raw")];

/// Puts the running instance, for this once stopped and damaged, back to what it was at the latest backup that stores no more than what
/// had changed. Answers the line of the transcript.
pub fn restore(place: &Place) -> String {
    let (fleet, instance) = (&place.host.fleet, &place.host.running);
    instance.stop();
    for (volume, format, _) in VOLUMES {
        damage(&instance.folder.join(volume), format);
    }
    let restore = RestorePart { backup_id: incremental(place).backup_id.to_string(), ..RestorePart::default() };
    let job = fleet.job(instance, &place.good);
    let job = JobMessage { kind: "restore".to_owned(), backup: None, restore: Some(restore), ..job };
    let began = Instant::now();
    let job = fleet.publish(&job);
    let restored = fleet.restored(job);
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(restored.volumes.len(), VOLUMES.len(), "{restored:?}");
    for (volume, format, reference) in VOLUMES {
        equal(&instance.folder.join(reference), "raw", &instance.folder.join(volume), format);
    }
    instance.start();
    format!("{} restore of a chain -> completed in {seconds:.1} s{}", place.nas.name(), times::of_share(fleet, job))
}

/// Makes a new instance of the same backup, which is not started. Answers the line of the transcript.
pub fn restore_new(place: &Place) -> String {
    let (fleet, instance) = (&place.host.fleet, &place.host.running);
    let name = format!("{}-{}", instance.name, place.nas.name());
    let directory = Some(instance.folder.to_str().unwrap().to_owned());
    let new_instance = Some(NewInstancePart { name: name.clone(), directory, ..NewInstancePart::default() });
    let backup_id = incremental(place).backup_id.to_string();
    let restore_new = Some(RestoreNewPart { backup_id, new_instance, ..RestoreNewPart::default() });
    let job = fleet.job(instance, &place.good);
    let job = JobMessage { kind: "restore-new".to_owned(), backup: None, restore_new, ..job };
    let began = Instant::now();
    let job = fleet.publish(&job);
    // With a warning: its console and its firmware are this host's own.
    let restored = match fleet.heard.end_of(job, JOB) {
        RunDetail::Completed(Completed { restore: Some(restored), left_overs, .. }) if left_overs.is_empty() => {
            restored
        }
        other => panic!("{other:#?}"),
    };
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(virsh(&["domstate", &name]), "shut off");
    assert_eq!(restored.volumes.len(), VOLUMES.len(), "{restored:?}");
    for (volume, (_, _, reference)) in restored.volumes.iter().zip(VOLUMES) {
        let format = if volume.format == Some(ImageFormat::Raw) { "raw" } else { "qcow2" };
        equal(&instance.folder.join(reference), "raw", Path::new(&volume.volume), format);
        std::fs::remove_file(&volume.volume).unwrap();
    }
    forget(&name);
    format!("{} restore-new of a chain -> completed in {seconds:.1} s{}", place.nas.name(), times::of_share(fleet, job))
}

/// Deletes the backup on which that one is based, which then holds by itself what it held. Answers the line of the transcript.
pub fn delete(place: &Place) -> String {
    let (fleet, instance, share) = (&place.host.fleet, &place.host.running, &place.good);
    let child = incremental(place);
    let parent = child.parent().unwrap();
    let delete = DeletePart { backup_id: parent.to_string(), mode: None, dry_run: false };
    let job = fleet.job(instance, share);
    let job = JobMessage { kind: "backup-delete".to_owned(), backup: None, delete: Some(delete), ..job };
    let began = Instant::now();
    let job = fleet.publish(&job);
    fleet.done(job);
    let seconds = began.elapsed().as_secs_f64();
    let left = manifests(place);
    assert!(!left.iter().any(|manifest| manifest.backup_id == parent), "{left:#?}");
    for (_, _, reference) in VOLUMES {
        let disk = reference.split('.').next().unwrap();
        let image = share.backups_of(&instance.id).join(child.backup_id.to_string()).join(format!("{disk}.qcow2"));
        equal(&instance.folder.join(reference), "raw", &image, "qcow2");
    }
    format!("{} delete of a parent -> completed in {seconds:.1} s{}", place.nas.name(), times::of_share(fleet, job))
}

/// Reads every backup of the share. Answers the line of the transcript.
pub fn validate(place: &Place) -> String {
    let fleet = &place.host.fleet;
    let part = ValidatePart { level: Some("content".to_owned()), ..ValidatePart::default() };
    let began = Instant::now();
    let job = fleet.publish(&fleet.validate_job(&place.good, part));
    let found = fleet.validated(job);
    let seconds = began.elapsed().as_secs_f64();
    // What is so of these shares, whatever is on them.
    let of_the_share = |code: &FindingCode| matches!(code, FindingCode::LittleRoom | FindingCode::NoDirectoryFsync);
    assert!(found.findings.iter().all(|finding| of_the_share(&finding.code)), "{found:#?}");
    let instances = [&place.host.running, &place.host.stopped];
    let is_backup = |name: &String| !name.starts_with('.');
    let there: usize = instances
        .iter()
        .map(|instance| place.good.entries_of(&instance.id).iter().filter(|name| is_backup(name)).count())
        .sum();
    assert_eq!((found.level, found.backups), (ValidationLevel::Content, there as u64), "{found:#?}");
    let (name, backups) = (place.nas.name(), found.backups);
    format!("{name} validate content of {backups} -> completed in {seconds:.1} s{}", times::of_share(fleet, job))
}

/// Those of the running instance, read past the mount.
fn manifests(place: &Place) -> Vec<Manifest> {
    let (share, id) = (&place.good, &place.host.running.id);
    let read = |name: String| std::fs::read(share.backups_of(id).join(name).join(Manifest::FILE)).unwrap();
    let backups = share.entries_of(id).into_iter().filter(|name| !name.starts_with('.'));
    backups.map(|name| serde_json::from_slice(&read(name)).unwrap()).collect()
}

/// The latest of them that is based on another.
fn incremental(place: &Place) -> Manifest {
    let chained = manifests(place).into_iter().filter(|manifest| manifest.parent().is_some());
    chained.max_by_key(|manifest| manifest.number).expect("an incremental backup")
}

fn damage(volume: &Path, format: &str) {
    let write = ["-f", format, "-c", "write -P 0xee 0 1M"];
    let output = Command::new("qemu-io").args(write).arg(volume).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
