//! What the guest's own writes took while its backup was made: the promise that it never waits for a share is measured, not
//! assumed. Once a second the hypervisor is asked for each disk's counters; the worst second is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::late::{self, is_listed};
use crate::host::hypervisor::{Hypervisor, WriteCounters};
use crate::model::id::{DiskTarget, InstanceId};

/// How often the counters are asked for.
const PERIOD: Duration = Duration::from_secs(1);

/// Longest wait for the last counters: they are worth less than the guest that is to be let go.
const LAST_WAIT: Duration = Duration::from_secs(2);

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// The worst that was seen so far. Pure.
#[derive(Debug, Default)]
pub struct WorstWrite {
    before: BTreeMap<DiskTarget, WriteCounters>,
    worst_ns: Option<u64>,
}

impl WorstWrite {
    /// Takes in the counters of now. Those of a disk that went back, as when its QEMU is another, only begin anew.
    pub fn see(&mut self, disks: &[DiskTarget], now: Vec<WriteCounters>) {
        for now in now.into_iter().filter(|now| disks.contains(&now.target)) {
            if let Some(before) = self.before.get(&now.target) {
                let write = mean((before.writes, before.write_ns), (now.writes, now.write_ns));
                let flush = mean((before.flushes, before.flush_ns), (now.flushes, now.flush_ns));
                self.worst_ns = self.worst_ns.max(write).max(flush);
            }
            self.before.insert(now.target.clone(), now);
        }
    }

    /// The highest mean, milliseconds, rounded up; none where nothing was written.
    pub fn milliseconds(&self) -> Option<u64> {
        self.worst_ns.map(|worst| worst.div_ceil(NANOSECONDS_PER_MILLISECOND))
    }
}

/// What one request took on the mean between two looks at (how many, how long).
fn mean(before: (u64, u64), now: (u64, u64)) -> Option<u64> {
    let (count, took) = (now.0.checked_sub(before.0)?, now.1.checked_sub(before.1)?);
    took.checked_div(count)
}

/// Looks on until it is stopped or dropped.
pub(super) struct Sampler {
    hypervisor: Arc<dyn Hypervisor>,
    instance: InstanceId,
    disks: Vec<DiskTarget>,
    worst: Arc<Mutex<WorstWrite>>,
    task: AbortOnDropHandle<()>,
}

impl Sampler {
    /// Begins to look at the instance's disks.
    pub fn start(hypervisor: Arc<dyn Hypervisor>, instance: InstanceId, disks: Vec<DiskTarget>) -> Self {
        let worst: Arc<Mutex<WorstWrite>> = Arc::default();
        let (asked, seen, of) = (Arc::clone(&hypervisor), Arc::clone(&worst), disks.clone());
        let task = tokio::spawn(async move {
            let mut ticks = interval(PERIOD);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                look(asked.as_ref(), instance, &of, &seen).await;
            }
        });
        Self { hypervisor, instance, disks, worst, task: AbortOnDropHandle::new(task) }
    }

    /// Looks a last time, and answers the worst, milliseconds.
    pub async fn stop(self) -> Option<u64> {
        drop(self.task);
        let last = look(self.hypervisor.as_ref(), self.instance, &self.disks, &self.worst);
        // What it would have told is lost with it.
        let _ = timeout(LAST_WAIT, last).await;
        self.worst.lock().unwrap_or_else(PoisonError::into_inner).milliseconds()
    }
}

/// A QEMU that does not answer is not asked a second time before it has: each question would keep a thread of the door.
async fn look(hypervisor: &dyn Hypervisor, instance: InstanceId, disks: &[DiskTarget], worst: &Mutex<WorstWrite>) {
    if is_listed(hypervisor, instance, late::COUNTERS) {
        return;
    }
    if let Ok(now) = hypervisor.write_counters(instance).await {
        worst.lock().unwrap_or_else(PoisonError::into_inner).see(disks, now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn counters(target: &str, writes: (u64, u64), flushes: (u64, u64)) -> WriteCounters {
        WriteCounters {
            target: target.parse().unwrap(),
            writes: writes.0,
            write_ns: writes.1 * NANOSECONDS_PER_MILLISECOND,
            flushes: flushes.0,
            flush_ns: flushes.1 * NANOSECONDS_PER_MILLISECOND,
        }
    }

    fn worst(looks: &[WriteCounters]) -> Option<u64> {
        let mut worst = WorstWrite::default();
        for now in looks {
            worst.see(&["vda".parse().unwrap(), "vdb".parse().unwrap()], vec![now.clone()]);
        }
        worst.milliseconds()
    }

    #[test]
    fn the_worst_second_of_the_slowest_disk_counts() {
        let before = counters("vda", (1000, 90_000), (10, 50_000));
        assert_eq!(worst(std::slice::from_ref(&before)), None, "what was before the backup says nothing about it");
        assert_eq!(worst(&[before.clone(), before.clone()]), None, "nothing was written");
        let quick = counters("vda", (1010, 90_020), (10, 50_000));
        let slow = counters("vda", (1012, 90_520), (11, 50_100));
        assert_eq!(worst(&[before.clone(), quick.clone()]), Some(2));
        assert_eq!(worst(&[before.clone(), quick.clone(), slow.clone(), slow.clone()]), Some(250));
        let flushes = counters("vda", (1010, 90_020), (11, 51_000));
        assert_eq!(worst(&[before.clone(), flushes]), Some(1000));
        let other = [counters("vdb", (0, 0), (0, 0)), counters("vdb", (1, 700), (0, 0))];
        assert_eq!(worst(&[&[before, slow][..], &other].concat()), Some(700));
    }

    #[test]
    fn counters_that_went_back_begin_anew_and_other_disks_do_not_count() {
        let (high, low) = (counters("vda", (100, 100), (5, 5)), counters("vda", (1, 1), (0, 0)));
        assert_eq!(worst(&[high, low.clone(), counters("vda", (3, 9), (0, 0))]), Some(4));
        assert_eq!(worst(&[low, counters("vdc", (0, 0), (0, 0)), counters("vdc", (1, 9000), (0, 0))]), None);
    }
}
