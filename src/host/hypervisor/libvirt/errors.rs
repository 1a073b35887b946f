//! From libvirt's error numbers to our failures. The numbers are libvirt's `virErrorNumber`, stable since they were given.

use virt::error::Error;
use virt_sys as sys;

use crate::failure::{Code, Failure};

/// Classifies an error; `tried` says what was tried on what.
pub(super) fn failure(tried: impl Into<String>, error: &Error) -> Failure {
    Failure::new(code(error.code().to_raw(), error.domain().to_raw()), tried).caused_by(format!(
        "{} (libvirt error {})",
        error.message(),
        error.code().to_raw()
    ))
}

/// The failure code for libvirt's error number and the part of libvirt that raised it.
///
/// Agent numbers 112 and 113 exist since libvirt 11.2; older ones report 86 and 1 (`OPERATION_FAILED` stays general).
pub(super) fn code(number: sys::virErrorNumber, raised_by: sys::virErrorDomain) -> Code {
    let from_the_wire = matches!(raised_by, sys::VIR_FROM_RPC | sys::VIR_FROM_REMOTE);
    match number {
        sys::VIR_ERR_NO_DOMAIN => Code::InstanceNotHere,
        sys::VIR_ERR_NO_CONNECT | sys::VIR_ERR_INVALID_CONN | sys::VIR_ERR_RPC => Code::HypervisorUnavailable,
        sys::VIR_ERR_SYSTEM_ERROR | sys::VIR_ERR_INTERNAL_ERROR if from_the_wire => Code::HypervisorUnavailable,
        // 68 is the domain's job lock, for which libvirt waits 30 s; 87 a disk that is in use.
        sys::VIR_ERR_OPERATION_TIMEOUT | sys::VIR_ERR_RESOURCE_BUSY => Code::InstanceBusy,
        sys::VIR_ERR_AGENT_UNRESPONSIVE | sys::VIR_ERR_AGENT_UNSYNCED | sys::VIR_ERR_AGENT_COMMAND_TIMEOUT => {
            Code::AgentSilent
        }
        // The domain is not running, or stopped running while the call was under way.
        sys::VIR_ERR_OPERATION_INVALID => Code::InstanceStateUnsupported,
        _ => Code::HypervisorFailed,
    }
}

/// The code for a call to the agent: two more numbers have a meaning there.
pub(super) fn agent_failure(tried: impl Into<String>, error: &Error, otherwise: Code) -> Failure {
    let failure = failure(tried, error);
    let code = match error.code().to_raw() {
        // "QEMU guest agent is not configured".
        sys::VIR_ERR_ARGUMENT_UNSUPPORTED => Code::AgentMissing,
        sys::VIR_ERR_AGENT_COMMAND_FAILED => otherwise,
        _ if failure.code == Code::HypervisorFailed => otherwise,
        _ => return failure,
    };
    Failure { code, ..failure }
}

/// The code for a call that hands libvirt a description: one that it does not take it will not take later, nor what has no place where it is to
/// go. What of that would pass libvirt mostly does not tell apart, and whoever would try again would copy for hours first; where it does, and where it
/// could not read its own schema, nothing is wrong with the description.
pub(super) fn definition_failure(tried: impl Into<String>, error: &Error) -> Failure {
    let failure = failure(tried, error);
    let is_hosts = matches!(error.code().to_raw(), sys::VIR_ERR_SYSTEM_ERROR | sys::VIR_ERR_NO_MEMORY);
    let is_its = failure.code == Code::HypervisorFailed && !is_hosts && !is_unread_schema(error);
    if is_its { Failure { code: Code::DefinitionRefused, ..failure } } else { failure }
}

/// Whether libvirt says that there is no such job.
pub(super) fn is_no_backup(error: &Error) -> bool {
    error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_BACKUP
}

/// Whether libvirt says that the domain is in no state for the call: not running, or without a job to abort.
pub(super) fn is_invalid_now(error: &Error) -> bool {
    error.code().to_raw() == sys::VIR_ERR_OPERATION_INVALID
}

/// Whether libvirt says that there is no such checkpoint.
pub(super) fn is_no_checkpoint(error: &Error) -> bool {
    error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_CHECKPOINT
}

/// Whether libvirt says that it has no such secret, or none that it gives away.
pub(super) fn is_no_secret(error: &Error) -> bool {
    matches!(error.code().to_raw(), sys::VIR_ERR_NO_SECRET | sys::VIR_ERR_INVALID_SECRET)
}

/// Whether that number says of a volume that it is in no pool, or in one that is not active. Any other says nothing of where it is.
pub(super) fn is_in_no_pool(number: sys::virErrorNumber) -> bool {
    matches!(number, sys::VIR_ERR_NO_STORAGE_POOL | sys::VIR_ERR_NO_STORAGE_VOL | sys::VIR_ERR_OPERATION_INVALID)
}

/// Whether libvirt says that it can't read its own description of what a job may look like. libxml2 makes its table of types when the
/// first thread needs it, and a second one at that moment finds it half made (seen with libvirt 11.3 and libxml2 2.9.14).
pub(super) fn is_unread_schema(error: &Error) -> bool {
    error.code().to_raw() == sys::VIR_ERR_INTERNAL_ERROR && error.message().contains("RelaxNG schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_libvirt_error_that_matters_has_its_code() {
        let qemu = 10;
        for (number, raised_by, expected) in [
            (42, qemu, Code::InstanceNotHere),
            (55, qemu, Code::InstanceStateUnsupported),
            (68, qemu, Code::InstanceBusy),
            (84, qemu, Code::HypervisorFailed),
            (86, qemu, Code::AgentSilent),
            (112, qemu, Code::AgentSilent),
            (38, 7, Code::HypervisorUnavailable),
            (38, qemu, Code::HypervisorFailed),
            (1, 7, Code::HypervisorUnavailable),
            (1, qemu, Code::HypervisorFailed),
            (5, 0, Code::HypervisorUnavailable),
            (9999, qemu, Code::HypervisorFailed),
        ] {
            assert_eq!(code(number, raised_by), expected, "libvirt error {number} from {raised_by}");
        }
    }

    #[test]
    fn only_what_is_not_there_is_in_no_pool() {
        for (number, expected) in
            [(49, true), (50, true), (55, true), (1, false), (3, false), (38, false), (39, false), (68, false)]
        {
            assert_eq!(is_in_no_pool(number), expected, "libvirt error {number}");
        }
    }
}
