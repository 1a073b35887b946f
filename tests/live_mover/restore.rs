//! Volumes that are made of a backup, on real disks and bad ones.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::failure::{Code, Failure};
use longshore::host::mover::Mover;
use longshore::model::id::RepositoryId;
use longshore::model::instance::ImageFormat;
use longshore::model::manifest::Manifest;
use longshore::mover::protocol::{Reply, Request, RestoredVolume};

use super::contract::{SOON, Stands, World, done, exchange, published, refused, restore, restored, started};
use super::volumes::{flip, is_alike, tool, volume};
use super::{DISK_BYTES, Faulty, Real, small_file_system};

/// The directory of a published backup.
fn directory(real: &Real, manifest: &Manifest) -> PathBuf {
    real.instance(manifest.instance_id).join(manifest.backup_id.to_string())
}

pub fn remove_fresh(volumes: &[RestoredVolume]) -> Request {
    Request::RemoveFresh { volumes: volumes.to_vec() }
}

pub async fn made(mover: &mut Box<dyn Mover>, manifest: &Manifest, volumes: &[RestoredVolume]) {
    let reply = mover.ask(restore(manifest, volumes), SOON).await;
    assert!(matches!(reply, Ok(Reply::Copied { .. })), "{reply:?}");
}

/// What is to become of `volume` and of a copy of it beside it.
pub fn two(manifest: &Manifest, volume: &Path) -> [RestoredVolume; 2] {
    let other = volume.with_file_name("data.qcow2");
    fs::copy(volume, &other).unwrap();
    [restored(manifest, volume), restored(manifest, &other)]
}

#[tokio::test]
async fn new_volumes_of_either_format_hold_the_disk_and_belong_to_whom_the_old_ones_did() {
    let real = Real::new();
    let old = real.volume();
    std::os::unix::fs::chown(&old, Some(64055), Some(64056)).unwrap();
    fs::set_permissions(&old, Permissions::from_mode(0o640)).unwrap();
    let labelled = Command::new("setfattr").args(["-n", "user.longshore", "-v", "label"]).arg(&old).status();
    let labelled = labelled.is_ok_and(|status| status.success());
    let (mut mover, manifest) = published(&real, "formats").await;
    let [image, mut raw] = two(&manifest, &old);
    raw.format = ImageFormat::Raw;
    std::os::unix::fs::chown(raw.place.volume(), Some(1), Some(2)).unwrap();
    let volumes = [image, raw];
    made(&mut mover, &manifest, &volumes).await;
    done(&mut mover, Request::Compare).await;
    done(&mut mover, exchange(&volumes)).await;
    let disk = real.folder.path().join("disk.raw");
    assert!(is_alike(volumes[0].place.volume(), "qcow2", &disk));
    assert_eq!(fs::read(volumes[1].place.volume()).unwrap(), fs::read(&disk).unwrap());
    let (image, raw) =
        (fs::metadata(volumes[0].place.volume()).unwrap(), fs::metadata(volumes[1].place.volume()).unwrap());
    assert_eq!((image.uid(), image.gid(), image.mode() & 0o7777), (64055, 64056, 0o640));
    assert_eq!((raw.uid(), raw.gid()), (1, 2));
    assert!(raw.blocks() * 512 <= DISK_BYTES - (2 << 20), "3 MiB of zeros take no room: {raw:?}");
    if labelled {
        let found =
            tool("getfattr", &["--only-values", "-n", "user.longshore", volumes[0].place.volume().to_str().unwrap()]);
        assert_eq!(found, "label");
    }
    let info = tool("qemu-img", &["info", "--output=json", volumes[0].place.volume().to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["virtual-size"], &info["cluster-size"]), (&DISK_BYTES.into(), &65536.into()));
    let data = &info["format-specific"]["data"];
    assert_eq!((&data["compat"], &data["lazy-refcounts"]), (&"1.1".into(), &false.into()));
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
    mover.stop().await.unwrap();
    assert_eq!(fs::read_dir(old.parent().unwrap()).unwrap().count(), 2, "nothing else is left");
}

/// A backup that was changed on the share by `change`, which is given its directory, is refused so.
async fn damaged(change: impl FnOnce(&Path)) -> Failure {
    let real = Real::new();
    let old = real.volume();
    let (mut mover, manifest) = published(&real, "damaged").await;
    change(&directory(&real, &manifest));
    let wanted = [restored(&manifest, &old)];
    let failure = refused(&mut mover, restore(&manifest, &wanted)).await;
    assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::Internal, "nothing was restored");
    done(&mut mover, remove_fresh(&wanted)).await;
    assert_eq!(fs::read_dir(old.parent().unwrap()).unwrap().count(), 1, "the old one is left");
    assert_eq!(real.stands(&old), Stands::Old);
    mover.stop().await.unwrap();
    failure
}

/// Where in the image the byte at 5 MiB of the disk is.
fn place_of_data(image: &Path) -> u64 {
    let map = tool("qemu-img", &["map", "--output=json", image.to_str().unwrap()]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let field = |extent: &serde_json::Value, name: &str| extent[name].as_u64().unwrap_or_default();
    let extent = map.iter().find(|extent| {
        let (start, length) = (field(extent, "start"), field(extent, "length"));
        (start..start + length).contains(&(5 << 20))
    });
    let extent = extent.unwrap_or_else(|| panic!("no data: {map:?}"));
    field(extent, "offset") + (5 << 20) - field(extent, "start")
}

#[tokio::test]
async fn a_backup_that_is_not_what_was_backed_up_is_refused_and_says_where() {
    let failure = damaged(|backup| flip(&backup.join("vda.qcow2"), place_of_data(&backup.join("vda.qcow2")) + 7)).await;
    assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
    assert!(failure.text.contains("disk `vda` at offset 5242880"), "{failure:#}");

    // A block of zeros that holds data now, and one of data that is gone.
    for write in ["write -P 1 3M 64k", "write -z -u 6M 1M"] {
        let failure = damaged(|backup| {
            let image = backup.join("vda.qcow2");
            tool("qemu-io", &["-f", "qcow2", "-c", write, image.to_str().unwrap()]);
            // Whoever can change the one can change the other.
            let manifest = fs::read(backup.join(Manifest::FILE)).unwrap();
            let mut manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
            manifest.disks[0].file_bytes = fs::metadata(&image).unwrap().len();
            fs::write(backup.join(Manifest::FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        })
        .await;
        assert_eq!(failure.code, Code::BackupDamaged, "{write}: {failure:#}");
    }
    let failure = damaged(|backup| {
        let image = File::options().write(true).open(backup.join("vda.qcow2")).unwrap();
        image.set_len(image.metadata().unwrap().len() - (1 << 20)).unwrap();
    })
    .await;
    assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
    assert!(failure.text.contains("vda.qcow2"), "{failure:#}");
    let failure = damaged(|backup| fs::remove_file(backup.join("vda.qcow2")).unwrap()).await;
    assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
}

#[tokio::test]
async fn what_was_not_published_here_is_refused() {
    let unfinished = damaged(|backup| fs::remove_file(backup.join(Manifest::FILE)).unwrap()).await;
    assert_eq!(unfinished.code, Code::RepositoryUnsafe, "{unfinished:#}");
    assert!(unfinished.text.contains("has no manifest"), "{unfinished:#}");
    let others = damaged(|backup| {
        let file = backup.join(Manifest::FILE);
        let mut manifest: Manifest = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        manifest.repository_id = RepositoryId::draw();
        fs::write(&file, serde_json::to_vec(&manifest).unwrap()).unwrap();
    })
    .await;
    assert_eq!(others.code, Code::RepositoryIdentityMismatch, "{others:#}");
    assert!(others.text.contains("belongs to repository"), "{others:#}");
}

#[tokio::test]
async fn a_backup_without_its_own_hashes_is_refused() {
    let blocks = |backup: &Path| backup.join("vda.blocks");
    let missing = damaged(|backup| fs::remove_file(blocks(backup)).unwrap()).await;
    let flipped = damaged(|backup| flip(&blocks(backup), 70)).await;
    let longer =
        damaged(|backup| File::options().write(true).open(blocks(backup)).unwrap().set_len(1 << 30).unwrap()).await;
    let of_another = damaged(|backup| {
        let other = longshore::mover::image::blocks::Blocks::new(DISK_BYTES).unwrap();
        fs::write(blocks(backup), other.encode()).unwrap();
    })
    .await;
    for failure in [missing, flipped, longer, of_another] {
        assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
        assert!(failure.text.contains("vda.blocks"), "{failure:#}");
    }
    let link = damaged(|backup| {
        fs::rename(blocks(backup), backup.join("elsewhere")).unwrap();
        symlink(backup.join("elsewhere"), blocks(backup)).unwrap();
    })
    .await;
    assert_eq!(link.code, Code::RepositoryUnsafe, "{link:#}");
}

#[tokio::test]
async fn an_image_that_leads_to_other_files_is_not_opened() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), vec![7; 1 << 20]).unwrap();
    let accessed = || fs::metadata(secret.path()).unwrap().atime();
    // Long ago, so that any read would be noted.
    File::open(secret.path()).unwrap().set_times(fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH)).unwrap();
    let before = accessed();
    let name = secret.path().to_str().unwrap();
    for options in [format!("backing_file={name},backing_fmt=raw"), format!("data_file={name},data_file_raw=on")] {
        let failure = damaged(|backup| {
            let image = backup.join("vda.qcow2");
            let length = fs::metadata(&image).unwrap().len();
            fs::remove_file(&image).unwrap();
            let made = tempfile::tempdir().unwrap();
            let other = made.path().join("image");
            let size = DISK_BYTES.to_string();
            let data = made.path().join("data");
            // Made with a file of its own, so that the making writes nothing into the other.
            let own = options.replace(name, data.to_str().unwrap());
            fs::write(&data, vec![0; 8 << 20]).unwrap();
            tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &own, other.to_str().unwrap(), &size]);
            let content = fs::read(&other).unwrap();
            fs::write(&image, rename_in(&content, data.to_str().unwrap(), name)).unwrap();
            File::options().write(true).open(&image).unwrap().set_len(length).unwrap();
        })
        .await;
        assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
        assert!(format!("{failure:#}").contains("header"), "{failure:#}");
    }
    assert_eq!(accessed(), before, "the other file was read");
    assert_eq!(fs::read(secret.path()).unwrap(), vec![7; 1 << 20]);
}

/// The same bytes with one name in the place of another, cut off or filled up to its length by slashes.
fn rename_in(content: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = content.windows(from.len()).position(|window| window == from.as_bytes()).expect("the name is in it");
    let fill = from.len().checked_sub(to.len()).expect("the new name is no longer");
    let mut content = content.to_vec();
    content[at..at + from.len()].copy_from_slice(format!("{}{to}", "/".repeat(fill)).as_bytes());
    content
}

#[tokio::test]
async fn what_is_at_the_name_of_a_volume_is_not_followed() {
    let real = Real::new();
    let old = real.volume();
    let precious = real.folder.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let (mut mover, manifest) = published(&real, "links").await;
    let wanted = [restored(&manifest, &old)];
    // One that an earlier try may have left is removed, and not written through.
    symlink(&precious, wanted[0].place.fresh().unwrap()).unwrap();
    made(&mut mover, &manifest, &wanted).await;
    assert!(fs::symlink_metadata(wanted[0].place.fresh().unwrap()).unwrap().is_file());
    done(&mut mover, remove_fresh(&wanted)).await;
    fs::remove_file(&old).unwrap();
    symlink(&precious, &old).unwrap();
    let failure = refused(&mut mover, restore(&manifest, &wanted)).await;
    assert_eq!(failure.code, Code::DiskUnsupported, "{failure:#}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn too_little_room_is_found_before_anything_is_made() {
    let real = Real::with_share(|share| {
        let directory = share.with_file_name("volumes");
        fs::create_dir(&directory).unwrap();
        small_file_system(&directory);
    });
    let old = real.volume();
    let (mut mover, manifest) = published(&real, "full").await;
    let wanted = [restored(&manifest, &old)];
    let failure = refused(&mut mover, restore(&manifest, &wanted)).await;
    assert_eq!(failure.code, Code::VolumeFull, "{failure:#}");
    assert_eq!(fs::read_dir(old.parent().unwrap()).unwrap().count(), 1);
    mover.stop().await.unwrap();
    nix::mount::umount(old.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_mover_that_is_killed_leaves_new_volumes_that_another_one_removes() {
    let real = Real::new();
    let old = real.volume();
    let (mut mover, manifest) = published(&real, "killed").await;
    let wanted = [restored(&manifest, &old)];
    made(&mut mover, &manifest, &wanted).await;
    drop(mover);
    let mut mover = started(&real, "removes").await;
    done(&mut mover, remove_fresh(&wanted)).await;
    assert_eq!((real.stands(&old), real.stands(wanted[0].place.fresh().unwrap())), (Stands::Old, Stands::Nothing));
    mover.stop().await.unwrap();
}

/// A restore onto the faulty share up to where it fails: with `before` from its beginning, and `orders` once the first bytes
/// are written. Then the old volume is in its place, and with the share well again nothing else is left.
async fn fails(faulty: &Faulty, before: &str, orders: &str) -> (&'static str, Code) {
    let old = volume(&faulty.real.share(), DISK_BYTES);
    let (mut mover, manifest) = published(&faulty.real, "fails").await;
    let wanted = [restored(&manifest, &old)];
    faulty.orders(before);
    let mut progress = mover.progress();
    progress.mark_unchanged();
    let written = async {
        progress.changed().await.unwrap();
        progress.wait_for(|progress| progress.data_bytes > 0).await.unwrap();
    };
    let made = {
        let mut restoring = mover.ask(restore(&manifest, &wanted), SOON);
        tokio::select! {
            made = &mut restoring => made,
            () = written => {
                faulty.orders(orders);
                restoring.await
            }
        }
    };
    let (word, failure) = match made {
        Ok(_) => match mover.ask(Request::Compare, SOON).await {
            Ok(_) => panic!("nothing fails: {before} {orders}"),
            Err(failure) => ("compare", failure),
        },
        Err(failure) => ("restore", failure),
    };
    faulty.orders("{}");
    done(&mut mover, remove_fresh(&wanted)).await;
    assert_eq!((faulty.real.stands(&old), fs::read_dir(old.parent().unwrap()).unwrap().count()), (Stands::Old, 1));
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
    (word, failure.code)
}

#[tokio::test]
async fn what_goes_wrong_late_where_volumes_are_is_never_exchanged() {
    let faulty = Faulty::new();
    let slow = r#"{"bw_mb": 4}"#;
    for (orders, code) in [
        (r#"{"mode": "late", "file": "web.fresh"}"#, Code::VolumeIo),
        (r#"{"mode": "late", "file": "web.fresh", "told": "others"}"#, Code::VolumeIo),
        (r#"{"mode": "late", "file": "web.fresh", "errno": "ENOSPC"}"#, Code::VolumeFull),
        (r#"{"mode": "enospc", "file": "web.fresh"}"#, Code::VolumeFull),
        (r#"{"mode": "eio", "file": "web.fresh"}"#, Code::VolumeIo),
    ] {
        assert_eq!(fails(&faulty, slow, orders).await, ("restore", code), "{orders}");
    }
    for on in ["write", "read"] {
        let flipped = format!(r#"{{"mode": "flip", "file": "web.fresh", "offset": 5000000, "on": "{on}"}}"#);
        assert_eq!(fails(&faulty, &flipped, &flipped).await, ("compare", Code::ContentMismatch));
    }
    let flipped = r#"{"mode": "flip", "file": "vda.qcow2", "offset": 5000000, "on": "read"}"#;
    assert_eq!(fails(&faulty, flipped, flipped).await, ("restore", Code::BackupDamaged));
    let dead = r#"{"mode": "eio", "file": "vda.qcow2"}"#;
    assert_eq!(fails(&faulty, dead, dead).await, ("restore", Code::RepositoryIo));
}

#[tokio::test]
async fn a_restore_that_nobody_waits_for_is_broken_off_and_removed() {
    let faulty = Faulty::new();
    let old = volume(&faulty.real.share(), DISK_BYTES);
    let (mut mover, manifest) = published(&faulty.real, "broken-off").await;
    let wanted = [restored(&manifest, &old)];
    faulty.orders(r#"{"bw_mb": 1}"#);
    let mut progress = mover.progress();
    progress.mark_unchanged();
    let restoring = mover.ask(restore(&manifest, &wanted), SOON);
    tokio::select! {
        answer = restoring => panic!("the restore ended: {answer:?}"),
        moved = progress.changed() => moved.unwrap(),
    }
    faulty.orders("{}");
    done(&mut mover, remove_fresh(&wanted)).await;
    assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::Internal);
    assert_eq!(fs::read_dir(old.parent().unwrap()).unwrap().count(), 1);
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn what_was_written_and_is_not_given_back_is_found() {
    let real = Real::new();
    let old = real.volume();
    let (mut mover, manifest) = published(&real, "compares").await;
    let [image, mut raw] = two(&manifest, &old);
    raw.format = ImageFormat::Raw;
    let volumes = [image, raw];
    made(&mut mover, &manifest, &volumes).await;
    done(&mut mover, Request::Compare).await;
    flip(volumes[1].place.fresh().unwrap(), (3 << 20) + 5);
    let failure = refused(&mut mover, Request::Compare).await;
    assert_eq!(failure.code, Code::ContentMismatch, "{failure:#}");
    assert!(failure.text.contains("disk `vda` at offset 3145728"), "{failure:#}");
    // A cluster that belongs to nothing.
    flip(volumes[1].place.fresh().unwrap(), (3 << 20) + 5);
    done(&mut mover, Request::Compare).await;
    let file = File::options().append(true).open(volumes[0].place.fresh().unwrap()).unwrap();
    file.set_len(file.metadata().unwrap().len() + (1 << 20)).unwrap();
    assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::ImageDamaged);
    done(&mut mover, remove_fresh(&volumes)).await;
    mover.stop().await.unwrap();
}
