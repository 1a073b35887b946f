//! How full the scratch is: what its files take, and what the file system under them has left. Both count, since several jobs
//! and whatever else writes there share that file system, and a guest whose scratch meets its end is paused by QEMU.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};

use super::ScratchDuty;

/// How often the scratch is measured.
const PERIOD: Duration = Duration::from_millis(500);

/// Part of the scratch limit at which the job is ended, per cent: what is under way in QEMU still has to fit.
const END_PERCENT: u64 = 80;

/// Longest time without a measurement. A local disk that answers no question for so long doesn't take the guest's writes
/// either.
const UNKNOWN_MAX: Duration = Duration::from_secs(10);

/// Unit of `st_blocks`, bytes, whatever the file system's own block is (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

struct Measured {
    used_bytes: u64,
    free_bytes: u64,
}

/// Measures one job's scratch, one measurement at a time.
pub(super) struct Scratch {
    duty: ScratchDuty,
    ticks: Interval,
    measuring: Option<JoinHandle<std::io::Result<Measured>>>,
    asked_at: Instant,
    measured_at: Instant,
}

impl Scratch {
    pub(super) fn new(duty: ScratchDuty) -> Self {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Self { duty, ticks, measuring: None, asked_at: now, measured_at: now }
    }

    /// Measures until there is a reason to end the job. May be dropped and called again.
    pub(super) async fn until_full(&mut self) -> String {
        loop {
            let task = match &mut self.measuring {
                Some(task) => task,
                None => {
                    self.ticks.tick().await;
                    self.asked_at = Instant::now();
                    let duty = self.duty.clone();
                    self.measuring.insert(tokio::task::spawn_blocking(move || measure(&duty)))
                }
            };
            let unknown = match timeout_at(self.asked_at + UNKNOWN_MAX, task).await {
                Ok(Ok(Ok(measured))) => {
                    self.measuring = None;
                    self.measured_at = Instant::now();
                    match self.reason(&measured) {
                        Some(reason) => return reason,
                        None => continue,
                    }
                }
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(error)) => error.to_string(),
                // The measurement that hangs stays: another one would only hang beside it.
                Err(_) => return format!("the scratch could not be measured for {UNKNOWN_MAX:?}: no answer"),
            };
            self.measuring = None;
            if self.measured_at.elapsed() >= UNKNOWN_MAX {
                return format!("the scratch could not be measured for {UNKNOWN_MAX:?}: {unknown}");
            }
        }
    }

    fn reason(&self, measured: &Measured) -> Option<String> {
        let Measured { used_bytes, free_bytes } = measured;
        let (limit, reserve) = (self.duty.limit_bytes, self.duty.reserve_bytes);
        if *used_bytes >= limit / 100 * END_PERCENT {
            Some(format!("the scratch holds {used_bytes} of {limit} bytes, and the job is given up at {END_PERCENT} %"))
        } else if *free_bytes < reserve {
            Some(format!(
                "the scratch's file system has {free_bytes} bytes left, and the job is given up below {reserve}"
            ))
        } else {
            None
        }
    }
}

/// A file that isn't there, or not yet, holds nothing; its directory has to be there.
fn measure(duty: &ScratchDuty) -> std::io::Result<Measured> {
    let mut measured = Measured { used_bytes: 0, free_bytes: u64::MAX };
    for file in &duty.files {
        measured.used_bytes += allocated_bytes(file)?;
        if let Some(directory) = file.parent() {
            let room = statvfs(directory)?;
            measured.free_bytes = measured.free_bytes.min(room.blocks_available() * room.fragment_size());
        }
    }
    Ok(measured)
}

fn allocated_bytes(file: &PathBuf) -> std::io::Result<u64> {
    match std::fs::symlink_metadata(file) {
        Ok(meta) => Ok(meta.blocks() * STAT_BLOCK_BYTES),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}
