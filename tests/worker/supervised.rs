//! What whoever started the worker hears of it, as systemd does: real datagrams, and silence where the worker's main loop is stuck.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use longshore::broker::letters::{Holder, LetterReader, ReadLettersError};
use longshore::broker::{
    Broker, BrokerError, Delivery, HostOnBroker, HostSession, Publisher, SessionState, Subscription, WantedJobs,
};
use longshore::message::{Control, Drain, Pause};
use longshore::model::id::HostId;
use longshore::shutdown::Stage;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::fleet::{Fleet, PATIENCE};

/// How long silence is borne: a sign of life comes twice as often.
const WATCHDOG: Duration = Duration::from_millis(400);
/// Silence of this length is no accident.
const SILENCE: Duration = Duration::from_millis(1200);

/// A session whose next delivery can be made to hold up the thread that asks for it, as a call would that waits where none may.
#[derive(Clone, Default)]
pub struct Stuck(Arc<AtomicBool>);

impl Stuck {
    pub fn before(&self, broker: Arc<dyn Broker>) -> Arc<dyn Broker> {
        Arc::new(StuckBroker { stuck: self.clone(), broker })
    }

    fn set(&self, stuck: bool) {
        self.0.store(stuck, Ordering::SeqCst);
    }

    fn hold_up(&self) {
        while self.0.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

struct StuckBroker {
    stuck: Stuck,
    broker: Arc<dyn Broker>,
}

struct StuckSession {
    stuck: Stuck,
    session: Box<dyn HostSession>,
}

#[async_trait]
impl Broker for StuckBroker {
    fn publisher(&self) -> Arc<dyn Publisher> {
        self.broker.publisher()
    }

    async fn open_host(&self, host: &HostId) -> Box<dyn HostSession> {
        Box::new(StuckSession { stuck: self.stuck.clone(), session: self.broker.open_host(host).await })
    }

    async fn inspect(&self, host: &HostId) -> Result<HostOnBroker, BrokerError> {
        self.broker.inspect(host).await
    }

    async fn control_readers(&self, hosts: &[HostId]) -> Result<Vec<Option<u32>>, BrokerError> {
        self.broker.control_readers(hosts).await
    }

    async fn subscribe(
        &self,
        exchange: &'static str,
        binding_keys: &[String],
    ) -> Result<Box<dyn Subscription>, BrokerError> {
        self.broker.subscribe(exchange, binding_keys).await
    }

    async fn read_letters(&self) -> Result<Box<dyn LetterReader>, ReadLettersError> {
        self.broker.read_letters().await
    }

    async fn letters_holder(&self) -> Result<Option<Holder>, BrokerError> {
        self.broker.letters_holder().await
    }
}

#[async_trait]
impl HostSession for StuckSession {
    async fn next(&mut self) -> Delivery {
        self.stuck.hold_up();
        self.session.next().await
    }

    fn want_jobs(&self, wanted: WantedJobs) {
        self.session.want_jobs(wanted);
    }

    fn state(&self) -> watch::Receiver<SessionState> {
        self.session.state()
    }

    async fn close(self: Box<Self>) {
        self.session.close().await;
    }
}

/// Listens where systemd would.
struct Ear(UnixDatagram);

impl Ear {
    fn for_the_worker_of(fleet: &mut Fleet) -> Self {
        let path = fleet.journal_dir().with_extension("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        fleet.listens = Some((path, WATCHDOG));
        Self(socket)
    }

    /// What has come since the last look.
    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 512];
        let mut heard = Vec::new();
        while let Ok(length) = self.0.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        heard
    }

    /// All that comes until something that is as wanted does.
    async fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        while !all.iter().any(|state: &String| wanted(state)) {
            assert!(Instant::now() < deadline, "not told: {what}; told: {all:?}");
            sleep(Duration::from_millis(5)).await;
            all.extend(self.heard());
        }
        all
    }
}

#[tokio::test]
async fn it_hears_of_the_beginning_of_how_it_goes_and_of_the_end() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    let ear = Ear::for_the_worker_of(&mut fleet);
    fleet.movers.hang("copy");
    fleet.start().await;
    let begun = ear.until("it takes jobs", |state| state.starts_with("STATUS=takes jobs")).await;
    assert_eq!(begun[0], "READY=1", "first of all: {begun:?}");
    assert!(begun.iter().any(|state| state == "WATCHDOG=1"), "{begun:?}");
    let key = fleet.publish(&fleet.job("web")).await;
    ear.until("a job is at work", |state| state == "STATUS=takes jobs; 1 at work, 0 wait").await;
    fleet.command(&Control::Pause(Pause::default())).await;
    let paused =
        |state: &str| state.starts_with("STATUS=paused since ") && state.ends_with(" by ops; 1 at work, 0 wait");
    ear.until("it is paused", paused).await;
    let stay = Drain { limit_seconds: Some(3600), stay: true, ..Drain::default() };
    fleet.command(&Control::Drain(stay)).await;
    let all = ear.until("it comes to rest", |state| state.starts_with("STATUS=comes to rest")).await;
    assert!(all.iter().all(|state| !state.starts_with("STOPPING")), "it stays: {all:?}");
    fleet.settings.drain_limit = PATIENCE;
    fleet.signal(Stage::Drain);
    let longest = (PATIENCE + Duration::from_secs(330 + 60)).as_micros();
    ear.until("the end", |state| state == format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={longest}")).await;
    // It lives until it has ended.
    ear.until("a sign of life", |state| state == "WATCHDOG=1").await;
    fleet.signal(Stage::Now);
    fleet.ended().await.unwrap();
    fleet.movers.unhang("copy");
    fleet.listens = None;
    fleet.start().await;
    fleet.command(&Control::Resume(Default::default())).await;
    fleet.completed(key).await;
    fleet.finish().await;
}

/// With threads to spare: a timer of its own would go on telling that all is well.
#[tokio::test]
async fn a_main_loop_that_is_stuck_falls_silent_though_all_else_goes_on() {
    let mut fleet = Fleet::without_worker(&["web"]).await;
    let ear = Ear::for_the_worker_of(&mut fleet);
    let stuck = Stuck::default();
    fleet.stuck = Some(stuck.clone());
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    fleet.threads = Some(threads.handle().clone());
    fleet.start().await;
    ear.until("it takes jobs", |state| state.starts_with("STATUS=takes jobs")).await;
    let rounds = Arc::new(AtomicUsize::new(0));
    // Brought in from outside: where a thread of the runtime is held up, the others may sleep, their timers with them, until one is woken.
    let beside = tokio::spawn({
        let (rounds, threads) = (rounds.clone(), threads.handle().clone());
        async move {
            loop {
                sleep(Duration::from_millis(5)).await;
                let rounds = rounds.clone();
                threads.spawn(async move { rounds.fetch_add(1, Ordering::SeqCst) });
            }
        }
    });
    stuck.set(true);
    // The round that it is in may still come to its end.
    sleep(WATCHDOG).await;
    let (_told, before) = (ear.heard(), rounds.load(Ordering::SeqCst));
    sleep(SILENCE).await;
    assert_eq!(ear.heard(), [""; 0], "it is stuck and says that it lives");
    assert!(rounds.load(Ordering::SeqCst) > before, "nothing goes on at all");
    stuck.set(false);
    ear.until("it lives again", |state| state == "WATCHDOG=1").await;
    beside.abort();
    fleet.finish().await;
    threads.shutdown_background();
}
