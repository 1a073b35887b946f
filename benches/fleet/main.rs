//! What the message path costs, with work that does nothing: how soon after its publishing a job is told to have started,
//! and how many jobs a second one worker takes to their confirmed final event; and what an operator waits for who looks into
//! the dead letters. Beside each stands a bare loop of lapin on the same broker, with messages of the same size, in rounds that take turns.
//!
//! `cargo bench --bench fleet`, with `LONGSHORE_BENCH_ROUNDS` (default 5). Prints rows of a Markdown table:
//! what, ours, beside it, ratio, aim. Everything runs on this machine: broker, worker, publisher and listener.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "../../tests/support/authority.rs"]
mod authority;
mod bare;
#[path = "../../tests/support/dead_job.rs"]
mod dead_job;
mod disk;
mod fleet;
mod jobs;
mod letters;
#[path = "../../tests/support/rabbit.rs"]
mod rabbit;
mod spread;
mod wire;

use std::time::Duration;

use authority::Authority;
use fleet::Way;
use letters::Letters;
use longshore::broker::tls::TlsFiles;
use rabbit::{Rabbit, free_ports};
use spread::Spread;

/// Jobs of one round of the latency, the first second of which warms up.
const PACED: usize = 550;
/// Jobs of that round that are not measured.
const WARM_UP: usize = 50;
/// Pace: 50 jobs a second.
const PACE: Duration = Duration::from_millis(20);
/// Jobs of one round of the throughput.
const MANY: usize = 10_000;
/// Rounds, where the environment doesn't say.
const ROUNDS: usize = 5;

fn main() {
    let rounds = std::env::var("LONGSHORE_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::make(folder.path(), "bench");
    let server = authority.sign("127.0.0.1", "subjectAltName=IP:127.0.0.1");
    let [port] = free_ports();
    let rabbit = Rabbit::start_with(&authority.broker_conf(port, &server), &["rabbitmq_auth_mechanism_ssl"]);
    let plain = Way { name: "plain", uri: rabbit.uri(), tls: TlsFiles::default() };
    let over_tls = Way {
        name: "tls",
        uri: format!("amqps://guest:guest@127.0.0.1:{port}/%2f"),
        tls: TlsFiles { ca: Some(authority.ca()), client: None },
    };
    println!("| fdatasync of 4 KiB, p50 | {:.2} ms | | | |", disk::sync_milliseconds());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(&rabbit, &plain, &over_tls, rounds));
}

async fn measure(rabbit: &Rabbit, plain: &Way, over_tls: &Way, rounds: usize) {
    let (mut ours, mut begun, mut theirs) = (Rounds::default(), Rounds::default(), Rounds::default());
    let (mut secured, mut letters) = (Spread::default(), Letters::default());
    for round in 0..rounds {
        theirs.paced(&bare::paced(rabbit).await);
        let paced = fleet::paced(rabbit, plain, round).await;
        ours.paced(&paced.told);
        begun.paced(&paced.begun);
        theirs.rates.add(bare::rate(rabbit).await);
        ours.rates.add(fleet::rate(rabbit, plain, round).await);
        secured.add(fleet::rate(rabbit, over_tls, round).await);
        letters.round(rabbit).await;
    }
    row("published → work begun, p50, at 50 jobs/s", &begun.p50, &theirs.p50, "ms", "≤ 2 ms");
    row("published → work begun, p99, at 50 jobs/s", &begun.p99, &theirs.p99, "ms", "≤ 10 ms");
    row("published → `started` told, p50, at 50 jobs/s", &ours.p50, &theirs.p50, "ms", "≤ 2 ms");
    row("published → `started` told, p99, at 50 jobs/s", &ours.p99, &theirs.p99, "ms", "≤ 10 ms");
    row("jobs taken from a full queue to their final event", &ours.rates, &theirs.rates, "/s", "≥ 3000 /s");
    let ratio = secured.median() / ours.rates.median();
    println!(
        "| the same over TLS | {} | in plain {} | {ratio:.2} | ≥ 0.90 |",
        secured.show("/s"),
        ours.rates.show("/s")
    );
    row("dead letters listed, of 10,000", &letters.listed, &letters.read, "/s", "≥ 3334 /s");
    println!("| most memory for that | {} | | | ≤ 50 MiB |", letters.memory.show("MiB"));
    row("dead letters replayed, of 10,000", &letters.replayed, &letters.published, "/s", "≥ 500 /s");
}

#[derive(Default)]
struct Rounds {
    p50: Spread,
    p99: Spread,
    rates: Spread,
}

impl Rounds {
    fn paced(&mut self, latencies: &[Duration]) {
        let all: Spread = latencies.iter().skip(WARM_UP).map(|latency| latency.as_secs_f64() * 1e3).collect();
        self.p50.add(all.percentile(50));
        self.p99.add(all.percentile(99));
    }
}

fn row(what: &str, ours: &Spread, theirs: &Spread, unit: &str, aim: &str) {
    let ratio = ours.median() / theirs.median();
    println!("| {what} | {} | bare loop {} | {ratio:.2} | {aim} |", ours.show(unit), theirs.show(unit));
}
