//! The lease of an instance in a repository: whoever holds it may write that instance's backups, on whatever host.
//!
//! ```text
//! locks/<instance>/<n>/holder     token and words for people; made exclusively: who makes it holds lease n
//!                      counter    rewritten every beat while the holder lives
//!                      released   there once the holder has let go
//! ```
//!
//! The highest n counts, and none is ever removed, so n is a fencing number that only grows.
//!
//! ```text
//!              released, or none yet
//!   look ───────────────────────────────▶ claim n+1 ──▶ held ──▶ released
//!    │                                      ▲             │
//!    └─▶ watch ── counter still for 12 ─────┘             └─▶ lost: a beat found n+1, or none could be
//!          │      reads, each in time                         written for `keep_limit`
//!          └──── it moves: `lease_held`
//! ```
//!
//! Of a holder that was a mover of this very host and is gone ([`seat`]) 3 reads are enough: they are there for what it had asked of the
//! file server last, which may still be on its way.
//!
//! Advisory locks are not used: they are not reliable across NFS and CIFS. Nothing here is a promise that an old holder
//! has stopped; that its commit fails is seen to by the taker, who renames the staging directories. A holder that could
//! not write its counter gives up before anybody else can have watched long enough.

mod keeper;
mod seat;
mod slot;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) use keeper::Lease;
pub(super) use seat::Seat;

use super::blocking;
use super::protocol::LeaseHolder;
use super::share::{Dir, LOCKS};
use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;

/// Leases of others that are waited out or lost to in one try; beyond that the instance is simply busy.
const CLAIM_ROUNDS_MAX: u32 = 8;

/// The times of a lease. Every worker of a fleet has the same, or a living holder could be taken for dead.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseTimes {
    /// A holder rewrites its counter this often.
    pub beat: Duration,
    /// A watcher reads it this often; no shorter than a beat.
    pub watch_interval: Duration,
    /// A read that took longer proves nothing.
    pub read_limit: Duration,
    /// A holder that could not write for so long has lost its lease. Shorter than the shortest watch by half.
    pub keep_limit: Duration,
}

impl LeaseTimes {
    /// With 12 reads a dead holder is replaced after 110 s, with 3 one that is known to be gone after 20 s.
    pub const STANDARD: Self = Self {
        beat: Duration::from_secs(10),
        watch_interval: Duration::from_secs(10),
        read_limit: Duration::from_secs(5),
        keep_limit: Duration::from_secs(55),
    };
}

/// Content of `holder`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HolderFile {
    /// Drawn for this lease; what is compared.
    pub token: Uuid,
    /// Its process, for movers of the same host; none where it can't be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seat: Option<Seat>,
    /// For people.
    #[serde(flatten)]
    pub holder: LeaseHolder,
}

/// When the holder of an instance's lease was last heard of, seconds since 1970 by the share's clock; none within where that can't be
/// seen. None where nobody holds it. Takes and changes nothing. Blocks.
pub(super) fn heard_of(root: &Dir, instance: InstanceId) -> Result<Option<Option<i64>>, Failure> {
    let slots = match root.open_dir(LOCKS).and_then(|locks| locks.open_dir(instance.to_string())) {
        Err(error) if error.is_missing() => return Ok(None),
        slots => slots?,
    };
    match slot::highest(&slots)? {
        0 => Ok(None),
        highest => slot::heard_of(&slots, highest),
    }
}

/// Takes the lease of an instance for that holder, which is that process. A living holder: `lease_held`. Cancelling stops between two looks at the share.
pub(super) async fn take(
    root: Arc<Dir>,
    instance: InstanceId,
    (holder, seat): (LeaseHolder, Option<Seat>),
    times: LeaseTimes,
    cancel: &CancellationToken,
) -> Result<Lease, Failure> {
    let slots = blocking(move || Ok(Arc::new(root.open_dir(LOCKS)?.ensure_dir(instance.to_string())?))).await?;
    let holder = HolderFile { token: Uuid::new_v4(), seat, holder };
    let look = slots.clone();
    let mut highest = blocking(move || slot::highest(&look)).await?;
    for _ in 0..CLAIM_ROUNDS_MAX {
        if highest > 0 {
            watch::until_free(&slots, highest, holder.seat.as_ref(), times, cancel).await?;
        }
        let number = highest.saturating_add(1);
        let (claimed, holder) = (slots.clone(), holder.clone());
        match blocking(move || slot::claim(&claimed, number, &holder)).await? {
            Some(own) => return Ok(Lease::keep(slots, own, instance, number, times)),
            None => highest = number,
        }
    }
    Err(Failure::new(Code::LeaseHeld, format!("other workers keep taking the lease of instance `{instance}`")))
}

#[cfg(test)]
mod tests;
