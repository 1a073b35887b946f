//! Where a restore puts a backup, as options of the command line: for `job publish restore` and for `backup plan-restore`.

use clap::{ArgGroup, Args};

use super::publish::pair;
use crate::message::job::{AttachPart, InstancePart, NewInstancePart, NewVolumePart, RestoreNewPart};
use crate::model::id::InstanceId;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("to").args(["new_instance", "volume"]))]
pub struct ToArgs {
    /// Make a new instance of that name from the definition in the backup
    #[arg(long, value_name = "NAME", conflicts_with_all = ["onto", "keep_previous", "overwrite"])]
    new_instance: Option<String>,
    /// Uuid of the new instance; drawn when absent
    #[arg(long, value_name = "UUID", requires = "new_instance")]
    new_id: Option<String>,
    /// Keep the MAC addresses, which no instance of the host may have
    #[arg(long, requires = "new_instance")]
    preserve_mac_addresses: bool,
    /// Directory for the volumes of the new instance; the first one that the host allows when absent
    #[arg(long, value_name = "DIRECTORY", requires = "new_instance")]
    volume_directory: Option<String>,
    /// Path of the volume of one disk of the new instance; may be repeated
    #[arg(long, value_name = "TARGET=PATH", value_parser = pair, requires = "new_instance")]
    volume_path: Vec<(String, String)>,
    /// Start the new instance
    #[arg(long, requires = "new_instance")]
    start: bool,
    /// Make a new volume of one disk, at that path
    #[arg(long, value_name = "PATH", conflicts_with_all = ["onto", "keep_previous", "overwrite"])]
    volume: Option<String>,
    /// Format of the volume
    #[arg(long, default_value = "qcow2", value_parser = ["qcow2", "raw"], requires = "volume")]
    format: String,
    /// Attach the volume to this instance, by uuid or name, which runs or is shut off
    #[arg(long, value_name = "INSTANCE", requires = "volume", requires = "attach_target")]
    attach_to: Option<String>,
    /// Target under which it is attached, such as vdb
    #[arg(long, value_name = "TARGET", requires = "attach_to")]
    attach_target: Option<String>,
    /// Bus on which it is attached
    #[arg(long, default_value = "virtio", value_parser = ["virtio", "scsi", "sata", "usb"], requires = "attach_to")]
    attach_bus: String,
}

impl ToArgs {
    /// None for a restore in place.
    pub fn part(&self, backup_id: &str, disks: &[String], dry_run: bool) -> Option<RestoreNewPart> {
        let new_instance = self.new_instance.as_ref().map(|name| NewInstancePart {
            name: name.clone(),
            id: self.new_id.clone(),
            mac_addresses: Some(if self.preserve_mac_addresses { "preserve" } else { "new" }.to_owned()),
            directory: self.volume_directory.clone(),
            volumes: self.volume_path.iter().cloned().collect(),
            start: self.start,
        });
        let volume =
            self.volume.as_ref().map(|path| NewVolumePart {
                path: path.clone(),
                format: Some(self.format.clone()),
                attach: self.attach_to.as_deref().zip(self.attach_target.clone()).map(|(instance, target)| {
                    AttachPart { instance: instance_part(instance), target, bus: Some(self.attach_bus.clone()) }
                }),
            });
        (new_instance.is_some() || volume.is_some()).then(|| RestoreNewPart {
            backup_id: backup_id.to_owned(),
            disks: disks.to_vec(),
            new_instance,
            volume,
            dry_run,
        })
    }
}

/// An instance by uuid or by name.
pub fn instance_part(instance: &str) -> InstancePart {
    match instance.parse::<InstanceId>() {
        Ok(_) => InstancePart { id: Some(instance.to_owned()), name: None },
        Err(_) => InstancePart { id: None, name: Some(instance.to_owned()) },
    }
}
