//! How a worker came to its end that was told to.

use super::rest::Left;

/// What is to be known of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// A controller wants no worker here until somebody starts one.
    pub drained: bool,
    /// Nothing was to be kept.
    pub evicted: bool,
    /// Attempts that had not unwound, and where nothing was to be kept runs that had not ended, when it could wait no longer.
    pub left: usize,
    /// Messages that could not be sent though nothing was to be kept.
    pub untold: u64,
}

impl Ended {
    /// With that in hand.
    pub(super) fn with(left: Left, drained: bool, evicted: bool) -> Self {
        let not_ended = if evicted { left.intakes + left.waiting } else { 0 };
        Self { drained, evicted, left: left.attempts + not_ended, untold: 0 }
    }

    /// What is not as it was to be, if anything.
    pub fn trouble(&self) -> Option<String> {
        let left = match self.left {
            0 => None,
            left => Some(format!("{left} attempts or runs had not ended when the stop could wait no longer")),
        };
        let untold = match self.untold {
            0 => None,
            untold => {
                Some(format!("{untold} events and dead letters could not be sent: the broker does not take them"))
            }
        };
        let trouble: Vec<_> = left.into_iter().chain(untold).collect();
        (!trouble.is_empty()).then(|| format!("{}; the next start goes on from the journal", trouble.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_trouble_only_where_nothing_is_kept() {
        let left = Left { attempts: 0, intakes: 2, waiting: 3 };
        assert_eq!(Ended::with(left, true, false).trouble(), None);
        assert_eq!(Ended::with(left, true, true).left, 5);
        assert_eq!(Ended::with(Left { attempts: 1, ..left }, false, false).left, 1);
        assert_eq!(Ended::with(Left { attempts: 1, ..left }, false, true).left, 6);
    }

    #[test]
    fn trouble_says_how_much_of_what() {
        let text = Ended { left: 1, untold: 7, ..Ended::default() }.trouble().unwrap_or_default();
        assert!(text.contains("1 attempts") && text.contains("7 events"), "{text}");
        assert_eq!(Ended { drained: true, evicted: true, ..Ended::default() }.trouble(), None);
    }
}
