//! A share that is away, and a night's jobs for it: hardly any of them dies, and all others are done once it is there again.

use longshore::message::event::{Heartbeat, HostDetail, RunDetail};
use longshore::message::job::ValidatePart;
use longshore::message::{HostEvent, RunEvent};
use longshore::model::id::JobId;

use crate::fleet::{Fleet, JOB};

#[test]
fn the_jobs_of_a_share_that_is_away_wait_for_it() {
    let fleet = Fleet::start("circuit");
    let share = fleet.share();
    let away = share.path.with_extension("away");
    std::fs::rename(&share.path, &away).unwrap();
    let validation = || fleet.publish(&fleet.validate_job(&share, ValidatePart::default()));
    // One after the other, as more may be at work when the third fails.
    let dead = [(); 2].map(|()| validation());
    for job in dead {
        assert_eq!(fleet.failed(job).failure.code, "repository_not_found");
    }
    let jobs: Vec<JobId> = (0..8).map(|_| validation()).collect();
    let held = |event: &RunEvent| match &event.detail {
        RunDetail::Retrying(retrying) => retrying.warnings.iter().any(|words| words.contains("not charged")),
        detail => detail.is_final(),
    };
    let of_first = fleet.heard.of_run(jobs[0], "it is held back", JOB, held);
    assert!(matches!(of_first.detail, RunDetail::Retrying(_)), "{of_first:?}");
    let says_so = |event: &HostEvent| match &event.detail {
        HostDetail::Heartbeat(Heartbeat { failing_repositories: failing, .. }) => {
            failing.iter().any(|failing| failing.failure.code == "repository_not_found")
        }
        _ => false,
    };
    fleet.heard.of_host("the repository fails", JOB, 0, says_so);

    std::fs::rename(&away, &share.path).unwrap();
    for job in jobs {
        fleet.validated(job);
    }
    fleet.finish(&[], &[&share]);
}
