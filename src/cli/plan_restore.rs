//! `longshore backup plan-restore`: what a restore would do on this host, in place or elsewhere. Nothing is changed.

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::ConfigArgs;
use super::broker::{block_on, load};
use super::destination::ToArgs;
use super::exit::Exit;
use super::output::{self, CliError};
use super::publish::pair;
use crate::failure::Failure;
use crate::host::hypervisor::Hypervisor;
use crate::host::hypervisor::definition::Saved;
use crate::host::hypervisor::libvirt::Libvirt;
use crate::job::Attempt;
use crate::job::restore::elsewhere::{self, choose};
use crate::job::restore::{mapping, plan};
use crate::message::job::RestorePart;
use crate::model::destination::{Attach, Destination, NewVolumeSpec};
use crate::model::id::{BackupId, DiskTarget, InstanceId, InstanceName, InstanceRef, JobId};
use crate::model::instance::ImageFormat;
use crate::model::job::{Job, RestoreNewSpec, RestoreSpec, RetryPolicy, RunKey, Work};
use crate::model::manifest::Manifest;
use crate::model::repository::{Repository, RepositoryType};
use crate::mover::new_files;
use crate::mover::protocol::NewContent;
use crate::mover::share::find_backup;

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
    #[command(flatten)]
    to: ToArgs,
    /// The plan as one JSON object
    #[arg(long)]
    json: bool,
}

/// What a restore would do.
#[derive(Debug, Serialize)]
struct Planned {
    backup_id: BackupId,
    number: u64,
    taken_at: Timestamp,
    volumes: Vec<PlannedVolume>,
    /// Other files that would be made.
    files: Vec<PathBuf>,
    /// Bytes that would be written as data, at most.
    data_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_instance: Option<PlannedInstance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attach_to: Option<PlannedInstance>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PlannedVolume {
    /// The backup's disk.
    disk: DiskTarget,
    /// The disk that it would be of its instance; the backup's where it has none.
    target: DiskTarget,
    path: PathBuf,
    format: ImageFormat,
    virtual_bytes: u64,
    /// At most.
    data_bytes: u64,
    /// What is there would be replaced.
    replaces: bool,
}

#[derive(Debug, Serialize)]
struct PlannedInstance {
    id: InstanceId,
    name: InstanceName,
    /// A new one would be started.
    start: bool,
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
    let planned = block_on(async {
        match &work {
            Work::RestoreNew(spec) => asked.elsewhere(spec).await,
            Work::Restore(spec) => asked.in_place(spec).await,
            _ => Err(CliError::failed("no restore was asked for")),
        }
    })?;
    if args.json {
        output::json_line(&planned)?;
    } else {
        planned.print()?;
    }
    Ok(if planned.warnings.is_empty() { Exit::Done } else { Exit::Warnings })
}

fn work(args: &PlanRestoreArgs) -> Result<Work, CliError> {
    let backup_id = args.backup.to_string();
    if let Some(part) = args.to.part(&backup_id, &args.disk) {
        return part.check().map(Work::RestoreNew).map_err(CliError::usage);
    }
    let part = RestorePart {
        backup_id,
        disks: args.disk.clone(),
        onto: args.onto.iter().cloned().collect(),
        keep_previous: args.keep_previous,
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
    fn data_bytes(&self, disk: &DiskTarget, virtual_bytes: u64) -> Result<u64, Failure> {
        let (instance, backup) = (self.manifest.instance_id, self.manifest.backup_id);
        new_files::data_bytes_at(self.directory, instance, backup, disk).map(|bytes| bytes.min(virtual_bytes))
    }

    fn planned(&self, volumes: Vec<PlannedVolume>, warnings: Vec<String>) -> Planned {
        Planned {
            backup_id: self.manifest.backup_id,
            number: self.manifest.number,
            taken_at: self.manifest.taken_at,
            data_bytes: volumes.iter().fold(0, |sum, volume| sum.saturating_add(volume.data_bytes)),
            volumes,
            files: Vec::new(),
            new_instance: None,
            attach_to: None,
            warnings,
        }
    }

    async fn in_place(&self, spec: &RestoreSpec) -> Result<Planned, CliError> {
        let instance = self.hypervisor.find(&InstanceRef::Id(self.manifest.instance_id)).await?;
        let plan = plan::plan(&self.attempt, spec, &instance)?;
        let mapping::Mapping { volumes, warnings } = mapping::map(&plan, spec, &self.manifest)?;
        let volumes = volumes.into_iter().map(|(target, volume)| {
            Ok(PlannedVolume {
                data_bytes: self.data_bytes(&volume.disk, volume.virtual_bytes)?,
                disk: volume.disk,
                target,
                path: volume.place.volume().to_owned(),
                format: volume.format,
                virtual_bytes: volume.virtual_bytes,
                replaces: true,
            })
        });
        Ok(self.planned(volumes.collect::<Result<_, Failure>>()?, warnings))
    }

    async fn elsewhere(&self, spec: &RestoreNewSpec) -> Result<Planned, CliError> {
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
        let (mut volumes, mut files) = (Vec::new(), Vec::new());
        for file in &choice.new.files {
            match &file.content {
                NewContent::Disk { disk, virtual_bytes, format, .. } => volumes.push(PlannedVolume {
                    disk: disk.clone(),
                    target: attached_as(&choice.becomes).unwrap_or(disk).clone(),
                    path: file.path.clone(),
                    format: *format,
                    virtual_bytes: *virtual_bytes,
                    data_bytes: self.data_bytes(disk, *virtual_bytes)?,
                    replaces: false,
                }),
                NewContent::Record { .. } => files.push(file.path.clone()),
            }
        }
        let data: Vec<_> = volumes.iter().map(|volume| volume.data_bytes).collect();
        new_files::look_at(&choice.new, &data)?;
        let (new_instance, attach_to) = match choice.becomes {
            choose::Becomes::Instance(new) => {
                (Some(PlannedInstance { id: new.id, name: new.name, start: plan.starts() }), None)
            }
            choose::Becomes::Disk { instance_id: id, instance_name: name, .. } => {
                (None, Some(PlannedInstance { id, name, start: false }))
            }
            choose::Becomes::File => (None, None),
        };
        Ok(Planned { files, new_instance, attach_to, ..self.planned(volumes, choice.warnings) })
    }

    fn definition(&self) -> Result<Saved, Failure> {
        let Manifest { instance_id, backup_id, .. } = &self.manifest;
        let file = choose::definition_record(&self.manifest)?;
        choose::read_definition(new_files::record_at(self.directory, *instance_id, *backup_id, file)?)
    }
}

fn attached_as(becomes: &choose::Becomes) -> Option<&DiskTarget> {
    match becomes {
        choose::Becomes::Disk { disk, .. } => Some(&disk.target),
        choose::Becomes::Instance(_) | choose::Becomes::File => None,
    }
}

impl Planned {
    fn print(&self) -> Result<(), CliError> {
        for volume in &self.volumes {
            let word = if volume.replaces { "would replace" } else { "would make" };
            let (path, format) = (output::printable(&volume.path.display().to_string()), volume.format.as_str());
            let [size, data] = [volume.virtual_bytes, volume.data_bytes].map(output::bytes);
            let of = format!("disk {} of the backup", volume.disk);
            output::line(&format!("{word:<13}  {path} ({format}): {of}, {size}, at most {data} of data"))?;
        }
        for file in &self.files {
            output::line(&format!("would make     {}", output::printable(&file.display().to_string())))?;
        }
        if let Some(PlannedInstance { id, name, start }) = &self.new_instance {
            let start = if *start { ", and start it" } else { "" };
            output::line(&format!("would define   instance {name} ({id}){start}"))?;
        }
        if let (Some(PlannedInstance { id, name, .. }), Some(volume)) = (&self.attach_to, self.volumes.first()) {
            output::line(&format!("would attach   it to instance {name} ({id}) as {}", volume.target))?;
        }
        for warning in &self.warnings {
            output::line(&format!("unusual        {}", output::printable(warning)))?;
        }
        output::line(&format!("written        at most {}", output::bytes(self.data_bytes)))
    }
}
