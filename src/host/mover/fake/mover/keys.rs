//! The keys that a fake mover was given.

use crate::failure::{Code, Failure};
use crate::model::network::SecretRef;
use crate::mover::protocol::{ByteSource, CopyDisk, NamedKey, Request};

#[derive(Default)]
pub(super) struct Keys(pub Vec<NamedKey>);

impl Keys {
    /// Without its key no volume is given.
    pub fn must_do_for(&self, request: &Request) -> Result<(), Failure> {
        let secret_of = |disk: &CopyDisk| match &disk.source {
            ByteSource::Volume { source, .. } => source.secret().cloned(),
            ByteSource::Export { .. } => None,
        };
        let wanted: Vec<SecretRef> = match request {
            Request::Copy { disks } => disks.iter().filter_map(secret_of).collect(),
            Request::Restore { volumes, .. }
            | Request::Exchange { volumes, .. }
            | Request::RemoveFresh { volumes }
            | Request::RemovePrevious { volumes } => {
                volumes.iter().filter_map(|volume| volume.place.secret().cloned()).collect()
            }
            Request::LookAtImages { images } => images.iter().filter_map(|one| one.access.secret.clone()).collect(),
            _ => Vec::new(),
        };
        match wanted.iter().find(|secret| !self.0.iter().any(|known| known.secret == **secret)) {
            None => Ok(()),
            Some(secret) => {
                Err(Failure::new(Code::Internal, format!("the mover was given no key for the secret `{secret}`")))
            }
        }
    }
}
