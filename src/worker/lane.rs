//! In which order control messages are obeyed: as they came, each written down, acknowledged and obeyed before the next is looked at, so that a
//! wish and its correction do not overtake each other, nor one that comes again what came after it. Pure.
//!
//! Two kinds need no order. Cancellations go together, as they share the journal's commits that way and none undoes another; and what only asks
//! for words goes beside the lane.

use std::collections::VecDeque;

use crate::message::{Announce, Cancel};

/// How a message takes its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Alone.
    Alone,
    /// Together with others of its kind.
    Together,
}

impl Turn {
    /// That of a message with this routing key, `<host>.<command>`; none where it goes beside the lane.
    pub fn of(routing_key: &str) -> Option<Self> {
        match routing_key.split_once('.') {
            Some((_, Announce::COMMAND)) => None,
            Some((_, Cancel::COMMAND)) => Some(Self::Together),
            _ => Some(Self::Alone),
        }
    }
}

/// Messages that wait for their turn, and how many have it.
#[derive(Debug)]
pub struct Lane<T> {
    waiting: VecDeque<(Turn, T)>,
    under_way: usize,
    /// That of those which are under way.
    turn: Turn,
}

impl<T> Lane<T> {
    /// With nobody in it.
    pub const fn new() -> Self {
        Self { waiting: VecDeque::new(), under_way: 0, turn: Turn::Alone }
    }

    /// One more has come.
    pub fn push(&mut self, turn: Turn, message: T) {
        self.waiting.push_back((turn, message));
    }

    /// The next one whose turn it is.
    pub fn take_next(&mut self) -> Option<T> {
        let (turn, _) = self.waiting.front()?;
        if self.under_way > 0 && (self.turn, *turn) != (Turn::Together, Turn::Together) {
            return None;
        }
        let (turn, message) = self.waiting.pop_front()?;
        self.turn = turn;
        self.under_way += 1;
        Some(message)
    }

    /// One that had its turn has been obeyed.
    pub fn obeyed(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// How many wait or have their turn.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.under_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(keys: &[&'static str]) -> Lane<&'static str> {
        let mut lane = Lane::new();
        for key in keys {
            if let Some(turn) = Turn::of(key) {
                lane.push(turn, *key);
            }
        }
        lane
    }

    #[test]
    fn one_has_its_turn_after_the_other_and_cancellations_have_it_together() {
        let mut lane = lane(&["h.pause", "h.cancel", "h.cancel", "h.announce", "h.drain", "h.cancel"]);
        assert_eq!((lane.len(), lane.take_next(), lane.take_next()), (5, Some("h.pause"), None));
        lane.obeyed();
        assert_eq!([lane.take_next(), lane.take_next(), lane.take_next()], [Some("h.cancel"), Some("h.cancel"), None]);
        lane.obeyed();
        assert_eq!(lane.take_next(), None, "one cancellation is under way yet");
        lane.obeyed();
        assert_eq!((lane.take_next(), lane.take_next()), (Some("h.drain"), None));
        lane.obeyed();
        assert_eq!(lane.take_next(), Some("h.cancel"));
        lane.obeyed();
        assert_eq!((lane.len(), lane.take_next()), (0, None));
    }

    #[test]
    fn what_nobody_knows_has_a_turn_of_its_own() {
        assert_eq!(["h.no-such-command", "h"].map(Turn::of), [Some(Turn::Alone); 2]);
    }
}
