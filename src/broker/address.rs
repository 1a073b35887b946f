//! Where the broker is and who we are there.
//!
//! It promises that the password is in no `Debug`, no `Display` and no error. Only `amqp://` and `amqps://` are taken, without
//! a query: heartbeat and the rest have settings of their own, and a key that nobody reads would be a silent one.

use std::fmt;
use std::str::FromStr;

use lapin::uri::{AMQPQueryString, AMQPScheme, AMQPUri, SASLMechanism};
use secrecy::{ExposeSecret, SecretString};

/// The broker's address, with credentials.
#[derive(Clone)]
pub struct BrokerUri {
    scheme: AMQPScheme,
    user: String,
    password: SecretString,
    /// Whether the text names a user, and a password.
    given: (bool, bool),
    host: String,
    port: u16,
    vhost: String,
}

/// The text is no broker address. It is not repeated, since it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker's address is not of the form `amqp://user:password@host:port/vhost`: {rule}")]
pub struct InvalidBrokerUri {
    rule: &'static str,
}

impl BrokerUri {
    /// The broker user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the address itself names the user.
    pub fn names_user(&self) -> bool {
        self.given.0
    }

    /// Whether the address itself holds a password.
    pub fn holds_password(&self) -> bool {
        self.given.1
    }

    /// The same place, entered by another user into another virtual host.
    pub fn entered_by(&self, user: &str, password: SecretString, vhost: &str) -> Self {
        Self { user: user.to_owned(), password, given: (true, true), vhost: vhost.to_owned(), ..self.clone() }
    }

    /// Whether connections to it are encrypted.
    pub fn is_tls(&self) -> bool {
        self.scheme == AMQPScheme::AMQPS
    }

    /// Host and port, for errors.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The address as lapin takes it. With `external`, it is our certificate that says who we are.
    pub(super) fn to_lapin(&self, heartbeat_seconds: u16, frame_max_bytes: u32, external: bool) -> AMQPUri {
        let mut uri = AMQPUri { scheme: self.scheme.clone(), vhost: self.vhost.clone(), ..AMQPUri::default() };
        uri.authority.host = self.host.clone();
        uri.authority.port = self.port;
        uri.authority.userinfo.username = self.user.clone();
        uri.authority.userinfo.password = self.password.expose_secret().to_owned();
        uri.query = AMQPQueryString {
            frame_max: Some(frame_max_bytes),
            heartbeat: Some(heartbeat_seconds),
            auth_mechanism: external.then_some(SASLMechanism::External),
            ..AMQPQueryString::default()
        };
        uri
    }
}

impl FromStr for BrokerUri {
    type Err = InvalidBrokerUri;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |rule| Err(InvalidBrokerUri { rule });
        let Some((scheme, rest)) = text.split_once("://") else { return refuse("it has no scheme") };
        if !matches!(scheme, "amqp" | "amqps") {
            return refuse("the scheme is neither `amqp` nor `amqps`");
        }
        if rest.contains(['?', '#']) {
            return refuse("it has a query or a fragment");
        }
        let authority = rest.split('/').next().unwrap_or_default();
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let given = (!user.is_empty() && !user.starts_with(':'), user.contains(':'));
        if place.is_empty() || place.starts_with(':') {
            return refuse("it names no host");
        }
        let Ok(uri) = text.parse::<AMQPUri>() else { return refuse("it cannot be read as an address") };
        // lapin reads an IPv6 address as "no host" and goes to localhost instead.
        let host = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, _)) => host.to_owned(),
            None => uri.authority.host,
        };
        // lapin reads a final slash as the vhost with the empty name, which nobody has.
        let vhost = if uri.vhost.is_empty() { "/".to_owned() } else { uri.vhost };
        Ok(Self {
            scheme: uri.scheme,
            user: uri.authority.userinfo.username,
            password: uri.authority.userinfo.password.into(),
            given,
            host,
            port: uri.authority.port,
            vhost,
        })
    }
}

impl fmt::Display for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.address(), self.vhost.trim_start_matches('/'))
    }
}

impl fmt::Debug for BrokerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUri({self})")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn parts(text: &str) -> (String, String, String) {
        let uri: BrokerUri = text.parse().unwrap();
        (uri.user().to_owned(), uri.address(), uri.vhost)
    }

    fn owned(parts: (&str, &str, &str)) -> (String, String, String) {
        (parts.0.to_owned(), parts.1.to_owned(), parts.2.to_owned())
    }

    #[test]
    fn addresses_are_read_with_their_defaults() {
        assert_eq!(parts("amqp://broker"), owned(("guest", "broker:5672", "/")));
        assert_eq!(parts("amqp://broker/"), owned(("guest", "broker:5672", "/")));
        assert_eq!(parts("amqps://w%40x:pw@broker/fleet"), owned(("w@x", "broker:5671", "fleet")));
        assert_eq!(parts("amqp://u:p@127.0.0.1:1234/%2f"), owned(("u", "127.0.0.1:1234", "/")));
        assert_eq!(parts("amqp://u:p@[::1]:1234/v"), owned(("u", "[::1]:1234", "v")));
    }

    #[test]
    fn it_is_known_what_the_address_itself_says_of_the_user() {
        for (text, user, password) in [
            ("amqps://broker/v", false, false),
            ("amqps://kvm-07@broker/v", true, false),
            ("amqps://kvm-07:@broker/v", true, true),
            ("amqps://:pw@broker/v", false, true),
            ("amqps://kvm-07:pw@[::1]:5671/v", true, true),
        ] {
            let uri: BrokerUri = text.parse().unwrap();
            assert_eq!((uri.names_user(), uri.holds_password()), (user, password), "{text}");
        }
    }

    #[test]
    fn what_is_no_broker_address_is_refused() {
        for text in
            ["", "broker", "http://broker", "amqp://", "amqp://u:p@", "amqp://:5672", "amqp://b:port", "amqp://b?x=1"]
        {
            assert!(text.parse::<BrokerUri>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_password_is_shown_nowhere() {
        let uri: BrokerUri = "amqp://worker:s3cr3t@broker:1/v".parse().unwrap();
        assert_eq!(format!("{uri} {uri:?}"), "amqp://broker:1/v BrokerUri(amqp://broker:1/v)");
        let refusal = "amqp://worker:s3cr3t@broker:port/v".parse::<BrokerUri>().unwrap_err();
        assert!(!format!("{refusal} {refusal:?}").contains("s3cr3t"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_repeat_it(text in "(amqps?://)?[ -~]{0,60}") {
            if let Err(refusal) = text.parse::<BrokerUri>() {
                prop_assert!(text.len() < 12 || !refusal.to_string().contains(&text));
            }
        }
    }
}
