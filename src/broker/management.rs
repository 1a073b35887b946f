//! RabbitMQ's management API, as far as a setup needs it.
//!
//! It promises that the administrator's password goes to this server alone (no redirect, no proxy, no certificate that was not
//! proven), and stands in no error; that every request has an end; and that what is not there is an answer and not an error.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_connector::rustls::crypto::ring;
use rustls_connector::rustls_native_certs::load_native_certs;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Request as HttpRequest, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::tls::{TlsError, TlsFile, certificates};

/// Longest wait for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest reason of the server's that an error repeats, characters.
const REASON_CHARACTERS_MAX: usize = 300;
/// Ports of the management plugin, where the address names none.
const PORTS: (u16, u16) = (15672, 15671);

/// Where the API is and who asks.
pub struct ManagementSettings {
    /// `http://` or `https://`, host, port, and the path before `/api` if there is one.
    pub url: String,
    /// Authorities of whom one must have signed the server's certificate; none for the system's.
    pub ca: Option<PathBuf>,
    /// The administrator.
    pub user: String,
    /// Its password.
    pub password: SecretString,
}

/// The API of one server.
pub struct Management {
    agent: Agent,
    base: String,
    authorization: SecretString,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Looks.
    Get,
    /// Makes or replaces.
    Put,
    /// Adds.
    Post,
    /// Removes.
    Delete,
}

impl Method {
    const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

/// A request that changes something.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it does.
    pub method: Method,
    /// The path behind `/api/`, its parts escaped.
    pub place: String,
    /// Its body.
    pub body: Option<Value>,
}

/// The API could not be reached or said no.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// The address is not one.
    #[error(
        "`{0}` is no address of a management API: it is of the form `https://host:port`, without user and password"
    )]
    Address(String),
    /// Its certificate cannot be proven.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No answer.
    #[error("cannot {method} `{url}`: {reason}")]
    NoAnswer {
        /// What was tried.
        method: &'static str,
        /// On what.
        url: String,
        /// Why not.
        reason: String,
    },
    /// It said no.
    #[error("cannot {method} `{url}`: the server answered {status}: {reason}")]
    Refused {
        /// What was tried.
        method: &'static str,
        /// On what.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's reason.
        reason: String,
    },
}

impl Management {
    /// An API. Nothing is sent yet.
    ///
    /// # Errors
    /// The address or the file of authorities does not serve.
    pub fn new(settings: ManagementSettings) -> Result<Self, ManagementError> {
        let (base, is_tls) = base(&settings.url)?;
        let mut config = Agent::config_builder()
            .timeout_global(Some(ANSWER_WAIT))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(crate::message::envelope::APP_ID);
        if is_tls {
            let roots = match &settings.ca {
                Some(path) => certificates(TlsFile::Ca, path)?,
                None => load_native_certs().certs,
            };
            let roots = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect::<Vec<_>>();
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::Specific(Arc::new(roots)))
                .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()));
            config = config.tls_config(tls.build());
        }
        let password = settings.password.expose_secret();
        let authorization = format!("Basic {}", STANDARD.encode(format!("{}:{password}", settings.user)));
        Ok(Self { agent: config.build().into(), base, authorization: authorization.into() })
    }

    /// Whether an address means that the password travels unencrypted to another machine.
    pub fn is_open(url: &str) -> bool {
        let local =
            |uri: &Uri| matches!(uri.host(), Some("localhost" | "[::1]")) || uri.host().is_some_and(is_loopback);
        url.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http") && !local(&uri))
    }

    /// Looks at a place; none if nothing is there.
    ///
    /// # Errors
    /// No answer, or another one.
    pub fn get(&self, place: &str) -> Result<Option<Value>, ManagementError> {
        self.ask(&Request { method: Method::Get, place: place.to_owned(), body: None })
    }

    /// Changes something. Gives the answer, which is none where nothing was there to be removed.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn ask(&self, request: &Request) -> Result<Option<Value>, ManagementError> {
        let (method, url) = (request.method.as_str(), format!("{}/api/{}", self.base, request.place));
        let lost = |reason: String| ManagementError::NoAnswer { method, url: url.clone(), reason };
        let body = request.body.as_ref().map(Value::to_string).unwrap_or_default();
        let http = HttpRequest::builder()
            .method(method)
            .uri(&url)
            .header("authorization", self.authorization.expose_secret())
            .header("content-type", "application/json")
            .body(body)
            .map_err(|error| lost(error.to_string()))?;
        let mut answer = self.agent.run(http).map_err(|error| lost(error.to_string()))?;
        let status = answer.status().as_u16();
        let mut bytes = Vec::new();
        let mut reader = answer.body_mut().as_reader().take(ANSWER_BYTES_MAX);
        reader.read_to_end(&mut bytes).map_err(|error| lost(error.to_string()))?;
        match status {
            200..=299 if bytes.is_empty() => Ok(Some(Value::Null)),
            200..=299 => serde_json::from_slice(&bytes).map(Some).map_err(|_| lost("its answer is no JSON".to_owned())),
            404 if matches!(request.method, Method::Get | Method::Delete) => Ok(None),
            _ => Err(ManagementError::Refused { method, url, status, reason: reason(&bytes) }),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The address without a final slash and with a port, and whether it is encrypted.
fn base(url: &str) -> Result<(String, bool), ManagementError> {
    // What was given may hold a password.
    let shown = || url.rsplit('@').next().unwrap_or_default().chars().take(80).flat_map(char::escape_default).collect();
    let invalid = || ManagementError::Address(shown());
    let uri: Uri = url.parse().map_err(|_| invalid())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(invalid()) };
    let (port, is_tls) = match scheme {
        "http" => (PORTS.0, false),
        "https" => (PORTS.1, true),
        _ => return Err(invalid()),
    };
    if authority.as_str().contains('@') || uri.query().is_some() || authority.host().is_empty() {
        return Err(invalid());
    }
    let port = authority.port_u16().unwrap_or(port);
    Ok((format!("{scheme}://{}:{port}{}", authority.host(), uri.path().trim_end_matches('/')), is_tls))
}

/// What the server says of its refusal.
fn reason(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = match answer.get("reason") {
        Some(Value::String(reason)) => reason.clone(),
        Some(reason) => reason.to_string(),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    fn management(url: &str) -> Result<Management, ManagementError> {
        let (user, password) = ("root".to_owned(), "hunter2".into());
        Management::new(ManagementSettings { url: url.to_owned(), ca: None, user, password })
    }

    #[test]
    fn addresses_are_read_with_their_defaults_and_without_secrets() {
        assert_eq!(base("http://broker").unwrap(), ("http://broker:15672".to_owned(), false));
        assert_eq!(base("https://broker/").unwrap(), ("https://broker:15671".to_owned(), true));
        assert_eq!(base("https://[::1]:1/rabbit/").unwrap(), ("https://[::1]:1/rabbit".to_owned(), true));
        for url in ["", "broker", "amqp://broker", "http://", "http://u:hunter2@broker", "http://broker?u=hunter2"] {
            let refusal = base(url).unwrap_err().to_string();
            assert!(!refusal.contains("u:hunter2"), "{refusal}");
        }
        assert!(Management::is_open("http://broker:15672"));
        for url in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:1", "https://broker"] {
            assert!(!Management::is_open(url), "{url}");
        }
    }

    /// Answers one request with a text; gives what was asked.
    fn one_answer(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut asked = vec![0; 4096];
            let read = client.read(&mut asked).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..read]).into_owned()
        });
        (url, served)
    }

    #[test]
    fn what_is_not_there_is_an_answer_and_a_redirect_is_none() {
        let (url, served) = one_answer("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(management(&url).unwrap().get("users/x").unwrap(), None);
        let asked = served.join().unwrap();
        assert!(asked.starts_with("GET /api/users/x HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("authorization: Basic {}", STANDARD.encode("root:hunter2"))), "{asked}");

        let (url, _served) =
            one_answer("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
        let error = management(&url).unwrap().get("users/x").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");

        let (url, _served) = one_answer(
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 43\r\n\r\n{\"error\":\"x\",\"reason\":\"Validation\\nfailed\"}",
        );
        let error = management(&url).unwrap().get("policies").unwrap_err().to_string();
        assert!(error.ends_with("the server answered 400: Validation failed"), "{error}");
    }

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let error = management("http://127.0.0.1:1").unwrap().get("overview").unwrap_err().to_string();
        assert!(error.starts_with("cannot GET `http://127.0.0.1:1/api/overview`: "), "{error}");
    }
}
