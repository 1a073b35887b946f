//! Control messages that a worker must not obey: from whoever is none of its controllers, from nobody, or copied past a user's rights.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use longshore::broker::topology::CONTROL_EXCHANGE;

use crate::fleet::{Fleet, Settings};
use crate::lab::{LabInstance, eventually, variable};
use crate::raw::{Raw, USER_ID, short};
use crate::share::Share;

/// Longest time from a message's confirm to what its reader makes of it.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_control_message_that_is_not_vouched_for_is_named_and_has_no_effect() {
    let bare = LabInstance::bare();
    let [ops, stranger] = ["ops", "stranger"].map(|name| format!("{name}.{}", std::process::id()));
    let fleet = Fleet::with("control", Settings { controllers: vec![ops.clone()], ..Settings::default() });
    let share = Share::faulty("control");
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);

    let address: SocketAddr = format!("127.0.0.1:{}", variable("LONGSHORE_LAB_AMQP_PORT")).parse().unwrap();
    let by = |user: &str| Raw::connect_as(address, user, &fleet.controller(user), "/");
    let drain = format!("{}.drain", fleet.host);
    by(&stranger).publish(CONTROL_EXCHANGE, drain.as_bytes(), USER_ID, &short(stranger.as_bytes()), b"");
    let mut controller = by(&ops);
    controller.publish(CONTROL_EXCHANGE, drain.as_bytes(), 0, &[], b"");
    controller.publish_copied(CONTROL_EXCHANGE, &drain, &format!("{}.cancel", fleet.host), &ops).unwrap();
    // The same user, as it should be: it is not for its sender that this one has no effect.
    let unknown = format!("{}.no-such-command", fleet.host);
    controller.publish(CONTROL_EXCHANGE, unknown.as_bytes(), USER_ID, &short(ops.as_bytes()), b"");

    let log = fleet.folder.join("worker.log");
    let times = |words: &[&str]| {
        let log = std::fs::read_to_string(&log).unwrap();
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    };
    let refused = "a control message that is not obeyed";
    let not_ours = format!("the broker user `{stranger}` is not one of `broker.controllers`");
    for (words, count) in [
        (&[refused, not_ours.as_str()][..], 1),
        (&[refused, "has no user id"], 1),
        (&[refused, "further routing keys (CC)"], 1),
        (&["a control message that this version does not know"], 1),
    ] {
        eventually(&format!("the worker says {words:?}"), SOON, || times(words) == count);
    }
    eventually("all of them are acked", SOON, || messages_in(&format!("longshore.control.{}", fleet.host)) == 0);
    share.heal();
    let summary = fleet.completed(job);
    assert!(share.backups_of(&bare.id).join(summary.backup_id.to_string()).exists());
    // It has not been drained either.
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    fleet.finish(&[&bare], &[&share]);
}

/// Messages in a queue, un-acked ones too.
pub fn messages_in(queue: &str) -> u64 {
    count_of(queue, "messages")
}

/// Who reads a queue.
pub fn readers_of(queue: &str) -> u64 {
    count_of(queue, "consumers")
}

fn count_of(queue: &str, what: &str) -> u64 {
    let output = Command::new(variable("LONGSHORE_LAB_RABBITMQCTL"))
        .args(["--quiet", "list_queues", "--no-table-headers", "name", what])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).unwrap();
    let name = format!("{queue}\t");
    listed.lines().find_map(|line| line.strip_prefix(&name)).expect("a queue").trim().parse().unwrap()
}
