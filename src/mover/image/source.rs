//! Where the bytes of a disk come from: an export that stands still, or the volume of a stopped instance.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Besides, Cache, Serve, Server, Sockets, pseudo_name, with_key};
use crate::failure::{Code, Failure};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::mover::command::{Command, shown_end};
use crate::mover::nbd::{ALLOCATION, Connection, Limits};
use crate::mover::protocol::{ByteSource, CopyDisk};
use crate::mover::rbd::{self, Keys};

/// How long `qemu-img info` on a volume may take.
const PROBE_DEADLINE_SECONDS: u64 = 60;
/// Longest chain of backing files that is followed.
const CHAIN_MAX: usize = 64;

/// An opened source.
#[derive(Debug)]
pub(super) struct Opened {
    pub connection: Connection,
    pub server: Option<Server>,
}

impl Opened {
    /// Says goodbye, and ends the server if it is ours.
    pub(super) async fn close(self) -> Result<(), Failure> {
        self.connection.disconnect().await;
        match self.server {
            Some(server) => server.end().await,
            None => Ok(()),
        }
    }
}

/// A source that can be opened again and again.
#[derive(Debug)]
pub(super) enum Source {
    Export { socket: PathBuf, name: String, dirty: Option<String> },
    Volume(Volume),
}

impl Source {
    /// Looks at the source before it is read: a volume must exist, be known, and have no writer.
    pub(super) async fn probe(disk: &CopyDisk, keys: &Keys) -> Result<Self, Failure> {
        match &disk.source {
            ByteSource::Export { socket, name, dirty } => {
                Ok(Source::Export { socket: socket.clone(), name: name.clone(), dirty: dirty.clone() })
            }
            ByteSource::Volume { source, bitmap } => {
                Volume::probe(source, disk.format, bitmap.as_deref(), keys).await.map(Source::Volume)
            }
        }
    }

    /// Opens it for reading.
    pub(super) async fn open(&self, sockets: &mut Sockets) -> Result<Opened, Failure> {
        let volume = match self {
            Source::Export { socket, name, dirty } => {
                let contexts: Vec<&str> = [ALLOCATION].into_iter().chain(dirty.as_deref()).collect();
                let opened = Connection::open(socket, name, &contexts, Limits::default()).await;
                let failed = || format!("cannot open the export `{}`", name.escape_debug());
                let connection = opened.map_err(|error| error.failure(Code::SourceReadFailed, failed()))?;
                return Ok(Opened { connection, server: None });
            }
            Source::Volume(volume) => volume,
        };
        let serve = Serve {
            node: &volume.shared_node(),
            key: volume.key(),
            writable: false,
            cache: volume.cache,
            besides: volume.bitmap.as_deref().map_or(Besides::Nothing, Besides::Changes),
            device: Code::SourceReadFailed,
            shown: format!("`{}`", volume.shown),
        };
        let (server, connection) = Server::start(serve, &sockets.next()).await?;
        Ok(Opened { connection, server: Some(server) })
    }
}

/// A volume of a stopped instance, as it was before the first byte of it was read.
#[derive(Debug)]
pub(super) struct Volume {
    /// Its place, for errors.
    shown: String,
    node: Value,
    cache: Cache,
    /// The bitmap in its image that is to be believed.
    bitmap: Option<String>,
    /// The files of its chain.
    stamps: Vec<Stamp>,
    /// A part of its chain has no times that a write would change: whether it stood still only a comparison can say.
    pub(super) timeless: bool,
    /// The image that it is, where that is no file or device of the host's.
    rbd: Option<rbd::Image>,
}

impl Volume {
    async fn probe(
        source: &DiskSource,
        format: Option<ImageFormat>,
        bitmap: Option<&str>,
        keys: &Keys,
    ) -> Result<Self, Failure> {
        match source {
            DiskSource::File { path, format: known } | DiskSource::Block { path, format: known } => {
                Self::probe_path(path, format.unwrap_or(*known), bitmap).await
            }
            DiskSource::Network { format: known, .. } => {
                Self::probe_rbd(rbd::Image::of(source, keys)?, format.unwrap_or(*known), bitmap).await
            }
            DiskSource::Other { kind } => Err(unsupported(format!("a volume of type `{kind}`"))),
        }
    }

    async fn probe_path(path: &Path, format: ImageFormat, bitmap: Option<&str>) -> Result<Self, Failure> {
        let node = node(path, format).await?;
        let shown = path.display().to_string();
        let images = images(&shown, &node, None).await?;
        let chain = chain(path, &images);
        let files: Vec<PathBuf> = chain.iter().flatten().cloned().collect();
        super::writer::refuse(&files).await?;
        let (mut stamps, mut timeless) = (Vec::new(), files.len() < chain.len());
        for file in files {
            match Stamp::take(&file).await? {
                Some(stamp) => stamps.push(stamp),
                None => timeless = true,
            }
        }
        let cache = super::target::cache_of(path).await;
        Ok(Self { shown, node, cache, bitmap: believed(&images, bitmap), stamps, timeless, rbd: None })
    }

    /// The cluster is asked by its own program first, which gives up one that does not answer; QEMU would wait for minutes. An image has
    /// no times, and who opened it later is not looked for.
    async fn probe_rbd(image: rbd::Image, format: ImageFormat, bitmap: Option<&str>) -> Result<Self, Failure> {
        image.must_be_unused(Code::SourceReadFailed).await?;
        let (shown, node) = (image.spec(), json!({"driver": format.as_str(), "file": image.node()}));
        let images = images(&shown, &node, image.key()).await?;
        let bitmap = believed(&images, bitmap);
        Ok(Self { shown, node, cache: Cache::Direct, bitmap, stamps: Vec::new(), timeless: true, rbd: Some(image) })
    }

    fn key(&self) -> Option<&Path> {
        self.rbd.as_ref().and_then(rbd::Image::key)
    }

    /// The node opened so that it keeps nobody from starting the instance.
    fn shared_node(&self) -> Value {
        let mut node = self.node.clone();
        node["force-share"] = Value::Bool(true);
        node["read-only"] = Value::Bool(true);
        node
    }

    /// Every file of the chain is the one it was, with the times and the size it had; an image on a cluster is open nowhere.
    pub(super) async fn unchanged(&self) -> Result<(), Failure> {
        if let Some(image) = &self.rbd {
            image.must_be_unused(Code::SourceReadFailed).await?;
        }
        for stamp in &self.stamps {
            let now = Stamp::take(&stamp.path).await?;
            if now.as_ref() != Some(stamp) {
                let text = format!("`{}` is not as it was when reading began", stamp.path.display());
                let now = now.map_or("now it is no regular file".to_owned(), |now| now.difference(stamp));
                return Err(Failure::new(Code::SourceChanged, text).caused_by(now));
            }
        }
        Ok(())
    }
}

fn unsupported(what: String) -> Failure {
    Failure::new(Code::DiskUnsupported, format!("{what} of a stopped instance cannot be read"))
}

/// QEMU's description of a volume. The files below it are not described: QEMU finds its backing files and its data file by
/// the headers of the images, as it does for the instance itself, and whoever writes those headers decides what is read.
/// All of them are opened read-only.
async fn node(path: &Path, format: ImageFormat) -> Result<Value, Failure> {
    let Some(name) = path.to_str().filter(|_| path.is_absolute()) else {
        return Err(unsupported(format!("a volume at `{}`, which is no absolute path in UTF-8,", path.display())));
    };
    let kind = metadata(path).await?.file_type();
    let protocol = match (kind.is_file(), kind.is_block_device()) {
        (true, _) => "file",
        (_, true) => "host_device",
        _ => return Err(unsupported(format!("`{name}`, neither a file nor a block device,"))),
    };
    Ok(json!({"driver": format.as_str(), "file": {"driver": protocol, "filename": name}}))
}

/// What `qemu-img info` says of the images of the volume's chain, the topmost first. Takes no locks (`-U`), or an instance that is started
/// meanwhile would be refused its own disk; whether there is a writer is looked at without any.
async fn images(shown: &str, node: &Value, key: Option<&Path>) -> Result<Vec<Value>, Failure> {
    let failed = || format!("cannot look at the volume `{shown}`");
    let info = Command::new("qemu-img").args(["info", "-U", "--backing-chain", "--output=json"]);
    let info = with_key(info, key).arg(pseudo_name(node)).run(Duration::from_secs(PROBE_DEADLINE_SECONDS)).await;
    let info = info.map_err(|error| error.failure(Code::SourceReadFailed, failed()))?;
    if !info.status.success() {
        // It is a module of QEMU's that not every host has.
        let denied = key.is_some() && rbd::DENIED_TEXTS.iter().any(|text| info.stderr.contains(text));
        let code = match info.stderr.contains(rbd::NO_DRIVER) {
            true => Code::DiskUnsupported,
            false if denied => Code::VolumeDenied,
            false => Code::SourceReadFailed,
        };
        return Err(Failure::new(code, failed()).caused_by(shown_end(&info.stderr)));
    }
    let images: Vec<Value> = serde_json::from_slice(&info.stdout)
        .map_err(|error| Failure::new(Code::ImageToolFailed, failed()).because(&error))?;
    if images.is_empty() || images.len() > CHAIN_MAX {
        return Err(unsupported(format!("`{shown}` with {} images in its chain", images.len())));
    }
    Ok(images)
}

/// The files of the volume's chain; none for what is no plain path.
fn chain(path: &Path, images: &[Value]) -> Vec<Option<PathBuf>> {
    let mut files = vec![Some(path.to_owned())];
    for image in images {
        let own = files.last().cloned().flatten();
        if let Some(data) = image.pointer("/format-specific/data/data-file").and_then(Value::as_str) {
            let beside = own.as_deref().and_then(Path::parent).map(|directory| directory.join(data));
            files.insert(files.len() - 1, beside.filter(|_| !data.contains(':')));
        }
        if let Some(backing) = image.get("full-backing-filename").and_then(Value::as_str) {
            files.push(Some(PathBuf::from(backing)).filter(|backing| backing.is_absolute()));
        }
    }
    files
}

/// The bitmap, if the topmost image has it and it is to be believed.
fn believed(images: &[Value], bitmap: Option<&str>) -> Option<String> {
    bitmap.filter(|bitmap| images.first().is_some_and(|top| records(top, bitmap))).map(str::to_owned)
}

/// Whether an image has a bitmap of that name in which every QEMU that has written to it has kept what it wrote. One that was killed has
/// left the bitmap `in-use`. What another program wrote has taken it out of QEMU's sight. Data in another file can be written without.
fn records(image: &Value, name: &str) -> bool {
    let data = image.pointer("/format-specific/data");
    let bitmaps = data.and_then(|data| data.get("bitmaps")).and_then(Value::as_array);
    let mut bitmaps = bitmaps.into_iter().flatten();
    let found = bitmaps.find(|bitmap| bitmap.get("name").and_then(Value::as_str) == Some(name));
    let flags = found.and_then(|bitmap| bitmap.get("flags")).and_then(Value::as_array);
    let flagged = |word: &str| flags.is_some_and(|flags| flags.iter().any(|flag| flag.as_str() == Some(word)));
    flagged("auto") && !flagged("in-use") && data.is_some_and(|data| data.get("data-file").is_none())
}

/// What changes when a file is written or replaced.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// None for what is no regular file.
    async fn take(path: &Path) -> Result<Option<Self>, Failure> {
        let metadata = metadata(path).await?;
        Ok(metadata.is_file().then(|| Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    fn difference(&self, before: &Self) -> String {
        let what = if (self.device, self.inode) != (before.device, before.inode) {
            "it is another file now"
        } else if self.bytes != before.bytes {
            "its size is another"
        } else if self.modified != before.modified {
            "it was written to"
        } else {
            "its inode was changed"
        };
        what.to_owned()
    }
}

async fn metadata(path: &Path) -> Result<std::fs::Metadata, Failure> {
    let failed = || format!("cannot look at `{}`", path.display());
    tokio::fs::metadata(path).await.map_err(|error| Failure::new(Code::SourceReadFailed, failed()).because(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_is_believed_only_where_all_that_was_written_is_in_it() {
        let image = |flags: Value| {
            json!({"format": "qcow2", "format-specific": {"type": "qcow2", "data": {
                "compat": "1.1", "bitmaps": [{"name": "a", "flags": ["auto"]}, {"name": "b", "flags": flags}]
            }}})
        };
        assert!(records(&image(json!(["auto"])), "b"));
        for flags in [json!([]), json!(["in-use", "auto"]), json!(["in-use"]), Value::Null] {
            assert!(!records(&image(flags.clone()), "b"), "{flags}");
        }
        assert!(!records(&image(json!(["auto"])), "c"));
        let mut elsewhere = image(json!(["auto"]));
        elsewhere["format-specific"]["data"]["data-file"] = json!("disk.raw");
        assert!(!records(&elsewhere, "b"));
        assert!(!records(&json!({"format": "raw"}), "b"));
    }
}
