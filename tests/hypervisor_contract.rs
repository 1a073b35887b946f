//! The fake hypervisor keeps the contract of the door, and does on request what a real one does on bad days.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "contract/additions.rs"]
mod additions;
#[path = "contract/hypervisor.rs"]
mod contract;

use std::path::Path;
use std::time::Duration;

use longshore::failure::{Code, Failure};
use longshore::host::hypervisor::Hypervisor;
use longshore::host::hypervisor::fake::{FakeAgent, FakeHypervisor, FakeInstance};
use longshore::model::id::InstanceId;
use longshore::model::instance::PowerState;
use longshore::model::network::SecretRef;

const MIB: u64 = 1 << 20;
const FOLDER: &str = "/nowhere";
const AGENT: Duration = Duration::from_secs(10);

fn instance(agent: FakeAgent) -> (FakeHypervisor, InstanceId) {
    let instance = FakeInstance::running("web").disk("vda", 64 * MIB).disk("vdb", 16 * MIB).agent(agent);
    let id = instance.id();
    (FakeHypervisor::new().with_instance(instance), id)
}

macro_rules! contract {
    ($name:ident, |$door:ident, $id:ident| $call:expr) => {
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let ($door, $id) = instance(FakeAgent::Missing);
            $call.await;
            assert_eq!($door.leftovers(), Vec::<String>::new());
        }
    };
}

contract!(an_instance_is_found_by_uuid_and_by_name, |door, id| {
    contract::an_instance_is_found_by_uuid_and_by_name(&door, id, &[("vda", 64 * MIB), ("vdb", 16 * MIB)])
});
#[tokio::test(start_paused = true)]
async fn a_volume_of_a_pool_is_told_with_where_it_is() {
    let instance = FakeInstance::running("web").disk("vda", 64 * MIB).disk("vdb", 16 * MIB).in_pool("fast");
    let (id, door) = (instance.id(), FakeHypervisor::new().with_instance(instance));
    contract::a_volume_of_a_pool_is_told_with_where_it_is(&door, id, "fast").await;
}

#[tokio::test]
async fn a_key_is_given_by_each_of_its_names_and_one_that_is_not_there_is_unreadable() {
    let names = [SecretRef::Usage("client.vm".into()), SecretRef::Uuid(uuid::Uuid::from_u128(7))];
    let door = names.iter().fold(FakeHypervisor::new(), |door, name| door.with_secret(name.clone(), "aHVudGVyMg=="));
    contract::a_key_is_given_by_each_of_its_names_and_one_that_is_not_there_is_unreadable(
        &door,
        &names,
        "aHVudGVyMg==",
    )
    .await;
}

contract!(who_qemu_runs_as_is_told_for_the_host_and_for_an_instance, |door, id| {
    contract::who_qemu_runs_as_is_told_for_the_host_and_for_an_instance(&door, id)
});
contract!(an_unknown_instance_is_not_here, |door, _id| contract::an_unknown_instance_is_not_here(&door));
contract!(a_pull_backup_is_ours_from_its_begin_to_its_end, |door, id| {
    contract::a_pull_backup_is_ours_from_its_begin_to_its_end(&door, id, Path::new(FOLDER), || async {})
});
contract!(a_backup_of_a_disk_that_is_not_there_is_refused, |door, id| {
    contract::a_backup_of_a_disk_that_is_not_there_is_refused(&door, id, Path::new(FOLDER))
});
contract!(a_checkpoint_is_made_with_the_backup_and_deleted_twice, |door, id| {
    contract::a_checkpoint_is_made_with_the_backup_and_deleted_twice(&door, id, Path::new(FOLDER))
});
contract!(a_stopped_instance_says_so_and_has_no_job, |door, id| {
    contract::a_stopped_instance_says_so_and_has_no_job(&door, id, Path::new(FOLDER), || {
        door.set_state(id, PowerState::ShutOff);
    })
});
contract!(a_push_backup_ends_by_itself_and_its_end_is_remembered, |door, id| {
    contract::a_push_backup_ends_by_itself_and_its_end_is_remembered(&door, id, Path::new("/nowhere/vda.qcow2"))
});
contract!(a_paused_instance_runs_again, |door, id| {
    contract::a_paused_instance_runs_again(&door, id, || door.set_state(id, PowerState::Paused))
});
contract!(the_end_of_a_job_is_hinted_for_each_disk, |door, id| {
    contract::the_end_of_a_job_is_hinted_for_each_disk(&door, id, Path::new(FOLDER))
});
contract!(an_instance_without_an_agent_says_so, |door, id| contract::an_instance_without_an_agent_says_so(&door, id));

contract!(a_disk_is_attached_once_to_an_instance_that_runs_or_is_stopped, |door, id| {
    let files = [Path::new("/nowhere/one.raw"), Path::new("/nowhere/two.raw")];
    additions::a_disk_is_attached_once_to_an_instance_that_runs_or_is_stopped(&door, id, files, || {
        door.set_state(id, PowerState::ShutOff);
    })
});
contract!(an_instance_is_defined_once_and_never_over_another, |door, _id| async {
    let new = additions::new_instance("new", "job/1/1");
    additions::an_instance_is_defined_once_and_never_over_another(&door, &new).await;
});

#[tokio::test(start_paused = true)]
async fn a_guest_is_frozen_and_thawed() {
    let (door, id) = instance(FakeAgent::Answering);
    contract::a_guest_is_frozen_and_thawed(&door, id).await;
    assert!(door.is_clean() && door.guest_can_write(id));
}

#[tokio::test(start_paused = true)]
async fn a_freeze_that_timed_out_freezes_later_all_the_same() {
    let (door, id) = instance(FakeAgent::Answering);
    door.late_freeze(id, AGENT + Duration::from_secs(5));
    assert_eq!(door.freeze(id, AGENT).await.unwrap_err().code, Code::AgentSilent);
    assert!(door.guest_can_write(id), "not frozen yet");
    assert!(!door.is_clean(), "but it is going to be");
    assert!(door.thaw(id, Duration::from_secs(1)).await.is_err(), "the agent is busy with the freeze");
    assert_eq!(door.thaw(id, AGENT).await.unwrap(), 2, "the thaw came after the freeze");
    assert!(door.is_clean());
}

#[tokio::test(start_paused = true)]
async fn a_silent_agent_freezes_when_it_wakes_up() {
    let (door, id) = instance(FakeAgent::Silent);
    assert_eq!(door.freeze(id, AGENT).await.unwrap_err().code, Code::AgentSilent);
    door.set_agent(id, FakeAgent::Answering);
    assert!(door.frozen(id) && !door.guest_can_write(id));
    door.thaw(id, AGENT).await.unwrap();
    assert!(door.is_clean());
}

#[tokio::test(start_paused = true)]
async fn calls_fail_and_hang_as_told() {
    let (door, id) = instance(FakeAgent::Answering);
    door.fail("state", 2, Failure::new(Code::HypervisorUnavailable, "libvirt is gone"));
    for _ in 0..2 {
        assert_eq!(door.state(id).await.unwrap_err().code, Code::HypervisorUnavailable);
    }
    door.state(id).await.unwrap();

    door.hang("abort_job");
    let ours = contract::ours(Path::new(FOLDER));
    assert_eq!(door.abort_job(id, &ours).await.unwrap_err().code, Code::HypervisorTimedOut);
    assert_eq!(
        door.stuck_calls().iter().map(|stuck| (stuck.call, stuck.instance)).collect::<Vec<_>>(),
        [("abort_job", Some(id))]
    );
    door.let_go("abort_job");
    assert!(door.stuck_calls().is_empty());
    door.abort_job(id, &ours).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_takes_effect_when_it_comes_back() {
    let (door, id) = instance(FakeAgent::Answering);
    door.hang("freeze");
    assert_eq!(door.freeze(id, AGENT).await.unwrap_err().code, Code::HypervisorTimedOut);
    door.hang("begin_pull");
    let backup = contract::pull(Path::new(FOLDER), &["vda"], None);
    assert_eq!(door.begin_pull(id, &backup).await.unwrap_err().code, Code::HypervisorTimedOut);
    assert!(door.is_clean(), "nothing has happened yet");
    door.let_go("freeze");
    door.let_go("begin_pull");
    assert!(door.frozen(id) && door.job(id) == Some(contract::ours(Path::new(FOLDER))), "{:?}", door.leftovers());
}
