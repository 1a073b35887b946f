//! Removing what an exchange leaves, or what comes of none: never the only copy of anything.

use super::exchange::put_back;
use super::state::{Seen, all_in_place, cut_off};
use super::{Name, Place, exchanged, look_at_all, names, open, sync};
use crate::failure::{Code, Failure};
use crate::mover::protocol::RestoredVolume;
use crate::mover::rbd::Keys;

/// Removes the new volumes that have not taken their places. An exchange that was cut off is undone first; one that is over stays.
pub(in crate::mover) fn remove_fresh(volumes: &[RestoredVolume], keys: &Keys) -> Result<(), Failure> {
    let places = open(names(volumes)?, keys)?;
    if cut_off(&look_at_all(&places)?) {
        put_back(&places)?;
    }
    let seen = look_at_all(&places)?;
    for (place, seen) in places.iter().zip(&seen).filter(|(_, seen)| seen.fresh) {
        if !seen.volume {
            return Err(kept(place.as_ref(), Name::Fresh, *seen, "it is the only one that is left"));
        }
        unused(place.as_ref(), Name::Fresh, *seen)?;
        place.remove(Name::Fresh)?;
    }
    sync(&places)
}

/// Removes the old volumes once all new ones are in place. `internal`: they are not. `in_use_elsewhere`: somebody has one open, who
/// would go on with a file that has no name. `disk_unsupported`: one was given what no backup holds while the new ones were made.
pub(in crate::mover) fn remove_previous(volumes: &[RestoredVolume], keys: &Keys) -> Result<(), Failure> {
    let places = open(names(volumes)?, keys)?;
    let seen = look_at_all(&places)?;
    let in_place = all_in_place(&seen);
    for ((place, seen), wanted) in
        places.iter().zip(&seen).zip(exchanged(volumes)).filter(|((_, seen), _)| seen.previous)
    {
        if !in_place {
            let failure = kept(place.as_ref(), Name::Previous, *seen, "not every new volume is in its place");
            return Err(Failure { code: Code::Internal, ..failure });
        }
        unused(place.as_ref(), Name::Previous, *seen)?;
        place.loses_nothing(Name::Previous, wanted.format)?;
        place.remove(Name::Previous)?;
    }
    sync(&places)
}

fn unused(place: &dyn Place, name: Name, seen: Seen) -> Result<(), Failure> {
    match place.unused(name)? {
        true => Ok(()),
        false => Err(Failure { code: Code::InUseElsewhere, ..kept(place, name, seen, "somebody has it open") }),
    }
}

fn kept(place: &dyn Place, name: Name, seen: Seen, why: &str) -> Failure {
    let text = format!("`{}` was not removed: {why}", place.shown(name));
    Failure::new(Code::VolumeIo, text).caused_by(seen.shown())
}
