//! Logging: one line per state move, to stderr, for people or as JSON. Failures are logged once, where they are handled.
//!
//! lapin is kept to errors whatever the filter says: it prints returned messages whole, bodies included.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Added to every filter; see above.
const ALWAYS: &str = "lapin=error";

/// A filter that is not one.
#[derive(Debug, thiserror::Error)]
#[error("`{filter}` is not a log filter")]
pub struct InvalidFilter {
    filter: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// Whether [`init`] would take a filter.
///
/// # Errors
/// When it cannot be parsed.
pub fn check(filter: &str) -> Result<(), InvalidFilter> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    EnvFilter::try_new(format!("{filter},{ALWAYS}"))
        .map_err(|source| InvalidFilter { filter: filter.to_owned(), source })
}

/// Starts logging for the whole process. A second call has no effect, so that tests may call it freely.
///
/// # Errors
/// When `filter` cannot be parsed, as in `info` or `longshore=debug,lapin=warn`.
pub fn init(filter: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let parsed = parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // An error means that logging runs already, which is what was wanted.
    let _already_running = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
