//! Restores to elsewhere: a new instance beside the first one, a volume that becomes a disk, and what is refused, with nothing changed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use longshore::message::event::{BackupSummary, Completed, RestoreSummary, RunDetail};
use longshore::message::job::{AttachPart, InstancePart, JobMessage, NewInstancePart, NewVolumePart, RestoreNewPart};
use longshore::model::id::JobId;
use longshore::model::instance::ImageFormat;

use crate::fleet::{Fleet, JOB, Settings};
use crate::gate::{DEFINE, Gate, Keeps};
use crate::image::{equal, holds, qemu_img};
use crate::lab::{LabInstance, eventually, forget, virsh};
use crate::share::Share;
use crate::slate::process_of_qemu;

/// Forgets the instance that a restore makes.
pub struct Forgotten(pub String);

impl Drop for Forgotten {
    fn drop(&mut self) {
        forget(&self.0);
    }
}

pub fn to(
    fleet: &Fleet,
    instance: &LabInstance,
    share: &Share,
    backup: &BackupSummary,
    part: RestoreNewPart,
) -> JobMessage {
    let mut job = fleet.job(instance, share);
    (job.kind, job.backup) = ("restore-new".to_owned(), None);
    // As if it were no longer here: its uuid is enough.
    job.instance = Some(InstancePart { id: Some(instance.id.to_string()), name: None });
    job.restore_new = Some(RestoreNewPart { backup_id: backup.backup_id.to_string(), ..part });
    job
}

pub fn new_instance(part: NewInstancePart) -> RestoreNewPart {
    RestoreNewPart { new_instance: Some(part), ..RestoreNewPart::default() }
}

fn volume(path: &Path, format: &str, attach: Option<(&LabInstance, &str)>) -> RestoreNewPart {
    let attach = attach.map(|(instance, target)| AttachPart {
        instance: InstancePart { id: None, name: Some(instance.name.clone()) },
        target: target.to_owned(),
        bus: None,
    });
    let path = path.to_str().unwrap().to_owned();
    let volume = Some(NewVolumePart { path, format: Some(format.to_owned()), attach });
    RestoreNewPart { volume, ..RestoreNewPart::default() }
}

pub fn completed(fleet: &Fleet, job: JobId) -> (RestoreSummary, Vec<String>) {
    match fleet.heard.end_of(job, JOB) {
        RunDetail::Completed(Completed { restore, warnings, left_overs, .. }) => {
            assert!(left_overs.is_empty(), "{left_overs:?}");
            (*restore.unwrap(), warnings)
        }
        other => panic!("{other:#?}"),
    }
}

fn image(share: &Share, backup: &BackupSummary, disk: &str) -> PathBuf {
    share.path.join(&backup.directory).join(format!("{disk}.qcow2"))
}

fn files_of(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// What QEMU has in that disk of the running instance: the hash of the disk in a backup that is made of it.
fn content_of(fleet: &Fleet, share: &Share, instance: &LabInstance, target: &str) -> String {
    let backup = fleet.completed(fleet.back_up(instance, share, "off"));
    backup.disks.into_iter().find(|disk| disk.target.as_str() == target).unwrap().content_root
}

#[test]
fn a_new_instance_of_a_chain_runs_beside_the_first_one() {
    let fleet = Fleet::start("new-instance");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let interface = bare.folder.join("interface.xml");
    fs::write(&interface, "<interface type='user'><mac address='52:54:00:11:22:33'/></interface>").unwrap();
    virsh(&["attach-device", &bare.name, interface.to_str().unwrap(), "--config"]);
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    bare.overwrite(0, 0x5a, "2M");
    bare.overwrite(1, 0x5b, "1M");
    let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
    assert!(backup.parent.is_some());
    bare.overwrite(0, 0x77, "1M");
    let (qemu, definition) = (process_of_qemu(&format!("guest={},", bare.name)), virsh(&["dumpxml", &bare.name]));

    let name = format!("{}-new", bare.name);
    let _forgotten = Forgotten(name.clone());
    let raw = bare.folder.join("a new one.raw");
    let part = NewInstancePart {
        name: name.clone(),
        directory: Some(bare.folder.to_str().unwrap().to_owned()),
        volumes: [("vdb".to_owned(), raw.to_str().unwrap().to_owned())].into(),
        start: true,
        ..NewInstancePart::default()
    };
    let (told, warnings) = completed(&fleet, fleet.publish(&to(&fleet, &bare, &share, &backup, new_instance(part))));
    let known = ["of type `file`", "the host's own"];
    let odd: Vec<_> = warnings.iter().filter(|line| !known.iter().any(|known| line.contains(known))).collect();
    assert!(odd.is_empty(), "its console, and the firmware that is no host's: {odd:?}");
    let new = told.new_instance.unwrap();
    assert_eq!((new.name.as_str(), told.backup_id), (name.as_str(), backup.backup_id));
    assert_eq!(virsh(&["domuuid", &name]), new.id.to_string());
    assert_ne!(new.id, bare.id);
    let image_of_vda = bare.folder.join(format!("{name}-vda.qcow2"));
    let volumes = [("vda", &image_of_vda, ImageFormat::Qcow2), ("vdb", &raw, ImageFormat::Raw)];
    let roots: Vec<_> = backup.disks.iter().map(|disk| disk.content_root.clone()).collect();
    for ((target, path, format), (volume, root)) in volumes.iter().zip(told.volumes.iter().zip(roots)) {
        let said = (volume.target.as_str(), Path::new(&volume.volume), volume.format, &volume.content_root);
        assert_eq!(said, (*target, path.as_path(), Some(*format), &root));
    }
    let xml = virsh(&["dumpxml", &name]);
    assert!(!xml.contains("52:54:00:11:22:33") && xml.contains("<mac address='52:54:00:"), "{xml}");
    for path in [&image_of_vda, &raw] {
        assert!(xml.contains(path.to_str().unwrap()), "{xml}");
    }
    assert_eq!(virsh(&["domstate", &name]), "running");

    // The first one goes on, and neither sees what the other writes.
    assert_eq!(process_of_qemu(&format!("guest={},", bare.name)), qemu);
    assert_eq!(virsh(&["dumpxml", &bare.name]), definition);
    forget(&name);
    bare.stop();
    holds(&bare.folder.join("vda.qcow2"), "qcow2", 0x77, "1M");
    holds(&bare.folder.join("vdb.raw"), "raw", 0x5b, "1M");
    for (target, path, format) in volumes {
        let format = if format == ImageFormat::Raw { "raw" } else { "qcow2" };
        equal(path, format, &image(&share, &backup, target), "qcow2");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert!(!qemu_img(&["info", image_of_vda.to_str().unwrap()]).contains("backing"));
    let left = files_of(&bare.folder).into_iter().filter(|path| path.to_string_lossy().contains(".longshore-"));
    assert_eq!(left.count(), 0);
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_volume_becomes_a_disk_of_an_instance_that_runs_and_of_one_that_is_stopped() {
    let fleet = Fleet::start("attach");
    let share = fleet.share();
    let (bare, other) = (LabInstance::bare(), LabInstance::bare_off_with("vda:qcow2:16"));
    bare.overwrite(1, 0x5c, "2M");
    let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
    bare.overwrite(1, 0x77, "2M");

    // Into the very instance that it is of, where the serial number is in use.
    let path = bare.folder.join("again.qcow2");
    let mut job = to(&fleet, &bare, &share, &backup, volume(&path, "qcow2", Some((&bare, "vdc"))));
    job.restore_new.as_mut().unwrap().disks = vec!["vdb".to_owned()];
    let (told, warnings) = completed(&fleet, fleet.publish(&job));
    assert!(warnings.len() == 1 && warnings[0].contains("without its serial number"), "{warnings:?}");
    let [one] = &told.volumes[..] else { panic!("{told:?}") };
    assert_eq!((one.disk.as_str(), one.target.as_str(), one.format), ("vdb", "vdc", Some(ImageFormat::Qcow2)));
    assert_eq!(told.attached_to.unwrap().id, bare.id);
    assert_eq!(content_of(&fleet, &share, &bare, "vdc"), one.content_root);
    for when in [&[][..], &["--inactive"][..]] {
        let disks = virsh(&[&["domblklist", &bare.name][..], when].concat());
        assert!(disks.lines().any(|line| line.contains("vdc") && line.ends_with("again.qcow2")), "{disks}");
    }
    // Another instance, which is shut off, with the serial number.
    let path = other.folder.join("from another.raw");
    let mut job = to(&fleet, &bare, &share, &backup, volume(&path, "raw", Some((&other, "vdb"))));
    job.restore_new.as_mut().unwrap().disks = vec!["vdb".to_owned()];
    let (told, warnings) = completed(&fleet, fleet.publish(&job));
    assert_eq!((told.attached_to.unwrap().id, warnings), (other.id, Vec::new()));
    let xml = virsh(&["dumpxml", "--inactive", &other.name]);
    assert!(xml.contains(&format!("<serial>{}-vdb</serial>", bare.name)), "{xml}");
    equal(&path, "raw", &image(&share, &backup, "vdb"), "qcow2");
    other.start();
    assert_eq!(content_of(&fleet, &share, &other, "vdb"), told.volumes[0].content_root);
    bare.stop();
    holds(&bare.folder.join("vdb.raw"), "raw", 0x77, "2M");
    equal(&bare.folder.join("again.qcow2"), "qcow2", &image(&share, &backup, "vdb"), "qcow2");
    fleet.finish(&[&bare, &other], &[&share]);
}

/// A worker that waits for libvirt to define an instance.
struct Defining {
    keeps: Keeps,
    bare: LabInstance,
    gate: Gate,
    fleet: Fleet,
    share: Share,
    backup: BackupSummary,
    name: String,
    job: JobId,
    _forgotten: Forgotten,
}

impl Defining {
    fn begin(keeps: Keeps) -> Self {
        let bare = LabInstance::bare_off_with("vda:qcow2:16");
        let gate = Gate::new(&bare.folder, DEFINE, keeps);
        let host = if keeps == Keeps::Answer { "killed-new" } else { "killed-unasked" };
        let fleet = Fleet::with(host, Settings { libvirt_uri: gate.uri(), ..Settings::default() });
        let share = fleet.share();
        let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
        let name = format!("{}-new", bare.name);
        let directory = Some(bare.folder.to_str().unwrap().to_owned());
        let part = NewInstancePart { name: name.clone(), directory, ..NewInstancePart::default() };
        let job = fleet.publish(&to(&fleet, &bare, &share, &backup, new_instance(part)));
        let _forgotten = Forgotten(name.clone());
        Self { keeps, bare, gate, fleet, share, backup, name, job, _forgotten }
    }

    /// How many instances there are of that name, and how many there are to be.
    fn are_there(&self) -> (usize, usize) {
        let there = virsh(&["list", "--all", "--name"]).lines().filter(|line| **line == self.name).count();
        (there, usize::from(self.keeps == Keeps::Answer))
    }

    fn is_killed_and_followed(&mut self) {
        eventually("it defines", JOB, || {
            let (there, expected) = self.are_there();
            self.gate.has_held() && there == expected
        });
        self.fleet.kill_worker();
        self.gate.open();
        self.fleet.start_worker();
    }

    fn ends(self) {
        match self.keeps {
            Keeps::Answer => {
                let (told, _) = completed(&self.fleet, self.job);
                assert_eq!(virsh(&["domuuid", &self.name]), told.new_instance.unwrap().id.to_string());
            }
            Keeps::Call => {
                let failed = self.fleet.failed(self.job).failure;
                assert_eq!((failed.code.as_str(), failed.step.as_deref()), ("restore_unfinished", Some("place")));
            }
        }
        let (there, expected) = self.are_there();
        assert_eq!(there, expected, "once, or not at all");
        let made = self.bare.folder.join(format!("{}-vda.qcow2", self.name));
        equal(&made, "qcow2", &image(&self.share, &self.backup, "vda"), "qcow2");
        let left =
            files_of(&self.bare.folder).into_iter().filter(|path| path.to_string_lossy().contains(".longshore-"));
        assert_eq!(left.count(), 0);
        forget(&self.name);
        self.fleet.finish(&[&self.bare], &[&self.share]);
    }
}

/// The files have their names, and libvirt was asked to define the instance or is about to be. The two workers wait for their old leases
/// together.
#[test]
fn a_worker_that_is_killed_while_libvirt_defines_is_followed_by_one_that_finds_out_what_came_of_it() {
    let mut both = [Defining::begin(Keeps::Answer), Defining::begin(Keeps::Call)];
    both.iter_mut().for_each(Defining::is_killed_and_followed);
    both.into_iter().for_each(Defining::ends);
}

#[test]
fn what_is_there_stays_and_what_may_not_be_is_not() {
    let fleet = Fleet::start("refused");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
    symlink("/etc", bare.folder.join("link")).unwrap();
    let (files, before) = (files_of(&bare.folder), virsh(&["dumpxml", &bare.name]));
    let code = |part: RestoreNewPart, disks: &[&str]| {
        let mut job = to(&fleet, &bare, &share, &backup, part);
        job.restore_new.as_mut().unwrap().disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
        fleet.failed(fleet.publish(&job)).failure.code
    };
    let at = |name: &str| bare.folder.join(name);
    assert_eq!(code(volume(Path::new("/etc/new.raw"), "raw", None), &["vdb"]), "path_not_allowed");
    assert_eq!(code(volume(&at("link/new.raw"), "raw", None), &["vdb"]), "path_not_allowed");
    assert_eq!(code(volume(&at("vda.qcow2"), "qcow2", None), &["vdb"]), "volume_exists");
    assert_eq!(code(volume(&at("vdb.reference.raw"), "raw", None), &["vdb"]), "volume_exists");
    assert_eq!(code(volume(&at("new.raw"), "raw", None), &[]), "disk_ambiguous");
    assert_eq!(code(volume(&at("new.raw"), "raw", Some((&bare, "vda"))), &["vdb"]), "disk_target_in_use");
    let named = |name: &str, id: Option<String>| {
        let directory = Some(bare.folder.to_str().unwrap().to_owned());
        new_instance(NewInstancePart { name: name.to_owned(), id, directory, ..NewInstancePart::default() })
    };
    assert_eq!(code(named(&bare.name, None), &[]), "instance_exists");
    assert_eq!(code(named("another", Some(bare.id.to_string())), &[]), "instance_exists");

    // libvirt itself refuses what it cannot have: a bus that this machine has no room for.
    let no_such_bus = AttachPart {
        instance: InstancePart { id: None, name: Some(bare.name.clone()) },
        target: "sda".to_owned(),
        bus: Some("usb".to_owned()),
    };
    let mut part = volume(&at("new.raw"), "raw", None);
    part.volume.as_mut().unwrap().attach = Some(no_such_bus);
    let mut job = to(&fleet, &bare, &share, &backup, part);
    job.restore_new.as_mut().unwrap().disks = vec!["vdb".to_owned()];
    let failed = fleet.failed(fleet.publish(&job)).failure;
    assert_eq!((failed.code.as_str(), failed.step.as_deref()), ("definition_refused", Some("place")), "{failed:?}");

    assert_eq!(files_of(&bare.folder), files);
    assert!(!virsh(&["list", "--all", "--name"]).lines().any(|name| name == "another"));
    assert_eq!(virsh(&["dumpxml", &bare.name]), before);
    fleet.finish(&[&bare], &[&share]);
}

/// What a job says that only says what it would do, in the words of the command line.
fn planned(fleet: &Fleet, job: &JobMessage) -> serde_json::Value {
    let RunDetail::Completed(completed) = fleet.heard.end_of(fleet.publish(job), JOB) else {
        panic!("it has to end well")
    };
    assert_eq!((completed.restore, completed.left_overs), (None, Vec::new()));
    let mut told = serde_json::to_value(completed.restore_plan.unwrap()).unwrap();
    told["warnings"] = completed.warnings.into();
    told
}

#[test]
fn a_plan_says_what_a_restore_would_do_and_does_nothing() {
    let fleet = Fleet::start("plan-restore");
    let share = fleet.share();
    let bare = LabInstance::bare();
    let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
    let (directory, id) = (share.path.to_str().unwrap().to_owned(), backup.backup_id.to_string());
    let (files, before) = (files_of(&bare.folder), virsh(&["dumpxml", "--inactive", &bare.name]));
    let plan = |options: &[&str]| {
        let arguments = [&["backup", "plan-restore", &directory, &id], options].concat();
        let output = fleet.command_on_host(&arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, in_place, said) = plan(&["--json"]);
    assert_eq!(code, Some(3), "in place it has to be shut off: {said}");
    let told: serde_json::Value = serde_json::from_str(&in_place).unwrap();
    assert!(told["warnings"][0].as_str().unwrap().contains("it is not shut off"), "{told}");
    let mut dry = fleet.restore_job(&bare, &share, &backup);
    dry.restore.as_mut().unwrap().dry_run = true;
    assert_eq!(planned(&fleet, &dry), told, "a job says the same");

    let name = format!("{}-new", bare.name);
    let folder = bare.folder.to_str().unwrap();
    let (code, plan_of_new, said) = plan(&["--new-instance", &name, "--volume-directory", folder, "--start", "--json"]);
    assert_eq!(code, Some(3), "its console is unusual: {said}");
    let told: serde_json::Value = serde_json::from_str(&plan_of_new).unwrap();
    assert_eq!((&told["new_instance"]["name"], &told["new_instance"]["start"]), (&name.as_str().into(), &true.into()));
    assert_eq!(told["volumes"][1]["path"], format!("{folder}/{}-new-vdb.raw", bare.name));
    let bytes: u64 = backup.disks.iter().map(|disk| disk.data_bytes).sum();
    assert_eq!(told["data_bytes"], bytes);
    let part = new_instance(NewInstancePart {
        name: name.clone(),
        id: told["new_instance"]["id"].as_str().map(str::to_owned),
        directory: Some(folder.to_owned()),
        start: true,
        ..NewInstancePart::default()
    });
    let dry = to(&fleet, &bare, &share, &backup, RestoreNewPart { dry_run: true, ..part });
    let mut given = told.clone();
    assert_eq!(given["new_instance"].as_object_mut().unwrap().remove("id_is_drawn"), Some(true.into()));
    assert_eq!(planned(&fleet, &dry), given, "a job that names the uuid says the same");
    let (_, lines, said) = plan(&["--new-instance", &name, "--volume-directory", folder]);
    assert!(lines.contains("drawn again for the restore: --new-id keeps it"), "{lines}{said}");
    let path = format!("{folder}/new.raw");
    let attach = ["--disk", "vdb", "--volume", &path, "--format", "raw", "--attach-to", &bare.name, "--attach-target"];
    let (code, lines, said) = plan(&[&attach[..], &["vdc"]].concat());
    assert!(code == Some(3) && lines.contains(&format!("would make     {path} (raw): disk vdb")), "{lines}{said}");
    assert!(lines.contains("would attach   it to instance") && lines.contains("without its serial number"), "{lines}");
    let (code, _, said) = plan(&[&attach[..], &["vda"]].concat());
    assert!(code == Some(5) && said.contains("disk_target_in_use"), "{said}");
    let (code, _, said) = plan(&["--disk", "vdb", "--volume", "/etc/new.raw"]);
    assert!(code == Some(5) && said.contains("path_not_allowed"), "{said}");

    bare.stop();
    let (code, lines, said) = plan(&[]);
    let replaced = format!("would replace  {folder}/vda.qcow2 (qcow2): disk vda");
    assert!(code == Some(0) && lines.contains(&replaced), "{lines}{said}");
    let (instance, repository) = (["--instance", &bare.name], share.part().id);
    let at = ["--host", &fleet.host, "--repository-id", &repository, "--address", &directory, "--backup", &id];
    let words = [&["job", "publish", "restore", "--dry-run", "--watch"], &instance[..], &at[..]].concat();
    let published = fleet.command(&words).output().unwrap();
    let told = String::from_utf8(published.stdout).unwrap();
    assert!(published.status.success() && told.starts_with(&lines), "the job says the same: {told}");
    assert_eq!((files_of(&bare.folder), virsh(&["dumpxml", "--inactive", &bare.name])), (files, before));
    fleet.finish(&[&bare], &[&share]);
}
