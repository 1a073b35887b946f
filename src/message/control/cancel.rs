//! The end of one run.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{invalid, said};
use crate::message::refusal::Refusal;
use crate::model::id::JobId;
use crate::model::job::RunKey;

/// How long a cancellation is remembered for a run that has not come, where its sender says nothing, seconds: 30 days.
const REMEMBER_SECONDS: u64 = 30 * 24 * 60 * 60;

/// Longest time that one is remembered, seconds: a year.
const REMEMBER_SECONDS_MAX: u64 = 365 * 24 * 60 * 60;

/// Ends one run of a job, wherever it stands: what has not come yet is ended when it comes, what waits at once, and what is at work is
/// taken back first. One that is past its commit completes all the same, and one that has ended stays as it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cancel {
    /// The job.
    pub job_id: JobId,
    /// Which run of it; no other one is touched.
    #[schemars(range(min = 1))]
    pub run: u32,
    /// Who wants it, in the controller's words, 1 to 1024 bytes. Told in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub requested_by: Option<String>,
    /// Why, in the controller's words, 1 to 1024 bytes. Told in the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
    /// How long it is remembered for a run that has not come, seconds, at most a year; 30 days where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 31_536_000))]
    pub remember_seconds: Option<u64>,
}

impl Cancel {
    /// Message type.
    pub const MESSAGE_TYPE: &'static str = "longshore.control.cancel.v1";
    /// Second word of the routing key.
    pub const COMMAND: &'static str = "cancel";

    /// The run.
    pub fn key(&self) -> RunKey {
        RunKey { job_id: self.job_id, run: self.run }
    }

    /// Until when it is remembered.
    pub fn until(&self, now: Timestamp) -> Timestamp {
        let seconds = self.remember_seconds.unwrap_or(REMEMBER_SECONDS).min(REMEMBER_SECONDS_MAX);
        now.checked_add(std::time::Duration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        let of_run = |refusal| Refusal { job_id: Some(self.job_id), run: Some(self.run), ..refusal };
        if self.run == 0 {
            return Err(of_run(invalid("run", "runs are counted from 1")));
        }
        said(self.requested_by.as_deref(), self.reason.as_deref()).map_err(of_run)?;
        match self.remember_seconds {
            Some(seconds) if seconds > REMEMBER_SECONDS_MAX => {
                Err(of_run(invalid("remember_seconds", &format!("it is at most {REMEMBER_SECONDS_MAX}"))))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::super::Control;
    use super::super::tests::code_of;
    use super::*;
    use crate::failure::Code;
    use crate::message::words::WORDS_BYTES_MAX;

    const JOB_ID: &str = "019a0f3e-7c00-7000-8000-000000000001";

    fn read(field: &str, value: Value) -> Result<Control, Code> {
        let mut body = json!({ "job_id": JOB_ID, "run": 2 });
        body[field] = value;
        code_of(Cancel::COMMAND, &body)
    }

    #[test]
    fn what_is_not_allowed_in_a_cancellation_is_refused() {
        let Control::Cancel(good) = read("reason", json!("the wrong host")).unwrap() else { unreachable!() };
        assert_eq!((good.key().to_string(), good.reason.as_deref()), (format!("{JOB_ID}/2"), Some("the wrong host")));
        for (field, value, code) in [
            ("run", json!(0), Code::InvalidField),
            ("run", json!("1"), Code::MalformedMessage),
            ("job_id", json!("nightly"), Code::MalformedMessage),
            ("reason", json!(""), Code::InvalidField),
            ("requested_by", json!("a\nb"), Code::InvalidField),
            ("requested_by", json!("x".repeat(WORDS_BYTES_MAX + 1)), Code::InvalidField),
            ("remember_seconds", json!(REMEMBER_SECONDS_MAX + 1), Code::InvalidField),
            ("password", json!("secret"), Code::SecretInOptions),
        ] {
            assert_eq!(read(field, value.clone()), Err(code), "{field} {value}");
        }
    }

    #[test]
    fn it_is_remembered_as_long_as_it_says_or_for_a_month() {
        let cancel = |remember_seconds| Cancel {
            job_id: JOB_ID.parse().unwrap(),
            run: 1,
            requested_by: None,
            reason: None,
            remember_seconds,
        };
        let second = |cancel: Cancel| cancel.until(Timestamp::UNIX_EPOCH).as_second();
        assert_eq!((second(cancel(Some(60))), second(cancel(None))), (60, 2_592_000));
    }
}
