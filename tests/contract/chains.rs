//! Backups that are put on a share by hand, with QEMU's own tools, and what QEMU's own tools read of them by the names in their headers.

use std::fs;
use std::path::{Path, PathBuf};

use longshore::model::id::{BackupId, InstanceId, RepositoryId};
use longshore::model::manifest::{BasedOn, ChangesFoundBy, Manifest, ManifestDisk};
use longshore::mover::image::blocks::{BLOCK_BYTES, Blocks};
use longshore::mover::protocol::CopiedDisk;

use super::contract;
use super::volumes::tool;

/// How an image takes over from its parent's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// It holds what changed.
    Incremental,
    /// It holds everything.
    Alone,
}

/// What becomes of one disk in the next backup.
pub struct Next<'n> {
    pub disk: &'n str,
    pub image: Image,
    /// The size that the disk has from then on; none for the one that it had.
    pub virtual_bytes: Option<u64>,
    /// Commands of qemu-io.
    pub writes: &'n [&'n str],
}

impl<'n> Next<'n> {
    pub fn writes(disk: &'n str, writes: &'n [&'n str]) -> Self {
        Self { disk, image: Image::Incremental, virtual_bytes: None, writes }
    }
}

/// The directory of a backup, below that of all instances.
pub fn directory(instances: &Path, manifest: &Manifest) -> PathBuf {
    instances.join(manifest.instance_id.to_string()).join(manifest.backup_id.to_string())
}

/// Puts a full backup of a new instance there.
pub fn put_full(instances: &Path, repository: RepositoryId, disks: &[(&str, u64, &[&str])]) -> Manifest {
    let copied = disks.iter().map(|(disk, virtual_bytes, _)| CopiedDisk {
        target: disk.parse().unwrap(),
        virtual_bytes: *virtual_bytes,
        data_bytes: *virtual_bytes,
        content_root: String::new(),
        based_on: None,
        full_reason: None,
    });
    let copied: Vec<_> = copied.collect();
    let mut manifest = contract::manifest(repository, InstanceId::draw(), BackupId::draw(), &copied, &[]);
    manifest.number = 1;
    let directory = directory(instances, &manifest);
    fs::create_dir_all(&directory).unwrap();
    for (disk, virtual_bytes, writes) in disks {
        let image = directory.join(format!("{disk}.qcow2"));
        tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&image), &virtual_bytes.to_string()]);
        write(&image, writes);
    }
    seal(&directory, &mut manifest);
    manifest
}

/// Puts a backup there that is based on `parent`. Disks that are not named hold nothing new.
pub fn put_child(instances: &Path, parent: &Manifest, next: &[Next<'_>]) -> Manifest {
    let mut manifest = Manifest { backup_id: BackupId::draw(), number: parent.number + 1, ..parent.clone() };
    let directory = directory(instances, &manifest);
    fs::create_dir_all(&directory).unwrap();
    for disk in &mut manifest.disks {
        let next = next.iter().find(|next| disk.target.as_str() == next.disk);
        let unchanged = Next::writes("", &[]);
        next.unwrap_or(&unchanged).put(&directory, parent, disk);
    }
    seal(&directory, &mut manifest);
    manifest
}

impl Next<'_> {
    fn put(&self, directory: &Path, parent: &Manifest, disk: &mut ManifestDisk) {
        let image = directory.join(&disk.file);
        let backing = format!("../{}/{}", parent.backup_id, disk.file);
        disk.virtual_bytes = self.virtual_bytes.unwrap_or(disk.virtual_bytes);
        let size = disk.virtual_bytes.to_string();
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &backing, text(&image), &size]);
        write(&image, self.writes);
        disk.based_on = (self.image == Image::Incremental).then(|| BasedOn {
            backup_id: parent.backup_id,
            content_root: disk.content_root.clone(),
            found_by: ChangesFoundBy::Hashes,
        });
        if self.image == Image::Alone {
            tool("qemu-img", &["rebase", "-q", "-f", "qcow2", "-b", "", text(&image)]);
        }
    }
}

/// The next backup as any would be: something of its own, something over what its parent wrote, and zeros over what was there.
pub fn put_next(instances: &Path, parent: &Manifest) -> Manifest {
    let (size, number) = (parent.disks[0].virtual_bytes, parent.number + 1);
    let data = format!("write -P {} {} {}", 0x20 + number, (number - 1) * size / 8, size / 4);
    let zeros = format!("write -z {} 64k", size / 8 * 5);
    put_child(instances, parent, &[Next::writes("vda", &[&data, &zeros])])
}

/// What a disk of a backup holds, read by the names in the headers of its images.
pub fn content(instances: &Path, manifest: &Manifest, disk: &str) -> Vec<u8> {
    content_of(&directory(instances, manifest).join(format!("{disk}.qcow2")))
}

/// Likewise, of the image at a path.
pub fn content_of(image: &Path) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(image), text(&raw)]);
    fs::read(raw).unwrap()
}

fn write(image: &Path, commands: &[&str]) {
    for command in commands {
        let said = tool("qemu-io", &["-f", "qcow2", "-c", command, text(image)]);
        assert!(!said.contains("failed"), "{command}: {said}");
    }
}

/// Writes the hashes of what the images hold, and the manifest.
fn seal(directory: &Path, manifest: &mut Manifest) {
    for disk in &mut manifest.disks {
        let image = directory.join(&disk.file);
        let content = content_of(&image);
        assert_eq!(content.len() as u64, disk.virtual_bytes);
        let mut blocks = Blocks::new(disk.virtual_bytes).unwrap();
        for (index, block) in content.chunks(BLOCK_BYTES as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                blocks.set(index as u64, *blake3::hash(block).as_bytes());
            }
        }
        fs::write(directory.join(&disk.blocks_file), blocks.encode()).unwrap();
        disk.content_root = blake3::Hash::from_bytes(blocks.root()).to_hex().to_string();
        disk.file_bytes = fs::metadata(&image).unwrap().len();
        disk.data_bytes = disk.file_bytes;
    }
    write_manifest(directory, manifest);
}

pub fn write_manifest(directory: &Path, manifest: &Manifest) {
    fs::write(directory.join(Manifest::FILE), serde_json::to_vec(manifest).unwrap()).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
