//! Talking to the guest about its file systems: what a freeze reached, and the thaw that is repeated until it is confirmed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::plan::PlannedDisk;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::{FreezeStatus, GuestFileSystem, Hypervisor};
use crate::model::id::{DiskTarget, InstanceId};
use crate::model::instance::PowerState;
use crate::model::manifest::Consistency;

/// Longest time that a thaw is repeated before a person has to look: a freeze whose call timed out can still come about
/// when the guest's freeze hook ends.
pub const THAW_SECONDS_MAX: u64 = 120;

/// Longest time for one thaw to be answered. Thawing writes to every file system, so it may take a while on a slow disk.
const THAW_ANSWER_SECONDS_MAX: u64 = 15;

/// Longest time for the agent to answer something that costs it nothing.
pub const AGENT_ANSWER_SECONDS_MAX: u64 = 5;

/// Pause between two thaws.
const THAW_PAUSE_MILLISECONDS: u64 = 250;

/// File systems that Linux and Windows guests cannot freeze by their nature (no freeze operation in the kernel's driver,
/// no VSS support, or never written to), in lower case. They do not make a freeze incomplete; they are named all the same.
const UNFREEZABLE_KINDS: [&str; 11] =
    ["vfat", "msdos", "fat", "fat12", "fat16", "fat32", "exfat", "iso9660", "cdfs", "udf", "squashfs"];

/// What a freeze that the agent reported as done has reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The consistency that may be recorded.
    pub consistency: Consistency,
    /// Mount points on backed-up disks that were not frozen, or not surely.
    pub not_frozen: Vec<String>,
    /// Why it is less than `file_system`.
    pub reason: Option<String>,
}

/// Judges a freeze from the number of file systems that the agent says it froze, and those that it lists.
///
/// The agent counts but does not name (guest-fsfreeze-freeze in the QEMU guest agent's reference), and counts a file
/// system that is mounted twice once. So only a count that covers every freezable one proves that those on the
/// backed-up disks were among them.
pub fn judge(frozen: u32, file_systems: Option<&[GuestFileSystem]>, disks: &[PlannedDisk]) -> Reached {
    let Some(file_systems) = file_systems else {
        let reason = format!("the agent froze {frozen} file systems but did not say which there are");
        return Reached { consistency: at_best_partial(frozen), not_frozen: Vec::new(), reason: Some(reason) };
    };
    let mut freezable: BTreeMap<&str, &GuestFileSystem> = BTreeMap::new();
    for file_system in file_systems.iter().filter(|file_system| is_freezable(file_system)) {
        let device = if file_system.device.is_empty() { &file_system.mount_point } else { &file_system.device };
        freezable.insert(device, file_system);
    }
    let backed_up = |file_system: &GuestFileSystem| is_backed_up(file_system, disks);
    let expected = u32::try_from(freezable.len()).unwrap_or(u32::MAX);
    if frozen >= expected && freezable.values().any(|file_system| backed_up(file_system)) {
        let others = file_systems.iter().filter(|file_system| !is_freezable(file_system) && backed_up(file_system));
        let not_frozen = others.map(|file_system| file_system.mount_point.clone()).collect();
        return Reached { consistency: Consistency::FileSystem, not_frozen, reason: None };
    }
    let not_frozen: Vec<String> = file_systems
        .iter()
        .filter(|file_system| backed_up(file_system))
        .map(|file_system| file_system.mount_point.clone())
        .collect();
    let reason = if freezable.values().any(|file_system| backed_up(file_system)) {
        format!("the agent froze {frozen} of {expected} file systems that can be frozen, and does not say which")
    } else {
        "no file system on the backed-up disks can be frozen".to_owned()
    };
    let consistency =
        if freezable.values().any(|f| backed_up(f)) { at_best_partial(frozen) } else { Consistency::Crash };
    Reached { consistency, not_frozen, reason: Some(reason) }
}

fn at_best_partial(frozen: u32) -> Consistency {
    if frozen == 0 { Consistency::Crash } else { Consistency::Partial }
}

fn is_freezable(file_system: &GuestFileSystem) -> bool {
    !UNFREEZABLE_KINDS.contains(&file_system.kind.to_ascii_lowercase().as_str())
}

/// A file system that libvirt cannot map to a disk counts as being on a backed-up one: the record must not say more than
/// is known.
fn is_backed_up(file_system: &GuestFileSystem, disks: &[PlannedDisk]) -> bool {
    let on = |target: &DiskTarget| disks.iter().any(|disk| disk.target == *target);
    file_system.disks.is_empty() || file_system.disks.iter().any(on)
}

/// A guest that is thawed.
#[derive(Debug)]
pub struct Thawed {
    /// When the first good answer to a thaw came, which is when the guest went on.
    pub at: Instant,
    /// What the very first thaw answered: how many file systems it found frozen.
    pub first: Result<u32, Failure>,
}

#[derive(Default)]
struct Tries {
    thawed_at: Option<Instant>,
    first: Option<Result<u32, Failure>>,
}

impl Tries {
    fn thawed(self) -> Thawed {
        let unanswered = || Err(Failure::new(Code::AgentSilent, "the first thaw was not answered"));
        Thawed { at: self.thawed_at.unwrap_or_else(Instant::now), first: self.first.unwrap_or_else(unanswered) }
    }
}

/// Thaws the guest, again and again, until its agent says that it is thawed or it has stopped running, until `until` at
/// the latest but at least once.
pub async fn thaw_until_confirmed(
    hypervisor: &dyn Hypervisor,
    instance: InstanceId,
    until: Instant,
) -> Result<Thawed, Failure> {
    let until = until.max(Instant::now() + Duration::from_secs(THAW_ANSWER_SECONDS_MAX + 2 * AGENT_ANSWER_SECONDS_MAX));
    let pause = Duration::from_millis(THAW_PAUSE_MILLISECONDS);
    let mut tries = Tries::default();
    let mut last = None;
    loop {
        match timeout_at(until, thaw_once(hypervisor, instance, &mut tries)).await {
            Ok(Ok(())) => return Ok(tries.thawed()),
            Ok(Err(failure)) => last = Some(failure),
            Err(_) => {}
        }
        if Instant::now() + pause >= until {
            let text =
                format!("instance `{instance}` has been asked to freeze and has not confirmed that it is thawed");
            let failure = Failure::new(Code::GuestMaybeFrozen, text);
            return Err(match last {
                Some(last) => failure.because_of(&last),
                None => failure.caused_by("no call to its agent came back"),
            });
        }
        sleep(pause).await;
    }
}

/// One thaw and the question whether it worked. A guest that is not running has nothing frozen: the freeze is in its memory.
async fn thaw_once(hypervisor: &dyn Hypervisor, instance: InstanceId, tries: &mut Tries) -> Result<(), Failure> {
    let thaw = hypervisor.thaw(instance, Duration::from_secs(THAW_ANSWER_SECONDS_MAX)).await;
    if thaw.is_ok() {
        tries.thawed_at.get_or_insert_with(Instant::now);
    }
    tries.first.get_or_insert_with(|| thaw.clone());
    match hypervisor.freeze_status(instance, Duration::from_secs(AGENT_ANSWER_SECONDS_MAX)).await {
        Ok(FreezeStatus::Thawed) => Ok(()),
        Ok(FreezeStatus::Frozen) => {
            tries.thawed_at = None;
            Err(thaw
                .err()
                .unwrap_or_else(|| Failure::new(Code::GuestMaybeFrozen, "the agent says that the guest is frozen")))
        }
        // Without a channel no freeze ever reached the guest.
        Err(failure) if failure.code == Code::AgentMissing => Ok(()),
        Err(failure) => match hypervisor.state(instance).await {
            Ok(PowerState::ShutOff) => Ok(()),
            Err(gone) if gone.code == Code::InstanceNotHere => Ok(()),
            _ => Err(failure),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::instance::{DiskSource, ImageFormat};

    fn disk(target: &str) -> PlannedDisk {
        let source = DiskSource::File { path: format!("/{target}").into(), format: ImageFormat::Qcow2 };
        PlannedDisk {
            target: target.parse().unwrap(),
            serial: None,
            source,
            pool_volume: None,
            data_elsewhere: false,
            virtual_bytes: None,
            allocated_bytes: None,
        }
    }

    fn file_system(mount_point: &str, kind: &str, device: &str, disks: &[&str]) -> GuestFileSystem {
        let disks = disks.iter().map(|target| target.parse().unwrap()).collect();
        GuestFileSystem { mount_point: mount_point.into(), kind: kind.into(), device: device.into(), disks }
    }

    fn check(frozen: u32, file_systems: &[GuestFileSystem], consistency: Consistency, not_frozen: &[&str]) {
        let reached = judge(frozen, Some(file_systems), &[disk("vda"), disk("vdb")]);
        assert_eq!(reached.consistency, consistency, "{reached:?}");
        assert_eq!(reached.not_frozen, not_frozen, "{reached:?}");
        assert_eq!(reached.reason.is_none(), consistency == Consistency::FileSystem, "{reached:?}");
    }

    #[test]
    fn all_file_systems_frozen_is_file_system_consistent() {
        let all = [file_system("/", "ext4", "vda1", &["vda"]), file_system("/srv", "xfs", "vdb1", &["vdb"])];
        check(2, &all, Consistency::FileSystem, &[]);
    }

    #[test]
    fn a_file_system_mounted_twice_is_counted_once() {
        let all = [file_system("/", "btrfs", "vda1", &["vda"]), file_system("/home", "btrfs", "vda1", &["vda"])];
        check(1, &all, Consistency::FileSystem, &[]);
    }

    #[test]
    fn a_file_system_that_nobody_can_freeze_is_named_but_not_held_against_the_freeze() {
        let all = [file_system("/", "ext4", "vda2", &["vda"]), file_system("/boot/efi", "vfat", "vda1", &["vda"])];
        check(1, &all, Consistency::FileSystem, &["/boot/efi"]);
    }

    #[test]
    fn too_low_a_count_is_partial_and_names_the_candidates() {
        let all = [file_system("/", "ext4", "vda1", &["vda"]), file_system("/srv", "ext4", "vdb1", &["vdb"])];
        check(1, &all, Consistency::Partial, &["/", "/srv"]);
        check(0, &all, Consistency::Crash, &["/", "/srv"]);
    }

    #[test]
    fn a_low_count_may_mean_any_file_system_even_with_disks_left_out() {
        let all = [file_system("/", "ext4", "vda1", &["vda"]), file_system("/shared", "ocfs2", "vdz", &["vdz"])];
        check(1, &all, Consistency::Partial, &["/"]);
    }

    #[test]
    fn an_unmapped_file_system_counts_as_backed_up() {
        check(1, &[file_system("/", "ext4", "dm-0", &[])], Consistency::FileSystem, &[]);
    }

    #[test]
    fn a_guest_without_freezable_file_systems_is_crash_consistent() {
        check(0, &[], Consistency::Crash, &[]);
        check(0, &[file_system("/boot/efi", "vfat", "vda1", &["vda"])], Consistency::Crash, &["/boot/efi"]);
    }

    #[test]
    fn without_a_list_nothing_is_proven() {
        assert_eq!(judge(3, None, &[disk("vda")]).consistency, Consistency::Partial);
    }
}
