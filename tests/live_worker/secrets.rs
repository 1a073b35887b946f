//! A share's password, sealed in a job: it reaches the mount helper, and nothing else that anybody could look into.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use longshore::model::id::JobId;

use crate::fleet::{Fleet, Settings};
use crate::lab::{LabInstance, eventually};

/// Longest time until the helper has been started.
const HELPER: Duration = Duration::from_secs(60);

/// Where there is no share.
const ADDRESS: &str = "//nas.invalid/share";

/// Stands for mount.cifs, whose kernel module this host may not have: tells whether it was given what was expected, and does not
/// end before it is told to.
const HELPER_PROGRAM: &str = r#"#!/bin/sh
folder=FOLDER
file=$(printf '%s' "$*" | sed 's/.*credentials=\([^,]*\).*/\1/')
cmp "$file" "$folder/expected" && touch "$folder/seen"
for i in $(seq 600); do [ -e "$folder/go" ] && break; sleep 0.1; done
echo 'mount error(13): Permission denied' >&2
exit 32
"#;

#[test]
fn a_sealed_password_is_seen_by_the_mount_helper_and_is_nowhere_else() {
    let bare = LabInstance::bare();
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let secret = format!("hunter2-{}", JobId::draw());
    let helper = HELPER_PROGRAM.replace("FOLDER", place.path().to_str().unwrap());
    let text = format!("username=backup\npassword={secret}\n");
    for (name, content, mode) in [("helper", &helper, 0o700), ("expected", &text, 0o600), ("credentials", &text, 0o600)]
    {
        fs::write(at(name), content).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    let fleet = Fleet::with("secrets", Settings { mount_helper: Some(at("helper")), ..Settings::default() });
    let job = publish(&fleet, &bare, &at("credentials"));
    eventually("the helper has the password", HELPER, || at("seen").exists());

    // While it is in use.
    let mut seen = String::new();
    for pid in of_worker(fleet.worker_pid()) {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let (limits, command_line) = (read("limits"), read("cmdline"));
        // What the helper starts comes and goes.
        let Some(core) = limits.lines().find(|line| line.starts_with("Max core file size")) else { continue };
        seen += &command_line;
        let figures: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
        assert!(figures.iter().all(|figure| matches!(*figure, "0" | "1")), "a core of {pid} could be dumped: {core}");
    }
    for process in ["\0worker\0", "\0mover\0", "/usr/sbin/mount.cifs\0"] {
        assert!(seen.contains(process), "{process:?} was looked at: {seen:?}");
    }
    for (shown, content) in ["cmdline", "environ"].into_iter().flat_map(of_processes) {
        assert!(!holds(&content, &secret), "the password is in {}", shown.display());
    }
    nothing_holds(&fleet, &secret);

    fs::write(at("go"), "").unwrap();
    let failed = fleet.failed(job);
    assert_eq!(failed.failure.code, "mount_denied", "{failed:?}");
    nothing_holds(&fleet, &secret);
    fleet.finish(&[&bare], &[]);
}

fn publish(fleet: &Fleet, instance: &LabInstance, credentials: &Path) -> JobId {
    let key = output(&mut fleet.command(&["host", "key"]));
    assert_eq!(key, output(&mut fleet.command(&["host", "key"])), "a host's key stays");
    let repository = JobId::draw().to_string();
    let printed = output(
        fleet
            .command(&["job", "publish", "backup", "--type", "cifs", "--address", ADDRESS])
            .args(["--host", &fleet.host, "--instance", &instance.name, "--repository-id", &repository])
            .args(["--encoding", "json", "--host-key", key.trim(), "--seal-credentials"])
            .arg(credentials),
    );
    printed.trim().parse().unwrap()
}

fn output(command: &mut Command) -> String {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

fn nothing_holds(fleet: &Fleet, secret: &str) {
    let files = files_below(&fleet.folder);
    let named = |name: &str| files.iter().any(|file| file.file_name() == Some(OsStr::new(name)));
    assert!(named("journal.sqlite") && named("worker.log") && named("host.key"), "{files:?}");
    // A mover's files come and go.
    let contents = || files.iter().map(|file| (file, fs::read(file).unwrap_or_default()));
    for (file, content) in contents() {
        assert!(!holds(&content, secret), "the password is in `{}`", file.display());
    }
    assert!(contents().any(|(_, content)| holds(&content, ADDRESS)), "what is no secret can be found");
    for body in fleet.heard.bodies() {
        assert!(!holds(&body, secret), "the password is in {}", String::from_utf8_lossy(&body));
    }
}

pub fn holds(content: &[u8], secret: &str) -> bool {
    let words = std::iter::once(secret.to_owned()).chain((0..3).map(|shift| in_base64(secret, shift)));
    let is_in = |word: String| content.windows(word.len()).any(|window| window == word.as_bytes());
    words.into_iter().any(is_in)
}

/// As it stands in the base64 of a text in which it begins `shift` bytes after a multiple of 3: without the first and the last
/// characters, in which its neighbours are as well.
fn in_base64(secret: &str, shift: usize) -> String {
    let text = STANDARD_NO_PAD.encode([vec![0; shift].as_slice(), secret.as_bytes()].concat());
    text[4..text.len() - 4].to_owned()
}

pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type().unwrap() {
            kind if kind.is_dir() => files_below(&entry.path()),
            kind if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

/// That file of every process that there is.
pub fn of_processes(file: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join(file));
    processes.filter_map(|path| fs::read(&path).ok().map(|content| (path, content))).collect()
}

/// The worker, its children and theirs.
fn of_worker(worker: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = of_processes("stat").iter().filter_map(|(_, stat)| parent(stat)).collect();
    let mut family = vec![worker];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, above)| *above == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

/// The process's own id and its parent's (proc_pid_stat(5)).
fn parent(stat: &[u8]) -> Option<(u32, u32)> {
    let text = String::from_utf8_lossy(stat);
    let (before, after) = (text.split_once(' ')?.0, text.rsplit_once(") ")?.1);
    Some((before.parse().ok()?, after.split(' ').nth(1)?.parse().ok()?))
}
