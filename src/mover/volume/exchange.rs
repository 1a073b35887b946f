//! The exchange: all new volumes take the places of the old ones, or all old ones are back in theirs.
//!
//! ```text
//!   look ─▶ lock what is untouched ─▶ volume → previous, each ─fsync─▶ fresh → volume, each ─fsync─▶ done
//!                    └──── any failure ─────────┴──────────────┴───▶ put back ─▶ the failure
//!                                                                       └ can't be, or can't be seen: not known
//!   done: has anybody an old one open? ─▶ take back ─▶ `in_use_elsewhere`; a new one as well: `restore_unfinished`
//! ```

use std::fs::File;

use super::state::{Seen, State, all_in_place};
use super::{Name, Place, in_use, look_at_all, names, open, sync};
use crate::failure::{Code, Failure};
use crate::mover::protocol::RestoredVolume;
use crate::mover::rbd::Keys;

/// What an exchange came to, where it is not that every old volume is in its place.
#[derive(Debug)]
pub(in crate::mover) enum Outcome {
    /// All new ones are in their places.
    Done,
    /// It can't be seen now, or not all places are taken. To be asked again.
    NotKnown(Failure),
}

/// Exchanges all volumes, from wherever an earlier exchange was cut off. With `only_go_on`, one that had not begun is refused as
/// `interrupted`. `restore_unfinished`: all new ones are in place, and somebody has opened one of them and an old one.
pub(in crate::mover) fn exchange(
    volumes: &[RestoredVolume],
    only_go_on: bool,
    keys: &Keys,
) -> Result<Outcome, Failure> {
    let names = names(volumes)?;
    let looked = open(names, keys).and_then(|places| look_at_all(&places).map(|seen| (places, seen)));
    let (places, seen) = match looked {
        Ok(looked) => looked,
        Err(failure) => return Ok(Outcome::NotKnown(failure)),
    };
    if places.is_empty() {
        return Ok(Outcome::Done);
    }
    if only_go_on && seen.iter().all(|one| one.state() == State::Untouched) {
        return Err(Failure::new(Code::Interrupted, "the exchange of the volumes had not begun"));
    }
    // Held until all is over, so that a start in between finds the volume locked if it finds one.
    let mut held = Vec::new();
    if !all_in_place(&seen)
        && let Err(failure) = attempt(&places, &mut held)
    {
        match put_back(&places) {
            Ok(Back::Old) => return Err(failure),
            // The last rename did happen.
            Ok(Back::New) => {}
            Err(stuck) => return Ok(Outcome::NotKnown(failure.because_of(&stuck))),
        }
    }
    match sync(&places).and_then(|()| opened(&places)) {
        Ok(None) => Ok(Outcome::Done),
        // Since it was over the instance may have run on the new ones, and nothing is taken back.
        Ok(Some(old)) if only_go_on && all_in_place(&seen) => {
            let text = format!("all new volumes are in place, and somebody has `{}` open", old.shown(Name::Previous));
            Err(Failure::new(Code::RestoreUnfinished, text))
        }
        Ok(Some(old)) => take_back(&places, old),
        Err(failure) => Ok(Outcome::NotKnown(failure)),
    }
}

/// The one whose old volume somebody has open.
fn opened(places: &[Box<dyn Place>]) -> Result<Option<&dyn Place>, Failure> {
    for place in places {
        if !place.left_alone()? {
            return Ok(Some(place.as_ref()));
        }
    }
    Ok(None)
}

/// An instance that was started meanwhile may run on an old volume: it gets all of them back, unless it has new ones as well.
fn take_back(places: &[Box<dyn Place>], opened: &dyn Place) -> Result<Outcome, Failure> {
    let old = Failure { text: format!("`{}` is open", opened.shown(Name::Previous)), ..in_use(opened) };
    match look_at_all(places).and_then(|seen| back(places, &seen)) {
        Ok(()) => Err(in_use(opened)),
        Err(failure) if failure.code == Code::InUseElsewhere => {
            let text = "an instance was started while its volumes were exchanged: old and new ones are open";
            Err(Failure::new(Code::RestoreUnfinished, text).because_of(&failure).because_of(&old))
        }
        Err(failure) => Ok(Outcome::NotKnown(failure.because_of(&old))),
    }
}

fn attempt(places: &[Box<dyn Place>], held: &mut Vec<File>) -> Result<(), Failure> {
    let states: Vec<_> = look_at_all(places)?.into_iter().map(|seen| (seen, seen.state())).collect();
    for (place, (seen, state)) in places.iter().zip(&states) {
        match state {
            State::Odd if !seen.fresh && !seen.previous => {
                let text = format!("there is nothing to exchange `{}` for", place.shown(Name::Volume));
                return Err(Failure::new(Code::Internal, text));
            }
            State::Odd => {
                let text = format!("`{}` cannot be exchanged", place.shown(Name::Volume));
                return Err(Failure::new(Code::VolumeIo, text).caused_by(seen.shown()));
            }
            State::Untouched => held.extend(place.lock()?),
            State::MovedAway | State::InPlace => {}
        }
    }
    let all = || places.iter().zip(&states).map(|(place, (_, state))| (place, *state));
    for (place, _) in all().filter(|(_, state)| *state == State::Untouched) {
        place.rename(Name::Volume, Name::Previous)?;
    }
    sync(places)?;
    for (place, _) in all().filter(|(_, state)| *state != State::InPlace) {
        place.rename(Name::Fresh, Name::Volume)?;
    }
    Ok(())
}

/// Which volumes are in their places after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    Old,
    /// The exchange was over: nothing was put back.
    New,
}

/// Puts all old volumes back into their places, from wherever an exchange was cut off; new ones that were in place are moved away
/// first. An error leaves a place empty, or could not see.
pub(super) fn put_back(places: &[Box<dyn Place>]) -> Result<Back, Failure> {
    let seen = look_at_all(places)?;
    match all_in_place(&seen) {
        true => Ok(Back::New),
        false => back(places, &seen).map(|()| Back::Old),
    }
}

fn back(places: &[Box<dyn Place>], seen: &[Seen]) -> Result<(), Failure> {
    let in_place = || places.iter().zip(seen).filter(|(_, seen)| seen.state() == State::InPlace);
    for (place, _) in in_place() {
        // Somebody started the instance all the same: what it writes there is to be lost under nobody's hands.
        if !place.unused(Name::Volume)? {
            return Err(in_use(place.as_ref()));
        }
    }
    for (place, _) in in_place() {
        place.rename(Name::Volume, Name::Fresh)?;
    }
    sync(places)?;
    for place in places {
        let seen = place.look()?;
        if !seen.volume && !seen.previous {
            let text = format!("`{}` is gone", place.shown(Name::Volume));
            return Err(Failure::new(Code::VolumeIo, text).caused_by(seen.shown()));
        }
        if !seen.volume {
            place.rename(Name::Previous, Name::Volume)?;
        }
    }
    sync(places)
}
