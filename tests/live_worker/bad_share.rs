//! Shares that lose, change, refuse or keep what they are given: none of it is ever published, and only the job suffers.

use std::time::Duration;

use longshore::message::event::{HostDetail, RunDetail};
use longshore::message::job::RetryPart;
use longshore::model::manifest::ChangesFoundBy;

use crate::fleet::{Fleet, JOB, Settings};
use crate::image::equal;
use crate::incremental::image;
use crate::lab::{LabInstance, eventually, guard_stands};
use crate::share::Share;
use crate::slate::{everything_in, mounts_below, processes_of};

/// A share that is slow enough for a fault to come while bytes are on their way.
const SLOW: &str = r#"{"bw_mb": 8}"#;

/// What goes wrong, from when on, and the codes that say so.
struct Fault {
    orders: &'static str,
    while_copying: bool,
    codes: &'static [&'static str],
}

const fn from_the_start(orders: &'static str, codes: &'static [&'static str]) -> Fault {
    Fault { orders, while_copying: false, codes }
}

const fn while_copying(orders: &'static str, codes: &'static [&'static str]) -> Fault {
    Fault { orders, while_copying: true, codes }
}

/// Where qemu-img or qemu-nbd meets the error first, it is theirs: they don't say which one it was but in words.
const FAULTS: [Fault; 15] = [
    while_copying(r#"{"mode": "late", "file": "vd*.qcow2"}"#, &["repository_io", "image_tool_failed"]),
    while_copying(r#"{"mode": "enospc_meta", "file": "vd*.qcow2"}"#, &["repository_full"]),
    while_copying(r#"{"mode": "enospc"}"#, &["repository_full"]),
    while_copying(r#"{"mode": "eio", "file": "*.qcow2"}"#, &["repository_io"]),
    while_copying(r#"{"mode": "estale"}"#, &["repository_io"]),
    from_the_start(r#"{"mode": "late", "file": "*.blocks", "errno": "ENOSPC"}"#, &["repository_full"]),
    from_the_start(r#"{"mode": "late", "file": "*manifest*"}"#, &["repository_io"]),
    from_the_start(r#"{"mode": "flip", "file": "vdb.qcow2", "offset": 2000000}"#, &["content_mismatch"]),
    from_the_start(r#"{"mode": "flip", "file": "vda.qcow2", "offset": 700000, "on": "read"}"#, &["content_mismatch"]),
    from_the_start(r#"{"mode": "flip", "file": "vda.blocks", "offset": 60}"#, &["content_mismatch"]),
    from_the_start(r#"{"mode": "flip", "file": "domain.xml", "offset": 9}"#, &["content_mismatch"]),
    from_the_start(r#"{"mode": "flip", "file": "manifest.json*", "offset": 20}"#, &["content_mismatch"]),
    from_the_start(r#"{"mode": "flip", "file": "manifest.json*", "offset": 20, "on": "read"}"#, &["content_mismatch"]),
    from_the_start(r#"{"cap_mb": 3}"#, &["repository_full"]),
    from_the_start(r#"{"mode": "enospc"}"#, &["repository_full"]),
];

#[test]
fn bytes_that_did_not_reach_the_share_are_not_published() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("badshare");
    let share = Share::faulty("badshare");
    let first = fleet.completed(fleet.back_up(&bare, &share, "off"));
    let whole = vec![first.backup_id.to_string()];
    let mut wrong = Vec::new();
    for Fault { orders, while_copying, codes } in FAULTS {
        share.order(if while_copying { SLOW } else { orders });
        let mut job = fleet.job(&bare, &share);
        job.backup.as_mut().unwrap().mode = Some("full".to_owned());
        job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
        let job = fleet.publish(&job);
        if while_copying {
            fleet.is_copying(job);
            share.order(orders);
            // With the fault still there, what tells others that the job is over can't be written either.
            eventually("the instance is let go", JOB, || !bare.has_backup_job());
            share.heal();
        }
        let failed = fleet.failed(job);
        share.heal();
        let left = share.entries_of(&bare.id);
        if !codes.contains(&failed.failure.code.as_str()) || left != whole || bare.has_backup_job() {
            wrong.push(format!("{orders}: {:#?}, left {left:?}", failed));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The checkpoint of the one that is whole is still there, and knows what was written since.
    bare.overwrite(0, 0x5a, "1M");
    let next = fleet.completed(fleet.back_up(&bare, &share, "off"));
    assert_eq!((next.parent, next.disks[0].found_by), (Some(first.backup_id), Some(ChangesFoundBy::Bitmap)));
    bare.stop();
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &next, "vda"), "qcow2");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_full_share_gets_its_room_back_and_the_lease_is_given_back_later() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("full");
    let share = Share::faulty("full");
    share.order(SLOW);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    share.order(r#"{"mode": "enospc"}"#);
    eventually("what filled the share is removed, though nothing can be made or renamed", JOB, || {
        share.entries_of(&bare.id).is_empty()
    });
    share.heal();
    // The second attempt would have to wait for minutes if the lease were still held.
    fleet.completed(job);
    let RunDetail::Retrying(retrying) =
        fleet.heard.of_run(job, "it was tried again", JOB, |event| event.detail.word() == "retrying").detail
    else {
        panic!("a retrying event says `retrying`")
    };
    assert_eq!(retrying.failure.code, "repository_full", "{retrying:?}");
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn a_share_that_hangs_costs_its_own_job_and_nobody_else() {
    let (guest, bare) = (LabInstance::guest(), LabInstance::bare());
    let fleet = Fleet::with("hangs", Settings { stall_seconds: 20, ..Settings::default() });
    let (hanging, good) = (Share::faulty("hangs"), fleet.share());
    hanging.order(r#"{"bw_mb": 4}"#);
    let job = fleet.back_up(&guest, &hanging, "require");
    fleet.is_copying(job);
    hanging.order(r#"{"mode": "hang"}"#);
    assert!(guest.agent_answers() && !guest.is_frozen(), "the guest goes on");
    // It writes and syncs once a second.
    let before = guest.writes_done();
    eventually("the guest's writes are done while the share hangs", WRITES, || guest.writes_done() >= before + 5);
    assert!(guest.has_backup_job(), "the backup is still there, and so is what would hold the writes up");
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

/// Longest time for a handful of the guest's writes; less than the stall limit.
const WRITES: Duration = Duration::from_secs(15);

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
    assert!(guard_stands(bare.id), "a pull is watched over");
    share.order(r#"{"mode": "hang"}"#);
    let RunDetail::Failed(failed) = fleet.heard.end_of(job, STUCK) else { panic!("the job did not fail") };
    assert_eq!(failed.failure.code, "stalled", "{failed:#?}");
    assert!(!failed.left_overs.is_empty(), "what could not be removed is named");
    let told = fleet.heard.host_events();
    fleet.heard.of_host("heartbeats name the mover and its process", JOB, told, |event| match &event.detail {
        HostDetail::Heartbeat(beat) => beat.left_overs.iter().any(|left| left.what.contains("process")),
        _ => false,
    });
    assert!(!bare.has_backup_job() && !guard_stands(bare.id));
    assert!(!processes_of(&fleet.folder.join("run")).is_empty(), "nobody can kill the mover yet");
    share.heal();
    eventually("the mover is gone", JOB, || processes_of(&fleet.folder.join("run")).is_empty());
    // A process that is ending has no command line any more, and still its mounts.
    eventually("nothing is mounted", JOB, || mounts_below(&fleet.folder).is_empty());
    let told = fleet.heard.host_events();
    fleet.heard.of_host("heartbeats don't name the mover any more", JOB, told, |event| match &event.detail {
        HostDetail::Heartbeat(beat) => !beat.left_overs.iter().any(|left| left.what.contains("process")),
        _ => false,
    });
    assert_eq!(everything_in(&fleet.folder.join("run")), Vec::<String>::new(), "its directory goes with it");
    let left = share.entries_of(&bare.id);
    assert!(left.iter().all(|name| name.starts_with(".staging-")), "nothing is published: {left:?}");
}
