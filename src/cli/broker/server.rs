//! The management API as commands reach it: its address and an administrator, whose password is never on the command line.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

use crate::broker::management::{Management, ManagementSettings};
use crate::broker::setup::apply::SetupError;
use crate::broker::setup::password;
use crate::cli::output::CliError;

/// Where the administrator's password is looked for if no file is named.
const PASSWORD_VARIABLE: &str = "LONGSHORE_MANAGEMENT_PASSWORD";

#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Address of RabbitMQ's management API, as in https://broker:15671
    #[arg(long, value_name = "URL", required = true)]
    management: Option<String>,
    /// Its administrator
    #[arg(long, value_name = "NAME", env = "LONGSHORE_MANAGEMENT_USER", required = true)]
    user: Option<String>,
    /// File with the administrator's password, of its owner alone (mode 600); else LONGSHORE_MANAGEMENT_PASSWORD
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Authorities (PEM) of whom one must have signed the broker's certificate, of the management API over https as well as of what is
    /// tried out over amqps; else the system's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Let the administrator's password travel unencrypted to another machine
    #[arg(long)]
    insecure: bool,
    /// Virtual host
    #[arg(long, value_name = "NAME", default_value = "/")]
    pub vhost: String,
}

impl ServerArgs {
    /// The administrator.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The API.
    pub fn connect(&self) -> Result<Management, CliError> {
        let missing = |option: &str| CliError::usage(format!("`{option}` is missing"));
        let url = self.management.clone().ok_or_else(|| missing("--management"))?;
        let user = self.user.clone().ok_or_else(|| missing("--user"))?;
        if Management::is_open(&url) && !self.insecure {
            return Err(CliError::usage(
                "the administrator's password would travel unencrypted: use https, run this beside the broker, or allow it with `--insecure`",
            ));
        }
        let password = self.password()?;
        Management::new(ManagementSettings { url, ca: self.ca_file.clone(), user, password }).map_err(CliError::usage)
    }

    fn password(&self) -> Result<SecretString, CliError> {
        let Some(file) = &self.password_file else {
            let given = std::env::var(PASSWORD_VARIABLE).ok().filter(|password| !password.is_empty());
            let rule = format!(
                "the administrator's password is missing: name its file with `--password-file`, or set {PASSWORD_VARIABLE}"
            );
            return given.map(SecretString::from).ok_or_else(|| CliError::usage(rule));
        };
        let found = password::read(file).map_err(CliError::usage)?;
        found.ok_or_else(|| CliError::usage(format!("there is no password file `{}`", file.display())))
    }
}

/// What became of a setup, for the command's end.
pub fn failed(error: SetupError) -> CliError {
    match error {
        SetupError::Conflict(_) | SetupError::Password(_) | SetupError::TooOld(_) => CliError::usage(error),
        _ => CliError::failed(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refusal(url: &str, insecure: bool) -> String {
        let args = ServerArgs {
            management: Some(url.to_owned()),
            user: Some("admin".to_owned()),
            password_file: Some("/nowhere/password".into()),
            ca_file: None,
            insecure,
            vhost: "/".to_owned(),
        };
        args.connect().err().unwrap().chain()
    }

    #[test]
    fn a_password_goes_unencrypted_to_another_machine_only_where_that_is_allowed() {
        let open = "would travel unencrypted";
        assert!(refusal("http://broker:15672", false).contains(open));
        for (url, insecure) in
            [("http://broker:15672", true), ("http://127.0.0.1:15672", false), ("https://broker", false)]
        {
            let next = refusal(url, insecure);
            assert!(next.contains("no password file `/nowhere/password`"), "{url}: {next}");
        }
    }
}
