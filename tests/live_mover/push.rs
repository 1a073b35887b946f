//! What a mover shows to the host for somebody else to write, and how it looks at what was written.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::failure::Code;
use longshore::host::mover::{Mover, Movers};
use longshore::model::id::{BackupId, InstanceId};
use longshore::mover::protocol::{PushTarget, Reply, Request};

use super::contract::{self, done, eventually, lease, opened, refused, stage};
use super::volumes::tool;
use super::{DISK_BYTES, Real};

const CLUSTER: u64 = 64 << 10;
/// What one table of the second level names, bytes of the disk.
const TABLE_BYTES: u64 = 512 << 20;

fn expose(place: &Path, virtual_bytes: u64, writer: u32) -> Request {
    let disks = vec![PushTarget { target: "vda".parse().unwrap(), virtual_bytes, base: None }];
    Request::Expose { place: place.to_owned(), disks, writer }
}

/// A mover that shows an image of `virtual_bytes` to us, and where.
async fn shown(real: &Real, virtual_bytes: u64) -> (Box<dyn Mover>, PathBuf) {
    shown_to(real, virtual_bytes, std::process::id()).await
}

async fn shown_to(real: &Real, virtual_bytes: u64, writer: u32) -> (Box<dyn Mover>, PathBuf) {
    let place = real.folder.path().join("place");
    fs::create_dir(&place).unwrap();
    let mut mover = opened(real, "push").await;
    let instance = InstanceId::draw();
    done(&mut mover, lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    let reply = mover.ask(expose(&place, virtual_bytes, writer), contract::SOON).await.unwrap();
    assert_eq!(reply, Reply::Exposed { unusable: Vec::new() });
    (mover, place)
}

/// The line of the mount table for `place`.
fn mounted(place: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().find(|line| line.split(' ').nth(4) == place.to_str()).map(str::to_owned)
}

#[tokio::test]
async fn what_is_shown_to_the_host_is_written_inspected_and_taken_away() {
    let real = Real::new();
    let (disk, place) = (real.folder.path().join("disk.raw"), real.folder.path().join("place"));
    let write = |place: &Path| {
        let image = place.join("vda.qcow2");
        tool(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "qcow2", disk.to_str().unwrap(), image.to_str().unwrap()],
        );
    };
    let root =
        contract::what_is_shown_to_the_host_is_written_inspected_and_taken_away(&real, &place, DISK_BYTES, write);
    // The hash of what the disk holds is the one that a copy of it gets.
    let copied = Real::new();
    let mut mover = opened(&copied, "copy").await;
    let manifest = contract::sealed(&copied, &mut mover, InstanceId::draw(), BackupId::draw()).await;
    assert_eq!(root.await, manifest.disks[0].content_root);
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn nothing_but_the_staging_directory_is_shown_and_nothing_there_runs_or_leads_elsewhere() {
    let real = Real::new();
    let (mut mover, place) = shown(&real, DISK_BYTES).await;
    let names: Vec<_> = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["vda.qcow2"]);
    let line = mounted(&place).expect("it is mounted");
    for option in ["nosuid", "nodev", "noexec", "nosymfollow"] {
        assert!(line.split(' ').nth(5).unwrap().split(',').any(|found| found == option), "{option}: {line}");
    }
    let others = |arguments: &[&str]| {
        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        Command::new("setpriv").args(nobody).args(arguments).output().unwrap().status.success()
    };
    fs::set_permissions(real.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    assert!(!others(&["ls", place.to_str().unwrap()]) && !others(&["cat", place.join("vda.qcow2").to_str().unwrap()]));
    mover.stop().await.unwrap();
    real.movers.unmount(&place).await.unwrap();
}

#[tokio::test]
async fn what_a_killed_mover_has_shown_is_taken_away_without_it() {
    let real = Real::new();
    let (mover, place) = shown(&real, DISK_BYTES).await;
    let open = File::open(place.join("vda.qcow2")).unwrap();
    drop(mover);
    eventually("the mover is gone", || real.processes().is_empty()).await;
    assert!(mounted(&place).is_some(), "it is the host's");
    // Also while somebody has a file of it open.
    for _twice in 0..2 {
        real.movers.unmount(&place).await.unwrap();
        assert!(mounted(&place).is_none() && !place.exists());
    }
    drop(open);
}

#[tokio::test]
async fn a_writer_that_is_gone_or_does_not_see_the_place_is_found_out() {
    let real = Real::new();
    let place = real.folder.path().join("place");
    fs::create_dir(&place).unwrap();
    let mut mover = opened(&real, "push").await;
    let instance = InstanceId::draw();
    done(&mut mover, lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    // Its namespace is a copy of ours from before, to which nothing spreads.
    let mut elsewhere =
        Command::new("unshare").args(["--mount", "--propagation", "private", "sleep", "600"]).spawn().unwrap();
    eventually("it is elsewhere", || {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        namespace(&elsewhere.id().to_string()) != namespace("self")
    })
    .await;
    let failure = refused(&mut mover, expose(&place, DISK_BYTES, elsewhere.id())).await;
    assert_eq!(failure.code, Code::PushNotPossible, "{failure:#}");
    assert!(format!("{failure:#}").contains("shared"), "{failure:#}");
    elsewhere.kill().unwrap();
    elsewhere.wait().unwrap();
    let failure = refused(&mut mover, expose(&place, DISK_BYTES, elsewhere.id())).await;
    assert_eq!(failure.code, Code::PushNotPossible, "{failure:#}");
    mover.stop().await.unwrap();
    real.movers.unmount(&place).await.unwrap();
}

#[tokio::test]
async fn an_image_that_stays_its_writers_is_told_of_and_is_good() {
    let real = Real::new();
    fs::set_permissions(real.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "sleep", "600"];
    let mut writer = Command::new("setpriv").args(nobody).spawn().unwrap();
    eventually("the writer is somebody else", || {
        let status = fs::read_to_string(format!("/proc/{}/status", writer.id())).unwrap();
        status.lines().any(|line| line.starts_with("Uid:\t65534"))
    })
    .await;
    let (mut mover, place) = shown_to(&real, DISK_BYTES, writer.id()).await;
    writer.kill().unwrap();
    writer.wait().unwrap();
    let image = place.join("vda.qcow2");
    // Neither owner nor mode of such a file can be changed.
    tool("chattr", &["+i", image.to_str().unwrap()]);
    let inspected = mover.ask(Request::Inspect { changes_of: Vec::new(), written_bytes: None }, contract::SOON).await;
    tool("chattr", &["-i", image.to_str().unwrap()]);
    let Ok(Reply::Copied { warnings, .. }) = inspected else { panic!("{inspected:?}") };
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(warning.starts_with("disk `vda`: its image ") && warning.contains("user 65534"), "{warning}");
    assert!(matches!(mover.ask(Request::Seal, contract::SOON).await, Ok(Reply::Sealed { .. })));
    mover.stop().await.unwrap();
    real.movers.unmount(&place).await.unwrap();
}

#[tokio::test]
async fn an_image_that_was_replaced_is_not_taken() {
    let real = Real::new();
    let (mut mover, place) = shown(&real, DISK_BYTES).await;
    let image = place.join("vda.qcow2");
    fs::copy(&image, place.join("other")).unwrap();
    fs::rename(place.join("other"), &image).unwrap();
    assert_eq!(
        refused(&mut mover, Request::Inspect { changes_of: Vec::new(), written_bytes: None }).await.code,
        Code::RepositoryUnsafe
    );
    assert_eq!(refused(&mut mover, Request::Seal).await.code, Code::Internal, "it can't be had by asking on");
    mover.stop().await.unwrap();
    real.movers.unmount(&place).await.unwrap();
}

/// Three tables of the second level, of which the middle one is lost with the counts of all that it names: `qemu-img check`
/// has nothing against what is left, and a third of the disk reads as zeros.
#[tokio::test]
async fn an_image_that_lost_a_table_is_damaged_though_its_check_finds_nothing() {
    let real = Real::new();
    let (mut mover, place) = shown(&real, 3 * TABLE_BYTES).await;
    let image = place.join("vda.qcow2");
    for table in 0..3 {
        let write = format!("write -P 0x5a {} 1M", table * TABLE_BYTES);
        tool("qemu-io", &["-f", "qcow2", "-c", &write, image.to_str().unwrap()]);
    }
    let file = File::options().read(true).write(true).open(&image).unwrap();
    lose_table(&file, 1);
    let check: serde_json::Value =
        serde_json::from_str(&tool("qemu-img", &["check", "--output=json", image.to_str().unwrap()])).unwrap();
    for trouble in ["corruptions", "leaks", "check-errors"] {
        assert_eq!(check.get(trouble).and_then(serde_json::Value::as_u64).unwrap_or(0), 0, "{check}");
    }
    assert_eq!(check["image-end-offset"].as_u64(), Some(file.metadata().unwrap().len()), "{check}");
    let failure = refused(&mut mover, Request::Inspect { changes_of: Vec::new(), written_bytes: None }).await;
    assert_eq!(failure.code, Code::ImageDamaged, "{failure:#}");
    assert!(format!("{failure:#}").contains("belongs to nothing"), "{failure:#}");
    mover.stop().await.unwrap();
    real.movers.unmount(&place).await.unwrap();
}

/// As if the table, its place in the table above, and the counts had never been written.
fn lose_table(file: &File, number: u64) {
    let read = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let offset = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let forget = |cluster: u64| {
        let counts = read(read(48));
        file.write_all_at(&[0; 2], counts + cluster / CLUSTER * 2).unwrap();
    };
    let place = read(40) + number * 8;
    let table = offset(read(place));
    for entry in 0..CLUSTER / 8 {
        let cluster = offset(read(table + entry * 8));
        if cluster != 0 {
            forget(cluster);
        }
    }
    forget(table);
    file.write_all_at(&[0; 8], place).unwrap();
}

#[tokio::test]
async fn an_image_that_was_cut_off_is_damaged() {
    let real = Real::new();
    let (mut mover, place) = shown(&real, DISK_BYTES).await;
    let image = place.join("vda.qcow2");
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 2M", image.to_str().unwrap()]);
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(file.metadata().unwrap().len() - CLUSTER).unwrap();
    assert_eq!(
        refused(&mut mover, Request::Inspect { changes_of: Vec::new(), written_bytes: None }).await.code,
        Code::ImageDamaged
    );
    mover.stop().await.unwrap();
    real.movers.unmount(&place).await.unwrap();
}
