//! What a restore to elsewhere makes of a backup, as its publisher writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{at_most, invalid, parsed, targets, word_or_default};
use super::from_job::word_of;
use super::{InstancePart, RESTORED_DISKS_MAX};
use crate::message::named::{named, named_option};
use crate::message::refusal::Refusal;
use crate::model::destination::{
    Attach, Destination, DiskBus, MacAddresses, NewInstanceSpec, NewVolumeSpec, PATH_BYTES_MAX, path_fault,
};
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::ImageFormat;
use crate::model::job::RestoreNewSpec;

/// What a job of the kind `restore-new` asks for: what a backup holds comes to be where nothing was, as an instance or as a volume, exactly one
/// of the two. Nothing that is there is overwritten or changed, and whatever goes wrong, all of it comes to be or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("oneOf" = [{ "required": ["new_instance"] }, { "required": ["volume"] }]))]
pub struct RestoreNewPart {
    /// The backup.
    #[schemars(with = "BackupId")]
    pub backup_id: String,
    /// Targets of the backup's disks that are restored; all of them when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<DiskTarget>", length(max = RESTORED_DISKS_MAX))]
    pub disks: Vec<String>,
    /// An instance of its own, from the definition that the backup holds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    pub new_instance: Option<NewInstancePart>,
    /// One disk in a file.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    pub volume: Option<NewVolumePart>,
    /// Nothing is made: the `completed` event says in `restore_plan` what would be. A worker that does not know this field skips it, and
    /// restores: which version a worker has, its `worker.online` tells.
    #[serde(default)]
    pub dry_run: bool,
}

/// An instance that a restore makes. The job's `instance` is the one whose backup it is; named by its uuid, it need not be there any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewInstancePart {
    /// Its name, which no instance of the host has.
    #[schemars(with = "InstanceName")]
    pub name: String,
    /// Its uuid, which no instance of the host has; drawn when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<InstanceId>")]
    pub id: Option<String>,
    /// Whether its interfaces get other MAC addresses; `new` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<MacAddresses>")]
    pub mac_addresses: Option<String>,
    /// The directory for its volumes, one that the host allows or below it; the first one that the host allows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = PATH_BYTES_MAX))]
    pub directory: Option<String>,
    /// Paths of volumes, by disks of the backup. Those that are not named here are `<name>-<target>.<format>` in the directory.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<DiskTarget, String>", extend("maxProperties" = RESTORED_DISKS_MAX))]
    pub volumes: BTreeMap<String, String>,
    /// It is started as well.
    #[serde(default)]
    pub start: bool,
}

/// A file that a restore makes of one disk, which `disks` names where the backup has several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewVolumePart {
    /// Its path, below a directory that the host allows. Nothing is there.
    #[schemars(length(min = 2, max = PATH_BYTES_MAX))]
    pub path: String,
    /// Its format; `qcow2` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ImageFormat>")]
    pub format: Option<String>,
    /// What it becomes a disk of; of nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "named_option")]
    pub attach: Option<AttachPart>,
}

/// How a file becomes a disk of an instance, which runs or is shut off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachPart {
    /// The instance.
    #[serde(deserialize_with = "named")]
    pub instance: InstancePart,
    /// A target that it has free and that fits the bus: `vd…` for `virtio`, `sd…` for the others.
    #[schemars(with = "DiskTarget")]
    pub target: String,
    /// The bus; `virtio` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DiskBus>")]
    pub bus: Option<String>,
}

impl RestoreNewPart {
    /// What it asks for, if that can be asked for.
    pub(crate) fn check(&self) -> Result<RestoreNewSpec, Refusal> {
        at_most("restore_new.disks (count)", self.disks.len(), RESTORED_DISKS_MAX)?;
        let disks = targets("restore_new.disks", &self.disks)?;
        let to = match (&self.new_instance, &self.volume) {
            (Some(part), None) => Destination::NewInstance(part.check()?),
            (None, Some(_)) if disks.len() > 1 => {
                return Err(invalid("restore_new.disks", "one volume is made of one disk"));
            }
            (None, Some(part)) => Destination::Volume(part.check()?),
            _ => return Err(invalid("restore_new", "it has either `new_instance` or `volume`")),
        };
        let backup_id = parsed("restore_new.backup_id", &self.backup_id)?;
        Ok(RestoreNewSpec { backup_id, disks, to, dry_run: self.dry_run })
    }
}

fn path(field: &str, text: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(text);
    match path_fault(&path) {
        None => Ok(path),
        Some(fault) => Err(invalid(field, fault)),
    }
}

impl NewInstancePart {
    fn check(&self) -> Result<NewInstanceSpec, Refusal> {
        at_most("restore_new.new_instance.volumes (count)", self.volumes.len(), RESTORED_DISKS_MAX)?;
        let volumes = self.volumes.iter().map(|(disk, volume)| {
            let disk = parsed::<DiskTarget>("restore_new.new_instance.volumes (a disk of the backup)", disk)?;
            Ok((disk.clone(), path(&format!("restore_new.new_instance.volumes.{disk}"), volume)?))
        });
        let directory = self.directory.as_deref().map(|text| path("restore_new.new_instance.directory", text));
        Ok(NewInstanceSpec {
            name: parsed("restore_new.new_instance.name", &self.name)?,
            id: self.id.as_deref().map(|id| parsed("restore_new.new_instance.id", id)).transpose()?,
            mac_addresses: word_or_default("restore_new.new_instance.mac_addresses", self.mac_addresses.as_ref())?,
            directory: directory.transpose()?,
            volumes: volumes.collect::<Result<_, Refusal>>()?,
            start: self.start,
        })
    }
}

impl NewVolumePart {
    fn check(&self) -> Result<NewVolumeSpec, Refusal> {
        Ok(NewVolumeSpec {
            path: path("restore_new.volume.path", &self.path)?,
            format: word_or_default("restore_new.volume.format", self.format.as_ref())?,
            attach: self.attach.as_ref().map(AttachPart::check).transpose()?,
        })
    }
}

impl AttachPart {
    fn check(&self) -> Result<Attach, Refusal> {
        let bus: DiskBus = word_or_default("restore_new.volume.attach.bus", self.bus.as_ref())?;
        let target = parsed("restore_new.volume.attach.target", &self.target)?;
        if !bus.fits(&target) {
            let rule = format_args!("it does not fit the bus `{}`: `vd…` for `virtio`, `sd…` for others", bus.as_str());
            return Err(invalid("restore_new.volume.attach.target", rule));
        }
        Ok(Attach { instance: self.instance.check_as("restore_new.volume.attach.instance")?, target, bus })
    }
}

impl From<&RestoreNewSpec> for RestoreNewPart {
    fn from(spec: &RestoreNewSpec) -> Self {
        let (new_instance, volume) = match &spec.to {
            Destination::NewInstance(spec) => (Some(spec.into()), None),
            Destination::Volume(spec) => (None, Some(spec.into())),
        };
        let disks = spec.disks.iter().map(ToString::to_string).collect();
        Self { backup_id: spec.backup_id.to_string(), disks, new_instance, volume, dry_run: spec.dry_run }
    }
}

impl From<&NewInstanceSpec> for NewInstancePart {
    fn from(spec: &NewInstanceSpec) -> Self {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        Self {
            name: spec.name.to_string(),
            id: spec.id.map(|id| id.to_string()),
            mac_addresses: Some(word_of(spec.mac_addresses)),
            directory: spec.directory.as_ref().map(text),
            volumes: spec.volumes.iter().map(|(disk, path)| (disk.to_string(), text(path))).collect(),
            start: spec.start,
        }
    }
}

impl From<&NewVolumeSpec> for NewVolumePart {
    fn from(spec: &NewVolumeSpec) -> Self {
        let attach = spec.attach.as_ref().map(|attach| AttachPart {
            instance: (&attach.instance).into(),
            target: attach.target.to_string(),
            bus: Some(word_of(attach.bus)),
        });
        Self { path: spec.path.to_string_lossy().into_owned(), format: Some(word_of(spec.format)), attach }
    }
}
