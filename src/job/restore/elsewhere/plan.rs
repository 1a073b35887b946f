//! What can be decided before the backup is looked at: where it goes, and that the instance which a volume is to become a disk of can
//! take it. Journalled before the first step; what the backup adds to it is journalled by the step that looks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::host::hypervisor::definition;
use crate::job::Attempt;
use crate::job::common::Wants;
use crate::job::names::mover_name;
use crate::model::destination::{Attach, Destination, DiskBus, MacAddresses, NewInstanceSpec, NewVolumeSpec, below};
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{ImageFormat, Instance, PowerState};
use crate::model::job::{RestoreNewSpec, RunKey};

/// What will be done, and under which names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ElsewherePlan {
    /// The backup.
    pub backup_id: BackupId,
    /// Job and run.
    pub key: RunKey,
    /// Attempt within the run.
    pub attempt: u32,
    /// The instance whose backup it is.
    pub instance_id: InstanceId,
    /// Where it goes.
    pub to: PlannedTo,
    /// Directories below which volumes may be made.
    pub roots: Vec<PathBuf>,
    /// Nothing is made.
    #[serde(default)]
    pub dry_run: bool,
    /// Name of the mover.
    pub mover_name: String,
}

/// Where a backup goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedTo {
    /// Into an instance of its own.
    NewInstance {
        /// Its uuid.
        id: InstanceId,
        /// Its name.
        name: InstanceName,
        /// Its MAC addresses.
        mac_addresses: MacAddresses,
        /// Where its volumes are made.
        directory: PathBuf,
        /// Paths of some.
        volumes: BTreeMap<DiskTarget, PathBuf>,
        /// It is started.
        start: bool,
    },
    /// One disk into a file.
    Volume {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: ImageFormat,
        /// What it becomes a disk of.
        attach: Option<PlannedAttach>,
    },
}

/// How a file becomes a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedAttach {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its name.
    pub instance_name: InstanceName,
    /// The target.
    pub target: DiskTarget,
    /// The bus.
    pub bus: DiskBus,
    /// Serial numbers of its disks.
    pub serials: Vec<String>,
}

impl ElsewherePlan {
    /// What it wants of the mover and the repository, where nothing but the lease is written.
    pub(in crate::job) fn wants(&self) -> Wants {
        Wants { mover_name: self.mover_name.clone(), instance: Some(self.instance_id), need_bytes: 0, writer: None }
    }

    /// Libvirt is asked to make something of the files.
    pub(in crate::job) fn becomes_somebodys(&self) -> bool {
        !matches!(self.to, PlannedTo::Volume { attach: None, .. })
    }

    /// The new instance is started.
    pub fn starts(&self) -> bool {
        matches!(self.to, PlannedTo::NewInstance { start: true, .. })
    }
}

/// Makes the plan. `takes_it` is the instance that a volume is to be attached to.
///
/// `path_not_allowed`: a path is outside the roots. `instance_state_unsupported`, `instance_running`, `disk_target_in_use`: that instance
/// cannot take it.
pub fn plan(
    attempt: &Attempt,
    spec: &RestoreNewSpec,
    roots: &[PathBuf],
    instance_id: InstanceId,
    takes_it: Option<&Instance>,
) -> Result<ElsewherePlan, Failure> {
    let to = match &spec.to {
        Destination::NewInstance(spec) => new_instance(spec, roots)?,
        Destination::Volume(NewVolumeSpec { path, format, attach }) => {
            must_be_allowed(roots, path)?;
            let attach = attach.as_ref().zip(takes_it).map(|(attach, instance)| planned_attach(attach, instance));
            PlannedTo::Volume { path: path.clone(), format: *format, attach: attach.transpose()? }
        }
    };
    Ok(ElsewherePlan {
        backup_id: spec.backup_id,
        key: attempt.job.key,
        attempt: attempt.attempt,
        instance_id,
        to,
        roots: roots.to_vec(),
        dry_run: spec.dry_run,
        mover_name: mover_name(attempt),
    })
}

fn new_instance(spec: &NewInstanceSpec, roots: &[PathBuf]) -> Result<PlannedTo, Failure> {
    let directory = match (&spec.directory, roots.first()) {
        (Some(directory), _) => directory.clone(),
        (None, Some(root)) => root.clone(),
        (None, None) => return Err(not_allowed(roots, Path::new("/"))),
    };
    if !roots.contains(&directory) {
        must_be_allowed(roots, &directory)?;
    }
    spec.volumes.values().try_for_each(|path| must_be_allowed(roots, path))?;
    Ok(PlannedTo::NewInstance {
        id: spec.id.unwrap_or_else(InstanceId::draw),
        name: spec.name.clone(),
        mac_addresses: spec.mac_addresses,
        directory,
        volumes: spec.volumes.clone(),
        start: spec.start,
    })
}

fn must_be_allowed(roots: &[PathBuf], path: &Path) -> Result<(), Failure> {
    match below(roots, path) {
        Some(_) => Ok(()),
        None => Err(not_allowed(roots, path)),
    }
}

fn not_allowed(roots: &[PathBuf], path: &Path) -> Failure {
    let roots = roots.iter().map(|root| format!("`{}`", root.display())).collect::<Vec<_>>().join(", ");
    let text = format!("no new volume can be made at `{}`", path.display());
    Failure::new(Code::PathNotAllowed, text).caused_by(format!("this host allows {roots} (`restore.directories`)"))
}

fn planned_attach(attach: &Attach, instance: &Instance) -> Result<PlannedAttach, Failure> {
    let Instance { id, name, state, saved_memory, transient, disks, definition, .. } = instance;
    let refused = |code, why: &str| {
        Failure::new(code, format!("disk `{}` cannot be attached to instance `{name}`: {why}", attach.target))
    };
    if *transient {
        let why = "it has no definition that outlives its run, which would get the disk as well";
        return Err(refused(Code::InstanceStateUnsupported, why));
    }
    match state {
        PowerState::ShutOff if *saved_memory => {
            let why = "its memory was saved, and its next start would resume without the disk";
            return Err(refused(Code::InstanceStateUnsupported, why));
        }
        PowerState::Running if !attach.bus.takes_disks_at_any_time() => {
            let why = format!("it runs, and the bus `{}` takes no disk then", attach.bus.as_str());
            return Err(refused(Code::InstanceRunning, &why));
        }
        PowerState::Running | PowerState::ShutOff => {}
        _ => return Err(refused(Code::InstanceStateUnsupported, "it neither runs nor is it shut off")),
    }
    // It becomes one of what runs and of the next start, and each may have others.
    let at_next_start = definition::disk_targets(definition)
        .map_err(|failure| Failure { code: Code::HypervisorFailed, ..failure })?
        .contains(attach.target.as_str());
    if at_next_start || disks.iter().any(|disk| disk.target == attach.target) {
        return Err(refused(Code::DiskTargetInUse, "it has one of that target"));
    }
    Ok(PlannedAttach {
        instance_id: *id,
        instance_name: name.clone(),
        target: attach.target.clone(),
        bus: attach.bus,
        serials: disks.iter().filter_map(|disk| disk.serial.clone()).collect(),
    })
}
