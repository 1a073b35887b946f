//! Giving up what is kept in mind for the next backups of an instance.
//!
//! Bitmaps stand in the way of some: QEMU does not revert to an internal snapshot of an image with one that records. Nothing is lost by
//! it but time: the next backup reads everything once.

use super::tracking;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::Hypervisor;
use crate::model::id::{InstanceRef, RepositoryId};
use crate::model::instance::PowerState;

/// Deletes the checkpoints that backups of the instance have made, of one repository or of all, with their bitmaps. Others' checkpoints
/// stay. Answers the names.
///
/// `instance_state_unsupported`: it does not run, and only a running QEMU can take a bitmap out of an image. `instance_busy`: a backup
/// or another job is under way.
pub async fn release_tracking(
    hypervisor: &dyn Hypervisor,
    instance: &InstanceRef,
    repository: Option<RepositoryId>,
) -> Result<Vec<String>, Failure> {
    let found = hypervisor.find(instance).await?;
    let ours = repository.map_or_else(|| tracking::OURS.to_owned(), tracking::prefix);
    let names = hypervisor.checkpoints(found.id).await?;
    let names: Vec<String> = names.into_iter().filter(|name| name.starts_with(&ours)).collect();
    if names.is_empty() {
        return Ok(names);
    }
    if !matches!(found.state, PowerState::Running | PowerState::Paused) {
        let text = format!("cannot take the bitmaps out of the images of instance `{}`: it does not run", found.name);
        return Err(Failure::new(Code::InstanceStateUnsupported, text));
    }
    if let Some(job) = hypervisor.domain_job(found.id).await? {
        let text = format!("instance `{}` has a job, which may need them", found.name);
        return Err(Failure::new(Code::InstanceBusy, text).caused_by(format!("{job:?}")));
    }
    for name in &names {
        hypervisor.delete_checkpoint(found.id, name).await?;
    }
    Ok(names)
}
