//! Asking the host's lvm2 for logical volumes, and having it make, rename and remove them. Its configuration is left as it is.

mod report;

use std::collections::BTreeSet;
use std::time::Duration;

use super::command::{Command, find};
use crate::failure::{Code, Failure, LogicalName};

pub use report::{Likeness, LogicalVolume};

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

/// Looks for volumes by their names alone.
///
/// # Errors
/// `volume_io`: lvm2 does not tell.
pub async fn presence(volumes: &[LogicalName]) -> Result<Presence, Failure> {
    // Without lvm2 nobody sees a group.
    if find("lvs").is_none() {
        return Ok(Presence::Unseen);
    }
    let one = |LogicalName { group, name }: &LogicalName| format!("(vg_name=\"{group}\" && lv_name=\"{name}\")");
    let those = volumes.iter().map(one).collect::<Vec<_>>().join(" || ");
    if !self::volumes(&["--select", &those], "logical volumes that may be left").await?.is_empty() {
        return Ok(Presence::There);
    }
    let groups: BTreeSet<_> = volumes.iter().map(|volume| volume.group.as_str()).collect();
    let those = groups.iter().map(|group| format!("vg_name=\"{group}\"")).collect::<Vec<_>>().join(" || ");
    let vgs = Command::new("vgs").args(["--reportformat", "json", "-o", report::GROUP_COLUMNS, "--select", &those]);
    let failed = || "cannot look at the groups of logical volumes that may be left";
    let finished = vgs.run_to_success(Duration::from_secs(LOOK_DEADLINE_SECONDS)).await;
    let finished = finished.map_err(|error| error.failure(Code::VolumeIo, failed()))?;
    let seen = report::parse_groups(&finished.stdout)
        .map_err(|error| Failure::new(Code::VolumeIo, failed()).because(&error))?;
    let all = groups.iter().all(|group| seen.iter().any(|name| name == group));
    Ok(if all { Presence::Gone } else { Presence::Unseen })
}

/// What a volume that is to take the place of that one has to have of it.
pub(super) async fn likeness(group: &str, name: &str) -> Result<Likeness, Failure> {
    let failed = || format!("cannot look at the logical volume `{group}/{name}`");
    let lvs = Command::new("lvs").args(["--reportformat", "json", "-o", report::ALL_COLUMNS]);
    let lvs = lvs.arg(format!("{group}/{name}"));
    let finished = lvs.run_to_success(Duration::from_secs(LOOK_DEADLINE_SECONDS)).await;
    let finished = finished.map_err(|error| error.failure(Code::VolumeIo, failed()))?;
    report::parse_likeness(&finished.stdout).map_err(|error| Failure::new(Code::VolumeIo, failed()).because(&error))
}

/// Makes a volume of at least so many bytes, in that thin pool or in the group's free extents.
pub(super) async fn create(
    group: &str,
    name: &str,
    bytes: u64,
    pool: Option<&str>,
    like: &Likeness,
) -> Result<(), Failure> {
    let create = Command::new("lvcreate").args(["--yes", "--quiet", "--addtag", TAG, "--name", name]);
    let create = like.tags.iter().fold(create, |create, tag| create.arg("--addtag").arg(tag));
    let create = match pool {
        None => create.args(["--type", "linear", "--size"]).arg(format!("{bytes}b")).arg(group),
        Some(pool) => create
            .args(["--type", "thin", "--virtualsize"])
            .arg(format!("{bytes}b"))
            .args(["--thinpool", pool])
            .arg(group),
    };
    change(create, format!("cannot make the logical volume `{group}/{name}`")).await?;
    // Without a word of it where it is as by default, which older versions have no option for.
    if !like.stays_inactive {
        return Ok(());
    }
    // lvcreate has the option for volumes that are not thin alone.
    let change_it = Command::new("lvchange").args(["--yes", "--quiet", "--setautoactivation", "n"]);
    let text = format!("cannot keep the logical volume `{group}/{name}` from being activated by itself");
    change(change_it.arg(format!("{group}/{name}")), text).await
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
