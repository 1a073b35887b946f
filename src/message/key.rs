//! Words of routing keys: those that come from a text, and the one that tells urgent jobs from the others.

use crate::model::id::HostId;

/// Longest such word, in bytes: AMQP allows 255 for the whole key, of which a host id takes up to 63.
const WORD_BYTES_MAX: usize = 64;

/// What follows the host in the keys, and in the name of the queue, of its urgent jobs.
const URGENT: &str = "urgent";

/// `<host>.urgent`.
pub fn urgent(host: &HostId) -> String {
    format!("{host}.{URGENT}")
}

/// The host of a job's key, `<host>` or `<host>.urgent`, and whether it is the second; none where it is no such key.
pub fn of_job(key: &str) -> Option<(HostId, bool)> {
    let (host, is_urgent) = match key.split_once('.') {
        None => (key, false),
        Some((host, URGENT)) => (host, true),
        Some(_) => return None,
    };
    Some((host.parse().ok()?, is_urgent))
}

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
    fn the_key_of_a_job_names_its_host_and_whether_it_is_urgent() {
        let host = || "kvm-07".parse::<HostId>().ok();
        assert_eq!(of_job("kvm-07"), host().map(|host| (host, false)));
        assert_eq!(host().map(|host| urgent(&host)).and_then(|key| of_job(&key)), host().map(|host| (host, true)));
        for key in ["", "KVM", "kvm-07.", "kvm-07.drain", "kvm-07.urgent.x", ".urgent", "urgent.kvm-07"] {
            assert_eq!(of_job(key), None, "{key}");
        }
        assert_eq!(of_job("urgent").map(|(_, is_urgent)| is_urgent), Some(false), "a host may have that name");
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
