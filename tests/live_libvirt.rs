//! The libvirt door on a real libvirt keeps the contract of the door. Needs the laboratory: `scripts/lab up`, then
//! `eval "$(scripts/lab env)"`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "contract/additions.rs"]
mod additions;
#[path = "contract/hypervisor.rs"]
mod contract;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/wire.rs"]
mod wire;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::LabInstance;
use longshore::failure::Code;
use longshore::host::hypervisor::libvirt::Libvirt;
use longshore::host::hypervisor::{DomainEvent, Hypervisor};
use longshore::job::backup::freeze::thaw_until_confirmed;
use longshore::model::id::InstanceRef;
use longshore::model::instance::{DiskSource, PowerState};
use longshore::model::network::SecretRef;
use wire::Wire;

const MIB: u64 = 1 << 20;
const AGENT: Duration = Duration::from_secs(10);

fn door() -> Libvirt {
    Libvirt::new(&lab::libvirt_uri())
}

#[tokio::test]
async fn an_instance_is_found_by_uuid_and_by_name() {
    let bare = LabInstance::bare();
    let bytes = [("vda", 64 * MIB), ("vdb", 16 * MIB)];
    contract::an_instance_is_found_by_uuid_and_by_name(&door(), bare.id, &bytes).await;
}

#[tokio::test]
async fn a_volume_of_a_pool_is_told_with_where_it_is() {
    let bare = LabInstance::bare_off_with("vda:qcow2:16,vdb:raw:8");
    let pool = lab::Pool::over(&bare.name, &bare.folder);
    bare.put_into_pool(&pool.0);
    contract::a_volume_of_a_pool_is_told_with_where_it_is(&door(), bare.id, &pool.0).await;
    bare.start();
    contract::a_volume_of_a_pool_is_told_with_where_it_is(&door(), bare.id, &pool.0).await;
}

#[tokio::test]
async fn a_volume_whose_pool_is_not_there_or_not_active_is_nowhere_and_hides_no_other() {
    let bare = LabInstance::bare_off_with("vda:qcow2:16");
    let pool = lab::Pool::over(&bare.name, &bare.folder);
    bare.put_into_pool(&pool.0);
    drop(pool);
    let not_there = (door().find(&InstanceRef::Id(bare.id)).await, door().identities().await);
    lab::virsh(&["pool-define-as", &bare.name, "dir", "--target", bare.folder.to_str().unwrap()]);
    let not_active = (door().find(&InstanceRef::Id(bare.id)).await, door().identities().await);
    lab::virsh(&["pool-undefine", &bare.name]);
    for (found, identities) in [not_there, not_active] {
        let found = found.unwrap();
        assert_eq!(found.disks[0].source, Some(DiskSource::Other { kind: "volume".to_owned() }));
        assert!(found.disks[0].pool_volume.is_some());
        assert!(identities.unwrap().iter().any(|identity| identity.id == bare.id && identity.files.is_empty()));
    }
}

#[tokio::test]
async fn who_qemu_runs_as_is_told_for_the_host_and_for_an_instance() {
    let bare = LabInstance::bare();
    contract::who_qemu_runs_as_is_told_for_the_host_and_for_an_instance(&door(), bare.id).await;
}

#[tokio::test]
async fn a_key_is_given_by_each_of_its_names_and_one_that_is_not_there_is_unreadable() {
    let folder = tempfile::tempdir().unwrap();
    let (uuid, name) = (uuid::Uuid::new_v4(), format!("client.test-{}", std::process::id()));
    let define = |private: &str, uuid: uuid::Uuid, name: &str| {
        let file = folder.path().join("secret.xml");
        let usage = format!("<usage type='ceph'><name>{name}</name></usage>");
        let xml = format!("<secret ephemeral='yes' private='{private}'><uuid>{uuid}</uuid>{usage}</secret>");
        std::fs::write(&file, xml).unwrap();
        lab::virsh(&["secret-define", file.to_str().unwrap()]);
        let value = folder.path().join("value");
        std::fs::write(&value, "aHVudGVyMg==").unwrap();
        lab::virsh(&["secret-set-value", "--secret", &uuid.to_string(), "--file", value.to_str().unwrap()]);
    };
    define("no", uuid, &name);
    let names = [SecretRef::Uuid(uuid), SecretRef::Usage(name)];
    contract::a_key_is_given_by_each_of_its_names_and_one_that_is_not_there_is_unreadable(
        &door(),
        &names,
        "aHVudGVyMg==",
    )
    .await;
    lab::virsh(&["secret-undefine", &uuid.to_string()]);
    // One that libvirt keeps to itself.
    let (private, name) = (uuid::Uuid::new_v4(), format!("client.private-{}", std::process::id()));
    define("yes", private, &name);
    let refused = door().secret(&SecretRef::Uuid(private)).await.unwrap_err();
    assert_eq!(refused.code, Code::CredentialsUnreadable, "{refused:#}");
    lab::virsh(&["secret-undefine", &private.to_string()]);
}

#[tokio::test]
async fn an_unknown_instance_is_not_here() {
    contract::an_unknown_instance_is_not_here(&door()).await;
}

#[tokio::test]
async fn a_pull_backup_is_ours_from_its_begin_to_its_end_and_serves_nbd() {
    let bare = LabInstance::bare();
    let socket = contract::pull(&bare.folder, &["vda"], None).socket;
    let look = || async {
        assert_eq!(lab::export_bytes(&socket, "vda"), 64 * MIB);
        assert_eq!(lab::export_bytes(&socket, "vdb"), 16 * MIB);
    };
    contract::a_pull_backup_is_ours_from_its_begin_to_its_end(&door(), bare.id, &bare.folder, look).await;
    let left: Vec<_> = std::fs::read_dir(&bare.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("scratch")), "scratch is left: {left:?}");
}

#[tokio::test]
async fn a_backup_of_a_disk_that_is_not_there_is_refused() {
    let bare = LabInstance::bare();
    contract::a_backup_of_a_disk_that_is_not_there_is_refused(&door(), bare.id, &bare.folder).await;
}

#[tokio::test]
async fn a_checkpoint_is_made_with_the_backup_and_deleted_twice() {
    let bare = LabInstance::bare();
    contract::a_checkpoint_is_made_with_the_backup_and_deleted_twice(&door(), bare.id, &bare.folder).await;
}

#[tokio::test]
async fn a_stopped_instance_says_so_and_has_no_job() {
    let bare = LabInstance::bare();
    contract::a_stopped_instance_says_so_and_has_no_job(&door(), bare.id, &bare.folder, || bare.stop()).await;
}

#[tokio::test]
async fn the_end_of_a_job_is_hinted_for_each_disk() {
    let bare = LabInstance::bare();
    contract::the_end_of_a_job_is_hinted_for_each_disk(&door(), bare.id, &bare.folder).await;
}

#[tokio::test]
async fn a_paused_instance_runs_again() {
    let bare = LabInstance::bare();
    let pause = || drop(lab::virsh(&["suspend", &bare.name]));
    contract::a_paused_instance_runs_again(&door(), bare.id, pause).await;
}

/// Forgets an instance that a test has defined.
struct Forgotten(String);

impl Drop for Forgotten {
    fn drop(&mut self) {
        lab::forget(&self.0);
    }
}

#[tokio::test]
async fn an_instance_is_defined_once_and_never_over_another() {
    let name = format!("defined-{}", std::process::id());
    let _forgotten = Forgotten(name.clone());
    let new = additions::new_instance(&name, "job/1/1");
    additions::an_instance_is_defined_once_and_never_over_another(&door(), &new).await;
}

#[tokio::test]
async fn a_disk_is_attached_once_to_an_instance_that_runs_or_is_stopped() {
    let bare = LabInstance::bare();
    let files = ["one.raw", "two.raw"].map(|name| bare.folder.join(name));
    files.iter().for_each(|file| std::fs::File::create(file).unwrap().set_len(MIB).unwrap());
    let [one, two] = &files;
    let stop = || bare.stop();
    additions::a_disk_is_attached_once_to_an_instance_that_runs_or_is_stopped(&door(), bare.id, [one, two], stop).await;
}

#[tokio::test]
async fn an_instance_without_an_agent_says_so() {
    let bare = LabInstance::bare();
    contract::an_instance_without_an_agent_says_so(&door(), bare.id).await;
}

#[tokio::test]
async fn a_definition_comes_back_as_it_was_defined() {
    let bare = LabInstance::bare();
    let definition = door().find(&InstanceRef::Id(bare.id)).await.unwrap().definition;
    bare.stop();
    lab::virsh(&["undefine", &bare.name]);
    let file = bare.folder.join("definition.xml");
    std::fs::write(&file, &definition).unwrap();
    lab::virsh(&["define", file.to_str().unwrap()]);
    assert_eq!(door().find(&InstanceRef::Id(bare.id)).await.unwrap().definition, definition);
}

#[tokio::test]
async fn memory_that_was_saved_is_known_until_it_is_resumed() {
    let bare = LabInstance::bare();
    let saved = || async { door().find(&InstanceRef::Id(bare.id)).await.unwrap() };
    lab::virsh(&["managedsave", &bare.name]);
    let found = saved().await;
    assert!(found.state == PowerState::ShutOff && found.saved_memory, "{found:?}");
    assert_eq!(found.unrecorded.len(), 1, "{found:?}");
    bare.start();
    assert!(!saved().await.saved_memory);
    bare.stop();
    assert!(!saved().await.saved_memory);
}

#[tokio::test]
async fn a_chain_is_pinned_by_a_snapshot_and_not_by_what_libvirt_finds_in_the_file() {
    let bare = LabInstance::bare();
    let pinned = || async { door().find(&InstanceRef::Id(bare.id)).await.unwrap().disks[0].pinned_chain };
    bare.stop();
    let (base, volume) = (bare.folder.join("base.qcow2"), bare.folder.join("vda.qcow2"));
    std::fs::rename(&volume, &base).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.to_str().unwrap(), volume.to_str().unwrap()]);
    bare.start();
    assert!(lab::virsh(&["dumpxml", &bare.name]).contains("base.qcow2"), "libvirt tells of the chain that it found");
    assert!(!pinned().await);
    let snapshot = format!("vda,file={}", bare.folder.join("overlay.qcow2").display());
    lab::virsh(&["snapshot-create-as", &bare.name, "--no-metadata", "--disk-only", "--diskspec", &snapshot]);
    bare.stop();
    assert!(pinned().await);
}

#[tokio::test]
async fn a_libvirt_that_is_not_there_is_unavailable() {
    let failure = Libvirt::new("qemu+unix:///system?socket=/nonexistent").instances().await.unwrap_err();
    assert_eq!(failure.code, Code::HypervisorUnavailable, "{failure:#}");
}

#[tokio::test]
async fn a_push_backup_writes_into_the_files_that_are_there() {
    let bare = LabInstance::bare();
    let door = door();
    let (source, image) = (bare.folder.join("vda.qcow2"), bare.folder.join("pushed.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "64M"]);
    contract::a_push_backup_ends_by_itself_and_its_end_is_remembered(&door, bare.id, &image).await;
    bare.stop();
    qemu_img(&["compare", "-q", source.to_str().unwrap(), image.to_str().unwrap()]);
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img starts");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A door whose connections go over a wire that the test holds.
fn door_over(wire: &Wire) -> Libvirt {
    Libvirt::new(&format!("qemu+unix:///system?socket={}", wire.socket.display()))
}

fn wire_in(folder: &Path) -> Wire {
    let uri = lab::libvirt_uri();
    let (_, daemon) = uri.split_once("socket=").expect("the laboratory's URI names its socket");
    Wire::new(folder, daemon.into())
}

#[tokio::test]
async fn a_connection_that_was_lost_is_made_again_and_watchers_are_told() {
    let bare = LabInstance::bare();
    let wire = wire_in(&bare.folder);
    let door = door_over(&wire);
    let mut events = door.watch(bare.id).await.unwrap();
    wire.cut();
    contract::eventually("the state is told again", || async { door.state(bare.id).await.is_ok() }).await;
    assert_eq!(events.recv().await, Some(DomainEvent::Reconnected));
    bare.stop();
    let event = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("a hint comes");
    assert_eq!(event, Some(DomainEvent::Lifecycle), "events come over the new connection");
}

#[tokio::test]
async fn a_libvirt_that_hangs_is_left_behind_and_listed_until_it_answers() {
    let bare = LabInstance::bare();
    let wire = wire_in(&bare.folder);
    let door = door_over(&wire);
    door.state(bare.id).await.unwrap();
    wire.hold();
    let failure = door.state(bare.id).await.unwrap_err();
    assert_eq!(failure.code, Code::HypervisorTimedOut, "{failure:#}");
    let stuck = door.stuck_calls();
    assert_eq!(stuck.iter().map(|stuck| (stuck.call, stuck.instance)).collect::<Vec<_>>(), [("state", Some(bare.id))]);
    wire.release();
    contract::eventually("the call came back", || async { door.stuck_calls().is_empty() }).await;
    contract::eventually("the state is told again", || async { door.state(bare.id).await.is_ok() }).await;
}

/// The guest's own hook may take longer than the agent is given: the freeze then fails, and comes about all the same.
#[tokio::test]
async fn a_guest_whose_freeze_hook_is_slow_is_thawed_in_the_end() {
    let (guest, door) = (LabInstance::guest(), door());
    guest.slow_freeze(8);
    let failure = door.freeze(guest.id, Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(failure.code, Code::AgentSilent, "{failure:#}");
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    let thawed = thaw_until_confirmed(&door, guest.id, until).await.unwrap();
    println!("the first thaw: {:?}", thawed.first);
    assert!(!guest.is_frozen());
    let before = guest.writes_done();
    lab::eventually("the guest writes again", Duration::from_secs(20), || guest.writes_done() > before);
    guest.slow_freeze(0);
    door.freeze(guest.id, AGENT).await.expect("the agent is in step again");
    assert!(door.thaw(guest.id, AGENT).await.unwrap() > 0);
}

/// A linked clone holds little itself, and a sparse raw file less than its length.
#[tokio::test]
async fn what_a_disk_holds_is_counted_over_its_whole_chain() {
    use std::os::unix::fs::MetadataExt;
    let (bare, door) = (LabInstance::bare(), door());
    let (top, base) = (bare.folder.join("vda.qcow2"), bare.folder.join("base.qcow2"));
    let raw = bare.folder.join("vdb.raw");
    let takes = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
    let sizes = || async {
        let disks = door.find(&InstanceRef::Id(bare.id)).await.unwrap().disks;
        disks.iter().map(|disk| (disk.virtual_bytes, disk.allocated_bytes)).collect::<Vec<_>>()
    };
    bare.stop();
    assert_eq!(sizes().await, [(Some(64 * MIB), Some(takes(&top))), (Some(16 * MIB), Some(takes(&raw)))]);
    std::fs::rename(&top, &base).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.to_str().unwrap(), top.to_str().unwrap()]);
    assert_eq!(sizes().await[0], (Some(64 * MIB), None), "a stopped clone does not say what its template holds");
    bare.start();
    assert!(takes(&base) > takes(&top) && takes(&raw) < 16 * MIB, "the disks are as this test wants them");
    let both = takes(&base) + takes(&top);
    assert_eq!(sizes().await, [(Some(64 * MIB), Some(both)), (Some(16 * MIB), Some(takes(&raw)))]);
    bare.stop();
}

#[tokio::test]
async fn a_guest_is_frozen_and_thawed() {
    let guest = LabInstance::guest();
    contract::a_guest_is_frozen_and_thawed(&door(), guest.id).await;
    assert!(!guest.is_frozen());
    let written = door().write_counters(guest.id).await.unwrap();
    let vda = written.iter().find(|disk| disk.target.as_str() == "vda").unwrap();
    assert!(vda.writes > 0 && vda.write_ns > 0 && vda.flushes > 0 && vda.flush_ns > 0, "{vda:?}");
    freeze_begin_thaw_timings(&guest).await;
}

/// The window in which the guest waits, to be read with `--nocapture`.
async fn freeze_begin_thaw_timings(guest: &LabInstance) {
    let door = door();
    let backup = contract::pull(&guest.folder, &["vda", "vdb"], None);
    for round in 1..=5 {
        let began = Instant::now();
        door.freeze(guest.id, AGENT).await.unwrap();
        let froze = began.elapsed();
        door.begin_pull(guest.id, &backup).await.unwrap();
        let begun = began.elapsed();
        door.thaw(guest.id, AGENT).await.unwrap();
        let thawed = began.elapsed();
        door.abort_job(guest.id, &contract::ours(&guest.folder)).await.unwrap();
        contract::eventually("the job is gone", || async { door.domain_job(guest.id).await.unwrap().is_none() }).await;
        println!(
            "round {round}: freeze {froze:?}, begin {:?}, thaw {:?}, frozen at most {thawed:?}",
            begun - froze,
            thawed - begun
        );
    }
}
