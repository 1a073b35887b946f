//! What becomes of the new files where a worker is cut off, where libvirt does not answer, and where somebody has come meanwhile.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::super::run;
use super::particular::result;
use super::*;
use crate::host::mover::FakeVolume;
use crate::model::instance::DiskSource;

fn is_committing(record: &Record) -> bool {
    matches!(record, Record::Committing { .. })
}

fn is_naming(record: &Record) -> bool {
    matches!(record, Record::Done { step, .. } if step == GiveNames::NAME)
}

/// Ends a restore that was cut off behind that record, as the next worker does.
async fn recovered(world: &World, plan: &ElsewherePlan, log: &MemoryLog, behind: fn(&Record) -> bool) -> Outcome {
    let records = log.records();
    let cut = records.iter().position(behind).unwrap();
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    unwind(&world.doors(), &world.settings, &world.attempt, plan.clone(), &records[..=cut], hooks).await
}

/// Runs it to its end, or for ten seconds.
async fn begun(world: &World) -> (ElsewherePlan, MemoryLog) {
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    let plan = world.prepare().await.unwrap();
    let (doors, never) = (world.doors(), Stop::never());
    let _ = timeout(Duration::from_secs(10), run(&doors, &world.settings, &world.attempt, plan.clone(), hooks, &never))
        .await;
    (plan, log)
}

/// Runs it, and does something once all is written and before anything has its name.
async fn with_meanwhile(world: &World, meanwhile: impl FnOnce()) -> Outcome {
    world.movers.hang("compare");
    let somebody = async {
        while !world.movers.is_hanging("compare") {
            sleep(Duration::from_millis(100)).await;
        }
        meanwhile();
        world.movers.unhang("compare");
    };
    tokio::join!(world.run(), somebody).0
}

fn failed(outcome: &Outcome) -> &Failure {
    match &outcome.end {
        End::Failed { failure } => failure,
        _ => panic!("{outcome:?}"),
    }
}

fn unfinished(outcome: &Outcome) -> &Failure {
    let failure = failed(outcome);
    assert_eq!(failure.code, Code::RestoreUnfinished, "{outcome:?}");
    assert!(
        outcome.warnings.iter().any(|warning| warning.text.contains(".longshore-")),
        "no file is named: {outcome:?}"
    );
    failure
}

fn at(path: &str) -> DiskSource {
    DiskSource::File { path: path.into(), format: ImageFormat::Qcow2 }
}

async fn new_one(world: &World) -> Option<InstanceId> {
    let instances = world.hypervisor.instances().await.unwrap();
    instances.into_iter().find(|one| one.name.as_str() == "web-2").map(|one| one.id)
}

/// What was chosen is known from the records alone.
#[tokio::test(start_paused = true)]
async fn a_later_worker_finds_what_came_to_be_whoever_has_come_meanwhile() {
    let mut world = World::new(To::NewInstance).await;
    // A MAC address that another instance has by then.
    world.hypervisor.remove(world.web);
    world.new_instance().mac_addresses = MacAddresses::Preserve;
    world.hypervisor.hang("start");
    let (plan, log) = begun(&world).await;
    world.hypervisor.let_go("start");
    world.hypervisor.add(FakeInstance::shut_off("web").with_id(world.web).definition(&definition(world.web)));
    let outcome = recovered(&world, &plan, &log, is_committing).await;
    assert_eq!(result(&outcome).volumes.len(), 2);
    assert_eq!(world.wrong(true).await, Vec::<String>::new());

    let world = World::new(To::Attached).await;
    let (plan, log) = begun(&world).await;
    result(&recovered(&world, &plan, &log, is_committing).await);
    assert_eq!(world.wrong(true).await, Vec::<String>::new());
}

/// It was started, by the worker or somebody else, shut off, and perhaps its volumes are being worked with.
#[tokio::test(start_paused = true)]
async fn an_instance_that_may_have_been_started_is_not_started_again() {
    let begins = |record: &Record| matches!(record, Record::Began { step, .. } if step == "start");
    let committed = |record: &Record| matches!(record, Record::Committed { .. });
    let behind: [fn(&Record) -> bool; 3] = [begins, committed, is_committing];
    for behind in behind {
        let world = World::new(To::NewInstance).await;
        let (plan, log) = begun(&world).await;
        let id = new_one(&world).await.unwrap();
        world.hypervisor.set_state(id, PowerState::ShutOff);
        let outcome = recovered(&world, &plan, &log, behind).await;
        result(&outcome);
        assert_eq!(world.hypervisor.state(id).await.unwrap(), PowerState::ShutOff);
        assert!(outcome.warnings.iter().any(|warning| warning.text.contains("not started again")), "{outcome:?}");
    }
}

/// For a quarter of an hour: each of its refusals is followed by five seconds.
#[tokio::test(start_paused = true)]
async fn a_libvirt_that_is_away_for_a_while_makes_nothing_unfinished() {
    let away = |world: &World, calls: &[&'static str]| {
        let failure = Failure::new(Code::HypervisorUnavailable, "connection refused");
        calls.iter().for_each(|call| world.hypervisor.fail(call, 100, failure.clone()));
    };
    for (to, call) in [(To::NewInstance, "define"), (To::Attached, "attach")] {
        // While it was to be asked.
        let world = World::new(to).await;
        let meanwhile = || away(&world, &["identities", "is_attached", call]);
        world.movers.hang("place_new");
        let goes = async {
            while !world.movers.is_hanging("place_new") {
                sleep(Duration::from_millis(100)).await;
            }
            meanwhile();
            world.movers.unhang("place_new");
        };
        result(&tokio::join!(world.run(), goes).0);
        assert_eq!(world.wrong(true).await, Vec::<String>::new(), "{call}");
        // When the next worker comes.
        let world = World::new(to).await;
        let (plan, log) = begun(&world).await;
        away(&world, &["identities", "is_attached"]);
        result(&recovered(&world, &plan, &log, is_committing).await);
        assert_eq!(world.wrong(true).await, Vec::<String>::new(), "{call}");
        // Before anybody was told of the files.
        let world = World::new(to).await;
        world.hypervisor.fail(call, 1, Failure::new(Code::RestoreUnfinished, "here it is cut off"));
        let (plan, log) = begun(&world).await;
        away(&world, &["identities"]);
        assert_eq!(failed(&recovered(&world, &plan, &log, is_naming).await).code, Code::Interrupted);
        assert_eq!(world.wrong(false).await, Vec::<String>::new(), "{call}");
    }
}

/// One has its name, which somebody has taken; the other has not.
#[tokio::test(start_paused = true)]
async fn where_some_names_stay_the_files_without_theirs_stay_as_well() {
    let world = World::new(To::NewInstance).await;
    world.hypervisor.fail("define", 1, Failure::new(Code::RestoreUnfinished, "here it is cut off"));
    let (plan, log) = begun(&world).await;
    world.hypervisor.add(FakeInstance::running("mine").disk_at("vda", 1 << 20, at("/images/data.qcow2")));
    let choice: choose::Choice = Record::done_value(&log.records(), "choose").unwrap();
    let vda = choice.new.files.iter().find(|file| file.path.ends_with("web-2-vda.qcow2")).unwrap();
    world.movers.rename_volume(&vda.path, &vda.fresh);
    let outcome = recovered(&world, &plan, &log, is_naming).await;
    unfinished(&outcome);
    assert!(world.movers.volumes().contains(&vda.fresh), "{:?}", world.movers.volumes());
    assert!(outcome.left_over.iter().any(|left| left.step == MakeFiles::NAME), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_paused_was_not_started() {
    let world = World::new(To::NewInstance).await;
    world.hypervisor.hang("start");
    let pauses = async {
        while new_one(&world).await.is_none() {
            sleep(Duration::from_millis(100)).await;
        }
        world.hypervisor.set_state(new_one(&world).await.unwrap(), PowerState::Paused);
        world.hypervisor.let_go("start");
    };
    let outcome = tokio::join!(world.run(), pauses).0;
    result(&outcome);
    assert!(outcome.warnings.iter().any(|warning| warning.code == Code::InstanceStateUnsupported), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_instance_has_by_then_is_never_taken_away() {
    // A snapshot is on top of it; it is under another target; another instance has it.
    for (of_other, of_third) in [
        (Some(("vdb", "/images/top.qcow2")), None),
        (Some(("vdc", "/images/data.raw")), None),
        (None, Some("/images/data.raw")),
    ] {
        let world = World::new(To::Attached).await;
        let (plan, log) = begun(&world).await;
        world.hypervisor.remove(world.other);
        let other = FakeInstance::running("other").with_id(world.other).disk("vda", 1 << 20);
        world.hypervisor.add(match of_other {
            Some((target, path)) => other.disk_at(target, 1 << 20, at(path)),
            None => other,
        });
        if let Some(path) = of_third {
            world.hypervisor.add(FakeInstance::running("third").disk_at("vda", 1 << 20, at(path)));
        }
        unfinished(&recovered(&world, &plan, &log, is_committing).await);
        assert_eq!(world.movers.volumes(), [PathBuf::from("/images/data.raw")], "{of_other:?} {of_third:?}");
    }
    let world = World::new(To::NewInstance).await;
    let (plan, log) = begun(&world).await;
    world.hypervisor.remove(new_one(&world).await.unwrap());
    world.hypervisor.add(FakeInstance::running("mine").disk_at("vda", 1 << 20, at("/images/data.qcow2")));
    unfinished(&recovered(&world, &plan, &log, is_committing).await);
    assert_eq!(world.movers.volumes().into_iter().collect::<BTreeSet<_>>(), world.names());
}

/// It was taken on to another host with its files on shared storage, or undefined with its volumes kept.
#[tokio::test(start_paused = true)]
async fn what_is_not_on_this_host_any_more_is_not_nobodys() {
    let world = World::new(To::Attached).await;
    let (plan, log) = begun(&world).await;
    world.hypervisor.remove(world.other);
    unfinished(&recovered(&world, &plan, &log, is_committing).await);
    assert_eq!(world.movers.volumes(), [PathBuf::from("/images/data.raw")]);

    let world = World::new(To::NewInstance).await;
    let (plan, log) = begun(&world).await;
    world.hypervisor.remove(new_one(&world).await.unwrap());
    unfinished(&recovered(&world, &plan, &log, is_committing).await);
    assert_eq!(world.touched().await, Vec::<String>::new(), "it is not defined again with files that somebody has");

    // While it is attached, before any answer of libvirt.
    let world = World::new(To::Attached).await;
    world.hypervisor.fail("attach", 1, Failure::new(Code::InstanceNotHere, "it was taken to another host"));
    unfinished(&world.run().await);
    assert_eq!(world.touched().await, Vec::<String>::new());
}

/// Before it is written down that libvirt is about to be asked, the names are taken back; but not under somebody who has them all the same.
#[tokio::test(start_paused = true)]
async fn names_that_nobody_was_told_of_are_taken_back_after_a_crash() {
    for somebody in [false, true] {
        let world = World::new(To::NewInstance).await;
        world.hypervisor.fail("define", 1, Failure::new(Code::RestoreUnfinished, "here it is cut off"));
        let (plan, log) = begun(&world).await;
        if somebody {
            world.hypervisor.add(FakeInstance::running("mine").disk_at("vda", 1 << 20, at("/images/data.qcow2")));
        }
        let outcome = recovered(&world, &plan, &log, is_naming).await;
        if somebody {
            unfinished(&outcome);
            let left = outcome.left_over.iter().map(|left| format!("{:#}", left.failure)).collect::<String>();
            assert!(left.contains("`mine`") && left.contains("/images/web-2_VARS.fd"), "{left}");
            assert_eq!(world.movers.volumes().into_iter().collect::<BTreeSet<_>>(), world.names());
        } else {
            assert_eq!(failed(&outcome).code, Code::Interrupted, "it is done again");
            assert_eq!(world.wrong(false).await, Vec::<String>::new());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_may_have_its_effect_after_all_others_were_refused() {
    let world = World::new(To::Attached).await;
    world.hypervisor.hang_once("attach");
    world.hypervisor.fail("attach", 1000, Failure::new(Code::InstanceBusy, "the monitor does not answer"));
    unfinished(&world.run().await);
    assert_eq!(world.touched().await, Vec::<String>::new());
    world.hypervisor.let_go("attach");
    assert_eq!(world.added().await.2, ["vdb"]);
    assert_eq!(world.movers.volumes(), [PathBuf::from("/images/data.raw")], "the guest writes to what is there");

    for (to, call) in [(To::NewInstance, "define"), (To::Attached, "attach")] {
        let world = World::new(to).await;
        world.hypervisor.fail(call, 1, Failure::new(Code::DefinitionRefused, "now it is refused"));
        world.hypervisor.fail(call, 1, Failure::new(Code::HypervisorTimedOut, "no answer"));
        unfinished(&world.run().await);
        assert_eq!(world.touched().await, Vec::<String>::new(), "{call}");
    }
    // While it is waited for.
    let world = World::new(To::Attached).await;
    world.hypervisor.hang_once("attach");
    let late = async {
        sleep(Duration::from_secs(17)).await;
        world.hypervisor.let_go("attach");
    };
    result(&tokio::join!(world.run(), late).0);
    assert_eq!(world.wrong(true).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_came_to_be_though_libvirt_said_that_it_did_not_is_a_success() {
    for (to, call) in [(To::NewInstance, "define"), (To::Attached, "attach")] {
        let world = World::new(to).await;
        world.hypervisor.fail_after(call, Failure::new(Code::DefinitionRefused, "an error after the effect"));
        result(&world.run().await);
        assert_eq!(world.wrong(true).await, Vec::<String>::new(), "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_come_while_it_was_copied_is_seen_before_anything_has_its_name() {
    let mut world = World::new(To::NewInstance).await;
    world.hypervisor.remove(world.web);
    world.new_instance().mac_addresses = MacAddresses::Preserve;
    let web = FakeInstance::shut_off("web").with_id(world.web).definition(&definition(world.web));
    let outcome = with_meanwhile(&world, || world.hypervisor.add(web)).await;
    assert_eq!(failed(&outcome).code, Code::InstanceExists);
    assert_eq!(world.wrong(false).await, Vec::<String>::new());

    for to in [To::NewInstance, To::Attached, To::File] {
        let world = World::new(to).await;
        let taken = world.names().into_iter().next().unwrap();
        let outcome = with_meanwhile(&world, || world.movers.add_volume(&taken)).await;
        assert_eq!(failed(&outcome).code, Code::VolumeExists);
        assert_eq!(world.movers.volumes(), [taken], "it is theirs");
    }
    // Where libvirt is to make a file.
    let image = definition(world.web).replace("<nvram>", "<nvram format='qcow2'>");
    let world = World::of(To::NewInstance, &image).await;
    let vars = Path::new("/images/web-2_VARS.fd");
    let outcome = with_meanwhile(&world, || world.movers.add_volume(vars)).await;
    assert_eq!(failed(&outcome).code, Code::VolumeExists);
}

/// By their inodes and those of their directories, which are handed on.
#[tokio::test(start_paused = true)]
async fn what_was_made_and_is_gone_or_another_one_gets_no_name() {
    let fresh = |world: &World| {
        let made = world.movers.volumes().into_iter().find(|path| path.starts_with("/images"));
        made.unwrap()
    };
    for to in [To::NewInstance, To::Attached, To::File] {
        let world = World::new(to).await;
        let aside = Path::new("/aside/volume");
        let outcome = with_meanwhile(&world, || world.movers.rename_volume(&fresh(&world), aside)).await;
        assert_eq!((failed(&outcome).code, failed(&outcome).step.as_deref()), (Code::VolumeIo, Some("look_again")));
        assert_eq!(world.movers.volumes(), [aside], "and it does not take hours to say so");
        assert!(outcome.left_over.is_empty(), "{outcome:?}");

        let world = World::new(to).await;
        let backup = world.manifest.backup_id;
        let another = FakeVolume::Restored { backup, disk: "vdb".parse().unwrap() };
        let outcome = with_meanwhile(&world, || world.movers.put_volume(&fresh(&world), another)).await;
        assert_eq!((failed(&outcome).code, failed(&outcome).step.as_deref()), (Code::VolumeIo, Some("look_again")));

        let world = World::new(to).await;
        let outcome = with_meanwhile(&world, || world.movers.remount(Path::new("/images"))).await;
        assert_eq!((failed(&outcome).code, failed(&outcome).step.as_deref()), (Code::VolumeIo, Some("look_again")));
        assert_eq!(outcome.left_over.len(), 1, "what is not seen is not removed: {outcome:?}");
    }
    // Named by one worker, and another file is in its place when the next one comes.
    let world = World::new(To::Attached).await;
    let (plan, log) = begun(&world).await;
    world.hypervisor.remove(world.other);
    world.hypervisor.add(FakeInstance::running("other").with_id(world.other).disk("vda", 1 << 20));
    world.movers.add_volume(Path::new("/images/data.raw"));
    let outcome = recovered(&world, &plan, &log, is_naming).await;
    unfinished(&outcome);
    assert_eq!(world.movers.volume(Path::new("/images/data.raw")), Some(FakeVolume::Old));
}
