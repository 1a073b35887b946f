//! Volumes that are RBD images: the three names are in one pool, and the cluster says who has one open.
//!
//! Nothing keeps others from opening one, and who had it open before it was renamed goes on with it. So it is looked again after an image
//! was moved away, from when on nobody finds it any more. A name under which no image is found is never asked to be removed: what `rbd rm` would
//! find under it may be an image with another name.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use tokio::runtime::Handle;

use super::rbd_room::{Needed, Pool};
use super::state::Seen;
use super::{Amount, Name, Place, Prepared, Room, in_use};
use crate::failure::{Code, Failure, RbdRemains};
use crate::model::instance::ImageFormat;
use crate::model::network::NetworkAccess;
use crate::mover::protocol::RestoredVolume;
use crate::mover::rbd::{Image, Info, Keys, WATCHERS_GO};

/// The names as they were asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    access: NetworkAccess,
    volume: String,
    fresh: String,
    previous: String,
}

impl Names {
    /// None where they are not of images beside each other.
    pub fn of(access: &NetworkAccess, volume: &Path, fresh: &Path, previous: &Path) -> Option<Self> {
        let name =
            |path: &Path| path.file_name().filter(|_| path.parent() == volume.parent())?.to_str().map(str::to_owned);
        let (fresh, previous) = (name(fresh)?, name(previous)?);
        Some(Self { access: access.clone(), volume: volume.to_str()?.to_owned(), fresh, previous })
    }

    /// With the key that their cluster asks for.
    pub fn open(self, keys: &Keys) -> Result<RbdPlace, Failure> {
        let volume = Image::named(&self.volume, &self.access, keys)?;
        let beside = |name: &str| {
            let text = || format!("`{}` cannot be the name of an RBD image", name.escape_debug());
            volume.beside(name).ok_or_else(|| Failure::new(Code::Internal, text()))
        };
        let (fresh, previous) = (beside(&self.fresh)?, beside(&self.previous)?);
        Ok(RbdPlace { volume, fresh, previous })
    }
}

/// An image's three names.
#[derive(Debug)]
pub(super) struct RbdPlace {
    volume: Image,
    fresh: Image,
    previous: Image,
}

impl RbdPlace {
    fn image(&self, name: Name) -> &Image {
        match name {
            Name::Volume => &self.volume,
            Name::Fresh => &self.fresh,
            Name::Previous => &self.previous,
        }
    }

    fn info(&self, name: Name) -> Result<Option<Info>, Failure> {
        wait_for(self.image(name).info())
    }

    fn volume(&self) -> Result<Info, Failure> {
        let text = || format!("there is no volume `{}`", self.shown(Name::Volume));
        self.info(Name::Volume)?.ok_or_else(|| Failure::new(Code::VolumeIo, text()))
    }

    fn unsupported(&self, why: &str) -> Failure {
        Failure::new(
            Code::DiskUnsupported,
            format!("the RBD image `{}` cannot be exchanged: {why}", self.volume.spec()),
        )
    }
}

impl Place for RbdPlace {
    fn shown(&self, name: Name) -> String {
        self.image(name).spec()
    }

    /// A rename that was cut off may leave one image with two names.
    fn look(&self) -> Result<Seen, Failure> {
        let [volume, fresh, previous] = [Name::Volume, Name::Fresh, Name::Previous].map(|name| self.info(name));
        let (volume, fresh, previous) = (volume?, fresh?, previous?);
        let ids = [&volume, &fresh, &previous].map(|info| info.as_ref().and_then(Info::id));
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            if ids[one].is_some() && ids[one] == ids[other] {
                let names = [&self.volume, &self.fresh, &self.previous];
                return Err(two_names(names[one], names[other]));
            }
        }
        Ok(Seen { volume: volume.is_some(), fresh: fresh.is_some(), previous: previous.is_some() })
    }

    /// A client that was killed is waited for, as long as the cluster takes to notice.
    fn unused(&self, name: Name) -> Result<bool, Failure> {
        is_unused(wait_for(self.image(name).must_be_unused(Code::VolumeIo)))
    }

    fn lock(&self) -> Result<Option<File>, Failure> {
        if self.unused(Name::Volume)? { Ok(None) } else { Err(in_use(self)) }
    }

    /// It is found by its name alone, and was looked at when it had lost that.
    fn left_alone(&self) -> Result<bool, Failure> {
        Ok(true)
    }

    /// Neither an error nor its absence says whether it happened: both names are looked at.
    fn rename(&self, from: Name, to: Name) -> Result<(), Failure> {
        let before = self.info(from)?;
        let renamed = wait_for(self.image(from).rename(self.image(to)));
        let (left, came) = (self.info(from)?, self.info(to)?);
        match came_of([&before, &left, &came].map(|info| info.as_ref().and_then(Info::id))) {
            Renamed::Whole => {}
            Renamed::Half => return Err(two_names(self.image(from), self.image(to))),
            Renamed::Not => {
                let text = || format!("the RBD image `{}` is not `{}` now", self.shown(from), self.shown(to));
                return Err(renamed.err().unwrap_or_else(|| Failure::new(Code::VolumeIo, text())));
            }
        }
        if (from, to) != (Name::Volume, Name::Previous) {
            return Ok(());
        }
        // A tool that was killed is still named for a while, and is no user.
        let limit = if renamed.is_ok() { Duration::ZERO } else { WATCHERS_GO };
        let now = self.previous.must_be_unused_within(Code::VolumeIo, limit);
        if is_unused(wait_for(now))? { Ok(()) } else { Err(in_use(self)) }
    }

    fn remove(&self, name: Name) -> Result<(), Failure> {
        let Some(info) = self.info(name)? else { return Ok(()) };
        let image = self.image(name);
        wait_for(async {
            has_no_other_name(image, &info).await?;
            image.must_be_unused(Code::VolumeIo).await
        })?;
        match (wait_for(image.remove()), self.info(name)) {
            // What is left of it no look shows, and the next try would find nothing to be done.
            (Err(failure), Ok(None)) => {
                let (image, failure) = (image.spec(), format!("{failure:#}"));
                tracing::warn!(image, failure, "the removal of an RBD image was cut off and may have left objects");
                Ok(())
            }
            (removed, _) => removed,
        }
    }

    /// What a cluster has answered is durable.
    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn fits(&self, format: ImageFormat) -> Result<(), Failure> {
        match format {
            ImageFormat::Qcow2 => Err(self.unsupported("only one that is raw can be")),
            ImageFormat::Raw if self.volume()?.is_mirrored() => {
                Err(self.unsupported("another cluster is kept like it, and would not be like the new one"))
            }
            ImageFormat::Raw => Ok(()),
        }
    }

    fn loses_nothing(&self, name: Name, _format: ImageFormat) -> Result<(), Failure> {
        match wait_for(self.image(name).snapshots())? {
            0 => Ok(()),
            count => {
                let text = format!("`{}` holds {count} snapshots, which no backup does", self.shown(name));
                Err(Failure::new(Code::DiskUnsupported, text)
                    .caused_by("`keep_previous` (`--keep-previous`) would leave it beside the new one"))
            }
        }
    }

    /// What is not known keeps nobody from trying.
    fn rooms(&self, _wanted: &RestoredVolume, data: &Amount) -> Result<Vec<Room>, Failure> {
        let old = self.volume()?;
        let own = self.volume.pool();
        let of_data = old.data_pool().unwrap_or(own);
        let [with_data, with_record] = wait_for(async { Ok(self.volume.rooms([of_data, own]).await) })?;
        let cluster = &self.volume.cluster_name();
        let needed = Needed::of(data, &old);
        let mut rooms = needed.rooms(&Pool { name: of_data, cluster, room: with_data });
        if of_data != own {
            rooms.extend(Needed::RECORD.rooms(&Pool { name: own, cluster, room: with_record }));
        }
        Ok(rooms)
    }

    fn prepared(self: Box<Self>, wanted: &RestoredVolume) -> Result<Prepared, Failure> {
        let old = self.volume()?;
        let (settings, warning) = wait_for(async {
            let settings = self.volume.settings().await;
            self.fresh.create(wanted.virtual_bytes, &old).await?;
            Ok(settings)
        })?;
        Ok(Prepared::Rbd { image: self.fresh, settings, warning })
    }
}

/// What came of a rename.
#[derive(Debug, PartialEq, Eq)]
enum Renamed {
    Whole,
    /// The image has both names.
    Half,
    Not,
}

/// By the image's id before, and the ids of what has the old and the new name after.
fn came_of([before, left, came]: [Option<&str>; 3]) -> Renamed {
    match before.is_some() && came == before {
        true if left.is_none() => Renamed::Whole,
        true if left == before => Renamed::Half,
        _ => Renamed::Not,
    }
}

/// By any of its names all of it would be removed.
async fn has_no_other_name(image: &Image, info: &Info) -> Result<(), Failure> {
    let no_id = || Failure::new(Code::ImageToolFailed, format!("the RBD image `{}` has no id", image.spec()));
    let listed = image.listed_name(info.id().ok_or_else(no_id)?).await?;
    match image.beside(&listed) {
        _ if listed == image.name() => Ok(()),
        Some(other) => Err(two_names(image, &other)),
        None => {
            let (spec, listed) = (image.spec(), listed.escape_debug());
            let text = format!("the RBD image `{spec}` has the name `{listed}` as well");
            Err(Failure::new(Code::VolumeIo, text)
                .caused_by(format!("{} either name, which removes the image", RbdRemains::NEVER_REMOVE)))
        }
    }
}

/// One image under two names, of which the removal of either would remove it.
fn two_names(one: &Image, other: &Image) -> Failure {
    let text = format!("the RBD image `{}` is `{}` as well: a rename was cut off", one.spec(), other.spec());
    Failure::new(Code::VolumeIo, text).caused_by(format!(
        "{} either name, which removes the image: of the two, remove the one that `rbd ls` does not show, with {} or {}",
        RbdRemains::NEVER_REMOVE,
        one.forgetting(),
        other.forgetting()
    ))
}

fn is_unused(looked: Result<(), Failure>) -> Result<bool, Failure> {
    match looked {
        Err(failure) if failure.code == Code::InUseElsewhere => Ok(false),
        looked => looked.map(|()| true),
    }
}

/// Asks the cluster on this thread, which is one that may block.
fn wait_for<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = Handle::try_current().map_err(|error| {
        Failure::new(Code::Internal, "an RBD image was looked at outside of a mover").because(&error)
    })?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_rename_is_believed_by_ids_alone() {
        let (a, b) = (Some("a"), Some("b"));
        assert_eq!(came_of([a, None, a]), Renamed::Whole);
        assert_eq!(came_of([a, a, a]), Renamed::Half);
        for not in [[a, a, None], [a, None, b], [a, a, b], [a, None, None], [a, b, a], [None, None, None]] {
            assert_eq!(came_of(not), Renamed::Not, "{not:?}");
        }
    }

    #[test]
    fn an_image_with_two_names_is_told_with_its_repair() {
        let image = |name| Image::named(name, &NetworkAccess::default(), &Keys::default()).unwrap();
        let text = format!("{:#}", two_names(&image("pool/a"), &image("pool/space/b")));
        assert!(text.contains("NEVER `rbd rm`"), "{text}");
        assert!(text.contains("`rados -p pool rm rbd_id.a` or `rados -p pool -N space rm rbd_id.b`"), "{text}");
    }

    #[test]
    fn names_are_those_of_one_pool_and_namespace() {
        let of = |volume: &str, fresh: &str, previous: &str| {
            let names = [volume, fresh, previous].map(Path::new);
            let names = Names::of(&NetworkAccess::default(), names[0], names[1], names[2])?;
            names.open(&Keys::default()).ok()
        };
        assert!(of("pool/a", "pool/a.new", "pool/a.old").is_some());
        assert!(of("pool/space/a", "pool/space/a.new", "pool/space/a.old").is_some());
        assert!(of("pool/a", "other/a.new", "pool/a.old").is_none());
        assert!(of("pool/a", "pool/space/a.new", "pool/a.old").is_none());
        assert!(of("pool/a", "pool/a@new", "pool/a.old").is_none());
        assert!(of("a", "a.new", "a.old").is_none());
    }
}
