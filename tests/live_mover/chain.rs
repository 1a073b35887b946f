//! Backups that hold only what had changed, on real images: what they store, how they are read, and when there are none.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::failure::Code;
use longshore::host::mover::Mover;
use longshore::model::id::{BackupId, InstanceId};
use longshore::model::manifest::{CHAIN_IMAGES_MAX, Manifest};
use longshore::mover::protocol::{BaseDisk, CopiedDisk, CopyDisk, Reply, Request};

use super::contract::{self, SOON, World, done, opened, publish, record, refused, restore, restored, stage};
use super::volumes::{flip, is_alike, tool};
use super::{DISK_BYTES, Real};

const MIB: u64 = 1 << 20;

/// An instance whose disk is a file that a test writes to.
struct Scene {
    real: Real,
    instance: InstanceId,
}

impl Scene {
    fn new() -> Self {
        Self { real: Real::new(), instance: InstanceId::draw() }
    }

    fn disk_file(&self) -> PathBuf {
        self.real.folder.path().join("disk.raw")
    }

    fn write(&self, offset: u64, fill: u8, bytes: u64) {
        let file = fs::OpenOptions::new().write(true).open(self.disk_file()).unwrap();
        file.write_all_at(&vec![fill; usize::try_from(bytes).unwrap()], offset).unwrap();
    }

    fn resize(&self, bytes: u64) {
        fs::OpenOptions::new().write(true).open(self.disk_file()).unwrap().set_len(bytes).unwrap();
    }

    /// What the disk holds now, kept for later.
    fn keep(&self, name: &str) -> PathBuf {
        let kept = self.real.folder.path().join(name);
        fs::copy(self.disk_file(), &kept).unwrap();
        kept
    }

    fn image(&self, backup: &Manifest) -> PathBuf {
        self.real.instance(self.instance).join(backup.backup_id.to_string()).join("vda.qcow2")
    }

    fn disk(&self, parent: Option<&Manifest>) -> CopyDisk {
        let base = parent.map(|parent| BaseDisk {
            backup: parent.backup_id,
            virtual_bytes: parent.disks[0].virtual_bytes,
            content_root: parent.disks[0].content_root.clone(),
        });
        CopyDisk { base, virtual_bytes: None, ..self.real.disk() }
    }

    /// Makes a backup of the disk as it is, on top of `parent`, whole and compared.
    async fn back_up(&self, parent: Option<&Manifest>) -> (Manifest, CopiedDisk) {
        let mut mover = opened(&self.real, "chain").await;
        done(&mut mover, contract::lease(self.instance)).await;
        let backup = BackupId::draw();
        done(&mut mover, stage(self.instance, backup)).await;
        done(&mut mover, record()).await;
        let reply = mover.ask(Request::Copy { disks: vec![self.disk(parent)] }, SOON).await.unwrap();
        let Reply::Copied { disks: copied, .. } = reply else { panic!("{reply:?}") };
        done(&mut mover, Request::Compare).await;
        let reply = mover.ask(Request::Seal, SOON).await.unwrap();
        let Reply::Sealed { files } = reply else { panic!("{reply:?}") };
        let mut manifest = contract::manifest(self.real.repository().id, self.instance, backup, &copied, &files);
        manifest.number = publish(&mut mover, &manifest).await;
        done(&mut mover, Request::Release).await;
        let reply = mover.ask(Request::Close, SOON).await.unwrap();
        assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
        mover.stop().await.unwrap();
        (manifest, copied[0].clone())
    }

    /// Asks for a volume made of the backup.
    async fn restore(&self, mover: &mut Box<dyn Mover>, backup: &Manifest) -> PathBuf {
        let volume = self.real.volume();
        let wanted = [restored(backup, &volume)];
        let reply = mover.ask(restore(backup, &wanted), SOON).await;
        assert!(matches!(reply, Ok(Reply::Copied { .. })), "{reply:?}");
        done(mover, Request::Compare).await;
        wanted[0].place.fresh().unwrap().to_owned()
    }

    /// What is said of the backup when it is damaged.
    async fn not_restored(&self, mover: &mut Box<dyn Mover>, backup: &Manifest) -> String {
        let failure = refused(mover, restore(backup, &[restored(backup, &self.real.volume())])).await;
        assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
        format!("{failure:#}")
    }

    async fn under_the_lease(&self) -> Box<dyn Mover> {
        let mut mover = opened(&self.real, "reads").await;
        done(&mut mover, contract::lease(self.instance)).await;
        mover
    }
}

#[tokio::test]
async fn an_incremental_backup_stores_what_had_changed_and_each_point_comes_back_as_it_was() {
    let scene = Scene::new();
    let first = scene.keep("first");
    let (full, copied) = scene.back_up(None).await;
    assert_eq!((copied.based_on, copied.full_reason), (None, None));

    // Data over data, data over zeros, a block that becomes zeros, and one that only does in part.
    scene.write(MIB + 4096, 0xaa, 512);
    scene.write(3 * MIB, 0xbb, 64 * 1024);
    scene.write(6 * MIB, 0, MIB);
    scene.write(7 * MIB, 0, 256 * 1024);
    let second = scene.keep("second");
    let (middle, copied) = scene.back_up(Some(&full)).await;
    let based_on = copied.based_on.as_ref().expect("it stands alone");
    assert_eq!((based_on.backup_id, &based_on.content_root), (full.backup_id, &full.disks[0].content_root));
    assert_eq!(
        copied.data_bytes,
        MIB + 64 * 1024 + 768 * 1024,
        "no zeros, and nothing of the blocks that are as they were"
    );

    // The disk grows by what is no whole block, and what had changed goes back to what it was.
    scene.resize(DISK_BYTES + MIB + 512);
    scene.write(DISK_BYTES + MIB, 0xcc, 512);
    scene.write(3 * MIB, 0, 64 * 1024);
    let third = scene.keep("third");
    let (last, copied) = scene.back_up(Some(&middle)).await;
    assert_eq!(copied.virtual_bytes, DISK_BYTES + MIB + 512);
    assert_eq!(copied.data_bytes, 512);

    for (backup, kept) in [(&full, &first), (&middle, &second), (&last, &third)] {
        assert!(is_alike(&scene.image(backup), "qcow2", kept), "backup {} with qemu-img alone", backup.number);
        let mut mover = scene.under_the_lease().await;
        let fresh = scene.restore(&mut mover, backup).await;
        let info = tool("qemu-img", &["info", "--output=json", fresh.to_str().unwrap()]);
        assert!(!info.contains("backing-filename"), "{info}");
        assert!(is_alike(&fresh, "qcow2", kept), "backup {}", backup.number);
        fs::remove_file(&fresh).unwrap();
        done(&mut mover, Request::Release).await;
        mover.stop().await.unwrap();
    }
    let header = tool("qemu-img", &["info", "--output=json", scene.image(&last).to_str().unwrap()]);
    let header: serde_json::Value = serde_json::from_str(&header).unwrap();
    assert_eq!(header["backing-filename"], format!("../{}/vda.qcow2", middle.backup_id));
    let readme = fs::read_to_string(scene.image(&last).with_file_name("README-RESTORE.txt")).unwrap();
    assert!(readme.contains(&format!("../{}", middle.backup_id)), "{readme}");
}

#[tokio::test]
async fn the_lines_of_the_instructions_restore_an_incremental_backup() {
    let scene = Scene::new();
    let (full, _) = scene.back_up(None).await;
    scene.write(5 * MIB, 0xdd, 2 * MIB);
    let kept = scene.keep("kept");
    let (last, _) = scene.back_up(Some(&full)).await;
    let directory = scene.image(&last).parent().unwrap().to_owned();
    let readme = fs::read_to_string(directory.join("README-RESTORE.txt")).unwrap();
    let target = scene.real.folder.path().join("by-hand.qcow2");
    for word in ["qemu-img check ", "qemu-img convert "] {
        let line = readme.lines().find(|line| line.trim().starts_with(word)).unwrap_or_else(|| panic!("{readme}"));
        // The path in it is the one that the volume had.
        let line = line.replace("/images/web.qcow2", target.to_str().unwrap());
        let ran = Command::new("sh").args(["-c", &line]).current_dir(&directory).output().unwrap();
        assert!(ran.status.success(), "{line}: {ran:?}");
    }
    assert!(is_alike(&target, "qcow2", &kept));
}

#[tokio::test]
async fn where_there_is_nothing_to_stand_on_all_is_stored_and_it_is_told_why() {
    let scene = Scene::new();
    let (full, whole) = scene.back_up(None).await;
    scene.resize(DISK_BYTES - MIB);
    let (smaller, copied) = scene.back_up(Some(&full)).await;
    assert_eq!(copied.based_on, None);
    assert!(copied.full_reason.unwrap().contains("became smaller"));
    assert!(copied.data_bytes >= whole.data_bytes - MIB);

    flip(&scene.image(&smaller), 8);
    let (_, copied) = scene.back_up(Some(&smaller)).await;
    assert!(copied.full_reason.unwrap().contains("its header"));
    fs::remove_file(scene.image(&full)).unwrap();
    let (_, copied) = scene.back_up(Some(&full)).await;
    assert!(copied.full_reason.unwrap().contains("it is missing"));
}

#[tokio::test]
async fn a_byte_that_is_another_anywhere_in_the_chain_is_found_and_named() {
    let scene = Scene::new();
    let (full, _) = scene.back_up(None).await;
    scene.write(MIB, 0xee, MIB);
    let (last, _) = scene.back_up(Some(&full)).await;
    flip(&scene.image(&full), own_data(&scene.image(&full)) + 17);
    let mut mover = scene.under_the_lease().await;
    let failure = scene.not_restored(&mut mover, &last).await;
    assert!(failure.contains("disk `vda` at offset 0:"), "{failure}");
    mover.stop().await.unwrap();
}

/// Where in an image its first data are that are not a backing file's.
fn own_data(image: &Path) -> u64 {
    let map = tool("qemu-img", &["map", "--output=json", image.to_str().unwrap()]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let data = map.iter().find(|extent| extent["data"] == true && extent["depth"] == 0).unwrap();
    data["offset"].as_u64().unwrap()
}

#[tokio::test]
async fn the_longest_chain_is_restored_and_gets_no_longer() {
    let scene = Scene::new();
    let (mut latest, _) = scene.back_up(None).await;
    let mut chain = vec![latest.clone()];
    for index in 1..CHAIN_IMAGES_MAX {
        scene.write(u64::try_from(index).unwrap() * 300_000, 0x80 | u8::try_from(index).unwrap(), 100_000);
        latest = scene.back_up(Some(&latest)).await.0;
        chain.push(latest.clone());
    }
    let kept = scene.keep("kept");
    let mut mover = scene.under_the_lease().await;
    let fresh = scene.restore(&mut mover, &latest).await;
    assert!(is_alike(&fresh, "qcow2", &kept));
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
    let (_, copied) = scene.back_up(Some(&latest)).await;
    assert!(copied.full_reason.unwrap().contains("20 images"));

    let mut mover = scene.under_the_lease().await;
    for index in [3, 10, CHAIN_IMAGES_MAX - 1] {
        let image = scene.image(&chain[index]);
        let aside = image.with_extension("aside");
        fs::rename(&image, &aside).unwrap();
        let failure = scene.not_restored(&mut mover, &latest).await;
        assert!(failure.contains(&format!("{}/vda.qcow2", chain[index].backup_id)), "{index}: {failure}");
        fs::rename(&aside, &image).unwrap();
        // Each of these is the last that wrote in its block.
        flip(&image, own_data(&image) + 40_000);
        let failure = scene.not_restored(&mut mover, &latest).await;
        let block = u64::try_from(index).unwrap() * 300_000 / MIB * MIB;
        assert!(failure.contains(&format!("disk `vda` at offset {block}:")), "{index}: {failure}");
        flip(&image, own_data(&image) + 40_000);
    }
    mover.stop().await.unwrap();
}
