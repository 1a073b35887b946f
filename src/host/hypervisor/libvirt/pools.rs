//! Volumes that a definition names by their storage pool: where they are.
//!
//! The storage itself is not touched to find them, so that a dead one holds nobody up: libvirt knows the volumes of an active pool by their names.

use std::path::PathBuf;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;

use super::errors;
use super::parse::{attribute, document};
use crate::failure::Failure;
use crate::model::instance::PoolVolume;

/// Kinds of pools whose volumes are files.
const OF_FILES: [&str; 3] = ["dir", "fs", "netfs"];

/// Kinds of pools whose volumes are block devices.
const OF_DEVICES: [&str; 6] = ["logical", "disk", "iscsi", "scsi", "mpath", "zfs"];

/// Where a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    File(PathBuf),
    Device(PathBuf),
}

/// Says where volumes are; nothing of one that nobody can tell it of.
pub(super) trait Pools {
    fn place(&self, volume: &PoolVolume) -> Option<Place>;
}

impl Pools for Connect {
    fn place(&self, volume: &PoolVolume) -> Option<Place> {
        match found(self, volume) {
            Ok(place) => place,
            Err(failure) => {
                let PoolVolume { pool, volume } = volume;
                tracing::debug!(
                    pool,
                    volume,
                    failure = format!("{failure:#}"),
                    "libvirt does not say where a volume is"
                );
                None
            }
        }
    }
}

fn found(connect: &Connect, wanted: &PoolVolume) -> Result<Option<Place>, Failure> {
    let PoolVolume { pool, volume } = wanted;
    let tried = format!("cannot find volume `{volume}` of the storage pool `{pool}`");
    let failed = |error: Error| errors::failure(tried.as_str(), &error);
    let pool = connect.lookup_storage_pool_by_name(pool).map_err(failed)?;
    let path = PathBuf::from(pool.lookup_storage_vol_by_name(volume).and_then(|volume| volume.path()).map_err(failed)?);
    Ok(match kind(&pool.xml_desc(0).map_err(failed)?)? {
        kind if OF_FILES.contains(&kind.as_str()) => Some(Place::File(path)),
        kind if OF_DEVICES.contains(&kind.as_str()) => Some(Place::Device(path)),
        _ => None,
    })
}

/// Capacity and allocation of a volume, bytes: of a domain that is shut off libvirt tells them for files and devices alone. Looks at the storage.
pub(super) fn sizes(domain: &Domain, wanted: &PoolVolume) -> Result<(u64, u64), Error> {
    let pool = domain.connect()?.lookup_storage_pool_by_name(&wanted.pool)?;
    let info = pool.lookup_storage_vol_by_name(&wanted.volume)?.info()?;
    Ok((info.capacity, info.allocation))
}

fn kind(pool: &str) -> Result<String, Failure> {
    let document = document(pool, "pool")?;
    Ok(attribute(document.root_element(), "type").unwrap_or_default().to_owned())
}
