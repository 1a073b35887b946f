//! What libvirt's statistics say of a domain's disks: how large they are, and what they have written for the guest.
//!
//! How much a disk holds is the sum over its chain of images, since the top one of a linked clone holds only what its guest
//! has changed. libvirt gives that for a running domain alone. It knows nothing better than a highest written offset for block
//! devices, and nothing for network sources: those stay unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use virt::domain::Domain;
use virt_sys as sys;

use super::super::WriteCounters;
use super::raw::{Value, Values};
use super::{errors, pools, raw};
use crate::failure::Failure;
use crate::model::instance::{Disk, DiskSource, ImageFormat, PowerState};

/// Most images that are looked at in one answer.
const IMAGES_MAX: u64 = 4096;

/// How a qcow2 file begins.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of its header up to and with the offset of its backing file's name, which is 0 without one.
const QCOW2_HEAD_BYTES: usize = 16;

/// Fills in the sizes of a domain's disks. `file_chains` are the targets of those that consist of files alone.
pub(super) fn measure(domain: &Domain, state: PowerState, disks: &mut [Disk], file_chains: &BTreeSet<String>) {
    let images = match state {
        PowerState::ShutOff => Images::default(),
        _ => match raw::block_stats(domain, sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING) {
            Ok(values) => Images::of(values),
            Err(error) => {
                tracing::debug!(%error, "libvirt has no statistics of a domain's disks");
                Images::default()
            }
        },
    };
    for disk in disks.iter_mut().filter(|disk| disk.source.is_some()) {
        let target = disk.target.as_str();
        let of_files = file_chains.contains(target);
        if let Some(seen) = images.capacity(target) {
            disk.virtual_bytes = Some(seen);
            disk.allocated_bytes = images.physical(target).filter(|_| of_files);
            continue;
        }
        let sizes = match &disk.pool_volume {
            Some(volume) if state == PowerState::ShutOff => pools::sizes(domain, volume),
            _ => raw::block_info(domain, target),
        };
        match sizes {
            Ok((capacity, allocation)) => {
                disk.virtual_bytes = Some(capacity);
                let whole = state == PowerState::ShutOff && of_files && stands_alone(disk.source.as_ref());
                disk.allocated_bytes = whole.then_some(allocation);
            }
            Err(error) => tracing::debug!(disk = target, %error, "libvirt cannot tell the size of a disk"),
        }
    }
}

/// What the guest has written so far, of each disk that libvirt can tell it of at once.
pub(super) fn write_counters(domain: &Domain) -> Result<Vec<WriteCounters>, Failure> {
    let values = raw::block_stats(domain, sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
        .map_err(|error| errors::failure("cannot ask for the figures of the domain's disks", &error))?;
    Ok(counters(&Images::of(values)))
}

fn counters(images: &Images) -> Vec<WriteCounters> {
    let counted = images.numbers().filter_map(|number| {
        Some(WriteCounters {
            target: images.name(number)?.parse().ok()?,
            writes: images.figure(number, "wr.reqs")?,
            write_ns: images.figure(number, "wr.times")?,
            flushes: images.figure(number, "fl.reqs")?,
            flush_ns: images.figure(number, "fl.times")?,
        })
    });
    counted.collect()
}

/// libvirt's figures of each image. Those of one chain have the same name, and its top image comes first.
#[derive(Default)]
struct Images(BTreeMap<String, Value>);

impl Images {
    fn of(values: Values) -> Self {
        Self(values.into_iter().collect())
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let count = if let Some(Value::Unsigned(count)) = self.0.get("block.count") { *count } else { 0 };
        0..count.min(IMAGES_MAX)
    }

    fn name(&self, number: u64) -> Option<&str> {
        match self.0.get(&format!("block.{number}.name")) {
            Some(Value::Text(name)) => Some(name),
            _ => None,
        }
    }

    fn figure(&self, number: u64, what: &str) -> Option<u64> {
        match self.0.get(&format!("block.{number}.{what}")) {
            Some(Value::Unsigned(figure)) => Some(*figure),
            _ => None,
        }
    }

    fn chain(&self, target: &str) -> impl Iterator<Item = u64> {
        self.numbers().filter(move |number| self.name(*number) == Some(target))
    }

    fn capacity(&self, target: &str) -> Option<u64> {
        self.figure(self.chain(target).next()?, "capacity")
    }

    /// The sum over the chain; none where one of it is not known.
    fn physical(&self, target: &str) -> Option<u64> {
        self.chain(target).try_fold(0_u64, |sum, number| Some(sum.saturating_add(self.figure(number, "physical")?)))
    }
}

/// Whether a file holds the whole disk, as far as its first bytes say. One that can't be read may not.
fn stands_alone(source: Option<&DiskSource>) -> bool {
    match source {
        Some(DiskSource::File { format: ImageFormat::Raw, .. }) => true,
        Some(DiskSource::File { format: ImageFormat::Qcow2, path }) => has_no_backing_file(path).unwrap_or(false),
        _ => false,
    }
}

fn has_no_backing_file(path: &Path) -> std::io::Result<bool> {
    let mut head = [0; QCOW2_HEAD_BYTES];
    File::open(path)?.read_exact(&mut head)?;
    Ok(head.starts_with(&QCOW2_MAGIC) && head.ends_with(&[0; 8]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn images(figures: &[(&str, u64)], names: &[(u64, &str)]) -> Images {
        let named =
            names.iter().map(|(number, name)| (format!("block.{number}.name"), Value::Text((*name).to_owned())));
        let figures = figures.iter().map(|(name, figure)| (format!("block.{name}"), Value::Unsigned(*figure)));
        Images::of(figures.chain(named).collect())
    }

    #[test]
    fn a_chain_is_as_large_as_its_top_and_holds_what_all_of_it_holds() {
        let found = images(
            &[
                ("count", 3),
                ("0.capacity", 10),
                ("0.physical", 2),
                ("1.capacity", 8),
                ("1.physical", 5),
                ("2.physical", 7),
            ],
            &[(0, "vda"), (1, "vda"), (2, "vdb")],
        );
        assert_eq!((found.capacity("vda"), found.physical("vda")), (Some(10), Some(7)));
        assert_eq!((found.capacity("vdb"), found.physical("vdb")), (None, Some(7)));
        let cut = images(&[("count", 2), ("0.capacity", 10), ("0.physical", 2)], &[(0, "vda"), (1, "vda")]);
        assert_eq!(cut.physical("vda"), None, "the backing file is not known");
    }

    #[test]
    fn counters_are_read_where_all_four_are_there() {
        let all =
            [("count", 2), ("0.wr.reqs", 1), ("0.wr.times", 2), ("0.fl.reqs", 3), ("0.fl.times", 4), ("1.wr.reqs", 9)];
        let target = "vda".parse().unwrap();
        let expected = WriteCounters { target, writes: 1, write_ns: 2, flushes: 3, flush_ns: 4 };
        assert_eq!(counters(&images(&all, &[(0, "vda"), (1, "vdb")])), [expected]);
        assert!(counters(&images(&[("count", u64::MAX)], &[])).is_empty());
    }

    #[test]
    fn a_qcow2_file_says_whether_it_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vda");
        let alone = |head: &[u8]| {
            std::fs::write(&path, head).unwrap();
            stands_alone(Some(&DiskSource::File { path: path.clone(), format: ImageFormat::Qcow2 }))
        };
        assert!(alone(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\0\0"));
        assert!(!alone(b"QFI\xfb\0\0\0\x03\0\0\0\0\0\0\x02\0"));
        assert!(!alone(b"QFI"));
    }
}
