//! `longshore instance`: what Longshore has done to an instance of this host.

use clap::{Args, Subcommand};

use super::ConfigArgs;
use super::broker::load;
use super::exit::Exit;
use super::output::{self, CliError};
use crate::host::hypervisor::libvirt::Libvirt;
use crate::job::backup::release_tracking;
use crate::model::id::{InstanceId, InstanceRef, RepositoryId};

#[derive(Debug, Subcommand)]
pub enum InstanceCommand {
    /// Delete the checkpoints that backups of an instance have made, with their bitmaps. They stand in the way of reverting to internal
    /// snapshots; without them the next backup reads everything once
    ReleaseTracking(ReleaseArgs),
}

#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The instance, by uuid or name. It has to run
    instance: String,
    /// Only those of this repository's backups
    #[arg(long, value_name = "UUID")]
    repository_id: Option<RepositoryId>,
}

pub fn run(command: &InstanceCommand) -> Result<Exit, CliError> {
    let InstanceCommand::ReleaseTracking(args) = command;
    let config = load(&args.config)?;
    let instance = match args.instance.parse::<InstanceId>() {
        Ok(id) => InstanceRef::Id(id),
        Err(_) => InstanceRef::Name(args.instance.parse().map_err(CliError::usage)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let hypervisor = Libvirt::new(&config.libvirt.uri);
    for name in runtime.block_on(release_tracking(&hypervisor, &instance, args.repository_id))? {
        output::line(&name)?;
    }
    Ok(Exit::Done)
}
