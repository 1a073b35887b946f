//! What an attempt could not take back, and what it had to say: in its events, in heartbeats, and after a restart.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use longshore::failure::{Code, Failure, LogicalName, Remains};
use longshore::host::hypervisor::fake::FakeInstance;
use longshore::host::remains;
use longshore::journal::{ForgetError, JournalLook, forget_left_over};
use longshore::message::JobMessage;
use longshore::message::event::{Heartbeat, HostDetail, LeftOver, RunDetail};
use longshore::message::job::{DeletePart, RestorePart};

use crate::fleet::{Fleet, SHARE, key};

/// A process that is there until it is killed.
struct Stuck(Child);

impl Stuck {
    fn new() -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // Ended already, where the test went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The newest heartbeat.
fn heartbeat(fleet: &Fleet) -> Option<Heartbeat> {
    fleet.events.of_host().into_iter().rev().find_map(|detail| match detail {
        HostDetail::Heartbeat(heartbeat) => Some(heartbeat),
        _ => None,
    })
}

async fn left(fleet: &Fleet, count: usize) -> Vec<LeftOver> {
    let what = format!("a heartbeat with {count} left-overs");
    let left = |fleet: &Fleet| heartbeat(fleet).map(|beat| beat.left_overs).filter(|left| left.len() == count);
    fleet.until(&what, left).await
}

#[tokio::test]
async fn a_process_that_cannot_be_ended_is_named_by_each_worker_until_it_has_ended() {
    let mut fleet = Fleet::with(&["web"]).await;
    let mut stuck = Stuck::new();
    let directory = fleet.run_dir().join("mover");
    std::fs::create_dir(&directory).unwrap();
    let remains = remains::of_process(stuck.0.id(), vec![directory.clone()]);
    let failure = Failure::new(Code::MoverUnresponsive, "it did not die").leaving(remains);
    fleet.movers.fail("stop", 1, failure);
    let job = fleet.job("web");
    fleet.publish(&job).await;
    let RunDetail::Completed(completed) = fleet.end_of(key(&job)).await else { panic!("it did not complete") };
    let told = left(&fleet, 1).await;
    assert_eq!(told, completed.left_overs);
    assert!(told[0].what.contains(&stuck.0.id().to_string()) && told[0].what.contains("mover"), "{told:?}");
    assert_eq!(told[0].job_id, Some(key(&job).job_id));
    // A later backup that completes has nothing to do with it.
    let next = fleet.publish(&fleet.job("web")).await;
    fleet.completed(next).await;
    fleet.stop().await;
    let before = fleet.events.of_host().len();
    fleet.start().await;
    fleet.until("its first heartbeats", |fleet| (fleet.events.of_host().len() > before + 5).then_some(())).await;
    assert_eq!(left(&fleet, 1).await, told);
    assert!(directory.exists());
    stuck.end();
    left(&fleet, 0).await;
    assert!(!directory.exists(), "it goes with its process");
    fleet.stop().await;
    assert_eq!(fleet.journal().await.left_overs().await.unwrap(), []);
    fleet.finish().await;
}

/// Of what is on the share the host cannot see whether it is gone. The next backup takes the lease over and sweeps.
#[tokio::test]
async fn what_cannot_be_looked_at_is_named_until_a_later_backup_has_completed() {
    let fleet = Fleet::with(&["web", "db"]).await;
    fleet.movers.fail("release", 3, Failure::new(Code::RepositoryReadOnly, "the lease's file cannot be written"));
    let first = fleet.publish(&fleet.job("web")).await;
    let RunDetail::Completed(completed) = fleet.end_of(first).await else { panic!("it did not complete") };
    let told = left(&fleet, 1).await;
    assert_eq!(told, completed.left_overs);
    assert!(told[0].what.contains("`lease`") && told[0].what.contains("`web`"), "{told:?}");
    let other = fleet.publish(&fleet.job("db")).await;
    fleet.completed(other).await;
    assert_eq!(left(&fleet, 1).await, told);
    let again = fleet.publish(&fleet.job("web")).await;
    fleet.completed(again).await;
    left(&fleet, 0).await;
    fleet.finish().await;
}

/// The disks of its group may come back; if it was removed, nobody could tell.
#[tokio::test]
async fn a_logical_volume_whose_group_is_not_seen_is_named_until_a_later_backup_has_completed() {
    let fleet = Fleet::with(&["web"]).await;
    let name = LogicalName { group: "longshore-no-such-group".to_owned(), name: "web.new".to_owned() };
    let remains = Remains::Volumes { files: Vec::new(), logical: vec![name] };
    fleet.movers.fail("stop", 1, Failure::new(Code::VolumeIo, "it could not be removed").leaving(remains));
    let first = fleet.publish(&fleet.job("web")).await;
    let RunDetail::Completed(completed) = fleet.end_of(first).await else { panic!("it did not complete") };
    let told = left(&fleet, 1).await;
    assert_eq!(told, completed.left_overs);
    assert!(told[0].what.contains("`/dev/longshore-no-such-group/web.new`"), "{told:?}");
    // Each heartbeat looks before it tells, and finds nothing.
    let before = fleet.events.of_host().len();
    fleet.until("more heartbeats", |fleet| (fleet.events.of_host().len() > before + 5).then_some(())).await;
    assert_eq!(left(&fleet, 1).await, told);
    // A later job of another kind has nothing to do with it.
    let backup_id = fleet.movers.published(SHARE)[0].backup_id.to_string();
    let delete = Some(DeletePart { backup_id, mode: None, dry_run: true });
    let job = JobMessage { kind: "backup-delete".to_owned(), backup: None, delete, ..fleet.job("web") };
    let looked = fleet.publish(&job).await;
    fleet.completed(looked).await;
    let before = fleet.events.of_host().len();
    fleet.until("more heartbeats", |fleet| (fleet.events.of_host().len() > before + 5).then_some(())).await;
    assert_eq!(left(&fleet, 1).await, told);
    let again = fleet.publish(&fleet.job("web")).await;
    fleet.completed(again).await;
    left(&fleet, 0).await;
    fleet.finish().await;
}

/// The mover is gone when its share is to be closed, which the attempt can only warn of.
#[tokio::test]
async fn what_a_failed_attempt_has_to_say_is_told_and_what_it_left_as_well() {
    let fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    job.retry.as_mut().unwrap().attempts = Some(2);
    let mut stuck = Stuck::new();
    for _ in 1..=2 {
        fleet.movers.fail("copy", 1, Failure::new(Code::Stalled, "no byte moved"));
        fleet.movers.fail("close", 1, Failure::new(Code::MoverDied, "the mover ended early"));
        let remains = remains::of_process(stuck.0.id(), Vec::new());
        fleet.movers.fail("stop", 1, Failure::new(Code::MoverUnresponsive, "it did not die").leaving(remains));
    }
    let key = fleet.publish(&job).await;
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    assert!(retrying.warnings.iter().any(|warning| warning.contains("the mover ended early")), "{retrying:?}");
    assert_eq!(retrying.left_overs.len(), 1, "{retrying:?}");
    let RunDetail::Failed(failed) = fleet.end_of(key).await else { panic!("it did not fail") };
    assert!(failed.warnings.iter().any(|warning| warning.contains("the mover ended early")), "{failed:?}");
    assert_eq!(failed.left_overs.len(), 1, "{failed:?}");
    left(&fleet, 2).await;
    stuck.end();
    left(&fleet, 0).await;
    fleet.finish().await;
}

/// An instance with a disk on RBD, and the job that puts it back to its backup.
async fn restore_of_an_image(fleet: &Fleet) -> JobMessage {
    let source = r#"{"network":{"protocol":"rbd","name":"volumes/store","format":"raw"}}"#;
    let instance = FakeInstance::shut_off("store").disk_at("vda", 1 << 30, serde_json::from_str(source).unwrap());
    fleet.hypervisor.add(instance);
    fleet.movers.add_volume(Path::new("volumes/store"));
    let backup = fleet.publish(&fleet.job("store")).await;
    let RunDetail::Completed(completed) = fleet.end_of(backup).await else { panic!("it did not complete") };
    let backup_id = completed.backup.unwrap().backup_id.to_string();
    let restore = Some(RestorePart { backup_id, ..RestorePart::default() });
    JobMessage { kind: "restore".to_owned(), backup: None, restore, ..fleet.job("store") }
}

/// Time for at least two looks at what only a mover can see.
async fn looks_pass(fleet: &Fleet) {
    let before = fleet.events.of_host().len();
    fleet.until("more heartbeats", |fleet| (fleet.events.of_host().len() > before + 60).then_some(())).await;
}

/// The names of the left-overs that the journal has, beside its worker.
async fn names(fleet: &Fleet) -> Vec<String> {
    let mut journal = JournalLook::open(&fleet.journal_dir()).await.unwrap();
    journal.left_overs().await.unwrap().into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn an_image_that_is_left_on_a_cluster_is_named_until_it_is_gone_and_holds_up_no_job_and_no_stop() {
    let mut fleet = Fleet::with(&["web"]).await;
    let job = restore_of_an_image(&fleet).await;
    fleet.movers.fail("remove_previous", 3, Failure::new(Code::VolumeIo, "it was cut off"));
    fleet.movers.hang("look_at_images");
    let job = fleet.publish(&job).await;
    let RunDetail::Completed(completed) = fleet.end_of(job).await else { panic!("it did not complete") };
    let told = left(&fleet, 1).await;
    assert_eq!(told, completed.left_overs);
    assert!(told[0].what.contains("RBD image `volumes/store.longshore-"), "{told:?}");
    assert!(told[0].reason.contains("`rbd rm volumes/store.longshore-"), "{told:?}");
    fleet.until("it is looked at", |fleet| fleet.movers.is_hanging("look_at_images").then_some(())).await;
    for instance in ["web", "store"] {
        let next = fleet.publish(&fleet.job(instance)).await;
        fleet.completed(next).await;
    }
    assert_eq!(left(&fleet, 1).await, told, "a later backup has nothing to do with it");
    fleet.stop().await;
    assert_eq!(fleet.movers.running(), Vec::<String>::new());

    fleet.movers.unhang("look_at_images");
    fleet.start().await;
    looks_pass(&fleet).await;
    assert_eq!(left(&fleet, 1).await, told);
    let standing = fleet.movers.volumes();
    let [volume, image] = &standing[..] else { panic!("nothing was removed: {standing:?}") };
    assert_eq!(volume, Path::new("volumes/store"));
    fleet.movers.rename_volume(image, Path::new("volumes/kept"));
    left(&fleet, 0).await;
    fleet.stop().await;
    assert_eq!(fleet.journal().await.left_overs().await.unwrap(), []);
    fleet.finish().await;
}

/// Its cluster does not answer any more, and the mover that looks cannot be ended.
#[tokio::test]
async fn what_nobody_can_look_at_is_named_until_a_person_has_it_forgotten() {
    let mut fleet = Fleet::with(&[]).await;
    let job = restore_of_an_image(&fleet).await;
    fleet.movers.fail("remove_previous", 3, Failure::new(Code::VolumeIo, "it was cut off"));
    fleet.movers.fail("look_at_images", u32::MAX, Failure::new(Code::VolumeIo, "the cluster does not answer"));
    let job = fleet.publish(&job).await;
    fleet.completed(job).await;
    let told = left(&fleet, 1).await;
    let mut stuck = Stuck::new();
    let remains = remains::of_process(stuck.0.id(), Vec::new());
    fleet.movers.fail("stop", 1, Failure::new(Code::MoverUnresponsive, "it did not die").leaving(remains));
    let both = left(&fleet, 2).await;
    assert!(both.contains(&told[0]), "{both:?}");
    assert!(both.iter().any(|left| left.what.contains(&stuck.0.id().to_string())), "{both:?}");
    stuck.end();
    assert_eq!(left(&fleet, 1).await, told);
    fleet.crash().await;
    fleet.start().await;
    looks_pass(&fleet).await;
    assert_eq!(left(&fleet, 1).await, told);

    let (dir, all) = (fleet.journal_dir(), names(&fleet).await);
    let [name] = &all[..] else { panic!("{all:?}") };
    let other = forget_left_over(&dir, "another", "it is gone").await;
    assert!(matches!(other, Err(ForgetError::None)), "{other:?}");
    forget_left_over(&dir, name, "the cluster is gone").await.unwrap();
    left(&fleet, 0).await;
    fleet.stop().await;
    assert_eq!(names(&fleet).await, Vec::<String>::new());
    fleet.finish().await;
}

/// As after the return to an earlier version.
const OF_A_LATER_VERSION: &str =
    r#"INSERT INTO left_overs VALUES ('another', '{"name":"another","remains":{"new":1}}')"#;

#[tokio::test]
async fn what_cannot_be_read_is_kept_until_a_person_has_it_forgotten_while_the_worker_is_down() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.fail("release", 3, Failure::new(Code::RepositoryReadOnly, "the lease's file cannot be written"));
    let job = fleet.publish(&fleet.job("web")).await;
    fleet.completed(job).await;
    left(&fleet, 1).await;
    fleet.in_journal(OF_A_LATER_VERSION).await;
    fleet.stop().await;
    fleet.start().await;
    looks_pass(&fleet).await;
    left(&fleet, 1).await;
    let all = names(&fleet).await;
    assert!(all.len() == 2 && all.contains(&"another".to_owned()), "{all:?}");
    fleet.stop().await;
    for name in &all {
        forget_left_over(&fleet.journal_dir(), name, "it is known to be gone").await.unwrap();
    }
    fleet.start().await;
    left(&fleet, 0).await;
    fleet.stop().await;
    assert_eq!(names(&fleet).await, Vec::<String>::new());
    fleet.finish().await;
}
