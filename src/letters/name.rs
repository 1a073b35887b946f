//! Ids as a person types them: whole, or so much of one end that no other one has it.

use std::collections::BTreeSet;

use uuid::Uuid;

/// Fewest characters of an id that stand for it. Ids of one night begin alike; they differ at their end.
pub const NAME_CHARACTERS_MIN: usize = 6;
/// Characters of a uuid as ids are printed.
const UUID_CHARACTERS: usize = 36;
/// Ids that are named where several are meant.
const NAMED_MAX: usize = 5;

/// Whether `word` stands for the id: it is it, or its beginning or end, in letters of either case.
pub fn stands_for(word: &str, id: &str) -> bool {
    let long_enough = word.chars().count() >= NAME_CHARACTERS_MIN;
    let same = |part: Option<&[u8]>| part.is_some_and(|part| part.eq_ignore_ascii_case(word.as_bytes()));
    let (bytes, len) = (id.as_bytes(), word.len());
    let end = || bytes.len().checked_sub(len).and_then(|from| bytes.get(from..));
    same(Some(bytes)) || (long_enough && (same(bytes.get(..len)) || same(end())))
}

/// Whether `word` is that id, whole: a uuid, for which no longer id is meant.
pub fn is_whole(word: &str, id: &str) -> bool {
    word.eq_ignore_ascii_case(id) && word.len() == UUID_CHARACTERS && Uuid::try_parse(word).is_ok()
}

/// Why a word stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` stands for {count}: {}{}", .some.join(", "), if .count > &.some.len() { ", …" } else { "" })]
pub struct Ambiguous {
    /// What was typed.
    pub word: String,
    /// For how many it stands.
    pub count: usize,
    /// Some of them.
    pub some: Vec<String>,
}

/// The id, of those that are there, for which `word` stands; none where there is none. A whole uuid stands for itself, whatever others
/// begin with it; anything shorter that is an id of its own may be the beginning that somebody typed of another.
///
/// # Errors
/// It stands for several.
pub fn named<'i>(word: &str, ids: impl IntoIterator<Item = &'i str>) -> Result<Option<&'i str>, Ambiguous> {
    let meant: BTreeSet<&str> = ids.into_iter().filter(|id| stands_for(word, id)).collect();
    if let Some(id) = meant.get(word).filter(|id| is_whole(word, id)) {
        return Ok(Some(*id));
    }
    let whole: BTreeSet<&str> = meant.iter().copied().filter(|id| is_whole(word, id)).collect();
    let meant = if whole.is_empty() { meant } else { whole };
    match meant.len() {
        0 | 1 => Ok(meant.first().copied()),
        count => {
            let some = meant.into_iter().take(NAMED_MAX).map(str::to_owned).collect();
            Err(Ambiguous { word: word.to_owned(), count, some })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 6] = [
        "019a0f3e-7c00-7000-8000-0000000000aa",
        "019a0f3e-7c00-7000-8000-0000000000bb",
        "019a0f3e-7c00-7000-8000-0000000000bbc",
        "odd",
        "letter",
        "letter-2",
    ];

    #[test]
    fn an_id_is_known_by_either_end_if_no_other_has_it() {
        assert_eq!(named("0000aa", IDS), Ok(Some(IDS[0])));
        assert_eq!(named("odd", IDS), Ok(Some("odd")), "a whole id may be short");
        for word in ["00aa", "dd", "", "0000dd", "7c00-7000"] {
            assert_eq!(named(word, IDS), Ok(None), "{word}");
        }
        assert_eq!(named(IDS[1], IDS), Ok(Some(IDS[1])), "though another begins with it");
        assert_eq!(named(&IDS[1].to_uppercase(), IDS), Ok(Some(IDS[1])));
        assert_eq!(named("0000AA", IDS), Ok(Some(IDS[0])));
        let twins = [IDS[0], &IDS[0].to_uppercase()];
        assert_eq!(twins.map(|id| named(id, twins)), twins.map(|id| Ok(Some(id))), "as it was typed");
        assert!(named(&IDS[0].replace("aa", "aA"), twins).is_err());
        assert_eq!(named("üüü", ["xüüü"]), Ok(None), "not long enough");
        assert!(named("letter", IDS).is_err(), "as it would be if the shorter one were not there");
    }

    #[test]
    fn who_says_too_little_is_told_what_it_could_be() {
        let Err(ambiguous) = named("019a0f3e-7c00-7000-8000", IDS) else { unreachable!() };
        assert_eq!(ambiguous.count, 3);
        let said = ambiguous.to_string();
        assert!(
            said.starts_with("`019a0f3e-7c00-7000-8000` stands for 3: 019a0f3e") && said.contains(IDS[2]),
            "{said}"
        );
    }
}
