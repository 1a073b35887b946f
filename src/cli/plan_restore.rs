//! `longshore backup plan-restore`: what a restore would do on this host, in place or elsewhere. Nothing is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::ConfigArgs;
use super::broker::{block_on, load};
use super::destination::ToArgs;
use super::exit::Exit;
use super::output::{self, CliError};
use super::planned;
use super::publish::pair;
use crate::failure::Failure;
use crate::host::hypervisor::Hypervisor;
use crate::host::hypervisor::definition::Saved;
use crate::host::hypervisor::libvirt::Libvirt;
use crate::job::Attempt;
use crate::job::restore::elsewhere::{self, choose};
use crate::job::restore::{mapping, plan, would};
use crate::message::job::RestorePart;
use crate::model::destination::{Attach, Destination, NewVolumeSpec};
use crate::model::id::{BackupId, InstanceRef, JobId};
use crate::model::job::{Job, RestoreNewSpec, RestoreSpec, RetryPolicy, RunKey, Work};
use crate::model::manifest::Manifest;
use crate::model::repository::{Repository, RepositoryType};
use crate::model::restoration::PlannedRestore;
use crate::mover::protocol::{ToMake, ToWeigh};
use crate::mover::share::find_backup;
use crate::mover::weigh::weigh_at;
use crate::mover::{block_device, new_files};

#[derive(Debug, Args)]
pub struct PlanRestoreArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Directory of the repository
    directory: PathBuf,
    /// The backup
    backup: BackupId,
    /// Only this disk of the backup, by its target; may be repeated
    #[arg(long, value_name = "TARGET")]
    disk: Vec<String>,
    /// In place: disk of the backup that is to become this disk of the instance; may be repeated
    #[arg(long, value_name = "TARGET=TARGET", value_parser = pair)]
    onto: Vec<(String, String)>,
    /// In place: keep the old volumes
    #[arg(long)]
    keep_previous: bool,
    /// In place: write over block devices that are no logical volumes of LVM
    #[arg(long, conflicts_with = "keep_previous")]
    overwrite: bool,
    #[command(flatten)]
    to: ToArgs,
    /// The plan as one JSON object
    #[arg(long)]
    json: bool,
}

/// What a restore would do, and what is unusual about that.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    would: PlannedRestore,
    warnings: Vec<String>,
}

/// The job that a plan is made for.
struct Asked<'a> {
    directory: &'a Path,
    manifest: Manifest,
    attempt: Attempt,
    hypervisor: Libvirt,
    roots: Vec<PathBuf>,
}

pub fn run(args: &PlanRestoreArgs) -> Result<Exit, CliError> {
    let config = load(&args.config)?;
    let manifest = find_backup(&args.directory, args.backup)?;
    let work = work(args)?;
    let asked = Asked {
        directory: &args.directory,
        attempt: attempt(args, &manifest, work.clone())?,
        manifest,
        hypervisor: Libvirt::new(&config.libvirt.uri),
        roots: config.restore.directories,
    };
    let told = block_on(async {
        match &work {
            Work::RestoreNew(spec) => asked.elsewhere(spec).await,
            Work::Restore(spec) => asked.in_place(spec).await,
            _ => Err(CliError::failed("no restore was asked for")),
        }
    })?;
    if args.json {
        output::json_line(&told)?;
    } else {
        planned::print(&told.would)?;
        for warning in &told.warnings {
            output::line(&format!("unusual        {}", output::printable(warning)))?;
        }
    }
    Ok(if told.warnings.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn work(args: &PlanRestoreArgs) -> Result<Work, CliError> {
    let backup_id = args.backup.to_string();
    if let Some(part) = args.to.part(&backup_id, &args.disk, true) {
        return part.check().map(Work::RestoreNew).map_err(CliError::usage);
    }
    let part = RestorePart {
        backup_id,
        disks: args.disk.clone(),
        onto: args.onto.iter().cloned().collect(),
        keep_previous: args.keep_previous,
        dry_run: true,
        overwrite: args.overwrite,
    };
    part.check().map(Work::Restore).map_err(CliError::usage)
}

fn attempt(args: &PlanRestoreArgs, manifest: &Manifest, work: Work) -> Result<Attempt, CliError> {
    let job = Job {
        key: RunKey { job_id: JobId::draw(), run: 1 },
        host: "this-host".parse().map_err(CliError::failed)?,
        instance: Some(InstanceRef::Id(manifest.instance_id)),
        repository: Repository {
            id: manifest.repository_id,
            repository_type: RepositoryType::Directory,
            address: args.directory.display().to_string(),
            options: Vec::new(),
            credentials: None,
        },
        work,
        retry: RetryPolicy::default(),
        start_before: None,
        deadline: Job::DEFAULT_DEADLINE,
        labels: Default::default(),
        requested_by: None,
    };
    Ok(Attempt { job, attempt: 1, backup_id: BackupId::draw() })
}

impl Asked<'_> {
    fn weigh(&self, to_make: ToMake) -> Result<Vec<u64>, Failure> {
        let Manifest { instance_id: instance, backup_id: backup, .. } = self.manifest;
        weigh_at(self.directory, &ToWeigh { instance, backup, to_make })
    }

    async fn in_place(&self, spec: &RestoreSpec) -> Result<Told, CliError> {
        let instance = self.hypervisor.find(&InstanceRef::Id(self.manifest.instance_id)).await?;
        let plan = plan::plan(&self.attempt, spec, &instance)?;
        let mut devices = BTreeMap::new();
        for path in mapping::devices(&plan, spec, &self.manifest)? {
            let device = block_device::look(&path).await?;
            devices.insert(path, device);
        }
        let mapping = mapping::map(&plan, spec, &self.manifest, &devices)?;
        let data_bytes = self.weigh(would::to_make(&mapping, spec.keep_previous))?;
        let would = would::in_place(&self.manifest, &mapping, &data_bytes);
        Ok(Told { would, warnings: would::remarks(&plan, &mapping) })
    }

    async fn elsewhere(&self, spec: &RestoreNewSpec) -> Result<Told, CliError> {
        let takes_it = match &spec.to {
            Destination::Volume(NewVolumeSpec { attach: Some(Attach { instance, .. }), .. }) => {
                Some(self.hypervisor.find(instance).await?)
            }
            _ => None,
        };
        let id = self.manifest.instance_id;
        let plan = elsewhere::plan::plan(&self.attempt, spec, &self.roots, id, takes_it.as_ref())?;
        let is_new = matches!(spec.to, Destination::NewInstance(_));
        let definition = is_new.then(|| self.definition()).transpose()?;
        let identities = self.hypervisor.identities().await?;
        let memory_bytes = self.hypervisor.memory_bytes().await?;
        let seen = choose::Seen { definition: definition.as_ref(), identities: &identities, memory_bytes };
        let choice = choose::choose(&plan, &spec.disks, &self.manifest, seen)?;
        let data_bytes = self.weigh(ToMake::New(choice.new.clone()))?;
        let would = would::elsewhere(&plan, &self.manifest, &choice, &data_bytes);
        Ok(Told { would, warnings: choice.warnings })
    }

    fn definition(&self) -> Result<Saved, Failure> {
        let Manifest { instance_id, backup_id, .. } = &self.manifest;
        let file = choose::definition_record(&self.manifest)?;
        choose::read_definition(new_files::record_at(self.directory, *instance_id, *backup_id, file)?)
    }
}
