//! What is particular to restores to elsewhere: what comes to be, what is refused, and who is asked again.

use std::path::Path;

use super::*;
use crate::host::mover::FakeVolume;
use crate::job::restore::{DryRun, RestoreResult, RestoreValue};

pub(super) fn result(outcome: &Outcome) -> RestoreResult {
    match &outcome.end {
        End::Completed { value } => serde_json::from_value(value.clone()).unwrap(),
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
    assert!(result.warnings.iter().any(|line| line.contains("drive `sda`")), "{:?}", result.warnings);
    assert_eq!(world.hypervisor.find(&InstanceRef::Id(world.web)).await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_what_would_come_to_be_and_makes_nothing() {
    for to in [To::NewInstance, To::Attached, To::File] {
        let mut world = World::new(to).await;
        world.spec().dry_run = true;
        world.movers.repository(SHARE, |share| share.read_only = true).unwrap();
        let outcome = world.run().await;
        let End::Completed { value } = &outcome.end else { panic!("{outcome:?}") };
        let RestoreValue::DryRun(DryRun { would, warnings }) = RestoreValue::from_value(value).unwrap() else {
            panic!("{value}")
        };
        let paths = would.volumes.iter().map(|volume| &volume.path).chain(&would.files).map(PathBuf::from);
        assert_eq!(paths.collect::<BTreeSet<_>>(), world.names());
        let new = would.new_instance.map(|new| (new.name.to_string(), new.start));
        let attached = would.attach_to.map(|to| to.name.to_string());
        match to {
            To::NewInstance => assert_eq!((new, attached), (Some(("web-2".to_owned(), true)), None)),
            To::Attached => assert_eq!((new, attached.as_deref()), (None, Some("other"))),
            To::File => assert_eq!((new, attached), (None, None)),
        }
        assert_eq!(warnings.iter().any(|line| line.contains("drive `sda`")), matches!(to, To::NewInstance));
        assert_eq!(world.wrong(false).await, Vec::<String>::new());
    }
    // What could not be made is refused as it would be.
    let mut world = World::new(To::File).await;
    world.spec().dry_run = true;
    world.movers.add_volume(Path::new("/images/data.raw"));
    let End::Failed { failure } = world.run().await.end else { panic!("there is such a file") };
    assert_eq!(failure.code, Code::VolumeExists);
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
    world.hypervisor.add(FakeInstance::running("passing").transient());
    attach(&mut world, &|attach| {
        (attach.instance, attach.bus) = (InstanceRef::Name("passing".parse().unwrap()), DiskBus::Virtio);
    });
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

/// A mover that died where the names may have been given is followed by another one, which takes them back before anybody was told of them.
/// The name of a volume alone is the end of its restore, and given.
#[tokio::test(start_paused = true)]
async fn names_are_put_in_order_by_another_mover_where_the_first_one_died() {
    for to in [To::NewInstance, To::Attached, To::File] {
        for after in [false, true] {
            let world = World::new(to).await;
            let died = Failure::new(Code::MoverDied, "the mover ended");
            match after {
                true => world.movers.fail_after("place_new", 1, died),
                false => world.movers.fail("place_new", 1, died),
            }
            if matches!(to, To::File) {
                result(&world.run().await);
                assert_eq!(world.wrong(true).await, Vec::<String>::new());
            } else {
                assert_eq!(world.refused().await.code, Code::MoverDied);
            }
        }
    }
    let world = World::new(To::Attached).await;
    world.movers.not_known("place_new", 2, Failure::new(Code::VolumeIo, "it does not answer"));
    result(&world.run().await);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_learns_of_is_never_tried_anew_and_named() {
    // As long as the names can be taken back, nothing is left and it may be tried anew.
    let world = World::new(To::NewInstance).await;
    world.movers.hang("place_new");
    assert_eq!(world.refused().await.code, Code::MoverDied);
    let world = World::new(To::NewInstance).await;
    world.movers.hang("place_new");
    world.movers.hang("take_back_new");
    let outcome = world.run().await;
    let End::Failed { failure } = &outcome.end else { panic!("{outcome:?}") };
    assert_eq!(failure.code, Code::RestoreUnfinished);
    let said: Vec<_> = outcome.warnings.iter().map(|warning| format!("{warning:#}")).collect();
    for name in ["/images/data.qcow2", "/images/web-2_VARS.fd"] {
        assert!(said.iter().any(|line| line.contains(&format!("`{name}.longshore-"))), "{said:?}");
    }
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
    assert!(failure.text.contains("web-2_VARS.fd"), "{failure:#}");
    let world = World::of(To::NewInstance, &definition).await;
    let outcome = world.run().await;
    let warnings = result(&outcome).warnings;
    assert!(warnings.iter().any(|line| line.contains("firmware's variables")), "{warnings:?}");
    assert_eq!(world.movers.volume(Path::new("/images/web-2_VARS.fd")), None);
}

#[tokio::test(start_paused = true)]
async fn what_a_host_cannot_have_is_refused_before_a_byte_is_written() {
    let usual = definition(World::new(To::NewInstance).await.web);
    for (wants, is_refused) in [("1 ", true), ("", false)] {
        let memory = format!("<memory unit='TiB'>{}</memory><devices>", wants.trim());
        let memory = if wants.is_empty() { "<memory unit='GiB'>64</memory><devices>" } else { &memory };
        let world = World::of(To::NewInstance, &usual.replace("<devices>", memory)).await;
        match is_refused {
            true => {
                let failure = world.refused().await;
                assert_eq!(failure.code, Code::DefinitionRefused);
                assert!(failure.text.contains("1099511627776"), "{failure:#}");
            }
            false => drop(result(&world.run().await)),
        }
    }
    for (hostile, code) in [
        ("</devices><devices>", Code::BackupDamaged),
        ("<devices/><devices>", Code::DefinitionRefused),
        ("<devices xmlns:x='urn:x'><disk><driver/><driver x:type='raw'/></disk>", Code::DefinitionRefused),
    ] {
        let world = World::of(To::NewInstance, &usual.replacen("<devices>", hostile, 1)).await;
        // Of the backup alone it is read.
        world.hypervisor.remove(world.web);
        let End::Failed { failure } = world.run().await.end else { panic!("{hostile}") };
        assert_eq!(failure.code, code, "{failure:#}");
        assert!(world.movers.volumes().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_backup_makes_nothing() {
    for to in [To::NewInstance, To::Attached] {
        let world = World::new(to).await;
        world.movers.damage(SHARE, world.manifest.backup_id);
        assert_eq!(world.refused().await.code, Code::BackupDamaged);
    }
}
