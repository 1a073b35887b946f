//! How the worker stands, told to whoever started its process: that it is ready, a line for people, and that its main loop goes round.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::rest::UNWIND_MAX;
use crate::broker::SessionState;
use crate::message::event::Paused;
use crate::supervisor::Supervisor;

/// Longest time between two lines for people, if there is something new to say.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// What the end of the worker takes once everything is unwound: telling it, the outbox, and the broker's goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(60);

/// Tells it. Its ticks belong to the main loop.
pub struct Standing {
    supervisor: Supervisor,
    ticks: Option<Interval>,
    told: String,
}

impl Standing {
    /// Nothing is told yet.
    pub fn new(supervisor: Supervisor) -> Self {
        let every = supervisor.sign_of_life_every().unwrap_or(LINE_EVERY).min(LINE_EVERY);
        let ticks = supervisor.is_there().then(|| {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { supervisor, ticks, told: String::new() }
    }

    /// The main loop begins.
    pub fn ready(&self) {
        self.supervisor.ready();
    }

    /// Resolves when it is time for a sign of life; never where nobody wants one.
    pub async fn due(&mut self) {
        match &mut self.ticks {
            Some(ticks) => _ = ticks.tick().await,
            None => std::future::pending().await,
        }
    }

    /// The main loop has gone round, and this is how it stands.
    pub fn lives(&mut self, line: String) {
        self.supervisor.lives();
        if line != self.told {
            self.supervisor.status(&line);
            self.told = line;
        }
    }

    /// The process ends when what runs has, or has been taken back after `limit`, and then all has been told that has to be, in
    /// `tell_max` at most.
    pub fn ends(&self, limit: Duration, tell_max: Duration) {
        self.supervisor.stopping(limit.saturating_add(UNWIND_MAX + tell_max + GOODBYE_MAX));
    }
}

/// The line for people.
pub fn line(session: &SessionState, paused: Option<&Paused>, stops: bool, running: usize, waiting: usize) -> String {
    let stands = match (session, paused) {
        _ if stops => "comes to rest".to_owned(),
        (_, Some(Paused { since, user, .. })) => format!("paused since {since} by {user}"),
        (SessionState::Up, None) => "takes jobs".to_owned(),
        (SessionState::Connecting { .. }, None) => "waits for the broker".to_owned(),
        (SessionState::HostIdInUse, None) => "another worker has its host id".to_owned(),
        (SessionState::Blocked { .. }, None) => "the broker takes nothing for now".to_owned(),
    };
    format!("{stands}; {running} at work, {waiting} wait")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn the_line_says_what_matters_most() {
        let since = Timestamp::UNIX_EPOCH;
        let paused = Paused { since, user: "ops".to_owned(), requested_by: None, reason: None, until: None };
        let (up, away) = (SessionState::Up, SessionState::Connecting { reason: "refused".to_owned() });
        assert_eq!(line(&up, None, false, 2, 7), "takes jobs; 2 at work, 7 wait");
        assert_eq!(line(&away, None, false, 0, 0), "waits for the broker; 0 at work, 0 wait");
        let text = "paused since 1970-01-01T00:00:00Z by ops; 0 at work, 1 wait";
        assert_eq!(line(&away, Some(&paused), false, 0, 1), text);
        assert_eq!(line(&up, Some(&paused), true, 1, 0), "comes to rest; 1 at work, 0 wait");
    }
}
