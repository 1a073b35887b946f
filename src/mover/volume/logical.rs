//! Volumes that are logical volumes of LVM: the three names are in one volume group, and the device mapper says who has one open.
//!
//! Nothing keeps others from opening one: QEMU locks the device's node in a `/dev` of its own, and no lock reaches there. So it is
//! looked again after a volume was moved away, from when on nobody finds its name any more, and once more after the last new one has taken
//! its place: whoever made a node of the device's number before that (libvirt does, in the `/dev` of QEMU) may have opened it by that. Who
//! opens it later still is not seen.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::runtime::Handle;

use super::state::Seen;
use super::{Amount, Name, Place, Prepared, Room, Unit, in_use};
use crate::failure::{Code, Failure};
use crate::model::instance::ImageFormat;
use crate::mover::lvm::{self, LogicalVolume};
use crate::mover::protocol::RestoredVolume;

/// How often it is looked whether somebody has a volume open: udev opens each that was just closed, for a moment.
const OPEN_LOOKS_MAX: u32 = 5;
/// Pause between those looks.
const OPEN_PAUSE_MILLISECONDS: u64 = 200;

/// The names as they were asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LogicalPlace {
    group: String,
    volume: String,
    /// Of the old volume, where that is known.
    uuid: Option<String>,
    fresh: String,
    previous: String,
}

impl LogicalPlace {
    /// None where they are not those of devices of one group.
    pub fn of(group: &str, (volume, uuid): (&str, Option<&str>), fresh: &Path, previous: &Path) -> Option<Self> {
        let directory = Path::new("/dev").join(group);
        let plain = |name: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'_' | b'.' | b'-');
            !name.is_empty() && !name.starts_with(['-', '.']) && name.bytes().all(fits)
        };
        let name = |path: &Path| {
            let name = path.file_name().filter(|_| path.parent() == Some(&directory))?.to_str()?;
            plain(name).then(|| name.to_owned())
        };
        (plain(group) && plain(volume)).then_some(())?;
        Some(Self {
            group: group.to_owned(),
            volume: volume.to_owned(),
            uuid: uuid.map(str::to_owned),
            fresh: name(fresh)?,
            previous: name(previous)?,
        })
    }

    fn name(&self, name: Name) -> &str {
        match name {
            Name::Volume => &self.volume,
            Name::Fresh => &self.fresh,
            Name::Previous => &self.previous,
        }
    }

    /// Those of the group that `wanted` selects (lvmreport(7)): all of a large group are more than is kept of a tool's words.
    fn select(&self, wanted: &str) -> Result<Vec<LogicalVolume>, Failure> {
        let shown = format!("the volume group `{}`", self.group);
        wait_for(lvm::volumes(&["--select", wanted, &self.group], &shown))
    }

    /// What there is under the three names, and the snapshots of each.
    fn all(&self) -> Result<Vec<LogicalVolume>, Failure> {
        let Self { volume, fresh, previous, .. } = self;
        let names = [volume, fresh, previous].map(|name| format!("lv_name=\"{name}\""));
        let snapshots = [volume, fresh, previous].map(|name| format!("origin=\"{name}\""));
        self.select(&format!("{} || {}", names.join(" || "), snapshots.join(" || ")))
    }

    fn find(&self, name: Name) -> Result<Option<LogicalVolume>, Failure> {
        Ok(self.select(&format!("lv_name=\"{}\"", self.name(name)))?.pop())
    }

    /// `source_changed`: what has the old volume's name is not the one for which the restore was planned. Somebody has renamed that since, and
    /// made another.
    fn must_be_the_old(&self, name: Name, found: &LogicalVolume) -> Result<(), Failure> {
        match &self.uuid {
            Some(uuid) if found.uuid != *uuid => {
                let shown = self.shown(name);
                let text = format!("`{shown}` is another logical volume than when the restore was planned");
                Err(Failure::new(Code::SourceChanged, text).caused_by(format!("it is `{}`, not `{uuid}`", found.uuid)))
            }
            _ => Ok(()),
        }
    }

    /// What has that name is one that can be exchanged, and nothing hangs on it; somebody may have taken a snapshot a moment ago.
    fn must_be_plain(&self, name: Name) -> Result<(), Failure> {
        let own = self.name(name);
        let found = self.select(&format!("lv_name=\"{own}\" || origin=\"{own}\""))?;
        let fixed = found.iter().find(|volume| volume.name == own).and_then(|volume| volume.fixed(&found));
        fixed.map_or(Ok(()), |why| Err(self.is_fixed(name, &why)))
    }

    fn is_fixed(&self, name: Name, why: &str) -> Failure {
        let text = format!("the logical volume `{}` cannot be exchanged or removed: {why}", self.shown(name));
        Failure::new(Code::DiskUnsupported, text)
    }

    fn volume(&self) -> Result<LogicalVolume, Failure> {
        let text = || format!("there is no volume `{}`", self.shown(Name::Volume));
        self.find(Name::Volume)?.ok_or_else(|| Failure::new(Code::VolumeIo, text()))
    }

    /// Whether somebody has it open. What is not there nobody has.
    fn is_open(&self, name: Name) -> Result<bool, Failure> {
        let Some(found) = self.find(name)? else { return Ok(false) };
        let unknown = || format!("lvm2 cannot tell whether anybody has `{}` open", self.shown(name));
        found.is_open().ok_or_else(|| Failure::new(Code::VolumeIo, unknown()))
    }

    /// Opens the new volume for us alone.
    fn claim(&self) -> Result<File, Failure> {
        let path = self.shown(Name::Fresh);
        let opened = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_EXCL.bits()).open(&path);
        opened.map_err(|error| Failure::new(Code::VolumeIo, format!("cannot open `{path}`")).because(&error))
    }
}

impl Place for LogicalPlace {
    fn shown(&self, name: Name) -> String {
        format!("/dev/{}/{}", self.group, self.name(name))
    }

    fn look(&self) -> Result<Seen, Failure> {
        let all = self.all()?;
        let there = |name| all.iter().any(|volume| volume.name == self.name(name));
        Ok(Seen { volume: there(Name::Volume), fresh: there(Name::Fresh), previous: there(Name::Previous) })
    }

    fn unused(&self, name: Name) -> Result<bool, Failure> {
        for _ in 1..OPEN_LOOKS_MAX {
            if !self.is_open(name)? {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(OPEN_PAUSE_MILLISECONDS));
        }
        self.is_open(name).map(|open| !open)
    }

    fn lock(&self) -> Result<Option<File>, Failure> {
        self.must_be_the_old(Name::Volume, &self.volume()?)?;
        self.must_be_plain(Name::Volume)?;
        if self.unused(Name::Volume)? { Ok(None) } else { Err(in_use(self)) }
    }

    fn left_alone(&self) -> Result<bool, Failure> {
        self.unused(Name::Previous)
    }

    /// lvm2's error says nothing about whether it happened: then both names are looked at.
    fn rename(&self, from: Name, to: Name) -> Result<(), Failure> {
        if let Err(failure) = wait_for(lvm::rename(&self.group, self.name(from), self.name(to))) {
            let all = self.all().unwrap_or_default();
            let there = |name| all.iter().any(|volume| volume.name == self.name(name));
            if there(from) || !there(to) {
                return Err(failure);
            }
        }
        if (from, to) == (Name::Volume, Name::Previous) {
            let moved = self.find(Name::Previous)?;
            moved.map_or(Ok(()), |moved| self.must_be_the_old(Name::Previous, &moved))?;
            // Whoever opened it a moment before would go on with what is no volume of the instance any more.
            if !self.unused(Name::Previous)? {
                return Err(in_use(self));
            }
        }
        Ok(())
    }

    fn remove(&self, name: Name) -> Result<(), Failure> {
        let Some(found) = self.find(name)? else { return Ok(()) };
        if name == Name::Fresh && !found.has_tag(lvm::TAG) {
            let text = format!("`{}` was not made by a restore, and is not removed", self.shown(name));
            return Err(Failure::new(Code::VolumeIo, text));
        }
        if name == Name::Previous {
            self.must_be_the_old(name, &found)?;
        }
        // lvm2 would remove its snapshots with it.
        self.must_be_plain(name)?;
        wait_for(lvm::remove(&self.group, self.name(name)))?;
        match self.find(name)? {
            None => Ok(()),
            Some(_) => Err(self.is_fixed(name, "there is a snapshot of it by now")),
        }
    }

    /// lvm2 writes its metadata through.
    fn sync(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn fits(&self, format: ImageFormat) -> Result<(), Failure> {
        let all = self.all()?;
        let volume = all.iter().find(|volume| volume.name == self.volume);
        volume.map_or(Ok(()), |volume| self.must_be_the_old(Name::Volume, volume))?;
        let fixed = match format {
            ImageFormat::Qcow2 => Some("only one that is raw can be".to_owned()),
            ImageFormat::Raw => volume.and_then(|volume| volume.fixed(&all)),
        };
        fixed.map_or(Ok(()), |why| Err(self.is_fixed(Name::Volume, &why)))
    }

    fn loses_nothing(&self, name: Name, _format: ImageFormat) -> Result<(), Failure> {
        self.must_be_plain(name)
    }

    fn rooms(&self, wanted: &RestoredVolume, data: &Amount) -> Result<Vec<Room>, Failure> {
        let volume = self.volume()?;
        let extents = wanted.virtual_bytes.div_ceil(volume.extent_bytes.max(1));
        let whole = extents.saturating_mul(volume.extent_bytes);
        let Some(pool) = &volume.pool else {
            return Ok(vec![Room {
                storage: format!("volume group {}", self.group),
                shown: format!("/dev/{}", self.group),
                free: volume.group_free_bytes,
                needed: whole,
                unit: Unit::Bytes,
            }]);
        };
        let found = self.select(&format!("lv_name=\"{pool}\""))?.pop();
        let (free, chunk) = found.map_or((0, 0), |pool| (pool.free_of_pool(), pool.chunk_bytes));
        let whole = whole.div_ceil(chunk.max(1)).saturating_mul(chunk.max(1));
        let taken = if volume.is_blank_when_new() { data.in_pieces(chunk, whole) } else { whole };
        Ok(vec![Room {
            storage: format!("thin pool {}/{pool}", self.group),
            shown: format!("/dev/{}/{pool}", self.group),
            free,
            // A pool that runs full stops every instance on it.
            needed: Room::with_margin(taken),
            unit: Unit::Bytes,
        }])
    }

    fn prepared(self: Box<Self>, wanted: &RestoredVolume) -> Result<Prepared, Failure> {
        let old = self.volume()?;
        let like = wait_for(lvm::likeness(&self.group, &self.volume))?;
        wait_for(lvm::create(&self.group, &self.fresh, wanted.virtual_bytes, old.pool.as_deref(), &like))?;
        let warnings = wait_for(lvm::liken(&self.group, &self.fresh, &like, &self.shown(Name::Volume)))?;
        Ok(Prepared::Device { file: self.claim()?, blank: old.is_blank_when_new(), warnings })
    }
}

/// Runs a tool to its end on this thread, which is one that may block.
fn wait_for<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = Handle::try_current().map_err(|error| {
        Failure::new(Code::Internal, "a logical volume was looked at outside of a mover").because(&error)
    })?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_one_group() {
        let of = |group: &str, volume: &str, fresh: &str, previous: &str| {
            LogicalPlace::of(group, (volume, None), Path::new(fresh), Path::new(previous)).is_some()
        };
        assert!(of("vg", "a", "/dev/vg/a.new", "/dev/vg/a.old"));
        assert!(!of("vg", "a", "/dev/other/a.new", "/dev/vg/a.old"));
        assert!(!of("vg", "a", "/dev/vg/a.new", "/dev/vg/sub/a.old"));
        assert!(!of("vg", "a", "/dev/vg/a new", "/dev/vg/a.old"));
        assert!(!of("vg", "--yes", "/dev/vg/a.new", "/dev/vg/a.old"));
        assert!(!of("..", "a", "/dev/../a.new", "/dev/../a.old"));
        assert!(!of("@all", "a", "/dev/@all/a.new", "/dev/@all/a.old"));
    }
}
