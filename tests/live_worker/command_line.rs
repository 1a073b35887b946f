//! The command line beside the worker: what a person or a script types, what it prints, and how it exits.

use std::process::{Command, Output, Stdio};

use longshore::message::event::RunDetail;
use longshore::message::job::JobMessage;
use longshore::model::id::JobId;
use serde_json::Value;

use crate::fleet::{Fleet, JOB, START};
use crate::lab::{LabInstance, eventually, variable};
use crate::share::{LONGSHORE, Share};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    let said = format!("{command:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    output
}

fn json_lines(output: &[u8]) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_command_explains_itself() {
    let help = |words: &[&str]| text(&run(Command::new(LONGSHORE).args(words).arg("--help"), 0).stdout);
    let mut waiting = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(words) = waiting.pop() {
        let said = help(&words.iter().map(String::as_str).collect::<Vec<_>>());
        seen += 1;
        assert!(said.contains("Usage: longshore"), "{words:?}: {said}");
        let listed = said.split("Commands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
        for command in listed.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()) {
            if command != "help" {
                waiting.push(words.iter().cloned().chain([command.to_owned()]).collect());
            }
        }
    }
    assert!(seen >= 17, "only {seen} commands");
    run(Command::new(LONGSHORE).arg("--version"), 0);
    run(&mut Command::new(LONGSHORE), 2);
    run(Command::new(LONGSHORE).arg("bakcup"), 2);
}

#[test]
fn checks_and_listings_say_what_is_so() {
    let bare = LabInstance::bare();
    let fleet = Fleet::start("cli");
    let share = fleet.share();
    let path = share.path.to_str().unwrap();
    let config = fleet.config();
    let config = config.to_str().unwrap();
    run(&mut fleet.command_on_host(&["check", "config", config]), 0);
    let wrong = fleet.folder.join("wrong.toml");
    std::fs::write(&wrong, "[worker]\nslotz = 2\n").unwrap();
    let refused = run(&mut fleet.command(&["check", "config", wrong.to_str().unwrap()]), 2);
    let refused = text(&refused.stderr);
    assert!(refused.contains("slotz") && refused.contains("wrong.toml"), "{refused}");

    host_can_do_its_work(&fleet);
    run(&mut fleet.command(&["check", "repository", path, "--id", &share.id]), 0);
    let other = JobId::draw().to_string();
    run(&mut fleet.command(&["check", "repository", path, "--id", &other]), 3);
    run(&mut fleet.command(&["check", "repository", config]), 3);
    assert!(text(&run(&mut fleet.command(&["backup", "list", path]), 0).stdout).is_empty());
    let codes = json_lines(&run(&mut fleet.command(&["codes", "--json"]), 0).stdout);
    assert!(codes.iter().any(|code| code["code"] == "content_mismatch" && code["class"] == "transient"), "{codes:?}");

    let backup = published_and_watched(&fleet, &bare, &share);
    let listed = json_lines(&run(&mut fleet.command(&["backup", "list", path, "--json"]), 0).stdout);
    assert_eq!(listed.iter().map(|one| &one["backup_id"]).collect::<Vec<_>>(), [&Value::from(backup.as_str())]);
    let shown = run(&mut fleet.command(&["backup", "show", path, &backup]), 0);
    assert_eq!(serde_json::from_slice::<Value>(&shown.stdout).unwrap(), listed[0]);
    run(&mut fleet.command(&["backup", "show", path, &other]), 10);
    run(&mut fleet.command(&["backup", "list", "/nonexistent"]), 10);
    fleet.finish(&[&bare], &[&share]);
}

fn host_can_do_its_work(fleet: &Fleet) {
    // Whether agents and scratch are to its taste depends on the machine; whether anything fails does not.
    let output = fleet.command_on_host(&["check", "host", "--json"]).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", text(&output.stderr));
    let findings = json_lines(&output.stdout);
    for subject in
        ["host", "user", "libvirt", "instances", "tool", "shares", "scratch", "mover", "host key", "push", "broker"]
    {
        assert!(findings.iter().any(|finding| finding["subject"] == subject), "{subject}: {findings:?}");
    }
    assert!(findings.iter().all(|finding| finding["level"] != "fail"), "{findings:?}");
    let level =
        |subject| findings.iter().find(|finding| finding["subject"] == subject).map(|finding| &finding["level"]);
    assert_eq!((level("push"), level("host key")), (Some(&"ok".into()), Some(&"ok".into())), "{findings:?}");
    let lost = fleet
        .command_on_host(&["check", "host"])
        .env("LONGSHORE__LIBVIRT__URI", "qemu+unix:///system?socket=/nonexistent")
        .output()
        .unwrap();
    assert_eq!(lost.status.code(), Some(3), "{}", text(&lost.stdout));
    assert!(
        text(&lost.stdout).lines().any(|line| line.starts_with("fail") && line.contains(" -> ")),
        "{}",
        text(&lost.stdout)
    );
}

/// Publishes by command line; three others listen. Answers the backup's id.
fn published_and_watched(fleet: &Fleet, bare: &LabInstance, share: &Share) -> String {
    let job = JobId::draw().to_string();
    let (path, host) = (share.path.to_str().unwrap(), fleet.host.as_str());
    let mut watch = fleet.command(&["job", "watch", &job, "--json", "--timeout-seconds", "300"]);
    let mut events = fleet.command(&["events", "--json", "--key", &format!("backup.completed.{host}"), "--count", "1"]);
    let [watch, events] =
        [&mut watch, &mut events].map(|command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    for command in ["watch", "events"] {
        eventually(&format!("`{command}` listens"), START, || listens(command));
    }
    let mut publish = fleet.command(&[
        "job",
        "publish",
        "backup",
        "--host",
        host,
        "--instance",
        &bare.name,
        "--repository-id",
        &share.id,
        "--address",
        path,
        "--job-id",
        &job,
        "--label",
        "asked-by=test",
        "--watch",
        "--json",
    ]);
    let published = json_lines(&run(&mut publish, 0).stdout);
    let last = published.last().unwrap();
    assert_eq!(
        (&last["job_id"], &last["labels"]["asked-by"]),
        (&Value::from(job.as_str()), &Value::from("test")),
        "{last}"
    );
    let watch = watch.wait_with_output().unwrap();
    assert_eq!(watch.status.code(), Some(0), "{}", text(&watch.stderr));
    assert_eq!(json_lines(&watch.stdout), published, "both saw the same events");
    let events = events.wait_with_output().unwrap();
    assert_eq!(events.status.code(), Some(0), "{}", text(&events.stderr));
    let mut heard = json_lines(&events.stdout)[0].clone();
    heard["body"]["type"] = heard["type"].take();
    assert_eq!(heard["body"], *last);

    a_refused_job_ends_the_watch(fleet, bare, share, &job);
    let nobody = JobId::draw().to_string();
    let silent = run(&mut fleet.command(&["job", "watch", &nobody, "--timeout-seconds", "1"]), 1);
    assert!(text(&silent.stderr).contains("no event of job"), "{}", text(&silent.stderr));

    let absent = run(
        &mut fleet.command(&[
            "job",
            "publish",
            "backup",
            "--host",
            "nobody",
            "--instance",
            "x",
            "--repository-id",
            &share.id,
            "--address",
            path,
        ]),
        10,
    );
    assert!(text(&absent.stderr).contains("`nobody`") && absent.stdout.is_empty(), "{}", text(&absent.stderr));
    let failing = run(
        &mut fleet.command(&[
            "job",
            "publish",
            "backup",
            "--host",
            host,
            "--instance",
            "no-such-instance",
            "--repository-id",
            &share.id,
            "--address",
            path,
            "--watch",
        ]),
        4,
    );
    assert!(text(&failing.stderr).contains("instance_not_here"), "{}", text(&failing.stderr));
    assert_eq!(last["type"], "longshore.event.completed.v1");
    last["detail"]["backup"]["backup_id"].as_str().unwrap().to_owned()
}

/// The run is known with another body: refused by the host, not failed.
fn a_refused_job_ends_the_watch(fleet: &Fleet, bare: &LabInstance, share: &Share, known: &str) {
    let mut again = fleet.command(&["job", "publish", "backup", "--host", &fleet.host, "--instance", &bare.name]);
    again.args(["--repository-id", &share.id, "--address", share.path.to_str().unwrap(), "--job-id", known]);
    again.args(["--label", "asked-by=somebody-else", "--watch", "--timeout-seconds", "300"]);
    let refused = run(&mut again, 4);
    assert!(text(&refused.stderr).contains("run_body_differs"), "{}", text(&refused.stderr));
}

/// Whether a connection named after the command has a queue from which it consumes.
fn listens(command: &str) -> bool {
    let ask = |what: &[&str]| -> Vec<Value> {
        let tool = variable("LONGSHORE_LAB_RABBITMQCTL");
        let output = run(Command::new(tool).args(["-q", "--formatter", "json"]).args(what), 0);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let named =
        |connection: &Value| connection["client_properties"].to_string().contains(&format!("longshore {command} "));
    let connections = ask(&["list_connections", "pid", "client_properties"]);
    let queues = ask(&["list_queues", "owner_pid", "consumers"]);
    connections.iter().filter(|connection| named(connection)).any(|connection| {
        queues.iter().any(|queue| queue["owner_pid"] == connection["pid"] && queue["consumers"].as_u64() > Some(0))
    })
}

/// Of the example nothing is changed but names: of host, instance, repository and place.
#[test]
fn the_example_of_a_backup_job_works_as_it_stands() {
    let bare = LabInstance::bare_with("vda:qcow2:8");
    let fleet = Fleet::start("example");
    let share = fleet.share();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/examples/longshore.job.v1.directory.json");
    let mut job: JobMessage = serde_json::from_slice(&std::fs::read(example).unwrap()).unwrap();
    (job.host, job.job_id) = (fleet.host.clone(), JobId::draw().to_string());
    job.instance.as_mut().unwrap().name = Some(bare.name.clone());
    (job.repository.id, job.repository.address) = (share.part().id, share.part().address);
    let RunDetail::Completed(completed) = fleet.heard.end_of(fleet.publish(&job), JOB) else {
        panic!("it has to end well")
    };
    assert_eq!(completed.backup.unwrap().disks.len(), 1);
    fleet.finish(&[&bare], &[&share]);
}
