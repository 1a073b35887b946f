//! What a restore looks at before it decides, and what it would do then: once for the job, for one that only says so, and for the command
//! line, so that none of them refuses what another one lets pass.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use super::elsewhere::choose::{Choice, Seen, choose, definition_record, read_definition};
use super::elsewhere::plan::PlannedTo;
use super::mapping::{Mapping, devices, map};
use super::overwrite::refuse_users;
use super::plan::refused_now;
use super::result::DryRun;
use super::{ElsewherePlan, RestorePlan, would};
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::job::session::Session;
use crate::job::steps::unexpected;
use crate::job::{Doors, keys};
use crate::model::id::{BackupId, DiskTarget, InstanceId};
use crate::model::job::{RestoreNewSpec, RestoreSpec};
use crate::model::manifest::Manifest;
use crate::mover::protocol::{BlockDevice, Reply, Request, ToMake, ToWeigh, Weighed};

/// Longest time for looking at block devices, and for reading the backup's manifest.
pub(super) const LOOK_SECONDS_MAX: u64 = 120;
/// Longest time for reading a record of the backup.
const RECORD_SECONDS_MAX: u64 = 60;
/// Longest time for reading what each image of the backup's chain holds.
pub(super) const WEIGH_SECONDS_MAX: u64 = 120;

/// One that looks at the repository, and at the host's storage. Changes nothing.
#[async_trait]
pub trait Eyes: Send {
    /// What each of those block devices is.
    async fn devices(&mut self, paths: Vec<PathBuf>) -> Result<Vec<BlockDevice>, Failure>;

    /// A file of the backup that is beside its images.
    async fn record(&mut self, instance: InstanceId, backup: BackupId, file: String) -> Result<Vec<u8>, Failure>;

    /// How much a restore would write, and why it would be refused as it is now; refuses where it could not be made at all.
    async fn weigh(&mut self, wanted: ToWeigh) -> Result<Weighed, Failure>;
}

/// Those of a job: its mover's.
#[async_trait]
impl Eyes for Session {
    async fn devices(&mut self, paths: Vec<PathBuf>) -> Result<Vec<BlockDevice>, Failure> {
        match self.ask(Request::LookAtDevices { paths }, Duration::from_secs(LOOK_SECONDS_MAX)).await? {
            Reply::Devices { devices } => Ok(devices),
            other => Err(unexpected("look_at_devices", &other)),
        }
    }

    async fn record(&mut self, instance: InstanceId, backup: BackupId, file: String) -> Result<Vec<u8>, Failure> {
        let request = Request::ReadRecord { instance, backup, file };
        match self.ask(request, Duration::from_secs(RECORD_SECONDS_MAX)).await? {
            Reply::Record { content } => Ok(content),
            other => Err(unexpected("read_record", &other)),
        }
    }

    async fn weigh(&mut self, wanted: ToWeigh) -> Result<Weighed, Failure> {
        match self.ask(Request::Weigh { wanted }, Duration::from_secs(WEIGH_SECONDS_MAX)).await? {
            Reply::Weighed(weighed) => Ok(weighed),
            other => Err(unexpected("weigh", &other)),
        }
    }
}

/// Which disks of the backup become which.
pub(super) async fn mapped(
    eyes: &mut dyn Eyes,
    plan: &RestorePlan,
    spec: &RestoreSpec,
    manifest: &Manifest,
) -> Result<Mapping, Failure> {
    let paths = devices(plan, spec, manifest)?;
    let looked = if paths.is_empty() { Vec::new() } else { eyes.devices(paths.clone()).await? };
    map(plan, spec, manifest, &paths.into_iter().zip(looked).collect())
}

/// What a restore in place would do. Refuses what the restore would refuse before it has read the backup; of what may pass, as that the
/// instance runs or somebody uses a block device, it says so.
pub async fn in_place(
    eyes: &mut dyn Eyes,
    doors: &Doors,
    plan: &RestorePlan,
    spec: &RestoreSpec,
    manifest: &Manifest,
) -> Result<DryRun, Failure> {
    let mapping = mapped(eyes, plan, spec, manifest).await?;
    let volumes: Vec<_> = mapping.volumes.iter().map(|(_, volume)| volume.clone()).collect();
    keys::must_be_there(&*doors.hypervisor, volumes.iter().filter_map(|volume| volume.place.secret())).await?;
    let to_make = ToMake::InPlace { volumes: volumes.clone(), keep_previous: plan.keep_previous };
    let wanted = ToWeigh { instance: plan.instance_id, backup: plan.backup_id, to_make };
    let Weighed { data_bytes, warnings } = eyes.weigh(wanted).await?;
    let mut unusual: Vec<_> = plan.refused_now.iter().chain(&mapping.warnings).cloned().collect();
    unusual.extend(warnings.iter().map(|why| refused_now(why)));
    // While the instance runs it is its own QEMU that uses them.
    if plan.refused_now.is_none() {
        match refuse_users(&*doors.movers, &volumes, None).await {
            Ok(unseen) => unusual.extend(unseen),
            Err(failure) if failure.code == Code::InUseElsewhere => unusual.push(refused_now(&failure.text)),
            Err(failure) => return Err(failure),
        }
    }
    Ok(DryRun { would: would::in_place(manifest, &mapping, &data_bytes), warnings: unusual })
}

/// What is made of the backup elsewhere.
pub(super) async fn chosen(
    eyes: &mut dyn Eyes,
    hypervisor: &dyn Hypervisor,
    plan: &ElsewherePlan,
    disks: &[DiskTarget],
    manifest: &Manifest,
) -> Result<Choice, Failure> {
    let definition = match plan.to {
        PlannedTo::NewInstance { .. } => {
            let file = definition_record(manifest)?.to_owned();
            Some(eyes.record(plan.instance_id, plan.backup_id, file).await?)
        }
        PlannedTo::Volume { .. } => None,
    };
    let (identities, memory_bytes) = (hypervisor.identities().await?, hypervisor.memory_bytes().await?);
    let (plan, disks, manifest) = (plan.clone(), disks.to_vec(), manifest.clone());
    // Not here: how long it takes to read, says whoever wrote it.
    let chosen = tokio::task::spawn_blocking(move || {
        let saved = definition.map(read_definition).transpose()?;
        let seen = Seen { definition: saved.as_ref(), identities: &identities, memory_bytes };
        choose(&plan, &disks, &manifest, seen)
    });
    let panicked = |error| Failure::new(Code::Internal, "the choice of what is restored panicked").because(&error);
    chosen.await.map_err(panicked)?
}

/// What a restore to elsewhere would do. Refuses what the restore would refuse before it has read the backup.
pub async fn elsewhere(
    eyes: &mut dyn Eyes,
    hypervisor: &dyn Hypervisor,
    plan: &ElsewherePlan,
    spec: &RestoreNewSpec,
    manifest: &Manifest,
) -> Result<DryRun, Failure> {
    let choice = chosen(eyes, hypervisor, plan, &spec.disks, manifest).await?;
    let to_make = ToMake::New(choice.new.clone());
    let wanted = ToWeigh { instance: plan.instance_id, backup: plan.backup_id, to_make };
    let Weighed { data_bytes, warnings } = eyes.weigh(wanted).await?;
    let would = would::elsewhere(plan, spec, manifest, &choice, &data_bytes);
    let unusual = choice.warnings.into_iter().chain(warnings.iter().map(|why| refused_now(why)));
    Ok(DryRun { would, warnings: unusual.collect() })
}
