//! A mark on a dead letter: a later job did what the letter's was for, so that nobody has to replay it.
//!
//! A host writes one in the transaction that ends the later run well, for each of its letters that is so, and to the exchange of the
//! letters, so that it comes to wait in their queue. It speaks of that host's letters alone; what is in no letter any more it says
//! nothing of.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::id::{EventId, HostId, JobId};
use crate::model::job::JobKind;

/// A dead letter is superseded by a later success of the same kind, instance, repository, schedule (the label `schedule`) and part of the
/// kind's own, or of a later run of the same job. Who reads the letters and does not know this type acknowledges it: one that is lost
/// costs no more than needless work, and one that is left un-acknowledged stands in the way of the letters behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Superseded {
    /// The host whose letter it is, and who says so.
    pub host: HostId,
    /// When the later run ended well.
    pub time: Timestamp,
    /// The letter, by its message id.
    pub letter_id: EventId,
    /// The kind of both jobs: `backup` or `repo-validate`. New kinds may come within v1.
    pub kind: JobKind,
    /// The job of the letter.
    pub job_id: JobId,
    /// Its run.
    pub run: u32,
    /// The job that ended well.
    pub by_job_id: JobId,
    /// Its run.
    pub by_run: u32,
}

impl Superseded {
    /// Message type.
    pub const MESSAGE_TYPE: &'static str = "longshore.superseded.v1";

    /// Routing key: `<kind>.superseded.<host>`. No failure has that code.
    pub fn routing_key(&self) -> String {
        format!("{}.superseded.{}", self.kind.as_str(), self.host)
    }
}

#[cfg(test)]
mod tests {
    use crate::failure::Code;

    #[test]
    fn its_key_is_no_letters() {
        assert!(Code::ALL.iter().all(|code| code.as_str() != "superseded"));
    }
}
