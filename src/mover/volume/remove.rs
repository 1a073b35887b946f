//! Removing what an exchange leaves, or what comes of none: never the only copy of anything.

use super::exchange::put_back;
use super::state::{Seen, all_in_place, cut_off};
use super::{Place, locks, look_at_all, names, open, sync};
use crate::failure::{Code, Failure};
use crate::mover::protocol::RestoredVolume;

/// Removes the new volumes that have not taken their places. An exchange that was cut off is undone first; one that is over stays.
pub(in crate::mover) fn remove_fresh(volumes: &[RestoredVolume]) -> Result<(), Failure> {
    let places = open(names(volumes)?)?;
    if cut_off(&look_at_all(&places)?) {
        put_back(&places)?;
    }
    let seen = look_at_all(&places)?;
    for (place, seen) in places.iter().zip(&seen).filter(|(_, seen)| seen.fresh) {
        if !seen.volume {
            return Err(kept(place, &place.fresh, *seen, "it is the only one that is left"));
        }
        place.remove(&place.fresh)?;
    }
    sync(&places)
}

/// Removes the old volumes once all new ones are in place. `internal`: they are not. `in_use_elsewhere`: somebody has one open, who
/// would go on with a file that has no name.
pub(in crate::mover) fn remove_previous(volumes: &[RestoredVolume]) -> Result<(), Failure> {
    let places = open(names(volumes)?)?;
    let seen = look_at_all(&places)?;
    let in_place = all_in_place(&seen);
    for (place, seen) in places.iter().zip(&seen).filter(|(_, seen)| seen.previous) {
        if !in_place {
            let failure = kept(place, &place.previous, *seen, "not every new volume is in its place");
            return Err(Failure { code: Code::Internal, ..failure });
        }
        if is_open(place)? {
            let failure = kept(place, &place.previous, *seen, "somebody has it open");
            return Err(Failure { code: Code::InUseElsewhere, ..failure });
        }
        place.remove(&place.previous)?;
    }
    sync(&places)
}

fn is_open(place: &Place) -> Result<bool, Failure> {
    let file = place.dir.open_file(&place.previous, false).map_err(|error| error.failure(Code::VolumeIo))?;
    locks::is_in_use(&file).map_err(|error| {
        let shown = place.dir.path().join(&place.previous);
        Failure::new(Code::VolumeIo, format!("cannot look for locks on `{}`", shown.display())).because(&error)
    })
}

fn kept(place: &Place, name: &std::ffi::OsStr, seen: Seen, why: &str) -> Failure {
    let text = format!("`{}` was not removed: {why}", place.dir.path().join(name).display());
    Failure::new(Code::VolumeIo, text).caused_by(seen.shown())
}
