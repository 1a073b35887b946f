//! What goes wrong, as the dice choose, and how it is made good again.

use longshore::failure::{Code, Failure};
use longshore::host::hypervisor::fake::PushFate;
use longshore::message::{Announce, Control, Drain, Pause, Resume};
use longshore::model::instance::PowerState;
use longshore::shutdown::Stage;

use super::Soak;
use super::wishes::RUNNING;

/// Events, or beginnings and ends of attempts, that pass at most before something happens: another moment of the work each time.
const MOMENTS: usize = 12;

/// What movers are asked for, and how it fails.
const OF_MOVERS: [(&str, Code); 26] = [
    ("start", Code::MoverDied),
    ("open", Code::MountTimedOut),
    ("open", Code::RepositoryFull),
    ("open_to_look", Code::MountFailed),
    ("lease", Code::LeaseHeld),
    ("stage", Code::RepositoryIo),
    ("record", Code::RepositoryIo),
    ("copy", Code::SourceReadFailed),
    ("copy", Code::MoverDied),
    ("expose", Code::HostIo),
    ("inspect", Code::ImageDamaged),
    ("compare", Code::ContentMismatch),
    ("sources_unchanged", Code::SourceChanged),
    ("seal", Code::RepositoryIo),
    ("find", Code::RepositoryIo),
    ("latest", Code::RepositoryIo),
    ("publish", Code::RepositoryIo),
    ("restore", Code::VolumeFull),
    ("make_new", Code::VolumeIo),
    ("validate", Code::RepositoryIo),
    ("sweep", Code::RepositoryIo),
    ("chains", Code::RepositoryIo),
    ("merge", Code::RepositoryIo),
    ("delete", Code::RepositoryIo),
    ("release", Code::RepositoryIo),
    ("close", Code::RepositoryIo),
];
/// Of those, whose answer may be lost.
const LOST_ANSWERS: [&str; 6] = ["stage", "copy", "seal", "publish", "make_new", "release"];
/// Those that may hang.
const HANGING: [&str; 9] = ["open", "latest", "copy", "compare", "seal", "publish", "release", "restore", "merge"];
/// Calls of the hypervisor, and how they fail.
const OF_CALLS: [(&str, Code); 13] = [
    ("find", Code::HypervisorUnavailable),
    ("survey", Code::HypervisorTimedOut),
    ("guest_info", Code::AgentSilent),
    ("freeze", Code::HypervisorTimedOut),
    ("begin_pull", Code::HypervisorFailed),
    ("begin_push", Code::HypervisorFailed),
    ("domain_job", Code::HypervisorTimedOut),
    ("domain_job_stats", Code::HypervisorTimedOut),
    ("abort_job", Code::HypervisorFailed),
    ("checkpoints", Code::HypervisorFailed),
    ("delete_checkpoint", Code::HypervisorFailed),
    ("define", Code::HypervisorFailed),
    ("start", Code::HypervisorFailed),
];
/// Those that may hang.
const HANGING_CALLS: [&str; 6] = ["survey", "freeze", "thaw", "begin_pull", "domain_job", "abort_job"];

/// What stays wrong until it is made good.
pub enum Standing {
    Request(&'static str),
    Call(&'static str),
    NoGuards,
    Paused,
    Stopped(&'static str),
}

impl Soak {
    /// Something goes wrong, or somebody wants something else.
    pub async fn disturb(&mut self) {
        let choice = self.dice.below(22);
        match choice {
            0..4 => self.a_request_fails(),
            4..7 => self.a_call_fails(),
            7..10 => self.something_stands(),
            10 => self.a_push_goes_wrong(),
            11 => self.a_mover_is_killed(),
            12 | 13 => self.the_worker_dies().await,
            14 => self.the_worker_is_stopped().await,
            15 => self.the_host_is_drained().await,
            16 | 17 => self.the_broker_is_away().await,
            18 => self.confirms_are_lost().await,
            19 => self.a_share_fails_job_after_job(),
            20 => self.an_attempt_panics(),
            _ => self.the_host_announces().await,
        }
    }

    /// The worker can be hindered by nothing that stands.
    pub async fn make_good(&mut self) {
        while let Some(standing) = self.standing.pop() {
            self.lift(standing).await;
        }
    }

    /// One of those that stand, if there is one, is made good.
    pub async fn make_one_good(&mut self) {
        if !self.standing.is_empty() {
            let place = self.dice.below(self.standing.len());
            let standing = self.standing.swap_remove(place);
            self.lift(standing).await;
        }
    }

    async fn lift(&mut self, standing: Standing) {
        match standing {
            Standing::Request(word) => self.fleet.movers.unhang(word),
            Standing::Call(call) => self.fleet.hypervisor.let_go(call),
            Standing::NoGuards => self.fleet.guards.refuse(false),
            Standing::Paused => self.fleet.command(&Control::Resume(Resume::default())).await,
            Standing::Stopped(name) => self.fleet.hypervisor.set_state(self.fleet.id_of(name), PowerState::Running),
        }
    }

    fn failure(code: Code) -> Failure {
        Failure::new(code, "the dice say so")
    }

    fn times(&mut self) -> u32 {
        u32::try_from(1 + self.dice.below(3)).unwrap()
    }

    fn a_request_fails(&mut self) {
        let ((word, code), times) = (self.dice.of(&OF_MOVERS), self.times());
        if self.dice.one_in(4) {
            let word = self.dice.of(&LOST_ANSWERS);
            self.note("the answer to a request is lost");
            return self.fleet.movers.fail_after(word, 1, Self::failure(Code::MoverDied));
        }
        self.note("a request fails");
        self.fleet.movers.fail(word, times, Self::failure(code));
    }

    fn a_call_fails(&mut self) {
        let ((call, code), times) = (self.dice.of(&OF_CALLS), self.times());
        self.note("a call fails");
        self.fleet.hypervisor.fail(call, times as usize, Self::failure(code));
    }

    /// For a while, beside whatever else.
    fn something_stands(&mut self) {
        let standing = match self.dice.below(5) {
            0 | 1 => Standing::Request(self.dice.of(&HANGING)),
            2 => Standing::Call(self.dice.of(&HANGING_CALLS)),
            3 => Standing::NoGuards,
            _ => Standing::Stopped(self.dice.of(&RUNNING)),
        };
        match &standing {
            Standing::Request(word) => self.fleet.movers.hang(word),
            Standing::Call(call) => self.fleet.hypervisor.hang(call),
            Standing::NoGuards => self.fleet.guards.refuse(true),
            Standing::Stopped(name) => self.fleet.hypervisor.set_state(self.fleet.id_of(name), PowerState::ShutOff),
            Standing::Paused => {}
        }
        self.note(match standing {
            Standing::Request(_) => "a request hangs",
            Standing::Call(_) => "a call hangs",
            Standing::NoGuards => "no guard can be armed",
            _ => "an instance stops",
        });
        self.standing.push(standing);
    }

    fn a_push_goes_wrong(&mut self) {
        let fate =
            self.dice.of(&[PushFate::Fails("Input/output error"), PushFate::PausesGuest, PushFate::CompletesUnseen]);
        let name = self.dice.of(&RUNNING);
        self.note("a push goes wrong");
        self.fleet.hypervisor.next_push(self.fleet.id_of(name), fate);
    }

    fn a_mover_is_killed(&mut self) {
        let running = self.fleet.movers.running();
        if !running.is_empty() {
            self.note("a mover is killed");
            self.fleet.movers.kill(&self.dice.of(&running));
        }
    }

    async fn the_worker_dies(&mut self) {
        self.note("the worker dies");
        let events = self.dice.below(MOMENTS);
        self.some_events(events).await;
        self.fleet.crash().await;
        if self.dice.one_in(3) {
            self.make_one_good().await;
        }
        self.fleet.start().await;
    }

    async fn the_worker_is_stopped(&mut self) {
        self.note("the worker is stopped");
        self.make_good().await;
        self.fleet.signal(Stage::Drain);
        if self.dice.one_in(2) {
            self.fleet.signal(Stage::Now);
        }
        assert_eq!(self.fleet.ended().await.unwrap().trouble(), None);
        self.fleet.start().await;
    }

    async fn the_host_is_drained(&mut self) {
        self.note("the host is drained");
        self.make_good().await;
        let (evict, stay) = (self.dice.one_in(3), self.dice.one_in(3));
        let drain = Drain { limit_seconds: Some(self.dice.of(&[0, 30])), evict, stay, ..Drain::default() };
        self.fleet.command(&Control::Drain(drain)).await;
        if stay {
            self.wait("the drain is heard of", |soak| soak.fleet.control_is_read().then_some(())).await;
            self.standing.push(Standing::Paused);
        } else {
            assert_eq!(self.fleet.ended().await.unwrap().trouble(), None);
            self.fleet.start().await;
        }
    }

    pub async fn pause(&mut self) {
        self.note("the host is paused");
        self.fleet.command(&Control::Pause(Pause::default())).await;
        self.standing.push(Standing::Paused);
    }

    /// Or takes nothing from those who publish.
    async fn the_broker_is_away(&mut self) {
        self.make_good().await;
        let (dies, blocks, moves) = (self.dice.one_in(4), self.dice.one_in(3), self.dice.below(MOMENTS));
        // A listener has no queue that outlives the broker, and this one has to miss nothing.
        self.wait("all is read", |soak| (soak.fleet.server.unread() == 0).then_some(())).await;
        if blocks {
            self.note("the broker blocks");
            self.fleet.server.block("low on memory");
        } else {
            self.note("the broker is away");
            self.fleet.server.go_down();
        }
        let before = self.fleet.witness.moves();
        let moved = |soak: &Soak| soak.fleet.witness.moves() > before + moves || soak.fleet.witness.at_work() == 0;
        self.wait("some work is done", |soak| moved(soak).then_some(())).await;
        if dies {
            self.fleet.crash().await;
            self.fleet.start().await;
        }
        self.fleet.server.unblock();
        self.fleet.server.go_up();
    }

    /// Or what was to be sent is refused.
    async fn confirms_are_lost(&mut self) {
        let count = 1 + self.dice.below(4);
        if self.dice.one_in(2) {
            self.note("confirms are lost");
            self.fleet.server.lose_next_confirms(count);
        } else {
            self.note("messages are refused");
            self.fleet.server.refuse_next(count);
        }
        // Until it is the others' turn again, such as that of who publishes jobs.
        self.some_events(count + 1).await;
    }

    fn a_share_fails_job_after_job(&mut self) {
        self.note("a share fails job after job");
        self.fleet.movers.fail("open", 8, Self::failure(Code::MountTimedOut));
    }

    fn an_attempt_panics(&mut self) {
        if self.fleet.witness.at_work() > 0 {
            self.note("an attempt panics");
            self.fleet.panics.attempt_panics();
        }
    }

    async fn the_host_announces(&mut self) {
        self.note("the host announces");
        self.fleet.command(&Control::Announce(Announce {})).await;
    }
}
