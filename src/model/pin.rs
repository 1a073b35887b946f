//! A pin: the file beside a backup's manifest that keeps it from being deleted.
//!
//! That it is there is what counts, whatever is in it: what it says is for people, and any program may write it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Content of the file. A reader skips fields that it does not know, and takes one that it can't read for a pin all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Why the backup is to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who wants it kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_by: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned_at: Option<Timestamp>,
}

impl Pin {
    /// The file's name in the backup's directory.
    pub const FILE: &'static str = "pin.json";
}
