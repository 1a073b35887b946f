//! What every hypervisor door must do when something is added to its host: an instance, or a disk of one.

use std::path::Path;

use longshore::failure::Code;
use longshore::host::hypervisor::{Hypervisor, NewDisk, NewInstance};
use longshore::model::destination::DiskBus;
use longshore::model::id::{InstanceId, InstanceRef};
use longshore::model::instance::{DiskSource, ImageFormat, PowerState};

/// One without disks, which is there within a second.
pub fn new_instance(name: &str, restored_by: &str) -> NewInstance {
    let id = InstanceId::draw();
    let definition = format!(
        "<domain type='qemu'><name>{name}</name><uuid>{id}</uuid>\
         <metadata><longshore:restored xmlns:longshore='urn:longshore:restored:1' by='{restored_by}' backup='{id}'/></metadata>\
         <memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <devices><controller type='usb' model='none'/>\
         <interface type='user'><mac address='52:54:00:aa:bb:cc'/></interface></devices></domain>"
    );
    NewInstance { id, name: name.parse().unwrap(), definition, restored_by: restored_by.to_owned() }
}

/// `new` is one of [`new_instance`] that is not there yet.
pub async fn an_instance_is_defined_once_and_never_over_another(door: &dyn Hypervisor, new: &NewInstance) {
    for _twice in 0..2 {
        door.define(new).await.unwrap();
        let found = door.find(&InstanceRef::Id(new.id)).await.unwrap();
        assert_eq!((&found.name, found.state), (&new.name, PowerState::ShutOff));
    }
    let identities = door.identities().await.unwrap();
    let ours = identities.iter().find(|identity| identity.id == new.id).expect("it is listed");
    assert!(ours.is_that(new) && ours.mac_addresses.contains("52:54:00:aa:bb:cc"), "{ours:?}");

    let other = new_instance(new.name.as_str(), "other");
    assert_eq!(door.define(&other).await.unwrap_err().code, Code::InstanceExists, "its name is taken");
    let changed = new.definition.replace("16</memory>", "32</memory>").replace(&new.restored_by, "other");
    let over = NewInstance { definition: changed, restored_by: "other".to_owned(), ..new.clone() };
    assert_eq!(door.define(&over).await.unwrap_err().code, Code::InstanceExists, "it is not defined over");
    let found = door.find(&InstanceRef::Id(new.id)).await.unwrap();
    assert!(!found.definition.contains("other"), "{}", found.definition);

    for _twice in 0..2 {
        door.start(new.id).await.unwrap();
        assert_eq!(door.state(new.id).await.unwrap(), PowerState::Running);
    }
    assert_eq!(door.start(InstanceId::draw()).await.unwrap_err().code, Code::InstanceNotHere);
    assert!(door.memory_bytes().await.unwrap() >= 256 << 20, "the laboratory has some");
}

/// `files` are raw; `stop` pulls the plug of the instance, which runs and has `vda`.
pub async fn a_disk_is_attached_once_to_an_instance_that_runs_or_is_stopped(
    door: &dyn Hypervisor,
    id: InstanceId,
    files: [&Path; 2],
    stop: impl FnOnce(),
) {
    let disk = |target: &str, path: &Path, serial: &str| NewDisk {
        target: target.parse().unwrap(),
        bus: DiskBus::Virtio,
        path: path.to_owned(),
        format: ImageFormat::Raw,
        serial: Some(serial.to_owned()),
    };
    let [first, second] = files;
    let has = async |target: &str, path: &Path| {
        let found = door.find(&InstanceRef::Id(id)).await.unwrap();
        let source = DiskSource::File { path: path.to_owned(), format: ImageFormat::Raw };
        found.disks.iter().any(|disk| disk.target.as_str() == target && disk.source.as_ref() == Some(&source))
    };
    assert!(!door.is_attached(id, &disk("vdy", first, "one")).await.unwrap());
    for _twice in 0..2 {
        door.attach(id, &disk("vdy", first, "one")).await.unwrap();
        assert!(has("vdy", first).await && door.is_attached(id, &disk("vdy", first, "one")).await.unwrap());
    }
    for taken in [disk("vdy", second, "two"), disk("vdz", second, "one")] {
        assert_eq!(door.attach(id, &taken).await.unwrap_err().code, Code::DiskTargetInUse, "{taken:?}");
        assert_eq!(door.is_attached(id, &taken).await.unwrap_err().code, Code::DiskTargetInUse, "{taken:?}");
    }
    let elsewhere = door.attach(id, &disk("vdz", first, "two")).await.unwrap_err();
    assert_eq!(elsewhere.code, Code::RestoreUnfinished, "it is there already: {elsewhere:#}");
    stop();
    assert_eq!(door.state(id).await.unwrap(), PowerState::ShutOff);
    assert!(has("vdy", first).await, "it is in the definition as well");
    door.attach(id, &disk("vdz", second, "two")).await.unwrap();
    assert!(has("vdz", second).await);
}
