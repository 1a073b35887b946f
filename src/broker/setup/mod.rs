//! A RabbitMQ secured for a fleet: the topology, policies, and a user for each host and role with the least rights that work.
//!
//! It promises: a second run changes nothing; a run that breaks off leaves nobody with more than they should have ([`plan`] says
//! how); what belongs to somebody else, or would lose messages if it were changed, is refused and left as it is; and whether the
//! broker really refuses what it must is tried out afterwards ([`probe`]).
//!
//! ```text
//!  wanted, version ── plan ──> steps ── look ──> what differs ── apply ──> management API
//!  members ── probe ──> things to try ── AMQP, as each of them ──> verdicts
//! ```
//!
//! Users who log in with certificates have no password with which anybody could try things out. In the place of each stands a twin:
//! a user of another name with the same rights and a password that is kept nowhere, which is there only while it is tried. A twin
//! that a killed run left has rights of its host and nobody has its password; the next run takes it over and removes it, or
//! says what to delete where it has not all its rights.

pub mod apply;
pub mod harm;
pub mod look;
pub mod owner;
pub mod password;
pub mod plan;
pub mod policy;
pub mod probe;
pub mod removal;
pub mod step;
pub mod terms;
pub mod version;

use secrecy::SecretString;

use self::apply::{Ground, SetupError};
use self::plan::{Member, closed_user};

/// The name of a user's twin. A host id has no dot, so it is nobody else's.
fn twin_of(user: &str) -> String {
    format!("{user}.probe")
}

/// A user of a twin's name, as a setup makes it.
fn twin(member: &Member) -> Member {
    Member { user: twin_of(&member.user), roles: member.roles.clone() }
}

impl Ground<'_> {
    /// Looks whether the name of a user's twin is free, or a killed run left the twin.
    ///
    /// # Errors
    /// The server does not answer, or the name is somebody else's.
    pub fn look_at_twin(&self, member: &Member) -> Result<(), SetupError> {
        self.has(&twin(member)).map(drop)
    }

    /// Makes a user's twin; gives its name. It has to be removed, whatever comes; where this fails nothing is left of it.
    ///
    /// # Errors
    /// The server refused, or the twin's name is somebody else's, who is left as they are.
    pub fn make_twin(&self, member: &Member, password: &SecretString) -> Result<String, SetupError> {
        self.look_at_twin(member)?;
        let twin = twin(member);
        let made = closed_user(&twin, false)
            .iter()
            .try_for_each(|step| self.make_so(step).map(drop))
            .and_then(|()| self.give_password(&twin.user, password));
        match made {
            Ok(()) => Ok(twin.user),
            Err(error) => {
                self.remove_user(&twin.user)?;
                Err(error)
            }
        }
    }
}
