//! Whether the host is paused. The journal knows it first, and tells it in the same transaction; so it holds through the worker's end.
//!
//! Control messages are taken many at a time, so that of two a later one may get here first: each change comes with its place in the
//! order in which they were delivered, and one that was overtaken changes nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use super::attempt::persist;
use super::report::host_draft;
use super::shared::Shared;
use crate::failure::{Code, Failure};
use crate::message::event::{HostDetail, Paused, Resumed};
use crate::message::{Pause, Resume, masked};
use crate::shutdown::{Shutdown, Stage};

/// Longest sleep before the clock is asked again whether a pause is over: it may have been set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The pause, for all parts of the worker.
#[derive(Debug, Default)]
pub struct Pauses {
    /// Place of the last change. Held while one is written down.
    last: Mutex<u64>,
    now: watch::Sender<Option<Paused>>,
}

impl Pauses {
    /// The pause, if there is one.
    pub fn now(&self) -> Option<Paused> {
        self.now.borrow().clone()
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.now.borrow().is_some()
    }

    /// The pause and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Option<Paused>> {
        self.now.subscribe()
    }
}

/// The pause that an earlier worker of this journal was told of. One that cannot be read holds as well: it was told to begin nothing.
///
/// # Errors
/// The journal cannot be read.
pub async fn take_up(shared: &Shared) -> Result<(), Failure> {
    let kept = match shared.journal.pause().await {
        Ok(None) => return Ok(()),
        Ok(Some(kept)) => serde_json::from_value(kept).ok(),
        Err(failure) if failure.code == Code::JournalFailed => return Err(failure),
        Err(_) => None,
    };
    let paused = kept.unwrap_or_else(|| unreadable(Timestamp::now()));
    log(&paused);
    shared.pauses.now.send_replace(Some(paused));
    Ok(())
}

fn unreadable(now: Timestamp) -> Paused {
    let reason = "the journal holds a pause that cannot be read; `longshore host resume` ends it".to_owned();
    Paused { since: now, user: "unknown".to_owned(), requested_by: None, reason: Some(reason), until: None }
}

/// Pauses the host, as `user` has asked for.
///
/// # Errors
/// It could not be written down.
pub async fn pause(shared: &Shared, order: u64, user: &str, pause: &Pause) -> Result<(), Failure> {
    let mut last = shared.pauses.last.lock().await;
    if order < *last {
        return Ok(());
    }
    let paused = paused(shared.pauses.now(), Timestamp::now(), user, pause);
    let told = shared.voice.event(HostDetail::Paused(paused.clone()));
    let kept = serde_json::to_value(&paused).unwrap_or(Value::Null);
    shared.journal.keep_pause(Some(kept), vec![host_draft(move || told)]).await?;
    log(&paused);
    shared.pauses.now.send_replace(Some(paused));
    *last = order;
    Ok(())
}

/// What is kept of a pause, where there was one already or not.
fn paused(before: Option<Paused>, now: Timestamp, user: &str, pause: &Pause) -> Paused {
    Paused {
        since: before.map_or(now, |before| before.since),
        user: masked(user),
        requested_by: pause.requested_by.as_deref().map(masked),
        reason: pause.reason.as_deref().map(masked),
        until: pause.until,
    }
}

/// Ends the pause, as `user` has asked for, if there is one.
///
/// # Errors
/// It could not be written down.
pub async fn resume(shared: &Shared, order: u64, user: &str, resume: &Resume) -> Result<(), Failure> {
    let mut last = shared.pauses.last.lock().await;
    if order < *last {
        return Ok(());
    }
    let said = |words: &Option<String>| words.as_deref().map(masked);
    let resumed = |paused: &Paused| Resumed {
        paused_since: paused.since,
        user: Some(masked(user)),
        requested_by: said(&resume.requested_by),
        reason: said(&resume.reason),
    };
    end(shared, resumed).await?;
    *last = order;
    Ok(())
}

/// Ends pauses when their time is over, until the worker's work is.
pub async fn follow(shared: Arc<Shared>, over: Shutdown) {
    tokio::select! {
        () = end_in_time(&shared) => {}
        () = over.reached(Stage::Now) => {}
    }
}

async fn end_in_time(shared: &Shared) {
    let mut pauses = shared.pauses.subscribe();
    loop {
        let left = pauses.borrow_and_update().as_ref().and_then(|paused| left(paused, Timestamp::now()));
        if left == Some(Duration::ZERO) {
            // Its end is in the journal before a job begins: a worker that dies now would find it over as well.
            let ended = persist("write down the end of a pause", || end_if_over(shared)).await;
            if let Err(failure) = ended {
                tracing::error!(failure = format!("{failure:#}"), "the journal refused the end of a pause");
            }
        }
        let look_again = async {
            match left {
                Some(left) => tokio::time::sleep(left.min(LOOK_AGAIN)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = pauses.changed() => if changed.is_err() { return },
            () = look_again => {}
        }
    }
}

/// How long a pause still lasts, if it has an end.
fn left(paused: &Paused, now: Timestamp) -> Option<Duration> {
    let left = paused.until?.duration_since(now);
    Some(Duration::try_from(left).unwrap_or_default())
}

async fn end_if_over(shared: &Shared) -> Result<(), Failure> {
    let _held = shared.pauses.last.lock().await;
    match shared.pauses.now() {
        // Another one may have taken its place meanwhile.
        Some(paused) if left(&paused, Timestamp::now()) == Some(Duration::ZERO) => {
            end(shared, |paused| Resumed { paused_since: paused.since, user: None, requested_by: None, reason: None })
                .await
        }
        _ => Ok(()),
    }
}

/// The caller holds the lock.
async fn end(shared: &Shared, resumed: impl FnOnce(&Paused) -> Resumed) -> Result<(), Failure> {
    let Some(paused) = shared.pauses.now() else {
        tracing::info!("told to go on, and not paused");
        return Ok(());
    };
    let resumed = resumed(&paused);
    tracing::info!(since = %paused.since, user = resumed.user, reason = resumed.reason, "paused no more");
    let told = shared.voice.event(HostDetail::Resumed(resumed));
    shared.journal.keep_pause(None, vec![host_draft(move || told)]).await?;
    shared.pauses.now.send_replace(None);
    Ok(())
}

fn log(paused: &Paused) {
    let Paused { since, user, requested_by, reason, until } = paused;
    let until = until.map(tracing::field::display);
    tracing::warn!(%since, user, requested_by, reason, until, "paused: no job begins");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pause_that_takes_the_place_of_another_goes_on_from_its_beginning_with_its_own_words() {
        let reason = Some("new disks".to_owned());
        let until = Some(second(500));
        let first = paused(None, second(100), "ops.day", &Pause { reason, until, ..Pause::default() });
        let next = paused(Some(first.clone()), second(200), "ops.night", &Pause::default());
        assert_eq!((first.since, first.until, first.reason.as_deref()), (second(100), until, Some("new disks")));
        let expected = Paused { since: second(100), user: "ops.night".to_owned(), ..unreadable(second(0)) };
        assert_eq!(next, Paused { reason: None, ..expected });
    }

    #[test]
    fn a_pause_lasts_until_its_end_or_for_ever() {
        let until = |until| Paused { until, ..unreadable(second(0)) };
        assert_eq!(left(&until(None), second(5)), None);
        assert_eq!(left(&until(Some(second(9))), second(5)), Some(Duration::from_secs(4)));
        for over in [second(9), second(10)] {
            assert_eq!(left(&until(Some(second(9))), over), Some(Duration::ZERO));
        }
    }
}
