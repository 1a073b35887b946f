//! What is on the wire: jobs, control messages, events and dead letters, their properties, and how they are encoded.
//!
//! It promises: whatever bytes come in, the answer is a checked [`Job`](crate::model::job::Job) or a [`Refusal`] with a
//! stable code and a sentence that says what is wrong and where, never a panic and never more memory than a small
//! multiple of the body; and that no text made here repeats a secret. It deliberately knows nothing of the broker,
//! the journal or the host: properties and bodies go in and come out.
//!
//! A job passes these gates, each with its own code:
//!
//! ```text
//! content type → message type → size → structure, depth → secrets → host → kind → shape → values → Job
//! ```
//!
//! The contract for other programs is `schemas/`, generated from the types here.

pub mod codec;
pub mod control;
pub mod dead_letter;
mod decode;
mod encode;
pub mod envelope;
pub mod event;
mod fields;
pub mod job;
pub mod key;
mod named;
pub mod redact;
pub mod refusal;
mod secret;
pub mod superseded;
pub mod told;
pub mod vouch;
mod walk;
pub mod words;

pub use codec::{Encoding, LETTER_BYTES_MAX};
pub use control::{Announce, Cancel, Control, Drain, Pause, Resume, decode_control, encode_control};
pub use dead_letter::DeadLetter;
pub use decode::{decode_dead_letter, decode_event, decode_job, decode_superseded};
pub use encode::{encode_dead_letter, encode_event, encode_job, encode_job_body, encode_superseded};
pub use envelope::{Encoded, Properties};
pub use event::{Event, HostEvent, LetterEvent, RunEvent};
pub use fields::{read_fields, read_job, write_fields};
pub use job::JobMessage;
pub use redact::redact;
pub use refusal::Refusal;
pub use secret::{REDACTED, masked};
pub use superseded::Superseded;
