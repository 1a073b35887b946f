//! What has to be so when the work is done: nothing mounted, frozen, left on disk, running or open.
#![allow(dead_code)] // Each live target uses its own part.

use std::path::Path;
use std::time::Duration;

use longshore::journal::Journal;

use crate::lab::{LabInstance, eventually, guard_stands, virsh};
use crate::share::Share;

/// Longest time for what a job releases last to be gone.
const SOON: Duration = Duration::from_secs(20);

/// No libvirt job, and no guest is frozen or paused.
pub fn instances_are_free(instances: &[&LabInstance]) {
    for instance in instances {
        assert!(!instance.has_backup_job(), "{} has a backup job", instance.name);
        let checkpoints = virsh(&["checkpoint-list", &instance.name, "--name"]);
        // `longshore-`, the repository, `-`, the backup, `-` and the attempt.
        let mut repositories: Vec<&str> = checkpoints.lines().filter_map(|name| name.get(10..46)).collect();
        let count = repositories.len();
        repositories.dedup();
        assert_eq!(repositories.len(), count, "{} has more than one checkpoint of a repository", instance.name);
        let state = virsh(&["domstate", &instance.name]);
        assert!(state == "running" || state == "shut off", "{} is {state}", instance.name);
        if state == "running" && instance.agent_answers() {
            assert!(!instance.is_frozen(), "{} is frozen", instance.name);
        }
    }
}

/// No mover, no guard, no mount, and nothing in the directories for sockets and scratch.
pub fn host_is_clean(folder: &Path, instances: &[&LabInstance]) {
    eventually("no process of the worker is left", SOON, || processes_of(folder).is_empty());
    for instance in instances {
        // It is told to end, and ends by itself.
        eventually(&format!("the guard of {} is gone", instance.name), SOON, || !guard_stands(instance.id));
    }
    assert_eq!(mounts_below(&folder.join("run")), Vec::<String>::new());
    for directory in ["run", "scratch"] {
        assert_eq!(everything_in(&folder.join(directory)), Vec::<String>::new(), "in `{directory}`");
    }
}

/// Every run has ended, and all that was to be said has been.
pub async fn journal_is_settled(state: &Path) {
    let journal = Journal::open(state).await.unwrap();
    assert_eq!(journal.open_runs().await.unwrap().len(), 0, "open runs");
    assert_eq!(journal.outbox_depth().await.unwrap(), 0, "messages that nobody was told");
    journal.close().await;
}

/// Only backups lie among the backups.
pub fn share_is_clean(share: &Share, instances: &[&LabInstance]) {
    for instance in instances {
        // What is left of backups that were deleted: the highest number that was given.
        for name in share.entries_of(&instance.id).into_iter().filter(|name| name != ".highest-number") {
            assert!(!name.starts_with('.'), "`{name}` is left on the share");
            assert!(share.backups_of(&instance.id).join(&name).join("manifest.json").exists(), "`{name}` is no backup");
        }
    }
}

/// Command lines of all processes that name `folder`: worker, movers, and the tools that a mover runs.
pub fn processes_of(folder: &Path) -> Vec<String> {
    // A guest's QEMU names its disks, which are elsewhere.
    processes_that_name(folder).into_iter().map(|(_, line)| line).collect()
}

/// Process ids of the movers of the worker that has that folder, and of their tools.
pub fn movers_of(folder: &Path) -> Vec<i32> {
    processes_that_name(&folder.join("run")).into_iter().map(|(pid, _)| pid).collect()
}

/// Process ids of the guards of the worker that has that folder: they have its home.
pub fn guards_of(folder: &Path) -> Vec<i32> {
    let home = format!("HOME={}\0", folder.display());
    let is_guard = |pid: &i32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&read("environ")).into_owned();
        read("cmdline").starts_with(b"longshore\0guard\0") && environment.contains(&home)
    };
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(is_guard).collect()
}

fn processes_that_name(folder: &Path) -> Vec<(i32, String)> {
    let folder = folder.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        // One that ends between listing and reading is gone, which is what is asked about.
        let line = std::fs::read(path.join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    processes.filter(|(_, line)| line.contains(folder)).collect()
}

/// The process id of the one QEMU whose command line has that word.
pub fn process_of_qemu(word: &str) -> i32 {
    let found: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let line = std::fs::read(path.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_it = line.contains("qemu-system") && line.contains(word);
            path.file_name().filter(|_| is_it)?.to_str()?.parse().ok()
        })
        .collect();
    let [pid] = found[..] else { panic!("`{word}` is in {} processes", found.len()) };
    pid
}

/// Mount points below `folder` in the namespace of any process.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let folder = format!("{}/", folder.display());
    let mut found: Vec<String> = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Ok(table) = std::fs::read_to_string(entry.unwrap().path().join("mountinfo")) else { continue };
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        found.extend(points.filter(|point| point.starts_with(&folder)).map(str::to_owned));
    }
    found.sort();
    found.dedup();
    found
}

pub fn everything_in(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path().display().to_string());
        }
    }
    found
}
