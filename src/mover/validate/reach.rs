//! Whether a mounted repository can be used: that it can be written to, has its directories and has room. Blocks.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{fault, must_be_there, without_root};
use crate::failure::{Code, Failure};
use crate::model::validation::{Finding, FindingCode, ROOT};
use crate::mover::mount::probe;
use crate::mover::share::{Dir, INSTANCES, LOCKS, Room};

/// Seconds by which clocks may differ without harm.
const CLOCKS_DIFFER_MAX: u64 = 60;
/// The part of the room that should be free: one of so many.
const FREE_DIVISOR: u64 = 20;

/// What was found.
#[derive(Debug)]
pub(in crate::mover) struct Reached {
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Its room.
    pub room: Room,
    /// What time it is by the share's clock, or by ours where nothing can be written; seconds since 1970.
    pub now_seconds: i64,
    /// How far the share's clock is ahead of ours, seconds, where that can be seen.
    pub clock_ahead_seconds: Option<i64>,
}

/// Looks. An error: the share is gone.
pub(in crate::mover) fn reach(root: &Dir) -> Result<Reached, Failure> {
    let mut findings: Vec<_> = [INSTANCES, LOCKS].iter().filter_map(|name| missing(root, name)).collect();
    let mut now_seconds = host_seconds();
    let mut clock_ahead_seconds = None;
    let mut full = None;
    match probe(root) {
        Ok(probed) => {
            let ahead = probed.share_seconds.saturating_sub(now_seconds);
            (now_seconds, clock_ahead_seconds) = (probed.share_seconds, Some(ahead));
            findings.extend(clock(ahead));
            let left = probed.warning.map(|text| without_root(root, &text));
            findings.extend(left.map(|text| Finding::new(FindingCode::ProbeLeftOver, ROOT, text)));
        }
        Err(failure) => {
            must_be_there(root)?;
            let told = not_probed(&failure, |text| without_root(root, text));
            match told.code {
                FindingCode::LittleRoom => full = Some(told),
                _ => findings.push(told),
            }
        }
    }
    if matches!(root.sync(), Ok(false)) {
        findings.push(Finding::new(FindingCode::NoDirectoryFsync, ROOT, "it has no fsync for directories"));
    }
    let room = root.room()?;
    findings.extend(full.or_else(|| little_room(room)));
    Ok(Reached { findings, room, now_seconds, clock_ahead_seconds })
}

/// A share without room for a probe takes writes again once there is some.
fn not_probed(failure: &Failure, shown: impl Fn(&str) -> String) -> Finding {
    let code = match failure.code {
        Code::RepositoryFull => FindingCode::LittleRoom,
        _ => FindingCode::NotWritable,
    };
    Finding::new(code, ROOT, shown(&format!("{failure:#}")))
}

fn missing(root: &Dir, name: &str) -> Option<Finding> {
    match root.open_dir(name) {
        Ok(_) => None,
        Err(error) if error.is_missing() => {
            let text = "every repository has this directory, and it is not there";
            Some(Finding::new(FindingCode::LayoutMissing, name, text))
        }
        Err(error) => {
            let fault = fault(root, &error);
            Some(Finding::new(fault.code, name, fault.text))
        }
    }
}

fn clock(ahead: i64) -> Option<Finding> {
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    let by = ahead.unsigned_abs();
    let text = || format!("the share's clock is {by} s {way} this host's");
    (by > CLOCKS_DIFFER_MAX).then(|| Finding::new(FindingCode::ClockDiffers, ROOT, text()))
}

fn little_room(room: Room) -> Option<Finding> {
    let Room { capacity_bytes, free_bytes, .. } = room;
    let text = || format!("{free_bytes} of {capacity_bytes} bytes are free");
    (free_bytes < capacity_bytes / FREE_DIVISOR).then(|| Finding::new(FindingCode::LittleRoom, ROOT, text()))
}

fn host_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::mover::share;

    fn codes(reached: &Reached) -> Vec<FindingCode> {
        let not_of_this_machine = |finding: &&Finding| finding.code != FindingCode::LittleRoom;
        reached.findings.iter().filter(not_of_this_machine).map(|finding| finding.code).collect()
    }

    #[test]
    fn a_good_repository_has_no_findings_and_keeps_nothing_of_the_look() {
        let directory = tempfile::tempdir().unwrap();
        share::init(directory.path()).unwrap();
        let reached = reach(&Dir::open_root(directory.path()).unwrap()).unwrap();
        assert_eq!(codes(&reached), []);
        assert!(reached.room.capacity_bytes >= reached.room.used_bytes && reached.room.free_bytes > 0);
        assert!(reached.clock_ahead_seconds.unwrap().abs() < 5);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn directories_that_are_missing_or_links_are_named() {
        let directory = tempfile::tempdir().unwrap();
        share::init(directory.path()).unwrap();
        std::fs::remove_dir(directory.path().join(INSTANCES)).unwrap();
        std::fs::remove_dir(directory.path().join(LOCKS)).unwrap();
        std::os::unix::fs::symlink("/etc", directory.path().join(LOCKS)).unwrap();
        let reached = reach(&Dir::open_root(directory.path()).unwrap()).unwrap();
        assert_eq!(codes(&reached), [FindingCode::LayoutMissing, FindingCode::NotWhatItSays]);
    }

    #[test]
    fn a_full_share_is_not_called_one_that_cannot_be_written_to() {
        let told = |code| not_probed(&Failure::new(code, "no probe"), str::to_owned).code;
        assert_eq!(told(Code::RepositoryFull), FindingCode::LittleRoom);
        assert_eq!(told(Code::RepositoryReadOnly), FindingCode::NotWritable);
    }

    #[test]
    fn clocks_and_room_have_their_bounds() {
        assert_eq!(clock(60), None);
        assert!(clock(61).unwrap().text.contains("61 s ahead of"));
        assert!(clock(-3600).unwrap().text.contains("3600 s behind"));
        let room = |free_bytes| Room { capacity_bytes: 1000, used_bytes: 0, free_bytes };
        assert_eq!(little_room(room(50)), None);
        assert!(little_room(room(49)).is_some());
    }
}
