//! An NBD client: many requests in flight on one unix socket, structured replies, block status in several contexts.
//!
//! It promises that a server which lies, stalls or dies ends in an [`NbdError`]: never in a panic, in memory that grows
//! without a bound, in a wait longer than [`Limits::request`] a request, or in bytes that were not sent.
//! What it accepts is what the protocol's document allows a server
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), read strictly.
//!
//! It deliberately does no TLS, no reconnecting and no splitting of requests: both ends are on one host, a broken
//! connection ends the attempt, and its callers work in pieces of at most [`REQUEST_BYTES_MAX`].
//!
//! ```text
//!              requests            bytes                      chunks
//!   callers ─────────────► writer ───────► socket ───► reader ───────► assembly ───► callers
//!      └── cookie, buffer ──────────► pending ◄──────────┘
//!   open ──(protocol broken, socket closed, deadline passed)──► broken: every request fails with the first reason
//! ```

mod assembly;
mod connection;
mod error;
mod handshake;
#[cfg(test)]
mod hostile;
mod reader;
mod wire;

pub use assembly::Extent;
pub use connection::{Connection, Limits};
pub use error::NbdError;
pub use handshake::Export;

/// Longest read or write, bytes. Every server that matters takes 32 MiB; this is what the callers work in.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// The context that says what is a hole and what reads as zeros.
pub const ALLOCATION: &str = "base:allocation";
/// The context of QEMU's servers that says which image of a chain has what: 1 for the topmost, 0 for none
/// (`docs/interop/nbd.rst` of QEMU).
pub const DEPTH: &str = "qemu:allocation-depth";
/// What the contexts of QEMU's servers that say what was written to begin with; the name of a bitmap follows.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
