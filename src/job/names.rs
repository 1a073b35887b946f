//! How an attempt of any kind of job is called on its host.

use super::Attempt;
use crate::model::job::RunKey;

/// Hexadecimal digits of a job id that go into its paths: the last ones, which are random in a UUIDv7. The socket's path
/// has no room for all of them.
pub(super) const JOB_ID_DIGITS: usize = 12;

/// `<job>.<run>.<attempt>`: the mover's name, unique on the host.
pub(super) fn mover_name(attempt: &Attempt) -> String {
    let key = &attempt.job.key;
    format!("{}.{}.{}", job_digits(key), key.run, attempt.attempt)
}

/// The part of a job id that goes into paths.
pub(super) fn job_digits(key: &RunKey) -> String {
    let job = key.job_id.0.simple().to_string();
    job.chars().skip(job.len().saturating_sub(JOB_ID_DIGITS)).collect()
}
