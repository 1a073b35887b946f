//! The rounds: in each, both guests are backed up at once, and what is too old is deleted.

use longshore::message::JobMessage;
use longshore::message::event::BackupSummary;
use longshore::message::job::{BackupPart, DeletePart, ValidatePart};
use longshore::model::id::JobId;

use crate::figures::{Figures, growth};
use crate::fleet::{Fleet, JOB};
use crate::lab::{LabInstance, eventually, guard_stands};
use crate::share::Share;
use crate::slate::processes_of;

/// Backups, where the environment does not say.
const BACKUPS: usize = 100;
/// Backups of each instance that stay on the share.
const KEPT: usize = 5;
/// Rounds from one look to the next, and those that warm up.
const LOOK_EVERY: usize = 2;
const WARM_UP: usize = 10;
/// Rounds from one validation to the next.
const VALIDATED_EVERY: usize = 10;

/// How each backup is made, round after round: mode, transfer, freeze policy, proof.
const WAYS: [[&str; 4]; 10] = [
    ["full", "pull", "off", "compared"],
    ["auto", "pull", "prefer", "compared"],
    ["auto", "pull", "off", "compared"],
    ["auto", "push", "off", ""],
    ["auto", "push", "prefer", ""],
    ["auto", "pull", "off", "unverified"],
    ["auto", "pull", "prefer", "compared"],
    // Of the bare instance, which is stopped in this round.
    ["auto", "", "off", "compared"],
    ["incremental", "pull", "off", "compared"],
    ["full", "push", "prefer", ""],
];
const STOPPED: usize = 7;

struct Soak {
    fleet: Fleet,
    share: Share,
    instances: [LabInstance; 2],
    /// What is on the share of each, the oldest first.
    kept: [Vec<BackupSummary>; 2],
    backups: usize,
    runs: usize,
}

#[test]
fn a_hundred_backups_in_a_row_of_two_guests_at_once_leave_nothing_that_grows() {
    let backups = std::env::var("LONGSHORE_SOAK_BACKUPS").map_or(BACKUPS, |text| text.parse().expect("a number"));
    let fleet = Fleet::start("soak");
    let share = fleet.share();
    let instances = [LabInstance::guest(), LabInstance::bare()];
    let mut soak = Soak { fleet, share, instances, kept: Default::default(), backups: 0, runs: 0 };
    let mut figures = Vec::new();
    Figures::show_names();
    for round in 0..backups.div_ceil(2) {
        soak.round(round);
        if round % LOOK_EVERY == LOOK_EVERY - 1 {
            figures.push(soak.look());
        }
    }
    let grown = growth(&figures[(WARM_UP / LOOK_EVERY).min(figures.len() / 2)..]);
    assert!(grown.is_empty(), "{grown:#?}");
    let [guest, bare] = &soak.instances;
    soak.fleet.finish(&[guest, bare], &[&soak.share]);
}

impl Soak {
    fn round(&mut self, round: usize) {
        let way = round % WAYS.len();
        let [_, bare] = &self.instances;
        if way == STOPPED {
            bare.stop();
        } else {
            bare.overwrite(0, u8::try_from(round % 251).unwrap(), "1M");
        }
        let jobs = self.instances.each_ref().map(|instance| self.publish(self.backup(instance, WAYS[way])));
        for (place, job) in jobs.into_iter().enumerate() {
            self.kept[place].push(self.fleet.completed(job));
            self.backups += 1;
        }
        self.runs += 2;
        if way == STOPPED {
            self.instances[1].start();
        }
        self.delete_the_oldest();
        if round % VALIDATED_EVERY == VALIDATED_EVERY - 1 {
            self.validate();
        }
    }

    fn publish(&self, job: JobMessage) -> JobId {
        self.fleet.publish(&job)
    }

    fn backup(&self, instance: &LabInstance, way: [&str; 4]) -> JobMessage {
        let [mode, transfer, quiesce, verification] =
            way.map(|word| Some(word).filter(|word| !word.is_empty()).map(str::to_owned));
        let backup = BackupPart { mode, transfer, quiesce, verification, ..BackupPart::default() };
        JobMessage { backup: Some(backup), ..self.fleet.job(instance, &self.share) }
    }

    /// Of both at once, where there are too many.
    fn delete_the_oldest(&mut self) {
        let mut jobs = Vec::new();
        for (instance, kept) in self.instances.iter().zip(&mut self.kept).filter(|(_, kept)| kept.len() > KEPT) {
            let backup_id = kept.remove(0).backup_id.to_string();
            let delete = DeletePart { backup_id, mode: Some("only".to_owned()), dry_run: false };
            jobs.push(self.fleet.publish(&JobMessage {
                kind: "backup-delete".to_owned(),
                backup: None,
                delete: Some(delete),
                ..self.fleet.job(instance, &self.share)
            }));
        }
        for job in jobs {
            self.fleet.done(job).delete.expect("a deletion says what it deleted");
            self.runs += 1;
        }
    }

    fn validate(&mut self) {
        let part = ValidatePart { level: Some("content".to_owned()), ..ValidatePart::default() };
        let job = self.fleet.publish(&self.fleet.validate_job(&self.share, part));
        let found = self.fleet.validated(job);
        assert_eq!((found.errors, found.backups), (0, (self.kept[0].len() + self.kept[1].len()) as u64), "{found:?}");
        self.runs += 1;
    }

    /// Once the worker is alone: movers and guards end by themselves.
    fn look(&self) -> Figures {
        let folder = &self.fleet.folder;
        eventually("the worker is alone", JOB, || {
            processes_of(folder).len() == 1 && !self.instances.iter().any(|instance| guard_stands(instance.id))
        });
        let figures = Figures::take(self.fleet.worker_pid(), folder, self.backups, self.runs);
        figures.show();
        figures
    }
}
