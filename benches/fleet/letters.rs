//! Dead letters: how soon ten thousand are listed, with how much memory, and how many are replayed within a second. Beside it the plain
//! client reads, and publishes, as many messages of the same size.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use longshore::broker::Broker;
use longshore::broker::settings::BrokerSettings;
use longshore::broker::topology::jobs_queue;
use longshore::failure::Code;
use longshore::message::{Encoded, Encoding};

use super::MANY;
use super::dead_job::{HOST, dead, host, job};
use super::rabbit::Rabbit;
use super::spread::Spread;
use super::wire::{IN_FLIGHT, Listener, Target, Wire};

/// What the plain client reads.
const QUEUE: &str = "bench-letters";
/// How often the command's memory is looked at; the kernel keeps its highest.
const LOOK: Duration = Duration::from_millis(5);

/// Figures of several rounds.
#[derive(Default)]
pub struct Letters {
    /// Letters listed within a second.
    pub listed: Spread,
    /// Peak memory of that, MiB.
    pub memory: Spread,
    /// Messages that the plain client reads within a second.
    pub read: Spread,
    /// Letters replayed within a second.
    pub replayed: Spread,
    /// Messages that the plain client publishes within a second.
    pub published: Spread,
}

impl Letters {
    pub async fn round(&mut self, rabbit: &Rabbit) {
        let broker = longshore::broker::connect(BrokerSettings::new(rabbit.uri().parse().unwrap(), "bench")).unwrap();
        // Makes the queues of the host and takes no jobs.
        let session = broker.open_host(&host(HOST)).await;
        let letters = die(&broker).await;
        self.plain(rabbit, &letters).await;
        let (seconds, memory) = dead_command(rabbit, &["list"]);
        self.listed.add(MANY as f64 / seconds);
        self.memory.add(memory);
        let (seconds, _) = dead_command(rabbit, &["replay", "--all"]);
        self.replayed.add(MANY as f64 / seconds);
        session.close().await;
        let mut jobs = Listener::open(rabbit, &jobs_queue(&host(HOST)), &[]).await;
        for _ in 0..MANY {
            jobs.next().await;
        }
        jobs.close().await;
    }

    async fn plain(&mut self, rabbit: &Rabbit, letters: &[Encoded]) {
        // Only for its queue.
        drop(Listener::open(rabbit, QUEUE, &[]).await);
        let (wire, target) = (Wire::open(rabbit).await, Target { exchange: "", routing_key: QUEUE.to_owned() });
        let begun = Instant::now();
        wire.publish_all(&target, letters).await;
        self.published.add(MANY as f64 / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let mut listener = Listener::open(rabbit, QUEUE, &[]).await;
        for _ in letters {
            listener.next().await;
        }
        self.read.add(MANY as f64 / begun.elapsed().as_secs_f64());
        listener.close().await;
    }
}

/// Fills the queue of dead letters.
async fn die(broker: &Arc<dyn Broker>) -> Vec<Encoded> {
    let letters: Vec<_> = (0..MANY).map(|_| dead(&job(1), Code::MountFailed, HOST, Encoding::MessagePack)).collect();
    let publisher = broker.publisher();
    for some in letters.chunks(IN_FLIGHT) {
        let confirmed = join_all(some.iter().map(|letter| publisher.publish(letter.clone()))).await;
        assert!(confirmed.iter().all(Result::is_ok), "{confirmed:?}");
    }
    letters.into_iter().map(|letter| Encoded { properties: letter.properties, body: letter.body }).collect()
}

/// Runs `longshore dead`; gives the seconds that it took and the most memory that it had, in MiB.
fn dead_command(rabbit: &Rabbit, words: &[&str]) -> (f64, f64) {
    let begun = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"))
        .arg("dead")
        .args(words)
        .env("LONGSHORE__BROKER__URI", rabbit.uri())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0.0;
    loop {
        if let Some(status) = command.try_wait().unwrap() {
            assert!(status.success(), "{words:?}: {status}");
            return (begun.elapsed().as_secs_f64(), peak);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", command.id())).unwrap_or_default();
        let high_water = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = high_water.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        peak = kib.map_or(peak, |kib| kib / 1024.0);
        std::thread::sleep(LOOK);
    }
}
