//! Steps done against a broker, each only where something else is there.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::Value;

use super::harm::{Harm, harms, is_suspect};
use super::look::{Conflict, Found, Known, compare};
use super::owner::{Standing, is_ours};
use super::password::{PasswordError, Passwords};
use super::plan::{Member, Wanted};
use super::policy::{JOBS_POLICY, PRIORITY, URGENT_JOBS_POLICY};
use super::step::{Step, segment};
use super::terms::{Asked, Terms};
use super::version::{InvalidVersion, ServerVersion};
use crate::broker::management::{Management, ManagementError, Method, Request};

/// How old the counts and the policy of a queue are at most that the API shows: a queue tells them every five seconds, and they are
/// kept for as long.
pub(super) const COUNTS_AGE_MAX: Duration = Duration::from_secs(11);

/// A setup could not go on. What was done until then stays, and is found by the next.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The server.
    #[error(transparent)]
    Management(#[from] ManagementError),
    /// Its version.
    #[error(transparent)]
    Version(#[from] InvalidVersion),
    /// What is there already.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// A password.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The answer lacks what every server says.
    #[error("the management API does not say its {0}")]
    Silent(&'static str),
    /// It is not tried with such an old one.
    #[error("RabbitMQ {0} is too old: {oldest} is the oldest that is supported", oldest = ServerVersion::OLDEST)]
    TooOld(ServerVersion),
    /// Messages would be lost.
    #[error(
        "queue `{0}` still holds messages or is still read, and takes no more: see to them, or say that they are to be discarded"
    )]
    NotEmpty(String),
}

/// What a setup has to know of a server.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Its version.
    pub version: ServerVersion,
    /// It can bound what a user opens.
    pub has_user_limits: bool,
}

impl Server {
    /// Asks it.
    ///
    /// # Errors
    /// It does not answer, lets us not in, or is too old.
    pub fn of(management: &Management) -> Result<Self, SetupError> {
        let overview = management.get("overview")?.unwrap_or_default();
        let version = overview.get("rabbitmq_version").and_then(Value::as_str).ok_or(SetupError::Silent("version"))?;
        let flags = management.get("feature-flags")?.unwrap_or_default();
        let word = |flag: &Value, key: &str| flag.get(key).and_then(Value::as_str).map(str::to_owned);
        let has_user_limits = flags.as_array().into_iter().flatten().any(|flag| {
            word(flag, "name").as_deref() == Some("user_limits") && word(flag, "state").as_deref() == Some("enabled")
        });
        Self { version: version.parse()?, has_user_limits }.supported()
    }

    /// The server of a version, as it is when it is new.
    ///
    /// # Errors
    /// It is too old.
    pub fn told(version: ServerVersion) -> Result<Self, SetupError> {
        Self { version, has_user_limits: true }.supported()
    }

    fn supported(self) -> Result<Self, SetupError> {
        if self.version < ServerVersion::OLDEST { Err(SetupError::TooOld(self.version)) } else { Ok(self) }
    }
}

/// The broker of a setup.
pub struct Ground<'a> {
    /// Its API.
    pub management: &'a Management,
    /// The virtual host.
    pub vhost: &'a str,
    /// Passwords; none where users log in with certificates.
    pub passwords: Option<&'a Passwords>,
    /// Who has a password that no file holds gets a new one.
    pub new_passwords: bool,
}

impl Ground<'_> {
    /// Looks whether a step has anything to do.
    ///
    /// # Errors
    /// The server does not answer, or what is there is not for this setup to change.
    pub fn look(&self, step: &Step) -> Result<Found, SetupError> {
        self.compare(step, self.password(step)?.as_ref())
    }

    /// Does a step where it has something to do. Gives what was found before.
    ///
    /// # Errors
    /// As for [`Ground::look`], or the server refused.
    pub fn make_so(&self, step: &Step) -> Result<Found, SetupError> {
        let mut password = self.password(step)?;
        let found = self.compare(step, password.as_ref())?;
        if found == Found::AsWanted {
            return Ok(found);
        }
        // Written down before the broker has it: what is set and not known to anybody would have to be set again.
        if let (Step::Password(user), None, Some(passwords)) = (step, &password, self.passwords) {
            password = Some(passwords.make(user)?);
        }
        self.management.ask(&step.request(self.vhost, password.as_ref()))?;
        Ok(found)
    }

    /// The terms on which jobs wait, beside the policies that are there.
    ///
    /// # Errors
    /// The server does not answer, or other terms hold already.
    pub fn terms(&self, asked: Asked) -> Result<Terms, SetupError> {
        let policy = |name| self.management.get(&format!("policies/{}/{name}", segment(self.vhost)));
        Ok(asked.beside(policy(JOBS_POLICY)?.as_ref(), policy(URGENT_JOBS_POLICY)?.as_ref())?)
    }

    /// Gives a user a password that is kept nowhere.
    ///
    /// # Errors
    /// The server refused.
    pub fn give_password(&self, user: &str, password: &SecretString) -> Result<(), SetupError> {
        self.management.ask(&Step::Password(user.to_owned()).request(self.vhost, Some(password)))?;
        Ok(())
    }

    /// Whether a user is there and as a setup makes it.
    ///
    /// # Errors
    /// The server does not answer, or the user is somebody else's.
    pub fn has(&self, member: &Member) -> Result<bool, SetupError> {
        let place = format!("users/{}", segment(&member.user));
        let Some(user) = self.management.get(&place)? else { return Ok(false) };
        let more = |what: &str| self.management.get(&format!("{place}/{what}")).map(Option::unwrap_or_default);
        let standing = Standing { user, rights: more("permissions")?, topics: more("topic-permissions")? };
        is_ours(member, self.vhost, &standing)?;
        Ok(true)
    }

    /// Removes a user, which closes its connections. One that is not there is no error.
    ///
    /// # Errors
    /// The server refused.
    pub fn remove_user(&self, user: &str) -> Result<bool, SetupError> {
        let place = format!("users/{}", segment(user));
        Ok(self.management.ask(&Request { method: Method::Delete, place, body: None })?.is_some())
    }

    /// Policies that are not ours and may count in place of them.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn rivals(&self) -> Result<Vec<String>, SetupError> {
        let mut found = Vec::new();
        for (place, operators) in [("policies", false), ("operator-policies", true)] {
            let policies = self.management.get(&format!("{place}/{}", segment(self.vhost)))?.unwrap_or_default();
            for policy in policies.as_array().into_iter().flatten() {
                let text = |key: &str| policy.get(key).and_then(Value::as_str).unwrap_or_default();
                let before_ours = policy.get("priority").and_then(Value::as_i64).unwrap_or_default() >= PRIORITY;
                let (name, pattern) = (text("name"), text("pattern"));
                match operators {
                    _ if text("apply-to") == "exchanges" || name.starts_with("longshore-") => {}
                    true => {
                        found.push(format!("the operator policy `{name}` for `{pattern}` holds for queues as well"))
                    }
                    false if before_ours => {
                        found
                            .push(format!("the policy `{name}` counts in place of Longshore's where `{pattern}` fits"));
                    }
                    false => {}
                }
            }
        }
        Ok(found)
    }

    /// What makes the broker lose messages of the queues of a setup.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn harms(&self, wanted: &Wanted, version: ServerVersion) -> Result<Vec<Harm>, SetupError> {
        let policies = |kind: &str| self.management.get(&format!("{kind}/{}", segment(self.vhost)));
        let (ordinary, operators) =
            (policies("policies")?.unwrap_or_default(), policies("operator-policies")?.unwrap_or_default());
        let ours = wanted.policies(version);
        let suspect = |list: &Value, of_operators| {
            list.as_array().into_iter().flatten().any(|policy| is_suspect(policy, of_operators, &ours))
        };
        if !suspect(&ordinary, false) && !suspect(&operators, true) {
            return Ok(Vec::new());
        }
        std::thread::sleep(COUNTS_AGE_MAX);
        let mut found = Vec::new();
        for queue in wanted.queues() {
            let ours = wanted.policy_of(&queue, version);
            let place = Step::Queue(queue.clone()).place(self.vhost);
            if let Some(answer) = self.management.get(&place)? {
                found.extend(harms(&queue.name, &answer, ours.as_ref(), &operators));
            }
        }
        Ok(found)
    }

    /// Other virtual hosts in which a user has rights.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn elsewhere(&self, user: &str) -> Result<Vec<String>, SetupError> {
        let rights = self.management.get(&format!("users/{}/permissions", segment(user)))?.unwrap_or_default();
        let vhosts = rights.as_array().into_iter().flatten().filter_map(|one| one.get("vhost")?.as_str());
        Ok(vhosts.filter(|vhost| *vhost != self.vhost).map(str::to_owned).collect())
    }

    fn password(&self, step: &Step) -> Result<Option<SecretString>, SetupError> {
        match (step, self.passwords) {
            (Step::Password(user), Some(passwords)) => Ok(passwords.read(user)?),
            _ => Ok(None),
        }
    }

    fn compare(&self, step: &Step, password: Option<&SecretString>) -> Result<Found, SetupError> {
        let answer = self.management.get(&step.place(self.vhost))?;
        let known = match (password, self.passwords) {
            (Some(password), _) => Known::Password(password),
            (None, None) => Known::NotAsked,
            (None, Some(_)) if self.new_passwords => Known::Replaceable,
            (None, Some(_)) => Known::NoFile,
        };
        Ok(compare(step, answer.as_ref(), known)?)
    }
}
