//! A job that a host gave up is asked for again from the dead letters, once what was wrong is mended.

use longshore::message::job::JobMessage;

use crate::fleet::{Fleet, JOB};
use crate::lab::LabInstance;

#[test]
fn a_dead_backup_is_replayed_once_its_share_is_there() {
    let (fleet, bare) = (Fleet::start("dead-replayed"), LabInstance::bare());
    let share = fleet.share();
    let away = share.path.with_extension("away");
    std::fs::rename(&share.path, &away).unwrap();
    let asked = fleet.job(&bare, &share);
    let job = fleet.publish(&asked);
    let failed = fleet.failed(job);
    let letter = fleet.heard.letter_of(job, JOB);
    assert_eq!((letter.run, letter.failure.code.as_str()), (Some(1), failed.failure.code.as_str()));

    let job = job.to_string();
    let dead = |words: &[&str]| {
        let output = fleet.command(&[&["dead"], words, &["--job", &job]].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = dead(&["list"]);
    assert!(listed.contains(&failed.failure.code) && listed.contains(&fleet.host), "{listed}");
    std::fs::rename(&away, &share.path).unwrap();
    let replayed = dead(&["replay", "--set", "labels.replayed=yes", "--reason", "the share is mounted again"]);
    assert!(replayed.contains(&format!("as run 2 to host {}", fleet.host)), "{replayed}");
    assert_eq!(dead(&["list"]), "", "its letter is gone");
    let second = |run: &longshore::message::RunEvent| run.run == 2 && run.detail.is_final();
    let end = fleet.heard.of_run(job.parse().unwrap(), "the second run ends", JOB, second);
    assert_eq!(end.labels.get("replayed").map(String::as_str), Some("yes"));
    assert!(matches!(end.detail, longshore::message::event::RunDetail::Completed(_)), "{end:?}");
    assert_eq!(share.entries_of(&bare.id).iter().filter(|name| !name.starts_with('.')).count(), 1);
    // The same run once more is what its host knows already.
    fleet.publish(&JobMessage { run: 2, ..asked });
    fleet.finish(&[&bare], &[&share]);
}
