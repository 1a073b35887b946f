//! A host that is paused begins nothing, remembers it, and goes on when it is told to or when its time has come.

use jiff::{SignedDuration, Timestamp};
use longshore::broker::topology::jobs_queue;
use longshore::failure::{Code, Failure};
use longshore::message::event::{HostDetail, Paused, Resumed};
use longshore::message::{Control, Pause, Resume};

use crate::fleet::Fleet;

fn pause() -> Control {
    Control::Pause(Pause { requested_by: Some("night shift".into()), reason: Some("new disks".into()), until: None })
}

fn resume() -> Control {
    Control::Resume(Resume { requested_by: None, reason: Some("disks are in".into()) })
}

/// What the heartbeats say, the latest first.
fn beats(fleet: &Fleet) -> Vec<Option<Paused>> {
    let beats = fleet.events.of_host().into_iter().rev().filter_map(|detail| match detail {
        HostDetail::Heartbeat(heartbeat) => Some(heartbeat.paused),
        _ => None,
    });
    beats.collect()
}

async fn until_paused(fleet: &Fleet) -> Paused {
    fleet.until("a heartbeat that says so", |fleet| beats(fleet).into_iter().next().flatten()).await
}

/// Long enough for a job to begin that may.
async fn some_beats(fleet: &Fleet) {
    let before = beats(fleet).len();
    fleet.until("some heartbeats", |fleet| (beats(fleet).len() > before + 3).then_some(())).await;
}

fn resumed(fleet: &Fleet) -> Option<Resumed> {
    fleet.events.of_host().into_iter().find_map(|detail| match detail {
        HostDetail::Resumed(resumed) => Some(resumed),
        _ => None,
    })
}

#[tokio::test]
async fn what_runs_goes_on_and_what_comes_stays_in_its_queue_until_the_host_goes_on() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    fleet.movers.hang("copy");
    fleet.start().await;
    let running = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    fleet.command(&pause()).await;
    let paused = until_paused(&fleet).await;
    assert_eq!((paused.user.as_str(), paused.requested_by.as_deref()), ("ops", Some("night shift")));
    assert_eq!((paused.reason.as_deref(), paused.until), (Some("new disks"), None));
    let told = fleet.events.of_host().into_iter().find(|detail| matches!(detail, HostDetail::Paused(_)));
    assert_eq!(told, Some(HostDetail::Paused(paused.clone())));
    fleet.movers.unhang("copy");
    fleet.completed(running).await;
    let [normal, urgent] = [fleet.publish(&fleet.job("db")).await, fleet.publish_urgent(&fleet.job("web")).await];
    some_beats(&fleet).await;
    for key in [normal, urgent] {
        assert_eq!(fleet.events.story(key), []);
    }
    assert_eq!(fleet.server.depth(&jobs_queue(&fleet.host)).map(|depth| depth.ready), Some(1));
    fleet.command(&resume()).await;
    fleet.completed(normal).await;
    fleet.completed(urgent).await;
    let resumed = fleet.until("`worker.resumed`", resumed).await;
    assert_eq!((resumed.user.as_deref(), resumed.paused_since), (Some("ops"), paused.since));
    assert_eq!(resumed.reason.as_deref(), Some("disks are in"));
    fleet.until("a heartbeat that says so", |fleet| beats(fleet).first()?.is_none().then_some(())).await;
    fleet.finish().await;
}

#[tokio::test]
async fn it_holds_through_a_crash_and_for_retries_that_are_due() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("open");
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.until("the share is opened", |fleet| fleet.movers.is_hanging("open").then_some(())).await;
    fleet.command(&pause()).await;
    let paused = until_paused(&fleet).await;
    fleet.movers.fail("open", 1, Failure::new(Code::MountTimedOut, "no answer"));
    fleet.movers.unhang("open");
    fleet.told(key, 1, "retrying").await;
    some_beats(&fleet).await;
    fleet.crash().await;
    let before = beats(&fleet).len();
    fleet.start().await;
    fleet.until("the next worker's heartbeats", |fleet| (beats(fleet).len() > before + 3).then_some(())).await;
    assert_eq!(until_paused(&fleet).await, paused, "the same as before, its beginning included");
    assert_eq!(fleet.events.story(key).last(), Some(&(1, "retrying")), "the retry is due and waits");
    fleet.command(&resume()).await;
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn it_ends_by_itself_when_its_time_has_come_also_while_no_worker_was_there() {
    let mut fleet = Fleet::with(&["web"]).await;
    let until = Timestamp::now() + SignedDuration::from_millis(1500);
    fleet.command(&Control::Pause(Pause { until: Some(until), ..Pause::default() })).await;
    let paused = until_paused(&fleet).await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    assert!(Timestamp::now() >= until, "it has begun too early");
    let told = fleet.until("`worker.resumed`", resumed).await;
    assert_eq!((told.user, told.paused_since), (None, paused.since));

    let until = Timestamp::now() + SignedDuration::from_millis(500);
    fleet.command(&Control::Pause(Pause { until: Some(until), ..Pause::default() })).await;
    fleet.until("it is read", |fleet| fleet.control_is_read().then_some(())).await;
    fleet.crash().await;
    fleet.until("its time has come", |_| (Timestamp::now() > until).then_some(())).await;
    fleet.start().await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.finish().await;
}

#[tokio::test]
async fn of_many_wishes_the_last_one_counts() {
    let mut fleet = Fleet::with(&["web"]).await;
    for _ in 0..25 {
        fleet.command(&pause()).await;
        fleet.command(&resume()).await;
    }
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    for _ in 0..25 {
        fleet.command(&resume()).await;
        fleet.command(&pause()).await;
    }
    fleet.until("all are read", |fleet| fleet.control_is_read().then_some(())).await;
    until_paused(&fleet).await;
    fleet.crash().await;
    let journal = fleet.journal().await;
    assert!(journal.pause().await.unwrap().is_some());
    journal.close().await;
    fleet.start().await;
    fleet.command(&resume()).await;
    fleet.until("`worker.resumed` of the next worker", |fleet| beats(fleet).first()?.is_none().then_some(())).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_pause_that_cannot_be_read_holds_and_one_of_a_stranger_does_not() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.command_as("stranger", &pause()).await;
    fleet.until("it is read", |fleet| fleet.control_is_read().then_some(())).await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.command(&pause()).await;
    until_paused(&fleet).await;
    fleet.crash().await;
    fleet.in_journal("UPDATE kept SET value = '{\"since\": 7}' WHERE run_id = 0").await;
    fleet.start().await;
    let paused = |fleet: &Fleet| beats(fleet).into_iter().next().flatten().filter(|paused| paused.user == "unknown");
    let reason = fleet.until("it holds", paused).await.reason.unwrap();
    assert!(reason.contains("cannot be read"), "{reason}");
    fleet.command(&resume()).await;
    let key = fleet.publish(&fleet.job("web")).await;
    fleet.completed(key).await;
    fleet.finish().await;
}
