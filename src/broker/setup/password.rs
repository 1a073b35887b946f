//! Passwords of broker users: drawn here, kept in one file a user that nobody else can read, and known to the broker by their hash.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256, Sha512};
use uuid::Uuid;

/// RabbitMQ's name for the way in which [`hashed`] hashes, which is its default.
pub const ALGORITHM: &str = "rabbit_password_hashing_sha256";
/// The other one that it has had in use.
const ALGORITHM_512: &str = "rabbit_password_hashing_sha512";
/// Bytes of salt in front of a hash, and of what is hashed.
const SALT_BYTES: usize = 4;
/// Longest password, in bytes: more than that is some other file.
const PASSWORD_BYTES_MAX: u64 = 255;

/// A password file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the password file `{}`: {reason}", .path.display())]
pub struct PasswordError {
    action: &'static str,
    path: PathBuf,
    reason: String,
}

/// A folder with a file a user.
#[derive(Clone, Debug)]
pub struct Passwords(PathBuf);

impl Passwords {
    /// The folder, which need not be there yet.
    pub fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// The file of a user.
    pub fn file(&self, user: &str) -> PathBuf {
        self.0.join(user)
    }

    /// A user's password; none if it has no file.
    ///
    /// # Errors
    /// The file is a link, can be read by others, or holds something else than one password.
    pub fn read(&self, user: &str) -> Result<Option<SecretString>, PasswordError> {
        read(&self.file(user))
    }

    /// Draws a password for a user and writes it down, durably.
    ///
    /// # Errors
    /// There is a file already, or none can be made.
    pub fn make(&self, user: &str) -> Result<SecretString, PasswordError> {
        let path = self.file(user);
        let password = drawn();
        let write = || {
            match DirBuilder::new().mode(0o700).create(&self.0) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(format!("{}\n", password.expose_secret()).as_bytes())?;
            file.sync_all()?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|error: io::Error| PasswordError {
            action: "make",
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Ok(password)
    }
}

/// A password out of the system's randomness, of characters that mean nothing in a URI.
pub fn drawn() -> SecretString {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()).into()
}

/// Reads a file that holds a password, and nothing but a line's end behind it; none if there is no file.
///
/// # Errors
/// The file is a link, can be read by others, or holds something else.
pub fn read(path: &Path) -> Result<Option<SecretString>, PasswordError> {
    let wrong = |reason: String| PasswordError { action: "read", path: path.to_owned(), reason };
    let mut file = match OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| wrong(error.to_string()))?,
    };
    let about = file.metadata().map_err(|error| wrong(error.to_string()))?;
    if about.mode() & 0o077 != 0 {
        return Err(wrong("it can be read by others; `chmod 600` it".to_owned()));
    }
    if !about.is_file() || about.len() > PASSWORD_BYTES_MAX + 1 {
        return Err(wrong(format!("it holds more than the {PASSWORD_BYTES_MAX} bytes of a password")));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.chars().any(char::is_control) {
        return Err(wrong("it holds no password, or more than its line".to_owned()));
    }
    Ok(Some(password.into()))
}

/// A password as the broker keeps it, with a new salt.
pub fn hashed(password: &SecretString) -> String {
    let mut salt = [0; SALT_BYTES];
    salt.iter_mut().zip(Uuid::new_v4().into_bytes()).for_each(|(to, from)| *to = from);
    STANDARD.encode(salted::<Sha256>(&salt, password))
}

/// Whether what the broker keeps is this password.
pub fn is_hash_of(hash: &str, algorithm: &str, password: &SecretString) -> bool {
    let Ok(kept) = STANDARD.decode(hash) else { return false };
    let Some(salt) = kept.get(..SALT_BYTES) else { return false };
    match algorithm {
        ALGORITHM => salted::<Sha256>(salt, password) == kept,
        ALGORITHM_512 => salted::<Sha512>(salt, password) == kept,
        _ => false,
    }
}

fn salted<D: Digest>(salt: &[u8], password: &SecretString) -> Vec<u8> {
    let hash = D::new().chain_update(salt).chain_update(password.expose_secret()).finalize();
    [salt, &hash].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_hash_is_the_brokers_own() {
        // The example of RabbitMQ's guide on passwords: salt 908DC60A, password `test12`.
        let hash = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR";
        assert!(is_hash_of(hash, ALGORITHM, &"test12".into()));
        assert!(!is_hash_of(hash, ALGORITHM, &"test13".into()));
        assert!(!is_hash_of(hash, ALGORITHM_512, &"test12".into()));
        assert!(!is_hash_of("", ALGORITHM, &"".into()) && !is_hash_of("!", ALGORITHM, &"".into()));
        let password = drawn();
        assert!(is_hash_of(&hashed(&password), ALGORITHM, &password));
        assert_ne!(hashed(&password), hashed(&password), "each with a salt of its own");
    }

    #[test]
    fn a_password_is_drawn_once_and_kept_to_its_owner() {
        let above = tempfile::tempdir().unwrap();
        let passwords = Passwords::new(above.path().join("new"));
        assert!(passwords.read("kvm-07").unwrap().is_none());
        let made = passwords.make("kvm-07").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&passwords.file("kvm-07")), mode(&above.path().join("new"))), (0o600, 0o700));
        assert_eq!(passwords.read("kvm-07").unwrap().unwrap().expose_secret(), made.expose_secret());
        assert!(passwords.make("kvm-07").is_err(), "what is there is not written over");
        assert_ne!(passwords.make("kvm-08").unwrap().expose_secret(), made.expose_secret());
        assert_eq!(made.expose_secret().len(), 64);
    }

    #[test]
    fn a_file_that_is_open_to_others_or_holds_something_else_is_refused_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let passwords = Passwords::new(folder.path().to_owned());
        for (name, text, mode) in [
            ("open", "hunter2", 0o640),
            ("empty", "\n", 0o600),
            ("lines", "hunter2\nhunter3\n", 0o600),
            ("long", &"hunter2".repeat(100), 0o600),
        ] {
            std::fs::write(passwords.file(name), text).unwrap();
            std::fs::set_permissions(passwords.file(name), std::fs::Permissions::from_mode(mode)).unwrap();
            let refusal = passwords.read(name).unwrap_err().to_string();
            assert!(!refusal.contains("hunter"), "{refusal}");
        }
        std::fs::write(passwords.file("good"), "hunter2\r\n").unwrap();
        std::fs::set_permissions(passwords.file("good"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(passwords.read("good").unwrap().unwrap().expose_secret(), "hunter2");
        symlink(passwords.file("good"), passwords.file("link")).unwrap();
        assert!(passwords.read("link").is_err());
    }
}
