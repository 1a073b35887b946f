//! Which dead letters a success supersedes: those of this host, of earlier runs that were to do the same.
//!
//! It promises that none is named that may still be wanted: kind, instance, repository, schedule and the kind's own part are the same, or it is
//! an earlier run of the same job, and the letter was written before the attempt began that ended well. An instance
//! that one job names by its id and another by its name counts as two.

use jiff::Timestamp;
use serde_json::json;

use super::shared::Shared;
use crate::failure::Failure;
use crate::journal::WrittenLetter;
use crate::model::job::{Job, SCHEDULE_LABEL, Work};

/// Letters that one success supersedes. What there is of more goes with the next one.
pub const SUPERSEDED_MAX: u32 = 64;

/// What the letter of a job is about, for a later success to be compared with; none where nothing supersedes it. A schedule that asks for
/// something else than before, as for other disks, is another one: what the earlier one asked for may never have been done.
pub fn subject(job: &Job) -> Option<String> {
    if !job.kind().is_superseded_by_success() {
        return None;
    }
    let schedule = job.labels.get(SCHEDULE_LABEL);
    let subject = json!([job.kind(), job.instance, job.repository.id, schedule, wish(&job.work)]);
    Some(blake3::hash(subject.to_string().as_bytes()).to_hex().to_string())
}

/// The kind's own part, in which the order of a list says nothing.
fn wish(work: &Work) -> Work {
    let mut wish = work.clone();
    match &mut wish {
        Work::Backup(backup) => backup.exclude_disks.sort(),
        Work::RepoValidate(validate) => validate.instances.sort(),
        Work::Restore(_) | Work::RestoreNew(_) | Work::Delete(_) => {}
    }
    wish
}

/// The letters that the success of an attempt supersedes which began at that moment. A journal that cannot tell leaves them unmarked: to
/// replay one is work for nothing, and no harm.
pub async fn superseded(shared: &Shared, job: &Job, began_at: Timestamp) -> Vec<WrittenLetter> {
    let Some(subject) = subject(job) else { return Vec::new() };
    // Once: the end of the run does not wait for it, and the next success marks what this one did not.
    let read = shared.journal.letters_of(&subject, job.key, began_at, SUPERSEDED_MAX).await;
    read.unwrap_or_else(|failure: Failure| {
        tracing::error!(run = %job.key, failure = format!("{failure:#}"), "cannot tell which letters are superseded");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::JobMessage;
    use crate::message::job::{RestorePart, ValidatePart};

    fn job(change: impl FnOnce(&mut JobMessage)) -> Job {
        let mut message: JobMessage = serde_json::from_value(json!({
            "job_id": "019a0f3e-7c00-7000-8000-000000000001", "run": 1, "kind": "backup", "host": "kvm-07",
            "instance": { "name": "web" }, "backup": {}, "labels": { "ticket": "4711" },
            "repository": { "id": "7d0f1a52-0c0e-4f4e-9b5b-0d7c4f3f8a11", "type": "directory", "address": "/share" },
        }))
        .unwrap();
        change(&mut message);
        message.check().unwrap()
    }

    fn schedule(message: &mut JobMessage, name: &str) {
        message.labels.insert(SCHEDULE_LABEL.to_owned(), name.to_owned());
    }

    fn without(message: &mut JobMessage, disks: &[&str]) {
        message.backup.as_mut().unwrap().exclude_disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
    }

    fn full(message: &mut JobMessage) {
        message.backup.as_mut().unwrap().mode = Some("full".to_owned());
    }

    #[test]
    fn what_is_not_of_one_kind_instance_repository_schedule_and_wish_is_not_the_same() {
        let of = |change: fn(&mut JobMessage)| subject(&job(change));
        let plain = of(|_| {});
        assert!(plain.is_some());
        assert_eq!(plain, of(|job| job.labels.clear()), "other labels say nothing");
        assert_eq!(plain, of(|job| job.repository.address = "/elsewhere".to_owned()), "a share that has moved");
        let others = [
            of(|job| schedule(job, "nightly")),
            of(|job| schedule(job, "weekly")),
            of(|job| job.instance.as_mut().unwrap().name = Some("db".to_owned())),
            of(|job| job.repository.id = "7d0f1a52-0c0e-4f4e-9b5b-0d7c4f3f8a12".to_owned()),
            of(full),
            of(|job| {
                schedule(job, "nightly");
                full(job);
            }),
            of(|job| without(job, &["vdb"])),
            of(|job| without(job, &["vdb", "vdc"])),
        ];
        for (place, other) in others.iter().enumerate() {
            assert!(*other != plain && !others[..place].contains(other), "{place}");
        }
        assert_eq!(of(|job| without(job, &["vdc", "vdb"])), others[7], "in any order");
    }

    #[test]
    fn a_validation_of_less_is_not_that_of_more_and_the_same_in_any_order() {
        let of = |level: &str, instances: &[&str]| {
            let (level, instances) = (level.to_owned(), instances.to_vec());
            subject(&job(|job| {
                job.kind = "repo-validate".to_owned();
                (job.instance, job.backup) = (None, None);
                let part = json!({ "level": level, "instances": instances });
                job.validate = Some(serde_json::from_value::<ValidatePart>(part).unwrap());
                schedule(job, "weekly");
            }))
        };
        let [one, two] = ["0192f3a0-0000-7000-8000-000000000001", "0192f3a0-0000-7000-8000-000000000002"];
        let all = of("content", &[]);
        let others = [of("structure", &[]), of("content", &[one]), of("content", &[one, two])];
        assert!(all.is_some() && !others.contains(&all) && others[1] != others[2]);
        assert_eq!(of("content", &[two, one]), others[2]);
    }

    #[test]
    fn nobody_passes_over_a_restore() {
        let restore = job(|job| {
            job.kind = "restore".to_owned();
            job.backup = None;
            let part = json!({ "backup_id": "019a0f3e-8000-7000-8000-000000000002" });
            job.restore = Some(serde_json::from_value::<RestorePart>(part).unwrap());
        });
        assert_eq!(subject(&restore), None);
    }
}
