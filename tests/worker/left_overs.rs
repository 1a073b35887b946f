//! What an attempt could not take back, and what it had to say: in its events, in heartbeats, and after a restart.

use std::process::{Child, Command, Stdio};

use longshore::failure::{Code, Failure, LogicalName, Remains};
use longshore::host::remains;
use longshore::message::JobMessage;
use longshore::message::event::{Heartbeat, HostDetail, LeftOver, RunDetail};
use longshore::message::job::DeletePart;

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
