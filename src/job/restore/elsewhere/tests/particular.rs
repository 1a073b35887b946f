//! What is particular to restores to elsewhere: what comes to be, what is refused, and who is asked again.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::super::run;
use super::*;
use crate::host::hypervisor::NewDisk;
use crate::host::mover::FakeVolume;
use crate::job::restore::RestoreResult;
use crate::model::instance::DiskSource;

fn result(outcome: &Outcome) -> RestoreResult {
    match &outcome.end {
        End::Completed { value } => RestoreResult::from_value(value).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_instance_runs_beside_the_first_one_with_everything_its_own() {
    let world = World::new(To::NewInstance).await;
    let before = world.hypervisor.find(&InstanceRef::Id(world.web)).await.unwrap();
    let outcome = world.run().await;
    let result = result(&outcome);
    let new = result.new_instance.unwrap();
    assert_eq!((new.name.as_str(), result.attached_to), ("web-2", None));
    let told: Vec<_> =
        result.volumes.iter().map(|one| (one.target.as_str(), one.volume.as_path(), one.format)).collect();
    let volumes = [
        ("vda", Path::new("/images/web-2-vda.qcow2"), ImageFormat::Qcow2),
        ("vdb", Path::new("/images/data.qcow2"), ImageFormat::Qcow2),
    ];
    assert_eq!(told, volumes);
    let backup = world.manifest.backup_id;
    for (disk, path, _) in volumes {
        let expected = FakeVolume::Restored { backup, disk: disk.parse().unwrap() };
        assert_eq!(world.movers.volume(path), Some(expected));
    }
    let expected = FakeVolume::Record { backup, file: "nvram".to_owned() };
    assert_eq!(world.movers.volume(Path::new("/images/web-2_VARS.fd")), Some(expected));
    let made = world.hypervisor.find(&InstanceRef::Id(new.id)).await.unwrap();
    assert_eq!((made.name.as_str(), made.state), ("web-2", PowerState::Running));
    assert!(made.definition.contains("<nvram>/images/web-2_VARS.fd</nvram>"), "{}", made.definition);
    assert!(!made.definition.contains("52:54:00:00:00:01") && !made.definition.contains("/fake/web"));
    assert!(
        result.warnings.iter().any(|line| line.contains("`/images/gone.iso` is not there")),
        "{:?}",
        result.warnings
    );
    assert_eq!(world.hypervisor.find(&InstanceRef::Id(world.web)).await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn the_instance_of_a_backup_may_be_gone_and_its_name_is_free_then() {
    let mut world = World::new(To::NewInstance).await;
    world.hypervisor.remove(world.web);
    let (id, name) = (world.web, "web".parse().unwrap());
    let spec = world.new_instance();
    (spec.id, spec.name, spec.mac_addresses) = (Some(id), name, MacAddresses::Preserve);
    let new = result(&world.run().await).new_instance.unwrap();
    assert_eq!((new.id, new.name.as_str()), (id, "web"));
    let made = world.hypervisor.find(&InstanceRef::Id(id)).await.unwrap();
    assert!(made.definition.contains("52:54:00:00:00:01"));
    world.attempt.job.instance = Some(InstanceRef::Name("nobody".parse().unwrap()));
    let failure = world.prepare().await.unwrap_err();
    assert_eq!(failure.code, Code::InstanceNotHere);
    assert!(format!("{failure:#}").contains("by its uuid"), "{failure:#}");
}

#[tokio::test(start_paused = true)]
async fn nothing_that_is_there_is_defined_over_or_overwritten() {
    let mut world = World::new(To::NewInstance).await;
    world.new_instance().name = "other".parse().unwrap();
    assert_eq!(world.refused().await.code, Code::InstanceExists);

    let mut world = World::new(To::NewInstance).await;
    world.new_instance().id = Some(world.other);
    assert_eq!(world.refused().await.code, Code::InstanceExists);

    let mut world = World::new(To::NewInstance).await;
    world.new_instance().mac_addresses = MacAddresses::Preserve;
    let failure = world.refused().await;
    assert_eq!(failure.code, Code::InstanceExists);
    assert!(failure.text.contains("52:54:00:00:00:01"), "{failure:#}");

    // A disk of an instance, though no file is there.
    let mut world = World::new(To::File).await;
    world.settings.volume_roots.push("/fake".into());
    world.volume().path = "/fake/other/vda.qcow2".into();
    assert_eq!(world.refused().await.code, Code::VolumeExists);

    let world = World::new(To::File).await;
    world.movers.add_volume(Path::new("/images/data.raw"));
    let End::Failed { failure } = world.run().await.end else { panic!() };
    assert_eq!(failure.code, Code::VolumeExists);
    assert_eq!(world.movers.volume(Path::new("/images/data.raw")), Some(FakeVolume::Old));
}

#[tokio::test(start_paused = true)]
async fn what_is_outside_of_the_roots_is_refused_at_once() {
    for to in [To::NewInstance, To::File] {
        let mut world = World::new(to).await;
        world.settings.volume_roots = vec!["/elsewhere".into()];
        assert_eq!(world.prepare().await.unwrap_err().code, Code::PathNotAllowed);
        world.settings.volume_roots = Vec::new();
        assert_eq!(world.prepare().await.unwrap_err().code, Code::PathNotAllowed);
    }
    let mut world = World::new(To::NewInstance).await;
    world.new_instance().directory = Some("/etc".into());
    assert_eq!(world.prepare().await.unwrap_err().code, Code::PathNotAllowed);
}

#[tokio::test(start_paused = true)]
async fn one_volume_is_made_of_one_disk_and_of_this_instances_backup() {
    let mut world = World::new(To::File).await;
    world.spec().disks = Vec::new();
    assert_eq!(world.refused().await.code, Code::DiskAmbiguous);
    world.spec().disks = vec!["vdz".parse().unwrap()];
    assert_eq!(world.refused().await.code, Code::DiskNotFound);
    world.spec().disks = vec!["vdb".parse().unwrap()];
    world.attempt.job.instance = Some(InstanceRef::Id(world.other));
    assert_eq!(world.refused().await.code, Code::BackupNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_attached_with_its_serial_number_unless_that_is_in_use() {
    let world = World::new(To::Attached).await;
    let outcome = world.run().await;
    let result = result(&outcome);
    assert_eq!((result.attached_to.unwrap().id, result.volumes[0].target.as_str()), (world.other, "vdb"));
    assert_eq!((result.volumes[0].disk.as_str(), result.warnings.len()), ("vdb", 0));
    let disk = world.hypervisor.find(&InstanceRef::Id(world.other)).await.unwrap().disks.pop().unwrap();
    assert_eq!(disk.serial.as_deref(), Some("serial-vdb"));

    let mut world = World::new(To::Attached).await;
    world.spec().disks = vec!["vda".parse().unwrap()];
    let outcome = world.run().await;
    let warnings = self::result(&outcome).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("without its serial number `serial-vda`"), "{warnings:?}");
    let disk = world.hypervisor.find(&InstanceRef::Id(world.other)).await.unwrap().disks.pop().unwrap();
    assert_eq!(disk.serial, None);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_cannot_take_a_disk_is_refused_at_once() {
    let attach = |world: &mut World, change: &dyn Fn(&mut Attach)| change(world.volume().attach.as_mut().unwrap());
    let mut world = World::new(To::Attached).await;
    attach(&mut world, &|attach| attach.target = "vda".parse().unwrap());
    assert_eq!(world.prepare().await.unwrap_err().code, Code::DiskTargetInUse);
    attach(&mut world, &|attach| (attach.target, attach.bus) = ("sda".parse().unwrap(), DiskBus::Sata));
    assert_eq!(world.prepare().await.unwrap_err().code, Code::InstanceRunning);
    world.hypervisor.set_state(world.other, PowerState::ShutOff);
    world.prepare().await.unwrap();
    world.hypervisor.set_state(world.other, PowerState::Paused);
    assert_eq!(world.prepare().await.unwrap_err().code, Code::InstanceStateUnsupported);
    attach(&mut world, &|attach| attach.instance = InstanceRef::Name("nobody".parse().unwrap()));
    assert_eq!(world.prepare().await.unwrap_err().code, Code::InstanceNotHere);
    world.hypervisor.add(FakeInstance::shut_off("saved").saved_memory());
    attach(&mut world, &|attach| attach.instance = InstanceRef::Name("saved".parse().unwrap()));
    assert_eq!(world.prepare().await.unwrap_err().code, Code::InstanceStateUnsupported);
}

#[tokio::test(start_paused = true)]
async fn what_libvirt_refuses_takes_the_names_back() {
    for (to, call) in [(To::NewInstance, "define"), (To::Attached, "attach")] {
        let world = World::new(to).await;
        world.hypervisor.fail(call, 1, Failure::new(Code::HypervisorFailed, "no room for another one"));
        assert_eq!(world.refused().await.code, Code::HypervisorFailed);
    }
}

#[tokio::test(start_paused = true)]
async fn what_libvirt_does_not_answer_is_asked_again_and_a_busy_instance_waited_for() {
    for (call, to) in [("define", To::NewInstance), ("attach", To::Attached)] {
        let world = World::new(to).await;
        world.hypervisor.fail(call, 3, Failure::new(Code::HypervisorTimedOut, "it hangs"));
        result(&world.run().await);
        assert_eq!(world.wrong(true).await, Vec::<String>::new());
    }
    let world = World::new(To::Attached).await;
    world.hypervisor.fail("attach", 5, Failure::new(Code::InstanceBusy, "a backup is under way"));
    result(&world.run().await);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_does_not_start_is_there_all_the_same_and_the_job_says_so() {
    let world = World::new(To::NewInstance).await;
    world.hypervisor.fail("start", 1, Failure::new(Code::HypervisorFailed, "no memory"));
    let outcome = world.run().await;
    let new = result(&outcome).new_instance.unwrap();
    assert_eq!(world.hypervisor.state(new.id).await.unwrap(), PowerState::ShutOff);
    assert!(outcome.warnings.iter().any(|failure| failure.text == "no memory"), "{outcome:?}");
}

/// A mover that died where the names may have been given is followed by another one.
#[tokio::test(start_paused = true)]
async fn names_are_given_by_another_mover_where_the_first_one_died() {
    for after in [false, true] {
        let world = World::new(To::NewInstance).await;
        let died = Failure::new(Code::MoverDied, "the mover ended");
        match after {
            true => world.movers.fail_after("place_new", 1, died),
            false => world.movers.fail("place_new", 1, died),
        }
        result(&world.run().await);
        assert_eq!(world.wrong(true).await, Vec::<String>::new());
    }
    let world = World::new(To::Attached).await;
    world.movers.not_known("place_new", 2, Failure::new(Code::VolumeIo, "it does not answer"));
    result(&world.run().await);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_learns_of_is_never_tried_anew_and_named() {
    let world = World::new(To::NewInstance).await;
    world.movers.hang("place_new");
    let outcome = world.run().await;
    let End::Failed { failure } = &outcome.end else { panic!("{outcome:?}") };
    assert_eq!(failure.code, Code::RestoreUnfinished);
    let said: Vec<_> = outcome.warnings.iter().map(|warning| format!("{warning:#}")).collect();
    for name in ["/images/data.qcow2", "/images/web-2_VARS.fd"] {
        assert!(said.iter().any(|line| line.contains(&format!("`{name}.longshore-"))), "{said:?}");
    }
}

/// Cut off while libvirt defines: what was chosen is known from the records alone.
#[tokio::test(start_paused = true)]
async fn a_later_worker_brings_it_to_its_end_whoever_has_come_meanwhile() {
    let mut world = World::new(To::NewInstance).await;
    // A MAC address that another instance has by then.
    world.hypervisor.remove(world.web);
    world.new_instance().mac_addresses = MacAddresses::Preserve;
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    let plan = world.prepare().await.unwrap();
    world.hypervisor.hang("start");
    let (doors, never) = (world.doors(), Stop::never());
    let running = run(&doors, &world.settings, &world.attempt, plan.clone(), hooks, &never);
    assert!(timeout(Duration::from_secs(10), running).await.is_err(), "it is dropped while it starts");
    world.hypervisor.let_go("start");
    world.hypervisor.add(FakeInstance::shut_off("web").with_id(world.web).definition(&definition(world.web)));
    let committing = log.records().iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
    let records = &log.records()[..=committing];
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    let outcome = unwind(&world.doors(), &world.settings, &world.attempt, plan, records, hooks).await;
    assert_eq!(result(&outcome).volumes.len(), 2);
    assert_eq!(world.wrong(true).await, Vec::<String>::new());
}

/// Ends a restore that was cut off when it had said that it gives names, as the next worker does.
async fn recovered(world: &World, plan: &ElsewherePlan, log: &MemoryLog) -> Outcome {
    let records = log.records();
    let committing = records.iter().position(|record| matches!(record, Record::Committing { .. })).unwrap();
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    unwind(&world.doors(), &world.settings, &world.attempt, plan.clone(), &records[..=committing], hooks).await
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

fn unfinished(outcome: &Outcome) -> &Failure {
    match &outcome.end {
        End::Failed { failure } if failure.code == Code::RestoreUnfinished => failure,
        _ => panic!("{outcome:?}"),
    }
}

fn at(path: &str) -> DiskSource {
    DiskSource::File { path: path.into(), format: ImageFormat::Qcow2 }
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
        unfinished(&recovered(&world, &plan, &log).await);
        assert_eq!(world.movers.volumes(), [PathBuf::from("/images/data.raw")], "{of_other:?} {of_third:?}");
    }
    let world = World::new(To::NewInstance).await;
    let (plan, log) = begun(&world).await;
    let before = world.movers.volumes();
    let id =
        world.hypervisor.instances().await.unwrap().into_iter().find(|one| one.name.as_str() == "web-2").unwrap().id;
    world.hypervisor.remove(id);
    world.hypervisor.add(FakeInstance::running("mine").disk_at("vda", 1 << 20, at("/images/data.qcow2")));
    unfinished(&recovered(&world, &plan, &log).await);
    assert_eq!(world.movers.volumes(), before);
}

#[tokio::test(start_paused = true)]
async fn what_came_to_be_though_libvirt_said_that_it_did_not_is_a_success() {
    let world = World::new(To::Attached).await;
    let plan = world.prepare().await.unwrap();
    let disk = NewDisk {
        target: "vdb".parse().unwrap(),
        bus: DiskBus::Virtio,
        path: "/images/data.raw".into(),
        format: ImageFormat::Raw,
        serial: None,
    };
    world.hypervisor.attach(world.other, &disk).await.unwrap();
    world.hypervisor.fail("attach", 1, Failure::new(Code::HypervisorFailed, "an error after the effect"));
    let (progress, _) = watch::channel(JobProgress::default());
    let log = MemoryLog::default();
    let hooks = Hooks { log: &log, progress: &progress };
    result(&run(&world.doors(), &world.settings, &world.attempt, plan, hooks, &Stop::never()).await);
    assert_eq!(world.wrong(true).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_is_unfinished_is_not_unwound() {
    let world = World::new(To::NewInstance).await;
    world.movers.not_known("place_new", 1000, Failure::new(Code::VolumeIo, "it does not answer"));
    let (plan, log) = begun(&world).await;
    let before = world.movers.volumes();
    assert!(before.iter().all(|path| path.to_string_lossy().ends_with(".new")) && before.len() == 3, "{before:?}");
    let plan::PlannedTo::NewInstance { id, .. } = &plan.to else { panic!() };
    world.hypervisor.add(FakeInstance::running("somebody").with_id(*id));
    let outcome = recovered(&world, &plan, &log).await;
    unfinished(&outcome);
    assert_eq!(world.movers.volumes(), before, "they may be what somebody works with");
    assert!(!outcome.warnings.is_empty(), "they are named");
}

#[tokio::test(start_paused = true)]
async fn variables_of_a_firmware_are_nobodys_before() {
    let mut world = World::new(To::NewInstance).await;
    world.movers.add_volume(Path::new("/images/web-2_VARS.fd"));
    let End::Failed { failure } = world.run().await.end else { panic!() };
    assert_eq!(failure.code, Code::VolumeExists);
    // Those of the backup are an image, so that new ones would be made there.
    let mut definition = definition(world.web);
    definition = definition.replace("<nvram>", "<nvram format='qcow2'>");
    world = World::of(To::NewInstance, &definition).await;
    world.movers.add_volume(Path::new("/images/web-2_VARS.fd"));
    let End::Failed { failure } = world.run().await.end else { panic!() };
    assert_eq!(failure.code, Code::VolumeExists);
    assert!(failure.text.contains("firmware"), "{failure:#}");
    let world = World::of(To::NewInstance, &definition).await;
    let outcome = world.run().await;
    let warnings = result(&outcome).warnings;
    assert!(warnings.iter().any(|line| line.contains("firmware's variables")), "{warnings:?}");
    assert_eq!(world.movers.volume(Path::new("/images/web-2_VARS.fd")), None);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_backup_makes_nothing() {
    for to in [To::NewInstance, To::Attached] {
        let world = World::new(to).await;
        world.movers.damage(SHARE, world.manifest.backup_id);
        assert_eq!(world.refused().await.code, Code::BackupDamaged);
    }
}
