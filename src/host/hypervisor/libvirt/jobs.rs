//! The domain's job, now and the latest one: what libvirt says of it, and its end.

use std::ffi::CStr;

use virt::domain::Domain;
use virt_sys as sys;

use super::super::{DomainJob, DomainJobStats, EndedJob};
use super::calls::Caller;
use super::raw::{Value, Values};
use super::{domain, errors, parse, raw};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;

pub(super) fn domain_job(domain: &Domain) -> Result<Option<DomainJob>, Failure> {
    match raw::backup_xml(domain) {
        Ok(xml) => return parse::backup_job(&xml).map(Some),
        Err(error) if errors::is_no_backup(&error) || errors::is_invalid_now(&error) => {}
        Err(error) => return Err(errors::failure("cannot ask for the domain's backup job", &error)),
    }
    match raw::job_stats(domain, 0) {
        Ok((sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED, _)) => Ok(Some(DomainJob::Other)),
        Ok(_) => Ok(None),
        Err(error) if errors::is_invalid_now(&error) => Ok(None),
        Err(error) => Err(errors::failure("cannot ask for the domain's job", &error)),
    }
}

pub(super) fn job_stats(domain: &Domain) -> Result<Option<DomainJobStats>, Failure> {
    let values = match raw::job_stats(domain, 0) {
        Ok((sys::VIR_DOMAIN_JOB_BOUNDED | sys::VIR_DOMAIN_JOB_UNBOUNDED, values)) => values,
        Ok(_) => return Ok(None),
        Err(error) if errors::is_invalid_now(&error) => return Ok(None),
        Err(error) => return Err(errors::failure("cannot ask for the figures of the domain's job", &error)),
    };
    Ok(Some(DomainJobStats {
        total_bytes: bytes(&values, sys::VIR_DOMAIN_JOB_DISK_TOTAL).unwrap_or(0),
        processed_bytes: bytes(&values, sys::VIR_DOMAIN_JOB_DISK_PROCESSED).unwrap_or(0),
        scratch_used_bytes: bytes(&values, sys::VIR_DOMAIN_JOB_DISK_TEMP_USED).unwrap_or(0),
    }))
}

/// What libvirt remembers is kept, so that an answer that was lost can be asked for again.
pub(super) fn ended_job(domain: &Domain) -> Result<Option<EndedJob>, Failure> {
    let flags = sys::VIR_DOMAIN_JOB_STATS_COMPLETED | sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED;
    let (kind, values) = raw::job_stats(domain, flags)
        .map_err(|error| errors::failure("cannot ask how the domain's latest job ended", &error))?;
    Ok(ended(kind, &values))
}

pub(super) fn forget_ended_job(domain: &Domain) -> Result<(), Failure> {
    raw::job_stats(domain, sys::VIR_DOMAIN_JOB_STATS_COMPLETED)
        .map(drop)
        .map_err(|error| errors::failure("cannot let libvirt forget the domain's latest job", &error))
}

/// libvirt ends whatever job there is, without a name: so it is looked at right before, in the same thread.
pub(super) fn abort_job(domain: &Domain, ours: &DomainJob, caller: &Caller<'_>) -> Result<(), Failure> {
    match domain_job(domain)? {
        None => return Ok(()),
        Some(job) if job == *ours => {}
        Some(job) => {
            let text = "the domain has another job, which is not ours to end";
            return Err(Failure::new(Code::InstanceBusy, text).caused_by(format!("{job:?}")));
        }
    }
    caller.still_waits()?;
    match raw::abort_job(domain) {
        Err(error) if !errors::is_invalid_now(&error) => Err(errors::failure("cannot end the domain's job", &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn block_jobs(domain: &Domain) -> Result<Vec<DiskTarget>, Failure> {
    let mut busy = Vec::new();
    for target in parse::targets(&domain::description(domain, 0)?)? {
        match raw::has_block_job(domain, &target) {
            Ok(true) => busy.extend(target.parse()),
            Ok(false) => {}
            Err(error) if errors::is_invalid_now(&error) => {}
            Err(error) => return Err(errors::failure(format!("cannot ask disk `{target}` for its block job"), &error)),
        }
    }
    Ok(busy)
}

/// A latest job that was no backup tells nothing.
fn ended(kind: u32, values: &Values) -> Option<EndedJob> {
    let is_backup = match found(values, sys::VIR_DOMAIN_JOB_OPERATION)? {
        Value::Signed(operation) => u32::try_from(*operation) == Ok(sys::VIR_DOMAIN_JOB_OPERATION_BACKUP),
        _ => false,
    };
    let said_success = found(values, sys::VIR_DOMAIN_JOB_SUCCESS) == Some(&Value::Truth(true));
    let message = match found(values, sys::VIR_DOMAIN_JOB_ERRMSG) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    is_backup.then(|| EndedJob {
        success: said_success && kind == sys::VIR_DOMAIN_JOB_COMPLETED,
        message,
        total_bytes: bytes(values, sys::VIR_DOMAIN_JOB_DISK_TOTAL),
        remaining_bytes: bytes(values, sys::VIR_DOMAIN_JOB_DISK_REMAINING),
        connection: 0,
    })
}

fn bytes(values: &Values, name: &CStr) -> Option<u64> {
    match found(values, name)? {
        Value::Unsigned(bytes) => Some(*bytes),
        _ => None,
    }
}

fn found<'v>(values: &'v Values, name: &CStr) -> Option<&'v Value> {
    values.iter().find(|(known, _)| known.as_bytes() == name.to_bytes()).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &CStr, value: Value) -> (String, Value) {
        (name.to_string_lossy().into_owned(), value)
    }

    #[test]
    fn only_a_backup_that_libvirt_calls_completed_and_a_success_is_one() {
        let of = |kind: u32, operation: i64, success: bool| {
            let values = vec![
                value(sys::VIR_DOMAIN_JOB_OPERATION, Value::Signed(operation)),
                value(sys::VIR_DOMAIN_JOB_DISK_TOTAL, Value::Unsigned(9)),
                value(sys::VIR_DOMAIN_JOB_DISK_REMAINING, Value::Unsigned(7)),
                value(sys::VIR_DOMAIN_JOB_SUCCESS, Value::Truth(success)),
                value(sys::VIR_DOMAIN_JOB_ERRMSG, Value::Text("No space left on device".into())),
            ];
            ended(kind, &values).map(|ended| (ended.success, ended.total_bytes, ended.remaining_bytes))
        };
        let backup = i64::from(sys::VIR_DOMAIN_JOB_OPERATION_BACKUP);
        assert_eq!(of(sys::VIR_DOMAIN_JOB_COMPLETED, backup, true), Some((true, Some(9), Some(7))));
        assert_eq!(of(sys::VIR_DOMAIN_JOB_FAILED, backup, true), Some((false, Some(9), Some(7))));
        assert_eq!(of(sys::VIR_DOMAIN_JOB_COMPLETED, backup, false), Some((false, Some(9), Some(7))));
        assert_eq!(of(sys::VIR_DOMAIN_JOB_COMPLETED, backup + 1, true), None);
        assert_eq!(ended(sys::VIR_DOMAIN_JOB_NONE, &Vec::new()), None);
    }
}
