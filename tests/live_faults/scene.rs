//! A host, a share and an instance upon which one fault after the other comes, and all that has to be so after each of them: one end of
//! the run, the guest free, nothing left, the backup whole or not there, and the next one right.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, Completed, Failed, RunDetail};
use longshore::model::id::{BackupId, JobId};

use crate::fleet::{Fleet, Settings};
use crate::halt::Halt;
use crate::heard::in_order;
use crate::image::{equal, qemu_io};
use crate::kind::{Kind, part};
use crate::lab::{LabInstance, eventually, forget, guard_stands, virsh};
use crate::share::Share;
use crate::slate;

/// Longest time for a job upon which a fault has come, with the pauses and waits that it costs.
pub const ENDS: Duration = Duration::from_secs(420);
/// Longest time for what comes right after a job's end.
const SOON: Duration = Duration::from_secs(30);
/// Longest time for a process that a share has held up to be gone once the share is back.
const STUCK: Duration = Duration::from_secs(120);

const DISKS: &str = "vda:qcow2:8,vdb:raw:2";
const VOLUMES: [(&str, &str); 2] = [("vda", "qcow2"), ("vdb", "raw")];

/// What is unusual about a scene.
pub struct Props {
    pub settings: Settings,
    /// A share on which faults can be ordered.
    pub faulty: bool,
    /// A guest with an agent, which the backups freeze.
    pub guest: Option<LabInstance>,
    /// There is no backup yet, so that the journal's first record of a step is the job's.
    pub is_first: bool,
    /// The disks of an instance that is no guest.
    pub disks: &'static str,
}

impl Default for Props {
    fn default() -> Self {
        // Its beats would be transactions of the journal that come whenever they like.
        let settings = Settings { heartbeat_seconds: 300, ..Settings::default() };
        Self { settings, faulty: false, guest: None, is_first: false, disks: DISKS }
    }
}

/// The host, the share and the instance.
pub struct Scene {
    pub kind: Kind,
    pub fleet: Fleet,
    pub halt: Halt,
    pub share: Share,
    pub bare: LabInstance,
    /// Names of the backups that are to be there.
    pub known: BTreeSet<String>,
    /// The last of them.
    pub latest: BackupId,
    is_guest: bool,
    written: u8,
    made: u32,
}

impl Scene {
    /// `name` is of this scene alone.
    pub fn new(name: &str, kind: Kind) -> Self {
        Self::with(name, kind, Props::default())
    }

    pub fn with(name: &str, kind: Kind, props: Props) -> Self {
        let Props { mut settings, faulty, guest, is_first, disks } = props;
        let halt = Halt::new();
        settings.environment.extend(halt.environment());
        let is_guest = guest.is_some();
        let bare = guest.unwrap_or_else(|| match kind.is_of_stopped() {
            true => LabInstance::bare_off_with(disks),
            false => LabInstance::bare_with(disks),
        });
        let fleet = Fleet::with(name, settings);
        let share = if faulty { Share::faulty(name) } else { fleet.share() };
        if !is_guest {
            for (target, _) in VOLUMES {
                fs::copy(
                    bare.folder.join(format!("{target}.reference.raw")),
                    bare.folder.join(format!("{target}.wanted")),
                )
                .unwrap();
            }
        }
        let (known, latest) = (BTreeSet::new(), BackupId::draw());
        let mut scene = Self { kind, fleet, halt, share, bare, known, latest, is_guest, written: 0, made: 0 };
        if !is_first {
            scene.back_up_now();
        }
        scene
    }

    /// A job of no kind yet.
    pub fn job(&self) -> JobMessage {
        self.fleet.job(&self.bare, &self.share)
    }

    pub fn backup(&self, transfer: &str, mode: &str) -> JobMessage {
        let quiesce = if self.is_guest { "require" } else { "off" };
        JobMessage { backup: Some(part(transfer, mode, quiesce)), ..self.job() }
    }

    /// A backup that nothing comes upon; it holds what the instance holds.
    pub fn back_up_now(&mut self) -> BackupId {
        let job = self.fleet.publish(&self.backup("auto", "auto"));
        let backup = self.ended_well(job).backup.expect("a backup job makes a backup");
        self.is_whole(&backup);
        self.latest
    }

    /// Changes a disk of the instance, the number of which is its place, at an offset and for a length.
    pub fn write(&mut self, disk: u32, place: &str) {
        self.written = self.written % 0x7f + 1;
        let command = format!("write -P {} {place}", self.written);
        let (target, format) = VOLUMES[disk as usize];
        match self.kind.is_of_stopped() {
            true => qemu_io(&self.bare.folder.join(format!("{target}.{format}")), format, &[&command]),
            false => self.bare.qemu_io(disk, &command),
        }
        qemu_io(&self.bare.folder.join(format!("{target}.wanted")), "raw", &[&command]);
    }

    /// Changes what a restore is to put back.
    pub fn damage(&self, disks: &[usize]) {
        for (target, format) in disks.iter().map(|disk| VOLUMES[*disk]) {
            qemu_io(&self.bare.folder.join(format!("{target}.{format}")), format, &["write -P 0xee 512k 1M"]);
        }
    }

    pub fn new_volume(&mut self) -> PathBuf {
        self.made += 1;
        self.volume_made()
    }

    pub fn new_instance(&mut self) -> String {
        self.made += 1;
        self.instance_made()
    }

    fn volume_made(&self) -> PathBuf {
        self.bare.folder.join(format!("new-{}.raw", self.made))
    }

    fn instance_made(&self) -> String {
        format!("{}-new-{}", self.bare.name, self.made)
    }

    /// The run's one end, which is a good one.
    pub fn ended_well(&self, job: JobId) -> Completed {
        let RunDetail::Completed(completed) = self.fleet.heard.end_of(job, ENDS) else {
            panic!("it did not complete: {:#?}", self.fleet.heard.events_of(job).last())
        };
        assert!(completed.left_overs.is_empty(), "{completed:#?}");
        completed
    }

    /// The backup is there, and each image of it is what the disk holds.
    pub fn is_whole(&mut self, backup: &BackupSummary) {
        self.latest = backup.backup_id;
        self.images_are_right();
        assert!(self.known.insert(backup.backup_id.to_string()), "{backup:?} is made twice");
    }

    /// Of the last backup.
    fn images_are_right(&self) {
        let directory = self.share.backups_of(&self.bare.id).join(self.latest.to_string());
        // A guest writes to its first disk whenever it likes.
        let quiet = if self.is_guest { &VOLUMES[1..] } else { &VOLUMES[..] };
        let wanted = if self.is_guest { "reference.raw" } else { "wanted" };
        for (target, _) in quiet {
            let wanted = self.bare.folder.join(format!("{target}.{wanted}"));
            equal(&wanted, "raw", &directory.join(format!("{target}.qcow2")), "qcow2");
        }
    }

    /// The same of a backup whose summary nobody was there to hear: there is no other one.
    pub fn adopt_the_only_backup(&mut self) {
        let entries = self.entries();
        let [only] = &entries[..] else { panic!("there are {entries:?}") };
        self.latest = only.parse().unwrap();
        self.images_are_right();
        self.known.insert(only.clone());
    }

    /// What the job was for is so.
    fn is_done(&mut self, completed: &Completed) {
        if self.kind.backs_up() {
            self.is_whole(completed.backup.as_ref().expect("a backup job makes a backup"));
        }
        match self.kind {
            Kind::Validate => assert_eq!(completed.validate.as_ref().expect("what was found").errors, 0),
            Kind::DeleteLeaf | Kind::DeleteMiddle => self.chain_is_whole(),
            Kind::Restore | Kind::RestoreOneDisk => self.volumes_are_as_wanted(),
            Kind::NewVolume => {
                let volume = self.volume_made();
                equal(&self.bare.folder.join("vdb.wanted"), "raw", &volume, "raw");
                fs::remove_file(volume).unwrap();
            }
            Kind::NewInstance => self.new_instance_is_right(completed),
            _ => {}
        }
        self.nothing_is_beside_the_volumes();
    }

    fn volumes_are_as_wanted(&self) {
        for (target, format) in VOLUMES {
            let at = |name: String| self.bare.folder.join(name);
            equal(&at(format!("{target}.wanted")), "raw", &at(format!("{target}.{format}")), format);
        }
    }

    fn new_instance_is_right(&self, completed: &Completed) {
        let name = self.instance_made();
        // A worker that finds it shut off does not know whether somebody has shut it off.
        let is_said = completed.warnings.iter().any(|warning| warning.contains("is not started again"));
        assert!(is_said || virsh(&["domstate", &name]) == "running", "{completed:#?}");
        forget(&name);
        for (target, format) in VOLUMES {
            let volume = self.bare.folder.join(format!("{name}-{target}.{format}"));
            equal(&self.bare.folder.join(format!("{target}.wanted")), "raw", &volume, format);
            fs::remove_file(volume).unwrap();
        }
    }

    /// The last backup holds what it held, on whatever it is based by now.
    fn chain_is_whole(&mut self) {
        let left: Vec<String> = self.entries();
        for name in left.iter().filter(|name| self.known.contains(*name)) {
            let directory = self.share.backups_of(&self.bare.id).join(name);
            for (target, _) in VOLUMES {
                crate::image::qemu_img(&["check", "-q", directory.join(format!("{target}.qcow2")).to_str().unwrap()]);
            }
        }
        if self.kind == Kind::DeleteMiddle {
            let directory = self.share.backups_of(&self.bare.id).join(self.latest.to_string());
            let wanted = self.bare.folder.join("vda.wanted");
            equal(&wanted, "raw", &directory.join("vda.qcow2"), "qcow2");
        }
    }

    fn nothing_is_beside_the_volumes(&self) {
        let names = fs::read_dir(&self.bare.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let odd: Vec<_> = names.filter(|name| name.to_string_lossy().contains("longshore-")).collect();
        assert!(odd.is_empty(), "beside the volumes: {odd:?}");
    }

    fn entries(&self) -> Vec<String> {
        self.share.entries_of(&self.bare.id).into_iter().filter(|name| name != ".highest-number").collect()
    }

    /// Everything that has to be so once the job has completed, and then the next backup.
    pub fn all_is_well_after(&mut self, job: &JobMessage) -> String {
        let id = job.job_id.parse().unwrap();
        if let RunDetail::Failed(told) = self.fleet.heard.end_of(id, ENDS)
            && self.kind == Kind::NewInstance
            && told.failure.code == "restore_unfinished"
        {
            return self.all_is_well_after_an_unfinished(id, &told);
        }
        let completed = self.ended_well(id);
        self.is_done(&completed);
        self.nothing_is_left();
        self.the_next_one_works();
        let told = self.ended_once(id);
        assert!(self.fleet.heard.no_letter_of(id), "a job that has completed is among the dead letters");
        told
    }

    /// Nobody could tell whether libvirt would take the new files still: they stay, named, and nothing has them.
    fn all_is_well_after_an_unfinished(&mut self, job: JobId, told: &Failed) -> String {
        self.fleet.heard.letter_of(job, SOON);
        assert!(!told.left_overs.is_empty(), "{told:#?}");
        let name = self.instance_made();
        assert!(!virsh(&["list", "--all", "--name"]).lines().any(|line| line == name), "{name} is defined");
        // As whoever is told has to.
        for (target, format) in VOLUMES {
            let _gone = fs::remove_file(self.bare.folder.join(format!("{name}-{target}.{format}")));
        }
        self.nothing_is_beside_the_volumes();
        self.the_next_one_works();
        format!("{} with {}", self.ended_once(job), told.failure.code)
    }

    /// The same where something else than the job may be at fault. It may have failed: it has changed nothing then, and does what it is for
    /// when it is asked for again; or found out what is wrong with a share, and finds nothing when that is well again. What could not be
    /// removed is named, and gone after the next job of the instance.
    pub fn all_is_well_whatever_became_of(&mut self, job: &JobMessage) -> String {
        let id: JobId = job.job_id.parse().unwrap();
        let (failed, left_overs) = match self.fleet.heard.end_of(id, ENDS) {
            RunDetail::Completed(told) => {
                let is_odd = told.validate.as_ref().is_some_and(|found| found.errors > 0);
                if !is_odd {
                    self.is_done(&told);
                }
                (is_odd.then(|| "findings".to_owned()), told.left_overs)
            }
            RunDetail::Failed(told) => {
                self.fleet.heard.letter_of(id, SOON);
                (Some(told.failure.code), told.left_overs)
            }
            other => panic!("nobody has taken it back: {other:#?}"),
        };
        eventually("no mover is left", STUCK, || slate::movers_of(&self.fleet.folder).is_empty());
        if failed.is_some() && !self.kind.backs_up() {
            let again = JobMessage { job_id: JobId::draw().to_string(), ..job.clone() };
            let completed = self.ended_well(self.fleet.publish(&again));
            self.is_done(&completed);
        }
        if left_overs.is_empty() {
            self.nothing_is_left();
        }
        self.the_next_one_works();
        let with = failed.map_or(String::new(), |what| format!(" with {what}"));
        let named =
            if left_overs.is_empty() { String::new() } else { format!(", {} left-overs named", left_overs.len()) };
        format!("{}{with}{named}", self.ended_once(id))
    }

    fn the_next_one_works(&mut self) {
        self.back_up_now();
        self.nothing_is_left();
    }

    /// Once more, after all that came later; gives its last words.
    fn ended_once(&self, job: JobId) -> String {
        let events = self.fleet.heard.events_of(job);
        in_order(&events);
        events.last().map(|event| format!("{} by attempt {}", event.detail.word(), event.attempt)).unwrap_or_default()
    }

    /// Nothing is mounted, frozen, running, waiting or lying about.
    pub fn nothing_is_left(&self) {
        let is_settled = || {
            self.fleet.journal(async |mut look| {
                look.runs(false, 9).await.unwrap().is_empty() && look.unsent_count().await.unwrap() == 0
            })
        };
        eventually("every run has ended and has been told", SOON, is_settled);
        slate::instances_are_free(&[&self.bare]);
        let (run, scratch) = (self.fleet.folder.join("run"), self.fleet.folder.join("scratch"));
        eventually("no mover is left", SOON, || slate::movers_of(&self.fleet.folder).is_empty());
        eventually("its guard is gone", SOON, || !guard_stands(self.bare.id));
        eventually("nothing is mounted", SOON, || slate::mounts_below(&run).is_empty());
        for directory in [run, scratch] {
            let left = || slate::everything_in(&directory);
            eventually(&format!("`{}` is empty", directory.display()), SOON, || left().is_empty());
        }
        slate::share_is_clean(&self.share, &[&self.bare]);
        let there: BTreeSet<String> = self.entries().into_iter().collect();
        assert_eq!(there, self.known, "the backups that are there, and those that are to be there");
    }

    /// What a dead worker or mover has held is free for others to take over.
    pub fn the_dead_are_gone(&self) {
        eventually("the dead one's movers are gone", SOON, || slate::movers_of(&self.fleet.folder).is_empty());
    }

    /// Ends the worker politely.
    pub fn finish(self) {
        let Self { fleet, share, bare, .. } = self;
        fleet.finish(&[&bare], &[&share]);
    }
}
