//! What movers have shown to the host, and taking it away: by a process of its own, since whoever lets go of a dead share may wait
//! for it for ever. The mount table says what is there; the share itself is never looked at.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags};
use tokio::time::timeout;

use crate::failure::{Code, Failure, Remains};
use crate::host::remains;
use crate::mover::protocol::{FORCE, OURSELVES, SUBCOMMAND, UNMOUNT};

/// Longest time for taking one thing away: past it, it is detached already, and only its last user still waits for the share.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(30);
/// Longest time for failing what is under way on a share.
const FORCE_LIMIT: Duration = Duration::from_secs(10);
/// How many mounts may lie on each other in one place: one for each time that an attempt has shown it.
const LAYERS_MAX: usize = 4;
/// What is mounted to see whether it spreads.
const PROBE_FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// The table of the mounts that this process sees (proc_pid_mountinfo(5)).
const TABLE: &str = "/proc/self/mountinfo";

/// Mount points right below a directory.
pub(super) fn exposed_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found: Vec<_> = mount_points()?.into_iter().filter(|place| place.parent() == Some(directory)).collect();
    found.dedup();
    Ok(found)
}

/// Whether what is mounted in `directory` arrives where `process` is; without one, whether it spreads at all. Mounts an empty file system
/// there for a moment, so it is root's to ask.
pub fn mounts_spread(directory: &Path, process: Option<u32>) -> std::io::Result<bool> {
    let place = directory.join(format!("probe-{}", std::process::id()));
    std::fs::create_dir(&place)?;
    let mounted = nix::mount::mount(Some("longshore"), &place, Some("tmpfs"), PROBE_FLAGS, Some("size=4k,mode=0700"));
    let found = match mounted {
        Ok(()) => spreads(&place, process),
        Err(errno) => Err(errno.into()),
    };
    let unmounted = if mounted.is_ok() { nix::mount::umount2(&place, MntFlags::UMOUNT_NOFOLLOW) } else { Ok(()) };
    let removed = std::fs::remove_dir(&place);
    unmounted?;
    removed?;
    found
}

fn spreads(place: &Path, process: Option<u32>) -> std::io::Result<bool> {
    let table = process.map_or(TABLE.to_owned(), |process| format!("/proc/{process}/mountinfo"));
    let table = std::fs::read_to_string(table)?;
    let mut lines = table.lines().filter(|line| mount_point(line).as_deref() == Some(place));
    // Fields from the seventh on, up to a dash, say how a mount spreads.
    let is_shared =
        |line: &str| line.split(' ').skip(6).take_while(|tag| *tag != "-").any(|tag| tag.starts_with("shared:"));
    Ok(match process {
        Some(_) => lines.next().is_some(),
        None => lines.any(is_shared),
    })
}

/// Unmounts what is mounted at `place`, if anything is, and removes the place.
pub(super) async fn take_away(program: &Path, place: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Code::HostIo, format!("cannot take away what is mounted at `{}`", place.display())).because(&error)
    };
    for _ in 0..LAYERS_MAX {
        if !is_mounted(place).map_err(failed)? {
            return match tokio::fs::remove_dir(place).await {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    let text = format!("cannot remove `{}`", place.display());
                    Err(Failure::new(Code::HostIo, text).because(&error).leaving(Remains::Path(place.to_owned())))
                }
                _ => Ok(()),
            };
        }
        run(program, &[UNMOUNT], place, UNMOUNT_LIMIT).await?;
    }
    let text = format!("`{}` is still mounted", place.display());
    Err(Failure::new(Code::HostIo, text).leaving(Remains::Path(place.to_owned())))
}

/// Fails every call that is under way on the share that is mounted at `place`, whose ever it is; false where nothing is mounted.
pub(super) async fn cut_off(program: &Path, place: &Path) -> Result<bool, Failure> {
    let mounted = is_mounted(place).map_err(|error| {
        Failure::new(Code::HostIo, format!("cannot see whether `{}` is mounted", place.display())).because(&error)
    })?;
    if !mounted {
        return Ok(false);
    }
    run(program, &[UNMOUNT, FORCE], place, FORCE_LIMIT).await.map(|()| true)
}

/// Begins to unmount what is mounted at `place`, if anything is; whoever asks looks again later. For code that may not wait.
pub(super) fn begin_to_unmount(place: &Path) {
    if is_mounted(place).is_ok_and(|mounted| mounted) {
        match unmounter(Path::new(OURSELVES), &[UNMOUNT], place).spawn() {
            // It is this process's child, whose end somebody has to see.
            Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot unmount what was shown"),
        }
    }
}

/// One that does not end in its time is left: it can't be killed, and is what remains.
async fn run(program: &Path, words: &[&str], place: &Path, limit: Duration) -> Result<(), Failure> {
    let failed = |cause: String| {
        let text = format!("`mover {} {}` did not work", words.join(" "), place.display());
        Failure::new(Code::HostIo, text).caused_by(cause)
    };
    let mut command = tokio::process::Command::from(unmounter(program, words, place));
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    match timeout(limit, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(status.to_string())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => {
            let failure = failed(format!("no end within {limit:?}"));
            Err(match child.id() {
                Some(pid) => failure.leaving(remains::of_process(pid, Vec::new())),
                None => failure,
            })
        }
    }
}

fn unmounter(program: &Path, words: &[&str], place: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg(SUBCOMMAND).args(words).arg(place).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn is_mounted(place: &Path) -> std::io::Result<bool> {
    Ok(mount_points()?.iter().any(|found| found == place))
}

fn mount_points() -> std::io::Result<Vec<PathBuf>> {
    Ok(std::fs::read_to_string(TABLE)?.lines().filter_map(mount_point).collect())
}

/// The fifth field, in which white space and backslashes are written as three octal digits.
fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                path.push(*byte);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mount_point_is_the_fifth_field_with_its_escapes_undone() {
        let line = |path: &str| format!("36 35 98:0 /mnt1 {path} rw,noatime master:1 - ext3 /dev/root rw");
        assert_eq!(mount_point(&line("/run/x")), Some(PathBuf::from("/run/x")));
        assert_eq!(mount_point(&line(r"/a\040b\134c\9")), Some(PathBuf::from("/a b\\c\\9")));
        assert_eq!(mount_point("36 35"), None);
    }

    #[tokio::test]
    async fn a_place_where_nothing_is_mounted_just_goes_and_a_full_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("place");
        std::fs::create_dir(&place).unwrap();
        let nothing_to_run = Path::new("/nonexistent");
        assert!(!cut_off(nothing_to_run, &place).await.unwrap());
        for _twice in 0..2 {
            take_away(nothing_to_run, &place).await.unwrap();
            assert!(!place.exists());
        }
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("file"), "x").unwrap();
        let failure = take_away(nothing_to_run, &place).await.unwrap_err();
        assert_eq!(failure.code, Code::HostIo);
        assert!(matches!(failure.remains.as_deref(), Some(Remains::Path(_))), "{failure:?}");
        assert!(exposed_in(directory.path()).unwrap().is_empty());
    }
}
