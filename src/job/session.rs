//! The conversation with the mover of one attempt: what it has been brought to, and how its silence is bounded.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use crate::failure::{Code, Failure};
use crate::host::mover::{Mover, MoverName, Movers, Progress};
use crate::host::remains::{Seen, look};
use crate::mover::protocol::{Reply, Request};

/// What a request may take over the deadline of the step that asks: the step's own deadline comes first, since it knows what
/// its passing means.
const SLACK_SECONDS: u64 = 10;

/// How long a share that can't be reached is waited for when something is to be taken off it: a server that is being restarted.
const SHARE_AWAY_SECONDS_MAX: u64 = 30;

/// Pause before it is asked again.
const ASK_AGAIN_SECONDS: u64 = 2;

/// The mover, if one was started, and what it has done that later requests build on.
#[derive(Default)]
pub(super) struct Session {
    mover: Option<Box<dyn Mover>>,
    done: BTreeSet<&'static str>,
    died: bool,
    stuck: Option<Failure>,
    unkillable: Option<Failure>,
    /// Since when nothing could be taken off the share.
    share_away_since: Option<Instant>,
}

impl Session {
    /// Starts a mover of that name.
    pub async fn start(&mut self, movers: &dyn Movers, name: &MoverName) -> Result<(), Failure> {
        self.mover = Some(movers.start(name).await?);
        self.done.clear();
        self.died = false;
        self.stuck = None;
        Ok(())
    }

    /// Ends the mover, by force if need be. None is no error. One that can't be killed stays known as that until it has ended.
    pub async fn stop(&mut self) -> Result<(), Failure> {
        self.done.clear();
        if let Some(mover) = self.mover.as_mut() {
            // Kept until it is known what became of it, so that whoever gives up waiting can ask again.
            let stopped = mover.stop().await;
            self.mover = None;
            self.unkillable = stopped.err();
        } else if let Some(remains) = self.unkillable.as_ref().and_then(|failure| failure.remains.clone()) {
            // What it waited for may have come since.
            if look(&remains).await == Seen::Gone {
                self.unkillable = None;
            }
        }
        self.unkillable.clone().map_or(Ok(()), Err)
    }

    /// There is a mover, and as far as is known it lives.
    pub fn is_alive(&self) -> bool {
        self.mover.is_some() && !self.died
    }

    /// It lives, and has not left a question unanswered.
    pub fn answers(&self) -> bool {
        self.is_alive() && self.stuck.is_none()
    }

    /// Whether this mover has done the request of that word, and nothing since that took it back.
    pub fn has(&self, word: &str) -> bool {
        self.is_alive() && self.done.contains(word)
    }

    /// Resolves when the lease is lost or the mover has died.
    pub fn lost(&mut self) -> Option<oneshot::Receiver<Failure>> {
        self.mover.as_mut()?.lost()
    }

    /// Asks for something, for a step that may take `deadline`. Dropping the future breaks the request off. A mover that once
    /// did not answer in time is not waited for again.
    pub async fn ask(&mut self, request: Request, deadline: Duration) -> Result<Reply, Failure> {
        if let Some(stuck) = &self.stuck {
            return Err(stuck.clone());
        }
        let word = request.word();
        let mover = self.mover.as_mut().ok_or_else(|| no_mover(word))?;
        let answer = mover.ask(request, deadline + Duration::from_secs(SLACK_SECONDS)).await;
        match &answer {
            Ok(_) => self.note_done(word),
            Err(failure) if failure.code == Code::MoverDied => self.died = true,
            Err(failure) if failure.code == Code::MoverUnresponsive => self.stuck = Some(failure.clone()),
            Err(_) => {}
        }
        answer
    }

    /// Asks for something to be taken off the share, and asks again where it can't be reached, for [`SHARE_AWAY_SECONDS_MAX`] in all that the
    /// attempt has to take off: what is left there is waited for by the next job, for longer.
    pub async fn ask_patiently(&mut self, request: Request, deadline: Duration) -> Result<Reply, Failure> {
        loop {
            let answer = self.ask(request.clone(), deadline).await;
            let Err(failure) = &answer else {
                self.share_away_since = None;
                return answer;
            };
            let since = *self.share_away_since.get_or_insert_with(Instant::now);
            if failure.code != Code::RepositoryIo || since.elapsed() > Duration::from_secs(SHARE_AWAY_SECONDS_MAX) {
                return answer;
            }
            tracing::info!(failure = format!("{failure:#}"), "the share cannot be reached; trying again");
            sleep(Duration::from_secs(ASK_AGAIN_SECONDS)).await;
        }
    }

    /// Asks for something that moves bytes: told of each progress, and failing as `stalled` when `limit` passes without one.
    pub async fn ask_moving(
        &mut self,
        request: Request,
        deadline: Duration,
        limit: Duration,
        report: impl Fn(Progress) + Send + Sync,
    ) -> Result<Reply, Failure> {
        let word = request.word();
        let mut progress = self.mover.as_ref().ok_or_else(|| no_mover(word))?.progress();
        progress.mark_unchanged();
        let mut latest = progress.clone();
        let stalled = async {
            loop {
                match timeout(limit, progress.changed()).await {
                    Ok(Ok(())) => report(*progress.borrow_and_update()),
                    // The mover is gone, which its answer will say.
                    Ok(Err(_)) => return std::future::pending().await,
                    Err(_) => {
                        let Progress { done_bytes, total_bytes, .. } = *progress.borrow();
                        let text =
                            format!("`{word}` moved no byte for {limit:?}, after {done_bytes} of {total_bytes} bytes");
                        return Failure::new(Code::Stalled, text);
                    }
                }
            }
        };
        let answer = tokio::select! {
            biased;
            answer = self.ask(request, deadline) => answer?,
            failure = stalled => return Err(failure),
        };
        report(*latest.borrow_and_update());
        Ok(answer)
    }

    fn note_done(&mut self, word: &'static str) {
        match word {
            "release" => drop(self.done.remove("lease")),
            "discard" => drop(self.done.remove("stage")),
            "close" => self.done.clear(),
            _ => drop(self.done.insert(word)),
        }
    }
}

fn no_mover(word: &str) -> Failure {
    Failure::new(Code::MoverDied, format!("there is no mover that could be asked to {word}"))
}
