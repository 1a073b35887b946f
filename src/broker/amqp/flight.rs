//! Messages on their way to their confirm.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::Confirmation;

/// A message's number and what became of it.
pub(super) type Settled = (u64, lapin::Result<Confirmation>);

/// The messages that wait for their confirm.
#[derive(Default)]
pub(super) struct Flight {
    waiting: FuturesUnordered<BoxFuture<'static, Settled>>,
}

impl Flight {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Adds one.
    pub(super) fn push(&self, message: BoxFuture<'static, Settled>) {
        self.waiting.push(message);
    }

    /// Waits for confirms and gives all that are there.
    ///
    /// "All" is a promise, and the outbox builds on it: lapin hands a returned message to whichever confirm it settles next,
    /// which need not be the one of that message. It does so before it settles the message's own confirm, so in a batch that
    /// leaves nothing behind the returned message is there, or came earlier.
    pub(super) async fn settled(&mut self) -> Vec<Settled> {
        std::future::poll_fn(|context| self.poll_all(context)).await
    }

    fn poll_all(&mut self, context: &mut Context<'_>) -> Poll<Vec<Settled>> {
        let again = Arc::new(Again { asked: AtomicBool::new(false), outer: context.waker().clone() });
        let waker = Waker::from(Arc::clone(&again));
        let mut inner = Context::from_waker(&waker);
        let mut batch = Vec::new();
        loop {
            match pin!(&mut self.waiting).poll_next(&mut inner) {
                Poll::Ready(Some(settled)) => batch.push(settled),
                Poll::Ready(None) => break,
                // It also says "pending" to let others run, having asked to be polled again: then there is more.
                Poll::Pending if again.asked.swap(false, Ordering::SeqCst) => {}
                Poll::Pending => break,
            }
        }
        if batch.is_empty() { Poll::Pending } else { Poll::Ready(batch) }
    }
}

/// A waker that remembers.
struct Again {
    asked: AtomicBool,
    outer: Waker,
}

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.asked.store(true, Ordering::SeqCst);
        self.outer.wake_by_ref();
    }
}
