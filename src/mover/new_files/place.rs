//! The place of a new file, found without following a link below its root, and what is needed there before a byte is written.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::FileStat;

use super::bytes_of;
use crate::failure::{Code, Failure};
use crate::model::destination::{below, path_fault};
use crate::mover::protocol::{NewFile, NewFiles};
use crate::mover::share::{Dir, ShareError};
use crate::mover::volume::{Room, has_room};

/// A new file's directory, and its two names there.
#[derive(Debug)]
pub(in crate::mover) struct Place {
    pub dir: Arc<Dir>,
    pub name: OsString,
    pub fresh: OsString,
    /// The inode of the new file, if that is known.
    made: Option<u64>,
    path: PathBuf,
}

/// A place where a new file can be made.
#[derive(Debug)]
pub(in crate::mover) struct Prepared {
    /// Its directory.
    pub dir: Arc<Dir>,
    /// The new one's name there until it gets its own, which is free.
    pub fresh: OsString,
}

/// Looks at all places; what an earlier try has left at the names of the new files is removed. `data_bytes` are those of the disks.
///
/// `path_not_allowed`, `volume_exists`, `volume_full`: what they say. `volume_io`: there is no such directory.
pub(in crate::mover) fn prepare(new: &NewFiles, data_bytes: &[u64]) -> Result<Vec<Prepared>, Failure> {
    let places = look(new, data_bytes)?;
    for place in &places {
        place.dir.remove_file(&place.fresh).map_err(io)?;
        place.can_be_named()?;
    }
    Ok(places.into_iter().map(|Place { dir, fresh, .. }| Prepared { dir, fresh }).collect())
}

/// The inode of each file's directory. `volume_exists`, `path_not_allowed`: as they say. `volume_io`: there is no such directory, or what was
/// made is not seen there.
pub(in crate::mover) fn directories(new: &NewFiles) -> Result<Vec<u64>, Failure> {
    let inode = |place: &Place| place.dir.device_and_inode().map(|(_, inode)| inode).map_err(io);
    look_at_names(new)?.iter().map(inode).collect()
}

/// The inode of each file that was made and has no name yet.
pub(in crate::mover) fn inodes(new: &NewFiles) -> Result<Vec<u64>, Failure> {
    let inode = |place: &Place| place.seen(&place.fresh)?.map(|stat| stat.st_ino).ok_or_else(|| place.gone());
    open(new)?.iter().map(inode).collect()
}

fn look_at_names(new: &NewFiles) -> Result<Vec<Place>, Failure> {
    let places = open(new)?;
    for place in &places {
        if place.seen(&place.name)?.is_some() {
            return Err(place.taken());
        }
        if place.made.is_some() && !place.seen(&place.fresh)?.is_some_and(|stat| place.is_new(&stat)) {
            return Err(place.gone());
        }
    }
    let is_new = |path: &Path| new.files.iter().any(|file| file.path == path || file.fresh == path);
    for path in &new.vacant {
        let (dir, name) = open_dir(&new.roots, path, &mut BTreeMap::new())?;
        if is_new(path) || dir.stat(&name).map_err(io)?.is_some() {
            return Err(taken(path));
        }
    }
    Ok(places)
}

/// The same, and changes nothing.
pub(super) fn look(new: &NewFiles, data_bytes: &[u64]) -> Result<Vec<Place>, Failure> {
    let places = look_at_names(new)?;
    let wanted = places.iter().zip(bytes_of(new, data_bytes));
    has_room(wanted.map(|(place, bytes)| Room::of_files(&place.dir, bytes)))?;
    Ok(places)
}

/// Why there is no place.
#[derive(Debug)]
pub(super) enum NoPlace {
    /// There is none: where none was seen before, nothing can have been made there.
    Nowhere(Failure),
    /// It can't be seen.
    Unseen(Failure),
}

impl From<NoPlace> for Failure {
    fn from(no_place: NoPlace) -> Self {
        match no_place {
            NoPlace::Nowhere(failure) | NoPlace::Unseen(failure) => failure,
        }
    }
}

/// The place of one file.
pub(super) fn open_alone(roots: &[PathBuf], file: &NewFile) -> Result<Place, NoPlace> {
    open_one(roots, file, &mut BTreeMap::new())
}

/// The places of all files.
pub(super) fn open(new: &NewFiles) -> Result<Vec<Place>, Failure> {
    let mut opened = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut places = Vec::with_capacity(new.files.len());
    for file in &new.files {
        let place = open_one(&new.roots, file, &mut opened)?;
        if !taken.insert(&file.path) || !taken.insert(&file.fresh) {
            let text = format!("several new files would be `{}`", file.path.display());
            return Err(Failure::new(Code::VolumeExists, text));
        }
        places.push(place);
    }
    Ok(places)
}

fn open_one(roots: &[PathBuf], file: &NewFile, opened: &mut BTreeMap<PathBuf, Arc<Dir>>) -> Result<Place, NoPlace> {
    let NewFile { path, fresh, .. } = file;
    if let Some(fault) = path_fault(fresh) {
        return Err(NoPlace::Nowhere(not_allowed(path).caused_by(fault)));
    }
    let (dir, name) = open_dir(roots, path, opened)?;
    let Some(fresh_name) = fresh.file_name().filter(|_| fresh.parent() == path.parent()) else {
        let text = format!("`{}` is not beside `{}`", fresh.display(), path.display());
        return Err(NoPlace::Nowhere(Failure::new(Code::Internal, text)));
    };
    let (_, inode) = dir.device_and_inode().map_err(|error| NoPlace::Unseen(io(error)))?;
    if file.directory.is_some_and(|known| known != inode) {
        let text = format!("the directory of `{}` is another one than it was; a mount may be missing", path.display());
        return Err(NoPlace::Unseen(Failure::new(Code::VolumeIo, text)));
    }
    Ok(Place { dir, name, fresh: fresh_name.to_owned(), made: file.made, path: path.clone() })
}

/// The directory of a path below a root, and the name there.
fn open_dir(
    roots: &[PathBuf],
    path: &Path,
    opened: &mut BTreeMap<PathBuf, Arc<Dir>>,
) -> Result<(Arc<Dir>, OsString), NoPlace> {
    if let Some(fault) = path_fault(path) {
        return Err(NoPlace::Nowhere(not_allowed(path).caused_by(fault)));
    }
    let Some((root, rest)) = below(roots, path) else {
        let roots = roots.iter().map(|root| format!("`{}`", root.display())).collect::<Vec<_>>().join(", ");
        return Err(NoPlace::Nowhere(not_allowed(path).caused_by(format!("it is below none of {roots}"))));
    };
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return Err(NoPlace::Nowhere(not_allowed(path)));
    };
    let dir = match opened.get(parent) {
        Some(dir) => Arc::clone(dir),
        None => {
            let found = walk(&root, rest.parent().unwrap_or(Path::new("")));
            Arc::new(found.map_err(|error| no_directory(path, error))?)
        }
    };
    opened.insert(parent.to_owned(), Arc::clone(&dir));
    Ok((dir, name.to_owned()))
}

fn no_directory(path: &Path, error: ShareError) -> NoPlace {
    match error {
        // A link, or a file in the place of a directory.
        ShareError::NotWhatItSays { .. } => NoPlace::Nowhere(not_allowed(path).because(&error)),
        error if error.is_missing() => NoPlace::Nowhere(io(error)),
        error => NoPlace::Unseen(io(error)),
    }
}

/// The root is the operator's, and may be reached by links.
fn walk(root: &Path, below: &Path) -> Result<Dir, ShareError> {
    let mut dir = Dir::open_root(root)?;
    for part in below.components() {
        dir = dir.open_dir(part.as_os_str())?;
    }
    Ok(dir)
}

fn taken(path: &Path) -> Failure {
    Failure::new(Code::VolumeExists, format!("`{}` is there already", path.display()))
}

fn not_allowed(path: &Path) -> Failure {
    Failure::new(Code::PathNotAllowed, format!("no new file can be made at `{}`", path.display()))
}

pub(super) fn io(error: ShareError) -> Failure {
    error.failure(Code::VolumeIo)
}

impl Place {
    pub fn seen(&self, name: &OsString) -> Result<Option<FileStat>, Failure> {
        self.dir.stat(name).map_err(io)
    }

    /// Tries with an empty file what is done with the new one when all is written: not every file system can.
    fn can_be_named(&self) -> Result<(), Failure> {
        let tried = self.tried();
        self.dir.remove_file(&tried).map_err(io)?;
        self.dir.write_new(&tried, &[]).map_err(io)?;
        let renamed = self.dir.rename_onto_nothing(&tried, &self.fresh).map_err(io);
        self.dir.remove_file(&tried).and_then(|()| self.dir.remove_file(&self.fresh)).map_err(io)?;
        renamed
    }

    /// The name of that empty file: as long as the new one's until then, and no other attempt's.
    pub fn tried(&self) -> OsString {
        let mut name = self.fresh.clone().into_vec();
        if let Some(last) = name.last_mut() {
            *last = b'~';
        }
        OsString::from_vec(name)
    }

    /// A file is the one that was made, as far as that is known.
    pub fn is_new(&self, stat: &FileStat) -> bool {
        self.made.is_none_or(|inode| inode == stat.st_ino)
    }

    /// What was made is not seen.
    pub fn gone(&self) -> Failure {
        Failure::new(Code::VolumeIo, format!("what was to become `{}` is not seen, under either name", self.shown()))
    }

    /// Somebody else has the name.
    pub fn taken(&self) -> Failure {
        taken(&self.path)
    }

    /// The path, for errors.
    pub fn shown(&self) -> String {
        self.path.display().to_string()
    }
}
