//! What is on a share: the names, and reading and writing them without ever trusting what is there.
//!
//! ```text
//! longshore.json                          identity
//! instances/<instance>/<backup>/          published: manifest.json is in it
//! instances/<instance>/.staging-<backup>.<suffix>/    being written, by the holder of the lease
//! instances/<instance>/.merging-…         files that are to take the places of others in a backup
//! instances/<instance>/.replaced-<backup>.<file>      what was in such a place, on CIFS, until it is taken
//! instances/<instance>/.deleting-<backup>.<uuid>/     what a backup is moved into on its way out
//! instances/<instance>/.fenced-…          either of a holder that lost its lease, whose renames can't work any more, or of one
//!                                         that discarded it; and backups that are deleted. There to be removed
//! instances/<instance>/.highest-number    of the backups that are no more
//! locks/<instance>/<n>/                   leases
//! .probe-…                                write probes, gone within a second
//! ```
//!
//! A share is written to by other hosts and by whoever else can mount it: anything on it may be hostile. It is reached
//! through [`Dir`] alone, read with bounds, and parsed like any message from outside.

mod deleting;
mod dir;
mod durable;
mod error;
mod identity;
mod listing;
mod pin;
mod readme;
mod replace;
mod staging;
mod stored;

pub(crate) use deleting::{HIGHEST_NUMBER, HIGHEST_TEMPORARY, WayOut, highest_taken, remove_taken};
pub use dir::{Dir, Entry, Room};
pub(super) use durable::sync;
pub use error::ShareError;
pub use identity::{Identity, init, read_identity};
pub use listing::{Chain, Listed, chain_of, find_backup, list_backups};
pub(crate) use listing::{
    MANIFEST_BYTES_MAX, highest_number, instances, latest_chain, open_repository, read_manifest, visible,
};
pub(crate) use pin::is_pinned;
pub use pin::{find_pin, pin, unpin};
pub use readme::restore_readme;
pub(in crate::mover) use replace::CIFS_MAGIC;
pub(crate) use replace::replace;
pub(crate) use staging::{
    DELETING_PREFIX, FENCED_PREFIX, LeftOvers, MERGING_PREFIX, REPLACED_PREFIX, STAGING_PREFIX, Staging,
    plain_file_name,
};
pub(crate) use stored::{Sent, must_be_stored};

/// Directory of all instances' backups.
pub const INSTANCES: &str = "instances";
/// Directory of all instances' leases.
pub const LOCKS: &str = "locks";
/// The restore instructions in a backup's directory.
pub const README: &str = "README-RESTORE.txt";
/// Highest number of a backup or lease: one a second for 136 years. A higher one was put there by somebody else.
pub(crate) const NUMBER_MAX: u64 = u32::MAX as u64;
/// Entries of one directory, beyond which a share is not one of ours.
pub const ENTRIES_MAX: usize = 100_000;
