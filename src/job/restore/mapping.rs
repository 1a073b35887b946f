//! Which disk of the backup becomes the volume of which disk of the instance: pure.
//!
//! What the job says comes first; then the serial number; then, for a disk without one, target and source together, which is the path or the
//! name of the volume in its storage pool. Never the order,
//! never the target or the size alone: a volume that was written over by another's content is lost, a refusal is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::place::{device_of, place};
use super::plan::{InstanceDisk, RestorePlan};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::job::RestoreSpec;
use crate::model::manifest::{Manifest, ManifestDisk};
use crate::mover::protocol::{BlockDevice, RestoredVolume, VolumePlace};

/// Which disks become which, in the order of the backup, and what is unusual about that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// For each disk to be restored, the instance's disk and what is asked of the mover.
    pub volumes: Vec<(DiskTarget, RestoredVolume)>,
    /// In a sentence each.
    pub warnings: Vec<String>,
}

/// The block devices that disks of the backup would become, which have to be looked at before they are [mapped](map()).
pub fn devices(plan: &RestorePlan, spec: &RestoreSpec, manifest: &Manifest) -> Result<Vec<PathBuf>, Failure> {
    let pairs = pairs(plan, spec, manifest)?;
    Ok(pairs.iter().filter_map(|(_, onto)| device_of(onto).map(Path::to_owned)).collect())
}

/// Maps the disks that the job wants, where each block device among them is what `devices` says.
pub fn map(
    plan: &RestorePlan,
    spec: &RestoreSpec,
    manifest: &Manifest,
    devices: &BTreeMap<PathBuf, BlockDevice>,
) -> Result<Mapping, Failure> {
    let pairs = pairs(plan, spec, manifest)?;
    let (mut volumes, mut warnings): (Vec<(DiskTarget, RestoredVolume)>, _) = (Vec::new(), Vec::new());
    for (disk, onto) in &pairs {
        let volume = volume(plan, disk, onto, devices)?;
        warnings.extend(another_size(disk, onto, &volume.place, devices));
        if let Some((other, _)) = volumes.iter().find(|(_, other)| other.place.overlaps(&volume.place)) {
            let text =
                format!("disks `{other}` and `{}` of instance `{}` have one volume", onto.target, plan.instance_name);
            let path = volume.place.volume().display().to_string();
            return Err(Failure::new(Code::DiskAmbiguous, text).caused_by(path));
        }
        volumes.push((onto.target.clone(), volume));
    }
    let is_left = |disk: &&InstanceDisk| disk.is_own && !pairs.iter().any(|(_, onto)| onto.target == disk.target);
    let left = plan.disks.iter().filter(is_left);
    warnings.extend(left.map(|disk| format!("disk `{}` of the instance was left as it is", disk.target)));
    Ok(Mapping { volumes, warnings })
}

/// What is said of a disk that had another size than that of the backup.
fn another_size(
    disk: &ManifestDisk,
    onto: &InstanceDisk,
    place: &VolumePlace,
    devices: &BTreeMap<PathBuf, BlockDevice>,
) -> Option<String> {
    // What was looked at now counts more than what libvirt says of a device.
    let looked = match devices.get(place.volume()) {
        Some(BlockDevice::Bare { bytes, .. }) => Some(*bytes),
        Some(BlockDevice::Logical { .. }) | None => None,
    };
    let now = looked.or(onto.virtual_bytes).filter(|now| *now != disk.virtual_bytes)?;
    let (target, before) = (&onto.target, disk.virtual_bytes);
    Some(match place {
        VolumePlace::File { .. } | VolumePlace::Logical { .. } | VolumePlace::Rbd { .. } => {
            format!("disk `{target}` had {now} bytes and has {before} again, as at the backup")
        }
        VolumePlace::Device { .. } => {
            format!("disk `{target}` had {before} bytes at the backup and has {now}: those beyond are left as they are")
        }
    })
}

/// Which disk of the backup becomes which of the instance.
fn pairs<'p>(
    plan: &'p RestorePlan,
    spec: &RestoreSpec,
    manifest: &'p Manifest,
) -> Result<Vec<(&'p ManifestDisk, &'p InstanceDisk)>, Failure> {
    if manifest.instance_id != plan.instance_id {
        let text = format!(
            "backup `{}` is of instance `{}` and not of `{}`",
            manifest.backup_id, manifest.instance_id, plan.instance_id
        );
        return Err(Failure::new(Code::BackupNotFound, text));
    }
    must_be_in(manifest, spec.onto.keys())?;
    let wanted = wanted(&spec.disks, manifest)?;
    let mut taken: BTreeMap<&DiskTarget, &DiskTarget> = BTreeMap::new();
    let mut pairs = Vec::with_capacity(wanted.len());
    for disk in wanted {
        let onto = onto(plan, spec, disk)?;
        if let Some(other) = taken.insert(&onto.target, &disk.target) {
            let text = format!(
                "both disk `{other}` and disk `{}` of the backup would become disk `{}` of instance `{}`",
                disk.target, onto.target, plan.instance_name
            );
            return Err(Failure::new(Code::DiskAmbiguous, text));
        }
        pairs.push((disk, onto));
    }
    Ok(pairs)
}

/// Those of the backup's disks that are named; all of them where none is.
pub(super) fn wanted<'m>(disks: &[DiskTarget], manifest: &'m Manifest) -> Result<Vec<&'m ManifestDisk>, Failure> {
    must_be_in(manifest, disks.iter())?;
    Ok(manifest.disks.iter().filter(|disk| disks.is_empty() || disks.contains(&disk.target)).collect())
}

fn must_be_in<'t>(manifest: &Manifest, mut named: impl Iterator<Item = &'t DiskTarget>) -> Result<(), Failure> {
    match named.find(|target| !manifest.disks.iter().any(|disk| disk.target == **target)) {
        None => Ok(()),
        Some(target) => {
            let text = format!("backup `{}` has no disk `{target}`", manifest.backup_id);
            Err(Failure::new(Code::DiskNotFound, text))
        }
    }
}

/// The instance's disk that the backup's becomes.
fn onto<'p>(plan: &'p RestorePlan, spec: &RestoreSpec, disk: &ManifestDisk) -> Result<&'p InstanceDisk, Failure> {
    let fits: Box<dyn Fn(&InstanceDisk) -> bool> = match (spec.onto.get(&disk.target), &disk.serial) {
        (Some(target), _) => Box::new(move |found| found.target == *target),
        (None, Some(serial)) => Box::new(move |found| found.serial.as_ref() == Some(serial)),
        (None, None) => Box::new(|found| {
            found.serial.is_none() && found.target == disk.target && is_of_the_same_volume(found, disk)
        }),
    };
    let mut found = plan.disks.iter().filter(|found| fits(found));
    let failed = |code, what: &str| {
        let text = format!("{what} disk `{}` of backup `{}`", disk.target, plan.backup_id);
        Failure::new(code, text).caused_by("the job can name the disk that it is to become in `onto` (`--onto`)")
    };
    match (found.next(), found.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => Err(failed(Code::DiskNotFound, &format!("instance `{}` has no disk that is", plan.instance_name))),
        (Some(_), Some(_)) => Err(failed(
            Code::DiskAmbiguous,
            &format!("several disks of instance `{}` have the serial number of", plan.instance_name),
        )),
    }
}

/// A volume of a pool is known by its name there, wherever the pool has it on this host.
fn is_of_the_same_volume(found: &InstanceDisk, disk: &ManifestDisk) -> bool {
    let by_name = found.pool_volume.is_some() && found.pool_volume == disk.pool_volume;
    by_name || found.source.as_ref().is_some_and(|source| source.is_same_place(&disk.source))
}

fn volume(
    plan: &RestorePlan,
    disk: &ManifestDisk,
    onto: &InstanceDisk,
    devices: &BTreeMap<PathBuf, BlockDevice>,
) -> Result<RestoredVolume, Failure> {
    let device = device_of(onto).and_then(|path| devices.get(path));
    let (place, format) = place(plan, onto, disk.virtual_bytes, device).map_err(|why| {
        let text = format!(
            "the volume of disk `{}` of instance `{}` cannot be replaced: {why}",
            onto.target, plan.instance_name
        );
        Failure::new(Code::DiskUnsupported, text)
    })?;
    Ok(RestoredVolume {
        disk: disk.target.clone(),
        virtual_bytes: disk.virtual_bytes,
        content_root: disk.content_root.clone(),
        format,
        place,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::model::instance::PoolVolume;

    const GIB: u64 = 1 << 30;

    fn file(path: &str) -> Value {
        json!({ "file": { "path": path, "format": "raw" } })
    }

    /// An instance's disk: target, serial, path.
    fn has(target: &str, serial: Option<&str>, path: &str) -> InstanceDisk {
        let disk =
            json!({ "target": target, "serial": serial, "source": file(path), "virtual_bytes": GIB, "is_own": true });
        serde_json::from_value(disk).unwrap()
    }

    fn plan(disks: Vec<InstanceDisk>) -> RestorePlan {
        let plan = serde_json::from_str(include_str!("../../../tests/fixtures/restore-plan.json")).unwrap();
        RestorePlan { disks, ..plan }
    }

    fn plan_of_two(second: &str) -> RestorePlan {
        plan(vec![has("vda", Some("s1"), "/pool/a"), has("vdb", Some("s2"), second)])
    }

    /// A backup's disks: target, serial, path.
    fn manifest(disks: &[(&str, Option<&str>, &str)]) -> Manifest {
        let disk = |(target, serial, path): &(&str, Option<&str>, &str)| {
            json!({
                "target": target, "serial": serial, "source": file(path), "file": format!("{target}.qcow2"),
                "virtual_bytes": GIB, "file_bytes": 1, "data_bytes": 1, "blocks_file": format!("{target}.blocks"),
                "content_root": "00",
            })
        };
        let plan = plan(Vec::new());
        let manifest = json!({
            "format": 1, "backup_id": plan.backup_id, "number": 1,
            "repository_id": "01890000-0000-7000-8000-00000000000c", "instance_id": plan.instance_id,
            "instance_name": "web", "instance_state": "shut_off", "job_id": plan.key.job_id, "run": 1, "attempt": 1,
            "transfer": "stopped", "taken_at": "2026-03-01T02:00:00Z", "finished_at": "2026-03-01T02:00:01Z",
            "quiesce": { "requested": "off", "consistency": "crash" }, "verification": "compared",
            "disks": disks.iter().map(disk).collect::<Vec<_>>(), "records": [],
            "made_by": { "host": "kvm-07", "longshore": "0", "libvirt": "9.0.0", "qemu": "7.2.0" },
        });
        serde_json::from_value(manifest).unwrap()
    }

    fn spec(disks: &[&str], onto: &[(&str, &str)]) -> RestoreSpec {
        RestoreSpec {
            backup_id: plan(Vec::new()).backup_id,
            disks: disks.iter().map(|disk| disk.parse().unwrap()).collect(),
            onto: onto.iter().map(|(disk, target)| (disk.parse().unwrap(), target.parse().unwrap())).collect(),
            keep_previous: false,
            dry_run: false,
            overwrite: false,
        }
    }

    /// No block device is there.
    fn map(plan: &RestorePlan, spec: &RestoreSpec, manifest: &Manifest) -> Result<Mapping, Failure> {
        super::map(plan, spec, manifest, &BTreeMap::new())
    }

    /// Which disk becomes which volume.
    fn mapped(plan: &RestorePlan, spec: &RestoreSpec, manifest: &Manifest) -> Result<Vec<(String, String)>, Code> {
        let mapping = map(plan, spec, manifest).map_err(|failure| failure.code)?;
        let pairs = mapping.volumes.iter();
        Ok(pairs.map(|(target, volume)| (volume.disk.to_string(), target.to_string())).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Result<Vec<(String, String)>, Code> {
        Ok(pairs.iter().map(|(disk, target)| ((*disk).to_owned(), (*target).to_owned())).collect())
    }

    #[test]
    fn a_serial_is_followed_wherever_its_disk_went() {
        let plan = plan(vec![has("vda", Some("s2"), "/pool/b"), has("vdb", Some("s1"), "/pool/a")]);
        let manifest = manifest(&[("vda", Some("s1"), "/pool/a"), ("vdb", Some("s2"), "/pool/b")]);
        assert_eq!(mapped(&plan, &spec(&[], &[]), &manifest), pairs(&[("vda", "vdb"), ("vdb", "vda")]));
        assert_eq!(mapped(&plan, &spec(&["vdb"], &[]), &manifest), pairs(&[("vdb", "vda")]));
    }

    #[test]
    fn without_a_serial_target_and_source_must_agree() {
        let manifest = manifest(&[("vda", None, "/pool/a")]);
        let fits = plan(vec![has("vda", None, "/pool/a"), has("vdb", None, "/pool/b")]);
        assert_eq!(mapped(&fits, &spec(&[], &[]), &manifest), pairs(&[("vda", "vda")]));
        // Of the same size and target, and all the same perhaps another volume.
        let moved = plan(vec![has("vda", None, "/other/a")]);
        assert_eq!(mapped(&moved, &spec(&[], &[]), &manifest), Err(Code::DiskNotFound));
        assert_eq!(mapped(&moved, &spec(&[], &[("vda", "vda")]), &manifest), pairs(&[("vda", "vda")]));
        // Another path of the same volume of a pool.
        let named = |pool: &str| Some(PoolVolume { pool: pool.to_owned(), volume: "a".to_owned() });
        let pooled = |pool| plan(vec![InstanceDisk { pool_volume: named(pool), ..has("vda", None, "/other/a") }]);
        let mut of_pool = manifest.clone();
        of_pool.disks[0].pool_volume = named("fast");
        assert_eq!(mapped(&pooled("fast"), &spec(&[], &[]), &of_pool), pairs(&[("vda", "vda")]));
        assert_eq!(mapped(&pooled("slow"), &spec(&[], &[]), &of_pool), Err(Code::DiskNotFound));
        assert_eq!(mapped(&pooled("fast"), &spec(&[], &[]), &manifest), Err(Code::DiskNotFound));
        let serial = plan(vec![has("vda", Some("s1"), "/pool/a")]);
        assert_eq!(mapped(&serial, &spec(&[], &[]), &manifest), Err(Code::DiskNotFound));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        let twins = plan(vec![has("vda", Some("s1"), "/pool/a"), has("vdb", Some("s1"), "/pool/b")]);
        let one = manifest(&[("vda", Some("s1"), "/pool/a")]);
        assert_eq!(mapped(&twins, &spec(&[], &[]), &one), Err(Code::DiskAmbiguous));
        assert_eq!(mapped(&twins, &spec(&[], &[("vda", "vdb")]), &one), pairs(&[("vda", "vdb")]));
        let one_file = plan_of_two("/pool/a");
        let two = manifest(&[("vda", Some("s1"), "/pool/a"), ("vdb", Some("s2"), "/pool/b")]);
        assert_eq!(mapped(&one_file, &spec(&[], &[]), &two), Err(Code::DiskAmbiguous));
        let both = plan_of_two("/pool/b");
        assert_eq!(mapped(&both, &spec(&[], &[("vdb", "vda")]), &two), Err(Code::DiskAmbiguous));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let plan = plan(vec![has("vda", Some("s1"), "/pool/a")]);
        let manifest = manifest(&[("vda", Some("s1"), "/pool/a")]);
        assert_eq!(mapped(&plan, &spec(&["vdc"], &[]), &manifest), Err(Code::DiskNotFound));
        assert_eq!(mapped(&plan, &spec(&[], &[("vda", "vdc")]), &manifest), Err(Code::DiskNotFound));
        let other = Manifest { instance_id: crate::model::id::InstanceId::draw(), ..manifest };
        assert_eq!(mapped(&plan, &spec(&[], &[]), &other), Err(Code::BackupNotFound));
    }

    #[test]
    fn a_volume_that_cannot_be_replaced_says_why() {
        let fixed = InstanceDisk { fixed: Some("it is shared".into()), ..has("vda", Some("s1"), "/pool/a") };
        let failure =
            map(&plan(vec![fixed]), &spec(&[], &[]), &manifest(&[("vda", Some("s1"), "/pool/a")])).unwrap_err();
        assert_eq!(failure.code, Code::DiskUnsupported);
        assert!(failure.text.ends_with("it is shared"), "{failure:#}");
    }

    #[test]
    fn another_size_and_what_is_left_are_said() {
        let grown = InstanceDisk { virtual_bytes: Some(2 * GIB), ..has("vda", Some("s1"), "/pool/a") };
        let plan = plan(vec![grown, has("vdb", None, "/pool/b")]);
        let mapping = map(&plan, &spec(&[], &[]), &manifest(&[("vda", Some("s1"), "/pool/a")])).unwrap();
        assert_eq!(
            mapping.warnings,
            [
                "disk `vda` had 2147483648 bytes and has 1073741824 again, as at the backup",
                "disk `vdb` of the instance was left as it is",
            ]
        );
        let volume = &mapping.volumes[0].1;
        let names = [volume.place.fresh(), volume.place.previous()].map(|path| path.unwrap().display().to_string());
        assert_eq!(names, ["/pool/a.longshore-00000000000b.1.1.new", "/pool/a.longshore-00000000000b.1.1.previous"]);
    }
}
