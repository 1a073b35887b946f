//! The keys that libvirt keeps for the storage of instances.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::zeroize::Zeroizing;
use virt::connect::Connect;

use super::{errors, raw};
use crate::failure::{Code, Failure};
use crate::model::network::SecretRef;
use crate::mover::protocol::StorageKey;

/// The key of that name. One that is `private` libvirt keeps to itself.
pub(super) fn value(connect: &Connect, secret: &SecretRef) -> Result<StorageKey, Failure> {
    let read = match secret {
        SecretRef::Uuid(uuid) => raw::secret_by_uuid(connect, *uuid),
        SecretRef::Usage(name) => raw::secret_of_ceph(connect, name),
    };
    let value = read.map_err(|error| {
        let failure =
            errors::failure(format!("cannot read the secret `{secret}`, which a disk needs, from libvirt"), &error);
        if errors::is_no_secret(&error) { Failure { code: Code::CredentialsUnreadable, ..failure } } else { failure }
    })?;
    // With its room from the start: a text that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(value.len().div_ceil(3) * 4));
    STANDARD.encode_string(value.as_slice(), &mut text);
    Ok(StorageKey::new(text))
}
