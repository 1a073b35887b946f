//! A controller cancels a backup while its bytes are on their way.

use std::process::Command;
use std::time::Instant;

use longshore::message::event::{Cancelled, RunDetail};

use crate::fleet::{Fleet, JOB, Settings};
use crate::lab::{LabInstance, guard_stands, variable};
use crate::share::{LONGSHORE, Share};

#[test]
fn a_running_backup_is_taken_back_at_once_and_the_next_one_works() {
    let bare = LabInstance::bare();
    let ops = format!("ops.{}", std::process::id());
    let fleet = Fleet::with("cancel", Settings { controllers: vec![ops.clone()], ..Settings::default() });
    let share = Share::faulty("cancel");
    share.order(r#"{"bw_mb": 2}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);

    let uri = format!("amqp://{ops}:{}@127.0.0.1:{}", fleet.controller(&ops), variable("LONGSHORE_LAB_AMQP_PORT"));
    let began = Instant::now();
    let output = Command::new(LONGSHORE)
        .args(["job", "cancel", &job.to_string(), "--host", &fleet.host, "--reason", "the share is slow"])
        .args(["--requested-by", "the one on call"])
        .env("LONGSHORE__BROKER__URI", uri)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let end = fleet.heard.end_of(job, JOB);
    let took = began.elapsed();
    let (requested_by, reason) = (Some("the one on call".to_owned()), Some("the share is slow".to_owned()));
    assert_eq!(end, RunDetail::Cancelled(Cancelled { requested_by, reason, left_overs: Vec::new() }));
    eprintln!("cancelled within {} ms, the command included", took.as_millis());
    assert!(!bare.has_backup_job() && share.entries_of(&bare.id).is_empty());
    share.heal();
    fleet.completed(fleet.back_up(&bare, &share, "off"));
    assert!(!guard_stands(bare.id));
    fleet.finish(&[&bare], &[&share]);
}
