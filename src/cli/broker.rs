//! The broker as commands reach it: the configuration's broker section, with a name of the command's own.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::ConfigArgs;
use super::output::CliError;
use crate::broker::address::BrokerUri;
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::QueueType;
use crate::broker::{self, Broker};
use crate::config::{self, BrokerConfig, Config};

/// Longest wait for a publish by a command, where a person waits as well.
const COMMAND_PUBLISH_WAIT: Duration = Duration::from_secs(15);

/// Reads the configuration.
pub fn load(args: &ConfigArgs) -> Result<Config, CliError> {
    config::load(args.config.as_deref()).map_err(CliError::usage)
}

/// The door's settings for a worker.
pub fn settings(config: &BrokerConfig, client_name: &str) -> Result<BrokerSettings, CliError> {
    let uri: BrokerUri = config
        .uri
        .expose_secret()
        .parse()
        .map_err(|error| CliError::usage(format!("{} is not allowed: {error}", config.uri_place)))?;
    let mut settings = BrokerSettings::new(uri, client_name);
    settings.heartbeat_seconds = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
    settings.publish_wait = config.publish_wait;
    settings.prefetch = config.job_prefetch;
    settings.jobs_queue_type = match config.queue_type {
        config::QueueType::Classic => QueueType::Classic,
        config::QueueType::Quorum => QueueType::Quorum,
    };
    Ok(settings)
}

/// Connects a command, which waits no longer than a person would.
pub fn connect(args: &ConfigArgs, command: &str) -> Result<Arc<dyn Broker>, CliError> {
    let mut settings = settings(&load(args)?.broker, command)?;
    settings.publish_wait = settings.publish_wait.min(COMMAND_PUBLISH_WAIT);
    broker::connect(settings).map_err(CliError::failed)
}

/// A runtime for one command.
pub fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
