//! `longshore check`: is this right, and if not, what to do about it. One line a finding.

#[cfg(feature = "libvirt")]
mod host;
#[cfg(feature = "libvirt")]
mod passage;
#[cfg(feature = "libvirt")]
mod qemu;
mod repository;
#[cfg(feature = "libvirt")]
mod shares;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::ConfigArgs;
use super::broker::{load, settings};
use super::exit::Exit;
use super::output::{self, CliError};
use crate::config::LogConfig;
use crate::model::id::RepositoryId;
use crate::telemetry;

#[derive(Debug, Subcommand)]
pub enum CheckCommand {
    /// Read a configuration file and the environment, and say what is wrong with them
    Config {
        /// Configuration file (TOML)
        #[arg(env = "LONGSHORE_CONFIG")]
        file: Option<PathBuf>,
    },
    /// Can this host do its work? libvirt, QEMU and its user, guest agents, tools, shares, scratch, mover, host key, broker
    #[cfg(feature = "libvirt")]
    Host(HostArgs),
    /// Is this directory a repository that can be used?
    Repository {
        /// Directory of the repository
        directory: PathBuf,
        /// The identity that it must have
        #[arg(long, value_name = "UUID")]
        id: Option<RepositoryId>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct HostArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// How good a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Not there, and missed only by those who use it.
    Note,
    /// Works, but not for everything.
    Warn,
    /// Does not work.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    level: Level,
    subject: String,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject: subject.into(), text: text.into(), remedy: None }
    }

    /// Not there, and missed only by those who use it.
    pub fn note(subject: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Note, subject: subject.into(), text: text.into(), remedy: Some(remedy.into()) }
    }

    /// Works, but not for everything.
    pub fn warn(subject: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warn, subject: subject.into(), text: text.into(), remedy: Some(remedy.into()) }
    }

    /// Does not work.
    pub fn fail(subject: impl Into<String>, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Fail, subject: subject.into(), text: text.into(), remedy: Some(remedy.into()) }
    }
}

pub fn run(command: &CheckCommand) -> Result<Exit, CliError> {
    match command {
        CheckCommand::Config { file } => {
            let config = load(&ConfigArgs { config: file.clone() })?;
            // What only its readers understand: the worker would end over it.
            settings(&config.broker, "check")?;
            telemetry::check(&config.log.level).map_err(|error| wrong_level(&config.log, &error))?;
            output::line(&format!("ok    config      host `{}`", config.host().map_err(CliError::usage)?))?;
            Ok(Exit::Done)
        }
        #[cfg(feature = "libvirt")]
        CheckCommand::Host(args) => report(&host::check(&load(&args.config)?)?, args.json),
        CheckCommand::Repository { directory, id, json } => report(&repository::check(directory, *id), *json),
    }
}

/// A refused `log.level`, with the place that it comes from.
pub fn wrong_level(log: &LogConfig, error: &telemetry::InvalidFilter) -> CliError {
    CliError::usage(format!("{} is not allowed: {error}", log.level_place))
}

fn report(findings: &[Finding], json: bool) -> Result<Exit, CliError> {
    for finding in findings {
        if json {
            output::json_line(finding)?;
            continue;
        }
        let remedy = finding.remedy.as_ref().map_or_else(String::new, |remedy| format!(" -> {remedy}"));
        let level = output::word(&finding.level);
        output::line(&format!("{level:<5} {:<11} {}{remedy}", finding.subject, finding.text))?;
    }
    let clean = findings.iter().all(|finding| matches!(finding.level, Level::Ok | Level::Note));
    Ok(if clean { Exit::Done } else { Exit::Warnings })
}
