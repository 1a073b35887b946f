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
//! that a killed run left has rights of its host and nobody has its password; the next run takes it over and removes it.

pub mod apply;
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

impl Ground<'_> {
    /// Makes a user's twin; gives its name. It has to be removed, whatever comes.
    ///
    /// # Errors
    /// The server refused, or the twin's name is somebody else's.
    pub fn make_twin(&self, member: &Member, password: &SecretString) -> Result<String, SetupError> {
        let user = twin_of(&member.user);
        let twin = Member { user: user.clone(), roles: member.roles.clone() };
        for step in closed_user(&twin, false) {
            self.make_so(&step)?;
        }
        self.give_password(&user, password)?;
        Ok(user)
    }

    /// Removes a user's twin, if it is there.
    ///
    /// # Errors
    /// The server refused.
    pub fn remove_twin(&self, user: &str) -> Result<(), SetupError> {
        self.remove_user(&twin_of(user)).map(drop)
    }
}
