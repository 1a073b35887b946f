//! Whether the host is paused. The journal knows it first, and tells it in the same transaction; so it holds through the worker's end.
//!
//! A drain that keeps nothing and lets the worker stay goes on with that as long as the pause holds: who has it evict a host does not
//! expect it to begin to keep again by itself, be it because it has come to rest or because its worker died.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use super::attempt::persist;
use super::report::host_draft;
use super::shared::Shared;
use crate::failure::{Code, Failure};
use crate::journal::Draft;
use crate::message::event::{HostDetail, Paused, Resumed};
use crate::message::{Pause, Resume, masked};
use crate::shutdown::{Shutdown, Stage};

/// Longest sleep before the clock is asked again whether a pause is over: it may have been set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A pause as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    #[serde(flatten)]
    paused: Paused,
    /// What waits meanwhile ends as failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    evict: bool,
}

/// The pause, for all parts of the worker.
#[derive(Debug, Default)]
pub struct Pauses {
    /// Held while a change is written down.
    changing: Mutex<()>,
    now: watch::Sender<Option<Kept>>,
}

impl Pauses {
    /// The pause, if there is one.
    pub fn now(&self) -> Option<Paused> {
        self.now.borrow().as_ref().map(|kept| kept.paused.clone())
    }

    /// Whether there is one in which nothing is kept.
    pub fn evicts(&self) -> bool {
        self.now.borrow().as_ref().is_some_and(|kept| kept.evict)
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.now.borrow().is_some()
    }

    /// The pause and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Option<Kept>> {
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
    let kept = kept.unwrap_or_else(|| Kept { paused: unreadable(Timestamp::now()), evict: false });
    log(&kept);
    shared.pauses.now.send_replace(Some(kept));
    Ok(())
}

fn unreadable(now: Timestamp) -> Paused {
    let reason = "the journal holds a pause that cannot be read; `longshore host resume` ends it".to_owned();
    Paused { since: now, user: "unknown".to_owned(), requested_by: None, reason: Some(reason), until: None }
}

/// Pauses the host, as `user` has asked for, and evicts meanwhile what waits there or not; as before where nothing is said of that.
///
/// # Errors
/// It could not be written down.
pub async fn pause(shared: &Shared, user: &str, pause: &Pause, evict: Option<bool>) -> Result<(), Failure> {
    let _held = shared.pauses.changing.lock().await;
    let evict = evict.unwrap_or_else(|| shared.pauses.evicts());
    let kept = Kept { paused: paused(shared.pauses.now(), Timestamp::now(), user, pause), evict };
    let told = shared.voice.event(HostDetail::Paused(kept.paused.clone()));
    put(shared, kept, vec![host_draft(move || told)]).await
}

/// What waits in a pause, if there is one, is kept from now on.
///
/// # Errors
/// It could not be written down.
pub async fn evict_no_more(shared: &Shared) -> Result<(), Failure> {
    let _held = shared.pauses.changing.lock().await;
    let now = shared.pauses.now.borrow().clone();
    match now {
        Some(Kept { paused, evict: true }) => put(shared, Kept { paused, evict: false }, Vec::new()).await,
        _ => Ok(()),
    }
}

/// The caller holds the lock.
async fn put(shared: &Shared, kept: Kept, rows: Vec<Draft>) -> Result<(), Failure> {
    let value = serde_json::to_value(&kept).unwrap_or(Value::Null);
    shared.journal.keep_pause(Some(value), rows).await?;
    log(&kept);
    shared.pauses.now.send_replace(Some(kept));
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
pub async fn resume(shared: &Shared, user: &str, resume: &Resume) -> Result<(), Failure> {
    let _held = shared.pauses.changing.lock().await;
    let said = |words: &Option<String>| words.as_deref().map(masked);
    let resumed = |paused: &Paused| Resumed {
        paused_since: paused.since,
        user: Some(masked(user)),
        requested_by: said(&resume.requested_by),
        reason: said(&resume.reason),
    };
    end(shared, resumed).await
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
        let left = pauses.borrow_and_update().as_ref().and_then(|kept| left(&kept.paused, Timestamp::now()));
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
    let _held = shared.pauses.changing.lock().await;
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

fn log(kept: &Kept) {
    let Kept { paused: Paused { since, user, requested_by, reason, until }, evict } = kept;
    let until = until.map(tracing::field::display);
    tracing::warn!(%since, user, requested_by, reason, until, evict, "paused: no job begins");
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
    fn what_the_journal_has_of_a_pause_is_what_its_event_says_and_whether_it_evicts() {
        let paused = unreadable(second(0));
        let plain = serde_json::to_value(&paused).unwrap();
        let kept = Kept { paused: paused.clone(), evict: false };
        assert_eq!(serde_json::to_value(&kept).unwrap(), plain);
        assert_eq!(serde_json::from_value::<Kept>(plain).unwrap(), kept);
        let evicts = Kept { evict: true, ..kept };
        let value = serde_json::to_value(&evicts).unwrap();
        assert_eq!(serde_json::from_value::<Kept>(value.clone()).unwrap(), evicts);
        assert_eq!(serde_json::from_value::<Paused>(value).unwrap(), paused, "`journal list` reads that");
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
