//! The engine against a toy world, and the harness against sagas that do and don't stand it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod random;

use std::sync::atomic::{AtomicUsize, Ordering};

use super::harness::{self, MemoryLog};
use super::record::Progress;
use super::toy::{Quirk, Tree, World, backup, committed, held, made, made_in};
use super::{End, LeftOver, Outcome, Record, SagaLog, Stop, recover, run};
use crate::failure::{Code, Failure};

async fn run_with(quirks: impl IntoIterator<Item = (&'static str, Quirk)>) -> (World, Vec<Record>, Outcome) {
    let (mut world, stop) = World::with(quirks);
    let log = MemoryLog::default();
    let outcome = run(&backup(), &mut world, &log, &stop).await;
    let records = log.records();
    Progress::fold(&records).expect("the engine writes a legal log");
    (world, records, outcome)
}

fn failed_with(outcome: &Outcome) -> (Code, &str) {
    match &outcome.end {
        End::Failed { failure } => (failure.code, failure.step.as_deref().unwrap_or_default()),
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_undisturbed_saga_completes_and_holds_nothing() {
    let (world, _, outcome) = run_with([]).await;
    assert_eq!(
        outcome,
        Outcome { end: End::Completed { value: "publish".into() }, warnings: vec![], left_over: vec![] }
    );
    let there: Vec<_> = world.there.iter().map(String::as_str).collect();
    assert_eq!(there, ["begin", "copy", "forget-previous", "publish", "staging"]);
}

#[tokio::test(start_paused = true)]
async fn a_held_thing_is_released_as_soon_as_what_is_inside_is_done() {
    let (world, ..) = run_with([]).await;
    let at = |what: &str| world.history.iter().position(|entry| entry == what).unwrap();
    assert!(at("do begin") < at("back freeze") && at("back freeze") < at("do copy"), "{:?}", world.history);
}

#[tokio::test(start_paused = true)]
async fn a_failure_unwinds_in_reverse_beginning_with_the_step_that_failed() {
    let (world, _, outcome) = run_with([("copy", Quirk::Fails(9, Code::Stalled))]).await;
    assert_eq!(failed_with(&outcome), (Code::Stalled, "copy"));
    let back: Vec<_> = world.history.iter().filter(|entry| entry.starts_with("back")).collect();
    assert_eq!(back, ["back freeze", "back copy", "back begin", "back staging", "back lease", "back mount"]);
    assert!(world.there.is_empty(), "{:?}", world.there);
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_is_tried_again_as_often_as_the_step_says() {
    let (_, _, outcome) = run_with([("staging", Quirk::Fails(2, Code::RepositoryIo))]).await;
    assert!(matches!(outcome.end, End::Completed { .. }), "{outcome:?}");
    let (_, _, outcome) = run_with([("staging", Quirk::Fails(3, Code::RepositoryIo))]).await;
    assert_eq!(failed_with(&outcome), (Code::RepositoryIo, "staging"));
    let (_, _, outcome) = run_with([("staging", Quirk::Fails(1, Code::RepositoryReadOnly))]).await;
    assert_eq!(failed_with(&outcome), (Code::RepositoryReadOnly, "staging"));
}

#[tokio::test(start_paused = true)]
async fn a_step_past_its_deadline_fails_with_its_own_code_and_is_undone() {
    let (world, _, outcome) = run_with([("copy", Quirk::HappensAndHangs)]).await;
    assert_eq!(failed_with(&outcome), (Code::MountTimedOut, "copy"));
    assert!(world.there.is_empty(), "{:?}", world.there);
}

#[tokio::test(start_paused = true)]
async fn a_stop_drops_the_running_effect_and_unwinds_at_once() {
    let begun = tokio::time::Instant::now();
    let (world, _, outcome) = run_with([("copy", Quirk::Stops)]).await;
    assert!(matches!(&outcome.end, End::Stopped { failure } if failure.code == Code::HostDraining), "{outcome:?}");
    assert!(world.there.is_empty(), "{:?}", world.there);
    assert_eq!(begun.elapsed(), std::time::Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn from_the_commit_on_a_stop_is_not_listened_to() {
    let (mut world, stop) = World::with([("publish", Quirk::Fails(0, Code::Internal))]);
    struct StopsAt(&'static str, super::Stopper, MemoryLog);
    #[async_trait::async_trait]
    impl SagaLog for StopsAt {
        async fn record(&self, record: Record) -> Result<(), Failure> {
            if matches!(&record, Record::Committing { step } if step == self.0) {
                self.1.stop(Failure::new(Code::HostDraining, "too late"));
            }
            self.2.record(record).await
        }
    }
    let log = StopsAt("publish", world.stopper.clone().unwrap(), MemoryLog::default());
    let outcome = run(&backup(), &mut world, &log, &stop).await;
    assert!(matches!(outcome.end, End::Completed { .. }), "{outcome:?}");
    assert!(world.there.contains("forget-previous"));
}

/// As after a deadline, but at once and in the commit's own words.
#[tokio::test(start_paused = true)]
async fn a_commit_that_says_that_it_does_not_know_undoes_nothing_and_is_asked_again_after_a_crash() {
    let (world, records, outcome) = run_with([("publish", Quirk::IsNotKnown)]).await;
    assert_eq!(failed_with(&outcome), (Code::RestoreUnfinished, "publish"));
    let asked = |world: &World| world.history.iter().filter(|entry| *entry == "do publish").count();
    assert_eq!(asked(&world), 1);
    let there: Vec<_> = world.there.iter().map(String::as_str).collect();
    assert_eq!(there, ["begin", "copy", "publish", "staging"], "what was made stays, and nothing is held");
    let left: Vec<_> = outcome.left_over.iter().map(|left| left.step.as_str()).collect();
    assert_eq!(left, ["staging", "begin", "copy"], "what may be there is named");

    let cut = records.iter().position(|record| matches!(record, Record::CommitUnknown { .. })).unwrap();
    for records in [&records[..cut], &records[..=cut]] {
        for (quirks, expected) in [(vec![("publish", Quirk::IsNotKnown)], false), (Vec::new(), true)] {
            let (mut world, _) = World::with(quirks);
            let outcome = recover(&backup(), &mut world, records, &MemoryLog::default()).await;
            assert_eq!(asked(&world), 1, "{records:?}");
            match expected {
                true => assert!(matches!(outcome.end, End::Completed { .. }), "{outcome:?}"),
                false => assert_eq!(failed_with(&outcome), (Code::RestoreUnfinished, "publish")),
            }
            let undone = |entry: &String| entry == "back staging" || entry == "back copy" || entry == "back begin";
            assert!(!world.history.iter().any(undone), "{:?}", world.history);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_hold_ends_what_is_inside_and_is_still_released() {
    let (world, _, outcome) = run_with([("copy", Quirk::Loses("lease"))]).await;
    assert_eq!(failed_with(&outcome), (Code::LeaseLost, "lease"));
    assert!(world.there.is_empty(), "{:?}", world.there);
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_was_released_can_no_longer_be_lost() {
    let (_, _, outcome) = run_with([("copy", Quirk::Loses("freeze"))]).await;
    assert_eq!(failed_with(&outcome), (Code::MountTimedOut, "copy"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_undone_before_the_commit_is_named_as_left_over() {
    let (world, _, outcome) =
        run_with([("begin", Quirk::SticksFor(99)), ("copy", Quirk::Fails(9, Code::Stalled))]).await;
    assert_eq!(failed_with(&outcome), (Code::Stalled, "copy"));
    let left: Vec<_> = outcome.left_over.iter().map(|LeftOver { step, .. }| step.as_str()).collect();
    assert_eq!(left, ["begin"]);
    assert_eq!(world.there.iter().collect::<Vec<_>>(), ["begin"]);
}

#[tokio::test(start_paused = true)]
async fn an_undo_is_tried_again_before_it_is_given_up() {
    let (world, _, outcome) =
        run_with([("begin", Quirk::SticksFor(2)), ("copy", Quirk::Fails(9, Code::Stalled))]).await;
    assert_eq!((outcome.left_over, world.there.len()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn a_release_that_fails_before_the_commit_fails_the_saga() {
    let (_, _, outcome) = run_with([("freeze", Quirk::SticksFor(99))]).await;
    assert_eq!(failed_with(&outcome), (Code::MountFailed, "freeze"));
    assert_eq!(outcome.left_over.len(), 1, "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_after_the_commit_is_a_warning_on_a_completed_saga() {
    let (world, _, outcome) =
        run_with([("mount", Quirk::SticksFor(99)), ("forget-previous", Quirk::Fails(9, Code::Stalled))]).await;
    assert!(matches!(outcome.end, End::Completed { .. }), "{outcome:?}");
    let warned: Vec<_> = outcome.warnings.iter().filter_map(|failure| failure.step.as_deref()).collect();
    assert_eq!(warned, ["forget-previous", "mount"]);
    assert_eq!(outcome.left_over.len(), 1, "the mount is still there");
    assert!(!world.there.contains("lease"), "what can be released is");
}

/// Whoever comes after a crash names it too, and does not try again.
#[tokio::test(start_paused = true)]
async fn what_a_step_after_the_commit_could_not_remove_is_left_over() {
    let (_, records, outcome) = run_with([("forget-previous", Quirk::Leaves)]).await;
    assert!(matches!(outcome.end, End::Completed { .. }), "{outcome:?}");
    let left = |outcome: &Outcome| {
        let [LeftOver { step, failure }] = &outcome.left_over[..] else { panic!("{outcome:?}") };
        assert_eq!((step.as_str(), failure.remains.is_some()), ("forget-previous", true));
        assert_eq!(outcome.warnings, std::slice::from_ref(failure));
    };
    left(&outcome);
    let cut = records.iter().position(|record| matches!(record, Record::LeftOver { .. })).unwrap();
    for records in [&records[..=cut], &records[..cut]] {
        let (mut world, _) = World::with([("forget-previous", Quirk::Leaves)]);
        left(&recover(&backup(), &mut world, records, &MemoryLog::default()).await);
        let again = world.history.iter().any(|entry| entry == "do forget-previous");
        assert_eq!(again, records.len() == cut, "{records:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_did_not_happen_unwinds() {
    let (world, _, outcome) = run_with([("publish", Quirk::Fails(9, Code::RepositoryFull))]).await;
    assert_eq!(failed_with(&outcome), (Code::RepositoryFull, "publish"));
    assert!(!world.there.contains("staging"));
}

#[tokio::test(start_paused = true)]
async fn while_nobody_knows_whether_the_commit_happened_nothing_made_is_undone() {
    let (world, records, outcome) = run_with([("publish", Quirk::HappensAndHangs)]).await;
    assert_eq!(failed_with(&outcome), (Code::MountTimedOut, "publish"));
    assert!(world.there.contains("staging") && !world.there.contains("mount"), "{:?}", world.there);
    let left: Vec<_> = outcome.left_over.iter().map(|LeftOver { step, .. }| step.as_str()).collect();
    assert_eq!(left, ["staging", "begin", "copy"]);
    // Later the commit can say that it happened.
    let mut world = World { there: world.there, ..World::default() };
    let outcome = recover(&backup(), &mut world, &records, &MemoryLog::default()).await;
    assert!(matches!(outcome.end, End::Completed { .. }), "{outcome:?}");
    assert!(world.there.contains("forget-previous"));
}

/// Refuses the records from the given one on.
struct FullDisk(AtomicUsize, MemoryLog);

#[async_trait::async_trait]
impl SagaLog for FullDisk {
    async fn record(&self, record: Record) -> Result<(), Failure> {
        if self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(Failure::new(Code::JournalFailed, "no room"));
        }
        self.1.record(record).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_effect_whose_record_is_not_durable_does_not_happen_and_all_is_taken_back() {
    let (mut world, stop) = World::with([]);
    let log = MemoryLog::default();
    run(&backup(), &mut world, &log, &stop).await;
    let commits = log.records().iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
    for room in 0..=log.records().len() {
        let log = FullDisk(AtomicUsize::new(room), MemoryLog::default());
        let (mut world, stop) = World::with([]);
        let outcome = run(&backup(), &mut world, &log, &stop).await;
        let written = log.1.records();
        Progress::fold(&written).expect("what a full disk leaves is a legal log");
        for done in
            world.history.iter().filter_map(|entry| entry.strip_prefix("do ")).filter(|step| *step != "forget-previous")
        {
            let announced = written.iter().any(|record| match record {
                Record::Began { step, .. } | Record::Committing { step } => step == done,
                _ => false,
            });
            assert!(announced, "`{done}` happened with room for {room} records");
        }
        if room <= commits {
            assert_eq!(failed_with(&outcome).0, Code::JournalFailed);
            assert!(world.there.is_empty(), "room for {room}: {:?}", world.there);
        } else {
            assert!(matches!(outcome.end, End::Completed { .. }), "room for {room}: {outcome:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_in_the_form_of_a_backup_stands_the_harness() {
    let case = Tree(backup, vec![]);
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
    harness::every_step_may_run_twice(&case).await;
    harness::stopped_after_every_record_it_recovers(&case).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "staging")]
async fn the_harness_finds_an_undo_that_forgets() {
    harness::unwinds_from_every_step(&Tree(backup, vec![("staging", Quirk::Forgets)])).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "lease")]
async fn the_harness_finds_a_release_that_works_only_once() {
    harness::every_step_may_run_twice(&Tree(backup, vec![("lease", Quirk::GoesBackOnce)])).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "begin")]
async fn the_harness_finds_an_undo_that_needs_what_a_crash_took() {
    harness::stopped_after_every_record_it_recovers(&Tree(backup, vec![("begin", Quirk::NeedsItsValue)])).await;
}

#[tokio::test]
async fn a_saga_with_a_name_twice_or_two_commits_is_refused_before_anything_happens() {
    let sagas =
        [vec![made("a"), made("a")], vec![committed("a"), committed("b")], vec![committed("a"), held("b", vec![])]];
    for steps in sagas {
        let mut world = World::default();
        let outcome = run(&steps, &mut world, &MemoryLog::default(), &Stop::never()).await;
        assert_eq!(failed_with(&outcome).0, Code::Internal);
        assert!(world.history.is_empty());
    }
}

#[tokio::test]
async fn records_that_cannot_be_touch_nothing() {
    let mut world = World::default();
    let records = [Record::Undone { step: "staging".into() }];
    let outcome = recover(&backup(), &mut world, &records, &MemoryLog::default()).await;
    assert_eq!(failed_with(&outcome).0, Code::Internal);
    assert!(world.history.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_saga_without_a_commit_completes_too() {
    let case = Tree(|| vec![held("mount", vec![made_in("look", 2)])], vec![]);
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
    harness::stopped_after_every_record_it_recovers(&case).await;
}

#[test]
fn a_running_saga_can_be_spawned() {
    fn is_send(_: &impl Send) {}
    let (mut world, stop) = World::with([]);
    let (steps, log) = (backup(), MemoryLog::default());
    is_send(&run(&steps, &mut world, &log, &stop));
}
