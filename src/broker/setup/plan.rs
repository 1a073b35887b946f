//! From what an operator wants to the steps that make it so, in order.
//!
//! The order is what keeps a half-done setup closed. Policies come before the queues that they are for. A user is made without a
//! password, gets the keys that it may use on topic exchanges first (until then all are open to it), its other rights next (until then
//! it cannot even enter the virtual host), and only then a password, where it logs in with one.

use super::policy::{JOBS_POLICY, Policy, URGENT_JOBS_POLICY, policies};
use super::step::Step;
use super::terms::Terms;
use super::version::ServerVersion;
use crate::broker::access::{Rights, Role};
use crate::broker::topology::{EXCHANGES, JOBS_EXCHANGE, Queue, host_queues, shared_queues};
use crate::model::id::HostId;

/// Connections of one host: its worker has two, after a lost network the broker holds the two before it for a while, and somebody
/// may check the host meanwhile.
const CONNECTIONS_MAX: u32 = 8;
/// Channels of one host.
const CHANNELS_MAX: u32 = 32;

/// How users log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// With a password.
    Password,
    /// With a certificate whose common name is the user's (SASL `EXTERNAL`); they have no password at all.
    Certificate,
}

/// A user and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user: String,
    /// Its roles.
    pub roles: Vec<Role>,
}

impl Member {
    /// The user of a host.
    pub fn host(host: &HostId) -> Self {
        Self { user: host.to_string(), roles: vec![Role::Host(host.clone())] }
    }
}

/// What an operator wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The virtual host.
    pub vhost: String,
    /// On what terms jobs wait.
    pub terms: Terms,
    /// Hosts.
    pub hosts: Vec<HostId>,
    /// The users that are no hosts.
    pub others: Vec<Member>,
    /// How all of them log in.
    pub login: Login,
}

impl Wanted {
    /// The policies for job queues.
    pub fn policies(&self, version: ServerVersion) -> Vec<Policy> {
        policies(self.terms.jobs_type, self.terms.backlog_max, version)
    }

    /// Our policy for a queue; classic urgent queues, control queues and the dead letters have none.
    pub fn policy_of(&self, queue: &Queue, version: ServerVersion) -> Option<Policy> {
        let name = if queue.is_of_urgent_jobs() { URGENT_JOBS_POLICY } else { JOBS_POLICY };
        let of_jobs = queue.exchange == JOBS_EXCHANGE;
        self.policies(version).into_iter().find(|policy| of_jobs && policy.name == name)
    }

    /// The queues that all share, and those of the hosts.
    pub fn queues(&self) -> Vec<Queue> {
        let of_hosts = self.hosts.iter().flat_map(|host| host_queues(host, self.terms.jobs_type));
        shared_queues().into_iter().chain(of_hosts).collect()
    }

    /// Everybody, hosts first.
    pub fn members(&self) -> Vec<Member> {
        self.hosts.iter().map(Member::host).chain(self.others.iter().cloned()).collect()
    }
}

/// The steps, in order. `has_user_limits`: the broker can bound what a user opens.
pub fn steps(wanted: &Wanted, version: ServerVersion, has_user_limits: bool) -> Vec<Step> {
    let mut steps = vec![Step::VirtualHost];
    steps.extend(EXCHANGES.map(Step::Exchange));
    steps.extend(wanted.policies(version).into_iter().map(Step::Policy));
    steps.extend(wanted.queues().into_iter().flat_map(queue_steps));
    for member in wanted.members() {
        steps.extend(closed_user(&member, has_user_limits));
        steps.push(match wanted.login {
            Login::Password => Step::Password(member.user),
            Login::Certificate => Step::NoPassword(member.user),
        });
    }
    steps
}

fn queue_steps(queue: Queue) -> [Step; 2] {
    [Step::Queue(queue.clone()), Step::Binding(queue)]
}

/// A user with all its rights, who cannot log in with a password yet.
pub fn closed_user(member: &Member, has_user_limits: bool) -> Vec<Step> {
    let user = || member.user.clone();
    let rights = Rights::of(&member.user, &member.roles);
    let mut steps = vec![Step::User(user())];
    steps.extend(rights.topics.iter().map(|right| Step::Topic { user: user(), right: right.clone() }));
    steps.push(Step::Rights { user: user(), rights });
    // Others may well have many: a planner publishes from several places, and each that watches a job reads events.
    if has_user_limits && member.roles.iter().any(|role| matches!(role, Role::Host(_))) {
        for (name, most) in [("max-connections", CONNECTIONS_MAX), ("max-channels", CHANNELS_MAX)] {
            steps.push(Step::Limit { user: user(), name, most });
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::broker::topology::QueueType;

    fn wanted(login: Login) -> Wanted {
        Wanted {
            vhost: "fleet".to_owned(),
            terms: Terms { jobs_type: QueueType::Quorum, backlog_max: 1000 },
            hosts: vec!["kvm-07".parse().unwrap()],
            others: vec![Member { user: "planner".to_owned(), roles: vec![Role::Publisher] }],
            login,
        }
    }

    fn kinds(login: Login) -> Vec<&'static str> {
        steps(&wanted(login), "4.0.5".parse().unwrap(), true).iter().map(Step::kind).collect()
    }

    #[test]
    fn nobody_can_log_in_before_all_rights_are_set() {
        let kinds = kinds(Login::Password);
        let host: Vec<_> = kinds.split(|kind| *kind == "user").nth(1).unwrap().to_vec();
        assert_eq!(host, ["topic", "topic", "topic", "rights", "limit", "limit", "password"]);
        assert_eq!(kinds.iter().filter(|kind| **kind == "limit").count(), 2, "the planner has bounds of a worker");
        let first = |kind| kinds.iter().position(|k| *k == kind).unwrap();
        assert!(first("policy") < first("queue") && first("queue") < first("user"));
    }

    #[test]
    fn job_queues_alone_have_a_policy() {
        let wanted = wanted(Login::Password);
        let name = |queue: &Queue| wanted.policy_of(queue, "4.0.5".parse().unwrap()).map(|policy| policy.name);
        let names = wanted.queues().iter().map(name).collect::<Vec<_>>();
        assert_eq!(names, [None, None, Some(URGENT_JOBS_POLICY), Some(JOBS_POLICY)]);
    }

    #[test]
    fn who_has_a_certificate_has_no_password() {
        let kinds = kinds(Login::Certificate);
        assert!(kinds.contains(&"no_password") && !kinds.contains(&"password"));
    }
}
