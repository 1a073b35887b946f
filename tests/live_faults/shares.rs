//! A share that goes wrong at a moment of a job, stays so for a while, and comes back: full, read-only, gone, failing, lying about what
//! was written, and hanging.

use std::time::Duration;

use crate::fleet::Settings;
use crate::halt::Place;
use crate::kind::Kind;
use crate::lab::eventually;
use crate::matrix::{Item, Table};
use crate::scene::{ENDS, Props, Scene};
use crate::walk::{first_record, id_of};

/// What goes wrong, in the words of `tests/lab/nasfs.py`.
const FAULTS: [(&str, &str); 6] = [
    ("share full", r#"{"mode": "enospc"}"#),
    ("share read-only", r#"{"mode": "erofs"}"#),
    ("share gone (ESTALE)", r#"{"mode": "estale"}"#),
    ("share failing (EIO)", r#"{"mode": "eio"}"#),
    ("late write errors", r#"{"mode": "late"}"#),
    (HANGING, r#"{"mode": "hang"}"#),
];
const HANGING: &str = "share hanging";
/// So long nothing may come of it before it is taken for what the worker gives up.
const STALL_SECONDS: u64 = 5;
/// How long the share stays so if the attempt has not ended before.
const OUTAGE: Duration = Duration::from_secs(25);

/// When: from the start, or from the first record of that kind and step on.
type Moment = (&'static str, Option<(&'static str, &'static str)>);

const MOUNT: Moment = ("mount", None);

fn moments(kind: Kind) -> &'static [Moment] {
    match kind {
        Kind::PullFull | Kind::Stopped => &[
            MOUNT,
            ("writing", Some(("began", "copy"))),
            ("verify", Some(("began", "compare"))),
            ("publish", Some(("committing", "publish"))),
        ],
        Kind::Push => &[
            MOUNT,
            ("writing", Some(("began", "push"))),
            ("verify", Some(("began", "inspect"))),
            ("publish", Some(("committing", "publish"))),
        ],
        Kind::Restore => &[MOUNT, ("reading", Some(("began", "restore"))), ("verify", Some(("began", "compare")))],
        Kind::DeleteMiddle => &[MOUNT, ("merge", Some(("began", "merge"))), ("commit", Some(("committing", "delete")))],
        Kind::Validate => &[MOUNT, ("reading", Some(("began", "validate")))],
        _ => &[],
    }
}

pub fn items() -> Vec<Item> {
    let mut items = Vec::new();
    for kind in Kind::ALL {
        for (number, moment) in moments(kind).iter().enumerate() {
            for (which, (fault, orders)) in FAULTS.into_iter().enumerate() {
                // To free QEMU from a share that hangs, its connection is cut, and this one does not come back: `push.rs` has it.
                if kind == Kind::Push && fault == HANGING {
                    continue;
                }
                let host = format!("share{}{number}{which}", kind as u8);
                let names = [kind.name(), fault, moment.0];
                items.push(Item {
                    name: format!("share: {fault}: {}: {}", kind.name(), moment.0),
                    run: Box::new(move |table: &Table| {
                        table.run(names, || (stands(&host, kind, moment, orders), ()));
                    }),
                });
            }
        }
    }
    items
}

fn stands(host: &str, kind: Kind, moment: &Moment, orders: &str) -> String {
    // What is left is looked at again with each heartbeat, which are often.
    let settings = Settings { stall_seconds: STALL_SECONDS, ..Settings::default() };
    // Without a backup before it, so that the first record of that step is the job's.
    let is_first = kind.backs_up();
    let mut scene = Scene::with(host, kind, Props { settings, faulty: true, is_first, ..Props::default() });
    let message = scene.kind.prepare(&mut scene);
    let job = id_of(&message);
    match moment.1 {
        None => {
            scene.share.order(orders);
            scene.fleet.publish(&message);
        }
        Some((record, step)) => {
            scene.halt.holds(Place::After, 1, &first_record(record, step));
            scene.fleet.publish(&message);
            scene.halt.halts_within(ENDS);
            scene.share.order(orders);
            scene.halt.let_go();
        }
    }
    let began = std::time::Instant::now();
    eventually("the attempt ends, or the outage is over", OUTAGE * 2, || {
        let events = scene.fleet.heard.events_of(job);
        began.elapsed() > OUTAGE
            || events.iter().any(|event| event.detail.is_final() || event.detail.word() == "retrying")
    });
    scene.share.heal();
    let said = scene.all_is_well_whatever_became_of(&message);
    scene.finish();
    said
}
