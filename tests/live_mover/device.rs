//! Block devices that are written over, on loop devices.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use longshore::failure::Code;
use longshore::host::mover::{self, Movers};
use longshore::mover::protocol::{BlockDevice, DeviceNumbers, Request};
use nix::libc;

use super::contract::devices::{Devices, numbers, onto, read};
use super::contract::{SOON, Stands, World, done, published, refused, restore, started};
use super::loops::Loop;
use super::volumes::User;
use super::{DISK_BYTES, Real};

/// What a device holds before.
const OLD: u8 = 0xee;
/// What it has beyond the backup's disk, bytes.
const BEYOND_BYTES: u64 = 1 << 20;

fn device(real: &Real, name: &str) -> Loop {
    Loop::new(real.folder.path().join(name), DISK_BYTES + BEYOND_BYTES, OLD)
}

/// It is what it was.
fn is_old(device: &Loop) -> bool {
    device.content().iter().all(|byte| *byte == OLD)
}

/// It holds the disk, and what it held before beyond that.
fn is_restored(real: &Real, device: &Loop) -> bool {
    let disk = fs::read(real.folder.path().join("disk.raw")).unwrap();
    let content = device.content();
    let (restored, beyond) = content.split_at(disk.len());
    restored == disk && beyond.iter().all(|byte| *byte == OLD)
}

impl Devices for Real {
    fn device(&self) -> PathBuf {
        let device = Loop::new(self.folder.path().join("device"), DISK_BYTES, OLD);
        let path = device.path.clone();
        self.kept.lock().unwrap().push(Box::new(device));
        path
    }

    fn holds(&self, device: &Path) -> Stands {
        File::open(device).unwrap().sync_all().unwrap();
        match fs::read(device).unwrap() == fs::read(self.folder.path().join("disk.raw")).unwrap() {
            true => Stands::Restored,
            false => Stands::Old,
        }
    }

    fn use_device(&self, device: &Path) -> Box<dyn Any> {
        Box::new(OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device).unwrap())
    }

    fn open_device(&self, _device: &Path, numbers: DeviceNumbers) -> Box<dyn Any> {
        Box::new(Elsewhere::of(numbers))
    }

    fn lay_over(&self, device: &Path, _numbers: DeviceNumbers) -> Box<dyn Any> {
        Box::new(Loop::of(device.to_owned()))
    }
}

#[tokio::test]
async fn a_device_holds_the_disk_and_what_it_held_beyond() {
    let real = Real::new();
    let device = device(&real, "device");
    let (mut mover, manifest) = published(&real, "over").await;
    let claimed = [numbers(&mut mover, &device.path).await];
    let volumes = [onto(&manifest, &device.path, claimed[0])];
    for _twice in 0..2 {
        read(&mut mover, &manifest, &volumes).await;
        assert!(is_old(&device), "only read so far");
    }
    done(&mut mover, Request::Claim).await;
    assert!(is_old(&device));
    assert!(real.movers.usage(&claimed, None).await.unwrap().user.is_some(), "the mover has it open");
    let claimer = "over".parse().unwrap();
    assert_eq!(real.movers.usage(&claimed, Some(&claimer)).await.unwrap().user, None);
    done(&mut mover, Request::Overwrite).await;
    assert!(is_restored(&real, &device));
    let progress = *mover.progress().borrow();
    assert_eq!((progress.done_bytes, progress.total_bytes), (2 * DISK_BYTES, 2 * DISK_BYTES));
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn what_the_host_uses_is_not_claimed() {
    let real = Real::new();
    let device = device(&real, "device");
    let claimed = || OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.path).unwrap();
    let (mut mover, manifest) = published(&real, "claims").await;
    let numbers = numbers(&mut mover, &device.path).await;
    let volumes = [onto(&manifest, &device.path, numbers)];
    let user = claimed();
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::InUseElsewhere);
    drop(user);
    read(&mut mover, &manifest, &volumes).await;
    let user = claimed();
    assert_eq!(refused(&mut mover, Request::Claim).await.code, Code::InUseElsewhere);
    drop(user);
    assert_eq!(refused(&mut mover, Request::Overwrite).await.code, Code::Internal);
    assert!(is_old(&device));
    read(&mut mover, &manifest, &volumes).await;
    done(&mut mover, Request::Claim).await;
    let mounted = Command::new("swapon").arg(&device.path).stderr(Stdio::null()).status().unwrap();
    let ours = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.path).unwrap_err();
    assert!(!mounted.success() && ours.raw_os_error() == Some(libc::EBUSY), "it is the mover's alone");
    done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
    drop(claimed());
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_path_that_leads_elsewhere_by_then_leads_nowhere() {
    let real = Real::new();
    let (device, other) = (device(&real, "device"), device(&real, "other"));
    let path: PathBuf = real.folder.path().join("by-id");
    let lead_to = |target: &Path| {
        fs::remove_file(&path).unwrap_or_default();
        symlink(target, &path).unwrap();
    };
    lead_to(&device.path);
    let (mut mover, manifest) = published(&real, "paths").await;
    let volumes = [onto(&manifest, &path, numbers(&mut mover, &path).await)];
    read(&mut mover, &manifest, &volumes).await;
    lead_to(&other.path);
    assert_eq!(refused(&mut mover, Request::Claim).await.code, Code::SourceChanged);
    lead_to(&device.path);
    read(&mut mover, &manifest, &volumes).await;
    done(&mut mover, Request::Claim).await;
    lead_to(&other.path);
    done(&mut mover, Request::Overwrite).await;
    assert!(is_restored(&real, &device) && is_old(&other), "what was claimed is written to");
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_damaged_backup_or_a_device_that_is_too_small_changes_nothing() {
    let real = Real::new();
    let (device, small) = (device(&real, "device"), Loop::new(real.folder.path().join("small"), DISK_BYTES - 512, OLD));
    let (mut mover, manifest) = published(&real, "damaged").await;
    let numbers = numbers(&mut mover, &device.path).await;
    let on_small = longshore::mover::block_device::look(&small.path).await.unwrap();
    let BlockDevice::Bare { numbers: small_numbers, .. } = on_small else { panic!("{on_small:?}") };
    let refusal = refused(&mut mover, restore(&manifest, &[onto(&manifest, &small.path, small_numbers)])).await;
    assert_eq!(refusal.code, Code::DiskUnsupported, "{refusal:#}");
    let file = real.folder.path().join("device");
    assert_eq!(
        refused(&mut mover, Request::LookAtDevices { paths: vec![file] }).await.code,
        Code::DiskUnsupported,
        "a file is no block device"
    );
    real.damage(&manifest);
    let volumes = [onto(&manifest, &device.path, numbers)];
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::BackupDamaged);
    assert_eq!(refused(&mut mover, Request::Claim).await.code, Code::Internal);
    assert!(is_old(&device) && small.content().iter().all(|byte| *byte == OLD));
    mover.stop().await.unwrap();
}

/// A process with a block device open under another name, in a `/dev` of its own, as QEMU has it.
struct Elsewhere(Child);

impl Elsewhere {
    fn of(numbers: DeviceNumbers) -> Self {
        let (major, minor) = (nix::sys::stat::major(numbers.device), nix::sys::stat::minor(numbers.device));
        let script =
            format!("mount -t tmpfs dev /dev && mknod /dev/disk b {major} {minor} && exec sleep 600 9</dev/disk");
        let process = Command::new("unshare").args(["--mount", "sh", "-c", &script]).spawn().unwrap();
        let link = format!("/proc/{}/fd/9", process.id());
        let began = Instant::now();
        while !fs::read_link(&link).is_ok_and(|leads_to| leads_to == Path::new("/dev/disk")) {
            assert!(began.elapsed() < SOON, "it has nothing open");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self(process)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn who_has_a_device_open_is_found_wherever_it_has_its_name() {
    let real = Real::new();
    let (device, other) = (device(&real, "device"), device(&real, "other"));
    let mut mover = started(&real, "looks").await;
    let (ours, theirs) = (numbers(&mut mover, &device.path).await, numbers(&mut mover, &other.path).await);
    let user_of = |numbers| {
        let movers = &real.movers;
        async move {
            let user = movers.usage(&[numbers], None).await.unwrap().user;
            user.map(|(device, user)| match user {
                mover::User::Process(who) | mover::User::Device(who) => (device, who),
            })
        }
    };
    assert_eq!(user_of(ours).await, None);
    let user = User::of(&device.path, "raw");
    let (found, who) = user_of(ours).await.unwrap();
    assert!(found == ours && who.contains("qemu-io"), "{who}");
    assert_eq!(user_of(theirs).await, None);
    drop(user);
    let elsewhere = Elsewhere::of(ours);
    let (found, who) = user_of(ours).await.unwrap();
    assert!(found == ours && who.contains(&elsewhere.0.id().to_string()), "{who}");
    drop(elsewhere);
    assert_eq!(user_of(ours).await, None);
    // A partition of it is a part of it, and it of them.
    let partition = DeviceNumbers { device: u64::MAX, whole: ours.device, sequence: None };
    let open = File::open(&device.path).unwrap();
    assert_eq!(user_of(partition).await.unwrap().0, partition);
    drop(open);
    // One that nobody has open, by a name of the kernel's own.
    let on_top = Loop::of(device.path.clone());
    let what = format!("the loop device `{}`", on_top.path.file_name().unwrap().to_str().unwrap());
    assert_eq!(user_of(ours).await, Some((ours, what)));
    assert_eq!(user_of(theirs).await, None);
    drop(on_top);
    assert_eq!(user_of(ours).await, None);
    mover.stop().await.unwrap();
}
