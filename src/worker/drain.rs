//! The wish that the host comes to rest, of a controller or of whoever runs the worker's process.

use std::time::Duration;

use jiff::Timestamp;

use super::pause;
use super::rest::Cause;
use super::shared::Shared;
use crate::failure::{Code, Failure};
use crate::message::{Drain, Pause, Refusal, masked};

/// What is wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainWish {
    /// What becomes of the worker and of what is left.
    pub cause: Cause,
    /// How long what runs may go on; as long as the configuration says where it is absent.
    pub limit: Option<Duration>,
    /// The broker user, where it was a control message.
    pub user: Option<String>,
    /// Who wants it.
    pub requested_by: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl DrainWish {
    /// The process was told to end.
    pub fn of_signal() -> Self {
        Self { cause: Cause::Signal, limit: None, user: None, requested_by: None, reason: None }
    }

    fn of(user: &str, drain: &Drain) -> Self {
        let said = |words: &Option<String>| words.as_deref().map(masked);
        Self {
            cause: Cause::Drain { evict: drain.evict, stay: drain.stay },
            limit: drain.limit_seconds.map(Duration::from_secs),
            user: Some(masked(user)),
            requested_by: said(&drain.requested_by),
            reason: said(&drain.reason),
        }
    }
}

/// Takes the wish of a controller. A host that is to stay is paused first, so that it stays so also if its worker dies on the way, and goes on
/// to keep nothing where that is wished. Of two drains the later one says whether anything is kept.
///
/// # Errors
/// It could not be written down; or, inside, it is not to be obeyed any more.
pub async fn take(shared: &Shared, user: &str, drain: &Drain) -> Result<Result<DrainWish, Refusal>, Failure> {
    if let Some(moment) = drain.obey_before.filter(|moment| *moment < Timestamp::now()) {
        let text = format!("the drain was to be obeyed before {moment}");
        return Ok(Err(Refusal::new(Code::ControlTooLate, text)));
    }
    if drain.stay {
        let (requested_by, reason) = (drain.requested_by.clone(), drain.reason.clone());
        pause::pause(shared, user, &Pause { requested_by, reason, until: None }, Some(drain.evict)).await?;
    } else if !drain.evict {
        pause::evict_no_more(shared).await?;
    }
    Ok(Ok(DrainWish::of(user, drain)))
}
