//! The keys to the storage of an instance's volumes: from the hypervisor's store to the mover, each time that one is going to need them.
//! They are in no plan and no record.

use std::collections::BTreeSet;
use std::time::Duration;

use super::session::Session;
use crate::failure::Failure;
use crate::host::hypervisor::Hypervisor;
use crate::model::network::SecretRef;
use crate::mover::protocol::{NamedKey, Request};

/// How long the mover may take to keep them.
const GIVE_SECONDS_MAX: u64 = 15;

/// The hypervisor has a key of each of those names, and gives it away. Nobody gets one.
pub(super) async fn must_be_there<'s>(
    hypervisor: &dyn Hypervisor,
    secrets: impl Iterator<Item = &'s SecretRef>,
) -> Result<(), Failure> {
    for secret in secrets.collect::<BTreeSet<_>>() {
        drop(hypervisor.secret(secret).await?);
    }
    Ok(())
}

/// Gives the mover the keys of those names, if there are any.
pub(super) async fn give<'s>(
    session: &mut Session,
    hypervisor: &dyn Hypervisor,
    secrets: impl Iterator<Item = &'s SecretRef>,
) -> Result<(), Failure> {
    let wanted: BTreeSet<_> = secrets.collect();
    let mut keys = Vec::with_capacity(wanted.len());
    for secret in wanted {
        let key = hypervisor.secret(secret).await?;
        keys.push(NamedKey { secret: secret.clone(), key });
    }
    if !keys.is_empty() {
        session.ask(Request::Keys { keys }, Duration::from_secs(GIVE_SECONDS_MAX)).await?;
    }
    Ok(())
}
