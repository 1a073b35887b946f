//! Where a restored volume comes to be: beside the old file, logical volume or RBD image, or over a block device. Pure.

use std::path::{Path, PathBuf};

use super::plan::{InstanceDisk, RestorePlan};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::mover::protocol::{BlockDevice, MAPPER_NAME_BYTES_MAX, VolumePlace, mapper_name};

/// Longest name of a file, bytes (`NAME_MAX`).
const FILE_NAME_BYTES_MAX: usize = 255;

/// The block device that has to be looked at before it is known where a disk comes to be.
pub(super) fn device_of(onto: &InstanceDisk) -> Option<&Path> {
    match (&onto.fixed, &onto.source) {
        (None, Some(DiskSource::Block { path, .. })) => Some(path),
        _ => None,
    }
}

/// Where a disk of so many bytes comes to be that becomes that one of the instance, and in which format; or why it can't, in a
/// sentence. `device` is what a look at a block device has found.
pub(super) fn place(
    plan: &RestorePlan,
    onto: &InstanceDisk,
    virtual_bytes: u64,
    device: Option<&BlockDevice>,
) -> Result<(VolumePlace, ImageFormat), String> {
    if let Some(why) = &onto.fixed {
        return Err(why.clone());
    }
    // As the definition has it, by which the instance's QEMU opens the volume.
    match (&onto.source, device) {
        (Some(DiskSource::File { path, format }), _) => {
            let beside = |what: &str| beside(path, plan, what).ok_or("its name is too long");
            let (fresh, previous) = (beside("new")?, beside("previous")?);
            Ok((VolumePlace::File { volume: path.clone(), fresh, previous }, *format))
        }
        (Some(DiskSource::Network { name, format, access, .. }), _) => {
            let volume = PathBuf::from(name);
            let beside = |what: &str| beside(&volume, plan, what).ok_or("its name is too long");
            let (fresh, previous) = (beside("new")?, beside("previous")?);
            Ok((VolumePlace::Rbd { access: access.clone(), volume, fresh, previous }, *format))
        }
        (Some(DiskSource::Block { path, format }), Some(BlockDevice::Logical { group, name, uuid, .. })) => {
            logical(plan, path, (group, name), uuid.clone()).map(|place| (place, *format))
        }
        (Some(DiskSource::Block { path, format }), Some(BlockDevice::Bare { numbers, bytes })) => {
            if !plan.overwrite {
                return Err("no second one can take the place of a block device: it would be written over, with no way back, for which the \
                            job has to ask with `overwrite` (`--overwrite`)"
                    .to_owned());
            }
            if *bytes < virtual_bytes {
                return Err(format!("it has {bytes} bytes, and the disk of the backup {virtual_bytes}"));
            }
            Ok((VolumePlace::Device { volume: path.clone(), numbers: *numbers }, *format))
        }
        (Some(DiskSource::Block { .. }), None) => Err("nobody has looked what block device it is".to_owned()),
        (source, _) => Err(format!("its source is {source:?}")),
    }
}

/// `<file>.longshore-<mover's name>.<what>`: no other attempt's, and plain to whoever finds it. The name of an RBD image may be as long.
fn beside(path: &Path, plan: &RestorePlan, what: &str) -> Option<PathBuf> {
    let mut name = path.file_name()?.to_owned();
    name.push(format!(".longshore-{}.{what}", plan.mover_name));
    (name.len() <= FILE_NAME_BYTES_MAX).then(|| path.with_file_name(name))
}

fn logical(
    plan: &RestorePlan,
    path: &Path,
    (group, name): (&str, &str),
    uuid: Option<String>,
) -> Result<VolumePlace, String> {
    let directory = Path::new("/dev").join(group);
    let by_name = directory.join(name);
    if path != by_name && path != Path::new("/dev/mapper").join(mapper_name(group, name)) {
        return Err(format!(
            "`{}` is the logical volume `{group}/{name}`, and would still be the old one after the exchange: the definition has to name \
             it as `{}`",
            path.display(),
            by_name.display()
        ));
    }
    let beside = |what: &str| {
        let name = format!("{name}.longshore-{}.{what}", plan.mover_name);
        let fits = mapper_name(group, &name).len() <= MAPPER_NAME_BYTES_MAX;
        fits.then(|| directory.join(name)).ok_or("its name is too long")
    };
    Ok(VolumePlace::Logical {
        volume: path.to_owned(),
        group: group.to_owned(),
        name: name.to_owned(),
        uuid,
        fresh: beside("new")?,
        previous: beside("previous")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::mover::protocol::DeviceNumbers;

    const GIB: u64 = 1 << 30;

    fn plan(overwrite: bool) -> RestorePlan {
        let plan = serde_json::from_str(include_str!("../../../tests/fixtures/restore-plan.json")).unwrap();
        RestorePlan { overwrite, ..plan }
    }

    fn on(path: &str) -> InstanceDisk {
        let source = json!({ "block": { "path": path, "format": "raw" } });
        serde_json::from_value(json!({ "target": "vda", "source": source, "is_own": true })).unwrap()
    }

    fn logical_of(path: &str, group: &str, name: &str) -> Result<VolumePlace, String> {
        let uuid = Some("uuid".to_owned());
        let device = BlockDevice::Logical { group: group.to_owned(), name: name.to_owned(), uuid, bytes: GIB };
        place(&plan(true), &on(path), GIB, Some(&device)).map(|(place, _)| place)
    }

    #[test]
    fn a_logical_volume_gets_two_more_names_in_its_group() {
        for path in ["/dev/vg-0/web", "/dev/mapper/vg--0-web"] {
            let place = logical_of(path, "vg-0", "web").unwrap();
            assert_eq!(place.volume(), Path::new(path));
            assert!(matches!(&place, VolumePlace::Logical { uuid: Some(uuid), .. } if uuid == "uuid"), "{place:?}");
            assert_eq!(place.fresh().unwrap(), Path::new("/dev/vg-0/web.longshore-00000000000b.1.1.new"));
            assert_eq!(place.previous().unwrap(), Path::new("/dev/vg-0/web.longshore-00000000000b.1.1.previous"));
        }
        for path in ["/dev/dm-3", "/dev/disk/by-id/dm-uuid-LVM-x", "/dev/vg-0/other", "/dev/mapper/vg-0-web"] {
            let refused = logical_of(path, "vg-0", "web").unwrap_err();
            assert!(refused.contains("`/dev/vg-0/web`"), "{refused}");
        }
        let long = "a".repeat(100);
        assert!(logical_of(&format!("/dev/vg/{long}"), "vg", &long).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_bare_device_is_written_over_only_where_that_was_asked_for_and_it_is_large_enough() {
        let numbers = DeviceNumbers { device: 7, whole: 7, sequence: None };
        let found = |bytes| Some(BlockDevice::Bare { numbers, bytes });
        let placed = |overwrite, bytes: u64| place(&plan(overwrite), &on("/dev/sdx"), GIB, found(bytes).as_ref());
        let (place, format) = placed(true, GIB).unwrap();
        assert_eq!((place.fresh(), place.previous(), format), (None, None, ImageFormat::Raw));
        assert!(placed(true, 2 * GIB).is_ok());
        assert!(placed(false, GIB).unwrap_err().contains("`overwrite`"));
        assert!(placed(true, GIB - 512).unwrap_err().contains("1073741312 bytes"));
    }
}
