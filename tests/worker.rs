//! The worker as its publishers and the readers of its events see it, on a host, a share and a broker in memory and a journal on
//! disk. Each test ends with the clean slate that [`fleet::Fleet::finish`] looks for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "worker/announces.rs"]
mod announces;
#[path = "worker/cancels.rs"]
mod cancels;
#[path = "worker/circuits.rs"]
mod circuits;
#[path = "worker/controls.rs"]
mod controls;
#[path = "worker/crashes.rs"]
mod crashes;
#[path = "worker/drains.rs"]
mod drains;
#[path = "worker/events.rs"]
mod events;
#[path = "worker/fleet.rs"]
mod fleet;
#[path = "support/heard.rs"]
mod heard;
#[path = "worker/host.rs"]
mod host;
#[path = "worker/journal.rs"]
mod journal;
#[path = "worker/left_overs.rs"]
mod left_overs;
#[path = "worker/letters.rs"]
mod letters;
#[path = "worker/outages.rs"]
mod outages;
#[path = "worker/panics.rs"]
mod panics;
#[path = "worker/pauses.rs"]
mod pauses;
#[path = "worker/refusals.rs"]
mod refusals;
#[path = "worker/retries.rs"]
mod retries;
#[path = "worker/runs.rs"]
mod runs;
#[path = "worker/slots.rs"]
mod slots;
#[path = "worker/soak.rs"]
mod soak;
#[path = "worker/stops.rs"]
mod stops;
#[path = "worker/supervised.rs"]
mod supervised;
#[path = "worker/validations.rs"]
mod validations;
#[path = "worker/witness.rs"]
mod witness;
