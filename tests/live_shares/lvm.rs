//! Logical volumes of LVM, which a restore exchanges, on the device mapper of the virtual host's kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use longshore::failure::{Code, LogicalName, Remains};
use longshore::host::mover::{Mover, Movers, Usage, User};
use longshore::host::remains::{Seen, look};
use longshore::model::instance::ImageFormat;
use longshore::model::manifest::Manifest;
use longshore::mover::protocol::{BlockDevice, DeviceNumbers, Reply, Request, RestoredVolume, VolumePlace};

use nix::sys::stat::makedev;

use super::contract::{SOON, done, exchange, published, refused, restore, restored, started};
use super::logical::Group;
use super::loops::{Loop, tool};
use super::{DISK_BYTES, Remote};

/// What every byte of the group held before.
const OLD: u8 = 0xee;
/// Of the disk that the group is on.
const GROUP_BYTES: u64 = 96 << 20;
/// Of a volume: two extents, where the backup's disk needs a part of one.
const VOLUME_BYTES: u64 = 8 << 20;

/// A volume group with the volumes `web` and `data`.
fn group(remote: &Remote) -> Group {
    let group = Group::new(remote.folder.path().join("pv"), GROUP_BYTES, OLD);
    for volume in ["web", "data"] {
        group.linear(volume, VOLUME_BYTES);
    }
    group
}

async fn onto(mover: &mut Box<dyn Mover>, manifest: &Manifest, path: &Path) -> RestoredVolume {
    let reply = mover.ask(Request::LookAtDevices { paths: vec![path.to_owned()] }, SOON).await.unwrap();
    let Reply::Devices { devices } = &reply else { panic!("{reply:?}") };
    let [BlockDevice::Logical { group, name, uuid, .. }] = &devices[..] else { panic!("{devices:?}") };
    let beside = |what: &str| Path::new("/dev").join(group).join(format!("{name}.{what}"));
    let place = VolumePlace::Logical {
        volume: path.to_owned(),
        group: group.clone(),
        name: name.clone(),
        uuid: uuid.clone(),
        fresh: beside("new"),
        previous: beside("previous"),
    };
    RestoredVolume { format: ImageFormat::Raw, place, ..restored(manifest, path) }
}

async fn two(mover: &mut Box<dyn Mover>, manifest: &Manifest, group: &Group) -> [RestoredVolume; 2] {
    // The one by its name in the group, the other by that of the device mapper.
    let mapped = Path::new("/dev/mapper").join(format!("{}-data", group.name));
    [onto(mover, manifest, &group.path("web")).await, onto(mover, manifest, &mapped).await]
}

async fn made(mover: &mut Box<dyn Mover>, manifest: &Manifest, volumes: &[RestoredVolume]) {
    let reply = mover.ask(restore(manifest, volumes), SOON).await;
    assert!(matches!(reply, Ok(Reply::Copied { .. })), "{reply:?}");
    done(mover, Request::Compare).await;
}

fn content(path: &Path) -> Vec<u8> {
    let mut content = Vec::new();
    File::open(path).unwrap().read_to_end(&mut content).unwrap();
    content
}

fn is_old(path: &Path) -> bool {
    content(path).iter().all(|byte| *byte == OLD)
}

/// It holds the disk, and zeros beyond that.
fn is_restored(remote: &Remote, path: &Path) -> bool {
    let disk = fs::read(remote.folder.path().join("disk.raw")).unwrap();
    let content = content(path);
    let (restored, beyond) = content.split_at(disk.len());
    assert!(!beyond.is_empty(), "it is rounded up to whole extents");
    restored == disk && beyond.iter().all(|byte| *byte == 0)
}

fn names(volumes: &[RestoredVolume]) -> (&Path, &Path, &Path) {
    let place = &volumes[0].place;
    (place.volume(), place.fresh().unwrap(), place.previous().unwrap())
}

#[tokio::test]
async fn two_logical_volumes_are_exchanged_and_the_old_ones_are_there_until_they_are_removed() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "exchanges").await;
    let volumes = two(&mut mover, &manifest, &group).await;
    for _twice in 0..2 {
        made(&mut mover, &manifest, &volumes).await;
        let (old, fresh, _) = names(&volumes);
        assert!(is_old(old) && is_restored(&remote, fresh));
        assert_eq!(group.chosen("lv_name", "lv_tags=longshore"), ["data.new", "web.new"]);
    }
    for _twice in 0..2 {
        done(&mut mover, exchange(&volumes)).await;
    }
    for volume in &volumes {
        assert!(is_restored(&remote, volume.place.volume()) && is_old(volume.place.previous().unwrap()));
    }
    assert_eq!(group.volumes(), ["data", "data.previous", "web", "web.previous"]);
    let mut next = started(&remote, "removes").await;
    for _twice in 0..2 {
        done(&mut next, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
        done(&mut next, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
        assert_eq!(group.volumes(), ["data", "web"]);
    }
    assert!(volumes.iter().all(|volume| is_restored(&remote, volume.place.volume())));
    next.stop().await.unwrap();
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn an_exchange_of_logical_volumes_that_was_cut_off_is_gone_on_with_or_given_up() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "cut-off").await;
    let volumes = two(&mut mover, &manifest, &group).await;
    for goes_on in [false, true] {
        made(&mut mover, &manifest, &volumes).await;
        // It lets go of the new ones, as it does before it exchanges them. There is nothing to remove yet.
        done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
        let (_, fresh, previous) = names(&volumes);
        group.rename(&group.path("web"), previous);
        group.rename(fresh, &group.path("web"));
        group.rename(&group.path("data"), volumes[1].place.previous().unwrap());
        let mut next = started(&remote, "next").await;
        if goes_on {
            done(&mut next, Request::Exchange { volumes: volumes.to_vec(), only_go_on: true }).await;
            assert!(volumes.iter().all(|volume| is_restored(&remote, volume.place.volume())));
            assert!(volumes.iter().all(|volume| is_old(volume.place.previous().unwrap())));
        } else {
            done(&mut next, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
            assert!(volumes.iter().all(|volume| is_old(volume.place.volume())));
            assert_eq!(group.volumes(), ["data", "web"]);
        }
        next.stop().await.unwrap();
    }
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_logical_volume_that_is_open_or_cannot_be_exchanged_is_left_alone() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "refuses").await;
    let volumes = two(&mut mover, &manifest, &group).await;
    let user = File::open(group.path("data")).unwrap();
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::InUseElsewhere);
    assert_eq!(group.volumes(), ["data", "web"]);
    drop(user);
    made(&mut mover, &manifest, &volumes).await;
    let user = File::open(group.path("data")).unwrap();
    assert_eq!(refused(&mut mover, exchange(&volumes)).await.code, Code::InUseElsewhere);
    assert_eq!(group.volumes(), ["data", "data.new", "web", "web.new"]);
    drop(user);
    done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    // What has the name of the new one and is not ours.
    group.linear("web.new", 4 << 20);
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::VolumeIo);
    assert_eq!(group.volumes(), ["data", "web", "web.new"]);
    group.remove("web.new");
    // Nothing is left for a second one.
    group.linear("rest", 72 << 20);
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::VolumeFull);
    group.remove("rest");
    let web = format!("{}/web", group.name);
    tool("lvcreate", &["--yes", "--snapshot", "--size", "4m", "--name", "moment", &web]);
    let refusal = refused(&mut mover, restore(&manifest, &volumes)).await;
    assert!(refusal.code == Code::DiskUnsupported && refusal.text.contains("`moment`"), "{refusal:#}");
    let moment = [onto(&mut mover, &manifest, &group.path("moment")).await];
    let refusal = refused(&mut mover, restore(&manifest, &moment)).await;
    assert!(refusal.code == Code::DiskUnsupported && refusal.text.contains("snapshot of `web`"), "{refusal:#}");
    assert_eq!(group.volumes(), ["data", "moment", "web"]);
    tool("lvchange", &["--permission", "r", &group.of("data")]);
    let read_only = Request::LookAtDevices { paths: vec![group.path("data")] };
    assert_eq!(refused(&mut mover, read_only).await.code, Code::DiskUnsupported);
    assert!(is_old(&group.path("web")) && is_old(&group.path("data")));
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_is_taken_meanwhile_stays() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "snapshots").await;
    let volumes = two(&mut mover, &manifest, &group).await;
    let snapshot = |of: &str| {
        let of = format!("{}/{of}", group.name);
        tool("lvcreate", &["--yes", "--snapshot", "--size", "4m", "--name", "cron", &of]);
    };
    made(&mut mover, &manifest, &volumes).await;
    snapshot("web");
    let refusal = refused(&mut mover, exchange(&volumes)).await;
    assert!(refusal.code == Code::DiskUnsupported && refusal.text.contains("`cron`"), "{refusal:#}");
    assert_eq!(group.volumes(), ["cron", "data", "data.new", "web", "web.new"]);
    group.remove("cron");
    done(&mut mover, exchange(&volumes)).await;
    snapshot("web.previous");
    let refusal = refused(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    assert!(refusal.code == Code::DiskUnsupported && refusal.text.contains("`cron`"), "{refusal:#}");
    assert!(is_old(&group.path("cron")) && is_old(&group.path("web.previous")));
    // What a removal does that has not seen it.
    let origin = format!("{}/web.previous", group.name);
    tool("lvremove", &["--yes", "--quiet", "--select", "lv_attr!~\"^[oO]\"", &origin]);
    assert!(group.volumes().contains(&"cron".to_owned()) && group.volumes().contains(&"web.previous".to_owned()));
    group.remove("cron");
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    assert_eq!(group.volumes(), ["data", "web"]);
    mover.stop().await.unwrap();
}

/// Its name alone does not say that it is the one whose place the new one may take.
#[tokio::test]
async fn a_volume_that_was_made_in_the_name_of_the_old_one_is_neither_exchanged_nor_removed() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "another").await;
    let volumes = two(&mut mover, &manifest, &group).await;
    let (web, fresh, previous) = names(&volumes);
    let kept = group.path("web.kept");
    made(&mut mover, &manifest, &volumes).await;
    group.rename(web, &kept);
    group.linear("web", VOLUME_BYTES);
    assert_eq!(refused(&mut mover, exchange(&volumes)).await.code, Code::SourceChanged);
    assert_eq!(group.volumes(), ["data", "data.new", "web", "web.kept", "web.new"]);
    done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::SourceChanged);
    assert_eq!(group.volumes(), ["data", "web", "web.kept"]);
    group.remove("web");
    group.rename(&kept, web);
    made(&mut mover, &manifest, &volumes).await;
    done(&mut mover, exchange(&volumes)).await;
    group.rename(previous, &kept);
    group.linear("web.previous", VOLUME_BYTES);
    let refusal = refused(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    assert_eq!(refusal.code, Code::SourceChanged, "{refusal:#}");
    assert!(group.volumes().contains(&"web.previous".to_owned()) && !fresh.exists());
    mover.stop().await.unwrap();
}

/// As QEMU opens an old one by a node that libvirt made of its number before it was moved away.
#[tokio::test]
async fn who_opens_an_old_volume_amid_the_exchange_gets_it_back_or_is_told_of() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "opened").await;
    for new_too in [true, false] {
        // Those of the first time have other uuids.
        let volumes = two(&mut mover, &manifest, &group).await;
        made(&mut mover, &manifest, &volumes).await;
        done(&mut mover, exchange(&volumes)).await;
        let old = File::open(volumes[1].place.previous().unwrap()).unwrap();
        let new = new_too.then(|| File::open(group.path("web")).unwrap());
        // To whoever comes after a crash, when the instance may have run on the new ones since.
        let later = Request::Exchange { volumes: volumes.to_vec(), only_go_on: true };
        assert_eq!(refused(&mut mover, later).await.code, Code::RestoreUnfinished);
        assert!(volumes.iter().all(|volume| is_restored(&remote, volume.place.volume())));
        let refusal = refused(&mut mover, exchange(&volumes)).await;
        match new_too {
            true => {
                assert_eq!(refusal.code, Code::RestoreUnfinished, "{refusal:#}");
                assert!(volumes.iter().all(|volume| is_restored(&remote, volume.place.volume())));
                assert!(volumes.iter().all(|volume| is_old(volume.place.previous().unwrap())));
            }
            false => {
                assert_eq!(refusal.code, Code::InUseElsewhere, "{refusal:#}");
                assert!(volumes.iter().all(|volume| is_old(volume.place.volume())));
                assert_eq!(group.volumes(), ["data", "data.new", "web", "web.new"]);
            }
        }
        drop((old, new));
        if new_too {
            done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
            for volume in ["web", "data"] {
                // It has another size by now.
                let path = group.path(volume);
                fs::write(&path, vec![OLD; content(&path).len()]).unwrap();
            }
        }
    }
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_thin_volume_comes_to_be_in_the_same_pool() {
    let remote = Remote::nfs();
    let group = group(&remote);
    group.pool("pool", 40 << 20);
    group.thin("pool", "thin", VOLUME_BYTES);
    fs::write(group.path("thin"), vec![OLD; usize::try_from(VOLUME_BYTES).unwrap()]).unwrap();
    tool("lvchange", &["--addtag", "nightly", "--setautoactivation", "n", &group.of("thin")]);
    let (mut mover, manifest) = published(&remote, "thin").await;
    let volumes = [onto(&mut mover, &manifest, &group.path("thin")).await];
    made(&mut mover, &manifest, &volumes).await;
    // As after a start of the host, since it is not activated by itself.
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    tool("lvchange", &["--activate", "n", &group.of("thin.new")]);
    done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    assert_eq!(group.volumes(), ["data", "pool", "thin", "web"]);
    made(&mut mover, &manifest, &volumes).await;
    done(&mut mover, exchange(&volumes)).await;
    let (volume, _, previous) = names(&volumes);
    assert!(is_restored(&remote, volume) && is_old(previous));
    assert_eq!(group.row("lv_autoactivation", "thin"), "", "nor is the new one");
    let tags = group.row("lv_tags", "thin");
    assert_eq!(tags.split(',').collect::<BTreeSet<_>>(), BTreeSet::from(["longshore", "nightly"]));
    tool("lvchange", &["--activate", "n", &group.of("thin.previous")]);
    assert_eq!(group.report("pool_lv").iter().filter(|pool| *pool == "pool").count(), 2);
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    assert_eq!(group.volumes(), ["data", "pool", "thin", "web"]);
    // 1.25 MiB of data in one extent.
    assert_eq!(group.row("data_percent", "thin"), "31.25", "zeros take no room in the pool");
    // There is room for the data of a new one, and for what is left to others, but not for the whole piece that the data takes.
    let options = ["--yes", "--type", "thin-pool", "--chunksize", "8m", "--size", "24m"];
    tool("lvcreate", &[&options[..], &[&group.of("coarse")]].concat());
    group.thin("coarse", "rough", VOLUME_BYTES);
    let volumes = [onto(&mut mover, &manifest, &group.path("rough")).await];
    let refusal = refused(&mut mover, restore(&manifest, &volumes)).await;
    assert!(refusal.code == Code::VolumeFull && refusal.text.contains("/coarse`"), "{refusal:#}");
    mover.stop().await.unwrap();
}

/// What the mover has to say of the new volumes.
async fn unusual(mover: &mut Box<dyn Mover>, manifest: &Manifest, volumes: &[RestoredVolume]) -> Vec<String> {
    let reply = mover.ask(restore(manifest, volumes), SOON).await;
    let Ok(Reply::Copied { warnings, .. }) = reply else { panic!("{reply:?}") };
    warnings
}

#[tokio::test]
async fn a_new_volume_has_what_was_set_of_the_old_one_and_lies_where_that_does_and_what_it_has_not_is_named() {
    let remote = Remote::nfs();
    let more = Loop::new(remote.folder.path().join("pv-2"), GROUP_BYTES, OLD);
    let group = group(&remote);
    let second = more.path.to_str().unwrap();
    tool("vgextend", &["--yes", &group.name, second]);
    let (name, bytes) = (group.name.clone(), format!("{VOLUME_BYTES}b"));
    tool("lvcreate", &["--yes", "--name", "fast", "--size", &bytes, &name, second]);
    let set = [
        "--setautoactivation n --setactivationskip y",
        "--alloc cling --readahead 512",
        "--metadataprofile thin-performance",
    ];
    for options in set {
        let options: Vec<_> = options.split(' ').collect();
        tool("lvchange", &[&options[..], &[&group.of("fast")]].concat());
    }
    let columns = "lv_autoactivation,lv_skip_activation,lv_allocation_policy,lv_read_ahead,lv_profile,devices";
    let before = group.row(columns, "fast");
    for part in ["skip activation", "cling", "256.00k", "thin-performance", &format!("{second}(")] {
        assert!(before.contains(part), "{before}");
    }
    let (mut mover, manifest) = published(&remote, "likens").await;
    let volumes = [onto(&mut mover, &manifest, &group.path("fast")).await];
    assert_eq!(unusual(&mut mover, &manifest, &volumes).await, [""; 0]);
    done(&mut mover, Request::Compare).await;
    done(&mut mover, exchange(&volumes)).await;
    assert!(is_restored(&remote, &group.path("fast")));
    // Its place on that disk is another one.
    let place = |row: &str| row.split_once(second).unwrap().0.to_owned() + second;
    assert_eq!(place(&group.row(columns, "fast")), place(&before));
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    // No room is left on its disk, and its number is its own as long as it is there.
    tool("lvcreate", &["--yes", "--name", "rest", "--extents", "100%PVS", &name, second]);
    tool("lvchange", &["--yes", "--persistent", "y", "--minor", "200", &group.of("rest")]);
    let volumes = [onto(&mut mover, &manifest, &group.path("rest")).await];
    let said = unusual(&mut mover, &manifest, &volumes).await;
    assert_eq!(said.len(), 2, "{said:?}");
    let shown = format!("the new logical volume `/dev/{name}/rest` ");
    assert!(said.iter().all(|text| text.starts_with(&shown)), "{said:?}");
    assert!(said[0].contains("number") && said[0].contains("--minor 200"), "{said:?}");
    assert!(said[1].contains(&format!("lies on `{}`", group.disk().display())), "{said:?}");
    done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_disk_that_ends_amid_a_block_of_the_device_is_followed_by_zeros() {
    let remote = Remote::nfs();
    let disk = File::options().write(true).open(remote.folder.path().join("disk.raw")).unwrap();
    disk.write_all_at(&[0x11; 512], DISK_BYTES).unwrap();
    let file = remote.folder.path().join("pv");
    fs::write(&file, vec![OLD; usize::try_from(GROUP_BYTES).unwrap()]).unwrap();
    let group = Group::on(Loop::with_sectors(file, 4096));
    group.linear("web", VOLUME_BYTES);
    let (mut mover, manifest) = published(&remote, "large-sectors").await;
    let volumes = [onto(&mut mover, &manifest, &group.path("web")).await];
    made(&mut mover, &manifest, &volumes).await;
    assert!(is_restored(&remote, volumes[0].place.fresh().unwrap()));
    done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_killed_mover_leaves_of_logical_volumes_is_removed_by_another() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let (mut mover, manifest) = published(&remote, "killed").await;
    let volumes = two(&mut mover, &manifest, &group).await;
    made(&mut mover, &manifest, &volumes).await;
    drop(mover);
    let mut next = started(&remote, "next").await;
    done(&mut next, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    assert_eq!(group.volumes(), ["data", "web"]);
    next.stop().await.unwrap();
}

/// As after a start of the host, where it is not activated by itself.
#[tokio::test]
async fn a_left_over_that_is_not_active_is_there_until_it_is_removed() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let name = |name: &str| LogicalName { group: group.name.clone(), name: name.to_owned() };
    let left = Remains::Volumes { files: Vec::new(), logical: vec![name("web"), name("data")] };
    assert_eq!(look(&left).await, Seen::There);
    for volume in ["web", "data"] {
        tool("lvchange", &["--activate", "n", &group.of(volume)]);
        assert!(fs::symlink_metadata(group.path(volume)).is_err(), "it has no path");
    }
    // As a group is that is moved to another host: lvm2 shows nothing that is in it.
    tool("vgexport", &[&group.name]);
    assert_eq!(look(&left).await, Seen::Nowhere);
    tool("vgimport", &[&group.name]);
    for volume in ["web", "data"] {
        assert_eq!(look(&left).await, Seen::There);
        group.remove(volume);
    }
    assert_eq!(look(&left).await, Seen::Gone);
    // What can't be seen is not known to be gone: the group's disk is away.
    let unseen =
        Remains::Volumes { files: Vec::new(), logical: vec![LogicalName { group: "away".into(), ..name("web") }] };
    assert_eq!(look(&unseen).await, Seen::Nowhere);
}

/// As of a disk with several paths, whose partitions kpartx makes.
#[tokio::test]
async fn whoever_has_the_disk_open_uses_its_partition_of_the_device_mapper() {
    let remote = Remote::nfs();
    let disk = Loop::new(remote.folder.path().join("disk"), 8 << 20, OLD);
    let loop_name = disk.path.file_name().unwrap().to_str().unwrap();
    let (name, uuid) = (format!("{loop_name}-part1"), format!("part1-longshore-{loop_name}"));
    let table = format!("0 8192 linear {} 0", disk.path.display());
    tool("dmsetup", &["create", &name, "--uuid", &uuid, "--table", &table]);
    // Nobody makes a node of it where there is no udev.
    let said = tool("dmsetup", &["info", "--columns", "--noheadings", "--separator", ":", "-o", "major,minor", &name]);
    let (major, minor) = said.trim().split_once(':').unwrap();
    let numbers = DeviceNumbers::of(makedev(major.parse().unwrap(), minor.parse().unwrap()));
    assert_eq!(remote.movers.usage(&[numbers], None).await.unwrap(), Usage::default());
    let user = File::open(&disk.path).unwrap();
    let found = remote.movers.usage(&[numbers], None).await.unwrap().user;
    assert!(matches!(&found, Some((device, User::Process(_))) if *device == numbers), "{found:?}");
    drop(user);
    tool("dmsetup", &["remove", "--retry", &name]);
}

#[tokio::test]
async fn what_the_device_mapper_has_made_of_a_disk_is_on_top_of_it_by_its_name() {
    let remote = Remote::nfs();
    let group = group(&remote);
    let numbers = DeviceNumbers::of(fs::metadata(group.disk()).unwrap().rdev());
    let Some((found, User::Device(what))) = remote.movers.usage(&[numbers], None).await.unwrap().user else {
        panic!("it is in use")
    };
    assert!(found == numbers && what.starts_with("`dm-") && what.contains(&format!("(`{}-", group.name)), "{what}");
    tool("vgchange", &["--activate", "n", &group.name]);
    assert_eq!(remote.movers.usage(&[numbers], None).await.unwrap().user, None);
}
