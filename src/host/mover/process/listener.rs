//! Hearing what a mover says: answers go to who waits for them, progress and losses to who watches.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::process::ChildStdout;
use tokio::sync::{oneshot, watch};

use super::super::{MoverName, Progress};
use crate::failure::{Code, Failure};
use crate::mover::protocol::{FromMover, Notice, Reply, frame};

type Answer = Result<Reply, Failure>;

/// The request that somebody waits for; none once nobody can be waiting any more.
#[derive(Default)]
struct Expected {
    id: u64,
    answer: Option<oneshot::Sender<Answer>>,
    ended: bool,
}

/// The mover's side of the ear: a task that reads until the mover is gone.
pub(super) struct Listener {
    name: MoverName,
    started: Option<oneshot::Sender<Result<(), Failure>>>,
    expected: Arc<Mutex<Expected>>,
    progress: watch::Sender<Progress>,
    lost: Option<oneshot::Sender<Failure>>,
}

/// The asker's side.
pub(super) struct Heard {
    started: Option<oneshot::Receiver<Result<(), Failure>>>,
    expected: Arc<Mutex<Expected>>,
    /// The latest progress.
    pub progress: watch::Receiver<Progress>,
    /// Taken by the first who asks.
    pub lost: Option<oneshot::Receiver<Failure>>,
}

impl Listener {
    pub fn new(name: &MoverName) -> (Self, Heard) {
        let expected = Arc::new(Mutex::new(Expected::default()));
        let (started_in, started) = oneshot::channel();
        let (progress_in, progress) = watch::channel(Progress::default());
        let (lost_in, lost) = oneshot::channel();
        let listener = Self {
            name: name.clone(),
            started: Some(started_in),
            expected: expected.clone(),
            progress: progress_in,
            lost: Some(lost_in),
        };
        (listener, Heard { started: Some(started), expected, progress, lost: Some(lost) })
    }

    pub async fn listen(mut self, mut stdout: ChildStdout) {
        let why = loop {
            match frame::read::<FromMover>(&mut stdout).await {
                Ok(Some(frame)) => self.hear(frame),
                Ok(None) => break Failure::new(Code::MoverDied, format!("mover `{}` ended", self.name)),
                Err(error) => {
                    let text = format!("cannot understand mover `{}`", self.name);
                    break Failure::new(Code::MoverDied, text).because(&error);
                }
            }
        };
        let mut expected = lock(&self.expected);
        expected.ended = true;
        // Dropped, which is how its asker learns of the end.
        expected.answer = None;
        drop(expected);
        self.lose(why);
    }

    fn hear(&mut self, frame: FromMover) {
        match frame {
            FromMover::Started(result) => {
                if let Some(started) = self.started.take() {
                    let _nobody_waits = started.send(result);
                }
            }
            FromMover::Answer { id, result } => {
                let mut expected = lock(&self.expected);
                // Any other id is of a request that nobody waits for any more.
                if expected.id == id
                    && let Some(answer) = expected.answer.take()
                {
                    let _nobody_waits = answer.send(result);
                }
            }
            FromMover::Notice(Notice::Progress { done_bytes, total_bytes, data_bytes }) => {
                self.progress.send_replace(Progress { done_bytes, total_bytes, data_bytes });
            }
            FromMover::Notice(Notice::LeaseLost { failure }) => self.lose(failure),
        }
    }

    fn lose(&mut self, failure: Failure) {
        if let Some(lost) = self.lost.take() {
            let _nobody_waits = lost.send(failure);
        }
    }
}

impl Heard {
    /// What the mover said first; none when it ended without a word.
    pub async fn started(&mut self) -> Option<Result<(), Failure>> {
        self.started.take()?.await.ok()
    }

    /// From now on the answer with that id is waited for, and no earlier one.
    pub fn expect(&mut self, id: u64) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let mut expected = lock(&self.expected);
        expected.id = id;
        expected.answer = (!expected.ended).then_some(sender);
        receiver
    }
}

/// Nothing can panic while it is held.
fn lock(expected: &Mutex<Expected>) -> std::sync::MutexGuard<'_, Expected> {
    expected.lock().unwrap_or_else(PoisonError::into_inner)
}
