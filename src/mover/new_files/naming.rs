//! Giving the new files their names, all of them or none, and taking the names away again.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use super::place::{NoPlace, Place, io, open, open_alone};
use crate::failure::{Code, Failure};
use crate::mover::protocol::{NewFile, NewFiles};

/// What the naming came to, where it is not that no file has its name.
#[derive(Debug)]
pub(in crate::mover) enum Outcome {
    /// All have.
    Done,
    /// It can't be seen now. To be asked again.
    NotKnown(Failure),
}

/// How far it has come with one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Made,
    /// It has both names.
    HalfNamed,
    Named,
    /// Somebody else has the name.
    Taken,
    /// It is seen under neither name.
    Gone,
}

impl Place {
    fn state(&self) -> Result<State, Failure> {
        let fresh = self.seen(&self.fresh)?.filter(|stat| self.is_new(stat));
        Ok(match (fresh, self.seen(&self.name)?) {
            (Some(_), None) => State::Made,
            (Some(fresh), Some(named)) if (fresh.st_dev, fresh.st_ino) == (named.st_dev, named.st_ino) => {
                State::HalfNamed
            }
            (Some(_), Some(_)) => State::Taken,
            (None, Some(named)) if self.is_new(&named) => State::Named,
            (None, _) => State::Gone,
        })
    }

    /// An error says nothing about whether it happened.
    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Failure> {
        self.dir.rename_onto_nothing(from, to).map_err(|error| match error.is_taken() {
            true => self.taken().because(&error),
            false => io(error),
        })
    }

    fn name_it(&self) -> Result<(), Failure> {
        match self.state()? {
            State::Named => Ok(()),
            State::HalfNamed => self.dir.remove_file(&self.fresh).map_err(io),
            State::Taken => Err(self.taken()),
            State::Gone => Err(self.gone()),
            State::Made => match (self.rename(&self.fresh, &self.name), self.state()) {
                (_, Ok(State::Named)) => Ok(()),
                (_, Ok(State::HalfNamed)) => self.dir.remove_file(&self.fresh).map_err(io),
                (Err(failure), _) => Err(failure),
                (Ok(()), Ok(_)) => Err(Failure::new(Code::VolumeIo, format!("`{}` is gone again", self.shown()))),
                (Ok(()), Err(failure)) => Err(failure),
            },
        }
    }

    fn unname(&self) -> Result<(), Failure> {
        match self.state()? {
            State::Made | State::Taken => Ok(()),
            State::Gone => Err(self.gone()),
            State::HalfNamed => self.dir.remove_file(&self.name).map_err(io),
            State::Named => match (self.rename(&self.name, &self.fresh), self.state()) {
                (_, Ok(State::Made)) => Ok(()),
                (_, Ok(State::HalfNamed)) => self.dir.remove_file(&self.name).map_err(io),
                (Err(failure), _) | (Ok(()), Err(failure)) => Err(failure),
                (Ok(()), Ok(_)) => Ok(()),
            },
        }
    }
}

/// Gives all files their names, from wherever an earlier try was cut off. An error means that none has its name.
pub(in crate::mover) fn place(new: &NewFiles) -> Result<Outcome, Failure> {
    let seen = open(new).and_then(|places| {
        let is_seen = |place: &Place| if place.state()? == State::Gone { Err(place.gone()) } else { Ok(()) };
        places.iter().try_for_each(is_seen)?;
        Ok(places)
    });
    let places = match seen {
        Ok(places) => places,
        Err(failure) => return Ok(Outcome::NotKnown(failure)),
    };
    if let Err(failure) = places.iter().try_for_each(Place::name_it) {
        return match places.iter().try_for_each(Place::unname).and_then(|()| sync(&places)) {
            Ok(()) => Err(failure),
            Err(stuck) => Ok(Outcome::NotKnown(failure.because_of(&stuck))),
        };
    }
    Ok(sync(&places).map_or_else(Outcome::NotKnown, |()| Outcome::Done))
}

/// Takes all names away again.
pub(in crate::mover) fn take_back(new: &NewFiles) -> Outcome {
    let taken_back = open(new).and_then(|places| {
        places.iter().try_for_each(Place::unname)?;
        sync(&places)
    });
    taken_back.map_or_else(Outcome::NotKnown, |()| Outcome::Done)
}

/// Removes the files that do not have their names. Where none could be made, there is none; where they are not seen any more, they may be
/// all the same.
pub(in crate::mover) fn remove(new: &NewFiles) -> Result<(), Failure> {
    let mut first = None;
    for file in &new.files {
        // The others go all the same.
        first = first.or(remove_one(new, file).err());
    }
    first.map_or(Ok(()), Err)
}

fn remove_one(new: &NewFiles, file: &NewFile) -> Result<(), Failure> {
    match open_alone(&new.roots, file) {
        Ok(place) => {
            place.dir.remove_file(place.tried()).map_err(io)?;
            place.dir.remove_file(&place.fresh).map_err(io)?;
            place.dir.sync().map(drop).map_err(io)
        }
        Err(NoPlace::Nowhere(_)) if file.directory.is_none() => Ok(()),
        Err(NoPlace::Nowhere(failure) | NoPlace::Unseen(failure)) => Err(failure),
    }
}

fn sync(places: &[Place]) -> Result<(), Failure> {
    let dirs: BTreeMap<_, _> = places.iter().map(|place| (place.dir.path(), &place.dir)).collect();
    dirs.values().try_for_each(|dir| dir.sync().map(drop).map_err(io))
}
