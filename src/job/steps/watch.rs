//! Watching over an instance for as long as a job needs it to be as it is. libvirt's events only say when to look; what counts is
//! what is found by looking.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::failure::{Code, Failure};
use crate::host::hypervisor::{DomainEvent, Hypervisor};
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

/// How often the state is asked for without a hint. Events get lost, with a connection or in a full queue.
const LOOK_SECONDS: u64 = 5;

/// Looks on until the returned handle is dropped; the receiver hears what `lost` says, once it says something.
pub(in crate::job) async fn watch<L: Future<Output = Option<Failure>> + Send>(
    hypervisor: &dyn Hypervisor,
    instance: InstanceId,
    lost: impl Fn() -> L + Send + 'static,
) -> Result<(AbortOnDropHandle<()>, oneshot::Receiver<Failure>), Failure> {
    let mut hints = Some(hypervisor.watch(instance).await?);
    let (tell, heard) = oneshot::channel();
    let task = tokio::spawn(async move {
        loop {
            if let Some(failure) = lost().await {
                // Nobody listens any more when what was held is being released.
                let _unheard = tell.send(failure);
                return;
            }
            let wait = Duration::from_secs(LOOK_SECONDS);
            match hints.as_mut() {
                Some(receiver) => match timeout(wait, receiver.recv()).await {
                    Ok(Some(DomainEvent::Lifecycle | DomainEvent::BlockJob { .. } | DomainEvent::Reconnected))
                    | Err(_) => {}
                    // The connection ended its hints: looking goes on without them.
                    Ok(None) => hints = None,
                },
                None => tokio::time::sleep(wait).await,
            }
        }
    });
    Ok((AbortOnDropHandle::new(task), heard))
}

/// Why a stopped instance is no longer what its `what` needs it to be, if that is so. What can't be found out now is asked again
/// later.
pub(in crate::job) async fn started(
    hypervisor: &dyn Hypervisor,
    instance: InstanceId,
    what: &'static str,
) -> Option<Failure> {
    match hypervisor.state(instance).await {
        Ok(PowerState::ShutOff) => None,
        Ok(_) => {
            Some(Failure::new(Code::InstanceStarted, format!("the stopped instance was started during its {what}")))
        }
        // It was undefined, perhaps migrated away: its volumes may be anybody's now.
        Err(gone) if gone.code == Code::InstanceNotHere => Some(gone),
        Err(_) => None,
    }
}
