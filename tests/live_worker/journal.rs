//! Whoever is on call, at a host whose worker has died: what was it doing, and can that be taken back before it is up again?

use std::process::Output;
use std::time::Duration;

use longshore::message::event::RunDetail;
use serde_json::Value;

use crate::cancel::Commanded;
use crate::fleet::JOB;
use crate::lab::{LabInstance, eventually};
use crate::share::Share;
use crate::slate::processes_of;

/// Within this what the dead worker had started is gone.
const GONE: Duration = Duration::from_secs(20);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_a_dead_worker_was_doing_is_shown_and_taken_back_without_another_one() {
    let bare = LabInstance::bare();
    let mut commanded = Commanded::new("journal");
    let share = Share::faulty("journal");
    share.order(r#"{"bw_mb": 2}"#);
    let job = commanded.fleet.back_up(&bare, &share, "off");
    commanded.fleet.is_copying(job);
    let id = job.to_string();
    let journal = |commanded: &Commanded, words: &[&str]| -> Output {
        commanded.fleet.command_on_host(&[&["journal"], words].concat()).output().unwrap()
    };
    // Beside the worker that is at work on it.
    let listed = text(&journal(&commanded, &["list"]).stdout);
    assert!(listed.contains(&format!("{id}  run 1  backup")) && listed.contains("  running  attempt 1"), "{listed}");
    let shown: Value = serde_json::from_slice(&journal(&commanded, &["show", &id]).stdout).unwrap();
    assert_eq!(shown["job"]["repository"]["address"].as_str(), share.path.to_str());
    assert!(shown["attempts"][0]["records"].as_array().is_some_and(|records| !records.is_empty()), "{shown}");
    let refused = journal(&commanded, &["unwind"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("in use by another process"), "{refused:?}");

    commanded.fleet.kill_worker();
    share.heal();
    eventually("the mover is gone", GONE, || processes_of(&commanded.fleet.folder).is_empty());
    let unwound = journal(&commanded, &["unwind", &id]);
    assert!(unwound.status.success(), "{unwound:?}");
    assert!(text(&unwound.stdout).contains("another attempt follows"), "{unwound:?}");
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).iter().all(|name| name.starts_with('.')));
    assert!(text(&journal(&commanded, &["list"]).stdout).contains("  waiting"));
    assert_eq!(journal(&commanded, &["unwind"]).status.code(), Some(10), "there is nothing more");

    commanded.fleet.start_worker();
    let retrying = commanded.fleet.heard.of_run(job, "the run goes on", JOB, |event| event.detail.word() == "retrying");
    assert!(matches!(retrying.detail, RunDetail::Retrying(retrying) if retrying.failure.code == "interrupted"));
    commanded.cancel(job);
    commanded.is_cancelled(job);
    let listed = text(&journal(&commanded, &["list", "--all", "--json"]).stdout);
    assert!(listed.contains("\"outcome\":\"cancelled\""), "{listed}");
    commanded.fleet.finish(&[&bare], &[&share]);
}
