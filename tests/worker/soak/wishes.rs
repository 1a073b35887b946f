//! What publishers want: jobs of every kind, on instances and repositories that the dice choose.

use longshore::message::JobMessage;
use longshore::message::job::{
    BackupPart, DeletePart, InstancePart, NewInstancePart, NewVolumePart, RestoreNewPart, RestorePart, RetryPart,
    ValidatePart,
};
use longshore::model::manifest::Manifest;

use super::dice::Dice;
use crate::fleet::{Fleet, SHARE};

/// Instances that run, and those that don't, which can be restored in place.
pub const RUNNING: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
pub const STOPPED: [&str; 2] = ["x", "y"];
pub const SHARES: [&str; 3] = [SHARE, "/share-2", "/share-3"];
/// Backups in a repository, of more some are deleted.
const BACKUPS_MANY: usize = 30;

/// The next job.
pub fn wish(fleet: &Fleet, dice: &mut Dice, number: usize) -> JobMessage {
    let share = dice.of(&SHARES);
    let published = fleet.movers.published(share);
    let job = on(fleet, share, plain(fleet, dice));
    if published.is_empty() || dice.one_in(30) {
        return backup(dice, job);
    }
    let manifest = dice.of(&published);
    match dice.below(100) {
        _ if published.len() > BACKUPS_MANY => delete(dice, job, &manifest),
        0..8 => restore(fleet, dice, job, &published),
        8..18 => restore_new(dice, job, &manifest, number),
        18..24 => validate(dice, job),
        24..34 => delete(dice, job, &manifest),
        34..36 => JobMessage { instance: Some(named("nowhere")), ..backup(dice, job) },
        _ => backup(dice, job),
    }
}

/// A look at that share which takes away what was left on it.
pub fn sweeping(fleet: &Fleet, share: &str) -> JobMessage {
    let part = ValidatePart { sweep: true, ..ValidatePart::default() };
    on(fleet, share, about_none("repo-validate", JobMessage { validate: Some(part), ..fleet.job(RUNNING[0]) }))
}

fn about_none(kind: &str, job: JobMessage) -> JobMessage {
    JobMessage { kind: kind.to_owned(), instance: None, backup: None, ..job }
}

/// On an instance that is named by its name or by its uuid.
fn plain(fleet: &Fleet, dice: &mut Dice) -> JobMessage {
    let name = dice.of(&[&RUNNING[..], &STOPPED].concat());
    let mut job = fleet.job(name);
    if dice.one_in(2) {
        job.instance = Some(InstancePart { id: Some(fleet.id_of(name).to_string()), name: None });
    }
    let attempts = Some(u32::try_from(1 + dice.below(4)).unwrap());
    job.retry = Some(RetryPart { attempts, first_pause_seconds: Some(0), longest_pause_seconds: Some(0) });
    job
}

/// The same in that repository.
pub fn on(fleet: &Fleet, share: &str, mut job: JobMessage) -> JobMessage {
    job.repository.id = fleet.repository_id(share).to_string();
    job.repository.address = share.to_owned();
    job
}

fn named(name: &str) -> InstancePart {
    InstancePart { id: None, name: Some(name.to_owned()) }
}

fn of(manifest: &Manifest) -> Option<InstancePart> {
    Some(InstancePart { id: Some(manifest.instance_id.to_string()), name: None })
}

fn word(dice: &mut Dice, words: &[&str]) -> Option<String> {
    Some(dice.of(words)).filter(|word| !word.is_empty()).map(str::to_owned)
}

fn backup(dice: &mut Dice, job: JobMessage) -> JobMessage {
    let backup = BackupPart {
        mode: word(dice, &["", "", "auto", "full", "incremental"]),
        full_every: dice.one_in(2).then_some(3),
        transfer: word(dice, &["", "", "auto", "pull", "push"]),
        quiesce: word(dice, &["", "off", "prefer", "require"]),
        verification: word(dice, &["", "", "", "unverified"]),
        exclude_disks: Vec::new(),
    };
    JobMessage { backup: Some(backup), ..job }
}

fn restore(fleet: &Fleet, dice: &mut Dice, job: JobMessage, published: &[Manifest]) -> JobMessage {
    let stopped = STOPPED.map(|name| fleet.id_of(name));
    let whole: Vec<_> = published.iter().filter(|manifest| stopped.contains(&manifest.instance_id)).cloned().collect();
    if whole.is_empty() {
        let instance = Some(named(dice.of(&STOPPED)));
        return backup(dice, JobMessage { instance, ..job });
    }
    let manifest = dice.of(&whole);
    let part = RestorePart {
        backup_id: manifest.backup_id.to_string(),
        keep_previous: dice.one_in(4),
        dry_run: dice.one_in(6),
        ..RestorePart::default()
    };
    JobMessage { instance: of(&manifest), restore: Some(part), ..about_none("restore", job) }
}

fn restore_new(dice: &mut Dice, job: JobMessage, manifest: &Manifest, number: usize) -> JobMessage {
    let mut part = RestoreNewPart {
        backup_id: manifest.backup_id.to_string(),
        dry_run: dice.one_in(6),
        ..RestoreNewPart::default()
    };
    if dice.one_in(2) {
        let (name, start) = (format!("new-{number}"), dice.one_in(2));
        part.new_instance = Some(NewInstancePart { name, start, ..NewInstancePart::default() });
    } else {
        part.volume = Some(NewVolumePart { path: format!("/images/{number}.qcow2"), ..NewVolumePart::default() });
    }
    JobMessage { instance: of(manifest), restore_new: Some(part), ..about_none("restore-new", job) }
}

fn validate(dice: &mut Dice, job: JobMessage) -> JobMessage {
    let level = word(dice, &["", "catalogue", "content"]);
    let part = ValidatePart { level, sweep: dice.one_in(2), ..ValidatePart::default() };
    JobMessage { validate: Some(part), ..about_none("repo-validate", job) }
}

fn delete(dice: &mut Dice, job: JobMessage, manifest: &Manifest) -> JobMessage {
    let mode = word(dice, &["", "only", "chain", "leaf_only"]);
    let part = DeletePart { backup_id: manifest.backup_id.to_string(), mode, dry_run: dice.one_in(8) };
    JobMessage { instance: of(manifest), delete: Some(part), ..about_none("backup-delete", job) }
}
