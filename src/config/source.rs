//! Where the values come from: the file first, then the environment over it.

use std::collections::HashMap;
use std::path::Path;

use config::{Environment, File, FileFormat};

use super::error::ConfigError;
use super::raw::Raw;

/// Beginning of the names of our environment variables.
pub(super) const VARIABLE_PREFIX: &str = "LONGSHORE__";

/// The two layers.
pub(super) struct Layers<'a> {
    /// The file, if one was named.
    pub file: Option<&'a Path>,
    /// Our variables.
    pub environment: &'a HashMap<String, String>,
}

impl Layers<'_> {
    /// Reads each layer for itself, so that what is wrong is told of the layer that it is in, then both together.
    pub fn read(&self) -> Result<Raw, ConfigError> {
        let mut both = config::Config::builder();
        if let Some(path) = self.file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
            let file = File::from_str(&text, FileFormat::Toml);
            let alone = config::Config::builder().add_source(file.clone()).build();
            let alone =
                alone.map_err(|error| ConfigError::NotToml { path: path.to_owned(), reason: syntax(&error) })?;
            self.raw(alone, |_| format!("`{}`", path.display()))?;
            both = both.add_source(file);
        }
        let environment = Environment::with_prefix("LONGSHORE")
            .prefix_separator("__")
            .separator("__")
            .source(Some(self.environment.clone()));
        let in_environment = |key: &str| format!("the environment (`{}`)", variable(key));
        let alone = config::Config::builder().add_source(environment.clone()).build();
        self.raw(alone.map_err(|error| mistyped(&error, in_environment))?, in_environment)?;
        let both = both.add_source(environment).build();
        self.raw(both.map_err(|error| mistyped(&error, in_environment))?, in_environment)
    }

    fn raw(&self, layer: config::Config, place: impl Fn(&str) -> String) -> Result<Raw, ConfigError> {
        let mut unknown = None;
        let raw: Result<Raw, _> = serde_ignored::deserialize(layer, |path| {
            unknown.get_or_insert_with(|| path.to_string());
        });
        let raw = raw.map_err(|error| mistyped(&error, &place))?;
        match unknown {
            Some(key) => Err(ConfigError::UnknownKey { place: place(&key), key }),
            None => Ok(raw),
        }
    }

    /// The file, if the value of a key comes from it.
    pub fn file_of(&self, key: &str) -> Option<&Path> {
        self.file.filter(|_| !self.environment.contains_key(&variable(key)))
    }

    /// Where the value of a key comes from, or would be looked for.
    pub fn place(&self, key: &str) -> String {
        let variable = variable(key);
        match self.file {
            _ if self.environment.contains_key(&variable) => format!("the environment (`{variable}`)"),
            Some(path) => format!("`{}`", path.display()),
            None => format!("the environment (`{variable}`)"),
        }
    }
}

fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// The place and the rule of a syntax error. Between them the parser shows the line, which may hold a password.
fn syntax(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match (lines.first(), lines.last()) {
        (Some(first), Some(last)) if lines.len() > 1 => {
            let place = first.split_once(" at ").map_or(*first, |(_, place)| place);
            format!("at {place}: {last}")
        }
        _ => "it cannot be parsed".to_owned(),
    }
}

fn mistyped(error: &config::ConfigError, place: impl Fn(&str) -> String) -> ConfigError {
    let (key, rule) = match error {
        config::ConfigError::Type { key, expected, .. } => (key.clone(), format!("{expected} is wanted")),
        config::ConfigError::At { key, .. } => (key.clone(), "a value of another type is wanted".to_owned()),
        _ => (None, "a value of another type is wanted".to_owned()),
    };
    let key = key.unwrap_or_else(|| "(a section)".to_owned());
    ConfigError::Value { place: place(&key), key, rule }
}
