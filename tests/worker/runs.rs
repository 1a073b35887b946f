//! What a publisher and a reader of events see of runs that go well, and of those that are asked for again.

use jiff::Timestamp;
use longshore::failure::{Code, Failure};
use longshore::message::envelope::{CLOUD_EVENTS_PREFIX, TRACEPARENT};
use longshore::message::event::{HostDetail, RunDetail};
use longshore::message::{Encoding, Event, encode_job};
use longshore::model::job::RunKey;

use crate::fleet::{Fleet, SHARE, encoded, key};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn a_job_is_told_from_its_acceptance_to_its_one_end() {
    let fleet = Fleet::with(&["web"]).await;
    let key = fleet.publish(&fleet.job("web")).await;
    let RunDetail::Completed(completed) = fleet.end_of(key).await else { panic!() };
    let backup = completed.backup.unwrap();
    let manifests = fleet.movers.published(SHARE);
    assert_eq!(manifests.iter().map(|manifest| manifest.backup_id).collect::<Vec<_>>(), [backup.backup_id]);
    assert!(backup.directory.ends_with(&backup.backup_id.to_string()) && completed.left_overs.is_empty());
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "completed")]);
    let events = fleet.events.of_run(key);
    let places: Vec<_> = events.iter().map(|event| (event.attempt, event.sequence)).collect();
    assert!(places.is_sorted() && places.starts_with(&[(0, 1), (1, 1)]), "told in order: {places:?}");
    let mut progress = events.iter().filter_map(|event| match &event.detail {
        RunDetail::Progress(progress) => Some(progress),
        _ => None,
    });
    let last = progress.next_back().expect("progress is told, the last one always");
    assert!(last.total_bytes > 0 && last.done_bytes == last.total_bytes, "{last:?}");
    assert!(events.iter().all(|event| event.labels["ticket"] == "4711" && event.host == fleet.host));
    assert_eq!(fleet.letters(), []);
    fleet.finish().await;
}

#[tokio::test]
async fn events_follow_the_encoding_and_the_trace_of_the_job() {
    let fleet = Fleet::with(&["web"]).await;
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let job = fleet.job("web");
        let mut message = encode_job(&job, encoding, Timestamp::now()).unwrap();
        message.properties.headers.insert(TRACEPARENT.to_owned(), TRACE.to_owned());
        fleet.publish_raw(message.properties, message.body).await;
        fleet.completed(key(&job)).await;
        let of_run = |event: &Event| matches!(event, Event::Run(event) if event.job_id == key(&job).job_id);
        let mut count = 0;
        for seen in fleet.events.once().into_iter().filter(|seen| of_run(&seen.event)) {
            let properties = seen.properties;
            assert_eq!(properties.content_type, encoding.content_type());
            assert_eq!(properties.headers[TRACEPARENT], TRACE);
            assert_eq!(properties.headers[&format!("{CLOUD_EVENTS_PREFIX}id")], properties.message_id);
            assert_eq!(properties.correlation_id.as_deref(), Some(job.job_id.as_str()));
            assert!(properties.user_id.is_some(), "the broker vouches for who told it");
            count += 1;
        }
        assert!(count >= 3);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_job_delivered_again_is_done_once_and_its_state_announced_again_under_the_same_event_id() {
    let fleet = Fleet::with(&["web"]).await;
    let job = fleet.job("web");
    let message = encoded(&job);
    fleet.publish_raw(message.properties.clone(), message.body.clone()).await;
    fleet.completed(key(&job)).await;
    fleet.publish_raw(message.properties, message.body).await;
    let announced = |fleet: &Fleet| {
        let all = fleet.events.all();
        let ends = all.iter().filter(|seen| seen.routing_key.starts_with("backup.completed"));
        let ids: Vec<_> = ends.map(|seen| seen.properties.message_id.clone()).collect();
        (ids.len() == 2).then_some(ids)
    };
    let ids = fleet.until("the second announcement", announced).await;
    assert_eq!(ids[0], ids[1]);
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    assert_eq!(fleet.letters(), []);
    fleet.finish().await;
}

#[tokio::test]
async fn a_job_delivered_again_while_it_runs_is_not_started_beside_itself() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    let job = fleet.job("web");
    let message = encoded(&job);
    fleet.publish_raw(message.properties.clone(), message.body.clone()).await;
    fleet.until_copying("web").await;
    fleet.publish_raw(message.properties, message.body).await;
    // Taken after it, so the duplicate has been dealt with when this one is refused.
    let lower = fleet.publish(&fleet.job("nobody")).await;
    assert_eq!(fleet.failed(lower).await.code, "instance_not_here");
    fleet.movers.unhang("copy");
    fleet.completed(key(&job)).await;
    assert_eq!(fleet.events.story(key(&job)), [(0, "accepted"), (1, "started"), (1, "completed")]);
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    fleet.finish().await;
}

async fn refusal(fleet: &Fleet, code: &str) -> (RunKey, String) {
    let find = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().find_map(|detail| match detail {
            HostDetail::MessageRefused(refused) if refused.code == code => Some(refused),
            _ => None,
        })
    };
    let refused = fleet.until(&format!("the refusal as {code}"), find).await;
    (RunKey { job_id: refused.job_id.unwrap(), run: refused.run.unwrap() }, refused.message_id)
}

#[tokio::test]
async fn a_known_run_with_another_body_is_refused_and_the_run_goes_on() {
    let fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    let run = fleet.publish(&job).await;
    fleet.completed(run).await;
    job.requested_by = Some("somebody else".to_owned());
    fleet.publish(&job).await;
    let (refused, message_id) = refusal(&fleet, "run_body_differs").await;
    assert_eq!((refused, message_id), (run, job.job_id.clone()));
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(run)).await;
    assert_eq!((letter.failure.code.as_str(), letter.attempts), ("run_body_differs", 0));
    assert_eq!(letter.original.body.bytes().unwrap(), encoded(&job).body);
    assert_eq!(fleet.events.story(run).len(), 3, "the run itself is not told of");
    fleet.finish().await;
}

#[tokio::test]
async fn a_run_lower_than_a_known_one_is_refused() {
    let fleet = Fleet::with(&["web"]).await;
    let mut job = fleet.job("web");
    job.run = 2;
    let second = fleet.publish(&job).await;
    fleet.completed(second).await;
    job.run = 1;
    let first = fleet.publish(&job).await;
    assert_eq!(refusal(&fleet, "run_superseded").await.0, first);
    assert_eq!(fleet.until("the letter", |fleet| fleet.letter_of(first)).await.failure.code, "run_superseded");
    assert_eq!(fleet.events.story(first), []);
    fleet.finish().await;
}

#[tokio::test]
async fn a_failed_run_is_replayed_as_the_next_one() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.fail("open", 1, Failure::new(Code::RepositoryReadOnly, "read-only"));
    let mut job = fleet.job("web");
    let first = fleet.publish(&job).await;
    assert_eq!(fleet.failed(first).await.code, "repository_read_only");
    job.run = 2;
    let second = fleet.publish(&job).await;
    fleet.completed(second).await;
    assert_eq!(fleet.events.story(second), [(0, "accepted"), (1, "started"), (1, "completed")]);
    assert_eq!(fleet.movers.published(SHARE).len(), 1);
    fleet.finish().await;
}
