//! Taking away what attempts that were cut off have left, under the lease of their instance: the lease is asked for again before anything
//! is moved and before each removal, since a share that hung may have given it to somebody else meanwhile.

use std::sync::Arc;

use crate::failure::Failure;
use crate::mover::blocking;
use crate::mover::lease::Lease;
use crate::mover::share::{Dir, LeftOvers};

/// Only before anything is staged under that lease. Answers the names of what is gone; what can't be removed is in nobody's way any more.
/// Not to be broken off: what its thread does, it would do without the lease.
pub(super) async fn clear(lease: &Lease, root: Arc<Dir>) -> Result<Vec<String>, Failure> {
    let instance = lease.instance();
    let Some(mut left) = blocking(move || LeftOvers::list(&root, instance)).await? else { return Ok(Vec::new()) };
    let names = left.names();
    if names.is_empty() {
        return Ok(names);
    }
    lease.confirm().await?;
    let fence = move || {
        let fenced = left.fence()?;
        Ok((fenced, left))
    };
    let (fenced, mut left) = blocking(fence).await?;
    for name in fenced {
        tracing::warn!(%instance, name, "moved what an earlier holder of the lease has left out of its way");
    }
    loop {
        lease.confirm().await?;
        let remove = move || {
            let more = left.remove();
            Ok((more, left))
        };
        let more;
        (more, left) = blocking(remove).await?;
        if !more {
            return Ok(names.into_iter().filter(|name| !left.kept().contains(name)).collect());
        }
    }
}
