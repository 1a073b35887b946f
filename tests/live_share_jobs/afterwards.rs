//! What is done with the backups that a table has left, through the same mounts: a chain is restored, and all of them are read again.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use longshore::message::JobMessage;
use longshore::message::job::{RestorePart, ValidatePart};
use longshore::model::manifest::Manifest;
use longshore::model::validation::{FindingCode, ValidationLevel};

use crate::image::equal;
use crate::row::Place;
use crate::times;

/// Puts the running instance, for this once stopped and damaged, back to what it was at the latest backup that stores no more than what
/// had changed. Answers the line of the transcript.
pub fn restore(place: &Place) -> String {
    let (fleet, instance) = (&place.host.fleet, &place.host.running);
    let volumes = [("vda.qcow2", "qcow2", "vda.reference.raw"), ("vdb.raw", "raw", "vdb.reference.raw")];
    instance.stop();
    for (volume, format, _) in volumes {
        damage(&instance.folder.join(volume), format);
    }
    let chained = manifests(place).into_iter().filter(|manifest| manifest.parent().is_some());
    let chained = chained.max_by_key(|manifest| manifest.number).expect("an incremental backup");
    let restore = RestorePart { backup_id: chained.backup_id.to_string(), ..RestorePart::default() };
    let job = fleet.job(instance, &place.good);
    let job = JobMessage { kind: "restore".to_owned(), backup: None, restore: Some(restore), ..job };
    let began = Instant::now();
    let job = fleet.publish(&job);
    let restored = fleet.restored(job);
    let seconds = began.elapsed().as_secs_f64();
    assert_eq!(restored.volumes.len(), volumes.len(), "{restored:?}");
    for (volume, format, reference) in volumes {
        equal(&instance.folder.join(reference), "raw", &instance.folder.join(volume), format);
    }
    instance.start();
    format!("{} restore of a chain -> completed in {seconds:.1} s{}", place.nas.name(), times::of_share(fleet, job))
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
    let there = instances.iter().map(|instance| place.good.entries_of(&instance.id).len()).sum::<usize>();
    assert_eq!((found.level, found.backups), (ValidationLevel::Content, there as u64), "{found:#?}");
    let (name, backups) = (place.nas.name(), found.backups);
    format!("{name} validate content of {backups} -> completed in {seconds:.1} s{}", times::of_share(fleet, job))
}

/// Those of the running instance, read past the mount.
fn manifests(place: &Place) -> Vec<Manifest> {
    let (share, id) = (&place.good, &place.host.running.id);
    let read = |name: String| std::fs::read(share.backups_of(id).join(name).join(Manifest::FILE)).unwrap();
    share.entries_of(id).into_iter().map(|name| serde_json::from_slice(&read(name)).unwrap()).collect()
}

fn damage(volume: &Path, format: &str) {
    let write = ["-f", format, "-c", "write -P 0xee 0 1M"];
    let output = Command::new("qemu-io").args(write).arg(volume).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
