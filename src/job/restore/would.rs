//! What a restore would do, once its backup was seen: the same for a job that only says so and for the command line. Pure.

use std::path::Path;

use super::elsewhere::ElsewherePlan;
use super::elsewhere::choose::{Becomes, Choice};
use super::mapping::Mapping;
use crate::model::destination::{Destination, NewInstanceSpec};
use crate::model::id::DiskTarget;
use crate::model::job::RestoreNewSpec;
use crate::model::manifest::Manifest;
use crate::model::restoration::{PlannedInstance, PlannedRestore, PlannedVolume};
use crate::mover::protocol::{NewContent, NewFile, RestoredVolume, VolumePlace};

/// Of a restore in place. `data_bytes` are what the backup holds of each disk as data, with what it is based on, in the mapping's order.
pub fn in_place(manifest: &Manifest, mapping: &Mapping, data_bytes: &[u64]) -> PlannedRestore {
    let volumes = mapping.volumes.iter().zip(data_bytes).map(|((target, volume), data_bytes)| PlannedVolume {
        disk: volume.disk.clone(),
        target: target.clone(),
        path: shown(volume.place.volume()),
        format: volume.format,
        virtual_bytes: volume.virtual_bytes,
        // Zeros as well: it holds anything.
        data_bytes: if is_device(volume) { volume.virtual_bytes } else { *data_bytes },
        replaces: true,
        overwrites: is_device(volume),
    });
    planned(manifest, volumes.collect())
}

/// Of a restore to elsewhere. `data_bytes` are what the backup holds of each disk as data, with what it is based on, in their order among
/// the files.
pub fn elsewhere(
    plan: &ElsewherePlan,
    spec: &RestoreNewSpec,
    manifest: &Manifest,
    choice: &Choice,
    data_bytes: &[u64],
) -> PlannedRestore {
    let id_is_drawn = matches!(&spec.to, Destination::NewInstance(NewInstanceSpec { id: None, .. }));
    let (mut volumes, mut files, mut data_bytes) = (Vec::new(), Vec::new(), data_bytes.iter());
    for NewFile { content, path, .. } in &choice.new.files {
        match content {
            NewContent::Disk { disk, virtual_bytes, format, .. } => volumes.push(PlannedVolume {
                disk: disk.clone(),
                target: attached_as(&choice.becomes).unwrap_or(disk).clone(),
                path: shown(path),
                format: *format,
                virtual_bytes: *virtual_bytes,
                data_bytes: data_bytes.next().copied().unwrap_or(0),
                replaces: false,
                overwrites: false,
            }),
            NewContent::Record { .. } => files.push(shown(path)),
        }
    }
    let (new_instance, attach_to) = match &choice.becomes {
        Becomes::Instance(new) => {
            let start = plan.starts();
            (Some(PlannedInstance { id: new.id, id_is_drawn, name: new.name.clone(), start }), None)
        }
        Becomes::Disk { instance_id, instance_name, .. } => {
            let (id, name) = (*instance_id, instance_name.clone());
            (None, Some(PlannedInstance { id, id_is_drawn: false, name, start: false }))
        }
        Becomes::File => (None, None),
    };
    PlannedRestore { files, new_instance, attach_to, ..planned(manifest, volumes) }
}

fn planned(manifest: &Manifest, volumes: Vec<PlannedVolume>) -> PlannedRestore {
    PlannedRestore {
        backup_id: manifest.backup_id,
        number: manifest.number,
        taken_at: manifest.taken_at,
        data_bytes: volumes.iter().fold(0, |sum, volume| sum.saturating_add(volume.data_bytes)),
        volumes,
        files: Vec::new(),
        new_instance: None,
        attach_to: None,
    }
}

fn attached_as(becomes: &Becomes) -> Option<&DiskTarget> {
    match becomes {
        Becomes::Disk { disk, .. } => Some(&disk.target),
        Becomes::Instance(_) | Becomes::File => None,
    }
}

fn is_device(volume: &RestoredVolume) -> bool {
    matches!(volume.place, VolumePlace::Device { .. })
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
