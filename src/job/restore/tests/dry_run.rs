//! What becomes of a dry run that is cut off, or stopped: nothing was asked for that anybody would have to wait for.

use super::*;
use crate::saga::Stopper;

async fn world() -> World {
    let mut world = World::new().await;
    world.spec().dry_run = true;
    world
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_unwinds_and_recovers() {
    let case = InPlace::of(true).await;
    harness::completes(&case).await;
    harness::unwinds_from_every_step(&case).await;
    harness::every_step_may_run_twice(&case).await;
    harness::stopped_after_every_record_it_recovers(&case).await;
}

/// The worker that comes after a crash has no mover.
#[tokio::test(start_paused = true)]
async fn a_dry_run_that_is_cut_off_before_it_is_told_says_the_same() {
    let world = world().await;
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    let plan = world.plan().await;
    let told = run(&world.doors(), &world.settings, &world.attempt, plan.clone(), hooks, &Stop::never()).await;
    assert!(matches!(told.end, End::Completed { .. }), "{told:?}");
    let committing = log.records().iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
    let records = &log.records()[..=committing];
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    assert_eq!(unwind(&world.doors(), &world.settings, &world.attempt, plan, records, hooks).await, told);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_hears_a_stop() {
    let world = world().await;
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    world.movers.hang("weigh");
    let (stopper, stop) = Stopper::new();
    let (doors, plan) = (world.doors(), world.plan().await);
    let running = run(&doors, &world.settings, &world.attempt, plan, hooks, &stop);
    let somebody = async {
        while !world.movers.is_hanging("weigh") {
            sleep(Duration::from_millis(100)).await;
        }
        stopper.stop(Failure::new(Code::Cancelled, "not wanted any more"));
    };
    let (outcome, ()) = tokio::join!(running, somebody);
    assert!(matches!(&outcome.end, End::Stopped { failure } if failure.code == Code::Cancelled), "{outcome:?}");
    assert_eq!(world.wrong(&FakeVolume::Old), Vec::<String>::new());
}
