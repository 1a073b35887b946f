//! Plans as snapshots and refusals as codes.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use super::*;
use crate::host::hypervisor::{Version, Versions};
use crate::model::instance::{Disk, DiskDevice, ImageFormat};
use crate::model::job::{Job, RetryPolicy, Transfer, Work};
use crate::model::owner::Owner;
use crate::model::repository::{Repository, RepositoryType};

const GIB: u64 = 1024 * 1024 * 1024;

fn settings() -> JobSettings {
    JobSettings {
        host: "kvm-07".parse().unwrap(),
        installation: "01890000-0000-7000-8000-00000000000a".parse().unwrap(),
        run_dir: "/run/longshore".into(),
        scratch_dir: "/var/lib/longshore/scratch".into(),
        scratch_limit_bytes: None,
        stall_limit: Duration::from_secs(600),
        freeze_limit: Duration::from_secs(30),
        same_device_ok: false,
        auto_push: false,
        volume_roots: Vec::new(),
    }
}

fn attempt(spec: &BackupSpec) -> Attempt {
    let job = Job {
        key: RunKey { job_id: "01890000-0000-7000-8000-00000000000b".parse().unwrap(), run: 1 },
        host: "kvm-07".parse().unwrap(),
        instance: Some(crate::model::id::InstanceRef::Name("i-2-10-VM".parse().unwrap())),
        repository: Repository {
            id: "01890000-0000-7000-8000-00000000000c".parse().unwrap(),
            repository_type: RepositoryType::Directory,
            address: "/backup".into(),
            options: Vec::new(),
            credentials: None,
        },
        work: Work::Backup(spec.clone()),
        retry: RetryPolicy::default(),
        start_before: None,
        deadline: Job::DEFAULT_DEADLINE,
        labels: Default::default(),
        requested_by: None,
    };
    Attempt { job, attempt: 2, backup_id: "01890000-0000-7000-8000-00000000000d".parse().unwrap() }
}

fn disk(target: &str) -> Disk {
    Disk {
        target: target.parse().unwrap(),
        serial: None,
        device: DiskDevice::Disk,
        bus: Some("virtio".into()),
        read_only: false,
        shareable: false,
        transient: false,
        encrypted: false,
        pinned_chain: false,
        data_elsewhere: false,
        may_be_missing: false,
        source: Some(DiskSource::File { path: format!("/primary/{target}.qcow2").into(), format: ImageFormat::Qcow2 }),
        pool_volume: None,
        virtual_bytes: Some(8 * GIB),
        allocated_bytes: Some(GIB),
    }
}

fn facts(state: PowerState, disks: Vec<Disk>) -> Facts {
    let instance = Instance {
        id: "01890000-0000-7000-8000-00000000000e".parse().unwrap(),
        name: "i-2-10-VM".parse().unwrap(),
        state,
        saved_memory: false,
        transient: false,
        disks,
        agent_configured: true,
        agent_connected: true,
        definition: "<domain/>".into(),
        live_definition: None,
        nvram: None,
        unrecorded: Vec::new(),
    };
    let versions = Versions { libvirt: Version(9, 0, 0), qemu: Version(7, 2, 0) };
    let qemu_owner = Some(Owner { user: 64055, group: 64056 });
    Facts { instance, versions, qemu_owner, scratch_free_bytes: Some(100 * GIB) }
}

fn check(spec: &BackupSpec, facts: &Facts) -> Result<BackupPlan, Failure> {
    plan(&attempt(spec), spec, &settings(), facts)
}

fn refusal(spec: &BackupSpec, facts: &Facts) -> Code {
    check(spec, facts).unwrap_err().code
}

#[test]
fn the_plan_of_a_running_instance_reads_like_this() {
    let spec = BackupSpec { quiesce: Quiesce::Prefer, ..BackupSpec::default() };
    let plan = check(&spec, &facts(PowerState::Running, vec![disk("vda")])).unwrap();
    let text = serde_json::to_string_pretty(&plan).unwrap();
    assert_eq!(text, include_str!("../../../../tests/fixtures/backup-plan.json").trim_end());
    assert_eq!(serde_json::from_str::<BackupPlan>(&text).unwrap(), plan);
}

#[test]
fn a_stopped_instance_is_read_from_its_volumes_without_a_freeze() {
    let spec = BackupSpec { quiesce: Quiesce::Require, ..BackupSpec::default() };
    let mut facts = facts(PowerState::ShutOff, vec![disk("vda")]);
    facts.scratch_free_bytes = None;
    let plan = check(&spec, &facts).unwrap();
    assert_eq!(plan.source, SourcePlan::Stopped);
    assert!(!plan.freeze.attempted);
    assert!(plan.freeze.reason.unwrap().contains("shut off"));
}

#[test]
fn disks_that_hold_nothing_of_the_instance_are_left_out_with_a_reason_each() {
    let disks = vec![
        disk("vda"),
        Disk { device: DiskDevice::Cdrom, ..disk("sda") },
        Disk { device: DiskDevice::Floppy, ..disk("fda") },
        Disk { device: DiskDevice::Lun, ..disk("sdb") },
        Disk { source: None, ..disk("vdb") },
        Disk { read_only: true, ..disk("vdc") },
        Disk { shareable: true, ..disk("vdd") },
        Disk { transient: true, ..disk("vde") },
        disk("vdf"),
    ];
    let spec = BackupSpec { exclude_disks: vec!["vdf".parse().unwrap()], ..BackupSpec::default() };
    let plan = check(&spec, &facts(PowerState::Running, disks)).unwrap();
    assert_eq!(plan.disks.iter().map(|disk| disk.target.as_str()).collect::<Vec<_>>(), ["vda"]);
    let skipped: Vec<_> = plan.skipped_disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(skipped, ["sda", "fda", "sdb", "vdb", "vdc", "vdd", "vde", "vdf"]);
    let mut reasons: Vec<_> = plan.skipped_disks.iter().map(|disk| &disk.reason).collect();
    reasons.dedup();
    assert_eq!(reasons.len(), skipped.len(), "{reasons:?}");
}

#[test]
fn what_cannot_be_backed_up_is_refused_with_its_own_code() {
    let running = |disks| facts(PowerState::Running, disks);
    let spec = BackupSpec::default();
    let missing = BackupSpec { exclude_disks: vec!["vdq".parse().unwrap()], ..spec.clone() };
    assert_eq!(refusal(&missing, &running(vec![disk("vda")])), Code::DiskNotFound);
    assert_eq!(refusal(&spec, &running(vec![Disk { read_only: true, ..disk("vda") }])), Code::NothingToBackUp);
    let serial = |target| Disk { serial: Some("same".into()), ..disk(target) };
    assert_eq!(refusal(&spec, &running(vec![serial("vda"), serial("vdb")])), Code::DiskAmbiguous);
    let other = Disk { source: Some(DiskSource::Other { kind: "vhostuser".into() }), ..disk("vda") };
    assert_eq!(refusal(&spec, &running(vec![other])), Code::DiskUnsupported);
    let encrypted = || vec![disk("vda"), Disk { encrypted: true, ..disk("vdb") }];
    assert_eq!(refusal(&spec, &running(encrypted())), Code::DiskUnsupported);
    let without = BackupSpec { exclude_disks: vec!["vdb".parse().unwrap()], ..spec.clone() };
    assert!(check(&without, &running(encrypted())).is_ok());
    assert_eq!(refusal(&spec, &running(vec![Disk { bus: Some("sd".into()), ..disk("sda") }])), Code::DiskUnsupported);
}

#[test]
fn a_running_instance_is_pushed_only_where_the_job_says_so_and_a_stopped_one_never() {
    let push = BackupSpec { transfer: Transfer::Push, verification: Verification::Unverified, ..BackupSpec::default() };
    let without_scratch = |state| Facts { scratch_free_bytes: None, ..facts(state, vec![disk("vda")]) };
    let plan = check(&push, &without_scratch(PowerState::Running)).unwrap();
    assert_eq!((plan.transfer(), plan.verification), (TransferUsed::Push, Proof::Structure));
    let push_plan = plan.push().unwrap();
    assert_eq!(push_plan.images, [push_plan.place.join("vda.qcow2")]);
    assert!(plan.pull().is_none());
    assert_eq!(check(&push, &without_scratch(PowerState::Paused)).unwrap().transfer(), TransferUsed::Push);
    assert_eq!(check(&push, &without_scratch(PowerState::ShutOff)).unwrap().transfer(), TransferUsed::Stopped);
    let auto = check(&BackupSpec::default(), &facts(PowerState::Running, vec![disk("vda")])).unwrap();
    assert_eq!(auto.transfer(), TransferUsed::Pull);
    let pushing = JobSettings { auto_push: true, ..settings() };
    let by_the_host = |transfer| {
        let spec = BackupSpec { transfer, ..BackupSpec::default() };
        super::plan(&attempt(&spec), &spec, &pushing, &facts(PowerState::Running, vec![disk("vda")]))
            .unwrap()
            .transfer()
    };
    assert_eq!((by_the_host(Transfer::Auto), by_the_host(Transfer::Pull)), (TransferUsed::Push, TransferUsed::Pull));
    let of_no_size = Disk { virtual_bytes: None, ..disk("vda") };
    assert_eq!(refusal(&push, &facts(PowerState::Running, vec![of_no_size])), Code::DiskUnsupported);
}

#[test]
fn a_network_disk_is_pulled_while_the_instance_runs_and_while_it_is_stopped_only_an_rbd_image_is_read() {
    let on = |text: &str| Disk { source: Some(serde_json::from_str(text).unwrap()), ..disk("vda") };
    let of = |state, disk: &Disk| check(&BackupSpec::default(), &facts(state, vec![disk.clone()]));
    let rbd = on(r#"{"network":{"protocol":"rbd","name":"pool/image"}}"#);
    let unverified = BackupSpec { verification: Verification::Unverified, ..BackupSpec::default() };
    let plan = check(&unverified, &facts(PowerState::ShutOff, vec![rbd.clone()])).unwrap();
    assert_eq!(plan.verification, Proof::Compared, "nothing else says that it stood still");
    assert!(of(PowerState::Running, &rbd).is_ok());
    let snapshot = r#"{"network":{"protocol":"rbd","name":"pool/image","access":{"snapshot":"monday"}}}"#;
    for other in [snapshot, r#"{"network":{"protocol":"iscsi","name":"iqn.x/1"}}"#] {
        assert!(of(PowerState::Running, &on(other)).is_ok());
        assert_eq!(of(PowerState::ShutOff, &on(other)).unwrap_err().code, Code::DiskUnsupported);
    }
    for kind in ["volume", "nvme", "file in format vmdk"] {
        let other = Disk { source: Some(DiskSource::Other { kind: kind.into() }), ..disk("vda") };
        assert!(of(PowerState::Running, &other).is_ok(), "{kind}");
        assert_eq!(of(PowerState::ShutOff, &other).unwrap_err().code, Code::DiskUnsupported);
    }
}

#[test]
fn a_plan_fits_its_instance_until_a_disk_of_it_is_another() {
    let facts = facts(PowerState::Running, vec![disk("vda"), disk("vdb")]);
    let plan = check(&BackupSpec::default(), &facts).unwrap();
    let with = |disks: Vec<Disk>| {
        let found = Instance { disks, ..facts.instance.clone() };
        refuse_if_changed(&plan, &found, &[]).map_err(|failure| failure.code)
    };
    let grown = Disk { allocated_bytes: Some(2 * GIB), ..disk("vda") };
    let drive = Disk { device: DiskDevice::Cdrom, ..disk("sda") };
    assert_eq!(with(vec![grown, disk("vdb"), drive]), Ok(()), "neither matters");
    let elsewhere = DiskSource::File { path: "/primary/snapshot.qcow2".into(), format: ImageFormat::Qcow2 };
    for disks in [
        vec![disk("vda")],
        vec![disk("vda"), disk("vdb"), disk("vdc")],
        vec![disk("vda"), Disk { serial: Some("x".into()), ..disk("vdb") }],
        vec![disk("vda"), Disk { source: Some(elsewhere), ..disk("vdb") }],
        vec![disk("vda"), Disk { virtual_bytes: Some(9 * GIB), ..disk("vdb") }],
        vec![disk("vda"), Disk { read_only: true, ..disk("vdb") }],
    ] {
        assert_eq!(with(disks.clone()), Err(Code::SourceChanged), "{disks:?}");
    }
}

#[test]
fn only_states_in_which_the_disks_are_whole_are_accepted() {
    for state in [PowerState::PausedByIoError, PowerState::Other] {
        assert_eq!(refusal(&BackupSpec::default(), &facts(state, vec![disk("vda")])), Code::InstanceStateUnsupported);
    }
    let paused = facts(PowerState::Paused, vec![disk("vda")]);
    let prefer = BackupSpec { quiesce: Quiesce::Prefer, ..BackupSpec::default() };
    let plan = check(&prefer, &paused).unwrap();
    assert!(plan.pull().is_some() && !plan.freeze.attempted && plan.freeze.reason.is_some());
    let require = BackupSpec { quiesce: Quiesce::Require, ..BackupSpec::default() };
    assert_eq!(refusal(&require, &paused), Code::InstanceStateUnsupported);
}

#[test]
fn an_instance_that_is_being_shut_down_is_tried_again() {
    let going = facts(PowerState::ShuttingDown, vec![disk("vda")]);
    assert_eq!(refusal(&BackupSpec::default(), &going), Code::InstanceStopped);
    let plan = check(&BackupSpec::default(), &facts(PowerState::Running, vec![disk("vda")])).unwrap();
    assert_eq!(refuse_if_changed(&plan, &going.instance, &[]).unwrap_err().code, Code::InstanceStopped);
}

#[test]
fn a_disk_of_which_nobody_knows_what_it_holds_refuses_no_job() {
    let unknown = Disk { allocated_bytes: None, ..disk("vdb") };
    let over = Disk { allocated_bytes: Some(9 * GIB), ..disk("vdc") };
    let found = facts(PowerState::Running, vec![disk("vda"), unknown, over]);
    let plan = check(&BackupSpec::default(), &found).unwrap();
    let Room { least, most } = plan.room(|_| true);
    assert_eq!(least, REPOSITORY_MARGIN_BYTES + 9 * GIB, "no disk takes more than its guest sees");
    assert_eq!(most, REPOSITORY_MARGIN_BYTES + 17 * GIB);
    assert_eq!(plan.room(|disk| disk.target.as_str() == "vda").most, REPOSITORY_MARGIN_BYTES + GIB);
}

#[test]
fn an_instance_without_an_agent_is_not_frozen_and_fails_a_job_that_requires_it() {
    let mut facts = facts(PowerState::Running, vec![disk("vda")]);
    facts.instance.agent_configured = false;
    let require = BackupSpec { quiesce: Quiesce::Require, ..BackupSpec::default() };
    assert_eq!(refusal(&require, &facts), Code::AgentMissing);
    let prefer = BackupSpec { quiesce: Quiesce::Prefer, ..BackupSpec::default() };
    let plan = check(&prefer, &facts).unwrap();
    assert!(!plan.freeze.attempted && plan.freeze.reason.is_some());
    let off = check(&BackupSpec::default(), &facts).unwrap();
    assert!(!off.freeze.attempted && off.freeze.reason.is_none());
}

#[test]
fn the_scratch_takes_what_the_host_can_spare_and_the_configuration_allows() {
    let facts = facts(PowerState::Running, vec![disk("vda")]);
    let limit = |settings: &JobSettings, facts: &Facts| {
        plan(&attempt(&BackupSpec::default()), &BackupSpec::default(), settings, facts)
            .map(|plan| plan.pull().map(|pull| pull.scratch_limit_bytes).unwrap())
            .map_err(|failure| failure.code)
    };
    assert_eq!(limit(&settings(), &facts), Ok(90 * GIB));
    let configured = JobSettings { scratch_limit_bytes: Some(GIB), ..settings() };
    assert_eq!(limit(&configured, &facts), Ok(GIB));
    let tiny = JobSettings { scratch_limit_bytes: Some(1), ..settings() };
    assert_eq!(limit(&tiny, &facts), Err(Code::ScratchTooSmall));
    let full = Facts { scratch_free_bytes: Some(0), ..facts };
    assert_eq!(limit(&settings(), &full), Err(Code::ScratchTooSmall));
    let reserved = Facts { scratch_free_bytes: Some(SCRATCH_RESERVE_BYTES + SCRATCH_BYTES_MIN - 1), ..full };
    assert_eq!(limit(&settings(), &reserved), Err(Code::ScratchTooSmall));
}

#[test]
fn a_stopped_block_device_is_compared_even_if_nobody_asked() {
    let block = DiskSource::Block { path: "/dev/vg/vda".into(), format: ImageFormat::Raw };
    let disks = vec![Disk { source: Some(block), ..disk("vda") }];
    let spec = BackupSpec { verification: Verification::Unverified, ..BackupSpec::default() };
    assert_eq!(check(&spec, &facts(PowerState::ShutOff, disks.clone())).unwrap().verification, Proof::Compared);
    assert_eq!(check(&spec, &facts(PowerState::Running, disks)).unwrap().verification, Proof::Unverified);
}

#[test]
fn the_socket_of_the_longest_host_id_fits_and_a_long_run_directory_is_named() {
    let spec = BackupSpec::default();
    let facts = facts(PowerState::Running, vec![disk("vda")]);
    let long_host = JobSettings { host: "h".repeat(63).parse().unwrap(), ..settings() };
    assert!(plan(&attempt(&spec), &spec, &long_host, &facts).is_ok());
    let long_dir = JobSettings { run_dir: format!("/{}", "d".repeat(100)).into(), ..settings() };
    let failure = plan(&attempt(&spec), &spec, &long_dir, &facts).unwrap_err();
    assert_eq!(failure.code, Code::InvalidField);
    assert!(format!("{failure:#}").contains("run_dir"));
}

#[test]
fn an_old_hypervisor_is_named() {
    let mut facts = facts(PowerState::Running, vec![disk("vda")]);
    facts.versions.libvirt = Version(6, 10, 0);
    assert_eq!(refusal(&BackupSpec::default(), &facts), Code::HypervisorTooOld);
}
