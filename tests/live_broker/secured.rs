//! A broker secured by `longshore broker setup`, as its operator runs it: what it says, what hosts and roles can then do and what
//! not, and what their readers make of what an older broker lets pass.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use jiff::Timestamp;
use longshore::broker::settings::BrokerSettings;
use longshore::broker::setup::plan::Member;
use longshore::broker::setup::probe::{Answer, Expected, Try, probes};
use longshore::broker::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE, QueueType, control_key, host_queues, jobs_queue,
};
use longshore::broker::{Broker, HostOnBroker, Outgoing, PublishError, SessionState, WantedJobs};
use longshore::message::event::{Draining, HostDetail};
use longshore::message::{Encoding, Event, HostEvent, encode_event};
use longshore::model::id::{EventId, HostId, IncarnationId};
use tokio::time::timeout;

use crate::contract::broker::{job, message, next, open_up};
use crate::letter_operator;
use crate::rabbit::{Rabbit, Release};
use crate::raw::Raw;
use crate::{PATIENCE, blocking, settings};

pub const VHOST: &str = "fleet";
pub const HERE: &str = "kvm-07";
const THERE: &str = "kvm-08";
const PLANNER: &str = "fleet.planner";
const OPS: &str = "fleet.ops";
pub const WALL: &str = "fleet.wall";
pub const LETTERS: &str = "fleet.letters";
pub const NIGHT: &str = "fleet.night_shift";

/// The operator's shell.
pub struct Operator {
    pub rabbit: Arc<Rabbit>,
    passwords: tempfile::TempDir,
}

impl Operator {
    fn command(&self, words: &[&str]) -> Command {
        self.command_in(VHOST, words)
    }

    fn command_in(&self, vhost: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.args(["broker"]).args(words).env("LONGSHORE_MANAGEMENT_PASSWORD", "guest");
        command.args(["--management", &self.rabbit.management(), "--user", "guest", "--vhost", vhost]);
        command
    }

    pub fn setup(&self, more: &[&str]) -> Output {
        self.setup_with(&self.folder(), more)
    }

    fn setup_with(&self, folder: &Path, more: &[&str]) -> Output {
        let roles = ["--publisher", PLANNER, "--controller", OPS, "--event-reader", WALL];
        let of_letters = ["--letter-reader", LETTERS, "--letter-operator", NIGHT];
        let mut command = self.command(&["setup", "--host", HERE, "--host", THERE]);
        let amqp = format!("amqp://{}", self.rabbit.address());
        command.args(roles).args(of_letters).arg("--passwords").arg(folder).args(["--amqp", &amqp]).args(more);
        command.output().unwrap()
    }

    fn folder(&self) -> std::path::PathBuf {
        self.passwords.path().join("passwords")
    }

    pub fn password(&self, user: &str) -> String {
        std::fs::read_to_string(self.folder().join(user)).unwrap().trim().to_owned()
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.rabbit.address()
    }

    pub fn uri(&self, user: &str) -> String {
        format!("amqp://{user}:{}@{}/{VHOST}", self.password(user), self.rabbit.address())
    }

    pub fn broker(&self, user: &str) -> Arc<dyn Broker> {
        let mut settings = BrokerSettings::new(self.uri(user).parse().unwrap(), user);
        settings.patient = false;
        longshore::broker::connect(settings).unwrap()
    }
}

pub fn said(output: &Output, code: i32) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

pub async fn all(rabbit: &Arc<Rabbit>, release: Release) {
    let operator = Arc::new(Operator { rabbit: Arc::clone(rabbit), passwords: tempfile::tempdir().unwrap() });
    let of_operator = Arc::clone(&operator);
    blocking(move || setup_says_what_it_does_and_does_it_once(&of_operator, release)).await;
    a_user_with_too_many_rights_is_found_by_the_probes(rabbit).await;
    a_host_has_its_own_and_nothing_of_another(&operator).await;
    the_roles_do_what_they_are_for(&operator).await;
    letter_operator::all(&operator, release).await;
    a_reader_is_not_deceived(&operator, release).await;
    a_host_is_removed_and_its_jobs_are_not_lost_unasked(&operator).await;
}

fn setup_says_what_it_does_and_does_it_once(operator: &Operator, release: Release) {
    let version = match release {
        Release::Debian12 => "RabbitMQ 3.10.",
        Release::Debian13 => "RabbitMQ 4.",
    };
    for round in 0..2 {
        let told = said(&operator.setup(&["--dry-run"]), 0);
        assert!(told.contains(version) && told.contains("make     password of kvm-07\n"), "{round}: {told}");
        assert!(told.contains(" to make, 0 to change, 0 are so"), "{round}: it did something: {told}");
        assert!(!operator.folder().exists());
    }
    let gap = "is known to let hosts and letter operators copy messages";
    let first = said(&operator.setup(&[]), 0);
    assert!(first.contains("made     user kvm-07\n") && first.contains("made     password of kvm-07\n"), "{first}");
    let last = |told: &str| told.trim_end().lines().last().unwrap().to_owned();
    let sum = last(&first);
    assert!(sum.contains(" made, 0 changed, 0 were so; tried out and passed: "), "{first}");
    assert_eq!(first.contains(gap), release == Release::Debian12, "{first}");
    let second = said(&operator.setup(&[]), 0);
    assert!(last(&second).starts_with("nothing was changed: all "), "{second}");
    for user in [HERE, THERE, PLANNER, OPS, WALL, LETTERS, NIGHT] {
        assert!(second.contains(&format!("tried    {user}: ")), "{second}");
        assert!(!first.contains(&operator.password(user)), "the password of {user} is told");
        is_private(&operator.folder().join(user));
    }
    // What somebody opens is closed again, and a password that somebody changed is the file's again.
    operator.rabbit.ctl(&["set_permissions", "-p", VHOST, HERE, ".*", ".*", ".*"]);
    operator.rabbit.ctl(&["change_password", THERE, "guessed"]);
    operator.rabbit.ctl(&["set_permissions", "-p", "/", LETTERS, "^$", "^$", "^$"]);
    let third = said(&operator.setup(&["--json"]), 0);
    let sum: serde_json::Value = serde_json::from_str(&last(&third)).unwrap();
    assert_eq!((&sum["changed"], &sum["made"], &sum["probes"]["state"]), (&2.into(), &0.into(), &"passed".into()));
    assert!(
        !second.contains("rights in the virtual host")
            && third.contains("fleet.letters has rights in the virtual host `/`")
    );
    passwords_that_nobody_knows_are_not_replaced_unasked(operator);
    // A type can't be changed, and is not.
    let refused = said(&operator.setup(&["--queue-type", "quorum"]), 2);
    assert!(refused.contains("policy `longshore-jobs` is for classic queues, not for quorum ones"), "{refused}");
    said(&operator.setup(&["--publisher", "guest"]), 2);
    a_policy_that_loses_messages_is_found(operator);
    with_certificates_alone(operator);
}

/// A catch-all of somebody's, where none of ours is, and one of the broker's operator.
fn a_policy_that_loses_messages_is_found(operator: &Operator) {
    let ctl = |words: &[&str]| operator.rabbit.ctl(words);
    ctl(&["set_policy", "-p", VHOST, "--apply-to", "queues", "everything", ".*", r#"{"message-ttl":3600000}"#]);
    let dead = r#"{"max-length":100000}"#;
    ctl(&["set_operator_policy", "-p", VHOST, "--apply-to", "queues", "sparing", r"^longshore\.dead$", dead]);
    let told = said(&operator.setup(&[]), 1);
    for harm in [
        "queue `longshore.control.kvm-07` loses messages: the policy `everything` sets `message-ttl` to 3600000",
        "queue `longshore.jobs.kvm-08.urgent` loses messages: the policy `everything` sets `message-ttl` to 3600000",
        "queue `longshore.dead` loses messages: the operator policy `sparing` sets `max-length` to 100000",
    ] {
        assert!(told.contains(harm), "{told}");
    }
    assert!(!told.contains("queue `longshore.jobs.kvm-07` loses"), "ours counts there: {told}");
    ctl(&["clear_policy", "-p", VHOST, "everything"]);
    ctl(&["clear_operator_policy", "-p", VHOST, "sparing"]);
}

/// Another directory than the one that has them.
fn passwords_that_nobody_knows_are_not_replaced_unasked(operator: &Operator) {
    let other = operator.passwords.path().join("other");
    let refused = said(&operator.setup_with(&other, &["--host", "kvm-10"]), 2);
    assert!(refused.contains("user `kvm-07` has a password, and no file with it"), "{refused}");
    assert!(!other.exists() && !operator.rabbit.ctl(&["list_users"]).contains("kvm-10"), "something was done");
    let told = said(&operator.setup_with(&other, &["--new-passwords", "--dry-run"]), 0);
    assert!(told.contains("change   password of kvm-07\n") && told.contains(" 0 to make, 7 to change"), "{told}");
}

fn is_private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
}

/// Another fleet, of quorum queues, whose users have no passwords: what is tried out is tried as twins that are gone afterwards.
fn with_certificates_alone(operator: &Operator) {
    let amqp = format!("amqp://{}", operator.rabbit.address());
    let words = ["setup", "--host", "kvm-09", "--letter-operator", "certified.ops", "--external", "--amqp", &amqp];
    let terms = ["--queue-type", "quorum", "--backlog", "5000"];
    // The second run says nothing of the fleet's terms, and leaves them.
    for (outcome, more) in [(" made, 0 changed, 2 were so", &terms[..]), ("nothing was changed: all ", &[])] {
        let told = said(&operator.command_in("certified", &words).args(more).output().unwrap(), 0);
        assert!(told.contains(outcome) && told.contains("tried    kvm-09: 26 of 26 as they should be"), "{told}");
        assert!(told.contains("tried    certified.ops: 23 of 23 as they should be"), "{told}");
    }
    // Somebody has the name of a twin, and keeps it.
    operator.rabbit.ctl(&["add_user", "kvm-12.probe", "theirs"]);
    let words = ["setup", "--host", "kvm-12", "--external", "--amqp", &amqp];
    let refused = said(&operator.command_in("certified", &words).output().unwrap(), 2);
    assert!(refused.contains("user `kvm-12.probe` has other rights than a setup gives it"), "{refused}");
    assert!(!refused.contains("made "), "something was done: {refused}");
    assert!(operator.rabbit.ctl(&["list_users"]).contains("kvm-12.probe"));
    operator.rabbit.ctl(&["delete_user", "kvm-12.probe"]);
    let users = operator.rabbit.ctl(&["list_users"]);
    assert!(users.contains("kvm-09") && users.contains("certified.ops") && !users.contains("probe"), "{users}");
}

/// The administrator may do all: whatever of the probes is to be refused is found to be allowed.
async fn a_user_with_too_many_rights_is_found_by_the_probes(rabbit: &Rabbit) {
    let member = Member::host(&"guest".parse().unwrap());
    let tried = probes(&member);
    let attempts = tried.iter().map(|probe| probe.attempt.clone()).collect();
    let answers = longshore::broker::try_out(settings(rabbit, "probe"), attempts).await.unwrap();
    let refusals = tried.iter().zip(answers).filter(|(probe, _)| probe.expected != Expected::Allowed);
    for (probe, answer) in refusals {
        // Another user's name is refused to the administrator, too.
        let expected = if matches!(probe.attempt, Try::PublishAs { .. }) { Answer::Refused } else { Answer::Allowed };
        assert_eq!(answer, expected, "{}", probe.what);
    }
}

pub async fn refused(broker: &dyn Broker, outgoing: Outgoing) {
    match broker.publisher().publish(outgoing.clone()).await {
        Err(PublishError::Refused { reason, .. }) => assert!(reason.contains("ACCESS_REFUSED"), "{reason}"),
        other => panic!("{} {}: {other:?}", outgoing.exchange, outgoing.routing_key),
    }
}

/// A worker's session under least rights, and all that is closed to it.
async fn a_host_has_its_own_and_nothing_of_another(operator: &Operator) {
    let (here, there): (HostId, HostId) = (HERE.parse().unwrap(), THERE.parse().unwrap());
    let (worker, planner) = (operator.broker(HERE), operator.broker(PLANNER));
    assert_eq!(worker.inspect(&here).await.unwrap(), HostOnBroker::default());
    let mut session = open_up(worker.as_ref(), &here).await;
    session.want_jobs(WantedJobs::All);
    for host in [&here, &there] {
        planner.publisher().publish(job(host, b"job")).await.unwrap();
    }
    let delivery = next(session.as_mut()).await;
    assert_eq!(delivery.properties.user_id.as_deref(), Some(PLANNER));
    assert!(delivery.settle.ack().await);
    // Its own words, and no others.
    worker.publisher().publish(message(DEAD_EXCHANGE, format!("backup.internal.{HERE}"), b"letter")).await.unwrap();
    refused(worker.as_ref(), message(DEAD_EXCHANGE, format!("backup.internal.{THERE}"), b"letter")).await;
    refused(worker.as_ref(), message(EVENTS_EXCHANGE, format!("backup.completed.{THERE}"), b"event")).await;
    for host in [&here, &there] {
        refused(worker.as_ref(), message(CONTROL_EXCHANGE, control_key(host, "drain"), b"")).await;
        refused(worker.as_ref(), job(host, b"job")).await;
    }
    // Nor another's queues.
    let stranger = worker.open_host(&there).await;
    let mut state = stranger.state();
    let told = state
        .wait_for(|state| matches!(state, SessionState::Connecting { reason } if reason.contains("ACCESS_REFUSED")));
    timeout(PATIENCE, told).await.expect("it reads the queues of another host").unwrap();
    stranger.close().await;
    session.close().await;
    // And a host that nobody has set up is told so.
    let unknown: HostId = "kvm-77".parse().unwrap();
    let missing = host_queues(&unknown, QueueType::Classic).into_iter().map(|queue| queue.name).collect::<Vec<_>>();
    assert_eq!(worker.inspect(&unknown).await.unwrap().missing, missing);
}

async fn the_roles_do_what_they_are_for(operator: &Operator) {
    let (here, there): (HostId, HostId) = (HERE.parse().unwrap(), THERE.parse().unwrap());
    let (planner, ops) = (operator.broker(PLANNER), operator.broker(OPS));
    ops.publisher().publish(message(CONTROL_EXCHANGE, control_key(&there, "drain"), b"")).await.unwrap();
    refused(ops.as_ref(), message(CONTROL_EXCHANGE, control_key(&here, "ping"), b"")).await;
    refused(ops.as_ref(), job(&here, b"job")).await;
    refused(planner.as_ref(), message(CONTROL_EXCHANGE, control_key(&here, "drain"), b"")).await;
    operator.broker(WALL).subscribe(EVENTS_EXCHANGE, &["#".to_owned()]).await.unwrap();
    operator.broker(LETTERS).subscribe(DEAD_EXCHANGE, &["#".to_owned()]).await.unwrap();
    for (user, exchange) in [(WALL, DEAD_EXCHANGE), (LETTERS, EVENTS_EXCHANGE), (PLANNER, EVENTS_EXCHANGE)] {
        let listening = operator.broker(user).subscribe(exchange, &["#".to_owned()]).await;
        assert!(listening.is_err(), "{user} reads {exchange}");
    }
    // The controller's word arrives with its name on it.
    let mut session = open_up(operator.broker(THERE).as_ref(), &there).await;
    let command = next(session.as_mut()).await;
    assert_eq!((command.properties.user_id.as_deref(), command.has_cc), (Some(OPS), false));
    assert!(command.settle.ack().await);
    session.close().await;
}

fn draining(host: &HostId) -> Outgoing {
    let detail = HostDetail::Draining(Draining { running: 1, limit_seconds: 1, ..Draining::default() });
    let event = Event::Host(HostEvent {
        host: host.clone(),
        incarnation: IncarnationId::draw(),
        sequence: 1,
        time: Timestamp::now(),
        detail,
    });
    let encoded = encode_event(&event, EventId::draw(), Encoding::Json, None).unwrap();
    Outgoing {
        exchange: EVENTS_EXCHANGE,
        routing_key: event.routing_key(),
        properties: encoded.properties,
        body: encoded.body,
    }
}

/// A host copies an event to the key of another, which 3.x lets pass, and tells one that speaks of another. The reader prints what
/// is true and goes on.
async fn a_reader_is_not_deceived(operator: &Arc<Operator>, release: Release) {
    let (here, there): (HostId, HostId) = (HERE.parse().unwrap(), THERE.parse().unwrap());
    let mut reader = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .args(["events", "--json", "--count", "1", "--key", &format!("*.*.{THERE}"), "--key", "told.wrongly.#"])
        .env("LONGSHORE__BROKER__URI", operator.uri(WALL))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let worker = operator.broker(THERE);
    let heard_by_somebody = async {
        // Until the reader listens nobody does, and the copied one would be seen by nobody.
        let wrong = || Outgoing { routing_key: format!("told.wrongly.{THERE}"), ..draining(&here) };
        while worker.publisher().publish(wrong()).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, heard_by_somebody).await.expect("the reader does not listen");
    let (to, password) = (operator.rabbit.address(), operator.password(HERE));
    let copied = blocking(move || {
        let (own, others) = (format!("worker.draining.{HERE}"), format!("worker.draining.{THERE}"));
        Raw::connect_as(to, HERE, &password, VHOST).publish_copied(EVENTS_EXCHANGE, &own, &others, HERE)
    })
    .await;
    match release {
        Release::Debian12 => copied.expect("it is known to let that pass"),
        Release::Debian13 => assert!(copied.unwrap_err().contains("ACCESS_REFUSED")),
    }
    worker.publisher().publish(draining(&there)).await.unwrap();
    let ended = async {
        while reader.try_wait().unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("the reader ends with the event that is true");
    let output = reader.wait_with_output().unwrap();
    let said = said(&output, 0);
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&printed["routing_key"], &printed["body"]["host"]),
        (&format!("worker.draining.{THERE}").into(), &THERE.into())
    );
    assert!(said.contains("not believed") && said.contains("`cloudEvents_source` does not"), "{said}");
    assert_eq!(said.contains("further routing keys"), release == Release::Debian12, "{said}");
}

/// Whoever has the name of a host, or is one in another virtual host.
fn nobody_elses_user_is_removed(operator: &Operator) {
    let remove = |vhost: &str, host: &str| operator.command_in(vhost, &["remove-host", host]).output().unwrap();
    assert!(said(&remove(VHOST, "guest"), 2).contains("user `guest` has the tags `administrator`"));
    let wrong = said(&remove("certified", THERE), 2);
    assert!(wrong.contains("user `kvm-08` has rights in the virtual host `fleet`"), "{wrong}");
    assert!(said(&remove("certified", "kvm-77"), 10).contains("has neither user nor queues here"));
    let users = operator.rabbit.ctl(&["list_users"]);
    assert!(users.contains("guest") && users.contains(THERE), "{users}");
}

async fn a_host_is_removed_and_its_jobs_are_not_lost_unasked(operator: &Arc<Operator>) {
    let there: HostId = THERE.parse().unwrap();
    let session = open_up(operator.broker(THERE).as_ref(), &there).await;
    let of_operator = Arc::clone(operator);
    let (kept, gone, none) = blocking(move || {
        nobody_elses_user_is_removed(&of_operator);
        // The job is nowhere but on a connection that stays: the administrator's.
        of_operator.rabbit.ctl(&["set_permissions", "-p", VHOST, "guest", ".*", ".*", ".*"]);
        let mut elsewhere = Raw::connect_as(of_operator.rabbit.address(), "guest", "guest", VHOST);
        elsewhere.take(&jobs_queue(&THERE.parse().unwrap()));
        let remove = |more: &[&str]| of_operator.command(&[&["remove-host", THERE], more].concat()).output().unwrap();
        let kept = said(&remove(&[]), 1);
        drop(elsewhere);
        let quorum = ["remove-host", "kvm-09"];
        let empty = said(&of_operator.command_in("certified", &quorum).output().unwrap(), 0);
        assert_eq!(empty.matches("removed  queue ").count(), 3, "{empty}");
        (kept, said(&remove(&["--discard-messages"]), 0), said(&remove(&[]), 10))
    })
    .await;
    assert!(kept.contains(&format!("queue `{}` still holds messages", jobs_queue(&there))), "{kept}");
    let done =
        format!("removed  user {THERE}\nremoved  binding of {}\n", host_queues(&there, QueueType::Classic)[0].name);
    assert!(kept.starts_with(&done) && !kept.contains("removed  queue"), "what was done is told all the same: {kept}");
    assert!(gone.contains(&format!("removed  queue {}", jobs_queue(&there))), "{gone}");
    assert!(none.contains("has neither user nor queues here"), "{none}");
    let mut state = session.state();
    let lost = state.wait_for(|state| matches!(state, SessionState::Connecting { .. }));
    timeout(PATIENCE, lost).await.expect("its connections stay").unwrap();
    session.close().await;
    match operator.broker(PLANNER).publisher().publish(job(&there, b"job")).await {
        Err(PublishError::Unroutable { .. }) => {}
        other => panic!("{other:?}"),
    }
}
