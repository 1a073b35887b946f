//! Shares that lose, change, refuse or keep what they are given: none of it is ever published, and only the job suffers.

use std::time::Duration;

use longshore::message::event::RunDetail;
use longshore::message::job::RetryPart;

use crate::fleet::{Fleet, JOB, Settings};
use crate::lab::{LabInstance, eventually};
use crate::share::Share;

#[test]
fn bytes_that_did_not_reach_the_share_are_not_published() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("badshare");
    let share = Share::faulty("badshare");
    let faults = [
        (r#"{"mode": "late", "file": "vda.qcow2"}"#, &["repository_io"][..]),
        (r#"{"mode": "late", "file": "*.blocks", "errno": "ENOSPC"}"#, &["repository_full"]),
        (r#"{"mode": "late", "file": "manifest*"}"#, &["repository_io"]),
        (r#"{"mode": "enospc_meta", "file": "vdb.qcow2"}"#, &["repository_full", "image_tool_failed"]),
        (r#"{"mode": "flip", "file": "vdb.qcow2", "offset": 2000000}"#, &["content_mismatch"]),
        (r#"{"mode": "flip", "file": "vda.qcow2", "offset": 700000, "on": "read"}"#, &["content_mismatch"]),
        (r#"{"cap_mb": 3}"#, &["repository_full"]),
        (r#"{"mode": "enospc"}"#, &["repository_full"]),
        (r#"{"mode": "eio", "file": "*.qcow2"}"#, &["repository_io"]),
        (r#"{"mode": "estale"}"#, &["repository_io", "repository_not_found", "mount_failed"]),
    ];
    for (orders, codes) in faults {
        share.order(orders);
        let mut job = fleet.job(&bare, &share);
        job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
        let failed = fleet.failed(fleet.publish(&job));
        assert!(codes.contains(&failed.failure.code.as_str()), "{orders}: {failed:#?}");
        share.heal();
        assert!(!bare.has_backup_job(), "{orders}");
        let published = |name: &String| !name.starts_with('.');
        assert!(!share.entries_of(&bare.id).iter().any(published), "{orders}: {:?}", share.entries_of(&bare.id));
    }
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_share_that_hangs_costs_its_own_job_and_nobody_else() {
    let (guest, bare) = (LabInstance::guest(), LabInstance::bare());
    let fleet = Fleet::with("hangs", Settings { stall_seconds: 5, ..Settings::default() });
    let (hanging, good) = (Share::faulty("hangs"), fleet.share());
    hanging.order(r#"{"bw_mb": 4}"#);
    let job = fleet.back_up(&guest, &hanging, "require");
    fleet.is_copying(job);
    hanging.order(r#"{"mode": "hang"}"#);
    assert!(guest.agent_answers() && !guest.is_frozen(), "the guest goes on");
    fleet.completed(fleet.back_up(&bare, &good, "off"));
    eventually("the guest has no job any more, though the share still hangs", JOB, || !guest.has_backup_job());
    assert!(guest.agent_answers() && !guest.is_frozen(), "the guest goes on");
    hanging.heal();
    let retrying = fleet.heard.of_run(job, "the attempt is given up", JOB, |event| event.detail.word() == "retrying");
    let RunDetail::Retrying(retrying) = retrying.detail else { panic!("{retrying:?}") };
    assert_eq!(retrying.failure.code, "stalled", "{retrying:?}");
    fleet.completed(job);
    fleet.finish(&[&guest, &bare], &[&hanging, &good]);
}

/// A dead share keeps a mover's processes for as long as it is dead: nobody can kill those.
const STUCK: Duration = Duration::from_secs(240);

#[test]
fn a_mover_stuck_behind_a_dead_share_is_named_and_gone_when_the_share_is_back() {
    let bare = LabInstance::bare();
    let fleet = Fleet::with("dead", Settings { stall_seconds: 5, ..Settings::default() });
    let share = Share::faulty("dead");
    share.order(r#"{"bw_mb": 4}"#);
    let mut job = fleet.job(&bare, &share);
    job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    let job = fleet.publish(&job);
    fleet.is_copying(job);
    share.order(r#"{"mode": "hang"}"#);
    let RunDetail::Failed(failed) = fleet.heard.end_of(job, STUCK) else { panic!("the job did not fail") };
    assert_eq!(failed.failure.code, "stalled", "{failed:#?}");
    assert!(!failed.left_overs.is_empty(), "what could not be removed is named");
    share.heal();
    // The next job of the instance sweeps what the dead one left.
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    fleet.finish(&[&bare], &[&share]);
}
