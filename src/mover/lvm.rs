//! Asking the host's lvm2 for logical volumes, and having it make, rename and remove them. Its configuration is left as it is.

mod likeness;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::Mutex;

use super::command::{Command, CommandError, find, shown_end};
use crate::failure::{Code, Failure, LogicalName};

pub use likeness::Likeness;
use likeness::{Lack, Placement};
pub use report::LogicalVolume;

/// The tag of each volume that a restore makes, by which `lvs @longshore` finds them.
pub(super) const TAG: &str = "longshore";
/// Longest time for a look: lvm2 reads every disk that may be a part of a group.
const LOOK_DEADLINE_SECONDS: u64 = 60;
/// Longest time for a change, which may wait for udev and for other changes of the group.
const CHANGE_DEADLINE_SECONDS: u64 = 120;

/// The volumes that `selection` names: a group, or lvm2's options.
///
/// Not with `--readonly`, which can't tell whether one is open.
pub(super) async fn volumes(selection: &[&str], shown: &str) -> Result<Vec<LogicalVolume>, Failure> {
    let failed = || format!("cannot look at {shown}");
    let lvs = Command::new("lvs").args(["--reportformat", "json", "--units", "b", "--nosuffix", "-o", report::COLUMNS]);
    let finished = lvs.args(selection).run_to_success(Duration::from_secs(LOOK_DEADLINE_SECONDS)).await;
    let finished = finished.map_err(|error| error.failure(Code::VolumeIo, failed()))?;
    report::parse(&finished.stdout).map_err(|error| Failure::new(Code::VolumeIo, failed()).because(&error))
}

/// How much there is of some volumes, whether they are active or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// One is there.
    There,
    /// None is there.
    Gone,
    /// None is seen, and nor is the group of one: its disks may come back.
    Unseen,
}

/// There is one look at a time: one that waits for a dead device can't be ended, and the next would wait beside it.
static ONE_LOOK: Mutex<()> = Mutex::const_new(());

/// Looks for volumes by their names alone. Where lvm2 waits for a dead device and can't be killed, this does not answer until it has ended.
///
/// # Errors
/// `volume_io`: lvm2 does not tell.
pub async fn presence(volumes: &[LogicalName]) -> Result<Presence, Failure> {
    // Without lvm2 nobody sees a group.
    if find("lvs").is_none() {
        return Ok(Presence::Unseen);
    }
    let _alone = ONE_LOOK.lock().await;
    let groups: BTreeSet<_> = volumes.iter().map(|volume| volume.group.as_str()).collect();
    let before = seen(&groups).await?;
    if before.is_empty() {
        return Ok(Presence::Unseen);
    }
    let one = |LogicalName { group, name }: &LogicalName| format!("(vg_name=\"{group}\" && lv_name=\"{name}\")");
    let those = volumes.iter().map(one).collect::<Vec<_>>().join(" || ");
    // In those groups alone: another one that can't be read is no reason to know nothing of these.
    let lvs = Command::new("lvs").args(["--reportformat", "json", "-o", report::NAME_COLUMN, "--select", &those]);
    let failed = || Failure::new(Code::VolumeIo, "cannot look at logical volumes that may be left");
    let found = lvs.args(&before).run_until_gone(Duration::from_secs(LOOK_DEADLINE_SECONDS)).await;
    let found = found.map_err(|error| failed().because(&error))?;
    if !found.status.success() {
        return Err(failed().caused_by(format!("`lvs` ended with {}: {}", found.status, shown_end(&found.stderr))));
    }
    if !report::parse_names(&found.stdout).map_err(|error| failed().because(&error))?.is_empty() {
        return Ok(Presence::There);
    }
    // One that has come since was not looked into.
    let whole = |seen: &BTreeSet<String>| groups.iter().all(|group| seen.contains(*group));
    Ok(if whole(&before) && whole(&seen(&groups).await?) { Presence::Gone } else { Presence::Unseen })
}

/// Which of those groups can be looked into.
async fn seen(groups: &BTreeSet<&str>) -> Result<BTreeSet<String>, Failure> {
    let those = groups.iter().map(|group| format!("vg_name=\"{group}\"")).collect::<Vec<_>>().join(" || ");
    let vgs = Command::new("vgs").args(["--reportformat", "json", "-o", report::GROUP_COLUMNS, "--select", &those]);
    let failed = || Failure::new(Code::VolumeIo, "cannot look at the groups of logical volumes that may be left");
    // Whatever its status: that also says that it could not read another group.
    let finished = vgs.run_until_gone(Duration::from_secs(LOOK_DEADLINE_SECONDS)).await;
    let finished = finished.map_err(|error| failed().because(&error))?;
    report::parse_groups(&finished.stdout)
        .map_err(|error| failed().because(&error).caused_by(shown_end(&finished.stderr)))
}

/// What a volume that is to take the place of that one has to have of it.
pub(super) async fn likeness(group: &str, name: &str) -> Result<Likeness, Failure> {
    let failed = || format!("cannot look at the logical volume `{group}/{name}`");
    let json = ["--reportformat", "json", "--units", "b", "--nosuffix", "-o"];
    let lvs = Command::new("lvs").args(json).arg(likeness::ALL_COLUMNS).arg(format!("{group}/{name}"));
    let those = format!("vg_name=\"{group}\" && lv_name=\"{name}\"");
    let pvs = Command::new("pvs").args(json).args([likeness::DISK_COLUMNS, "--select", &those]);
    let mut told = Vec::new();
    for look in [lvs, pvs] {
        let finished = look.run_to_success(Duration::from_secs(LOOK_DEADLINE_SECONDS)).await;
        told.push(finished.map_err(|error| error.failure(Code::VolumeIo, failed()))?.stdout);
    }
    let [volumes, disks] = &told[..] else { return Err(Failure::new(Code::Internal, failed())) };
    likeness::parse(volumes, disks).map_err(|error| Failure::new(Code::VolumeIo, failed()).because(&error))
}

/// Makes a volume of at least so many bytes, in that thin pool or in the group's free extents.
pub(super) async fn create(
    group: &str,
    name: &str,
    bytes: u64,
    pool: Option<&str>,
    like: &Likeness,
) -> Result<(), Failure> {
    let text = || format!("cannot make the logical volume `{group}/{name}`");
    let create = || {
        let create = Command::new("lvcreate").args(["--yes", "--quiet", "--addtag", TAG, "--name", name]);
        like.tags.iter().fold(create, |create, tag| create.arg("--addtag").arg(tag))
    };
    if let Some(pool) = pool {
        let create = create().args(["--type", "thin", "--virtualsize"]).arg(format!("{bytes}b"));
        return change(create.args(["--thinpool", pool]).arg(group), text()).await;
    }
    let mut refused = Failure::new(Code::Internal, text());
    for Placement { allocation, disks } in like.placements() {
        let create = create().args(["--type", "linear", "--size"]).arg(format!("{bytes}b"));
        let create = allocation.map(|policy| ["--alloc", policy]).into_iter().flatten().fold(create, Command::arg);
        match create.arg(group).args(disks).run_to_success(Duration::from_secs(CHANGE_DEADLINE_SECONDS)).await {
            Ok(_) => return Ok(()),
            Err(error @ CommandError::Ended { .. }) => refused = error.failure(Code::VolumeIo, text()),
            Err(error) => return Err(error.failure(Code::VolumeIo, text())),
        }
    }
    Err(refused)
}

/// Gives a new volume what the old one has and it lacks. Answers what it could not be given, in a sentence each, in which it is called
/// `shown`. `volume_io`: without that it is none to be used.
pub(super) async fn liken(group: &str, name: &str, old: &Likeness, shown: &str) -> Result<Vec<String>, Failure> {
    let mut new = likeness(group, name).await?;
    let can_be_set: Vec<_> = old.lacking(&new, shown).into_iter().filter_map(|lack| lack.arguments).collect();
    let mut refused: BTreeMap<[String; 2], Failure> = BTreeMap::new();
    for arguments in &can_be_set {
        let lvchange = Command::new("lvchange").args(["--yes", "--quiet"]).args(arguments);
        let text = format!("`lvchange {}` did not work", arguments.join(" "));
        if let Err(failure) = change(lvchange.arg(format!("{group}/{name}")), text).await {
            refused.insert(arguments.clone(), failure);
        }
    }
    if !can_be_set.is_empty() {
        new = likeness(group, name).await?;
    }
    // What it has by now, and not what was answered, is what counts.
    let mut said = Vec::new();
    for Lack { arguments, text, is_needed } in old.lacking(&new, shown) {
        let why = arguments.and_then(|arguments| refused.remove(&arguments));
        match why {
            why if is_needed => {
                let failure = Failure::new(Code::VolumeIo, format!("{text}, other than the old one"));
                return Err(why.iter().fold(failure, Failure::because_of));
            }
            Some(why) => said.push(format!("{text}: {}", [vec![why.text], why.causes].concat().join(": "))),
            None => said.push(text),
        }
    }
    Ok(said)
}

/// Gives a volume another name in its group.
pub(super) async fn rename(group: &str, from: &str, to: &str) -> Result<(), Failure> {
    let text = format!("cannot rename the logical volume `{group}/{from}` to `{to}`");
    change(Command::new("lvrename").args(["--quiet", group, from, to]), text).await
}

/// lvm2's selection of what has no snapshots that would be removed with it: they are of no thin volume (lvs(8), the first character).
const NO_ORIGIN: &str = "lv_attr!~\"^[oO]\"";

/// Removes a volume. One that is open stays, which is an error, and so does one with snapshots, which is none: lvm2 looks for those while nobody
/// else changes the group.
pub(super) async fn remove(group: &str, name: &str) -> Result<(), Failure> {
    let text = format!("cannot remove the logical volume `{group}/{name}`");
    change(
        Command::new("lvremove").args(["--yes", "--quiet", "--select", NO_ORIGIN]).arg(format!("{group}/{name}")),
        text,
    )
    .await
}

async fn change(command: Command, failed: String) -> Result<(), Failure> {
    let changed = command.run_to_success(Duration::from_secs(CHANGE_DEADLINE_SECONDS)).await;
    changed.map(drop).map_err(|error| error.failure(Code::VolumeIo, failed))
}
