//! The keys that a fake mover was given.

use crate::failure::{Code, Failure};
use crate::model::network::SecretRef;
use crate::mover::protocol::NamedKey;

#[derive(Default)]
pub(super) struct Keys(pub Vec<NamedKey>);

impl Keys {
    /// Without its key no volume is given.
    pub fn must_have(&self, secret: Option<&SecretRef>) -> Result<(), Failure> {
        match secret {
            Some(secret) if !self.0.iter().any(|known| known.secret == *secret) => {
                Err(Failure::new(Code::Internal, format!("the mover was given no key for the secret `{secret}`")))
            }
            _ => Ok(()),
        }
    }
}
