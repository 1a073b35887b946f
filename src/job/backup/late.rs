//! Calls that failed without saying that they are over. libvirt may still carry one out: it is under way as long as the door
//! lists it as stuck, and may be waiting in the daemon after the connection it came by has gone. So it counts as over only
//! when it has not been listed for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::{Code, Failure};
use crate::host::guard::SETTLE;
use crate::host::hypervisor::{DomainJob, Hypervisor};
use crate::model::id::InstanceId;

/// The door's words for the calls that a guest or the host must not meet late.
pub const FREEZE: &str = "freeze";
/// Likewise.
const BEGIN_PULL: &str = "begin_pull";
/// Likewise.
const BEGIN_PUSH: &str = "begin_push";
/// The door's word for a call that is only not to be asked twice.
pub const COUNTERS: &str = "write_counters";

/// The door's word for the call that begins that job.
pub fn begin_of(job: &DomainJob) -> &'static str {
    match job {
        DomainJob::Push { .. } => BEGIN_PUSH,
        DomainJob::Pull { .. } | DomainJob::Other => BEGIN_PULL,
    }
}

/// The door's word for the call that a push asks again and again for how far it is.
pub const STATS: &str = "domain_job_stats";

/// Pause between two looks whether a late call has come back.
pub const LOOK_SECONDS: u64 = 2;

/// Whether a call that failed so may still take effect.
pub fn may_come_late(failure: &Failure) -> bool {
    matches!(failure.code, Code::HypervisorTimedOut | Code::HypervisorUnavailable)
}

/// One call that may still take effect.
#[derive(Debug)]
pub struct LateCall {
    word: &'static str,
    gone_since: Option<Instant>,
}

impl LateCall {
    /// The call of that word, if it failed in a way that leaves it open.
    pub fn after<T>(word: &'static str, answer: &Result<T, Failure>) -> Option<Self> {
        let late = answer.as_ref().err().is_some_and(may_come_late);
        late.then_some(Self { word, gone_since: None })
    }

    /// Whether it can be believed to be over: not listed for the time that libvirt keeps a call waiting for a lock.
    pub fn is_over(&mut self, hypervisor: &dyn Hypervisor, instance: InstanceId) -> bool {
        if is_listed(hypervisor, instance, self.word) {
            self.gone_since = None;
            return false;
        }
        self.gone_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE
    }
}

/// Resolves when no freeze and no begin on the instance is under way.
pub async fn none_is_listed(hypervisor: Arc<dyn Hypervisor>, instance: InstanceId) {
    while [FREEZE, BEGIN_PULL, BEGIN_PUSH].iter().any(|word| is_listed(hypervisor.as_ref(), instance, word)) {
        sleep(Duration::from_secs(LOOK_SECONDS)).await;
    }
}

/// Whether that call on the instance has outlived its caller and is still under way.
pub fn is_listed(hypervisor: &dyn Hypervisor, instance: InstanceId, word: &str) -> bool {
    hypervisor.stuck_calls().iter().any(|stuck| stuck.call == word && stuck.instance == Some(instance))
}
