//! A broker that goes while a job is at a moment that matters, and comes back: the job doesn't notice, and its end is told, once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::consumer::Consumer;
use crate::fleet::{JOB, Settings};
use crate::halt::Place;
use crate::kind::Kind;
use crate::lab::eventually;
use crate::matrix::{Item, Table};
use crate::proxy::Proxy;
use crate::rabbit::Rabbit;
use crate::scene::{ENDS, Props, Scene};
use crate::walk::first_record;

/// After the first record of that kind and step.
const MOMENTS: [(&str, &str, &str); 3] =
    [("lease", "done", "lease"), ("copying", "began", "copy"), ("publish", "committing", "publish")];

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Killed, and started at once.
    Restart,
    /// Killed, and started once the job is at its end.
    Stop,
    /// Nothing passes between it and the worker, until the job is at its end.
    Partition,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Restart => "RabbitMQ killed and restarted",
            Fault::Stop => "RabbitMQ away for a while",
            Fault::Partition => "RabbitMQ cut off",
        }
    }
}

pub fn items() -> Vec<Item> {
    let mut items = Vec::new();
    for fault in [Fault::Restart, Fault::Stop, Fault::Partition] {
        for (number, moment) in MOMENTS.into_iter().enumerate() {
            items.push(Item {
                name: format!("broker: {}: {}", fault.name(), moment.0),
                run: Box::new(move |table: &Table| {
                    let host = format!("broker{}{number}", fault as u8);
                    let names = [Kind::PullFull.name(), fault.name(), moment.0];
                    table.run(names, || (stands(&host, fault, moment), ()));
                }),
            });
        }
    }
    items.push(Item {
        name: "broker: consumer_timeout".to_owned(),
        run: Box::new(|table: &Table| {
            let names = [Kind::PullFull.name(), "consumer_timeout of 3 s", "copying for longer"];
            table.run(names, || (outlives_consumer_timeout(), ()));
        }),
    });
    items
}

fn settings(rabbit: &Rabbit) -> Settings {
    Settings { broker_uri: rabbit.uri(), management_uri: None, heartbeat_seconds: 300, ..Settings::default() }
}

fn stands(host: &str, fault: Fault, (_, record, step): (&str, &str, &str)) -> String {
    let mut rabbit = Rabbit::start();
    let proxy = Proxy::start(rabbit.address());
    let mut settings = settings(&rabbit);
    let uri = format!("amqp://guest:guest@{}/%2f", proxy.address());
    settings.environment.push(("LONGSHORE__BROKER__URI", PathBuf::from(uri)));
    let mut scene = Scene::with(host, Kind::PullFull, Props { settings, is_first: true, ..Props::default() });
    let consumer = Consumer::declare("consumer", &rabbit.uri());
    let message = scene.kind.prepare(&mut scene);
    scene.halt.holds(Place::After, 1, &first_record(record, step));
    let job = scene.fleet.publish(&message);
    scene.halt.halts_within(ENDS);
    match fault {
        Fault::Partition => proxy.swallow_everything(),
        _ => rabbit.kill(),
    }
    if fault == Fault::Restart {
        rabbit.boot();
    }
    scene.halt.let_go();
    let is_ended = || {
        let seen = scene.fleet.journal(async |mut look| look.run(job, None).await.unwrap());
        seen.is_some_and(|seen| seen.ended_at.is_some())
    };
    let took = eventually("the job ends without a broker", JOB, is_ended);
    match fault {
        Fault::Partition => proxy.swallow_open_connections(),
        Fault::Stop => _ = rabbit.boot(),
        Fault::Restart => {}
    }
    // An event that its worker could not see confirmed comes twice, with the same id.
    let mut ends = BTreeSet::new();
    let mut read = || {
        let told = consumer.read(&rabbit.uri());
        ends.extend(told.into_iter().filter(|told| told.job == job.to_string() && told.is_final()));
        !ends.is_empty()
    };
    eventually("the end is told", JOB, &mut read);
    scene.adopt_the_only_backup();
    scene.nothing_is_left();
    scene.back_up_now();
    scene.nothing_is_left();
    read();
    assert!(ends.len() == 1 && ends.iter().all(|end| end.word == "completed"), "{ends:?}");
    scene.finish();
    format!("completed, {} ms after the fault", took.as_millis())
}

/// The broker gives a delivery to somebody else if it was not acknowledged for that long: a job has been by then.
fn outlives_consumer_timeout() -> String {
    let rabbit = Rabbit::start_with("consumer_timeout = 3000\n", &[]);
    // How often it looks, once a minute else: before there are channels, and no line of its configuration says so.
    rabbit.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."]);
    let props = Props { settings: settings(&rabbit), faulty: true, ..Props::default() };
    let mut scene = Scene::with("consumer-timeout", Kind::PullFull, props);
    scene.share.order(r#"{"bw_mb": 0.3}"#);
    let message = scene.kind.prepare(&mut scene);
    let began = std::time::Instant::now();
    let job = scene.fleet.publish(&message);
    scene.fleet.is_copying(job);
    eventually("the job takes longer", JOB, || began.elapsed() > Duration::from_secs(12));
    scene.share.heal();
    let said = scene.all_is_well_after(&message);
    assert_eq!(scene.fleet.heard.times_started(job), 1);
    scene.finish();
    said
}
