//! The real mover on real NFS, CIFS and CephFS shares: what only a network share can do to it. Runs in a virtual host, whose kernel has
//! those file systems, between `tests/lab/shares` and `tests/lab/ceph-share`, as scripts/test does it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "contract/chains.rs"]
#[allow(dead_code)] // As below.
mod chains;
#[path = "contract/mover.rs"]
#[allow(dead_code)] // What is asked of a mover wherever its repository is; here a part of it.
mod contract;
#[path = "contract/volumes.rs"]
#[allow(dead_code)] // Likewise.
mod volumes;

#[path = "support/logical.rs"]
mod logical;
#[path = "support/loops.rs"]
mod loops;

#[path = "live_shares/cephfs.rs"]
mod cephfs;
#[path = "live_shares/lvm.rs"]
mod lvm;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use contract::{SOON, World, deletion, done, eventually, opened, started};
use longshore::failure::Code;
use longshore::host::mover::{Mover, Movers, ProcessMovers};
use longshore::message::job::{JobMessage, RepositoryPart};
use longshore::model::id::{BackupId, InstanceId, JobId, RepositoryId};
use longshore::model::instance::{DiskSource, ImageFormat};
use longshore::model::manifest::Manifest;
use longshore::model::pin::Pin;
use longshore::model::repository::{
    Credentials, MountOption, Repository, RepositoryType, parse_address, parse_options,
};
use longshore::mover::protocol::{ByteSource, CopyDisk, CredentialPlaces, Reply, Request};
use longshore::mover::sealed::{self, HostKey};
use longshore::mover::share::{self, Listed};

/// Bytes of the disk that is backed up.
const DISK_BYTES: u64 = 2 << 20;
/// The mount helper's limit and some.
const MOUNT_GIVEN_UP: Duration = Duration::from_secs(90);

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("`{name}` is not set: run this through tests/lab/shares and tests/lab/ceph-share"))
}

fn places(folder: &Path) -> CredentialPlaces {
    CredentialPlaces { dir: folder.join("credentials"), host_key: folder.join("host.key") }
}

/// A repository on a share of its own type, in a folder of the share that is this test's.
struct Remote {
    folder: tempfile::TempDir,
    movers: ProcessMovers,
    repository: Repository,
    served: PathBuf,
}

impl Remote {
    /// A repository below the export `good`.
    fn nfs() -> Self {
        Self::on(RepositoryType::Nfs, "127.0.0.1:/good", "vers=4.2", "good")
    }

    fn cifs() -> Self {
        Self::on(RepositoryType::Cifs, "//127.0.0.1/good", "vers=3.1.1", "good")
    }

    fn ceph() -> Self {
        Self::on(RepositoryType::Ceph, &format!("{}:/good", variable("LONGSHORE_LAB_CEPH_MONITOR")), "", "ceph/good")
    }

    /// `address` is that of what is served from the folder `export`.
    fn on(repository_type: RepositoryType, address: &str, options: &str, export: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("ls").tempdir().unwrap();
        let served =
            PathBuf::from(variable("LONGSHORE_SHARES_DIR")).join(export).join(folder.path().file_name().unwrap());
        fs::create_dir(&served).unwrap();
        fs::write(folder.path().join("disk.raw"), disk()).unwrap();
        let places = places(folder.path());
        fs::create_dir(&places.dir).unwrap();
        let (program, run) = (env!("CARGO_BIN_EXE_longshore").into(), folder.path().join("run"));
        let id = share::init(&served).unwrap();
        let address = format!("{address}/{}", served.file_name().unwrap().to_str().unwrap());
        let mut remote = Self {
            movers: ProcessMovers::new(program, run, places),
            repository: repository(repository_type, &address, options, id),
            folder,
            served,
        };
        let of = |user, secret| (variable(user), variable(secret));
        remote.repository.credentials = match repository_type {
            RepositoryType::Nfs | RepositoryType::Directory => None,
            RepositoryType::Cifs => {
                let (user, password) = of("LONGSHORE_SHARES_USER", "LONGSHORE_SHARES_PASSWORD");
                Some(remote.credentials("nas", &format!("username={user}\npassword={password}\n")))
            }
            RepositoryType::Ceph => {
                let (name, secret) = of("LONGSHORE_LAB_CEPH_USER", "LONGSHORE_LAB_CEPH_SECRET");
                Some(remote.credentials("ceph", &format!("name={name}\nsecret={secret}\n")))
            }
        };
        remote
    }

    /// The host has a file of that name that says so.
    fn credentials(&self, name: &str, text: &str) -> Credentials {
        let file = self.folder.path().join("credentials").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        Credentials::Reference { name: name.to_owned() }
    }

    fn instances(&self) -> PathBuf {
        self.served.join(share::INSTANCES)
    }

    async fn open(&self, repository: Repository) -> (Box<dyn Mover>, Result<Reply, longshore::failure::Failure>) {
        let mut mover = started(self, "opens").await;
        let request = Request::Open { repository, same_device_ok: false, need_bytes: 1, writer: None };
        let answer = mover.ask(request, MOUNT_GIVEN_UP + SOON).await;
        (mover, answer)
    }

    /// Opening each fails with its code and leaves nothing mounted, and none keeps the mover from opening the right one.
    async fn refuses(&self, wrong: Vec<(Repository, Code)>) {
        let mut mover = started(self, "opens").await;
        let open = |repository| Request::Open { repository, same_device_ok: false, need_bytes: 1, writer: None };
        for (repository, code) in wrong {
            let shown = format!("{} with {:?}", repository.address, repository.options);
            let answer = mover.ask(open(repository), MOUNT_GIVEN_UP + SOON).await;
            let failure = answer.map(|reply| panic!("{shown}: {reply:?}")).unwrap_err();
            assert_eq!(failure.code, code, "{shown}: {failure:#}");
            for secret in ["LONGSHORE_SHARES_PASSWORD", "LONGSHORE_LAB_CEPH_SECRET"] {
                assert!(!format!("{failure:#}").contains(variable(secret).trim()), "{failure:#}");
            }
            assert_eq!(network_mounts(self.folder.path()), Vec::<String>::new(), "{shown}");
        }
        mover.ask(open(self.repository()), SOON).await.unwrap();
        mover.stop().await.unwrap();
        assert_eq!(network_mounts(self.folder.path()), Vec::<String>::new());
    }
}

/// Sectors that differ, with zeros amidst.
fn disk() -> Vec<u8> {
    let sector = |number: u64| [number.to_be_bytes(); 64].concat();
    let mut disk: Vec<u8> = (0..DISK_BYTES / 512).flat_map(sector).collect();
    disk[512 << 10..1280 << 10].fill(0);
    disk
}

fn repository(repository_type: RepositoryType, address: &str, options: &str, id: RepositoryId) -> Repository {
    Repository {
        id,
        repository_type,
        address: parse_address(repository_type, address).unwrap(),
        options: parse_options(options).unwrap(),
        credentials: None,
    }
}

/// Network shares below `folder` in the mount namespace of any process.
fn network_mounts(folder: &Path) -> Vec<String> {
    let below = format!(" {}/", folder.display());
    let tables = shown_of_processes("mountinfo");
    let lines: Vec<String> = tables.iter().flat_map(|table| table.lines().map(str::to_owned)).collect();
    lines
        .into_iter()
        .filter(|line| line.contains(&below) && [" - nfs", " - cifs", " - ceph"].iter().any(|kind| line.contains(kind)))
        .collect()
}

/// A file of the share, opened where a mover has that mounted: by this host's one client of it.
fn open_on_the_mount(remote: &Remote, file: &Path) -> fs::File {
    let below = file.strip_prefix(&remote.served).unwrap();
    let run = format!("{}/", remote.folder.path().join("run").display());
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let mounted = processes.filter_map(|process| {
        let table = fs::read_to_string(process.join("mountinfo")).ok()?;
        let line = table
            .lines()
            .find(|line| [" - nfs", " - cifs"].iter().any(|kind| line.contains(kind)) && line.contains(&run))?;
        Some(process.join("root").join(line.split(' ').nth(4)?.strip_prefix('/')?))
    });
    mounted.filter_map(|mount| fs::File::open(mount.join(below)).ok()).next().expect("no mover has it mounted")
}

impl World for Remote {
    fn movers(&self) -> &dyn Movers {
        &self.movers
    }

    fn repository(&self) -> Repository {
        self.repository.clone()
    }

    fn disk(&self) -> CopyDisk {
        let path = self.folder.path().join("disk.raw");
        let bytes = fs::metadata(&path).unwrap().len();
        let source = DiskSource::File { path, format: ImageFormat::Raw };
        CopyDisk {
            target: "vda".parse().unwrap(),
            source: ByteSource::Volume { source, bitmap: None },
            virtual_bytes: Some(bytes),
            format: Some(ImageFormat::Raw),
            base: None,
            since: None,
        }
    }

    fn staging(&self) -> Vec<String> {
        let instances = fs::read_dir(self.instances()).unwrap();
        let entries = instances.flat_map(|instance| fs::read_dir(instance.unwrap().path()).unwrap());
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // The last is no work in progress, but what is left of backups that are no more.
        names.filter(|name| name.starts_with('.') && name != ".highest-number").collect()
    }

    fn published(&self) -> Vec<Manifest> {
        let backup = |entry| match entry {
            Listed::Backup(manifest) => manifest,
            Listed::Damaged { directory, failure } => panic!("{directory}: {failure:#}"),
        };
        share::list_backups(&self.served).unwrap().into_iter().map(backup).collect()
    }

    fn is_busy(&self) -> bool {
        !network_mounts(self.folder.path()).is_empty()
    }

    fn volume(&self) -> PathBuf {
        volumes::volume(self.folder.path(), DISK_BYTES)
    }

    fn stands(&self, path: &Path) -> contract::Stands {
        volumes::stands(path, &self.folder.path().join("disk.raw"))
    }

    fn put(&self, volume: &Path, path: &Path) {
        fs::copy(volume, path).unwrap();
    }

    fn rename(&self, from: &Path, to: &Path) {
        fs::rename(from, to).unwrap();
    }

    fn use_volume(&self, path: &Path) -> Box<dyn std::any::Any> {
        Box::new(volumes::User::of(path, "qcow2"))
    }

    fn damage(&self, manifest: &Manifest) {
        let directory = self.instances().join(manifest.instance_id.to_string()).join(manifest.backup_id.to_string());
        let disk = &manifest.disks[0];
        volumes::flip(&directory.join(&disk.file), disk.file_bytes / 2);
    }

    fn put_child(&self, parent: &Manifest) -> Manifest {
        chains::put_next(&self.instances(), parent)
    }

    fn pin(&self, manifest: &Manifest, pinned: bool) {
        match pinned {
            true => share::pin(&self.served, manifest.backup_id, &Pin::default()).unwrap(),
            false => assert!(share::unpin(&self.served, manifest.backup_id).unwrap()),
        }
    }
}

macro_rules! contract {
    ($share:ident: $($name:ident)*) => {
        mod $share {
            $(#[tokio::test]
            async fn $name() {
                super::contract::$name(&super::Remote::$share()).await;
            })*

            #[tokio::test]
            async fn a_child_takes_over_what_its_parent_held() {
                super::a_child_takes_over(&super::Remote::$share()).await;
            }
        }
    };
}

// What hangs on the share's own file system; that backups are whole and leave nothing is seen by whole jobs (live_share_jobs).
contract! { nfs:
    a_lease_has_one_holder
    a_published_backup_is_neither_staged_nor_published_again
    a_dropped_mover_is_gone_and_a_stopped_one_answers_no_more
    a_published_backup_takes_the_place_of_the_volume
}
contract! { cifs:
    a_lease_has_one_holder
    a_published_backup_is_neither_staged_nor_published_again
    a_dropped_mover_is_gone_and_a_stopped_one_answers_no_more
}
contract! { ceph:
    a_lease_has_one_holder
    a_published_backup_is_neither_staged_nor_published_again
}

/// As short as it can be: what does not hang on the share is tried elsewhere.
async fn a_child_takes_over(remote: &Remote) {
    let (mut mover, full) = contract::published(remote, "merges").await;
    let child = remote.put_child(&full);
    let merged = mover.ask(deletion::merge(&child, &full), SOON).await;
    assert!(matches!(merged, Ok(Reply::Merged { .. })), "{merged:?}");
    done(&mut mover, deletion::delete_merged(&child, &full)).await;
    done(&mut mover, Request::RemoveDeleted { instance: full.instance_id }).await;
    let left: Vec<_> = remote.published().iter().map(|left| (left.backup_id, left.parent())).collect();
    assert_eq!(left, [(child.backup_id, None)]);
    assert_eq!(remote.staging(), Vec::<String>::new());
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

/// What is on the server is what was on the disk, looked at past the mount.
async fn a_backup_is_whole(remote: &Remote) {
    let instance = InstanceId::draw();
    let mut mover = opened(remote, "whole").await;
    let manifest = contract::sealed(remote, &mut mover, instance, BackupId::draw()).await;
    contract::publish(&mut mover, &manifest).await;
    done(&mut mover, Request::Release).await;
    let closed = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(closed, Reply::Closed { warnings: Vec::new() });
    mover.stop().await.unwrap();
    let image = remote.instances().join(instance.to_string()).join(manifest.backup_id.to_string()).join("vda.qcow2");
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "qcow2"])
        .args([&remote.folder.path().join("disk.raw"), &image])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    assert!(!remote.is_busy());
}

/// As a validation may have it, or a restore by hand. The client keeps the file then, and the directory that it is in.
#[tokio::test]
async fn a_file_on_nfs_that_is_open_here_when_its_backup_is_deleted_is_in_nobodys_way() {
    let remote = Remote::nfs();
    let (mut mover, manifest) = contract::published(&remote, "open").await;
    let instance = manifest.instance_id;
    let directory = remote.instances().join(instance.to_string()).join(manifest.backup_id.to_string());
    let open = open_on_the_mount(&remote, &directory.join("vda.qcow2"));
    done(&mut mover, deletion::delete(&[&manifest])).await;
    let failure = contract::refused(&mut mover, Request::RemoveDeleted { instance }).await;
    assert_eq!(failure.code, Code::RepositoryIo, "it is told: {failure:#}");
    let is_kept = || {
        let left = remote.staging();
        assert!(left.len() == 1 && left[0].starts_with(".fenced-"), "{left:?}");
    };
    is_kept();
    done(&mut mover, Request::Release).await;
    done(&mut mover, contract::lease(instance)).await;
    is_kept();
    let next = contract::sealed(&remote, &mut mover, instance, BackupId::draw()).await;
    assert_eq!(contract::publish(&mut mover, &next).await, 2, "backups go on");
    drop(open);
    done(&mut mover, Request::RemoveDeleted { instance }).await;
    assert_eq!(remote.staging(), Vec::<String>::new());
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

/// Where the server refuses to replace what is open, Linux's client may remove it instead.
#[tokio::test]
async fn files_on_cifs_that_are_open_here_when_a_child_takes_over_cost_nothing() {
    let remote = Remote::cifs();
    let (mut mover, full) = contract::published(&remote, "inuse").await;
    let child = remote.put_child(&full);
    let held = chains::content(&remote.instances(), &child, "vda");
    let merged = mover.ask(deletion::merge(&child, &full), SOON).await;
    assert!(matches!(merged, Ok(Reply::Merged { .. })), "{merged:?}");
    let directory = remote.instances().join(full.instance_id.to_string()).join(child.backup_id.to_string());
    let open = ["vda.qcow2", Manifest::FILE].map(|file| open_on_the_mount(&remote, &directory.join(file)));
    let first = mover.ask(deletion::delete_merged(&child, &full), SOON).await;
    eprintln!("with its files open: {first:?}");
    if let Err(failure) = &first {
        assert_eq!(failure.code, Code::RepositoryIo, "it can be tried again: {failure:#}");
    }
    assert!(chains::content(&remote.instances(), &child, "vda") == held);
    drop(open);
    if first.is_err() {
        done(&mut mover, deletion::delete_merged(&child, &full)).await;
    }
    done(&mut mover, Request::RemoveDeleted { instance: full.instance_id }).await;
    let left: Vec<_> = remote.published().iter().map(|left| (left.backup_id, left.parent())).collect();
    assert_eq!(left, [(child.backup_id, None)]);
    assert!(chains::content(&remote.instances(), &child, "vda") == held);
    done(&mut mover, Request::Release).await;
    done(&mut mover, contract::lease(full.instance_id)).await;
    assert_eq!(remote.staging(), Vec::<String>::new());
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn a_backup_on_nfs_is_whole_by_an_ipv6_address_and_with_the_servers_own_choice_of_version() {
    a_backup_is_whole(&Remote::on(RepositoryType::Nfs, "[::1]:/good", "", "good")).await;
}

#[tokio::test]
async fn a_backup_on_cifs_is_whole_by_an_ipv6_address_and_encrypted() {
    a_backup_is_whole(&Remote::on(RepositoryType::Cifs, "//::1/good", "seal", "good")).await;
}

/// The job for `host` in whose credentials examples/seal_credentials.py has sealed `text`: by a library that knows nothing of us.
fn sealed_elsewhere(remote: &Remote, text: &str, host: &str, job_id: JobId) -> JobMessage {
    let key = HostKey::read_or_make(&places(remote.folder.path()).host_key).unwrap();
    let options: Vec<_> = remote.repository.options.iter().map(MountOption::to_element).collect();
    let job = serde_json::json!({
        "job_id": job_id.to_string(), "run": 1, "kind": "backup", "host": host, "instance": { "name": "web-1" }, "backup": {},
        "repository": {
            "id": remote.repository.id.to_string(), "type": "cifs", "address": remote.repository.address, "options": options.join(","),
        },
    });
    let file = remote.folder.path().join("job.json");
    fs::write(&file, job.to_string()).unwrap();
    let mut python = Command::new(variable("LONGSHORE_PYTHON"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/seal_credentials.py"))
        .arg(key.public().to_string())
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let printed = python.wait_with_output().unwrap();
    assert!(printed.status.success());
    serde_json::from_slice(&printed.stdout).unwrap()
}

#[tokio::test]
async fn credentials_that_python_sealed_to_this_host_open_a_share_and_those_for_another_job_host_or_share_do_not() {
    let mut remote = Remote::cifs();
    let (user, password) = (variable("LONGSHORE_SHARES_USER"), variable("LONGSHORE_SHARES_PASSWORD"));
    let text = format!("username={user}\npassword={password}\n");
    let right = sealed_elsewhere(&remote, &text, "kvm-07", JobId::draw());
    remote.repository = right.check().unwrap().repository;
    a_backup_is_whole(&remote).await;
    let on = |address: &str, options: &str| {
        let share =
            RepositoryPart { address: address.to_owned(), options: options.to_owned(), ..right.repository.clone() };
        JobMessage { repository: share, ..right.clone() }
    };
    for wrong in [
        JobMessage { job_id: JobId::draw().to_string(), ..right.clone() },
        JobMessage { host: "kvm-08".to_owned(), ..right.clone() },
        on("//127.0.0.1/read-only", &right.repository.options),
        on(&right.repository.address, "vers=3.1.1,seal"),
        sealed_elsewhere(&remote, "no line of credentials", "kvm-07", JobId::draw()),
    ] {
        let (mut mover, answer) = remote.open(wrong.check().unwrap().repository).await;
        assert_eq!(answer.unwrap_err().code, Code::CredentialsUnreadable);
        mover.stop().await.unwrap();
        assert!(!remote.is_busy());
    }
}

#[tokio::test]
async fn what_an_operator_gets_wrong_about_nfs_has_its_own_code() {
    let remote = Remote::nfs();
    let wrong = |address: &str, options: &str| repository(RepositoryType::Nfs, address, options, remote.repository.id);
    let with = Credentials::Reference { name: "missing".to_owned() };
    let wrong = vec![
        (wrong("192.0.2.9:/good", ""), Code::MountDenied),
        (wrong("127.0.0.1:/good", "vers=4.9"), Code::InvalidMountOption),
        (wrong("127.0.0.1:/good", "vers=2"), Code::InvalidMountOption),
        (wrong("127.0.0.1:/good", "nosuchoption"), Code::InvalidMountOption),
        (wrong("127.0.0.1:/good", "port=9"), Code::MountFailed),
        (wrong("127.0.0.1:/good", ""), Code::RepositoryNotFound),
        (Repository { credentials: Some(with), ..wrong("127.0.0.1:/good", "") }, Code::CredentialsUnreadable),
    ];
    remote.refuses(wrong).await;
}

#[tokio::test]
async fn what_an_operator_gets_wrong_about_cifs_has_its_own_code() {
    let remote = Remote::cifs();
    let right = remote.repository();
    let wrong = |address: &str, options: &str| Repository {
        credentials: right.credentials.clone(),
        ..repository(RepositoryType::Cifs, address, options, right.id)
    };
    let wrong = vec![
        (wrong("//127.0.0.1/good", "vers=9"), Code::InvalidMountOption),
        (wrong("//127.0.0.1/good", "nosuchoption"), Code::InvalidMountOption),
        (wrong("//127.0.0.1/good", "port=9"), Code::MountFailed),
        (Repository { credentials: None, ..right.clone() }, Code::MountDenied),
    ];
    remote.refuses(wrong).await;
}

#[tokio::test]
async fn a_server_that_takes_the_connection_and_says_nothing_is_given_up() {
    let remote = Remote::nfs();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = format!("vers=4.2,port={}", silent.local_addr().unwrap().port());
    let began = Instant::now();
    let wrong = repository(RepositoryType::Nfs, "127.0.0.1:/good", &options, remote.repository.id);
    remote.refuses(vec![(wrong, Code::MountTimedOut)]).await;
    assert!(began.elapsed() < MOUNT_GIVEN_UP, "{:?}", began.elapsed());
}

/// What every process here shows to every user: its command line, and where it sees what mounted.
fn shown_of_processes(file: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read(entry.path().join(file)).ok())
        .map(|shown| String::from_utf8_lossy(&shown).into_owned())
        .collect()
}

#[tokio::test]
async fn the_password_is_in_no_command_line_and_no_mount_table() {
    let mut remote = Remote::cifs();
    let (user, password) = (variable("LONGSHORE_SHARES_USER"), variable("LONGSHORE_SHARES_PASSWORD"));
    let word = password.trim();
    let key = HostKey::read_or_make(&places(remote.folder.path()).host_key).unwrap().public();
    let text = format!("username={user}\npassword={password}\n");
    let sealed = sealed::seal(&text, &key, String::new()).unwrap();
    remote.repository.credentials = Some(Credentials::Sealed(sealed));
    let mut mover = opened(&remote, "secret").await;
    assert!(remote.is_busy());
    for shown in ["mountinfo", "cmdline"].into_iter().flat_map(shown_of_processes) {
        assert!(!shown.contains(word), "{shown}");
    }
    mover.stop().await.unwrap();

    // A server that says nothing keeps the mount helper there for as long as one wants to look at it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = format!("port={}", silent.local_addr().unwrap().port());
    let hangs = Repository {
        credentials: remote.repository().credentials,
        ..repository(RepositoryType::Cifs, "//127.0.0.1/good", &options, remote.repository.id)
    };
    let mut opening = Box::pin(remote.open(hangs));
    let looking = eventually("the mount helper has connected", || {
        let lines = shown_of_processes("cmdline");
        for line in &lines {
            assert!(!line.contains(word), "{line}");
        }
        lines.iter().any(|line| line.contains("mount.cifs") && line.contains(&options))
    });
    tokio::select! {
        (_, answer) = &mut opening => panic!("the helper was not seen: {answer:?}"),
        () = looking => {}
    }
    // Its connection is reset: a mount that hangs holds up the kernel's unmounting of other shares of its kind.
    drop(silent);
    let (mut mover, answer) = opening.await;
    answer.unwrap_err();
    mover.stop().await.unwrap();
}

async fn runs_nothing_and_follows_no_link(remote: &Remote) {
    let mut mover = opened(remote, "flags").await;
    let mounts = network_mounts(remote.folder.path());
    assert!(!mounts.is_empty());
    for flag in ["nosuid", "nodev", "noexec", "nosymfollow"] {
        assert!(
            mounts.iter().all(|line| line.split(' ').nth(5).unwrap().split(',').any(|found| found == flag)),
            "{flag}: {mounts:?}"
        );
    }
    mover.stop().await.unwrap();
    eventually("nothing is mounted", || !remote.is_busy()).await;
}

#[tokio::test]
async fn a_mounted_share_runs_nothing_and_follows_no_link() {
    runs_nothing_and_follows_no_link(&Remote::nfs()).await;
}
