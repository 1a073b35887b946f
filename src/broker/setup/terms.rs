//! On what terms jobs wait: what is asked for now, and else what the policies that are there say.
//!
//! It promises that who adds a host and names neither type nor backlog changes neither for the hosts that are there. Pure: what the
//! management API answered goes in.

use serde_json::Value;

use super::look::Conflict;
use super::policy::JOBS_POLICY;
use crate::broker::topology::QueueType;

/// Jobs that may wait in a host's normal queue of a new fleet.
pub const BACKLOG_DEFAULT: u32 = 1000;
/// Keys that only the policies of quorum queues have.
const OF_QUORUM: [&str; 2] = ["delivery-limit", "dead-letter-strategy"];

/// How job queues are kept, and how long a normal one gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How the broker keeps the job queues.
    pub jobs_type: QueueType,
    /// Jobs that may wait in a host's normal queue.
    pub backlog_max: u32,
}

/// What is asked for; what is not, stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// How the broker keeps the job queues.
    pub jobs_type: Option<QueueType>,
    /// Jobs that may wait in a host's normal queue.
    pub backlog_max: Option<u32>,
}

impl Asked {
    /// The terms of a fleet whose policies for normal and for urgent jobs are these, if they are there.
    ///
    /// # Errors
    /// Another type is asked for, or there is no telling the backlog.
    pub fn beside(self, normal: Option<&Value>, urgent: Option<&Value>) -> Result<Terms, Conflict> {
        let has = |policy: &Value, key: &str| policy.get("definition").is_some_and(|keys| keys.get(key).is_some());
        let policies = || normal.iter().chain(urgent.iter());
        let is_quorum = policies().any(|policy| OF_QUORUM.iter().any(|key| has(policy, key)));
        let found = is_quorum.then_some(QueueType::Quorum).or(normal.map(|_| QueueType::Classic));
        let jobs_type = match (self.jobs_type, found) {
            (Some(asked), Some(found)) if asked != found => {
                let is = format!("is for {} queues, not for {} ones", found.as_str(), asked.as_str());
                return Err(Conflict::new(
                    format!("policy `{JOBS_POLICY}`"),
                    is,
                    "keep the type, or take another virtual host",
                ));
            }
            (asked, found) => asked.or(found).unwrap_or_default(),
        };
        let kept = normal.map(|policy| policy.get("definition").and_then(|keys| keys.get("max-length")?.as_u64()));
        let backlog_max = match (self.backlog_max, kept) {
            (Some(asked), _) => asked,
            (None, None) => BACKLOG_DEFAULT,
            (None, Some(kept)) => kept.and_then(|kept| u32::try_from(kept).ok()).ok_or_else(|| {
                Conflict::new(format!("policy `{JOBS_POLICY}`"), "has no bound", "say with `--backlog` which it gets")
            })?,
        };
        Ok(Terms { jobs_type, backlog_max })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::policy::policies;
    use super::super::step::policy_body;
    use super::*;

    /// The policies of a fleet, as the broker has them.
    fn fleet(jobs_type: QueueType) -> (Option<Value>, Option<Value>) {
        let mut made = policies(jobs_type, 5000, "4.0.5".parse().unwrap()).into_iter().map(|p| policy_body(&p));
        (made.next(), made.next())
    }

    fn asked(jobs_type: Option<QueueType>, backlog_max: Option<u32>) -> Asked {
        Asked { jobs_type, backlog_max }
    }

    #[test]
    fn a_new_fleet_gets_what_is_asked_for_or_the_defaults() {
        let terms = Asked::default().beside(None, None).unwrap();
        assert_eq!(terms, Terms { jobs_type: QueueType::Classic, backlog_max: BACKLOG_DEFAULT });
        let terms = asked(Some(QueueType::Quorum), Some(7)).beside(None, None).unwrap();
        assert_eq!(terms, Terms { jobs_type: QueueType::Quorum, backlog_max: 7 });
    }

    #[test]
    fn what_is_not_asked_for_stays_as_the_fleet_has_it() {
        for jobs_type in [QueueType::Classic, QueueType::Quorum] {
            let (normal, urgent) = fleet(jobs_type);
            let terms = |asked: Asked| asked.beside(normal.as_ref(), urgent.as_ref());
            assert_eq!(terms(Asked::default()), Ok(Terms { jobs_type, backlog_max: 5000 }));
            assert_eq!(terms(asked(Some(jobs_type), Some(9))), Ok(Terms { jobs_type, backlog_max: 9 }));
        }
        let (_, urgent) = fleet(QueueType::Quorum);
        assert_eq!(Asked::default().beside(None, urgent.as_ref()).unwrap().jobs_type, QueueType::Quorum);
    }

    #[test]
    fn another_type_and_a_backlog_that_nobody_knows_are_refused() {
        let (normal, urgent) = fleet(QueueType::Quorum);
        let refusal = asked(Some(QueueType::Classic), None).beside(normal.as_ref(), urgent.as_ref()).unwrap_err();
        assert!(
            refusal.to_string().contains("`longshore-jobs` is for quorum queues, not for classic ones"),
            "{refusal}"
        );
        let unbound = json!({ "definition": { "overflow": "reject-publish" } });
        assert!(Asked::default().beside(Some(&unbound), None).unwrap_err().to_string().contains("--backlog"));
        assert_eq!(asked(None, Some(3)).beside(Some(&unbound), None).unwrap().backlog_max, 3);
    }
}
