//! Messages that a command read and does not believe: told on stderr, without letting whoever sends them fill it.

use super::output::printable;
use crate::message::vouch::Disbelief;

/// How many there were.
#[derive(Debug, Default)]
pub struct Refused(u64);

impl Refused {
    /// Counts one. Gives the line that is to be told, for the first, the second, the fourth and so on.
    pub fn add(&mut self, routing_key: &str, reason: &Disbelief) -> Option<String> {
        self.0 += 1;
        self.0.is_power_of_two().then(|| {
            let key = printable(routing_key);
            format!("not believed: a message with the key `{key}`: {reason} ({} so far)", self.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_a_few_lines() {
        let mut refused = Refused::default();
        let told: Vec<String> = (0..1000).filter_map(|_| refused.add("a.b.c\u{1b}", &Disbelief::FurtherKeys)).collect();
        assert_eq!(told.len(), 10);
        assert!(told.iter().all(|line| !line.contains('\u{1b}')));
        assert!(told.last().is_some_and(|line| line.ends_with("(512 so far)")), "{told:?}");
    }
}
