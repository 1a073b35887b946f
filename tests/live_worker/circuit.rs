//! A share that gives errors, and a night's jobs for it: none of them dies, and all are done once it works again.

use longshore::message::event::{Heartbeat, HostDetail, RunDetail};
use longshore::message::{HostEvent, RunEvent};
use longshore::model::id::JobId;

use crate::fleet::{Fleet, JOB};
use crate::lab::LabInstance;
use crate::share::Share;

#[test]
fn the_jobs_of_a_share_that_fails_wait_for_it() {
    let (fleet, share) = (Fleet::start("circuit"), Share::faulty("circuit"));
    let instances = [(); 4].map(|()| LabInstance::bare());
    share.order(r#"{"mode": "eio"}"#);
    let jobs: Vec<JobId> = instances.iter().map(|instance| fleet.publish(&fleet.job(instance, &share))).collect();
    let says_so = |event: &HostEvent| match &event.detail {
        HostDetail::Heartbeat(Heartbeat { failing_repositories: failing, .. }) => {
            failing.iter().any(|failing| failing.failure.code == "repository_io" && failing.next_try_at.is_some())
        }
        _ => false,
    };
    fleet.heard.of_host("the repository fails", JOB, 0, says_so);
    let is_held = |event: &RunEvent| match &event.detail {
        RunDetail::Retrying(retrying) => retrying.warnings.iter().any(|words| words.contains("not charged")),
        _ => false,
    };
    assert!(jobs.iter().any(|job| fleet.heard.events_of(*job).iter().any(is_held)));

    share.heal();
    for job in jobs {
        fleet.completed(job);
    }
    fleet.finish(&instances.each_ref(), &[&share]);
}
