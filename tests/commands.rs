//! Commands as a person runs them, with nothing behind them: what they say when something is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
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
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
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
        ("uri = \"amqp://worker:hunter2@broker\"", "level = \"loud\"", "log.level"),
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
    let file = file_with(folder.path(), "uri = \"amqp://broker\"", "level = \"longshore=debug,lapin=warn\"");
    let output = longshore(&["check", "config"], &[("LONGSHORE_CONFIG", &file)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "ok    config      host `kvm-07`\n");
}

#[test]
fn what_a_broker_command_cannot_do_without_is_in_its_usage_and_in_its_refusal() {
    let help = |command: &str| text(&longshore(&["broker", command, "--help"], &[]).stdout);
    assert!(help("setup").contains("Usage: longshore broker setup --management <URL> --user <NAME> [OPTIONS]"));
    assert!(help("remove-host").contains(" --management <URL> --user <NAME> <HOST>"), "{}", help("remove-host"));
    for command in [&["setup", "--host", "kvm-07"][..], &["remove-host", "kvm-07"]] {
        let output = longshore(&[&["broker"], command].concat(), &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--management <URL>") && said.contains("--user <NAME>"), "{said}");
    }
    let output = longshore(&["broker", "setup", "--host", "kvm-07", "--dry-run", "--server-version", "4.0.5"], &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("\ndo       user kvm-07\n"), "{}", text(&output.stdout));
}

/// A configuration of a host that has no broker yet.
#[cfg(feature = "libvirt")]
fn without_broker(folder: &Path) -> String {
    let file = folder.join("worker.toml");
    let state = folder.join("journal");
    let lines = [
        "host = \"kvm-07\"".to_owned(),
        format!("worker.state_dir = \"{}\"", state.display()),
        format!("worker.run_dir = \"{}\"", folder.join("run").display()),
        format!("scratch.dir = \"{}\"", folder.join("scratch").display()),
        "libvirt.uri = \"qemu:///system?socket=/nonexistent\"".to_owned(),
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    file.to_str().unwrap().to_owned()
}

#[cfg(feature = "libvirt")]
#[test]
fn who_does_not_speak_to_the_broker_needs_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = without_broker(folder.path());
    let backup = "01890000-0000-7000-8000-000000000001";
    let nowhere = folder.path().join("nas").display().to_string();
    for (words, said) in [
        (vec!["journal", "list"], "no worker has ever kept a journal"),
        (vec!["journal", "unwind"], "no worker has ever kept a journal"),
        (vec!["journal", "forget", "any", "--reason", "it is gone"], "no worker has ever kept a journal"),
        (vec!["host", "key"], "there is no key"),
        (vec!["backup", "plan-restore", &nowhere, backup], "repository_not_found"),
    ] {
        let output = longshore(&[&words[..], &["--config", &file]].concat(), &[]);
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(10) && told.contains(said), "{words:?}: {told}");
    }
    for words in [&["worker"][..], &["events"]] {
        let output = longshore(&[words, &["--config", &file]].concat(), &[]);
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains("`broker.uri_file` is missing"), "{words:?}: {told}");
    }
    assert_eq!(longshore(&["check", "config", &file], &[]).status.code(), Some(2), "a worker needs it");
    let names =
        |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names(folder.path()), ["worker.toml"], "nothing was made");
}

/// Without a worker, and beside one.
#[cfg(feature = "libvirt")]
#[tokio::test]
async fn a_left_over_is_forgotten_by_its_name_and_for_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = without_broker(folder.path());
    let name = "01890000-0000-7000-8000-000000000001 run 1, attempt 1, restore";
    let held = longshore::journal::Journal::open(&folder.path().join("journal")).await.unwrap();
    let value = serde_json::json!({ "report": { "what": "an image", "reason": "it was open" } });
    held.keep_left_overs(vec![(name.to_owned(), value)]).await.unwrap();
    let journal = |words: &[&str]| longshore(&[&["journal"], words, &["--config", &file]].concat(), &[]);
    let listed = || text(&journal(&["list"]).stdout);
    assert!(listed().contains(&format!("left over of {name}: an image: it was open\n")), "{}", listed());
    for (words, status) in [
        (&["forget", "another", "--reason", "it is gone"][..], 10),
        (&["forget", name], 2),
        (&["forget", name, "--reason", " "], 2),
    ] {
        assert_eq!(journal(words).status.code(), Some(status), "{words:?}");
    }
    assert!(!listed().contains("to be forgotten"), "{}", listed());
    let forgotten = journal(&["forget", name, "--reason", "the pool is gone"]);
    assert!(forgotten.status.success() && text(&forgotten.stdout).contains("nothing was removed"), "{forgotten:?}");
    assert!(listed().contains("it was open [to be forgotten: the pool is gone]\n"), "{}", listed());
    held.close().await;
}

/// Before a worker has ever been started here.
#[cfg(feature = "libvirt")]
#[test]
fn a_host_on_which_nothing_was_made_yet_is_checked_and_left_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = longshore(&["check", "host", "--config", &without_broker(folder.path())], &[]);
    let (told, run_dir) = (text(&output.stdout), folder.path().join("run"));
    let line = |beginning: &str| {
        let found = told.lines().find(|line| line.starts_with(beginning));
        found.unwrap_or_else(|| panic!("no `{beginning}` in {told}")).to_owned()
    };
    let made = line("note  run dir");
    assert!(
        made.contains(&format!("no `{}` yet", run_dir.display())) && made.contains("the worker makes it"),
        "{made}"
    );
    assert!(
        !line(if told.contains("ok    push") { "ok    push" } else { "warn  push" }).contains("cannot try"),
        "{told}"
    );
    line("ok    mover");
    assert!(line("fail  broker").contains("`broker.uri_file` is missing"), "{told}");
    assert_eq!(output.status.code(), Some(3), "it has no libvirt");
    assert!(!run_dir.exists(), "it would be closed to others");
}

#[test]
fn a_wrong_value_is_told_of_the_option_that_it_was_given_to() {
    let job = ["job", "publish", "restore", "--host", "kvm-07", "--instance", "web-1", "--address", "/srv/backup"];
    let backup =
        ["--repository-id", "7d0f1a52-0c0e-4f4e-9b5b-0d7c4f3f8a11", "--backup", "01890000-0000-7000-8000-000000000001"];
    for (options, named) in [
        (vec!["--disk", "no disk"], "`--disk` "),
        (vec!["--onto", "vda=no disk"], "`--onto` (a disk of the instance) "),
        (vec!["--new-instance", "a/b"], "`--new-instance` "),
        (vec!["--new-instance", "web-2", "--new-id", "x"], "`--new-id` "),
        (vec!["--new-instance", "web-2", "--volume-path", "vda=here"], "`--volume-path` (`vda`) "),
        (vec!["--volume", "here"], "`--volume` "),
        (vec!["--start-before", "soon"], "`--start-before` "),
        (vec!["--label", "nas_password=hunter2"], "`--label` (`nas_password`) "),
    ] {
        let words = [&job[..], &backup, &options].concat();
        let output = longshore(&words, &[("LONGSHORE__BROKER__URI", "amqp://127.0.0.1:1")]);
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(2) && told.starts_with(&format!("longshore: {named}")), "{told}");
    }
}

/// Publishes to a port on which nobody listens.
fn publish_to_nobody(more: &[&str]) -> Output {
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
    let environment =
        [("LONGSHORE__BROKER__URI", "amqp://127.0.0.1:1"), ("LONGSHORE__BROKER__PUBLISH_WAIT_SECONDS", "1")];
    longshore(&[&publish, more].concat(), &environment)
}

#[test]
fn a_job_that_was_not_sent_is_not_said_to_be_kept_perhaps() {
    let output = publish_to_nobody(&[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "", "stdout has the id of a job that was published, and nothing else");
    assert!(said.starts_with("job ") && said.contains("was not sent") && !said.contains("--job-id"), "{said}");
}

#[test]
fn a_secret_gets_no_further_than_the_command_and_a_publishers_own_words_do() {
    for secret in [
        ["--label", "nas_password=hunter2"],
        ["--label", "from=//bob:hunter2@nas/s"],
        ["--requested-by", "password: hunter2"],
        ["--options", "passfile=/etc/hunter2"],
        ["--address", "bob:hunter2@nas:/x"],
    ] {
        let output = publish_to_nobody(&secret);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{secret:?}: {said}");
        assert!(!said.contains("hunter2") && !said.starts_with("job "), "{said}");
    }
    let words =
        ["--label", "passage=3", "--label", "contact=mailto:ops@example.org", "--requested-by", "oidc:bob@example.org"];
    let said = text(&publish_to_nobody(&words).stderr);
    assert!(said.starts_with("job "), "{said}");
}

#[test]
fn a_command_that_crashes_leaves_no_core_with_the_password() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let uri = format!("amqp://worker:hunter2@{}", listener.local_addr().unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    let mut command = command.arg("events").env("LONGSHORE__BROKER__URI", uri).spawn().unwrap();
    // Once it is here, it has read the password.
    let connection = listener.accept().unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", command.id())).unwrap();
    command.kill().unwrap();
    command.wait().unwrap();
    drop(connection);
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(cores.split_whitespace().skip(4).take(2).all(|limit| matches!(limit, "0" | "1")), "{cores}");
}

/// What reaches the broker's port first, with the broker's address in `uri`, where `{}` stands for the port.
fn first_bytes_sent(uri: &str) -> Vec<u8> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let uri = uri.replace("{}", &listener.local_addr().unwrap().port().to_string());
    let command =
        std::thread::spawn(move || longshore(&["events", "--count", "1"], &[("LONGSHORE__BROKER__URI", &uri)]));
    let (mut connection, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 8];
    connection.read_exact(&mut bytes).unwrap();
    drop((connection, listener));
    assert_eq!(command.join().unwrap().status.code(), Some(1));
    bytes
}

#[test]
fn to_an_amqps_address_nothing_goes_in_clear() {
    assert_eq!(first_bytes_sent("amqp://worker:hunter2@127.0.0.1:{}"), b"AMQP\x00\x00\x09\x01");
    let hello = first_bytes_sent("amqps://worker:hunter2@127.0.0.1:{}");
    // A handshake record of TLS.
    assert_eq!(hello[..2], [0x16, 0x03], "{hello:?}");
}

#[test]
fn certificates_that_cannot_serve_are_refused_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("client.key");
    std::fs::write(&key, "hunter2").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let client = format!("client_certificate_file = \"/dev/null\"\nclient_key_file = \"{}\"", key.display());
    for (broker, key, rule) in [
        ("uri = \"amqp://w@b\"\nca_file = \"/dev/null\"".to_owned(), "ca_file", "begins with `amqps`"),
        ("uri = \"amqps://w@b\"\nca_file = \"/dev/null\"".to_owned(), "ca_file", "`/dev/null` holds no certificate"),
        ("uri = \"amqps://w@b\"\nca_file = \"/no/ca\"".to_owned(), "ca_file", "`/no/ca` cannot be read"),
        (format!("uri = \"amqps://w:pw@b\"\n{client}"), "uri", "holds no password"),
        (format!("uri = \"amqps://b\"\n{client}"), "uri", "names the certificate's user"),
        (format!("uri = \"amqps://w@b\"\n{client}"), "client_certificate_file", "holds no certificate"),
    ] {
        let file = file_with(folder.path(), &broker, "");
        let output = longshore(&["check", "config", &file], &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(&format!("`broker.{key}` in `{file}` is not allowed: ")) && said.contains(rule),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
}
