//! What can be wrong with a configuration.

use std::path::PathBuf;

/// Why there is no configuration. `place` is a file or an environment variable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("`{}` is not TOML: {reason}", .path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Line, column and rule; never the line itself.
        reason: String,
    },
    /// A key that nobody reads: most likely misspelt.
    #[error("unknown key `{key}` in {place}")]
    UnknownKey {
        /// The key with its section.
        key: String,
        /// Where.
        place: String,
    },
    /// A value that is not allowed.
    #[error("`{key}` in {place} is not allowed: {rule}")]
    Value {
        /// The key with its section.
        key: String,
        /// Where.
        place: String,
        /// What is wanted.
        rule: String,
    },
    /// A key without which nothing works.
    #[error("`{key}` is missing in {place}: {rule}")]
    Missing {
        /// The key with its section.
        key: String,
        /// Where it was looked for.
        place: String,
        /// What is wanted.
        rule: String,
    },
}
