//! What becomes of a dry run that is cut off, or stopped.

use tokio::time::sleep;

use super::super::run;
use super::*;
use crate::saga::Stopper;

#[tokio::test(start_paused = true)]
async fn a_dry_run_elsewhere_unwinds_and_recovers() {
    for to in [To::NewInstance, To::Attached, To::File] {
        let case = Elsewhere::of(to, true).await;
        harness::completes(&case).await;
        harness::unwinds_from_every_step(&case).await;
        harness::every_step_may_run_twice(&case).await;
        harness::stopped_after_every_record_it_recovers(&case).await;
    }
}

/// The worker that comes after a crash has no mover, and a new instance has the uuid that was drawn for it.
#[tokio::test(start_paused = true)]
async fn a_dry_run_elsewhere_that_is_cut_off_before_it_is_told_says_the_same() {
    for to in [To::NewInstance, To::Attached, To::File] {
        let mut world = World::new(to).await;
        world.spec().dry_run = true;
        let (progress, _) = watch::channel(JobProgress::default());
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        let plan = world.prepare().await.unwrap();
        let told = run(&world.doors(), &world.settings, &world.attempt, plan.clone(), hooks, &Stop::never()).await;
        assert!(matches!(told.end, End::Completed { .. }), "{told:?}");
        let committing = log.records().iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
        let records = &log.records()[..=committing];
        let log = MemoryLog::default();
        let hooks = Hooks { log: &log, progress: &progress };
        assert_eq!(unwind(&world.doors(), &world.settings, &world.attempt, plan, records, hooks).await, told);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_elsewhere_hears_a_stop() {
    let mut world = World::new(To::NewInstance).await;
    world.spec().dry_run = true;
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    world.movers.hang("weigh");
    let (stopper, stop) = Stopper::new();
    let (doors, plan) = (world.doors(), world.prepare().await.unwrap());
    let running = run(&doors, &world.settings, &world.attempt, plan, hooks, &stop);
    let somebody = async {
        while !world.movers.is_hanging("weigh") {
            sleep(Duration::from_millis(100)).await;
        }
        stopper.stop(Failure::new(Code::Cancelled, "not wanted any more"));
    };
    let (outcome, ()) = tokio::join!(running, somebody);
    assert!(matches!(&outcome.end, End::Stopped { failure } if failure.code == Code::Cancelled), "{outcome:?}");
    assert_eq!(world.wrong(false).await, Vec::<String>::new());
}

/// What is refused before the backup was read is refused in the same words where nothing would be made.
#[tokio::test(start_paused = true)]
async fn a_dry_run_elsewhere_refuses_what_the_restore_would_refuse() {
    async fn both(mut world: World, code: Code) {
        let mut refused = Vec::new();
        for dry_run in [false, true] {
            world.spec().dry_run = dry_run;
            let failure = match world.prepare().await {
                Err(failure) => failure,
                Ok(_) => world.refused().await,
            };
            refused.push((failure.code, failure.text, failure.causes));
        }
        assert_eq!(refused[0].0, code);
        assert_eq!(refused[0], refused[1]);
    }
    let of = |to, change: fn(&mut World)| async move {
        let mut world = World::new(to).await;
        change(&mut world);
        world
    };
    both(of(To::NewInstance, |world| world.new_instance().name = "other".parse().unwrap()).await, Code::InstanceExists)
        .await;
    both(of(To::NewInstance, |world| world.new_instance().directory = Some("/etc".into())).await, Code::PathNotAllowed)
        .await;
    both(of(To::NewInstance, |world| world.spec().disks = vec!["vdz".parse().unwrap()]).await, Code::DiskNotFound)
        .await;
    both(of(To::File, |world| world.spec().disks.clear()).await, Code::DiskAmbiguous).await;
    both(of(To::File, |world| world.spec().backup_id = BackupId::draw()).await, Code::BackupNotFound).await;
    let in_use = |world: &mut World| {
        let Some(attach) = &mut world.volume().attach else { unreachable!() };
        attach.target = "vda".parse().unwrap();
    };
    both(of(To::Attached, in_use).await, Code::DiskTargetInUse).await;
}
