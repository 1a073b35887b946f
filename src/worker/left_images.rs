//! Whether images that jobs have left on clusters are still there, which only a mover can see.
//!
//! One left-over after the other is looked at, beside the worker's jobs, none of which waits for it, and named until its images are seen to be
//! gone. None is removed here: who may need one, no cluster knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::left_over::{KnownLeftOver, forget, keep};
use super::pulse::held;
use super::shared::Shared;
use crate::broker::SessionState;
use crate::failure::{RbdRemains, Remains};
use crate::shutdown::{Shutdown, Stage};

/// Heartbeats before each look at a left-over, the first look of a worker as well, whatever the last one has found: five minutes, by the usual
/// time between two.
const PAUSE_HEARTBEATS: u32 = 20;

/// When each left-over is looked at next.
#[derive(Debug, Default)]
struct Due(BTreeMap<String, Instant>);

impl Due {
    /// The one whose time has come first, if any has. Its next time comes after another pause.
    fn next(&mut self, left: Vec<KnownLeftOver>, now: Instant, pause: Duration) -> Option<KnownLeftOver> {
        let left: Vec<_> = left.into_iter().filter(|left| !images(left).is_empty()).collect();
        self.0.retain(|name, _| left.iter().any(|left| left.name == *name));
        for left in &left {
            self.0.entry(left.name.clone()).or_insert(now + pause);
        }
        let (name, due) = self.0.iter_mut().min_by_key(|(_, due)| **due)?;
        if *due > now {
            return None;
        }
        *due = now + pause;
        left.into_iter().find(|left| left.name == *name)
    }
}

/// The images that it has.
fn images(left: &KnownLeftOver) -> &[RbdRemains] {
    if let Some(Remains::Images { images, .. }) = &left.remains { images } else { &[] }
}

/// What is known once the images are gone: nothing, or what is left besides, which is looked at with every heartbeat.
fn besides(left: KnownLeftOver) -> Option<KnownLeftOver> {
    let Some(all @ Remains::Images { files, logical, .. }) = &left.remains else { return None };
    if files.is_empty() && logical.is_empty() {
        return None;
    }
    let besides = Remains::Volumes { files: files.clone(), logical: logical.clone() };
    let mut report = left.report;
    report.what = report.what.replacen(&all.to_string(), &besides.to_string(), 1);
    Some(KnownLeftOver { remains: Some(besides), report, ..left })
}

/// Looks, until the worker's work is over. A look that is under way then is broken off.
pub async fn look(shared: Arc<Shared>, session: watch::Receiver<SessionState>, over: Shutdown) {
    let looking = async {
        // Until then they may be another worker's.
        held(session).await;
        let heartbeat = shared.settings.heartbeat;
        let (mut due, mut ticks) = (Due::default(), interval(heartbeat));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let left = due.next(shared.status.left_overs(), Instant::now(), heartbeat * PAUSE_HEARTBEATS);
            if let Some(left) = left {
                look_at(&shared, left).await;
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = over.reached(Stage::Now) => {}
    }
}

async fn look_at(shared: &Shared, left: KnownLeftOver) {
    match shared.work.look_at_images(images(&left)).await {
        Ok(there) if there.is_empty() => {
            let name = left.name.clone();
            // One that a person had forgotten meanwhile stays so.
            let is_known = shared.status.left_overs().iter().any(|known| known.name == name);
            match besides(left).filter(|_| is_known) {
                Some(left) => keep(shared, &[left]).await,
                None => forget(shared, vec![name]).await,
            }
        }
        Ok(there) => tracing::debug!(left_over = left.name, ?there, "it is still there"),
        Err(failure) => {
            tracing::warn!(left_over = left.name, failure = format!("{failure:#}"), "it cannot be looked at");
            if let Some(remains) = failure.remains.as_deref() {
                keep(shared, &[left.of_look(&failure, remains.clone())]).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::*;
    use crate::failure::{Code, Failure};
    use crate::message::event::LeftOver;
    use crate::model::id::RepositoryId;

    const MINUTE: Duration = Duration::from_secs(60);

    fn left(name: &str, file: Option<&str>) -> KnownLeftOver {
        let images = vec![RbdRemains { image: "a.new".into(), access: Default::default() }];
        let files = file.map(PathBuf::from).into_iter().collect();
        let remains = Remains::Images { images, files, logical: Vec::new() };
        let what = format!("{remains}, of step `restore`");
        KnownLeftOver {
            name: name.to_owned(),
            report: LeftOver { what, reason: "it was open".to_owned(), job_id: None },
            remains: Some(remains),
            instance: None,
            repository: RepositoryId::draw(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_and_one_that_was_looked_at_waits() {
        let mut due = Due::default();
        let next = |due: &mut Due, names: &[&str]| {
            let all = names.iter().map(|name| left(name, None)).collect();
            due.next(all, Instant::now(), 5 * MINUTE).map(|left| left.name)
        };
        assert_eq!(next(&mut due, &["a"]), None, "not at once");
        tokio::time::advance(MINUTE).await;
        assert_eq!(next(&mut due, &["a", "b"]), None);
        tokio::time::advance(4 * MINUTE).await;
        assert_eq!(next(&mut due, &["a", "b"]).as_deref(), Some("a"));
        assert_eq!(next(&mut due, &["a", "b"]), None);
        tokio::time::advance(MINUTE).await;
        assert_eq!(next(&mut due, &["a", "b"]).as_deref(), Some("b"));
        tokio::time::advance(4 * MINUTE).await;
        assert_eq!(next(&mut due, &["b"]), None, "the other one is gone");
        assert_eq!(next(&mut due, &["a", "b"]), None, "and would be another one");
        let other = KnownLeftOver { remains: Some(Remains::Path("/a".into())), ..left("c", None) };
        tokio::time::advance(60 * MINUTE).await;
        assert_eq!(due.next(vec![other], Instant::now(), MINUTE), None, "a file is no image");
    }

    #[test]
    fn a_file_that_is_left_beside_images_is_named_alone_once_they_are_gone() {
        assert_eq!(besides(left("a", None)), None);
        let file = besides(left("a", Some("/images/a.previous"))).unwrap();
        assert!(images(&file).is_empty(), "{file:?}");
        assert_eq!(file.report.what, "`/images/a.previous`, of step `restore`");
    }

    #[test]
    fn what_a_look_leaves_is_a_left_over_of_its_own() {
        let stuck = Remains::Process { pid: 7, started: 1, directories: Vec::new() };
        let failure = Failure::new(Code::MoverUnresponsive, "it did not die");
        let (of, look) = (left("a", None), left("a", None).of_look(&failure, stuck.clone()));
        assert!(look.name != of.name && look.remains == Some(stuck) && images(&look).is_empty(), "{look:?}");
        assert!(look.report.what.contains("process 7") && look.report.reason.contains("it did not die"), "{look:?}");
    }
}
