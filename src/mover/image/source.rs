//! Where the bytes of a disk come from: an export that stands still, or the volume of a stopped instance.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Besides, Cache, Serve, Server, Sockets, pseudo_name};
use crate::failure::{Code, Failure};
use crate::model::instance::{DiskSource, ImageFormat};
use crate::mover::command::{Command, shown_end};
use crate::mover::nbd::{ALLOCATION, Connection, Limits};
use crate::mover::protocol::{ByteSource, CopyDisk};

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
    pub(super) async fn probe(disk: &CopyDisk) -> Result<Self, Failure> {
        match &disk.source {
            ByteSource::Export { socket, name, dirty } => {
                Ok(Source::Export { socket: socket.clone(), name: name.clone(), dirty: dirty.clone() })
            }
            ByteSource::Volume { source, bitmap } => {
                Volume::probe(source, disk.format, bitmap.as_deref()).await.map(Source::Volume)
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
            writable: false,
            cache: volume.cache,
            besides: volume.bitmap.as_deref().map_or(Besides::Nothing, Besides::Changes),
            device: Code::SourceReadFailed,
            shown: format!("`{}`", volume.path.display()),
        };
        let (server, connection) = Server::start(serve, &sockets.next()).await?;
        Ok(Opened { connection, server: Some(server) })
    }
}

/// A volume of a stopped instance, as it was before the first byte of it was read.
#[derive(Debug)]
pub(super) struct Volume {
    path: PathBuf,
    node: Value,
    cache: Cache,
    /// The bitmap in its image that is to be believed.
    bitmap: Option<String>,
    /// The files of its chain.
    stamps: Vec<Stamp>,
    /// A part of its chain has no times that a write would change: whether it stood still only a comparison can say.
    pub(super) timeless: bool,
}

impl Volume {
    async fn probe(source: &DiskSource, format: Option<ImageFormat>, bitmap: Option<&str>) -> Result<Self, Failure> {
        let (path, format) = match source {
            DiskSource::File { path, format: known } | DiskSource::Block { path, format: known } => {
                (path.clone(), format.unwrap_or(*known))
            }
            DiskSource::Network { protocol, .. } => return Err(unsupported(format!("a `{protocol}` volume"))),
            DiskSource::Other { kind } => return Err(unsupported(format!("a volume of type `{kind}`"))),
        };
        let node = node(&path, format).await?;
        let images = images(&path, &node).await?;
        let chain = chain(&path, &images);
        let bitmap = bitmap.filter(|bitmap| images.first().is_some_and(|top| records(top, bitmap))).map(str::to_owned);
        let files: Vec<PathBuf> = chain.iter().flatten().cloned().collect();
        super::writer::refuse(&files).await?;
        let (mut stamps, mut timeless) = (Vec::new(), files.len() < chain.len());
        for file in files {
            match Stamp::take(&file).await? {
                Some(stamp) => stamps.push(stamp),
                None => timeless = true,
            }
        }
        let cache = super::target::cache_of(&path).await;
        Ok(Self { path, node, cache, bitmap, stamps, timeless })
    }

    /// The node opened so that it keeps nobody from starting the instance.
    fn shared_node(&self) -> Value {
        let mut node = self.node.clone();
        node["force-share"] = Value::Bool(true);
        node["read-only"] = Value::Bool(true);
        node
    }

    /// Every file of the chain is the one it was, with the times and the size it had.
    pub(super) async fn unchanged(&self) -> Result<(), Failure> {
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
    let format = match format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    };
    Ok(json!({"driver": format, "file": {"driver": protocol, "filename": name}}))
}

/// What `qemu-img info` says of the images of the volume's chain, the topmost first. Takes no locks (`-U`), or an instance that is started
/// meanwhile would be refused its own disk; whether there is a writer is looked at without any.
async fn images(path: &Path, node: &Value) -> Result<Vec<Value>, Failure> {
    let failed = || format!("cannot look at the volume `{}`", path.display());
    let info = Command::new("qemu-img").args(["info", "-U", "--backing-chain", "--output=json"]).arg(pseudo_name(node));
    let info = info.run(Duration::from_secs(PROBE_DEADLINE_SECONDS)).await;
    let info = info.map_err(|error| error.failure(Code::SourceReadFailed, failed()))?;
    if !info.status.success() {
        return Err(Failure::new(Code::SourceReadFailed, failed()).caused_by(shown_end(&info.stderr)));
    }
    let images: Vec<Value> = serde_json::from_slice(&info.stdout)
        .map_err(|error| Failure::new(Code::ImageToolFailed, failed()).because(&error))?;
    if images.is_empty() || images.len() > CHAIN_MAX {
        return Err(unsupported(format!("`{}` with {} images in its chain", path.display(), images.len())));
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
