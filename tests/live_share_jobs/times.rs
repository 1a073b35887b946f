//! What mounting a share adds to a job: the time of the step that opens the repository and of the one that closes it, as the worker logs
//! them, beside the same two on a plain directory of this host and beside a bare mount(8) and umount(8) of the same share. To be read
//! in the transcript; in a virtual host only the ratio means something.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use longshore::model::id::JobId;

use crate::fleet::Fleet;
use crate::lab::LabInstance;
use crate::nas::{Nas, RIGHT};

/// Bare mounts, of which the median is told.
const ROUNDS: usize = 3;

/// `, share opened in 210 ms and closed in 35 ms`, or nothing for a job that did not come so far.
pub fn of_share(fleet: &Fleet, job: JobId) -> String {
    let log = std::fs::read_to_string(fleet.folder.join("worker.log")).unwrap();
    let job = job.to_string();
    let line = log.lines().rfind(|line| line.contains("steps_ms=") && line.contains(&job));
    let took = |step: &str| {
        let words = line?.split(|c: char| c.is_whitespace() || c == '"');
        words.filter_map(|word| word.strip_prefix(step)?.strip_prefix('=')).next_back().map(str::to_owned)
    };
    match (took("repository"), took("release.repository")) {
        (Some(opened), Some(closed)) => format!(", share opened in {opened} ms and closed in {closed} ms"),
        _ => String::new(),
    }
}

/// Two lines of the transcript: a bare mount of the share that jobs are on, and a job on a directory.
pub fn beside(nas: Nas, fleet: &Fleet, stopped: &LabInstance) -> [String; 2] {
    let directory = fleet.share();
    let job = fleet.back_up(stopped, &directory, "off");
    fleet.completed(job);
    let name = nas.name();
    let bare: Vec<_> = (0..ROUNDS).map(|_| bare_mount(nas, fleet)).collect();
    let median = |part: fn(&(Duration, Duration)) -> Duration| {
        let mut times: Vec<_> = bare.iter().map(part).collect();
        times.sort_unstable();
        times[ROUNDS / 2].as_millis()
    };
    let (mounted, unmounted) = (median(|times| times.0), median(|times| times.1));
    [
        format!("{name} bare -> mounted in {mounted} ms and unmounted in {unmounted} ms"),
        format!("{name} beside, a directory, stopped nothing -> completed{}", of_share(fleet, job)),
    ]
}

/// With the options that jobs have.
fn bare_mount(nas: Nas, fleet: &Fleet) -> (Duration, Duration) {
    let (part, place) = (nas.part("good"), tempfile::tempdir().unwrap());
    let mut options = part.options;
    if nas == Nas::Cifs {
        let credentials = fleet.folder.join("credentials").join(RIGHT);
        options += &format!(",nobrl,credentials={}", credentials.display());
    }
    let mount = ["-t", nas.name(), "-o", &options, &part.address, path(place.path())];
    (timed("mount", &mount), timed("umount", &[path(place.path())]))
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn timed(program: &str, arguments: &[&str]) -> Duration {
    let begun = Instant::now();
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    begun.elapsed()
}
