//! How the broker and we prove to each other who we are, where the address begins with `amqps`.
//!
//! It promises that there is no connection to such an address that is not encrypted or whose other end was not proven: what
//! makes the connector of a connection is in this file, and it has no other way than rustls. A file of roots stands in place
//! of the system's, so that a private authority is the only one that is believed. With a client certificate we are who it says
//! (SASL `EXTERNAL`), and no password is sent.

use std::path::{Path, PathBuf};

use rustls_connector::rustls_pki_types::pem::{self, PemObject};
use rustls_connector::rustls_pki_types::{CertificateDer, PrivateKeyDer};
use rustls_connector::{RustlsConnector, RustlsConnectorConfig};

/// Files with certificates, in PEM. They are read for each connection anew, so one that was renewed counts from the next on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities of whom one must have signed the broker's certificate; none for the system's.
    pub ca: Option<PathBuf>,
    /// What proves who we are; none where user and password do.
    pub client: Option<ClientFiles>,
}

/// A client's certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// One of the [`TlsFiles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The authorities.
    Ca,
    /// The client's certificate.
    Certificate,
    /// The client's key.
    Key,
}

/// Why there can be no connection.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file does not serve.
    #[error("`{}` {rule}", .path.display())]
    File {
        /// Which of them.
        file: TlsFile,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        rule: String,
    },
    /// The system has no authorities.
    #[error("this machine knows no certificate authorities (the package `ca-certificates` has them): {0}")]
    NoRoots(std::io::Error),
}

impl TlsFiles {
    /// What makes TLS of a plain connection.
    pub(super) fn connector(&self) -> Result<RustlsConnector, TlsError> {
        let roots = match &self.ca {
            None => RustlsConnectorConfig::new_with_native_certs().map_err(TlsError::NoRoots)?,
            Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(TlsFile::Ca, path)?),
        };
        let unusable = |file, path: &Path| {
            let path = path.to_owned();
            move |error: std::io::Error| TlsError::File { file, path, rule: format!("cannot be used: {error}") }
        };
        match (&self.client, &self.ca) {
            (Some(client), _) => {
                let chain = certificates(TlsFile::Certificate, &client.certificate)?;
                roots.connector_with_single_cert(chain, key(&client.key)?).map_err(unusable(TlsFile::Key, &client.key))
            }
            (None, Some(path)) => roots.connector_with_no_client_auth().map_err(unusable(TlsFile::Ca, path)),
            (None, None) => roots.connector_with_no_client_auth().map_err(TlsError::NoRoots),
        }
    }

    /// Whether the files serve, as far as that can be said without a broker.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), TlsError> {
        self.connector().map(drop)
    }
}

pub(super) fn certificates(file: TlsFile, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |rule: String| TlsError::File { file, path: path.to_owned(), rule };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate in PEM form".to_owned()));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    // What the reader says of a wrong file may repeat bytes of it.
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let rule = match error {
            pem::Error::Io(error) => format!("cannot be read: {error}"),
            _ => "holds no private key in PEM form".to_owned(),
        };
        TlsError::File { file: TlsFile::Key, path: path.to_owned(), rule }
    })
}
