//! `longshore worker`: builds the real doors from the configuration and hands them to the worker.

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::ConfigArgs;
use super::broker::{load, settings};
use super::check::wrong_level;
use super::exit::Exit;
use super::host::credential_places;
use super::journal::unopened;
use super::output::{self, CliError};
use crate::broker;
use crate::config::{AutoTransfer, Config, LogFormat};
use crate::failure::{Code, Failure};
use crate::host::guard::ProcessGuards;
use crate::host::hypervisor::libvirt::Libvirt;
use crate::host::mover::{Movers, ProcessMovers, shown_by_the_gone, sweep};
use crate::job::backup::{is_abandoned, sweep_scratch};
use crate::job::{Doors, JobSettings};
use crate::journal::{Journal, JournalLook};
use crate::model::id::{HostId, InstallationId, JobId};
use crate::model::job::RunKey;
use crate::mover::protocol::OURSELVES;
use crate::mover::sealed::HostKey;
use crate::supervisor::Supervisor;
use crate::worker::jobs::Jobs;
use crate::worker::{self, Ended, Parts, Settings, UnwoundEnd, WorkerError};
use crate::{shutdown, telemetry};

/// Threads of the worker's runtime: the work is done by QEMU and the movers, so two are plenty.
const RUNTIME_THREADS: usize = 2;

#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub fn run(args: &WorkerArgs) -> Result<Exit, CliError> {
    block_on_threads(&args.config, async |config| work(config).await)
}

/// `longshore journal unwind`.
pub fn unwind(args: &ConfigArgs, only: Option<JobId>) -> Result<Exit, CliError> {
    block_on_threads(args, async |config| unwind_all(config, only).await)
}

fn block_on_threads(
    args: &ConfigArgs,
    command: impl AsyncFnOnce(&Config) -> Result<Exit, CliError>,
) -> Result<Exit, CliError> {
    let config = load(args)?;
    let format = match config.log.format {
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    telemetry::init(&config.log.level, format).map_err(|error| wrong_level(&config.log, &error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build()?;
    let result = runtime.block_on(command(&config));
    // A libvirt call that hangs on its thread must not keep the process: everything that matters is in the journal.
    runtime.shutdown_background();
    result
}

async fn work(config: &Config) -> Result<Exit, CliError> {
    let shutdown = shutdown::on_signals()?;
    // Before anything is made.
    let on_broker = settings(&config.broker, config.host().map_err(CliError::usage)?)?;
    let Begun { host, journal, config, doors } = begin(config).await?;
    let parts = Parts {
        settings: worker_settings(&config, host.clone(), host_key(&config)),
        broker: broker::connect(on_broker).map_err(CliError::failed)?,
        work: Arc::new(Jobs::new(doors.clone(), backup_settings(&config, host, journal.installation()))),
        hypervisor: doors.hypervisor,
        journal: journal.clone(),
        supervisor: Supervisor::of_environment(),
    };
    let ended = worker::run(parts, shutdown).await.map_err(|error| match error {
        WorkerError::Journal(failure) => failure.into(),
        other => CliError::failed(other),
    })?;
    journal.close().await;
    tracing::info!("stopped");
    exit_of(ended)
}

/// A service manager goes by it: what a controller has drained is not to be started again, however it ended.
fn exit_of(ended: Ended) -> Result<Exit, CliError> {
    match (ended.trouble(), ended.drained) {
        (None, false) => Ok(Exit::Done),
        (None, true) => Ok(Exit::Drained),
        (Some(trouble), false) => Err(CliError::failed(trouble)),
        (Some(trouble), true) => Err(CliError::drained_in_part(trouble)),
    }
}

async fn unwind_all(config: &Config, only: Option<JobId>) -> Result<Exit, CliError> {
    // A look first: with another configuration's directory there would be an empty journal, that knows of nothing.
    JournalLook::open(&config.worker.state_dir).await.map_err(|error| unopened(error, &config.worker.state_dir))?;
    let Begun { host, journal, config, doors } = begin(config).await?;
    tracing::info!("taking back what was cut off; it may wait two minutes for the lease of a dead mover");
    let jobs = Arc::new(Jobs::new(doors.clone(), backup_settings(&config, host.clone(), journal.installation())));
    let settings = worker_settings(&config, host, None);
    let unwound = worker::unwind(settings, journal.clone(), jobs, doors.hypervisor, only).await?;
    journal.close().await;
    if unwound.is_empty() {
        return Err(CliError::not_found("there is no attempt that was cut off"));
    }
    let mut exit = Exit::Done;
    for run in &unwound {
        let became = match &run.end {
            Ok(UnwoundEnd::Waits) => "taken back; another attempt follows when the worker starts".to_owned(),
            Ok(UnwoundEnd::Ended) => {
                "the run has ended; `journal show` says how, and the worker tells it when it starts".to_owned()
            }
            Err(failure) => {
                exit = Exit::Failed;
                format!("nothing was done: {failure:#}")
            }
        };
        output::told(&format!("{}  {became}", run.key))?;
        run.left_overs.iter().try_for_each(|left| output::told(&format!("{}  left over: {left}", run.key)))?;
    }
    let clean = unwound.iter().all(|run| run.left_overs.is_empty());
    Ok(if exit == Exit::Done && !clean { Exit::Warnings } else { exit })
}

/// What there is once the journal is this process's, and nothing is in the way of its movers.
struct Begun {
    host: HostId,
    journal: Journal,
    /// Resolved.
    config: Config,
    doors: Doors,
}

async fn begin(config: &Config) -> Result<Begun, CliError> {
    let host: HostId = config.host().map_err(CliError::usage)?.parse().map_err(CliError::usage)?;
    for directory in [&config.worker.run_dir, &config.scratch.dir] {
        make_passable(directory)?;
    }
    let journal = Journal::open(&config.worker.state_dir).await.map_err(CliError::failed)?;
    tracing::info!(host = %host, installation = %journal.installation(), version = env!("CARGO_PKG_VERSION"), "starting");
    let config = resolved(config)?;
    let doors = doors(&config);
    let open: Vec<RunKey> =
        journal.open_runs().await.map_err(CliError::failed)?.into_iter().map(|run| run.key).collect();
    take_away_what_was_shown(&config.worker.run_dir, &host, &open, doors.movers.as_ref()).await;
    // What the movers of an earlier worker left in the run directory; one that still runs keeps its own.
    for left in tokio::task::block_in_place(|| sweep(&config.worker.run_dir))? {
        tracing::info!(directory = %left.display(), "removed what an earlier mover left");
    }
    take_away_scratch(&config.scratch.dir, &host, &open);
    Ok(Begun { host, journal, config, doors })
}

/// What the movers of an earlier worker have shown to the host, for QEMU to write to, of runs that the journal does not know: it was lost.
/// Those of an open run are its own to clear up, as they may still be needed for it. Behind a dead share one may have to stay for
/// now, which keeps no worker from starting.
async fn take_away_what_was_shown(run_dir: &Path, host: &HostId, open: &[RunKey], movers: &dyn Movers) {
    let is_ours = |name: &str| is_abandoned(host, open, name);
    match tokio::task::block_in_place(|| shown_by_the_gone(run_dir, is_ours)) {
        Ok(places) => {
            for place in places {
                match movers.unmount(&place).await {
                    Ok(()) => tracing::info!(place = %place.display(), "took away what an earlier worker had shown"),
                    Err(failure) => tracing::error!("{failure:#}"),
                }
            }
        }
        Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot read the mount table"),
    }
}

/// The scratch of runs that the journal does not know. What stays of it keeps no worker from starting.
fn take_away_scratch(scratch_dir: &Path, host: &HostId, open: &[RunKey]) {
    match tokio::task::block_in_place(|| sweep_scratch(scratch_dir, host, open)) {
        Ok(removed) => {
            for directory in removed {
                tracing::info!(directory = %directory.display(), "removed the scratch of an earlier worker");
            }
        }
        Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "cannot read the scratch directory"),
    }
}

/// The configuration with its run directory as the mount table has it, which names no links (`/var/run`).
fn resolved(config: &Config) -> Result<Config, CliError> {
    let mut config = config.clone();
    config.worker.run_dir = config.worker.run_dir.canonicalize().map_err(|error| {
        CliError::failed(
            Failure::new(Code::HostIo, format!("cannot find `{}`", config.worker.run_dir.display())).because(&error),
        )
    })?;
    Ok(config)
}

/// The real doors to the host.
pub fn doors(config: &Config) -> Doors {
    Doors {
        hypervisor: Arc::new(Libvirt::new(&config.libvirt.uri)),
        guards: Arc::new(ProcessGuards::new(&config.libvirt.uri)),
        movers: Arc::new(ProcessMovers::new(
            PathBuf::from(OURSELVES),
            config.worker.run_dir.clone(),
            credential_places(config),
        )),
    }
}

fn worker_settings(config: &Config, host: HostId, host_key: Option<String>) -> Settings {
    Settings {
        host,
        controllers: config.broker.controllers.clone(),
        host_key,
        slots: worker::admit::Slots {
            host: config.worker.slots as usize,
            repository: config.worker.slots_per_repository as usize,
        },
        open_runs_max: config.worker.waiting_max as usize,
        drain_limit: config.worker.drain,
        heartbeat: config.worker.heartbeat,
        inventory: config.worker.inventory,
        scratch_dir: config.scratch.dir.clone(),
        keep: crate::journal::Keep::default(),
    }
}

/// The public key of this host, made if there is none. Without one, jobs with sealed credentials fail and all others are done.
fn host_key(config: &Config) -> Option<String> {
    let key = tokio::task::block_in_place(|| HostKey::read_or_make(&credential_places(config).host_key));
    key.map(|key| key.public().to_string())
        .inspect_err(|failure| {
            tracing::error!(failure = format!("{failure:#}"), "this host opens no sealed credentials");
        })
        .ok()
}

/// What the configuration says about backups.
pub fn backup_settings(config: &Config, host: HostId, installation: InstallationId) -> JobSettings {
    JobSettings {
        host,
        installation,
        run_dir: config.worker.run_dir.clone(),
        scratch_dir: config.scratch.dir.clone(),
        scratch_limit_bytes: config.scratch.limit_bytes,
        stall_limit: config.backup.stall,
        freeze_limit: config.backup.freeze_limit,
        same_device_ok: config.backup.same_device_ok,
        auto_push: config.backup.auto == AutoTransfer::Push,
        volume_roots: config.restore.directories.clone(),
    }
}

/// Makes a directory that QEMU's user can pass and nobody can list, if it is not there. One that is there is left as its
/// maker wanted it: `longshore check host` says where QEMU cannot pass.
fn make_passable(directory: &Path) -> Result<(), CliError> {
    let make = || {
        if let Some(parent) = directory.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(directory) {
            // Past the umask, which may well be stricter than what QEMU needs.
            Ok(()) => std::fs::set_permissions(directory, Permissions::from_mode(0o711)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
    };
    make().map_err(|error| {
        CliError::failed(std::io::Error::new(error.kind(), format!("cannot make `{}`: {error}", directory.display())))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_worker_that_was_drained_says_so_however_it_ended() {
        let exit = |ended: Ended| exit_of(ended).unwrap_or_else(|error| error.exit());
        let signalled = Ended::default();
        let drained = Ended { drained: true, ..signalled };
        for (ended, expected) in [
            (signalled, Exit::Done),
            (Ended { left: 1, ..signalled }, Exit::Failed),
            (drained, Exit::Drained),
            (Ended { left: 1, ..drained }, Exit::DrainedInPart),
            (Ended { untold: 1, evicted: true, ..drained }, Exit::DrainedInPart),
        ] {
            assert_eq!(exit(ended), expected, "{ended:?}");
        }
    }

    #[test]
    fn a_new_directory_can_be_passed_and_one_that_is_there_keeps_its_mode() {
        let above = tempfile::tempdir().unwrap();
        let (new, closed) = (above.path().join("lib/new"), above.path().join("closed"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        make_passable(&new).unwrap();
        assert_eq!(mode(&new), 0o711);
        assert_eq!(mode(new.parent().unwrap()) & 0o022, 0, "nobody else can write");
        DirBuilder::new().mode(0o700).create(&closed).unwrap();
        make_passable(&closed).unwrap();
        assert_eq!(mode(&closed), 0o700);
        std::fs::write(above.path().join("file"), "").unwrap();
        assert!(make_passable(&above.path().join("file")).is_err());
    }
}
