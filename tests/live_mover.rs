//! The real mover, process and all, against real directories. Needs root, qemu-utils, nbdkit; fails where one is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "live_mover/chain.rs"]
mod chain;
#[path = "contract/chains.rs"]
mod chains;
#[path = "contract/mover.rs"]
mod contract;
#[path = "live_mover/delete.rs"]
mod delete;
#[path = "live_mover/device.rs"]
mod device;
#[path = "live_mover/exchange.rs"]
mod exchange;
#[path = "support/loops.rs"]
mod loops;
#[path = "live_mover/push.rs"]
mod push;
#[path = "live_mover/push_changes.rs"]
mod push_changes;
#[path = "live_mover/restore.rs"]
mod restore;
#[path = "live_mover/validate.rs"]
mod validate;
#[path = "contract/volumes.rs"]
mod volumes;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use contract::{SOON, World, done, eventually, opened, publish, record, refused, sealed, stage};
use longshore::failure::{Code, Failure};
use longshore::host::mover::{Mover, Movers, ProcessMovers};
use longshore::model::id::{BackupId, InstanceId};
use longshore::model::instance::{DiskSource, ImageFormat};
use longshore::model::manifest::Manifest;
use longshore::model::pin::Pin;
use longshore::model::repository::{Repository, RepositoryType};
use longshore::mover::protocol::{ByteSource, CopiedDisk, CopyDisk, CredentialPlaces, Reply, Request};
use longshore::mover::share::{self, Listed};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Bytes of the disk that is backed up.
const DISK_BYTES: u64 = 8 << 20;

struct Real {
    /// What is to be there for as long as this is, and goes first.
    kept: std::sync::Mutex<Vec<Box<dyn std::any::Any>>>,
    folder: tempfile::TempDir,
    movers: ProcessMovers,
    repository: Repository,
}

/// A directory repository has no credentials.
fn nowhere() -> CredentialPlaces {
    CredentialPlaces { dir: "/nowhere".into(), host_key: "/nowhere/host.key".into() }
}

impl Real {
    fn new() -> Self {
        Self::with_share(|_| {})
    }

    /// `mount` is given the share's directory before a repository is made in it.
    fn with_share(mount: impl FnOnce(&Path)) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the real mover needs root");
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir(&share).unwrap();
        mount(&share);
        let repository = Repository {
            id: share::init(&share).unwrap(),
            repository_type: RepositoryType::Directory,
            address: share.to_str().unwrap().to_owned(),
            options: Vec::new(),
            credentials: None,
        };
        let mut disk: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512 * 7 + at) as u8).collect();
        disk[2 << 20..5 << 20].fill(0);
        fs::write(folder.path().join("disk.raw"), disk).unwrap();
        let movers = ProcessMovers::new(env!("CARGO_BIN_EXE_longshore").into(), folder.path().join("run"), nowhere());
        Self { kept: std::sync::Mutex::default(), folder, movers, repository }
    }

    fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    fn instance(&self, instance: InstanceId) -> PathBuf {
        self.share().join(share::INSTANCES).join(instance.to_string())
    }

    /// A disk that takes minutes to read, served by a process of its own.
    fn slow_disk(&self) -> (CopyDisk, Server) {
        let socket = self.folder.path().join("slow.sock");
        let server = Command::new("nbdkit")
            .args(["--foreground", "--filter=delay", "--unix"])
            .arg(&socket)
            .args(["pattern", "256M", "rdelay=200ms"])
            // It complains of every connection that a killed mover leaves in the middle of a read.
            .stderr(Stdio::null())
            .spawn()
            .expect("nbdkit is missing");
        let server = Server(server);
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < SOON, "nbdkit does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        let source = ByteSource::Export { socket, name: String::new(), dirty: None };
        (
            CopyDisk {
                target: "vda".parse().unwrap(),
                source,
                virtual_bytes: None,
                format: None,
                base: None,
                since: None,
            },
            server,
        )
    }

    /// Processes that have a word of this world in their command line: movers, and the tools they started.
    fn processes(&self) -> Vec<(i32, String)> {
        let word = self.folder.path().join("run").to_str().unwrap().to_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // By its mounts too: a tool's command line need not name us.
            let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
            if line.contains(&word) || mounts.contains(&word) {
                found.push((pid, line));
            }
        }
        found.sort();
        found
    }

    /// The outer and the inner process of the only mover: parent and child.
    fn outer_and_inner(&self) -> (Pid, Pid) {
        let movers: Vec<_> = self.processes().into_iter().filter(|(_, line)| line.contains(" mover ")).collect();
        let parent = |pid: i32| -> i32 {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
        };
        let inner =
            movers.iter().map(|(pid, _)| *pid).find(|pid| movers.iter().any(|(other, _)| parent(*pid) == *other));
        let inner = inner.unwrap_or_else(|| panic!("no mover in {movers:?}"));
        (Pid::from_raw(parent(inner)), Pid::from_raw(inner))
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let began = Instant::now();
            while !self.processes().is_empty() {
                assert!(began.elapsed() < Duration::from_secs(20), "left behind: {:?}", self.processes());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // What a test has mounted there would keep the folder from being removed.
        while nix::mount::umount2(&self.share(), nix::mount::MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// A server that ends with its test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl World for Real {
    fn movers(&self) -> &dyn Movers {
        &self.movers
    }

    fn repository(&self) -> Repository {
        self.repository.clone()
    }

    fn disk(&self) -> CopyDisk {
        let source = DiskSource::File { path: self.folder.path().join("disk.raw"), format: ImageFormat::Raw };
        CopyDisk {
            target: "vda".parse().unwrap(),
            source: ByteSource::Volume { source, bitmap: None },
            virtual_bytes: Some(DISK_BYTES),
            format: Some(ImageFormat::Raw),
            base: None,
            since: None,
        }
    }

    fn staging(&self) -> Vec<String> {
        let instances = fs::read_dir(self.share().join(share::INSTANCES)).unwrap();
        let entries = instances.flat_map(|instance| fs::read_dir(instance.unwrap().path()).unwrap());
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            // The last is no work in progress, but what is left of backups that are no more.
            .filter(|name| name.starts_with('.') && name != ".highest-number")
            .collect()
    }

    fn published(&self) -> Vec<Manifest> {
        let listed = share::list_backups(&self.share()).unwrap();
        listed
            .into_iter()
            .map(|entry| match entry {
                Listed::Backup(manifest) => manifest,
                Listed::Damaged { directory, failure } => panic!("{directory}: {failure:#}"),
            })
            .collect()
    }

    fn is_busy(&self) -> bool {
        !self.processes().is_empty()
    }

    fn volume(&self) -> PathBuf {
        volumes::volume(self.folder.path(), DISK_BYTES)
    }

    fn stands(&self, path: &Path) -> contract::Stands {
        volumes::stands(path, &self.folder.path().join("disk.raw"))
    }

    fn put(&self, volume: &Path, path: &Path) {
        std::fs::copy(volume, path).unwrap();
    }

    fn rename(&self, from: &Path, to: &Path) {
        std::fs::rename(from, to).unwrap();
    }

    fn use_volume(&self, path: &Path) -> Box<dyn std::any::Any> {
        Box::new(volumes::User::of(path, "qcow2"))
    }

    fn damage(&self, manifest: &Manifest) {
        let directory = self.instance(manifest.instance_id).join(manifest.backup_id.to_string());
        let disk = &manifest.disks[0];
        volumes::flip(&directory.join(&disk.file), disk.file_bytes / 2);
    }

    fn put_child(&self, parent: &Manifest) -> Manifest {
        chains::put_next(&self.share().join(share::INSTANCES), parent)
    }

    fn pin(&self, manifest: &Manifest, pinned: bool) {
        match pinned {
            true => share::pin(&self.share(), manifest.backup_id, &Pin::default()).unwrap(),
            false => assert!(share::unpin(&self.share(), manifest.backup_id).unwrap()),
        }
    }
}

macro_rules! contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::$name(&Real::new()).await;
        })*
    };
}

contract! {
    backups_are_published_in_order_and_leave_nothing
    a_discarded_backup_leaves_nothing
    what_is_not_the_repository_that_was_meant_is_refused
    a_lease_has_one_holder
    a_published_backup_is_neither_staged_nor_published_again
    a_manifest_that_names_what_is_not_there_is_not_published
    what_was_not_copied_is_not_sealed
    a_volume_is_not_read_without_its_key
    records_have_plain_names
    a_dropped_mover_is_gone_and_a_stopped_one_answers_no_more
    a_published_backup_takes_the_place_of_the_volume
    new_volumes_that_are_not_wanted_are_removed_and_the_old_ones_stay
    what_cannot_be_restored_is_refused_and_nothing_is_made
    a_volume_that_is_in_use_is_neither_restored_nor_exchanged
    a_repository_is_looked_at_and_its_damage_is_named
    what_is_dead_is_swept_and_what_is_alive_is_left
}

macro_rules! deletion_contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::deletion::$name(&Real::new()).await;
        })*
    };
}

deletion_contract! {
    backups_go_leaf_first_and_their_numbers_are_not_given_again
    a_child_takes_over_what_its_parent_held
    a_pinned_backup_stays_and_what_is_not_leased_as_well
    what_cannot_be_merged_is_refused_and_nothing_is_made
}

macro_rules! devices_contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::devices::$name(&Real::new()).await;
        })*
    };
}

devices_contract! {
    a_device_is_written_over_once_it_was_read_and_claimed_and_never_twice
    a_device_that_is_in_use_is_not_written_over
    what_was_read_is_not_written_once_something_else_was_asked_for
}

macro_rules! new_files_contract {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            contract::new_files::$name(&Real::new()).await;
        })*
    };
}

new_files_contract! {
    new_files_get_their_names_all_at_once_and_lose_them_again
    no_new_file_is_made_where_something_is_or_outside_of_the_roots
    records_are_read
    what_was_made_is_known_again_and_nothing_else_is_taken_for_it
}

#[tokio::test]
async fn a_published_backup_holds_the_disk_and_what_the_manifest_says() {
    let real = Real::new();
    let (instance, backup) = (InstanceId::draw(), BackupId::draw());
    let mut mover = opened(&real, "whole").await;
    let mut manifest = sealed(&real, &mut mover, instance, backup).await;
    manifest.number = publish(&mut mover, &manifest).await;
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() });
    mover.stop().await.unwrap();

    let directory = real.instance(instance).join(backup.to_string());
    let mut names: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["README-RESTORE.txt", "domain.xml", "manifest.json", "vda.blocks", "vda.qcow2"]);
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "raw"])
        .arg(directory.join("vda.qcow2"))
        .arg(real.folder.path().join("disk.raw"))
        .output()
        .expect("qemu-img is missing");
    assert!(compared.status.success(), "{compared:?}");
    let disk = &manifest.disks[0];
    assert_eq!(fs::metadata(directory.join(&disk.file)).unwrap().len(), disk.file_bytes);
    assert!(disk.data_bytes <= DISK_BYTES - (3 << 20), "3 MiB of zeros are not stored: {disk:?}");
    for record in &manifest.records {
        let content = fs::read(directory.join(&record.file)).unwrap();
        assert_eq!(blake3::hash(&content).to_hex().as_str(), record.blake3, "{}", record.file);
    }
    assert_eq!(share::find_backup(&real.share(), backup).unwrap(), manifest);
    assert!(real.share().join(share::LOCKS).join(instance.to_string()).join("1/released").exists());
    assert_eq!(fs::read_dir(real.share()).unwrap().count(), 3, "no probe is left");
    assert_eq!(fs::read_dir(real.folder.path().join("run")).unwrap().count(), 0, "nor a directory of the mover");
}

/// Leaves a mover in the middle of a copy that would take minutes.
async fn copying(real: &Real, name: &str, instance: InstanceId) -> (Box<dyn Mover>, Server) {
    let mut mover = opened(real, name).await;
    done(&mut mover, contract::lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    let (disk, server) = real.slow_disk();
    let mut progress = mover.progress();
    let copy = mover.ask(Request::Copy { disks: vec![disk] }, SOON);
    tokio::select! {
        answer = copy => panic!("the copy ended: {answer:?}"),
        moved = progress.wait_for(|progress| progress.done_bytes > 0) => { moved.unwrap(); }
    }
    (mover, server)
}

#[tokio::test]
async fn a_copy_that_nobody_waits_for_is_broken_off_and_discarded() {
    let real = Real::new();
    let instance = InstanceId::draw();
    let (mut mover, _server) = copying(&real, "broken-off", instance).await;
    let began = Instant::now();
    done(&mut mover, Request::Discard).await;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(real.staging().is_empty());
    done(&mut mover, stage(instance, BackupId::draw())).await;
    done(&mut mover, record()).await;
    done(&mut mover, Request::Discard).await;
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_mover_killed_while_it_copies_leaves_no_process_and_no_mount() {
    for inside in [false, true] {
        let real = Real::new();
        let (mut mover, _server) = copying(&real, "killed", InstanceId::draw()).await;
        let lost = mover.lost().unwrap();
        let (outer, inner) = real.outer_and_inner();
        kill(if inside { inner } else { outer }, Signal::SIGKILL).unwrap();
        assert_eq!(tokio::time::timeout(SOON, lost).await.unwrap().unwrap().code, Code::MoverDied);
        assert_eq!(refused(&mut mover, Request::Discard).await.code, Code::MoverDied);
        eventually("all processes of the mover are gone", || real.processes().is_empty()).await;
        assert_eq!(real.staging().len(), 1, "what it had written stays for the next holder of the lease");
        mover.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_mover_that_hears_nothing_is_killed_when_it_is_stopped() {
    let real = Real::new();
    let mut mover = opened(&real, "deaf").await;
    let (_, inner) = real.outer_and_inner();
    kill(inner, Signal::SIGSTOP).unwrap();
    let failure = mover.ask(Request::Discard, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(failure.code, Code::MoverUnresponsive);
    mover.stop().await.unwrap();
    assert!(!real.is_busy());
}

#[tokio::test]
async fn links_on_the_share_lead_nowhere() {
    let real = Real::new();
    let elsewhere = real.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let instance = InstanceId::draw();
    let mut mover = opened(&real, "links").await;
    symlink(&elsewhere, real.share().join(share::LOCKS).join(instance.to_string())).unwrap();
    assert_eq!(refused(&mut mover, contract::lease(instance)).await.code, Code::RepositoryUnsafe);

    let instance = InstanceId::draw();
    done(&mut mover, contract::lease(instance)).await;
    symlink(&elsewhere, real.instance(instance)).unwrap();
    assert_eq!(refused(&mut mover, stage(instance, BackupId::draw())).await.code, Code::RepositoryUnsafe);
    fs::remove_file(real.instance(instance)).unwrap();

    done(&mut mover, stage(instance, BackupId::draw())).await;
    fs::rename(real.instance(instance), real.share().join("moved")).unwrap();
    symlink(&elsewhere, real.instance(instance)).unwrap();
    done(&mut mover, record()).await;
    let copied = mover.ask(Request::Copy { disks: vec![real.disk()] }, SOON).await;
    assert!(copied.is_ok(), "{copied:?}");
    mover.stop().await.unwrap();
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "everything went where the descriptor leads");

    let real = Real::new();
    fs::remove_dir(real.share().join(share::INSTANCES)).unwrap();
    symlink("/", real.share().join(share::INSTANCES)).unwrap();
    let mut mover = contract::started(&real, "links").await;
    let request = Request::Open { repository: real.repository(), same_device_ok: true, need_bytes: 0, writer: None };
    assert_eq!(refused(&mut mover, request).await.code, Code::RepositoryUnsafe);
    mover.stop().await.unwrap();
}

/// Puts a link in the place of every image that appears below `instances`, as fast as it can, until it is dropped.
struct Planter {
    stop: Arc<AtomicBool>,
    planted: Arc<AtomicU32>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Planter {
    fn new(instances: PathBuf, leads_to: PathBuf) -> Self {
        let (stop, planted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stopped, count) = (stop.clone(), planted.clone());
        let thread = std::thread::spawn(move || {
            let link = instances.join(".link");
            while !stopped.load(Ordering::SeqCst) {
                let directories = fs::read_dir(&instances).unwrap().flatten().filter(|entry| entry.path() != link);
                for staging in directories.filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten().flatten() {
                    let image = staging.path().join("vda.qcow2");
                    if fs::symlink_metadata(&image).is_ok_and(|found| found.is_file()) {
                        symlink(&leads_to, &link).unwrap();
                        match fs::rename(&link, &image) {
                            Ok(()) => drop(count.fetch_add(1, Ordering::SeqCst)),
                            // The staging directory went away under it.
                            Err(_) => fs::remove_file(&link).unwrap(),
                        }
                    }
                }
            }
        });
        Self { stop, planted, thread: Some(thread) }
    }

    fn planted(&self) -> u32 {
        self.planted.load(Ordering::SeqCst)
    }
}

impl Drop for Planter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ended = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[tokio::test]
async fn a_link_in_the_place_of_an_image_is_not_written_through() {
    let real = Real::new();
    let precious = real.folder.path().join("precious");
    let content = vec![7; 4 << 20];
    fs::write(&precious, &content).unwrap();
    let instance = InstanceId::draw();
    let mut mover = opened(&real, "planted").await;
    done(&mut mover, contract::lease(instance)).await;
    let planter = Planter::new(real.share().join(share::INSTANCES), precious.clone());
    for _ in 0..10 {
        let before = planter.planted();
        done(&mut mover, stage(instance, BackupId::draw())).await;
        let copied = mover.ask(Request::Copy { disks: vec![real.disk()] }, SOON).await;
        assert!(fs::read(&precious).unwrap() == content, "a file of the host was written to");
        eventually("the link is there", || planter.planted() > before).await;
        if copied.is_ok() {
            // The link came after the last open: then it is found out at the latest here.
            assert_eq!(refused(&mut mover, Request::Seal).await.code, Code::RepositoryUnsafe);
        }
        done(&mut mover, Request::Discard).await;
    }
    drop(planter);
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_lease_that_could_not_be_given_back_is_not_said_to_be() {
    let real = Real::new();
    let instance = InstanceId::draw();
    let mut mover = opened(&real, "gives-back").await;
    done(&mut mover, contract::lease(instance)).await;
    fs::remove_dir_all(real.share().join(share::LOCKS).join(instance.to_string()).join("1")).unwrap();
    for _ in 0..2 {
        assert_eq!(refused(&mut mover, Request::Release).await.code, Code::RepositoryIo);
    }
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn directories_of_movers_that_are_gone_are_swept_and_those_of_living_ones_are_not() {
    let real = Real::new();
    let run = real.folder.path().join("run");
    let mut mover = opened(&real, "lives").await;
    fs::create_dir(run.join("gone")).unwrap();
    assert_eq!(longshore::host::mover::sweep(&run).unwrap(), [run.join("gone")]);
    done(&mut mover, contract::lease(InstanceId::draw())).await;
    mover.stop().await.unwrap();
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
}

/// A share that misbehaves as it is told (`tests/lab/nasfs.py`). Needs the laboratory's Python: `scripts/lab`.
struct Faulty {
    real: Real,
    control: PathBuf,
    _server: Server,
}

impl Faulty {
    fn new() -> Self {
        let mut server = None;
        let mut control = PathBuf::new();
        let real = Real::with_share(|share| {
            let python = std::env::var("LONGSHORE_LAB_PYTHON").expect("LONGSHORE_LAB_PYTHON is not set: scripts/lab");
            let beside = |name: &str| share.with_file_name(name);
            fs::create_dir(beside("stored")).unwrap();
            control = beside("control.json");
            let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/nasfs.py");
            let mut command = Command::new(python);
            command.arg(program).arg(beside("stored")).arg(share).arg(&control);
            server = Some(Server(command.spawn().unwrap()));
            let began = Instant::now();
            let line = format!(" {} ", share.display());
            while !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&line) {
                assert!(began.elapsed() < SOON, "the share is not mounted");
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { real, control, _server: server.unwrap() }
    }

    fn orders(&self, orders: &str) {
        let new = self.control.with_extension("new");
        fs::write(&new, orders).unwrap();
        fs::rename(new, &self.control).unwrap();
    }

    /// A backup up to where it fails, `orders` given once the first bytes are copied.
    async fn fails(&self, orders: &str) -> (&'static str, Code) {
        self.fails_from(r#"{"bw_mb": 4}"#, orders).await
    }

    /// A backup up to where it fails, with `before` from the first record on and `orders` once the first bytes are copied; then
    /// nothing is published, and with the share well again nothing is left of it.
    async fn fails_from(&self, before: &str, orders: &str) -> (&'static str, Code) {
        let mut mover = opened(&self.real, "faulty").await;
        let (instance, backup) = (InstanceId::draw(), BackupId::draw());
        done(&mut mover, contract::lease(instance)).await;
        done(&mut mover, stage(instance, backup)).await;
        self.orders(before);
        // Whole pages, which stay in the cache as they were sent, whatever became of them on their way.
        let content = b"<domain/>".repeat(2000);
        done(&mut mover, Request::Record { file: "domain.xml".into(), content }).await;
        let mut progress = mover.progress();
        let copy = mover.ask(Request::Copy { disks: vec![self.real.disk()] }, SOON);
        let turn_bad = async {
            progress.wait_for(|progress| progress.data_bytes > 0).await.unwrap();
            self.orders(orders);
        };
        let (copied, ()) = tokio::join!(copy, turn_bad);
        let (word, failure) = match copied {
            Ok(Reply::Copied { disks, .. }) => self.fails_after(&disks, &mut mover, instance, backup).await,
            Ok(other) => panic!("{other:?}"),
            Err(failure) => ("copy", failure),
        };
        self.orders("{}");
        done(&mut mover, Request::Discard).await;
        done(&mut mover, Request::Release).await;
        done(&mut mover, Request::Close).await;
        mover.stop().await.unwrap();
        assert!(self.real.published().is_empty() && self.real.staging().is_empty());
        (word, failure.code)
    }

    /// The rest of a backup whose disks are copied, up to where it fails.
    async fn fails_after(
        &self,
        copied: &[CopiedDisk],
        mover: &mut Box<dyn Mover>,
        instance: InstanceId,
        backup: BackupId,
    ) -> (&'static str, Failure) {
        if let Err(failure) = mover.ask(Request::Compare, SOON).await {
            return ("compare", failure);
        }
        let files = match mover.ask(Request::Seal, SOON).await {
            Ok(Reply::Sealed { files }) => files,
            Ok(other) => panic!("{other:?}"),
            Err(failure) => return ("seal", failure),
        };
        let manifest = contract::manifest(self.real.repository.id, instance, backup, copied, &files);
        ("publish", refused(mover, Request::Publish { manifest: Box::new(manifest) }).await)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let share = self.real.share();
        let _unmounted = nix::mount::umount2(&share, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn what_goes_wrong_late_on_a_share_is_never_published() {
    let faulty = Faulty::new();
    let io = Code::RepositoryIo;
    assert_eq!(faulty.fails(r#"{"mode": "late", "file": "*.qcow2"}"#).await, ("copy", io));
    assert_eq!(faulty.fails(r#"{"mode": "late", "file": "*.blocks"}"#).await, ("copy", io));
    let full = r#"{"mode": "late", "file": "*.qcow2", "errno": "ENOSPC"}"#;
    assert_eq!(faulty.fails(full).await, ("copy", Code::RepositoryFull));
    assert_eq!(faulty.fails(r#"{"mode": "enospc_meta", "file": "*.qcow2"}"#).await, ("copy", Code::RepositoryFull));
    // From the beginning: that byte may be on its way before new orders are heard of.
    let flipped = r#"{"mode": "flip", "file": "*.qcow2", "offset": 5000000}"#;
    assert_eq!(faulty.fails_from(flipped, flipped).await, ("compare", Code::ContentMismatch));
}

#[tokio::test]
async fn what_is_beside_the_images_is_proven_too() {
    let faulty = Faulty::new();
    for (file, word) in
        [("vda.blocks", "seal"), ("domain.xml", "seal"), ("manifest.json*", "publish"), ("README*", "publish")]
    {
        for on in ["write", "read"] {
            let orders = format!(r#"{{"mode": "flip", "file": "{file}", "offset": 3, "on": "{on}"}}"#);
            assert_eq!(faulty.fails_from(&orders, &orders).await, (word, Code::ContentMismatch), "{orders}");
        }
    }
}

#[tokio::test]
async fn a_late_error_that_its_writer_is_not_told_is_heard_by_who_had_the_file_open_before() {
    let faulty = Faulty::new();
    let orders = r#"{"mode": "late", "file": "*.qcow2", "told": "others"}"#;
    assert_eq!(faulty.fails(orders).await, ("copy", Code::RepositoryIo));
}

#[tokio::test]
async fn an_old_manifest_that_cannot_be_read_stops_no_new_backup() {
    let faulty = Faulty::new();
    let (instance, old) = (InstanceId::draw(), BackupId::draw());
    for (backup, orders, number, warned) in [
        (old, "{}".to_owned(), 1, 0),
        (BackupId::draw(), format!(r#"{{"mode": "eio", "file": "*/{old}/manifest.json"}}"#), 2, 1),
    ] {
        let mut mover = opened(&faulty.real, "numbers").await;
        faulty.orders(&orders);
        let manifest = Box::new(sealed(&faulty.real, &mut mover, instance, backup).await);
        let reply = mover.ask(Request::Publish { manifest }, SOON).await.unwrap();
        let Reply::Published { number: given, warnings } = reply else { panic!("{reply:?}") };
        assert_eq!((given, warnings.len()), (number, warned), "{warnings:?}");
        done(&mut mover, Request::Release).await;
        mover.stop().await.unwrap();
    }
    faulty.orders("{}");
    assert_eq!(faulty.real.published().len(), 2);
}

#[tokio::test]
async fn a_sealing_that_nobody_waits_for_is_broken_off_and_sealed_no_more() {
    let faulty = Faulty::new();
    let real = &faulty.real;
    let mut mover = opened(real, "seals").await;
    let instance = InstanceId::draw();
    done(&mut mover, contract::lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    done(&mut mover, record()).await;
    mover.ask(Request::Copy { disks: vec![real.disk()] }, SOON).await.unwrap();
    // Slow enough for its check to be seen, which is then held until it is killed.
    faulty.orders(r#"{"delay_ms": 500}"#);
    let seal = mover.ask(Request::Seal, SOON);
    let check = || real.processes().into_iter().find(|(_, line)| line.starts_with("qemu-img check "));
    tokio::select! {
        answer = seal => panic!("the sealing ended: {answer:?}"),
        () = eventually("an image is checked", || check().is_some()) => {}
    }
    let (pid, _) = check().expect("the check ended");
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    faulty.orders("{}");
    assert_eq!(refused(&mut mover, Request::Seal).await.code, Code::Internal, "nothing is left to be sealed");
    done(&mut mover, Request::Discard).await;
    assert!(real.staging().is_empty());
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
    mover.stop().await.unwrap();
}

/// Mounts a small file system on a directory, for this test's thread and what it starts alone.
fn small_file_system(directory: &Path) {
    let none = None::<&Path>;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    nix::mount::mount(Some("small"), directory, Some("tmpfs"), MsFlags::empty(), Some("size=4m")).unwrap();
}

#[tokio::test]
async fn a_share_that_fills_up_fails_the_copy_as_full_and_can_be_cleaned() {
    let real = Real::with_share(small_file_system);
    let instance = InstanceId::draw();
    let mut mover = contract::started(&real, "full").await;
    let request =
        Request::Open { repository: real.repository(), same_device_ok: false, need_bytes: 1 << 20, writer: None };
    assert!(matches!(mover.ask(request, SOON).await.unwrap(), Reply::Opened { .. }), "it is a device of its own");
    done(&mut mover, contract::lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    let failure = refused(&mut mover, Request::Copy { disks: vec![real.disk()] }).await;
    assert_eq!(failure.code, Code::RepositoryFull, "{failure:#}");
    done(&mut mover, Request::Discard).await;
    assert!(real.staging().is_empty());
    done(&mut mover, Request::Release).await;
    done(&mut mover, Request::Close).await;
    fs::write(real.share().join("rest"), vec![1; 5 << 20]).unwrap_err();
    let request = Request::Open { repository: real.repository(), same_device_ok: false, need_bytes: 0, writer: None };
    assert_eq!(refused(&mut mover, request).await.code, Code::RepositoryFull, "the probe found it");
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_share_that_became_read_only_is_not_opened() {
    let real = Real::with_share(small_file_system);
    let none = None::<&Path>;
    nix::mount::mount(none, &real.share(), none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
    let mut mover = contract::started(&real, "read-only").await;
    let request = Request::Open { repository: real.repository(), same_device_ok: false, need_bytes: 0, writer: None };
    assert_eq!(refused(&mut mover, request).await.code, Code::RepositoryReadOnly);
    mover.stop().await.unwrap();
}

/// Makes a bind mount of the directory on itself, so that it is a mount of its own.
fn bind_on_itself(directory: &Path) {
    nix::mount::mount(Some(directory), directory, None::<&Path>, MsFlags::MS_BIND, None::<&Path>).unwrap();
}

#[tokio::test]
async fn a_share_that_is_mounted_read_only_here_is_not_written_to() {
    let real = Real::with_share(small_file_system);
    let none = None::<&Path>;
    bind_on_itself(&real.share());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(none, &real.share(), none, flags, none).unwrap();
    let mut mover = contract::started(&real, "read-only-bind").await;
    let request = Request::Open { repository: real.repository(), same_device_ok: true, need_bytes: 0, writer: None };
    assert_eq!(refused(&mut mover, request).await.code, Code::RepositoryReadOnly);
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_mounted_below_the_share_is_not_written_underneath() {
    for (name, mount) in [
        (
            share::INSTANCES,
            &(|path: &Path| {
                nix::mount::mount(Some("other"), path, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
            }) as &dyn Fn(&Path),
        ),
        (share::LOCKS, &|path: &Path| {
            let other = path.with_file_name("other");
            fs::create_dir(&other).unwrap();
            nix::mount::mount(Some(&other), path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>).unwrap();
        }),
    ] {
        let real = Real::with_share(small_file_system);
        mount(&real.share().join(name));
        let mut mover = contract::started(&real, "mounted-over").await;
        let request =
            Request::Open { repository: real.repository(), same_device_ok: true, need_bytes: 0, writer: None };
        let failure = refused(&mut mover, request).await;
        assert_eq!(failure.code, Code::RepositoryUnsafe, "{name}: {failure:#}");
        assert!(failure.text.contains("something is mounted below"), "{failure:#}");
        mover.stop().await.unwrap();
    }
}

#[test]
fn a_repository_that_found_no_room_can_be_made_when_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    small_file_system(folder.path());
    let filling = folder.path().join("filling");
    fs::write(&filling, vec![1; 5 << 20]).unwrap_err();
    assert_eq!(share::init(folder.path()).unwrap_err().code, Code::RepositoryFull);
    fs::remove_file(&filling).unwrap();
    // Another test's process that is just being started may have it open for a moment.
    let began = Instant::now();
    while nix::sys::statvfs::statvfs(folder.path()).unwrap().blocks_available() == 0 {
        assert!(began.elapsed() < SOON, "there is still no room");
        std::thread::sleep(Duration::from_millis(20));
    }
    share::init(folder.path()).unwrap();
    nix::mount::umount(folder.path()).unwrap();
}

#[tokio::test]
async fn a_mover_without_root_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["mover", "/run/nowhere", "/nowhere", "/nowhere/host.key"])
        .uid(65534)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("needs to be root"), "{said:?}");
}

#[tokio::test]
async fn a_program_that_is_no_mover_is_found_out() {
    let real = Real::new();
    let movers = ProcessMovers::new("/bin/true".into(), real.folder.path().join("run"), nowhere());
    assert_eq!(movers.start(&"x".parse().unwrap()).await.err().unwrap().code, Code::MoverDied);
    let movers = ProcessMovers::new("/bin/true".into(), Path::new("/").join("a".repeat(100)), nowhere());
    let failure = movers.start(&"x".parse().unwrap()).await.err().unwrap();
    assert_eq!(failure.code, Code::HostUnfit);
    assert!(failure.text.contains("too long"), "{failure:#}");
}
