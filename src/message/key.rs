//! Words of routing keys that come from a text.

/// Longest such word, in bytes: AMQP allows 255 for the whole key, of which a host id takes up to 63.
const WORD_BYTES_MAX: usize = 64;

/// One word of a routing key: what is not a letter, digit, `-` or `_` becomes `_`, so that no text can add words, stand for others as
/// a wildcard, or make the key too long.
pub fn word(text: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    match text {
        "" => "unknown".to_owned(),
        text => text.chars().take(WORD_BYTES_MAX).map(safe).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::failure::Code;

    #[test]
    fn a_failure_code_is_a_word_as_it_is() {
        for code in Code::ALL {
            assert_eq!(word(code.as_str()), code.as_str());
        }
    }

    #[test]
    fn an_empty_text_is_a_word_too() {
        assert_eq!(word(""), "unknown");
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_short_word_without_wildcards(text in ".*") {
            let word = word(&text);
            prop_assert!((1..=WORD_BYTES_MAX).contains(&word.len()));
            prop_assert!(!word.contains(['.', '*', '#']));
        }
    }
}
