//! A connection to libvirt that is opened when it is first needed and again when it was lost.
//!
//! libvirt's client library wants an event loop before the first connection: it answers keepalives with it, notices a
//! daemon that went away, and brings events. The loop runs on one thread for the life of the process.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use virt::connect::Connect;
use virt::error::{Error, clear_error_callback};
use virt::event::{event_register_default_impl, event_run_default_impl};

use super::errors;
use super::hub::Hub;
use super::raw;
use crate::failure::{Code, Failure};

/// Seconds between keepalives to the daemon.
const KEEPALIVE_SECONDS: i32 = 5;

/// Keepalives without an answer after which the connection counts as lost.
const KEEPALIVE_LOST_MAX: u32 = 3;

/// Pause after an error of the event loop, so that a broken one does not take a whole core.
const EVENT_LOOP_PAUSE: Duration = Duration::from_millis(100);

/// One connection. Its methods block, so they belong on call threads.
pub(super) struct Connection {
    uri: String,
    /// Told about events, on the connection that has the duty; the other one has none.
    hub: Option<Arc<Hub>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// How often it was opened.
    opened: u64,
}

struct Open {
    connect: Connect,
    listening: Vec<c_int>,
}

impl Connection {
    pub(super) fn new(uri: String, hub: Option<Arc<Hub>>) -> Self {
        Self { uri, hub, state: Mutex::default() }
    }

    /// The connection, opened if it isn't or if it was lost.
    pub(super) fn get(&self) -> Result<Connect, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = state.open.as_ref() {
            if matches!(open.connect.is_alive(), Ok(true)) {
                return Ok(open.connect.clone());
            }
            raw::unlisten(&open.connect, &open.listening);
        }
        state.open = None;
        let open = self.open().map_err(|error| {
            let text = format!("cannot connect to libvirt at `{}`", self.uri);
            Failure { code: Code::HypervisorUnavailable, ..errors::failure(text, &error) }
        })?;
        let connect = open.connect.clone();
        state.open = Some(open);
        state.opened += 1;
        let again = state.opened > 1;
        drop(state);
        if let (true, Some(hub)) = (again, &self.hub) {
            hub.reconnected();
        }
        Ok(connect)
    }

    /// How many connections it has been, the one that is open now among them.
    pub(super) fn number(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).opened
    }

    fn open(&self) -> Result<Open, Error> {
        start_event_loop()?;
        let connect = Connect::open(Some(&self.uri))?;
        // A driver inside this process has no daemon to keep alive and says so.
        if let Err(error) = connect.set_keep_alive(KEEPALIVE_SECONDS, KEEPALIVE_LOST_MAX) {
            tracing::debug!(%error, "libvirt connection without keepalive");
        }
        let listening = match &self.hub {
            Some(hub) => raw::listen(&connect, &hub.listener())?,
            None => Vec::new(),
        };
        Ok(Open { connect, listening })
    }
}

fn start_event_loop() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), Error>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // Without this libvirt prints every error on stderr besides returning it.
        clear_error_callback();
        event_register_default_impl()?;
        let run = || {
            loop {
                if let Err(error) = event_run_default_impl() {
                    tracing::warn!(%error, "libvirt's event loop failed");
                    std::thread::sleep(EVENT_LOOP_PAUSE);
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt events".to_owned()).spawn(run) {
            // Calls still work; a lost daemon is then noticed by the deadline of each call.
            tracing::error!(%error, "cannot start the thread of libvirt's event loop");
        }
        Ok(())
    });
    started.clone()
}
