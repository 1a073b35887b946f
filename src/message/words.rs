//! The rule for what a person says in a message: who wants something, and why.

/// Longest such words, bytes.
pub const WORDS_BYTES_MAX: usize = 1024;

/// Whether a person may say this: something, not too much of it, and on one line. What else could steer a terminal is the care of who
/// shows it.
pub fn may_be_said(words: &str) -> bool {
    (1..=WORDS_BYTES_MAX).contains(&words.len()) && !words.chars().any(char::is_control)
}

/// The rule, for who broke it.
pub fn rule() -> String {
    format!("it has 1 to {WORDS_BYTES_MAX} bytes and no control character")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_says_something_short_that_can_be_shown() {
        assert!(may_be_said("the share is back: ü") && may_be_said(&"x".repeat(WORDS_BYTES_MAX)));
        for words in ["", "a\nb", "\u{1b}[2J", "\u{9b}", &"x".repeat(WORDS_BYTES_MAX + 1)] {
            assert!(!may_be_said(words), "{words:?}");
        }
    }
}
