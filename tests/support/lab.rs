//! Instances on the laboratory's libvirt (`scripts/lab`), made for one test and removed with it.
#![allow(dead_code)] // Each live target uses its own part.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use longshore::model::id::InstanceId;

/// A variable that `scripts/lab env` prints. A live test without its laboratory fails; it is never skipped.
pub fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("`{name}` is not set: scripts/lab up, then eval \"$(scripts/lab env)\""))
}

/// The laboratory's libvirt.
pub fn libvirt_uri() -> String {
    variable("LONGSHORE_LAB_LIBVIRT_URI")
}

/// Whether a guard of the instance holds its place, looked up past the code under test.
pub fn guard_stands(instance: InstanceId) -> bool {
    let place = Path::new("/run/longshore-guard").join(instance.to_string());
    std::fs::File::open(place).is_ok_and(|place| place.try_lock().is_err())
}

/// One instance.
pub struct LabInstance {
    pub name: String,
    pub id: InstanceId,
    /// For sockets and scratch: QEMU sees it at the same path.
    pub folder: PathBuf,
}

impl LabInstance {
    /// Without an OS: disks `vda` (qcow2) and `vdb` (raw), no agent.
    pub fn bare() -> Self {
        Self::make("bare", &[])
    }

    /// The same with other disks, in the words of `scripts/lab bare`.
    pub fn bare_with(disks: &str) -> Self {
        Self::make("bare", &["--disks", disks])
    }

    /// The same, never started.
    pub fn bare_off_with(disks: &str) -> Self {
        Self::make("bare", &["--off", "--disks", disks])
    }

    /// A small Linux with a guest agent, its file system on `vda`.
    pub fn guest() -> Self {
        Self::make("guest", &[])
    }

    /// The same with an agent's channel on which nobody answers.
    pub fn guest_without_agent() -> Self {
        Self::make("guest", &["--no-agent"])
    }

    fn make(kind: &str, options: &[&str]) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let folder = PathBuf::from(lab(&[&[kind, &name], options].concat()));
        let id = std::fs::read_to_string(folder.join("uuid")).unwrap().trim().parse().unwrap();
        Self { name, id, folder }
    }

    /// Pulls the plug.
    pub fn stop(&self) {
        virsh(&["destroy", &self.name]);
    }

    /// Starts it again after [`LabInstance::stop`].
    pub fn start(&self) {
        virsh(&["start", &self.name]);
    }

    /// Whether the guest's agent answers within two seconds.
    pub fn agent_answers(&self) -> bool {
        let ask = r#"{"execute":"guest-ping"}"#;
        virsh_output(&["qemu-agent-command", &self.name, ask, "--timeout", "2"]).status.success()
    }

    /// Whether the guest's agent says `frozen`, asked past the code under test.
    pub fn is_frozen(&self) -> bool {
        let ask = r#"{"execute":"guest-fsfreeze-status"}"#;
        virsh(&["qemu-agent-command", &self.name, ask, "--timeout", "20"]).contains("frozen")
    }

    /// Lets each freeze wait so long for the guest's own hook (see `tests/lab/guest-init`).
    pub fn slow_freeze(&self, seconds: u32) {
        self.write_in_guest("/run/slow-freeze", &seconds.to_string());
    }

    /// What the guest's own hook does before each freeze and after each thaw: lines of a shell, whose `$1` says which.
    pub fn freeze_hook(&self, lines: &str) {
        self.write_in_guest("/run/freeze-hook", &format!("#!/bin/sh\n{lines}\n"));
    }

    /// Lets the guest's agent start a line of a shell, and doesn't wait for it.
    pub fn runs_in_guest(&self, line: &str) {
        let arguments = serde_json::json!({"path": "/bin/sh", "arg": ["-c", line]});
        self.ask_agent(serde_json::json!({"execute": "guest-exec", "arguments": arguments}));
    }

    fn write_in_guest(&self, path: &str, text: &str) {
        let arguments = serde_json::json!({"path": path, "mode": "w"});
        let handle = self.ask_agent(serde_json::json!({"execute": "guest-file-open", "arguments": arguments}));
        let bytes = base64::engine::general_purpose::STANDARD.encode(text);
        let arguments = serde_json::json!({"handle": handle, "buf-b64": bytes});
        self.ask_agent(serde_json::json!({"execute": "guest-file-write", "arguments": arguments}));
        self.ask_agent(serde_json::json!({"execute": "guest-file-close", "arguments": {"handle": handle}}));
    }

    fn ask_agent(&self, question: serde_json::Value) -> serde_json::Value {
        let answer = virsh(&["qemu-agent-command", &self.name, &question.to_string(), "--timeout", "10"]);
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()["return"].take()
    }

    /// How many writes of the guest to `vda` are done, which is what it waits for when it syncs.
    pub fn writes_done(&self) -> u64 {
        let stats = virsh(&["domblkstat", &self.name, "vda"]);
        let line = stats.lines().find_map(|line| line.trim().strip_prefix("vda wr_req "));
        line.expect("a count of writes").trim().parse().unwrap()
    }

    /// Writes `pattern` over the first `length` of a bare instance's disk, the number of which is its place.
    pub fn overwrite(&self, disk: u32, pattern: u8, length: &str) {
        self.qemu_io(disk, &format!("write -P {pattern} 0 {length}"));
    }

    /// Lets a bare instance do what that command of qemu-io says to a disk, the number of which is its place.
    pub fn qemu_io(&self, disk: u32, command: &str) {
        self.qemu_io_at(&virtio_disk(disk), command);
    }

    /// The same, to a disk that is named as QEMU does.
    pub fn qemu_io_at(&self, device: &str, command: &str) {
        let said = virsh(&["qemu-monitor-command", &self.name, "--hmp", &format!("qemu-io -d {device} \"{command}\"")]);
        assert!(!said.to_lowercase().contains("error") && !said.contains("failed"), "{command}: {said}");
    }

    /// Defines it anew with that change of its definition. It is shut off.
    pub fn redefine(&self, change: impl FnOnce(String) -> String) {
        let file = self.folder.join("redefined.xml");
        std::fs::write(&file, change(virsh(&["dumpxml", "--inactive", &self.name]))).unwrap();
        virsh(&["define", file.to_str().unwrap()]);
    }

    /// Lets its definition name its disks by a pool over its folder, and nothing else tell one from another. It is shut off.
    pub fn put_into_pool(&self, pool: &str) {
        let (file, volume) =
            (format!("<source file='{}/", self.folder.display()), format!("<source pool='{pool}' volume='"));
        self.redefine(|definition| {
            let definition = definition.replace("<disk type='file'", "<disk type='volume'").replace(&file, &volume);
            let of_disk = |line: &&str| !line.contains("<serial>");
            definition.lines().filter(of_disk).collect::<Vec<_>>().join("\n")
        });
    }

    /// Whether the domain has a backup job, asked past the code under test.
    pub fn has_backup_job(&self) -> bool {
        virsh_output(&["backup-dumpxml", &self.name]).status.success()
    }
}

impl Drop for LabInstance {
    fn drop(&mut self) {
        // A test that failed may have left the guest frozen or with a job; the domain goes with all of it.
        let output = lab_output(&["remove", &self.name]);
        let text = format!("cannot remove `{}`: {}", self.name, String::from_utf8_lossy(&output.stderr));
        match output.status.success() {
            true => {}
            // A second panic would end the program, and with it what other tests have to say.
            false if std::thread::panicking() => eprintln!("{text}"),
            false => panic!("{text}"),
        }
    }
}

/// QEMU's name for a disk on the bus `virtio`, the number of which is its place.
fn virtio_disk(disk: u32) -> String {
    format!("/machine/peripheral/virtio-disk{disk}/virtio-backend")
}

/// A storage pool over a directory, active for as long as this lives.
pub struct Pool(pub String);

impl Pool {
    pub fn over(name: &str, directory: &Path) -> Self {
        virsh(&["pool-create-as", name, "dir", "--target", directory.to_str().unwrap()]);
        Self(name.to_owned())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        virsh_output(&["pool-destroy", &self.0]);
    }
}

/// A second libvirt on the same disks: another host, as far as libvirt and workers can tell.
pub struct Twin {
    pub libvirt_uri: String,
    virsh: String,
    /// Instances that were migrated to it.
    visitors: RefCell<Vec<String>>,
}

impl Twin {
    pub fn start() -> Self {
        let exports = lab(&["twin"]);
        let exported = |name: &str| {
            let line = exports.lines().find_map(|line| line.strip_prefix("export ")?.strip_prefix(name));
            line.expect("an export").trim_start_matches('=').trim_matches('\'').to_owned()
        };
        let (libvirt_uri, virsh) = (exported("LONGSHORE_LAB_TWIN_LIBVIRT_URI"), exported("LONGSHORE_LAB_TWIN_VIRSH"));
        Self { libvirt_uri, virsh, visitors: RefCell::default() }
    }

    fn output(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(&self.virsh).arg("-q").args(arguments).output().expect("virsh starts")
    }

    pub fn virsh(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "virsh {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Lets a running instance go on there.
    pub fn migrate_to_it(&self, instance: &LabInstance) {
        self.visitors.borrow_mut().push(instance.name.clone());
        let arguments = migration(instance, &self.libvirt_uri);
        virsh(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Lets it go on where it was.
    pub fn migrate_back(&self, instance: &LabInstance) {
        let arguments = migration(instance, &libvirt_uri());
        self.virsh(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// As [`LabInstance::overwrite`], there; `place` is an offset and a length.
    pub fn overwrite(&self, instance: &LabInstance, disk: u32, pattern: u8, place: &str) {
        let command = format!("qemu-io -d {} \"write -P {pattern} {place}\"", virtio_disk(disk));
        let said = self.virsh(&["qemu-monitor-command", &instance.name, "--hmp", &command]);
        assert!(!said.to_lowercase().contains("error") && !said.contains("failed"), "{command}: {said}");
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // Of a test that failed on the way: their disks are about to go.
        for name in self.visitors.borrow().iter() {
            self.output(&["destroy", name]);
            self.output(&["undefine", name, "--checkpoints-metadata"]);
        }
    }
}

/// How an instance is sent to another libvirt of this machine, whose disks it sees as well: libvirt can't know that these are the same.
fn migration(instance: &LabInstance, uri: &str) -> Vec<String> {
    let socket = format!("unix://{}/migration.sock", instance.folder.display());
    let flags = ["--live", "--p2p", "--persistent", "--undefinesource", "--unsafe"];
    let words = ["migrate", &instance.name].into_iter().chain(flags).chain(["--desturi", uri, "--migrateuri", &socket]);
    words.map(str::to_owned).collect()
}

fn lab(arguments: &[&str]) -> String {
    let output = lab_output(arguments);
    assert!(output.status.success(), "lab {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn lab_output(arguments: &[&str]) -> std::process::Output {
    Command::new(variable("LONGSHORE_LAB_TOOL")).args(arguments).output().expect("scripts/lab starts")
}

/// Ends and forgets an instance that the code under test has made; its disks stay. None of that name is no error.
pub fn forget(name: &str) {
    virsh_output(&["destroy", name]);
    virsh_output(&["undefine", name, "--checkpoints-metadata", "--nvram"]);
}

fn virsh_output(arguments: &[&str]) -> std::process::Output {
    Command::new(variable("LONGSHORE_LAB_VIRSH")).arg("-q").args(arguments).output().expect("virsh starts")
}

pub fn virsh(arguments: &[&str]) -> String {
    let output = virsh_output(arguments);
    assert!(output.status.success(), "virsh {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Polls until it is so, or panics with what should have been.
pub fn eventually(what: &str, limit: std::time::Duration, mut so: impl FnMut() -> bool) -> std::time::Duration {
    let began = std::time::Instant::now();
    while !so() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    began.elapsed()
}

/// What `nbdinfo` says about an export.
pub fn export_bytes(socket: &Path, export: &str) -> u64 {
    let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
    let output = Command::new("nbdinfo").args(["--size", &uri]).output().expect("nbdinfo starts");
    assert!(output.status.success(), "nbdinfo {uri}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
