//! A RabbitMQ's version, and what hangs on it.

use std::fmt;
use std::str::FromStr;

/// A version, in the order of releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion {
    major: u16,
    minor: u16,
    patch: u16,
}

/// A text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no version of RabbitMQ, which is three numbers such as 3.10.8")]
pub struct InvalidVersion(String);

impl ServerVersion {
    /// The oldest that Longshore is tried with.
    pub const OLDEST: Self = Self::new(3, 10, 0);
    /// The first that compares the keys in a CC or BCC header with the rights of the publisher.
    pub const CHECKS_FURTHER_KEYS: Self = Self::new(4, 0, 3);
    /// The first that waits before it delivers again what a worker could not keep.
    pub const DELAYS_REDELIVERY: Self = Self::new(4, 3, 0);

    const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }
}

impl FromStr for ServerVersion {
    type Err = InvalidVersion;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidVersion(text.chars().take(40).flat_map(char::escape_default).collect());
        // What follows a `-` or a `+` is a pre-release or a packager's mark.
        let numbers = text.split(['-', '+']).next().unwrap_or_default().split('.').map(str::parse::<u16>);
        match numbers.collect::<Result<Vec<_>, _>>().map_err(|_| invalid())?[..] {
            [major, minor, patch] => Ok(Self::new(major, minor, patch)),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_are_read_and_ordered_as_numbers() {
        let version = |text: &str| text.parse::<ServerVersion>().unwrap();
        assert!(version("3.9.29") < version("3.10.8") && version("3.13.7") < version("4.0.2"));
        assert!(version("4.0.2") < ServerVersion::CHECKS_FURTHER_KEYS && version("4.0.10") > version("4.0.3"));
        assert_eq!(version("4.1.0-rc.1").to_string(), "4.1.0");
        assert_eq!(version("3.10.8+dfsg"), version("3.10.8"));
        for text in ["", "3", "3.10", "3.10.x", "3.10.8.1", "-1.2.3", "v3.10.8"] {
            assert!(text.parse::<ServerVersion>().is_err(), "{text}");
        }
    }
}
