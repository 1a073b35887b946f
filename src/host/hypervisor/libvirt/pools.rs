//! Volumes that a definition names by their storage pool: where they are.
//!
//! libvirt knows the volumes of an active pool by their names, and touches no storage to find them. But what does, such as a look at the
//! size of a volume or a refresh, has the pool's lock meanwhile: while that storage is dead, whoever looks for a volume of that pool waits
//! until the deadline of its call.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::storage_pool::StoragePool;

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

/// Says where volumes are; nothing of one that is in no pool that is active, or in one without files and devices. That it cannot be said
/// just now is a failure: what it was taken for else would be wrong a moment later.
pub(super) trait Pools {
    fn place(&self, volume: &PoolVolume) -> Result<Option<Place>, Failure>;
}

/// Those of a host that has none.
#[cfg(test)]
pub(super) struct NoPools;

#[cfg(test)]
impl Pools for NoPools {
    fn place(&self, _volume: &PoolVolume) -> Result<Option<Place>, Failure> {
        Ok(None)
    }
}

/// The pools of a host, for one look at it: each is asked for once.
pub(super) struct HostPools<'c> {
    connect: &'c Connect,
    seen: RefCell<BTreeMap<String, Option<Pool>>>,
}

/// A pool whose volumes have a place.
struct Pool {
    pool: StoragePool,
    place: fn(PathBuf) -> Place,
}

impl<'c> HostPools<'c> {
    pub(super) fn of(connect: &'c Connect) -> Self {
        Self { connect, seen: RefCell::default() }
    }
}

impl Pools for HostPools<'_> {
    fn place(&self, volume: &PoolVolume) -> Result<Option<Place>, Failure> {
        let mut seen = self.seen.borrow_mut();
        let pool = match seen.entry(volume.pool.clone()) {
            Entry::Occupied(pool) => pool.into_mut(),
            Entry::Vacant(pool) => pool.insert(find(self.connect, &volume.pool)?),
        };
        let Some(Pool { pool, place }) = pool else { return Ok(None) };
        let path = pool.lookup_storage_vol_by_name(&volume.volume).and_then(|volume| volume.path());
        let tried = format!("cannot find volume `{}` of the storage pool `{}`", volume.volume, volume.pool);
        Ok(if_there(path, tried)?.map(|path| place(path.into())))
    }
}

fn find(connect: &Connect, name: &str) -> Result<Option<Pool>, Failure> {
    let tried = || format!("cannot find the storage pool `{name}`");
    let Some(pool) = if_there(connect.lookup_storage_pool_by_name(name), tried())? else { return Ok(None) };
    let Some(description) = if_there(pool.xml_desc(0), tried())? else { return Ok(None) };
    let place: fn(PathBuf) -> Place = match kind(&description)? {
        kind if OF_FILES.contains(&kind.as_str()) => Place::File,
        kind if OF_DEVICES.contains(&kind.as_str()) => Place::Device,
        _ => return Ok(None),
    };
    Ok(Some(Pool { pool, place }))
}

/// Nothing where libvirt says that there is no such thing.
fn if_there<T>(answer: Result<T, Error>, tried: String) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if errors::is_in_no_pool(error.code().to_raw()) => {
            tracing::debug!(%error, "{tried}");
            Ok(None)
        }
        Err(error) => Err(errors::failure(tried, &error)),
    }
}

fn kind(pool: &str) -> Result<String, Failure> {
    let document = document(pool, "pool")?;
    Ok(attribute(document.root_element(), "type").unwrap_or_default().to_owned())
}

/// Capacity and allocation of a volume, bytes: of a domain that is shut off libvirt tells them for files and devices alone. Looks at the storage.
pub(super) fn sizes(domain: &Domain, wanted: &PoolVolume) -> Result<(u64, u64), Error> {
    let pool = domain.connect()?.lookup_storage_pool_by_name(&wanted.pool)?;
    let info = pool.lookup_storage_vol_by_name(&wanted.volume)?.info()?;
    Ok((info.capacity, info.allocation))
}
