//! What the three names of a volume say about how far an exchange has come. Pure.

/// Which of the names are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub volume: bool,
    pub fresh: bool,
    pub previous: bool,
}

/// How far an exchange has come with one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Untouched,
    MovedAway,
    InPlace,
    /// No exchange leaves it so.
    Odd,
}

impl Seen {
    pub fn state(self) -> State {
        match (self.volume, self.fresh, self.previous) {
            (true, true, false) => State::Untouched,
            (false, true, true) => State::MovedAway,
            (true, false, true) => State::InPlace,
            _ => State::Odd,
        }
    }

    /// In words.
    pub fn shown(self) -> String {
        let there = [(self.volume, "the volume"), (self.fresh, "the new one"), (self.previous, "the previous one")];
        let there: Vec<_> = there.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect();
        if there.is_empty() { "nothing is there".to_owned() } else { format!("there is {}", there.join(" and ")) }
    }
}

/// Every new volume is in its place, also where the removal of the previous ones has begun. Where it has ended, or there never was a
/// new one, nobody can tell.
pub(super) fn all_in_place(seen: &[Seen]) -> bool {
    seen.iter().all(|one| one.volume && !one.fresh) && seen.iter().any(|one| one.previous)
}

/// An exchange was cut off: somewhere an old volume is not in its place though not all the new ones are in theirs.
pub(super) fn cut_off(seen: &[Seen]) -> bool {
    seen.iter().any(|one| one.previous) && !all_in_place(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(names: &str) -> Seen {
        Seen { volume: names.contains('v'), fresh: names.contains('f'), previous: names.contains('p') }
    }

    #[test]
    fn an_exchange_is_over_when_no_new_volume_waits_and_no_place_is_empty() {
        for (one, other, over, begun) in [
            ("vp", "vp", true, false),
            ("vp", "v", true, false),
            ("v", "v", false, false),
            ("vf", "vf", false, false),
            ("vf", "v", false, false),
            ("vp", "fp", false, true),
            ("vp", "vf", false, true),
            ("fp", "vf", false, true),
            ("fp", "fp", false, true),
            ("vp", "p", false, true),
            ("vf", "vfp", false, true),
        ] {
            let both = [seen(one), seen(other)];
            assert_eq!((all_in_place(&both), cut_off(&both)), (over, begun), "{one} {other}");
        }
        assert_eq!(seen("vfp").state(), State::Odd);
        assert_eq!(seen("vf").shown(), "there is the volume and the new one");
        assert_eq!(seen("").shown(), "nothing is there");
    }
}
