//! Commands as a person runs them, with nothing behind them: what they say when something is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output};

fn longshore(words: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LONGSHORE")) {
        command.env_remove(name);
    }
    command.args(words).envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn file_with(folder: &Path, broker: &str, log: &str) -> String {
    let file = folder.join("worker.toml");
    std::fs::write(&file, format!("host = \"kvm-07\"\n[broker]\n{broker}\n[log]\n{log}\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn what_a_worker_could_not_use_is_found_by_the_check_with_file_and_key_and_without_the_password() {
    let folder = tempfile::tempdir().unwrap();
    for (broker, log, key) in [
        ("uri = \"amqp://worker:hunter2@broker:port/v\"", "", "broker.uri"),
        ("uri = \"http://worker:hunter2@broker\"", "", "broker.uri"),
        ("uri = \"amqp://worker:hunter2@broker/v?heartbeat=1\"", "", "broker.uri"),
        ("uri = \"amqp://worker:hunter2@broker\"", "level = \"longshore=loudly\"", "log.level"),
    ] {
        let file = file_with(folder.path(), broker, log);
        let output = longshore(&["check", "config", &file], &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("`{key}` in `{file}` is not allowed: ")), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn the_check_reads_the_file_that_the_environment_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_with(folder.path(), "uri = \"amqp://broker\"", "");
    let output = longshore(&["check", "config"], &[("LONGSHORE_CONFIG", &file)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "ok    config      host `kvm-07`\n");
}

#[test]
fn a_job_that_was_not_confirmed_can_be_published_again_under_its_id() {
    let publish = [
        "job",
        "publish",
        "backup",
        "--host",
        "kvm-07",
        "--instance",
        "web-1",
        "--address",
        "/srv/backup",
        "--repository-id",
        "7d0f1a52-0c0e-4f4e-9b5b-0d7c4f3f8a11",
    ];
    // Nobody listens on port 1.
    let environment =
        [("LONGSHORE__BROKER__URI", "amqp://127.0.0.1:1"), ("LONGSHORE__BROKER__PUBLISH_WAIT_SECONDS", "1")];
    let output = longshore(&publish, &environment);
    let said = text(&output.stderr);
    assert!(!output.status.success());
    assert_eq!(text(&output.stdout), "", "stdout has the id of a job that was published, and nothing else");
    let id = said.lines().next().and_then(|line| line.strip_prefix("job ")).unwrap_or_else(|| panic!("{said}"));
    assert!(said.contains(&format!("publish it again with `--job-id {id}`")), "{said}");
}

#[test]
fn a_publisher_that_watches_can_limit_its_patience() {
    let help = text(&longshore(&["job", "publish", "backup", "--help"], &[]).stdout);
    assert!(help.contains("--timeout-seconds"), "{help}");
}
