//! Where a restore puts what a backup holds, where that is not in place: an instance of its own, or a file.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::id::{DiskTarget, InstanceId, InstanceName, InstanceRef};
use super::instance::ImageFormat;

/// Longest path of a new volume, bytes (`PATH_MAX` with its closing zero).
pub const PATH_BYTES_MAX: usize = 4095;

/// Somewhere else than in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// An instance of its own, from the definition that the backup holds.
    NewInstance(NewInstanceSpec),
    /// One disk in a file.
    Volume(NewVolumeSpec),
}

/// What becomes of the MAC addresses of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MacAddresses {
    /// Each interface gets one that no instance of the host has.
    #[default]
    New,
    /// They stay, and no instance of the host may have one of them.
    Preserve,
}

/// An instance that a restore makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInstanceSpec {
    /// Its name.
    pub name: InstanceName,
    /// Its uuid; drawn when absent.
    pub id: Option<InstanceId>,
    /// Its MAC addresses.
    pub mac_addresses: MacAddresses,
    /// Where its volumes are made; in the first directory that the host allows when absent.
    pub directory: Option<PathBuf>,
    /// Paths of volumes, by the disks of the backup; the others get names of their own in `directory`.
    pub volumes: BTreeMap<DiskTarget, PathBuf>,
    /// It is started.
    pub start: bool,
}

/// A file that a restore makes of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVolumeSpec {
    /// Its path.
    pub path: PathBuf,
    /// In which format.
    pub format: ImageFormat,
    /// What it becomes a disk of.
    pub attach: Option<Attach>,
}

/// How a file becomes a disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The instance, which runs or is shut off.
    pub instance: InstanceRef,
    /// A target that it has free.
    pub target: DiskTarget,
    /// The bus.
    pub bus: DiskBus,
}

/// A bus of disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    /// Paravirtual: `vda` and so on.
    #[default]
    Virtio,
    /// SCSI: `sda` and so on.
    Scsi,
    /// SATA: `sda` and so on; not while the instance runs.
    Sata,
    /// USB: `sda` and so on.
    Usb,
}

impl DiskBus {
    /// libvirt's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            DiskBus::Virtio => "virtio",
            DiskBus::Scsi => "scsi",
            DiskBus::Sata => "sata",
            DiskBus::Usb => "usb",
        }
    }

    /// A disk on this bus has such a target.
    pub fn fits(self, target: &DiskTarget) -> bool {
        let prefix = if self == DiskBus::Virtio { "vd" } else { "sd" };
        let letters = target.as_str().strip_prefix(prefix);
        letters.is_some_and(|letters| !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_lowercase()))
    }

    /// A disk may come while the instance runs.
    pub const fn takes_disks_at_any_time(self) -> bool {
        !matches!(self, DiskBus::Sata)
    }
}

/// Why a path cannot be one of a new volume, in words; none if it can. It is absolute, every part of it is plain, and it can stand in a
/// definition.
pub fn path_fault(path: &Path) -> Option<&'static str> {
    let Some(text) = path.to_str() else { return Some("it is not in UTF-8") };
    // `components` swallows what is to be refused here.
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    match text.strip_prefix('/') {
        None => Some("it is not absolute"),
        Some(_) if text.len() > PATH_BYTES_MAX => Some("it is too long"),
        Some(_) if text.chars().any(char::is_control) => Some("a control character is in it"),
        Some(rest) if rest.split('/').all(plain) => None,
        Some(_) => Some("a part of it is empty, `.`, `..` or too long"),
    }
}

/// The directory of `roots` that a path is below, the nearest one, and what comes after it. Links are for whoever opens it.
pub fn below<'p>(roots: &[PathBuf], path: &'p Path) -> Option<(PathBuf, &'p Path)> {
    let fits = roots.iter().filter_map(|root| Some((root, path.strip_prefix(root).ok()?)));
    let found = fits.filter(|(_, rest)| rest.components().all(|part| matches!(part, Component::Normal(_))));
    let (root, rest) = found.max_by_key(|(root, _)| root.components().count())?;
    (!rest.as_os_str().is_empty()).then(|| (root.clone(), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_plain_absolute_paths_are_taken() {
        assert_eq!(path_fault(Path::new("/var/lib/libvirt/images/a b.qcow2")), None);
        let long = format!("/{}", "a/".repeat(2048));
        for path in ["a.qcow2", "", "/", "/a/", "/a/../b", "/a/./b", "/a//b", "/a\nb", "/\u{7f}", &long] {
            assert!(path_fault(Path::new(path)).is_some(), "{path}");
        }
    }

    #[test]
    fn a_path_is_below_the_nearest_root_and_never_one_itself() {
        let roots = [PathBuf::from("/images"), PathBuf::from("/images/fast")];
        let (root, rest) = below(&roots, Path::new("/images/fast/a/b.raw")).unwrap();
        assert_eq!((root.as_path(), rest), (Path::new("/images/fast"), Path::new("a/b.raw")));
        for path in ["/images", "/imagesque/a", "/other/a", "/images/../etc/passwd", "images/a"] {
            assert_eq!(below(&roots, Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn targets_fit_their_bus() {
        let fits = |bus: DiskBus, target: &str| bus.fits(&target.parse().unwrap());
        assert!(fits(DiskBus::Virtio, "vdb") && fits(DiskBus::Scsi, "sdaa") && fits(DiskBus::Usb, "sdb"));
        assert!(!fits(DiskBus::Virtio, "sdb") && !fits(DiskBus::Sata, "vdb") && !fits(DiskBus::Virtio, "vd"));
        assert!(!fits(DiskBus::Virtio, "vdb1") && !fits(DiskBus::Scsi, "hda"));
    }
}
