//! Dead letters as operators see them, and what may be done with them.
//!
//! It promises: whatever is in the queue can be read, shown and told apart, also what is no letter of ours; what a letter says is
//! believed only as far as the broker vouches for its sender; a letter leaves its queue only after what replaces it is confirmed;
//! and a replay of the same letter with the same wishes is the same message, byte for byte, so that one that is sent twice is done
//! once. A worker's mark on one of its letters, which says that a later job did what the letter's was for, lies among them: it is no letter, is
//! shown on its own, and leaves the queue after it. All but [`look`] and [`deal`] is pure, but for
//! the clock that marks are held against.
//!
//! ```text
//!   look:  every letter ──> Summary ──> Filter, superseded, groups      a selection, frozen before anything is done
//!   deal:  each of the selection ──> replay::draft ──> the job's next run published ──> the event of it ──> acknowledged
//!          at the end: each mark whose letter is gone ──> acknowledged
//! ```

mod deal;
mod edit;
mod filter;
mod group;
mod held_marks;
mod letter;
mod look;
mod mark;
mod name;
pub mod replay;
mod summary;

pub use deal::{Deal, Dealt, Deed, IN_USE_PAUSE, IN_USE_WAIT, deal};
pub use edit::{Edit, EditError};
pub use filter::Filter;
pub use group::{Group, GroupBy, groups};
pub use held_marks::Strays;
pub use letter::{Content, Fingerprint, Letter};
pub use look::{LETTERS_MAX, Look, look};
pub use mark::{MARKS_MAX, Marks, STRAY_AFTER, SupersededBy};
pub use name::{Ambiguous, NAME_CHARACTERS_MIN, is_whole, named, stands_for};
pub use summary::{Summary, mark_superseded};
