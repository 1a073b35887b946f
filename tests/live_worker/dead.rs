//! A job that a host gave up is asked for again from the dead letters, once what was wrong is mended.

use std::process::Output;
use std::time::{Duration, Instant};

use longshore::message::job::JobMessage;

use crate::fleet::{Fleet, JOB};
use crate::lab::LabInstance;

/// Pause between two tries to be the one who reads the letters.
const PAUSE: Duration = Duration::from_millis(200);

/// What an operator does, as soon as no other one reads the letters of all hosts.
fn operator(fleet: &Fleet, words: &[&str]) -> Output {
    let until = Instant::now() + JOB;
    loop {
        let output = fleet.command(&[&["dead"], words].concat()).output().unwrap();
        let in_use = String::from_utf8_lossy(&output.stderr).contains("somebody else is reading the dead letters");
        if !in_use || Instant::now() >= until {
            return output;
        }
        std::thread::sleep(PAUSE);
    }
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

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
    let dead = |words: &[&str]| done(&operator(&fleet, &[words, &["--job", &job]].concat()));
    let listed = dead(&["list"]);
    assert!(listed.contains(&failed.failure.code) && listed.contains(&fleet.host), "{listed}");
    assert!(listed.contains("1 letter, 1 host, 1 code"), "{listed}");
    std::fs::rename(&away, &share.path).unwrap();
    let replayed = dead(&["replay", "--set", "labels.replayed=yes", "--reason", "the share is mounted again"]);
    assert!(replayed.contains(&format!("as run 2 to host {}", fleet.host)), "{replayed}");
    // Marks of other hosts may lie there, of which a list for people speaks.
    assert_eq!(dead(&["list", "--json"]), "", "its letter is gone");
    let second = |run: &longshore::message::RunEvent| run.run == 2 && run.detail.is_final();
    let end = fleet.heard.of_run(job.parse().unwrap(), "the second run ends", JOB, second);
    assert_eq!(end.labels.get("replayed").map(String::as_str), Some("yes"));
    assert!(matches!(end.detail, longshore::message::event::RunDetail::Completed(_)), "{end:?}");
    assert_eq!(share.entries_of(&bare.id).iter().filter(|name| !name.starts_with('.')).count(), 1);
    // The same run once more is what its host knows already.
    fleet.publish(&JobMessage { run: 2, ..asked });
    fleet.finish(&[&bare], &[&share]);
}

#[test]
fn the_next_night_marks_the_letter_of_the_last_one_which_says_what_its_attempt_told() {
    let (fleet, bare) = (Fleet::start("dead-superseded"), LabInstance::bare());
    let share = fleet.share();
    let away = share.path.with_extension("away");
    let nightly = |fleet: &Fleet| {
        let mut asked = fleet.job(&bare, &share);
        asked.labels.insert("schedule".to_owned(), "nightly".to_owned());
        asked
    };
    std::fs::rename(&share.path, &away).unwrap();
    let lost = fleet.publish(&nightly(&fleet));
    let failed = fleet.failed(lost);
    let letter = fleet.heard.letter_of(lost, JOB);
    let last = letter.events.last().expect("what its attempt told");
    assert_eq!((last.event.as_str(), last.attempt), ("failed", failed.attempts));
    let dead = |words: &[&str]| done(&operator(&fleet, words));
    let listed = dead(&["list", "--json", "--host", &fleet.host]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let id = listed["letter_id"].as_str().unwrap();
    let shown = dead(&["show", &id[id.len() - 12..]]);
    for told in ["  attempt 1   started", &format!("  attempt {:<3} failed", failed.attempts)] {
        assert!(shown.contains(told), "no `{told}` in\n{shown}");
    }
    std::fs::rename(&away, &share.path).unwrap();
    let done = fleet.publish(&nightly(&fleet));
    fleet.done(done);
    let mark = fleet.heard.mark_on(lost, JOB);
    assert_eq!((mark.run, mark.by_job_id, mark.host.as_str()), (1, done, fleet.host.as_str()));
    let listed = dead(&["list", "--host", &fleet.host]);
    assert!(listed.contains(&format!("[superseded by {done}/1 at ")), "{listed}");
    let spared = operator(&fleet, &["replay", "--host", &fleet.host]);
    assert_eq!(spared.status.code(), Some(3), "{spared:?}");
    dead(&["discard", "--host", &fleet.host, "--superseded", "--reason", "the next night has it"]);
    assert_eq!(dead(&["list", "--json", "--host", &fleet.host]), "");
    fleet.finish(&[&bare], &[&share]);
}
