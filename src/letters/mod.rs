//! Dead letters as operators see them, and what may be done with them.
//!
//! It promises: whatever is in the queue can be read, shown and told apart, also what is no letter of ours; what a letter says is
//! believed only as far as the broker vouches for its sender; a letter leaves its queue only after what replaces it is confirmed;
//! and a replay of the same letter with the same wishes is the same message, byte for byte, so that one that is sent twice is done
//! once. All but [`look`] and [`deal`] is pure.
//!
//! ```text
//!   look:  every letter ──> Summary ──> Filter, superseded, groups      a selection, frozen before anything is done
//!   deal:  each of the selection ──> replay::draft ──> the job's next run published ──> the event of it ──> acknowledged
//! ```

mod deal;
mod edit;
mod filter;
mod group;
mod letter;
mod look;
pub mod replay;
mod summary;

pub use deal::{Deal, Dealt, Deed, deal};
pub use edit::{Edit, EditError};
pub use filter::Filter;
pub use group::{Group, GroupBy, groups};
pub use letter::{Content, Fingerprint, Letter};
pub use look::{LETTERS_MAX, Look, look};
pub use summary::{Summary, mark_superseded};
