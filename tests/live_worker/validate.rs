//! A whole repository looked at through the queue, and from the command line alone: what is whole, what is damaged, what is dead.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use longshore::message::JobMessage;
use longshore::message::event::{BackupSummary, RunDetail};
use longshore::message::job::{BackupPart, RetryPart, ValidatePart};
use longshore::model::id::JobId;
use longshore::model::validation::{FindingCode, Severity, Validation, ValidationLevel};
use serde_json::Value;

use crate::fleet::{Fleet, JOB};
use crate::lab::LabInstance;
use crate::share::{LONGSHORE, Share};

fn part(level: &str) -> ValidatePart {
    ValidatePart { level: Some(level.to_owned()), ..ValidatePart::default() }
}

/// What was found, but for what is so of this machine alone.
fn codes(validation: &Validation) -> Vec<FindingCode> {
    let of_this_machine = |code: &FindingCode| matches!(code, FindingCode::LittleRoom | FindingCode::NoDirectoryFsync);
    validation.findings.iter().map(|finding| finding.code).filter(|code| !of_this_machine(code)).collect()
}

fn image(share: &Share, backup: &BackupSummary, disk: &str) -> PathBuf {
    share.path.join(&backup.directory).join(format!("{disk}.qcow2"))
}

/// One whose image has data in its middle.
fn full_backup(fleet: &Fleet, instance: &LabInstance, share: &Share) -> JobMessage {
    let backup = BackupPart { mode: Some("full".to_owned()), ..BackupPart::default() };
    JobMessage { backup: Some(backup), ..fleet.job(instance, share) }
}

/// Inverts one byte of what an image stores, in its middle.
fn damage(image: &Path) {
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    let at = file.metadata().unwrap().len() / 2;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

fn qemu_io(arguments: &[&str]) {
    let output = Command::new("qemu-io").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn longshore(words: &[&str], status: i32) -> Output {
    let output = Command::new(LONGSHORE).args(words).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
    output
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_repository_is_validated_through_the_queue_and_damage_completes_the_job() {
    let fleet = Fleet::start("validate");
    let share = fleet.share();
    let bare = LabInstance::bare();
    bare.stop();
    let [whole, damaged] = [(); 2].map(|()| fleet.completed(fleet.publish(&full_backup(&fleet, &bare, &share))));

    let found = fleet.validated(fleet.publish(&fleet.validate_job(&share, part("content"))));
    assert_eq!((codes(&found), found.level), (Vec::new(), ValidationLevel::Content), "{found:?}");
    assert_eq!((found.instances, found.backups), (1, 2));
    let data: u64 = whole.disks.iter().chain(&damaged.disks).map(|disk| disk.data_bytes).sum();
    assert!(found.bytes_read >= data, "{} of {data}", found.bytes_read);
    assert!(found.capacity_bytes > found.free_bytes && found.free_bytes > 0);
    assert_eq!(found.instance_sizes[0].instance_id, bare.id);

    damage(&image(&share, &damaged, "vdb"));
    let dead = share.backups_of(&bare.id).join(format!(".staging-{}.gone.1", JobId::draw()));
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("vda.qcow2"), "half").unwrap();
    let mut everything = part("content");
    (everything.sweep, everything.instances) = (true, vec![bare.id.to_string()]);
    let job = fleet.publish(&fleet.validate_job(&share, everything));
    let found = fleet.validated(job);
    assert_eq!(codes(&found), [FindingCode::ContentDiffers, FindingCode::LeftOverRemoved], "{found:?}");
    let finding = found.findings.iter().find(|finding| finding.severity == Severity::Error).unwrap();
    assert_eq!((finding.instance_id, finding.backup_id), (Some(bare.id), Some(damaged.backup_id)));
    assert_eq!(finding.disk.as_ref().unwrap().as_str(), "vdb");
    assert_eq!(finding.path, format!("{}/vdb.qcow2", damaged.directory));
    assert!(finding.offset.is_some(), "{finding:?}");
    assert!(!dead.exists());
    let events = fleet.heard.events_of(job);
    assert!(events.iter().all(|event| event.instance.is_none() && event.kind.as_str() == "repo-validate"));
    let progressed = |event: &&longshore::message::RunEvent| match &event.detail {
        RunDetail::Progress(progress) => progress.step == "validate" && progress.done_bytes == progress.total_bytes,
        _ => false,
    };
    assert!(events.iter().any(|event| progressed(&event)), "{events:?}");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn one_that_cannot_be_looked_at_fails() {
    let fleet = Fleet::start("unreachable");
    let share = fleet.share();
    let mut job = fleet.validate_job(&share, part("catalogue"));
    job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    job.repository.id = JobId::draw().to_string();
    assert_eq!(fleet.failed(fleet.publish(&job)).failure.code, "repository_identity_mismatch");
    let mut job = fleet.validate_job(&share, part("catalogue"));
    job.repository.address = fleet.folder.join("nowhere").display().to_string();
    assert_eq!(fleet.failed(fleet.publish(&job)).failure.code, "repository_not_found");
    fleet.finish(&[], &[&share]);
}

#[test]
fn a_publisher_watches_a_validation_from_the_command_line() {
    let fleet = Fleet::start("watches-validation");
    let share = fleet.share();
    let publish = |more: &[&str]| {
        let words = ["job", "publish", "repo-validate", "--host", &fleet.host, "--repository-id", &share.id];
        let address = share.path.to_str().unwrap();
        let mut command = fleet.command(&[&words[..], &["--address", address, "--watch"], more].concat());
        command.output().unwrap()
    };
    let output = publish(&["--level", "structure"]);
    let told = said(&output);
    assert!(told.contains("validated    structure: 0 instances, 0 backups"), "{told}");
    fs::create_dir(share.path.join("instances/stranger")).unwrap();
    let output = publish(&[]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("warning      instances/stranger: ") && told.contains("[foreign_file]"), "{told}");
    fs::remove_dir(share.path.join("instances/stranger")).unwrap();
    fleet.finish(&[], &[&share]);
}

#[test]
fn a_repository_and_a_backup_are_validated_without_a_broker() {
    let fleet = Fleet::start("offline");
    let share = fleet.share();
    let bare = LabInstance::bare();
    bare.stop();
    let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
    let (directory, id) = (share.path.to_str().unwrap(), backup.backup_id.to_string());
    for level in ["reachable", "catalogue", "structure", "content"] {
        let output = longshore(&["repository", "validate", directory, "--level", level, "--json"], exit_of(&share));
        let found: Validation = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(codes(&found), [], "{found:?}");
    }
    longshore(&["backup", "verify", directory, &id], 0);
    let volume = bare.folder.join("vda.qcow2");
    qemu_io(&["-f", "qcow2", "-c", "write -P 0x5a 1M 64k", volume.to_str().unwrap()]);
    let second = fleet.completed(fleet.back_up(&bare, &share, "off"));
    let second = second.backup_id.to_string();
    longshore(&["backup", "verify", directory, &second], 0);
    let chain = said(&longshore(&["backup", "chain", directory, &second], 0));
    let [full, incremental, needs] = &chain.lines().collect::<Vec<_>>()[..] else { panic!("{chain}") };
    assert!(full.starts_with(&format!("{id}     1  ")) && full.contains("  full  "), "{chain}");
    assert!(incremental.starts_with(&format!("{second}     2  ")), "{chain}");
    assert!(incremental.contains("  incremental  ") && incremental.contains(&format!("  {id}  ")), "{chain}");
    assert!(needs.starts_with("needs 2 backups, "), "{chain}");
    let link: Value =
        serde_json::from_slice(&longshore(&["backup", "chain", directory, &id, "--json"], 0).stdout).unwrap();
    assert_eq!((&link["backup_id"], &link["based_on"]), (&id.as_str().into(), &Value::Null));
    let stored: u64 = backup.disks.iter().map(|disk| disk.file_bytes).sum();
    assert_eq!(link["file_bytes"], stored);

    damage(&image(&share, &backup, "vda"));
    let output = longshore(&["backup", "verify", directory, &second], 3);
    assert!(said(&output).contains("[content_differs]"), "the damage shows through: {}", said(&output));
    longshore(&["backup", "verify", directory, &id, "--level", "structure"], 0);
    let output = longshore(&["backup", "verify", directory, &id], 3);
    let place = format!("error        {}/vda.qcow2 disk vda at ", backup.directory);
    assert!(said(&output).contains(&place) && said(&output).contains("[content_differs]"), "{}", said(&output));
    let output = longshore(&["repository", "validate", directory, "--level", "content", "--json"], 3);
    let found: Validation = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(codes(&found), [FindingCode::ContentDiffers, FindingCode::AncestorDamaged]);

    longshore(&["backup", "verify", directory, &JobId::draw().to_string()], 10);
    longshore(&["backup", "chain", directory, &JobId::draw().to_string()], 10);
    longshore(&["repository", "validate", "/nowhere"], 10);
    let left: Vec<_> = fs::read_dir("/run").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let ours = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("longshore-validate.");
    assert_eq!(left.iter().filter(ours).count(), 0, "{left:?}");
    fleet.finish(&[&bare], &[&share]);
}

/// A machine with little room has a finding of its own.
fn exit_of(share: &Share) -> i32 {
    let room = nix::sys::statvfs::statvfs(&share.path).unwrap();
    if room.blocks_available() < room.blocks() / 20 { 3 } else { 0 }
}

#[test]
fn what_rots_or_cannot_be_read_is_named_and_a_share_that_is_gone_says_nothing_of_its_backups() {
    let fleet = Fleet::start("rotten");
    let share = Share::faulty("rotten");
    let bare = LabInstance::bare();
    bare.stop();
    let backup = fleet.completed(fleet.back_up(&bare, &share, "off"));
    let validate = || fleet.publish(&fleet.validate_job(&share, part("content")));
    let errors = |found: Validation| -> Vec<_> {
        let errors = found.findings.into_iter().filter(|finding| finding.severity == Severity::Error);
        errors.map(|finding| (finding.code, finding.path)).collect()
    };
    let path = |file: &str| format!("{}/{file}", backup.directory);
    share.order(r#"{"mode": "flip", "file": "vda.qcow2", "offset": 700000, "on": "read"}"#);
    assert_eq!(errors(fleet.validated(validate())), [(FindingCode::ContentDiffers, path("vda.qcow2"))]);
    share.order(r#"{"mode": "eio", "file": "vdb.blocks"}"#);
    assert_eq!(errors(fleet.validated(validate())), [(FindingCode::Unreadable, path("vdb.blocks"))]);
    share.heal();

    let mut slowly = part("content");
    slowly.max_bytes_per_second = Some(4 << 20);
    let mut job = fleet.validate_job(&share, slowly);
    job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    let job = fleet.publish(&job);
    fleet.is_moving(job, "validate");
    share.order(r#"{"mode": "estale"}"#);
    assert_eq!(fleet.failed(job).failure.code, "repository_io");
    share.heal();
    fleet.finish(&[&bare], &[&share]);
}

/// Broken off in the middle of its reading, and followed by another attempt that does it all.
#[test]
fn a_validation_whose_worker_is_killed_is_done_by_the_next_one() {
    let mut fleet = Fleet::start("killed-validation");
    let share = fleet.share();
    let bare = LabInstance::bare();
    bare.stop();
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    let mut slowly = part("content");
    slowly.max_bytes_per_second = Some(4 << 20);
    let job = fleet.publish(&fleet.validate_job(&share, slowly));
    fleet.is_moving(job, "validate");
    fleet.kill_worker();
    fleet.start_worker();
    let retrying = fleet.heard.of_run(job, "the run goes on", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
    assert_eq!((retrying.failure.code.as_str(), &retrying.left_overs[..]), ("interrupted", &[][..]));
    let found = fleet.validated(job);
    assert_eq!((codes(&found), found.backups), (Vec::new(), 1));
    fleet.finish(&[&bare], &[&share]);
}
