//! `longshore backup plan-restore`: what a restore would do on this host, in place or elsewhere. Nothing is changed.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use clap::Args;
use serde::Serialize;

use super::ConfigArgs;
use super::broker::{block_on, load};
use super::destination::ToArgs;
use super::exit::Exit;
use super::options::refused;
use super::output::{self, CliError};
use super::planned;
use super::publish::pair;
use super::worker::doors;
use crate::failure::{Code, Failure};
use crate::job::Attempt;
use crate::job::restore::look::{self, Eyes};
use crate::job::restore::{self, DryRun, elsewhere};
use crate::message::job::RestorePart;
use crate::model::id::{BackupId, InstanceId, InstanceRef, JobId};
use crate::model::job::{Job, RetryPolicy, RunKey, Work};
use crate::model::manifest::Manifest;
use crate::model::repository::{Repository, RepositoryType};
use crate::model::restoration::PlannedRestore;
use crate::mover::protocol::{BlockDevice, ToWeigh, Weighed};
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

pub fn run(args: &PlanRestoreArgs) -> Result<Exit, CliError> {
    let config = load(&args.config)?;
    let manifest = find_backup(&args.directory, args.backup)?;
    let attempt = attempt(args, &manifest, work(args)?)?;
    let mut here = Here { directory: args.directory.clone() };
    let DryRun { would, warnings } = block_on(async {
        let doors = doors(&config);
        let told = match &attempt.job.work {
            Work::RestoreNew(spec) => {
                let plan = elsewhere::prepare(&doors, &config.restore.directories, &attempt, spec);
                let plan = plan.await.map_err(CliError::of_plan)?;
                look::elsewhere(&mut here, &*doors.hypervisor, &plan, spec, &manifest).await
            }
            Work::Restore(spec) => {
                let plan = restore::prepare(&doors, &attempt, spec).await.map_err(CliError::of_plan)?;
                look::in_place(&mut here, &doors, &plan, spec, &manifest).await
            }
            _ => return Err(CliError::failed("no restore was asked for")),
        };
        told.map_err(CliError::of_plan)
    })?;
    let clean = warnings.is_empty();
    if args.json {
        output::json_line(&Told { would, warnings })?;
    } else {
        planned::print(&would)?;
        for warning in &warnings {
            output::line(&format!("unusual        {}", output::printable(warning)))?;
        }
    }
    Ok(if clean { Exit::Done } else { Exit::Warnings })
}

fn work(args: &PlanRestoreArgs) -> Result<Work, CliError> {
    let backup_id = args.backup.to_string();
    if let Some(part) = args.to.part(&backup_id, &args.disk, true) {
        return part.check().map(Work::RestoreNew).map_err(refused);
    }
    let part = RestorePart {
        backup_id,
        disks: args.disk.clone(),
        onto: args.onto.iter().cloned().collect(),
        keep_previous: args.keep_previous,
        dry_run: true,
        overwrite: args.overwrite,
    };
    part.check().map(Work::Restore).map_err(refused)
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

/// This process, which looks itself.
struct Here {
    /// Of the repository.
    directory: PathBuf,
}

impl Here {
    /// On a thread that may block, and may wait for tools.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Path) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let directory = self.directory.clone();
        let looked = tokio::task::spawn_blocking(move || look(&directory)).await;
        looked.map_err(|error| Failure::new(Code::Internal, "a look at the repository panicked").because(&error))?
    }
}

#[async_trait]
impl Eyes for Here {
    async fn devices(&mut self, paths: Vec<PathBuf>) -> Result<Vec<BlockDevice>, Failure> {
        let mut devices = Vec::with_capacity(paths.len());
        for path in paths {
            devices.push(block_device::look(&path).await?);
        }
        Ok(devices)
    }

    async fn record(&mut self, instance: InstanceId, backup: BackupId, file: String) -> Result<Vec<u8>, Failure> {
        self.look(move |directory| new_files::record_at(directory, instance, backup, &file)).await
    }

    async fn weigh(&mut self, wanted: ToWeigh) -> Result<Weighed, Failure> {
        self.look(move |directory| weigh_at(directory, &wanted)).await
    }
}
