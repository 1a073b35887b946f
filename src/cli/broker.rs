//! The broker as commands reach it: the configuration's broker section, with a name of the command's own.

pub mod command;
mod members;
mod probes;
mod remove;
mod server;
mod setup;
mod told;

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::ConfigArgs;
use super::output::CliError;
use crate::broker::address::BrokerUri;
use crate::broker::settings::BrokerSettings;
use crate::broker::tls::{ClientFiles, TlsError, TlsFile, TlsFiles};
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
        .uri()
        .map_err(CliError::usage)?
        .expose_secret()
        .parse()
        .map_err(|error| CliError::usage(format!("{} is not allowed: {error}", config.uri_place)))?;
    let tls = tls(config, &uri)?;
    let mut settings = BrokerSettings::new(uri, client_name);
    settings.tls = tls;
    settings.heartbeat_seconds = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
    settings.publish_wait = config.publish_wait;
    settings.prefetch = config.job_prefetch;
    settings.jobs_queue_type = match config.queue_type {
        config::QueueType::Classic => QueueType::Classic,
        config::QueueType::Quorum => QueueType::Quorum,
    };
    Ok(settings)
}

/// The certificates, tried as far as that goes without a broker.
fn tls(config: &BrokerConfig, uri: &BrokerUri) -> Result<TlsFiles, CliError> {
    let wrong = |place: &str, rule: &dyn std::fmt::Display| CliError::usage(format!("{place} is not allowed: {rule}"));
    let files = TlsFiles {
        ca: config.ca_file.as_ref().map(|file| file.path.clone()),
        client: config
            .client
            .as_ref()
            .map(|client| ClientFiles { certificate: client.certificate.path.clone(), key: client.key.path.clone() }),
    };
    let certificate = config.client.as_ref().map(|client| client.certificate.place.as_str());
    let ca = config.ca_file.as_ref().map(|file| file.place.as_str());
    if !uri.is_tls() {
        // A certificate that is not used would be a silent loss of what it was meant for.
        return match ca.or(certificate) {
            Some(place) => Err(wrong(place, &"it is for an address that begins with `amqps`")),
            None => Ok(files),
        };
    }
    if certificate.is_some() && (uri.holds_password() || !uri.names_user()) {
        let rule = "with `broker.client_certificate_file` it names the certificate's user and holds no password";
        return Err(wrong(&config.uri_place, &rule));
    }
    files.check().map_err(|error| {
        let place = match &error {
            TlsError::File { file: TlsFile::Ca, .. } => ca,
            TlsError::File { file: TlsFile::Certificate, .. } => certificate,
            TlsError::File { file: TlsFile::Key, .. } => config.client.as_ref().map(|client| client.key.place.as_str()),
            TlsError::NoRoots(_) => None,
        };
        wrong(place.unwrap_or(&config.uri_place), &error)
    })?;
    Ok(files)
}

/// Connects a command, which waits no longer than a person would.
pub fn connect(args: &ConfigArgs, command: &str) -> Result<Arc<dyn Broker>, CliError> {
    let mut settings = settings(&load(args)?.broker, command)?;
    settings.publish_wait = settings.publish_wait.min(COMMAND_PUBLISH_WAIT);
    settings.patient = false;
    broker::connect(settings).map_err(CliError::failed)
}

/// The broker user that a command is.
pub fn user(args: &ConfigArgs) -> Result<String, CliError> {
    Ok(settings(&load(args)?.broker, "user")?.uri.user().to_owned())
}

/// A runtime for one command.
pub fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
