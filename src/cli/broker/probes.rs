//! What users must be able to do and what must be refused to them, tried out as each of them.

use std::fmt;
use std::path::Path;

use secrecy::SecretString;
use serde::Serialize;

use super::block_on;
use super::server::failed;
use crate::broker::address::BrokerUri;
use crate::broker::settings::BrokerSettings;
use crate::broker::setup::apply::Ground;
use crate::broker::setup::look::Found;
use crate::broker::setup::password::drawn;
use crate::broker::setup::plan::{Login, Member, Wanted};
use crate::broker::setup::probe::{Expected, Probe, Verdict, probes};
use crate::broker::setup::step::Step;
use crate::broker::setup::version::ServerVersion;
use crate::broker::tls::TlsFiles;
use crate::broker::try_out;
use crate::cli::output::CliError;

/// One thing that was tried.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// As whom.
    pub user: String,
    /// What.
    probe: String,
    /// How it stands.
    verdict: &'static str,
    /// It has to work, or to be refused.
    must_work: bool,
}

impl Tried {
    /// Not as it should be.
    pub fn is_bad(&self) -> bool {
        self.verdict == "bad"
    }

    /// It was tried.
    pub fn is_tried(&self) -> bool {
        self.verdict != "untried"
    }

    /// A gap of older brokers.
    pub fn is_known_gap(&self) -> bool {
        self.verdict == "known_gap"
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, probe, .. } = self;
        if self.must_work {
            write!(f, "the broker does not let `{user}` {probe}, and has to")
        } else {
            write!(f, "the broker lets `{user}` {probe}, and must not")
        }
    }
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Good => "good",
        Verdict::Untried => "untried",
        Verdict::KnownGap => "known_gap",
        Verdict::Bad => "bad",
    }
}

/// Tries everything out as everybody, or as their twins where they have no passwords.
pub fn all(
    ground: &Ground<'_>,
    wanted: &Wanted,
    place: &BrokerUri,
    ca: Option<&Path>,
    version: ServerVersion,
) -> Result<Vec<Tried>, CliError> {
    let mut tried = Vec::new();
    let settings = |user: &str, password: SecretString| {
        let mut settings = BrokerSettings::new(place.entered_by(user, password, &wanted.vhost), "setup");
        settings.tls = TlsFiles { ca: ca.map(Path::to_owned), client: None };
        settings
    };
    for member in wanted.members() {
        match wanted.login {
            Login::Password => {
                let password = ground.passwords.map(|passwords| passwords.read(&member.user)).transpose();
                let password = password.map_err(|error| failed(error.into()))?.flatten();
                let password =
                    password.ok_or_else(|| CliError::failed(format!("`{}` lost its password", member.user)))?;
                tried.extend(as_user(settings(&member.user, password), &probes(&member), &member.user, version)?);
            }
            Login::Certificate => {
                let password = drawn();
                let twin = ground.make_twin(&member, &password).map_err(failed)?;
                // What is tried is what the twin may do, whose rights name itself where the user's name the user.
                let probes = probes(&Member { user: twin.clone(), roles: member.roles.clone() });
                let of_twin = as_user(settings(&twin, password), &probes, &member.user, version);
                ground.remove_user(&twin).map_err(failed)?;
                tried.extend(of_twin?);
                tried.push(without_password(ground, &member)?);
            }
        }
    }
    Ok(tried)
}

/// Tries it all out as whoever the settings name; `user` is whom it is told of.
fn as_user(
    settings: BrokerSettings,
    probes: &[Probe],
    user: &str,
    version: ServerVersion,
) -> Result<Vec<Tried>, CliError> {
    let attempts = probes.iter().map(|probe| probe.attempt.clone()).collect();
    let answers = block_on(async { try_out(settings, attempts).await.map_err(CliError::failed) })?;
    let judged = probes.iter().zip(answers).map(|(probe, answer)| Tried {
        user: user.to_owned(),
        probe: probe.what.clone(),
        verdict: word(probe.verdict(answer, version)),
        must_work: probe.expected == Expected::Allowed,
    });
    Ok(judged.collect())
}

/// Whether the broker has no password for a user, after all. It lets nobody in with an empty one, so trying that would tell nothing.
fn without_password(ground: &Ground<'_>, member: &Member) -> Result<Tried, CliError> {
    let found = ground.look(&Step::NoPassword(member.user.clone())).map_err(failed)?;
    let verdict = if found == Found::AsWanted { Verdict::Good } else { Verdict::Bad };
    let probe = "log in with a password".to_owned();
    Ok(Tried { user: member.user.clone(), probe, verdict: word(verdict), must_work: false })
}
