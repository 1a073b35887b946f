//! What is on a host, told in an event that is never longer than its readers take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::message::codec::{BODY_BYTES_MAX, Encoding, write};
use crate::model::id::{DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{Disk, DiskDevice, Instance, PowerState};

/// Instances that one inventory asks libvirt for at most. How many of them it tells is a matter of their size.
pub const INVENTORY_INSTANCES_MAX: usize = 400;

/// Bytes that are kept for what is around the instances: host, versions, numbers and the names of their fields.
const AROUND_BYTES_MAX: usize = 4096;

/// What is on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// libvirt's version, where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<String>,
    /// QEMU's version, where libvirt tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<String>,
    /// Free space for the scratch of pull backups, bytes, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch_free_bytes: Option<u64>,
    /// The instances that fit into one event.
    pub instances: Vec<InventoryInstance>,
    /// Instances that did not fit in.
    #[serde(default)]
    pub instances_left_out: u32,
}

impl Inventory {
    /// The inventory without the instances with which its event would be longer than a body may be. They are counted as
    /// left out, on top of those that are so already.
    ///
    /// # Errors
    /// `internal`: an instance that cannot be encoded.
    pub fn fit(self) -> Result<Self, Failure> {
        let Self { instances, instances_left_out, .. } = self;
        let read = instances.len();
        let mut room = BODY_BYTES_MAX - AROUND_BYTES_MAX;
        let mut told = Vec::new();
        for instance in instances {
            let bytes = encoded_bytes(&instance)?;
            if bytes <= room {
                room -= bytes;
                told.push(instance);
            }
        }
        let left_out = u32::try_from(read - told.len()).unwrap_or(u32::MAX);
        Ok(Self { instances: told, instances_left_out: instances_left_out.saturating_add(left_out), ..self })
    }
}

/// Bytes of one instance and the comma after it, in the encoding in which it is longer: which one an event is in is not
/// known where it is made.
fn encoded_bytes(instance: &InventoryInstance) -> Result<usize, Failure> {
    let json = write(instance, Encoding::Json)?.len();
    let packed = write(instance, Encoding::MessagePack)?.len();
    Ok(json.max(packed) + 1)
}

/// One instance of an inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryInstance {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name on this host.
    pub name: InstanceName,
    /// What it is doing.
    pub state: PowerState,
    /// A guest agent channel is configured.
    pub agent: bool,
    /// Somebody in the guest has that channel open; absent where there is none or the instance does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_connected: Option<bool>,
    /// Its disks.
    pub disks: Vec<InventoryDisk>,
}

/// One disk of an inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InventoryDisk {
    /// The target, such as `vda`.
    pub target: DiskTarget,
    /// The serial number shown to the guest, if the definition sets one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What the guest takes it for.
    pub device: DiskDevice,
    /// Size that the guest sees, bytes, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_bytes: Option<u64>,
}

impl From<&Disk> for InventoryDisk {
    fn from(disk: &Disk) -> Self {
        Self {
            target: disk.target.clone(),
            serial: disk.serial.clone(),
            device: disk.device,
            virtual_bytes: disk.virtual_bytes,
        }
    }
}

impl From<&Instance> for InventoryInstance {
    fn from(instance: &Instance) -> Self {
        Self {
            id: instance.id,
            name: instance.name.clone(),
            state: instance.state,
            agent: instance.agent_configured,
            agent_connected: (instance.agent_configured && instance.state == PowerState::Running)
                .then_some(instance.agent_connected),
            disks: instance.disks.iter().map(InventoryDisk::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::event::{Event, HostDetail, HostEvent};
    use crate::message::{decode_event, encode_event};
    use crate::model::id::{EventId, IncarnationId};
    use uuid::Uuid;

    fn inventory(instances: usize, disks: usize) -> Inventory {
        let disk = |number: usize| InventoryDisk {
            target: format!("vd{number}").parse().unwrap(),
            serial: Some("\\".repeat(20)),
            device: DiskDevice::Disk,
            virtual_bytes: Some(u64::MAX),
        };
        let instance = |number: usize| InventoryInstance {
            id: InstanceId(Uuid::from_u128(number as u128)),
            name: format!("instance-{number}").parse().unwrap(),
            state: PowerState::Running,
            agent: true,
            agent_connected: Some(true),
            disks: (0..disks).map(disk).collect(),
        };
        Inventory {
            libvirt: Some("11.3.0".to_owned()),
            qemu: Some("10.0.0".to_owned()),
            scratch_free_bytes: None,
            instances: (0..instances).map(instance).collect(),
            instances_left_out: 3,
        }
    }

    fn written(inventory: Inventory, encoding: Encoding) -> Result<Event, Failure> {
        let host = "h".repeat(63).parse().unwrap();
        let (incarnation, time) = (IncarnationId(Uuid::max()), jiff::Timestamp::MAX);
        let detail = HostDetail::Inventory(inventory);
        let event = Event::Host(HostEvent { host, incarnation, sequence: u64::MAX, time, detail });
        let encoded = encode_event(&event, EventId(Uuid::max()), encoding, None)?;
        Ok(decode_event(&encoded.properties, &encoded.body).unwrap())
    }

    #[test]
    fn an_inventory_of_any_size_fits_into_its_event_and_counts_whom_it_leaves_out() {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            assert!(written(inventory(400, 20), encoding).is_err(), "this one is too long as it is");
            for (instances, disks) in [(400, 20), (2000, 3), (3, 5000)] {
                let fitted = inventory(instances, disks).fit().unwrap();
                let left_out = usize::try_from(fitted.instances_left_out).unwrap() - 3;
                assert!(left_out > 0);
                assert_eq!(fitted.instances.len() + left_out, instances);
                written(fitted, encoding).unwrap();
            }
        }
    }

    #[test]
    fn an_inventory_that_fits_stays_as_it_is() {
        assert_eq!(inventory(50, 3).fit().unwrap(), inventory(50, 3));
    }

    #[test]
    fn one_instance_that_is_too_large_keeps_no_other_out() {
        let mut mixed = inventory(3, 1);
        mixed.instances.insert(0, inventory(1, 5000).instances.remove(0));
        let fitted = mixed.fit().unwrap();
        assert_eq!((fitted.instances.len(), fitted.instances_left_out), (3, 4));
    }
}
