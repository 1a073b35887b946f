//! A share's credentials, from the host's file or the job's sealed part to the helper's: read with suspicion, held in memory that is
//! zeroed, written to a file of the mover's own for as long as the helper runs. They are in no argument, no environment and no error.
//!
//! File and sealed part are one format. It has a `key=value` a line: `username`, `password` and `domain` for CIFS; `name` and
//! `secret` for CephFS. A value is everything after the first `=`, so that nothing in it needs quoting. Empty lines and lines that
//! begin with `#` are left out.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use crate::failure::{Code, Failure};
use crate::model::repository::{Credentials, Repository, RepositoryType};
use crate::mover::private_file;
use crate::mover::protocol::CredentialPlaces;
use crate::mover::sealed::HostKey;

/// Name of the helper's file in the mover's own directory.
const FILE: &str = "credentials";

/// What the file or the sealed part says.
pub(super) struct Secrets {
    user: Option<String>,
    domain: Option<String>,
    secret: Option<SecretString>,
}

impl Secrets {
    /// Reads the file that `given` refers to, or opens what is sealed in it.
    ///
    /// `credentials_unreadable`: the file is missing, a link, another's, open to others, or malformed; the sealed part does not
    /// open with this host's key.
    pub fn read(given: &Credentials, places: &CredentialPlaces) -> Result<Self, Failure> {
        let (text, shown) = match given {
            Credentials::Reference { name } => {
                // Checked when the job was parsed; a path here would lead out of the directory.
                if name.contains('/') || name.starts_with('.') {
                    return Err(unreadable(format!("`{name}` is no name of a file with credentials")));
                }
                let path = places.dir.join(name);
                (private_file::read(&path)?, format!("`{}`", path.display()))
            }
            Credentials::Sealed(sealed) => {
                let key = HostKey::read(&places.host_key)?;
                (key.open(sealed)?, "what is sealed in the job's credentials".to_owned())
            }
        };
        Self::parse(&text)
            .ok_or_else(|| unreadable(format!("{shown} is malformed: a line is `key=value`, of keys that are known")))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut found = Self { user: None, domain: None, secret: None };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = line.split_once('=')?;
            match key.trim() {
                "username" | "name" => found.user = Some(value.to_owned()),
                "domain" => found.domain = Some(value.to_owned()),
                "password" | "secret" => found.secret = Some(SecretString::from(value.to_owned())),
                _ => return None,
            }
        }
        Some(found)
    }

    /// Writes them for the helper into `directory`, which is nobody else's.
    pub fn write(&self, repository_type: RepositoryType, directory: &Path) -> Result<HelperFile, Failure> {
        let path = directory.join(FILE);
        let (content, options) = match repository_type {
            RepositoryType::Cifs => (self.for_cifs(), vec![format!("credentials={}", path.display())]),
            RepositoryType::Ceph => {
                let name = self.user.iter().map(|name| format!("name={name}"));
                (self.for_ceph(), name.chain([format!("secretfile={}", path.display())]).collect())
            }
            RepositoryType::Nfs | RepositoryType::Directory => {
                let text = "a repository of this type takes no credentials";
                return Err(Failure::new(Code::InvalidField, text));
            }
        };
        // Removed also when writing fails half way.
        let file = HelperFile { path, options };
        let mut opened = OpenOptions::new();
        opened.write(true).create_new(true).mode(0o600);
        opened.open(&file.path).and_then(|mut opened| opened.write_all(content.as_bytes())).map_err(|error| {
            Failure::new(Code::HostIo, "cannot write the credentials for the mount helper").because(&error)
        })?;
        Ok(file)
    }

    fn for_cifs(&self) -> Zeroizing<String> {
        let mut lines = Zeroizing::new(String::with_capacity(2 * private_file::BYTES_MAX));
        let secret = self.secret.as_ref().map(ExposeSecret::expose_secret);
        for (key, value) in
            [("username", self.user.as_deref()), ("password", secret), ("domain", self.domain.as_deref())]
        {
            if let Some(value) = value {
                for part in [key, "=", value, "\n"] {
                    lines.push_str(part);
                }
            }
        }
        lines
    }

    fn for_ceph(&self) -> Zeroizing<String> {
        Zeroizing::new(self.secret.as_ref().map(|secret| secret.expose_secret().to_owned()).unwrap_or_default())
    }
}

/// Whether a text says something that a share could ask for.
pub(in crate::mover) fn are_credentials(text: &str) -> bool {
    Secrets::parse(text).is_some_and(|secrets| secrets.secret.is_some())
}

/// The helper's file, removed when this is dropped.
pub(super) struct HelperFile {
    path: PathBuf,
    options: Vec<String>,
}

impl HelperFile {
    /// The options that lead the helper to it.
    pub fn options(&self) -> &[String] {
        &self.options
    }
}

impl Drop for HelperFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "cannot remove the credentials of a mount helper; they go with the mover");
        }
    }
}

/// Options for a share without credentials: mount.cifs would ask a terminal for a password.
pub(super) fn without(repository: &Repository) -> Vec<String> {
    let asks = repository.repository_type == RepositoryType::Cifs
        && !repository.options.iter().any(|option| matches!(option.key.as_str(), "guest" | "sec"));
    if asks { vec!["guest".to_owned()] } else { Vec::new() }
}

fn unreadable(text: String) -> Failure {
    Failure::new(Code::CredentialsUnreadable, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn reference(name: &str) -> Credentials {
        Credentials::Reference { name: name.to_owned() }
    }

    fn places(place: &tempfile::TempDir) -> CredentialPlaces {
        CredentialPlaces { dir: place.path().to_owned(), host_key: place.path().join("host.key") }
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn whatever_a_password_holds_reaches_the_helpers_file_as_it_is_and_the_file_goes() {
        let place = tempfile::tempdir().unwrap();
        let text = "# of the NAS\nusername=back up\ndomain=CORP\n\npassword= a,b\\c'd\"e@f=g#h \n";
        write(&place.path().join("nas"), text, 0o600);
        let secrets = Secrets::read(&reference("nas"), &places(&place)).unwrap();
        let file = secrets.write(RepositoryType::Cifs, place.path()).unwrap();
        let path = place.path().join(FILE);
        assert_eq!(file.options(), [format!("credentials={}", path.display())]);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "username=back up\npassword= a,b\\c'd\"e@f=g#h \ndomain=CORP\n"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn cephs_name_is_an_option_and_its_secret_a_file() {
        let place = tempfile::tempdir().unwrap();
        write(&place.path().join("ceph"), "name=backup\nsecret=QUJD\n", 0o400);
        let secrets = Secrets::read(&reference("ceph"), &places(&place)).unwrap();
        let file = secrets.write(RepositoryType::Ceph, place.path()).unwrap();
        let path = place.path().join(FILE);
        assert_eq!(file.options(), ["name=backup".to_owned(), format!("secretfile={}", path.display())]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "QUJD");
    }

    #[test]
    fn a_file_that_is_missing_open_to_others_a_link_too_long_or_malformed_is_refused_without_its_words() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        write(&at("open"), "password=hunter2\n", 0o640);
        write(&at("words"), "hunter2\n", 0o600);
        write(&at("unknown"), "token=hunter2\n", 0o600);
        write(&at("long"), &format!("password={}\n", "hunter2".repeat(1000)), 0o600);
        std::os::unix::fs::symlink(at("words"), at("link")).unwrap();
        for name in ["missing", "open", "words", "unknown", "long", "link", "../words", ".hidden"] {
            let failure = Secrets::read(&reference(name), &places(&place)).map(drop).unwrap_err();
            assert_eq!(failure.code, Code::CredentialsUnreadable, "{name}");
            assert!(!format!("{failure:#}").contains("hunter2"), "{failure:#}");
        }
    }

    #[test]
    fn sealed_credentials_are_read_as_a_file_is_and_not_without_the_hosts_key() {
        let place = tempfile::tempdir().unwrap();
        let places = places(&place);
        let key = HostKey::read_or_make(&places.host_key).unwrap().public();
        let sealed = |text| Credentials::Sealed(crate::mover::sealed::seal(text, &key, "a job".into()).unwrap());
        let secrets = Secrets::read(&sealed("username=backup\npassword=hunter2\n"), &places).unwrap();
        assert_eq!(secrets.for_cifs().as_str(), "username=backup\npassword=hunter2\n");
        let without = CredentialPlaces { host_key: place.path().join("none"), ..places.clone() };
        assert_eq!(
            Secrets::read(&sealed("password=hunter2\n"), &without).map(drop).unwrap_err().code,
            Code::CredentialsUnreadable
        );
    }
}
