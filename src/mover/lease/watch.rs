//! Watching somebody else's lease until it is clear whether the holder lives.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::slot::{Seen, look};
use super::{HolderFile, LeaseTimes};
use crate::failure::{Code, Failure};
use crate::mover::blocking;
use crate::mover::share::Dir;

/// Reads of an unchanged counter, each answered in time, that make a holder a dead one.
const READS: u32 = 12;
/// Reads in all, those that failed or came late included.
const READS_MAX: u32 = 24;

/// Returns once lease `number` may be followed by the next: it was given back, or its counter stood still for long
/// enough. `lease_held` as soon as the counter moves.
pub(super) async fn until_free(
    slots: &Arc<Dir>,
    number: u64,
    times: LeaseTimes,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let mut first: Option<Option<Vec<u8>>> = None;
    let mut unchanged = 0;
    let mut trouble = None;
    for read in 0..READS_MAX {
        if read > 0 {
            tokio::select! {
                () = tokio::time::sleep(times.watch_interval) => {}
                () = cancel.cancelled() => return Err(held(number, None, "watching it was broken off")),
            }
        }
        let looked = slots.clone();
        match tokio::time::timeout(times.read_limit, blocking(move || look(&looked, number))).await {
            Ok(Ok((Seen::Released, _))) => return Ok(()),
            Ok(Ok((Seen::Counter(counter), holder))) => match &first {
                Some(before) if *before != counter => return Err(held(number, holder, "it is alive")),
                _ => {
                    first = Some(counter);
                    unchanged += 1;
                }
            },
            Ok(Err(failure)) if failure.code == Code::RepositoryUnsafe => return Err(failure),
            Ok(Err(failure)) => trouble = Some(failure),
            Err(_) => {
                let text = format!("no answer within {} ms", times.read_limit.as_millis());
                trouble = Some(Failure::new(Code::RepositoryIo, text));
            }
        }
        if unchanged == READS {
            return Ok(());
        }
    }
    let failure =
        Failure::new(Code::RepositoryIo, format!("cannot find out whether the holder of lease {number} is alive"));
    Err(match trouble {
        Some(trouble) => failure.because(&trouble),
        None => failure,
    })
}

fn held(number: u64, holder: Option<HolderFile>, why: &str) -> Failure {
    let who = holder.map_or_else(
        || "another worker".to_owned(),
        |file| format!("host `{}` for job `{}`", file.holder.host, file.holder.job.escape_debug()),
    );
    Failure::new(Code::LeaseHeld, format!("{who} holds lease {number} of this instance: {why}"))
}
