//! What every hypervisor door must do, whatever is behind it. Called for the fake and for a real libvirt.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use longshore::failure::Code;
use longshore::host::hypervisor::{
    DomainEvent, DomainJob, EndedJob, FreezeStatus, Hypervisor, NewCheckpoint, PullBackup, PullDisk, PushBackup,
    PushDisk,
};
use longshore::model::id::{DiskTarget, InstanceId, InstanceRef};
use longshore::model::instance::{DiskSource, PowerState};
use longshore::model::network::SecretRef;

/// How long anything that happens by itself may take.
const SOON: Duration = Duration::from_secs(20);
/// What an agent is given.
const AGENT: Duration = Duration::from_secs(10);
/// Less than libvirt's own wait for a domain's job lock, which nobody should sit out.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Polls until it is so, or panics with what should have been.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !so().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A pull backup of `targets` with its socket and scratch in `folder`.
pub fn pull(folder: &Path, targets: &[&str], checkpoint: Option<&str>) -> PullBackup {
    let disk = |target: &&str| PullDisk {
        target: target.parse().unwrap(),
        scratch: folder.join(format!("{target}.scratch.qcow2")),
        since: None,
    };
    PullBackup {
        socket: folder.join("pull.sock"),
        disks: targets.iter().map(disk).collect(),
        checkpoint: checkpoint.map(|name| NewCheckpoint {
            name: name.to_owned(),
            disks: targets.iter().map(|target| target.parse().unwrap()).collect(),
        }),
    }
}

pub async fn an_instance_is_found_by_uuid_and_by_name(door: &dyn Hypervisor, id: InstanceId, bytes: &[(&str, u64)]) {
    let found = door.find(&InstanceRef::Id(id)).await.unwrap();
    assert_eq!(found.id, id);
    assert_eq!(found.state, PowerState::Running);
    let disks: Vec<_> = found.disks.iter().map(|disk| (disk.target.as_str(), disk.virtual_bytes.unwrap())).collect();
    assert_eq!(disks, bytes);
    assert!(found.disks.iter().all(|disk| disk.serial.is_some() && disk.source.is_some()));
    assert!(found.definition.contains(&id.to_string()), "{}", found.definition);
    assert_eq!(door.find(&InstanceRef::Name(found.name.clone())).await.unwrap().id, id);

    assert_eq!(door.survey(id).await.unwrap(), found);

    let listed = door.instances().await.unwrap();
    let mine = listed.iter().find(|summary| summary.id == id).expect("it is listed");
    assert_eq!((&mine.name, mine.state), (&found.name, PowerState::Running));
    door.versions().await.unwrap().allow_incremental().unwrap();
}

/// Its disks are the volumes `FILE` of the pool `pool`.
pub async fn a_volume_of_a_pool_is_told_with_where_it_is(door: &dyn Hypervisor, id: InstanceId, pool: &str) {
    let found = door.find(&InstanceRef::Id(id)).await.unwrap();
    assert_eq!(found.live_definition, None, "it runs with what it was defined with");
    assert!(!found.disks.is_empty());
    for disk in &found.disks {
        let Some(DiskSource::File { path, .. }) = &disk.source else { panic!("{disk:?}") };
        let named = disk.pool_volume.as_ref().unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        assert_eq!((named.pool.as_str(), named.volume.as_str()), (pool, file));
        assert!(disk.virtual_bytes.is_some() && disk.allocated_bytes.is_some(), "{disk:?}");
        let identities = door.identities().await.unwrap();
        let own = identities.iter().find(|identity| identity.id == id).unwrap();
        assert!(own.files.contains(path), "{own:?}");
    }
}

/// `secrets` are all names of one, which holds `expected`.
pub async fn a_key_is_given_by_each_of_its_names_and_one_that_is_not_there_is_unreadable(
    door: &dyn Hypervisor,
    secrets: &[SecretRef],
    expected: &str,
) {
    for secret in secrets {
        let key = door.secret(secret).await.unwrap();
        assert_eq!(key.expose(), expected);
        assert!(!format!("{key:?}").contains(expected));
    }
    for unknown in [SecretRef::Uuid(Default::default()), SecretRef::Usage("client.nobody-has-this".into())] {
        assert_eq!(door.secret(&unknown).await.unwrap_err().code, Code::CredentialsUnreadable);
    }
}

pub async fn who_qemu_runs_as_is_told_for_the_host_and_for_an_instance(door: &dyn Hypervisor, id: InstanceId) {
    let of_host = door.qemu_owner(None).await.unwrap();
    assert_eq!(door.qemu_owner(Some(id)).await.unwrap(), of_host, "it doesn't ask for another user");
    let unknown = door.qemu_owner(Some(InstanceId::draw())).await.unwrap_err();
    assert_eq!(unknown.code, Code::InstanceNotHere, "{unknown:#}");
}

pub async fn an_unknown_instance_is_not_here(door: &dyn Hypervisor) {
    let unknown = InstanceId::draw();
    let code = |outcome: Result<(), longshore::failure::Failure>| outcome.unwrap_err().code;
    assert_eq!(code(door.find(&InstanceRef::Id(unknown)).await.map(drop)), Code::InstanceNotHere);
    let name = InstanceRef::Name("nobody-has-this-name".parse().unwrap());
    assert_eq!(code(door.find(&name).await.map(drop)), Code::InstanceNotHere);
    assert_eq!(code(door.survey(unknown).await.map(drop)), Code::InstanceNotHere);
    assert_eq!(code(door.state(unknown).await.map(drop)), Code::InstanceNotHere);
    assert_eq!(code(door.abort_job(unknown, &DomainJob::Other).await), Code::InstanceNotHere);
    assert_eq!(code(door.thaw(unknown, AGENT).await.map(drop)), Code::InstanceNotHere);
    assert_eq!(code(door.watch(unknown).await.map(drop)), Code::InstanceNotHere);
}

/// Begins a pull backup, calls `look` while it stands, and ends it.
pub async fn a_pull_backup_is_ours_from_its_begin_to_its_end<F: Future<Output = ()>>(
    door: &dyn Hypervisor,
    id: InstanceId,
    folder: &Path,
    look: impl FnOnce() -> F,
) {
    let backup = pull(folder, &["vda", "vdb"], None);
    assert_eq!(door.domain_job(id).await.unwrap(), None);
    assert_eq!(door.domain_job_stats(id).await.unwrap(), None);

    door.begin_pull(id, &backup).await.unwrap();
    let ours = DomainJob::Pull { socket: backup.socket.clone() };
    assert_eq!(door.domain_job(id).await.unwrap(), Some(ours.clone()));
    assert!(door.domain_job_stats(id).await.unwrap().is_some());
    assert_eq!(door.block_jobs(id).await.unwrap().len(), 2);
    look().await;

    let second = PullBackup { socket: folder.join("second.sock"), ..backup };
    let refused = tokio::time::timeout(AT_ONCE, door.begin_pull(id, &second)).await.expect("told at once");
    assert_eq!(refused.unwrap_err().code, Code::InstanceBusy);

    let theirs = DomainJob::Pull { socket: folder.join("theirs.sock") };
    assert_eq!(door.abort_job(id, &theirs).await.unwrap_err().code, Code::InstanceBusy, "another's job is not ended");
    assert_eq!(door.domain_job(id).await.unwrap(), Some(ours.clone()));

    door.abort_job(id, &ours).await.unwrap();
    eventually("the job is gone", || async {
        door.domain_job(id).await.unwrap().is_none() && door.block_jobs(id).await.unwrap().is_empty()
    })
    .await;
    door.abort_job(id, &ours).await.expect("ending no job is no error");
    assert_eq!(door.state(id).await.unwrap(), PowerState::Running);
}

/// How a pull backup of [`pull`] is known.
pub fn ours(folder: &Path) -> DomainJob {
    DomainJob::Pull { socket: folder.join("pull.sock") }
}

/// `pause` pauses the instance, as an operator does.
pub async fn a_paused_instance_runs_again(door: &dyn Hypervisor, id: InstanceId, pause: impl FnOnce()) {
    door.resume(id).await.expect("resuming one that runs is no error");
    pause();
    eventually("it is paused", || async { door.state(id).await.unwrap() == PowerState::Paused }).await;
    door.resume(id).await.unwrap();
    eventually("it runs", || async { door.state(id).await.unwrap() == PowerState::Running }).await;
}

pub async fn a_backup_of_a_disk_that_is_not_there_is_refused(door: &dyn Hypervisor, id: InstanceId, folder: &Path) {
    let failure = door.begin_pull(id, &pull(folder, &["vda", "vdz"], None)).await.unwrap_err();
    assert_eq!(failure.code, Code::DiskNotFound);
    assert_eq!(door.domain_job(id).await.unwrap(), None);
}

pub async fn a_checkpoint_is_made_with_the_backup_and_deleted_twice(
    door: &dyn Hypervisor,
    id: InstanceId,
    folder: &Path,
) {
    door.begin_pull(id, &pull(folder, &["vda"], Some("longshore-contract"))).await.unwrap();
    assert_eq!(door.checkpoints(id).await.unwrap(), ["longshore-contract"]);
    door.abort_job(id, &ours(folder)).await.unwrap();
    eventually("the job is gone", || async { door.domain_job(id).await.unwrap().is_none() }).await;
    assert_eq!(door.checkpoints(id).await.unwrap(), ["longshore-contract"], "it outlives its job");
    let since = |name: &str| {
        let mut backup = pull(folder, &["vda"], None);
        backup.disks[0].since = Some(name.to_owned());
        backup
    };
    let refused = door.begin_pull(id, &since("longshore-nowhere")).await.unwrap_err();
    assert_eq!((refused.code, door.domain_job(id).await.unwrap()), (Code::HypervisorFailed, None));
    door.begin_pull(id, &since("longshore-contract")).await.unwrap();
    door.abort_job(id, &ours(folder)).await.unwrap();
    eventually("the job is gone", || async { door.domain_job(id).await.unwrap().is_none() }).await;
    door.delete_checkpoint(id, "longshore-contract").await.unwrap();
    door.delete_checkpoint(id, "longshore-contract").await.expect("none of that name is no error");
    assert!(door.checkpoints(id).await.unwrap().is_empty());
    let lost = NewCheckpoint { name: "longshore-contract".to_owned(), disks: vec!["vda".parse().unwrap()] };
    let refused = door.redefine_checkpoint(id, &lost, 1).await.unwrap_err();
    assert_eq!(refused.code, Code::HypervisorFailed, "its bitmap is gone: {refused:#}");
    assert!(door.checkpoints(id).await.unwrap().is_empty());
}

/// `stop` pulls the instance's plug.
pub async fn a_stopped_instance_says_so_and_has_no_job(
    door: &dyn Hypervisor,
    id: InstanceId,
    folder: &Path,
    stop: impl FnOnce(),
) {
    let mut events = door.watch(id).await.unwrap();
    stop();
    let event = tokio::time::timeout(SOON, events.recv()).await.expect("a hint comes");
    assert_eq!(event, Some(DomainEvent::Lifecycle));
    eventually("it is shut off", || async { door.state(id).await.unwrap() == PowerState::ShutOff }).await;

    let found = door.find(&InstanceRef::Id(id)).await.unwrap();
    assert_eq!((found.state, found.disks.len()), (PowerState::ShutOff, 2));
    assert!(found.disks.iter().all(|disk| disk.virtual_bytes.is_some()), "{:?}", found.disks);
    let failure = door.begin_pull(id, &pull(folder, &["vda"], None)).await.unwrap_err();
    assert_eq!(failure.code, Code::InstanceStateUnsupported, "{failure:#}");
    assert_eq!(door.domain_job(id).await.unwrap(), None);
    assert_eq!(door.domain_job_stats(id).await.unwrap(), None);
    assert!(door.block_jobs(id).await.unwrap().is_empty());
    door.abort_job(id, &ours(folder)).await.unwrap();
    assert_eq!(door.thaw(id, AGENT).await.unwrap_err().code, Code::InstanceStateUnsupported);
    assert_eq!(door.resume(id).await.unwrap_err().code, Code::InstanceStateUnsupported);
}

pub async fn the_end_of_a_job_is_hinted_for_each_disk(door: &dyn Hypervisor, id: InstanceId, folder: &Path) {
    let mut events = door.watch(id).await.unwrap();
    door.begin_pull(id, &pull(folder, &["vda", "vdb"], None)).await.unwrap();
    door.abort_job(id, &ours(folder)).await.unwrap();
    let mut ended = Vec::new();
    while ended.len() < 2 {
        match tokio::time::timeout(SOON, events.recv()).await.expect("hints come") {
            Some(DomainEvent::BlockJob { target, .. }) => ended.push(target.to_string()),
            Some(_) => {}
            None => panic!("the hints ended"),
        }
    }
    ended.sort();
    assert_eq!(ended, ["vda", "vdb"]);
    eventually("the job is gone", || async { door.domain_job(id).await.unwrap().is_none() }).await;
}

/// `image` is a qcow2 file of the size of `vda` for a door that writes.
pub async fn a_push_backup_ends_by_itself_and_its_end_is_remembered(
    door: &dyn Hypervisor,
    id: InstanceId,
    image: &Path,
) {
    let connection = door.forget_ended_job(id).await.unwrap();
    assert_eq!(door.ended_job(id).await.unwrap(), None);
    let mut events = door.watch(id).await.unwrap();
    let found = door.find(&InstanceRef::Id(id)).await.unwrap();
    let vda: DiskTarget = "vda".parse().unwrap();
    let size = found.disks.iter().find(|disk| disk.target == vda).and_then(|disk| disk.virtual_bytes);
    let disk = PushDisk { target: vda.clone(), image: image.to_owned(), since: None };
    let name = "longshore-pushed".to_owned();
    let checkpoint = Some(NewCheckpoint { name: name.clone(), disks: vec![vda] });
    door.begin_push(id, &PushBackup { disks: vec![disk.clone()], checkpoint }).await.unwrap();
    let ended = DomainEvent::BlockJob { target: "vda".parse().unwrap(), completed: true };
    assert_eq!(tokio::time::timeout(SOON, events.recv()).await.expect("it ends"), Some(ended));
    eventually("the job is gone", || async { door.domain_job(id).await.unwrap().is_none() }).await;
    eventually("no disk has a job", || async { door.block_jobs(id).await.unwrap().is_empty() }).await;
    let success = EndedJob { success: true, message: None, total_bytes: size, remaining_bytes: Some(0), connection };
    for _twice in 0..2 {
        assert_eq!(door.ended_job(id).await.unwrap().as_ref(), Some(&success));
    }
    door.forget_ended_job(id).await.unwrap();
    assert_eq!(door.ended_job(id).await.unwrap(), None);

    // Nothing was written to it since.
    let backup =
        |since: String| PushBackup { disks: vec![PushDisk { since: Some(since), ..disk.clone() }], checkpoint: None };
    let refused = door.begin_push(id, &backup("longshore-nowhere".to_owned())).await.unwrap_err();
    assert_eq!((refused.code, door.domain_job(id).await.unwrap()), (Code::HypervisorFailed, None));
    door.begin_push(id, &backup(name.clone())).await.unwrap();
    eventually("the job is gone", || async { door.domain_job(id).await.unwrap().is_none() }).await;
    eventually("no disk has a job", || async { door.block_jobs(id).await.unwrap().is_empty() }).await;
    let ended = door.ended_job(id).await.unwrap().unwrap();
    assert_eq!((ended.success, ended.total_bytes.unwrap_or(0)), (true, 0));
    door.delete_checkpoint(id, &name).await.unwrap();
}

pub async fn an_instance_without_an_agent_says_so(door: &dyn Hypervisor, id: InstanceId) {
    assert!(!door.find(&InstanceRef::Id(id)).await.unwrap().agent_configured);
    assert_eq!(door.agent_ping(id, AGENT).await.unwrap_err().code, Code::AgentMissing);
    assert_eq!(door.freeze(id, AGENT).await.unwrap_err().code, Code::AgentMissing);
    assert_eq!(door.guest_info(id, AGENT).await.unwrap_err().code, Code::AgentMissing);
}

pub async fn a_guest_is_frozen_and_thawed(door: &dyn Hypervisor, id: InstanceId) {
    let found = door.find(&InstanceRef::Id(id)).await.unwrap();
    assert!(found.agent_configured && found.agent_connected);
    let written = door.write_counters(id).await.unwrap();
    assert!(written.iter().any(|disk| disk.target.as_str() == "vda"), "{written:?}");
    door.agent_ping(id, AGENT).await.unwrap();
    let info = door.guest_info(id, AGENT).await.unwrap();
    let on_vda =
        info.file_systems.iter().find(|fs| fs.disks == ["vda".parse().unwrap()]).expect("a file system on vda");
    assert_eq!(on_vda.kind, "ext4");
    assert!(!info.facts.is_empty());

    assert_eq!(door.freeze_status(id, AGENT).await.unwrap(), FreezeStatus::Thawed);
    let frozen = door.freeze(id, AGENT).await.unwrap();
    assert!(frozen >= 1);
    assert_eq!(door.freeze_status(id, AGENT).await.unwrap(), FreezeStatus::Frozen);
    assert_eq!(door.freeze(id, AGENT).await.unwrap_err().code, Code::FreezeFailed, "a frozen guest can't be frozen");
    assert_eq!(door.thaw(id, AGENT).await.unwrap(), frozen);
    assert_eq!(door.freeze_status(id, AGENT).await.unwrap(), FreezeStatus::Thawed);
    assert_eq!(door.thaw(id, AGENT).await.expect("thawing a thawed guest is no error"), 0);
}
