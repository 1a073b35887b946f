//! A hundred backups in a row of two guests at once, on the real parts: what grows with each of them shows here, in the worker, on the host,
//! in the journal and in libvirt. Then how soon a controller's word and a guard end what a worker has begun. The figures are printed.
//! Needs the laboratory: `scripts/lab up`, then `eval "$(scripts/lab env)"`; `scripts/test --soak` runs it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/gate.rs"]
mod gate;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/share.rs"]
mod share;
#[path = "support/slate.rs"]
mod slate;

#[path = "live_soak/figures.rs"]
mod figures;
#[path = "live_soak/rounds.rs"]
mod rounds;
#[path = "live_soak/speed.rs"]
mod speed;
