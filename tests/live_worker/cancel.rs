//! A controller cancels jobs while their bytes are on their way, one of each kind that moves any.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, Cancelled, RunDetail};
use longshore::message::job::{BackupPart, NewVolumePart, RestoreNewPart, ValidatePart};
use longshore::model::id::JobId;

use crate::damaged::Damaged;
use crate::delete::Chain;
use crate::fleet::{Fleet, Settings};
use crate::image::equal;
use crate::lab::{LabInstance, guard_stands, variable};
use crate::share::{LONGSHORE, Share};

/// Within this a job that is cancelled has ended, its way back included, on a busy machine.
const SECONDS: Duration = Duration::from_secs(30);

/// A worker with somebody who may command it.
pub struct Commanded {
    pub fleet: Fleet,
    uri: String,
}

impl Commanded {
    pub fn new(name: &str) -> Self {
        let ops = format!("ops-{name}.{}", std::process::id());
        let fleet = Fleet::with(name, Settings { controllers: vec![ops.clone()], ..Settings::default() });
        let mut commanded = Self { fleet, uri: String::new() };
        commanded.uri = commanded.another(&ops);
        commanded
    }

    /// Another user whom the broker lets send control messages; gives its URI.
    pub fn another(&self, user: &str) -> String {
        let password = self.fleet.controller(user);
        format!("amqp://{user}:{password}@127.0.0.1:{}", variable("LONGSHORE_LAB_AMQP_PORT"))
    }

    /// Runs the command line as the controller.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(LONGSHORE).args(arguments).env("LONGSHORE__BROKER__URI", &self.uri).output().unwrap()
    }

    /// The same, with the exit code and a part of what it says.
    pub fn says(&self, arguments: &[&str], code: i32, words: &str) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(words), "{:?}: {said}", output.status);
    }

    /// The same as somebody else.
    pub fn as_user(&self, uri: &str, arguments: &[&str], code: i32) {
        let output = Command::new(LONGSHORE).args(arguments).env("LONGSHORE__BROKER__URI", uri).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn cancel(&self, job: JobId) {
        let (job, host) = (job.to_string(), &self.fleet.host);
        let cancel = ["job", "cancel", &job, "--host", host, "--reason", "the share is slow", "--requested-by"];
        self.says(&[&cancel[..], &["the one on call"]].concat(), 0, "told");
    }

    /// It ends as that, with nothing left, and there is no dead letter of it.
    pub fn is_cancelled(&self, job: JobId) {
        let end = self.fleet.heard.end_of(job, SECONDS);
        let (requested_by, reason) = (Some("the one on call".to_owned()), Some("the share is slow".to_owned()));
        assert_eq!(end, RunDetail::Cancelled(Cancelled { requested_by, reason, left_overs: Vec::new() }));
        assert!(self.fleet.heard.no_letter_of(job));
    }
}

#[test]
fn a_running_backup_is_taken_back_at_once_and_the_next_one_works() {
    let bare = LabInstance::bare();
    let commanded = Commanded::new("cancel");
    let (fleet, share) = (&commanded.fleet, Share::faulty("cancel"));
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    let began = Instant::now();
    commanded.cancel(job);
    commanded.is_cancelled(job);
    eprintln!("cancelled within {} ms, the command included", began.elapsed().as_millis());
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());
    share.heal();
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    assert!(!guard_stands(bare.id));
    commanded.fleet.finish(&[&bare], &[&share]);
}

/// What there is to be done, on a share that writes slowly and on one that reads slowly.
struct Work<'w> {
    fleet: &'w Fleet,
    written: &'w Share,
    read: &'w Share,
    pushed: &'w LabInstance,
    damaged: &'w Damaged,
    /// Another one, of which a volume is made anew.
    copied: (&'w LabInstance, &'w BackupSummary),
    chain: &'w Chain<'w>,
}

impl Work<'_> {
    fn push(&self) -> JobMessage {
        let backup = BackupPart { transfer: Some("push".to_owned()), ..BackupPart::default() };
        JobMessage { backup: Some(backup), ..self.fleet.job(self.pushed, self.written) }
    }

    fn merge(&self) -> JobMessage {
        self.chain.job_of(self.fleet, 1, "only")
    }

    fn restore(&self) -> JobMessage {
        self.fleet.restore_job(&self.damaged.bare, self.read, &self.damaged.backup)
    }

    fn volume(&self) -> PathBuf {
        self.copied.0.folder.join("new.raw")
    }

    fn restore_new(&self) -> JobMessage {
        let (instance, backup) = self.copied;
        let path = self.volume().to_str().unwrap().to_owned();
        let part = RestoreNewPart {
            backup_id: backup.backup_id.to_string(),
            volume: Some(NewVolumePart { path, format: Some("raw".to_owned()), attach: None }),
            ..RestoreNewPart::default()
        };
        let job = self.fleet.job(instance, self.read);
        JobMessage { kind: "restore-new".to_owned(), backup: None, restore_new: Some(part), ..job }
    }

    fn validate(&self, max_bytes_per_second: Option<u64>) -> JobMessage {
        let level = Some("content".to_owned());
        self.fleet.validate_job(self.read, ValidatePart { level, max_bytes_per_second, ..ValidatePart::default() })
    }

    /// All of it, with bytes on their way: the push, and the others.
    fn begins(&self) -> (JobId, [JobId; 4]) {
        let fleet = self.fleet;
        let validate = fleet.publish(&self.validate(Some(1 << 20)));
        fleet.is_moving(validate, "validate");
        [self.damaged.bare.id, self.copied.0.id].iter().for_each(|id| self.read.forget(id));
        // Slow enough to be seen to move, and then hardly at all.
        self.read.order(r#"{"read_mb": 6}"#);
        let (restore, restore_new) = (fleet.publish(&self.restore()), fleet.publish(&self.restore_new()));
        fleet.is_moving(restore, "restore");
        fleet.is_moving(restore_new, "restore");
        self.read.order(r#"{"read_mb": 0.5}"#);
        self.written.order(r#"{"bw_mb": 1}"#);
        let (push, merge) = (fleet.publish(&self.push()), fleet.publish(&self.merge()));
        fleet.is_moving(push, "push");
        fleet.is_moving(merge, "merge");
        (push, [restore, restore_new, merge, validate])
    }

    /// Nothing of it has been done, and nothing is left.
    fn is_as_before(&self) {
        assert!(!self.pushed.has_backup_job() && self.written.entries_of(&self.pushed.id).is_empty());
        assert_eq!(self.chain.left(), [0, 1, 2]);
        self.damaged.is_still_damaged();
        let entries = std::fs::read_dir(&self.copied.0.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let new: Vec<_> = entries.filter(|name| name.to_string_lossy().contains("new.raw")).collect();
        assert!(new.is_empty(), "{new:?}");
    }

    /// All of it once more, to its end.
    fn is_done(&self) {
        let fleet = self.fleet;
        let jobs = [self.push(), self.merge(), self.restore(), self.restore_new()].map(|job| fleet.publish(&job));
        jobs.into_iter().for_each(|job| drop(fleet.done(job)));
        assert_eq!(fleet.validated(fleet.publish(&self.validate(None))).errors, 0);
        assert_eq!(self.chain.left(), [0, 2]);
        assert!(self.damaged.is_as_at_the_backup());
        equal(&self.volume(), "raw", &self.copied.0.folder.join("vda.qcow2"), "qcow2");
    }
}

#[test]
fn jobs_of_every_other_kind_are_taken_back_and_the_next_ones_work() {
    let commanded = Commanded::new("cancel-all");
    let fleet = &commanded.fleet;
    let [written, read] = ["cancel-written", "cancel-read"].map(Share::faulty);
    let (pushed, damaged) = (LabInstance::bare(), Damaged::new(fleet, &read));
    let other = LabInstance::bare_off_with("vda:qcow2:64");
    let copied = (&other, &fleet.completed(fleet.back_up(&other, &read, "off")));
    let chain = Chain::new(fleet, &written, &pushed);
    let work =
        Work { fleet, written: &written, read: &read, pushed: &pushed, damaged: &damaged, copied, chain: &chain };
    let (push, others) = work.begins();
    let began = Instant::now();
    others.into_iter().for_each(|job| commanded.cancel(job));
    commanded.cancel(push);
    others.into_iter().for_each(|job| commanded.is_cancelled(job));
    // What QEMU itself has under way to the share comes to its end first.
    written.heal();
    commanded.is_cancelled(push);
    eprintln!("all cancelled within {} ms, the commands included", began.elapsed().as_millis());
    read.heal();
    work.is_as_before();
    work.is_done();
    commanded.fleet.finish(&[&pushed, &damaged.bare, &other], &[&written, &read]);
}
