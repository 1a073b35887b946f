//! Whom a file belongs to, or as whom a process runs.

use serde::{Deserialize, Serialize};

/// Numeric user and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}
