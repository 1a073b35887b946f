//! One example of every message, made with every field that it can have.

use std::path::{Path, PathBuf};

use longshore::failure::{Code, Failure};
use longshore::message::dead_letter::{Origin, Original};
use longshore::message::event::{
    Accepted, BackedUpDisk, BackupSummary, Cancelled, Completed, DeleteSummary, Discarded, Draining, Failed,
    FailingRepository, Heartbeat, HostDetail, Inventory, InventoryDisk, InventoryInstance, LeftOver, LetterDetail,
    MessageRefused, NamedInstance, Online, OverdueCall, Paused, Progress, Replayed, RestoreSummary, RestoredVolume,
    Resumed, Retrying, RunDetail, RunningJob, Started,
};
use longshore::message::told::ToldEvent;
use longshore::message::{
    Announce, Cancel, Control, DeadLetter, Drain, Encoding, Event, HostEvent, JobMessage, LetterEvent, Pause,
    Properties, Refusal, Resume, RunEvent, Superseded, decode_control, decode_dead_letter, decode_event, decode_job,
    decode_superseded, encode_control, encode_dead_letter, encode_event, encode_job, encode_superseded,
};
use longshore::model::deletion::{DeleteMode, DeletedBackup, MergedBackup};
use longshore::model::destination::{Attach, Destination, DiskBus, MacAddresses, NewInstanceSpec, NewVolumeSpec};
use longshore::model::id::{EventId, HostId, InstanceRef};
use longshore::model::instance::{DiskDevice, ImageFormat, PowerState};
use longshore::model::job::{
    BackupMode, BackupSpec, DeleteSpec, FullEvery, Job, JobKind, Quiesce, RestoreNewSpec, RestoreSpec, RetryPolicy,
    RunKey, Transfer, ValidateSpec, Verification, Work,
};
use longshore::model::manifest::{ChangesFoundBy, Consistency, GuestRecord, Proof, SkippedDisk, TransferUsed};
use longshore::model::repository::{Credentials, MountOption, Repository, RepositoryType};
use longshore::model::restoration::{PlannedInstance, PlannedRestore, PlannedVolume};
use longshore::model::validation::{Finding, FindingCode, InstanceSize, Validation, ValidationLevel};

pub const JOB_ID: &str = "019a0f3e-7c00-7000-8000-000000000001";
pub const EVENT_ID: &str = "019a0f3e-7c00-7000-8000-00000000000e";
pub const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Any message, read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Job(Box<Job>),
    Control(Control),
    Event(Box<Event>),
    DeadLetter(Box<DeadLetter>),
    Superseded(Superseded),
}

pub fn path(schemas: &Path, name: &str, encoding: Encoding) -> PathBuf {
    let ending = match encoding {
        Encoding::Json => "json",
        Encoding::MessagePack => "msgpack",
    };
    schemas.join("examples").join(format!("{name}.{ending}"))
}

pub fn host() -> HostId {
    "kvm-07".parse().unwrap()
}

fn time() -> jiff::Timestamp {
    "2026-03-01T02:00:05.25Z".parse().unwrap()
}

pub fn job() -> Job {
    Job {
        key: RunKey { job_id: JOB_ID.parse().unwrap(), run: 1 },
        host: host(),
        instance: Some(InstanceRef::Name("web-1".parse().unwrap())),
        repository: Repository {
            id: "7d0f1a52-0c0e-4f4e-9b5b-0d7c4f3f8a11".parse().unwrap(),
            repository_type: RepositoryType::Nfs,
            address: "nas.example:/export/backup".to_owned(),
            options: [("vers", Some("4.2")), ("hard", None)]
                .map(|(key, value)| MountOption { key: key.to_owned(), value: value.map(str::to_owned) })
                .to_vec(),
            credentials: Some(Credentials::Reference { name: "nas".to_owned() }),
        },
        work: Work::Backup(BackupSpec {
            mode: BackupMode::Auto,
            full_every: FullEvery::default(),
            transfer: Transfer::Auto,
            quiesce: Quiesce::Prefer,
            verification: Verification::Compared,
            exclude_disks: vec!["vdc".parse().unwrap()],
        }),
        retry: RetryPolicy::default(),
        start_before: Some("2026-03-01T06:00:00Z".parse().unwrap()),
        deadline: std::time::Duration::from_secs(4 * 60 * 60),
        labels: [("schedule".to_owned(), "nightly".to_owned())].into(),
        requested_by: Some("admin@example.org".to_owned()),
    }
}

/// As it stands for a repository of the type `directory`, but for the names of host, instance, repository and place.
fn directory_job() -> Job {
    Job {
        repository: Repository {
            repository_type: RepositoryType::Directory,
            address: "/mnt/nas".to_owned(),
            options: Vec::new(),
            credentials: None,
            ..job().repository
        },
        work: Work::Backup(BackupSpec { quiesce: Quiesce::Prefer, ..BackupSpec::default() }),
        start_before: None,
        ..job()
    }
}

/// The same for an NFS share, which takes no credentials, on which a dead server fails what waits for it.
fn nfs_job() -> Job {
    let options = [("vers", Some("4.2")), ("soft", None)];
    let option =
        |(key, value): (&str, Option<&str>)| MountOption { key: key.to_owned(), value: value.map(str::to_owned) };
    let repository = Repository { options: options.map(option).to_vec(), credentials: None, ..job().repository };
    Job { repository, ..directory_job() }
}

/// A restore that is only to be told of.
fn dry_run_job() -> Job {
    let backup_id = "019a0f3e-8000-7000-8000-000000000002".parse().unwrap();
    let (disks, onto) = (Vec::new(), Default::default());
    let spec = RestoreSpec { backup_id, disks, onto, keep_previous: false, dry_run: true, overwrite: false };
    Job { work: Work::Restore(spec), ..directory_job() }
}

fn planned() -> RunDetail {
    let now = "as the instance is now, this is refused: cannot restore instance `web-1` in place: it is not shut off";
    RunDetail::Completed(Completed {
        duration_ms: 310,
        warnings: vec![now.to_owned()],
        left_overs: Vec::new(),
        backup: None,
        restore: None,
        restore_plan: Some(Box::new(PlannedRestore {
            backup_id: "019a0f3e-8000-7000-8000-000000000002".parse().unwrap(),
            number: 12,
            taken_at: "2026-02-28T02:00:01Z".parse().unwrap(),
            volumes: vec![PlannedVolume {
                disk: "vda".parse().unwrap(),
                target: "vda".parse().unwrap(),
                path: "/var/lib/libvirt/images/web-1.qcow2".to_owned(),
                format: ImageFormat::Qcow2,
                virtual_bytes: 10 << 30,
                data_bytes: 3 << 30,
                replaces: true,
                overwrites: false,
            }],
            files: Vec::new(),
            data_bytes: 3 << 30,
            new_instance: None,
            attach_to: None,
        })),
        validate: None,
        delete: None,
    })
}

/// Of a new instance, whose uuid was drawn.
fn planned_elsewhere(of: RunDetail) -> RunDetail {
    let RunDetail::Completed(mut completed) = of else { return of };
    completed.warnings.clear();
    if let Some(plan) = &mut completed.restore_plan {
        plan.new_instance = Some(PlannedInstance {
            id: "0198f3c2-7d30-7cc3-98c4-dc0c0c07398f".parse().unwrap(),
            id_is_drawn: true,
            name: "web-1-restored".parse().unwrap(),
            start: false,
        });
        for volume in &mut plan.volumes {
            volume.replaces = false;
            volume.path = "/var/lib/libvirt/images/web-1-restored-vda.qcow2".to_owned();
        }
    }
    RunDetail::Completed(completed)
}

pub fn restore_job() -> Job {
    let spec = RestoreSpec {
        backup_id: "019a0f3e-8000-7000-8000-000000000002".parse().unwrap(),
        disks: vec!["vda".parse().unwrap()],
        onto: [("vda".parse().unwrap(), "vdb".parse().unwrap())].into(),
        keep_previous: true,
        dry_run: false,
        overwrite: false,
    };
    Job { work: Work::Restore(spec), ..job() }
}

/// Onto block devices.
pub fn overwriting_job() -> Job {
    let spec = RestoreSpec {
        backup_id: "019a0f3e-8000-7000-8000-000000000002".parse().unwrap(),
        disks: Vec::new(),
        onto: Default::default(),
        keep_previous: false,
        dry_run: false,
        overwrite: true,
    };
    Job { work: Work::Restore(spec), ..job() }
}

/// Of an instance that is no longer on the host, into another one.
pub fn new_instance_job() -> Job {
    let spec = NewInstanceSpec {
        name: "web-1-restored".parse().unwrap(),
        id: Some("0198f3c2-7d30-7cc3-98c4-dc0c0c07398f".parse().unwrap()),
        mac_addresses: MacAddresses::New,
        directory: Some("/var/lib/libvirt/images/restored".into()),
        volumes: [("vdb".parse().unwrap(), "/srv/fast/web-1-data.qcow2".into())].into(),
        start: true,
    };
    let backup_id = "019a0f3e-8000-7000-8000-000000000002".parse().unwrap();
    let (disks, to) = (Vec::new(), Destination::NewInstance(spec));
    Job { work: Work::RestoreNew(RestoreNewSpec { backup_id, disks, to, dry_run: false }), ..job() }
}

pub fn new_volume_job() -> Job {
    let spec = NewVolumeSpec {
        path: "/var/lib/libvirt/images/web-1-data-of-sunday.qcow2".into(),
        format: ImageFormat::Qcow2,
        attach: Some(Attach {
            instance: InstanceRef::Name("web-1".parse().unwrap()),
            target: "vdc".parse().unwrap(),
            bus: DiskBus::Virtio,
        }),
    };
    let backup_id = "019a0f3e-8000-7000-8000-000000000002".parse().unwrap();
    let (disks, to) = (vec!["vdb".parse().unwrap()], Destination::Volume(spec));
    Job { work: Work::RestoreNew(RestoreNewSpec { backup_id, disks, to, dry_run: false }), ..job() }
}

pub fn validate_job() -> Job {
    let spec = ValidateSpec {
        level: ValidationLevel::Content,
        sweep: true,
        instances: vec!["5a1d5c4e-3b0b-4a53-9a83-6a6f7c1d2e3f".parse().unwrap()],
        max_bytes_per_second: Some(200 << 20),
    };
    Job { work: Work::RepoValidate(spec), instance: None, ..job() }
}

fn validated() -> RunDetail {
    let instance = "5a1d5c4e-3b0b-4a53-9a83-6a6f7c1d2e3f".parse().unwrap();
    let backup = "019a0f3e-8000-7000-8000-000000000002";
    let path = format!("instances/{instance}/{backup}/vda.qcow2");
    let finding = Finding::new(
        FindingCode::ContentDiffers,
        &path,
        "1 blocks of 1 MiB from here do not have the hashes of what was backed up",
    );
    RunDetail::Completed(Completed {
        duration_ms: 724_100,
        warnings: Vec::new(),
        left_overs: Vec::new(),
        backup: None,
        restore: None,
        restore_plan: None,
        delete: None,
        validate: Some(Box::new(Validation {
            level: ValidationLevel::Content,
            instances: 1,
            backups: 12,
            bytes_read: 40 << 30,
            capacity_bytes: 4 << 40,
            used_bytes: 3 << 40,
            free_bytes: 1 << 40,
            clock_ahead_seconds: Some(-2),
            instance_sizes: vec![InstanceSize { instance_id: instance, backups: 12, file_bytes: 36 << 30 }],
            instance_sizes_left_out: 0,
            errors: 1,
            warnings: 0,
            notes: 0,
            findings: vec![
                finding
                    .of_instance(instance)
                    .of_backup(backup.parse().unwrap())
                    .of_disk(&"vda".parse().unwrap())
                    .at(7 << 20),
            ],
            findings_left_out: 0,
        })),
    })
}

pub fn delete_job() -> Job {
    let backup_id = "019a0f3e-8000-7000-8000-000000000002".parse().unwrap();
    Job { work: Work::Delete(DeleteSpec { backup_id, mode: DeleteMode::Only, dry_run: true }), ..job() }
}

fn deleted() -> RunDetail {
    let backup_id = "019a0f3e-8000-7000-8000-000000000002".parse().unwrap();
    RunDetail::Completed(Completed {
        duration_ms: 1_870,
        warnings: Vec::new(),
        left_overs: Vec::new(),
        backup: None,
        restore: None,
        restore_plan: None,
        validate: None,
        delete: Some(Box::new(DeleteSummary {
            backup_id,
            mode: DeleteMode::Only,
            dry_run: true,
            deleted: vec![DeletedBackup { backup_id, number: Some(12), bytes: 3 << 30 }],
            merged: vec![MergedBackup {
                backup_id: "019a0f3e-8000-7000-8000-000000000003".parse().unwrap(),
                from: backup_id,
                onto: Some("019a0f3e-8000-7000-8000-000000000001".parse().unwrap()),
            }],
            freed_bytes: 3 << 30,
        })),
    })
}

fn restored() -> RunDetail {
    RunDetail::Completed(Completed {
        duration_ms: 24_100,
        warnings: vec!["disk `vda` of the instance was left as it is".to_owned()],
        left_overs: Vec::new(),
        backup: None,
        restore: Some(Box::new(RestoreSummary {
            backup_id: "019a0f3e-8000-7000-8000-000000000002".parse().unwrap(),
            number: 12,
            taken_at: "2026-02-28T02:00:01Z".parse().unwrap(),
            volumes: vec![RestoredVolume {
                disk: "vda".parse().unwrap(),
                target: "vdb".parse().unwrap(),
                volume: "/var/lib/libvirt/images/web-1.qcow2".to_owned(),
                format: Some(ImageFormat::Qcow2),
                previous: Some("/var/lib/libvirt/images/web-1.qcow2.longshore-000000000001.1.1.previous".to_owned()),
                virtual_bytes: 10 << 30,
                data_bytes: 3 << 30,
                content_root: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262".to_owned(),
            }],
            new_instance: None,
            attached_to: None,
        })),
        restore_plan: None,
        validate: None,
        delete: None,
    })
}

fn restored_elsewhere(of: RunDetail) -> RunDetail {
    let RunDetail::Completed(mut completed) = of else { return of };
    completed.warnings = vec!["disk `sda` was left out of the new instance: it is not in the backup".to_owned()];
    if let Some(restore) = &mut completed.restore {
        restore.new_instance = Some(NamedInstance {
            id: "0198f3c2-7d30-7cc3-98c4-dc0c0c07398f".parse().unwrap(),
            name: "web-1-restored".parse().unwrap(),
        });
        for volume in &mut restore.volumes {
            (volume.target, volume.previous) = (volume.disk.clone(), None);
            volume.volume = "/var/lib/libvirt/images/restored/web-1-restored-vda.qcow2".to_owned();
        }
    }
    RunDetail::Completed(completed)
}

/// Messages that say something else than the one example of their type can: their names and what is in them.
pub fn more() -> Vec<(&'static str, Value)> {
    let completed = Event::Run(RunEvent::of(&restore_job(), 1, 4, time(), restored()));
    let elsewhere = restored_elsewhere(restored());
    let elsewhere = Event::Run(RunEvent::of(&new_instance_job(), 1, 4, time(), elsewhere));
    let deleted = Event::Run(RunEvent::of(&delete_job(), 1, 4, time(), deleted()));
    let validated = Event::Run(RunEvent::of(&validate_job(), 1, 4, time(), validated()));
    let planned = Event::Run(RunEvent::of(&dry_run_job(), 1, 4, time(), planned()));
    let planned_elsewhere = planned_elsewhere(self::planned());
    let planned_elsewhere = Event::Run(RunEvent::of(&new_instance_job(), 1, 4, time(), planned_elsewhere));
    vec![
        ("longshore.job.v1.directory", Value::Job(Box::new(directory_job()))),
        ("longshore.job.v1.nfs", Value::Job(Box::new(nfs_job()))),
        ("longshore.job.v1.restore.dry-run", Value::Job(Box::new(dry_run_job()))),
        ("longshore.event.completed.v1.restore-plan", Value::Event(Box::new(planned))),
        ("longshore.event.completed.v1.restore-new-plan", Value::Event(Box::new(planned_elsewhere))),
        ("longshore.job.v1.restore", Value::Job(Box::new(restore_job()))),
        ("longshore.event.completed.v1.restore", Value::Event(Box::new(completed))),
        ("longshore.job.v1.restore-new.instance", Value::Job(Box::new(new_instance_job()))),
        ("longshore.event.completed.v1.restore-new", Value::Event(Box::new(elsewhere))),
        ("longshore.job.v1.restore-new.volume", Value::Job(Box::new(new_volume_job()))),
        ("longshore.job.v1.restore.overwrite", Value::Job(Box::new(overwriting_job()))),
        ("longshore.job.v1.repo-validate", Value::Job(Box::new(validate_job()))),
        ("longshore.event.completed.v1.repo-validate", Value::Event(Box::new(validated))),
        ("longshore.job.v1.backup-delete", Value::Job(Box::new(delete_job()))),
        ("longshore.event.completed.v1.backup-delete", Value::Event(Box::new(deleted))),
        ("longshore.event.worker.draining.v1.by-controller", value("longshore.event.worker.draining.v1")),
        ("longshore.event.worker.heartbeat.v1.paused", value("longshore.event.worker.heartbeat.v1")),
        ("longshore.event.worker.heartbeat.v1.stuck-call", value("longshore.event.worker.heartbeat.v1")),
        ("longshore.event.worker.heartbeat.v1.failing-repository", value("longshore.event.worker.heartbeat.v1")),
        ("longshore.dead-letter.v1.with-events", value(DeadLetter::MESSAGE_TYPE)),
    ]
}

fn failure() -> Failure {
    Failure::new(Code::RepositoryIo, "cannot write `vda.qcow2`").caused_by("input/output error").in_step("move_bytes")
}

fn failing_repository() -> FailingRepository {
    FailingRepository {
        repository_id: job().repository.id,
        since: time(),
        failures: 5,
        failure: (&failure()).into(),
        tried_by: None,
        next_try_at: Some(time()),
    }
}

fn left_over() -> LeftOver {
    LeftOver { what: "/run/longshore/mounts/kvm-07".to_owned(), reason: "busy".to_owned(), job_id: JOB_ID.parse().ok() }
}

fn summary() -> BackupSummary {
    BackupSummary {
        backup_id: "019a0f3e-8000-7000-8000-000000000002".parse().unwrap(),
        number: 12,
        parent: Some("019a0a18-2400-7000-8000-000000000001".parse().unwrap()),
        directory: "instances/5a1d5c4e-3b0b-4a53-9a83-6a6f7c1d2e3f/019a0f3e-8000-7000-8000-000000000002".to_owned(),
        transfer: TransferUsed::Pull,
        consistency: Consistency::Partial,
        consistency_reason: Some(
            "the agent froze 1 of 2 file systems that can be frozen, and does not say which".to_owned(),
        ),
        frozen_ms: Some(41),
        guest: Some(GuestRecord { begin_ms: 28, worst_write_ms: Some(19) }),
        verification: Proof::Compared,
        disks: vec![BackedUpDisk {
            target: "vda".parse().unwrap(),
            virtual_bytes: 10 << 30,
            data_bytes: 3 << 30,
            file_bytes: (3 << 30) + (2 << 20),
            content_root: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262".to_owned(),
            found_by: Some(ChangesFoundBy::Hashes),
            full_reason: None,
        }],
        skipped_disks: vec![SkippedDisk { target: "sda".parse().unwrap(), reason: "it is a CD-ROM drive".to_owned() }],
    }
}

fn run_detail(word: &str) -> Option<RunDetail> {
    Some(match word {
        "accepted" => RunDetail::Accepted(Accepted {}),
        "started" => RunDetail::Started(Started {}),
        "progress" => RunDetail::Progress(Progress {
            step: "move_bytes".to_owned(),
            done_bytes: 1 << 30,
            total_bytes: 3 << 30,
            rate_bytes_per_second: 200 << 20,
            eta_seconds: Some(10),
        }),
        "retrying" => RunDetail::Retrying(Retrying {
            failure: (&failure()).into(),
            next_attempt_at: "2026-03-01T02:00:35Z".parse().unwrap(),
            warnings: Vec::new(),
            left_overs: Vec::new(),
        }),
        "completed" => RunDetail::Completed(Completed {
            duration_ms: 16_400,
            warnings: vec!["cannot fsync a directory on this file system".to_owned()],
            left_overs: vec![left_over()],
            backup: Some(summary()),
            restore: None,
            restore_plan: None,
            validate: None,
            delete: None,
        }),
        "failed" => RunDetail::Failed(Failed {
            failure: (&failure()).into(),
            attempts: 3,
            warnings: Vec::new(),
            left_overs: vec![left_over()],
        }),
        "cancelled" => RunDetail::Cancelled(Cancelled {
            requested_by: Some("admin@example.org".to_owned()),
            reason: Some("maintenance of the share".to_owned()),
            left_overs: vec![left_over()],
        }),
        _ => return None,
    })
}

fn host_detail(words: &str) -> Option<HostDetail> {
    let installation = "019a0f00-0000-7000-8000-00000000000a".parse().unwrap();
    let job = job();
    Some(match words {
        "worker.online" => HostDetail::Online(Online {
            installation,
            version: "0.1.0".to_owned(),
            content_types: Encoding::READ.map(str::to_owned).to_vec(),
            message_types: vec![JobMessage::MESSAGE_TYPE.to_owned()],
            kinds: JobKind::ALL.to_vec(),
            slots: 2,
            host_key: Some("3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=".to_owned()),
        }),
        "worker.heartbeat" => HostDetail::Heartbeat(Heartbeat {
            installation,
            running: vec![RunningJob {
                job_id: job.key.job_id,
                run: 1,
                attempt: 1,
                kind: JobKind::Backup,
                instance: job.instance,
                step: Some("move_bytes".to_owned()),
                done_bytes: 1 << 30,
                total_bytes: 3 << 30,
            }],
            slots: 2,
            waiting: 4,
            outbox_depth: 0,
            stuck_calls: 1,
            oldest_stuck_calls: vec![OverdueCall {
                call: "abort_job".to_owned(),
                instance_id: "5a1d5c4e-3b0b-4a53-9a83-6a6f7c1d2e3f".parse().ok(),
                since: time(),
            }],
            unroutable_events: 2,
            unroutable_letters: 0,
            left_overs: vec![left_over()],
            paused: Some(paused()),
            failing_repositories: vec![failing_repository()],
        }),
        "worker.paused" => HostDetail::Paused(paused()),
        "worker.resumed" => HostDetail::Resumed(Resumed {
            paused_since: time(),
            user: Some("fleet.ops".to_owned()),
            requested_by: Some("admin@example.org".to_owned()),
            reason: None,
        }),
        "worker.draining" => HostDetail::Draining(Draining {
            running: 1,
            waiting: 4,
            limit_seconds: 120,
            evict: true,
            stay: false,
            user: Some("fleet.ops".to_owned()),
            requested_by: Some("admin@example.org".to_owned()),
            reason: Some("the host is upgraded".to_owned()),
        }),
        "worker.inventory" => HostDetail::Inventory(Inventory {
            libvirt: Some("11.3.0".to_owned()),
            qemu: Some("10.0.0".to_owned()),
            scratch_free_bytes: Some(80 << 30),
            instances: vec![InventoryInstance {
                id: "5a1d5c4e-3b0b-4a53-9a83-6a6f7c1d2e3f".parse().unwrap(),
                name: "web-1".parse().unwrap(),
                state: PowerState::Running,
                agent: true,
                agent_connected: Some(true),
                disks: vec![InventoryDisk {
                    target: "vda".parse().unwrap(),
                    serial: Some("volume-1".to_owned()),
                    device: DiskDevice::Disk,
                    virtual_bytes: Some(10 << 30),
                }],
            }],
            instances_left_out: 0,
        }),
        "message.refused" => HostDetail::MessageRefused(MessageRefused {
            message_id: JOB_ID.to_owned(),
            code: Code::WrongHost.as_str().to_owned(),
            text: "the job names the host `kvm-08` and came to `kvm-07`".to_owned(),
            job_id: Some(job.key.job_id),
            run: Some(1),
        }),
        _ => return None,
    })
}

fn letter_detail(words: &str) -> Option<LetterDetail> {
    Some(match words {
        "letter.replayed" => LetterDetail::Replayed(Replayed {
            run: 2,
            host: host(),
            changed: vec!["repository.address".to_owned(), "retry.attempts".to_owned()],
        }),
        "letter.discarded" => LetterDetail::Discarded(Discarded {}),
        _ => return None,
    })
}

fn letter_event(detail: LetterDetail) -> Event {
    Event::Letter(LetterEvent {
        user: "fleet.ops".to_owned(),
        letter_id: "019a0f3e-9000-7000-8000-00000000000d".to_owned(),
        letter_host: Some(host()),
        job_id: JOB_ID.parse().ok(),
        run: Some(1),
        kind: Some(JobKind::Backup),
        code: Code::RepositoryIo.as_str().to_owned(),
        time: time(),
        requested_by: Some("admin@example.org".to_owned()),
        reason: Some("the share was moved".to_owned()),
        detail,
    })
}

fn control(command: &str) -> Control {
    let (requested_by, reason) = (Some("admin@example.org".to_owned()), Some("maintenance of the share".to_owned()));
    match command {
        Cancel::COMMAND => Control::Cancel(Cancel {
            job_id: JOB_ID.parse().unwrap(),
            run: 1,
            requested_by,
            reason,
            remember_seconds: Some(86_400),
        }),
        Pause::COMMAND => Control::Pause(Pause { requested_by, reason, until: Some(time()) }),
        Drain::COMMAND => Control::Drain(Drain {
            requested_by,
            reason,
            limit_seconds: Some(1800),
            evict: false,
            stay: true,
            obey_before: Some(time()),
        }),
        Announce::COMMAND => Control::Announce(Announce {}),
        Resume::COMMAND => Control::Resume(Resume { requested_by, reason: None }),
        _ => panic!("no example of {command}"),
    }
}

/// The command that goes with a message type.
fn command(message_type: &str) -> Option<&str> {
    message_type.strip_prefix("longshore.control.")?.strip_suffix(".v1")
}

fn paused() -> Paused {
    Paused {
        since: time(),
        user: "fleet.ops".to_owned(),
        requested_by: Some("admin@example.org".to_owned()),
        reason: Some("new disks".to_owned()),
        until: "2026-03-01T06:00:00Z".parse().ok(),
    }
}

fn letter() -> DeadLetter {
    let original = encode_job(&JobMessage::from(&job()), Encoding::Json, time()).unwrap();
    DeadLetter {
        host: host(),
        time: time(),
        job_id: JOB_ID.parse().ok(),
        run: Some(1),
        kind: Some(JobKind::Backup),
        attempts: 3,
        failure: (&failure()).into(),
        origin: Origin { queue: "longshore.jobs.kvm-07".to_owned(), routing_key: "kvm-07".to_owned() },
        original: Original::new(&original.properties, &original.body),
        events: told(),
        events_left_out: 2,
    }
}

/// What the second attempt of two told: why there was one, and how far it came.
fn told() -> Vec<ToldEvent> {
    let left_over = LeftOver {
        what: "/run/longshore/kvm-07/share-1".to_owned(),
        reason: "it is busy".to_owned(),
        job_id: JOB_ID.parse().ok(),
    };
    let retrying = Retrying {
        failure: (&failure()).into(),
        next_attempt_at: "2026-03-01T02:00:15.25Z".parse().unwrap(),
        warnings: vec!["the guest has no agent".to_owned()],
        left_overs: vec![left_over],
    };
    let progress = Progress {
        step: "move_bytes".to_owned(),
        done_bytes: 1 << 30,
        total_bytes: 3 << 30,
        rate_bytes_per_second: 1,
        eta_seconds: None,
    };
    let failed = Failed { failure: (&failure()).into(), attempts: 2, warnings: Vec::new(), left_overs: Vec::new() };
    let events = [
        (1, 7, RunDetail::Retrying(retrying)),
        (2, 1, RunDetail::Started(Started {})),
        (2, 9, RunDetail::Progress(progress)),
        (2, 10, RunDetail::Failed(failed)),
    ];
    let events = events.map(|(attempt, sequence, detail)| {
        let mut told = ToldEvent::of(&RunEvent::of(&job(), attempt, sequence, time(), detail));
        told.since = told.step.as_ref().and_then(|_| "2026-03-01T02:00:01Z".parse().ok());
        told
    });
    events.to_vec()
}

fn superseded() -> Superseded {
    Superseded {
        host: host(),
        time: time(),
        letter_id: "019a0f3e-9000-7000-8000-000000000009".parse().unwrap(),
        kind: JobKind::Backup,
        job_id: JOB_ID.parse().unwrap(),
        run: 1,
        by_job_id: "019a0f3e-7c00-7000-8000-000000000002".parse().unwrap(),
        by_run: 1,
    }
}

pub fn value(message_type: &str) -> Value {
    let words = message_type.strip_prefix(Event::TYPE_PREFIX).and_then(|rest| rest.strip_suffix(".v1"));
    match (message_type, words) {
        (JobMessage::MESSAGE_TYPE, _) => Value::Job(Box::new(job())),
        (DeadLetter::MESSAGE_TYPE, _) => Value::DeadLetter(Box::new(letter())),
        (Superseded::MESSAGE_TYPE, _) => Value::Superseded(superseded()),
        (_, Some(words)) => {
            let of_run = run_detail(words).map(|detail| Event::Run(RunEvent::of(&job(), 1, 4, time(), detail)));
            let of_host = || {
                let incarnation = "019a0f30-0000-7000-8000-00000000000b".parse().unwrap();
                let event = |detail| HostEvent { host: host(), incarnation, sequence: 9, time: time(), detail };
                host_detail(words).map(|detail| Event::Host(event(detail)))
            };
            let of_letter = || letter_detail(words).map(letter_event);
            let event = of_run.or_else(of_host).or_else(of_letter);
            Value::Event(Box::new(event.unwrap_or_else(|| panic!("no example of {words}"))))
        }
        _ => Value::Control(control(command(message_type).unwrap_or_else(|| panic!("no example of {message_type}")))),
    }
}

pub fn body(message_type: &str, encoding: Encoding) -> Vec<u8> {
    encoded(&value(message_type), encoding).body
}

/// An example as it stands in its file: JSON in lines, for people.
pub fn file(value: &Value, encoding: Encoding) -> Vec<u8> {
    let body = encoded(value, encoding).body;
    match encoding {
        Encoding::Json => super::pretty(&serde_json::from_slice(&body).unwrap()),
        Encoding::MessagePack => body,
    }
}

pub fn encoded(value: &Value, encoding: Encoding) -> longshore::message::Encoded {
    let id: EventId = EVENT_ID.parse().unwrap();
    match value {
        Value::Job(job) => encode_job(&JobMessage::from(&**job), encoding, time()),
        Value::Control(control) => encode_control(control, encoding, time()),
        Value::Event(event) => encode_event(event, id, encoding, Some(TRACEPARENT)),
        Value::DeadLetter(letter) => encode_dead_letter(letter, id, encoding),
        Value::Superseded(mark) => encode_superseded(mark, id, encoding),
    }
    .unwrap()
}

pub fn read(message_type: &str, encoding: Encoding, body: &[u8]) -> Result<Value, Refusal> {
    let properties = Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: message_type.to_owned(),
        ..Properties::default()
    };
    match message_type {
        JobMessage::MESSAGE_TYPE => decode_job(&properties, body, &host()).map(|job| Value::Job(Box::new(job))),
        DeadLetter::MESSAGE_TYPE => {
            decode_dead_letter(&properties, body).map(|letter| Value::DeadLetter(Box::new(letter)))
        }
        Superseded::MESSAGE_TYPE => decode_superseded(&properties, body).map(Value::Superseded),
        _ => match command(message_type) {
            Some(command) => decode_control(command, &properties, body).unwrap().map(Value::Control),
            None => decode_event(&properties, body).map(|event| Value::Event(Box::new(event))),
        },
    }
}
