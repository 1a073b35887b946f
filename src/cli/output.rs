//! Printing: data to stdout, and the one place where an error's chain of causes becomes a line.

use std::error::Error;
use std::io::Write;

use serde::Serialize;

use super::exit::Exit;
use crate::failure::{Class, Code, Failure};

/// An error on its way to stderr, with the exit code it stands for.
#[derive(Debug)]
pub struct CliError {
    exit: Exit,
    source: Box<dyn Error + Send + Sync>,
}

impl CliError {
    /// The command line or the configuration is wrong.
    pub fn usage(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: Exit::Usage, source: source.into() }
    }

    /// What was asked for does not exist.
    pub fn not_found(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: Exit::NotFound, source: source.into() }
    }

    /// Anything else.
    pub fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: Exit::Failed, source: source.into() }
    }

    /// What a job would have failed with, where it was only planned: refused, unless nobody could tell.
    pub fn of_plan(failure: Failure) -> Self {
        let refused = match failure.class() {
            Class::Permanent => true,
            // It would be tried again, in vain as it is now.
            Class::Transient => matches!(failure.code, Code::VolumeFull | Code::RepositoryFull | Code::InUseElsewhere),
            Class::Bug => false,
        };
        let error = Self::from(failure);
        match error.exit {
            Exit::Failed if refused => Self { exit: Exit::Refused, ..error },
            _ => error,
        }
    }

    /// A worker that was drained has not come to its end in order.
    pub fn drained_in_part(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: Exit::DrainedInPart, source: source.into() }
    }

    /// A signal came.
    pub fn interrupted(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit: Exit::Interrupted, source: source.into() }
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The text and its causes, outermost first, on one line.
    pub fn chain(&self) -> String {
        if let Some(failure) = self.source.downcast_ref::<Failure>() {
            return format!("{failure:#}");
        }
        let mut line = self.source.to_string();
        let mut below = self.source.source();
        while let Some(error) = below {
            line.push_str(": ");
            line.push_str(&error.to_string());
            below = error.source();
        }
        line
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        match failure.code {
            Code::RepositoryNotFound | Code::BackupNotFound | Code::InstanceNotHere => Self::not_found(failure),
            _ => Self::failed(failure),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

/// A text of others, without what would steer a terminal: control characters, and those that turn the direction of writing.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Prints one line of data for people.
pub fn line(text: &str) -> Result<(), CliError> {
    print(&printable(text))
}

/// The same for a command that changes something: that its reader has gone away is an error, with which it ends in order.
pub fn told(text: &str) -> Result<(), CliError> {
    Ok(write(&printable(text))?)
}

/// The same of a JSON value.
pub fn told_json(value: &impl Serialize) -> Result<(), CliError> {
    Ok(write(&unsteered(&serde_json::to_string(value).map_err(CliError::failed)?))?)
}

/// Prints. A reader that has gone away, as `head` does, is no error but the end.
fn print(text: &str) -> Result<(), CliError> {
    match write(text) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush())
}

/// JSON whose texts steer no terminal; to a program it is the same.
fn unsteered(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        // A line break stands between values: within one it is escaped already.
        if c != '\n' && steers(c) { shown.push_str(&format!("\\u{:04x}", u32::from(c))) } else { shown.push(c) }
    }
    shown
}

fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// Prints one JSON value on one line.
pub fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    print(&unsteered(&serde_json::to_string(value).map_err(CliError::failed)?))
}

/// Prints one JSON value on as many lines as it takes.
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    print(&unsteered(&serde_json::to_string_pretty(value).map_err(CliError::failed)?))
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// The word that stands for a value in messages.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_others_cannot_steer_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n\u{9b}c\u{202e}ü"), r"a\u{1b}[2Jb\r\n\u{9b}c\u{202e}ü");
    }

    #[test]
    fn nor_can_json_and_it_means_the_same() {
        let text = "a\u{9b}2J\u{202e}\n";
        let shown = unsteered(&serde_json::to_string_pretty(&[text]).unwrap_or_default());
        assert!(!shown.contains(['\u{9b}', '\u{202e}']));
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap_or_default(), [text]);
    }

    #[test]
    fn what_would_be_refused_is_told_from_what_is_not_there_and_from_what_went_wrong() {
        for (code, exit) in [
            (Code::DiskUnsupported, Exit::Refused),
            (Code::PathNotAllowed, Exit::Refused),
            (Code::BackupHasChildren, Exit::Refused),
            (Code::VolumeFull, Exit::Refused),
            (Code::BackupNotFound, Exit::NotFound),
            (Code::InstanceNotHere, Exit::NotFound),
            (Code::HypervisorUnavailable, Exit::Failed),
            (Code::RepositoryIo, Exit::Failed),
            (Code::Internal, Exit::Failed),
        ] {
            assert_eq!(CliError::of_plan(Failure::new(code, "")).exit(), exit, "{code}");
        }
    }

    #[test]
    fn a_failure_is_printed_with_its_causes_and_its_code() {
        let failure = Failure::new(Code::RepositoryNotFound, "cannot open `/nas`").caused_by("no such directory");
        let error = CliError::from(failure);
        assert_eq!(error.chain(), "cannot open `/nas`: no such directory [repository_not_found]");
        assert_eq!(error.exit(), Exit::NotFound);
    }
}
