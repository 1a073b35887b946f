//! Logging: one line per state move, to stderr, for people or as JSON. Failures are logged once, where they are handled.
//!
//! Of lapin nothing but errors is logged, whatever the filter says: it prints returned messages whole, bodies included. Nor is its error
//! line when the broker closes a channel or a connection: it comes for every refusal, also for one that is expected, as when an enrolled
//! worker tries to declare what it may only use; whoever asked gets that as an error, and says what it means. That is a second filter
//! beside the operator's, which therefore cannot name a target so exactly that it wins.

use std::io::IsTerminal;

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, registry};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The crate whose messages show bodies; all its targets begin so.
const SHOWS_BODIES: &str = "lapin";

/// Fields of the lines in which it tells that the broker has closed a channel or a connection.
const CLOSE_FIELDS: [&str; 2] = ["method", "error"];

/// A filter that is not one.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFilter {
    /// It cannot be parsed.
    #[error("`{filter}` is not a log filter")]
    Unreadable {
        /// All of it.
        filter: String,
        /// Why not.
        source: tracing_subscriber::filter::ParseError,
    },
    /// A level is misspelt, or a target has none.
    #[error("`{word}` is neither a level (off, error, warn, info, debug, trace) nor of the form `TARGET=LEVEL`")]
    NoLevel {
        /// What stands there.
        word: String,
    },
}

/// Whether [`init`] would take a filter.
///
/// # Errors
/// When it cannot be parsed.
pub fn check(filter: &str) -> Result<(), InvalidFilter> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> Result<EnvFilter, InvalidFilter> {
    let parsed = EnvFilter::try_new(filter);
    let parsed = parsed.map_err(|source| InvalidFilter::Unreadable { filter: filter.to_owned(), source })?;
    // To the parser a word alone is a target of which everything is logged: with `loud` nothing else would be.
    let mut words = filter.split(',').map(str::trim).filter(|part| !part.is_empty() && !part.contains(['=', '[']));
    match words.find(|word| word.parse::<LevelFilter>().is_err()) {
        Some(word) => Err(InvalidFilter::NoLevel { word: word.to_owned() }),
        None => Ok(parsed),
    }
}

/// Starts logging for the whole process. A second call has no effect, so that tests may call it freely.
///
/// # Errors
/// When `filter` is none; `info` and `longshore=debug,lapin=warn` are.
pub fn init(filter: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let subscriber = subscriber(filter, format, std::io::stderr().is_terminal(), std::io::stderr)?;
    // An error means that logging runs already, which is what was wanted.
    let _already_running = subscriber.try_init();
    Ok(())
}

fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    colours: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + 'static, InvalidFilter>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let parsed = parse(filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Ok(registry().with(lines).with(parsed).with(filter_fn(is_ours_or_an_error)))
}

/// Whether a log line is sure to hold no message's body, and not said by others already.
fn is_ours_or_an_error(line: &Metadata<'_>) -> bool {
    !line.target().starts_with(SHOWS_BODIES) || (*line.level() == Level::ERROR && !tells_of_a_close(line))
}

/// Whether a line of lapin's is that of a channel or a connection that the broker has closed: it alone has the method and its error.
fn tells_of_a_close(line: &Metadata<'_>) -> bool {
    CLOSE_FIELDS.iter().all(|name| line.fields().field(name).is_some())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: LogFormat) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = subscriber(filter, format, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "lapin::returned_messages", "returned: s3cr3t");
            tracing::trace!(target: "lapin::consumer", "delivered: s3cr3t");
            tracing::error!(target: "lapin::channel", channel = 1, method = "Close", error = "403", "Channel closed");
            tracing::error!(target: "lapin::channels", error = "gone", "Connection error");
            tracing::info!(target: "longshore::worker", "job taken");
            tracing::debug!(target: "longshore::worker", "in detail");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_filter_lets_lapin_log_the_body_of_a_message() {
        for filter in
            ["trace", "lapin=trace", "info,lapin::returned_messages=warn", "lapin=error,lapin::returned_messages=trace"]
        {
            for format in [LogFormat::Text, LogFormat::Json] {
                let logged = logged(filter, format);
                assert!(!logged.contains("s3cr3t"), "with `{filter}`:\n{logged}");
            }
        }
    }

    #[test]
    fn the_filter_rules_everything_else() {
        let logged = logged("info", LogFormat::Json);
        assert!(logged.contains("job taken") && logged.contains("Connection error"), "{logged}");
        assert!(!logged.contains("Channel closed"), "whoever asked says what it means: {logged}");
        assert!(!logged.contains("in detail"), "{logged}");
        assert!(super::tests::logged("longshore=debug", LogFormat::Text).contains("in detail"));
    }

    #[test]
    fn a_filter_that_is_none_is_an_error_that_shows_it() {
        let error = init("longshore=loud", LogFormat::Text).unwrap_err();
        assert_eq!(error.to_string(), "`longshore=loud` is not a log filter");
    }

    #[test]
    fn a_word_alone_is_a_level_or_refused_and_a_target_has_its_level() {
        for right in [
            "info",
            "WARN",
            "off",
            "3",
            "longshore=debug,lapin=warn",
            "warn,longshore::worker=trace",
            "[attempt]=info",
            "",
        ] {
            assert!(check(right).is_ok(), "{right}");
        }
        for (wrong, word) in [("loud", "loud"), ("info,longshore", "longshore"), ("longshore=debug, wran", "wran")] {
            let refusal = check(wrong).unwrap_err().to_string();
            assert!(refusal.starts_with(&format!("`{word}` is neither a level")), "{wrong}: {refusal}");
        }
    }
}
