//! A running instance is backed up where QEMU is not root, as on any real host: libvirt says who it is, QEMU comes to its
//! socket and scratch, and nobody else does. The whole program, with directories that the worker makes itself. Needs a
//! laboratory with such a QEMU: `LONGSHORE_LAB_QEMU_USER=libvirt-qemu scripts/lab up`, then `eval "$(scripts/lab env)"`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/lab.rs"]
mod lab;

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{LabInstance, eventually};
use longshore::host::hypervisor::Hypervisor;
use longshore::host::hypervisor::libvirt::Libvirt;
use longshore::model::owner::Owner;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const STARTED: Duration = Duration::from_secs(120);
const ENDED: Duration = Duration::from_secs(120);

/// The user and group of the instance's QEMU process, past the code under test.
fn process_owner(instance: &LabInstance) -> Owner {
    let named = format!("guest={},", instance.name);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let arguments = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.split('\0').any(|argument| argument.starts_with(&named)) {
            let found = std::fs::metadata(entry.path()).unwrap();
            return Owner { user: found.uid(), group: found.gid() };
        }
    }
    panic!("no process of `{}`", instance.name);
}

struct Worker {
    process: Child,
    folder: PathBuf,
}

impl Worker {
    fn starts(folder: &Path, host: &str, uri: &str) -> Self {
        // A closed journal beside open directories, as by default.
        let directory = |name: &str| folder.join(name).display().to_string();
        let config = format!(
            "host = '{host}'\n[broker]\nuri = '{}'\n[libvirt]\nuri = '{uri}'\n[worker]\nstate_dir = '{}'\n\
             run_dir = '{}'\n[scratch]\ndir = '{}'\n[backup]\nsame_device_ok = true\n",
            lab::variable("LONGSHORE_LAB_AMQP_URI"),
            directory("lib/journal"),
            directory("run"),
            directory("lib/scratch"),
        );
        let file = folder.join("worker.toml");
        std::fs::write(&file, config).unwrap();
        // The broker's password is in it.
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let log = std::fs::File::create(folder.join("worker.log")).unwrap();
        let process = longshore(folder, &["worker"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, folder: folder.to_owned() }
    }

    /// What a command prints; it must end well.
    fn says(&self, arguments: &[&str]) -> String {
        let output = longshore(&self.folder, arguments).output().unwrap();
        let log = std::fs::read_to_string(self.folder.join("worker.log")).unwrap_or_default();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "longshore {arguments:?}: {errors}\nthe worker: {log}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Publishing is refused while the host has no queue.
    fn publishes(&self, arguments: &[&str]) {
        let began = Instant::now();
        while !longshore(&self.folder, arguments)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
        {
            let log = std::fs::read_to_string(self.folder.join("worker.log")).unwrap();
            assert!(began.elapsed() < STARTED, "no job could be published; the worker: {log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.process.id().try_into().unwrap()), Signal::SIGTERM);
        let _status = self.process.wait();
    }
}

fn longshore(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    command.args(arguments).env("LONGSHORE_CONFIG", folder.join("worker.toml"));
    command
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_running_instance_whose_qemu_is_not_root_is_backed_up_by_pull() {
    is_backed_up_by("pull").await;
}

/// QEMU comes to its images through what it is shown, and by no other way: the share is closed to it.
#[tokio::test]
async fn a_running_instance_whose_qemu_is_not_root_is_backed_up_by_push() {
    is_backed_up_by("push").await;
}

async fn is_backed_up_by(transfer: &str) {
    let host = format!("qemu-{transfer}");
    let bare = LabInstance::bare();
    let uri = lab::libvirt_uri();
    let process = process_owner(&bare);
    assert_ne!(process.user, 0, "the laboratory was not started with LONGSHORE_LAB_QEMU_USER");
    let door = Libvirt::new(&uri);
    assert_eq!(door.qemu_owner(Some(bare.id)).await.unwrap(), Some(process));
    assert_eq!(door.qemu_owner(None).await.unwrap(), Some(process));

    // Short, since sockets lie below, and closed to QEMU by nothing but what is under test.
    let fleet = PathBuf::from(lab::variable("LONGSHORE_LAB_DIR")).join("fleet");
    // As short as `/fleet/001`: the worker's run directory lies below it (scripts/lib/names.sh).
    let place = tempfile::Builder::new().prefix("q").rand_bytes(2).tempdir_in(fleet).unwrap();
    std::fs::set_permissions(place.path(), Permissions::from_mode(0o711)).unwrap();
    let share = place.path().join("share");
    // Root alone, so that a QEMU which wrote there itself would not get far.
    std::fs::DirBuilder::new().mode(0o700).create(&share).unwrap();
    let worker = Worker::starts(place.path(), &host, &uri);
    let repository = worker.says(&["repository", "init", share.to_str().unwrap()]);
    let job = ["job", "publish", "backup", "--host", &host, "--instance", &bare.name, "--transfer", transfer];
    let to = ["--repository-id", repository.trim(), "--address", share.to_str().unwrap()];
    worker.publishes(&[&job[..], &to[..]].concat());

    let instance = share.join("instances").join(bare.id.to_string());
    let published = || {
        std::fs::read_dir(&instance)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .find(|backup| backup.join("manifest.json").exists())
    };
    let (run, scratch) = (place.path().join("run"), place.path().join("lib/scratch"));
    let mut modes = Vec::new();
    let log = || std::fs::read_to_string(place.path().join("worker.log")).unwrap();
    let began = Instant::now();
    while published().is_none() {
        assert!(began.elapsed() < ENDED, "no backup was published; the worker: {}", log());
        // What stands now, with everything on the way that belongs to this job.
        let own =
            [&run, &scratch].into_iter().flat_map(|above| std::fs::read_dir(above).into_iter().flatten().flatten());
        // What QEMU is shown of the share is to be passed, and held open by it to nobody.
        let closed = if transfer == "push" { 0o006 } else { 0o007 };
        modes.extend(own.filter_map(|entry| Some(entry.metadata().ok()?.mode() & closed)));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!modes.is_empty() && modes.iter().all(|others| *others == 0), "open to others: {modes:?}");
    for open in [&run, &scratch] {
        assert_eq!(std::fs::metadata(open).unwrap().mode() & 0o7777, 0o711);
    }
    eventually("nothing is left on the host", ENDED, || {
        names_in(&run).is_empty() && names_in(&scratch).is_empty() && !bare.has_backup_job()
    });
    let backup = published().unwrap();
    bare.stop();
    for (disk, format) in [("vda", "qcow2"), ("vdb", "raw")] {
        let source = bare.folder.join(format!("{disk}.{format}"));
        let copy = backup.join(format!("{disk}.qcow2"));
        let arguments = ["compare", "-q", "-f", format, "-F", "qcow2"];
        let compared = Command::new("qemu-img").args(arguments).args([source, copy]).status().unwrap();
        assert!(compared.success(), "{disk}: {compared}");
    }
}

/// libvirt hands an instance with an owner of its own to that one, whoever the others belong to.
#[tokio::test]
async fn an_instance_with_an_owner_of_its_own_says_so() {
    let bare = LabInstance::bare();
    bare.stop();
    let own = Owner { user: 3_064_055, group: 3_064_056 };
    let definition = lab::virsh(&["dumpxml", "--inactive", &bare.name]);
    let label = format!("<label>+{}:+{}</label>", own.user, own.group);
    let label = format!("<seclabel type='static' model='dac' relabel='yes'>{label}</seclabel></domain>");
    let file = bare.folder.join("definition.xml");
    std::fs::write(&file, definition.replace("</domain>", &label)).unwrap();
    lab::virsh(&["define", file.to_str().unwrap()]);
    let door = Libvirt::new(&lab::libvirt_uri());
    assert_eq!(door.qemu_owner(Some(bare.id)).await.unwrap(), Some(own), "shut off");
    lab::virsh(&["start", &bare.name]);
    assert_eq!(process_owner(&bare), own);
    assert_eq!(door.qemu_owner(Some(bare.id)).await.unwrap(), Some(own), "running");
    assert_ne!(door.qemu_owner(None).await.unwrap(), Some(own));
}
