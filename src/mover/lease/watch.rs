//! Watching somebody else's lease until it is clear whether the holder lives.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::seat::Seat;
use super::slot::{Seen, look};
use super::{HolderFile, LeaseTimes};
use crate::failure::{Code, Failure};
use crate::mover::blocking;
use crate::mover::share::Dir;

/// Reads of an unchanged counter, each answered in time, that make a holder a dead one.
const READS: u32 = 12;
/// Such reads of one that is known to be gone. Two beats lie between the first and the last, so that one that is not gone after all, on
/// a host that was copied as it ran, has moved its counter by then.
const READS_OF_THE_GONE: u32 = 3;
/// Reads in all, those that failed or came late included.
const READS_MAX: u32 = 24;

/// Returns once lease `number` may be followed by the next: it was given back, or its counter stood still for long
/// enough. `lease_held` as soon as the counter moves. `own` is the seat of whoever wants to know.
pub(super) async fn until_free(
    slots: &Arc<Dir>,
    number: u64,
    own: Option<&Seat>,
    times: LeaseTimes,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let mut first: Option<Option<Vec<u8>>> = None;
    let (mut unchanged, mut gone) = (0, 0);
    let mut trouble = None;
    for read in 0..READS_MAX {
        if read > 0 {
            tokio::select! {
                () = tokio::time::sleep(times.watch_interval) => {}
                () = cancel.cancelled() => return Err(held(number, None, "watching it was broken off")),
            }
        }
        let (looked, own) = (slots.clone(), own.cloned());
        let looking = blocking(move || {
            let (seen, holder) = look(&looked, number)?;
            let is_gone = holder.as_ref().is_some_and(|holder| is_gone(holder, own.as_ref()));
            Ok((seen, holder, is_gone))
        });
        match tokio::time::timeout(times.read_limit, looking).await {
            Ok(Ok((Seen::Released, ..))) => return Ok(()),
            Ok(Ok((Seen::Counter(counter), holder, is_gone))) => match &first {
                Some(before) if *before != counter => return Err(held(number, holder, "it is alive")),
                _ => {
                    first = Some(counter);
                    unchanged += 1;
                    gone += u32::from(is_gone);
                }
            },
            Ok(Err(failure)) if failure.code == Code::RepositoryUnsafe => return Err(failure),
            Ok(Err(failure)) => trouble = Some(failure),
            Err(_) => {
                let text = format!("no answer within {} ms", times.read_limit.as_millis());
                trouble = Some(Failure::new(Code::RepositoryIo, text));
            }
        }
        if unchanged == READS || gone == READS_OF_THE_GONE {
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

fn is_gone(holder: &HolderFile, own: Option<&Seat>) -> bool {
    holder.seat.as_ref().zip(own).is_some_and(|(seat, own)| seat.is_gone(own))
}

fn held(number: u64, holder: Option<HolderFile>, why: &str) -> Failure {
    let who = holder.map_or_else(
        || "another worker".to_owned(),
        |file| format!("host `{}` for job `{}`", file.holder.host, file.holder.job.escape_debug()),
    );
    Failure::new(Code::LeaseHeld, format!("{who} holds lease {number} of this instance: {why}"))
}
