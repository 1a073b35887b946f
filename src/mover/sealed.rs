//! Credentials that travel in a job, sealed to the one host that is to open them: HPKE (RFC 9180) in its base mode, with
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20Poly1305, which any HPKE library has.
//!
//! Job, host and share are the associated data, so that what was sealed for one job is of no use in another one, nor for another
//! host, nor for a share that somebody would rather have it sent to. What is sealed is the text of a credentials file. The private
//! key never leaves the host; in memory it is zeroed once it was used. Whoever has it can open all jobs that were ever sealed to it:
//! it is as precious as the files with credentials.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use secrecy::zeroize::Zeroizing;

use super::private_file;
use crate::failure::{Code, Failure};
use crate::model::repository::Sealed;

/// HPKE's `info`: what the key is used for, so that nothing that was sealed to it for something else opens here.
const INFO: &[u8] = b"longshore credentials v1";

/// A private key.
const KEY_BYTES: usize = 32;
/// The same in base64.
const TEXT_BYTES: usize = 44;

type Private = <X25519HkdfSha256 as Kem>::PrivateKey;
type Public = <X25519HkdfSha256 as Kem>::PublicKey;
type Encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey;

/// What credentials are sealed to. Shown and read as base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Public);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0.to_bytes()))
    }
}

impl FromStr for PublicKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text).map_err(|_| "a host's key is base64")?;
        Public::from_bytes(&bytes).map(Self).map_err(|_| "a host's key has 32 bytes")
    }
}

/// A host's own key.
pub struct HostKey {
    private: Private,
}

impl HostKey {
    /// Reads the key of the file, which is made with a new one if there is none. For the worker alone, which holds its journal: two
    /// at a time could make two.
    ///
    /// # Errors
    /// `credentials_unreadable`: it is there and cannot be trusted or read. `host_io`: it cannot be made.
    pub fn read_or_make(path: &Path) -> Result<Self, Failure> {
        make_if_missing(path).map_err(|error| {
            Failure::new(Code::HostIo, format!("cannot make the host's key `{}`", path.display())).because(&error)
        })?;
        Self::read(path)
    }

    /// Reads the key of the file.
    ///
    /// # Errors
    /// `credentials_unreadable`: missing, open to others, or no key.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let text = private_file::read(path)?;
        let bytes = STANDARD.decode(text.trim()).map(Zeroizing::new).ok();
        let private = bytes.and_then(|bytes| Private::from_bytes(&bytes).ok());
        private.map(|private| Self { private }).ok_or_else(|| {
            Failure::new(Code::CredentialsUnreadable, format!("`{}` holds no key of a host", path.display()))
        })
    }

    /// The part that others may know.
    pub fn public(&self) -> PublicKey {
        PublicKey(X25519HkdfSha256::sk_to_pk(&self.private))
    }

    /// What was sealed to this key for the job, host and share that the credentials came with.
    ///
    /// # Errors
    /// `credentials_unreadable`: sealed to another key, for another job, host or share, changed on the way, or no text.
    pub(super) fn open(&self, sealed: &Sealed) -> Result<Zeroizing<String>, Failure> {
        let opened = Encapsulated::from_bytes(&sealed.enc).and_then(|enc| {
            single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                &OpModeR::Base,
                &self.private,
                &enc,
                INFO,
                &sealed.ciphertext,
                sealed.bound_to.as_bytes(),
            )
        });
        let bytes = Zeroizing::new(opened.map_err(|error| {
            Failure::new(
                Code::CredentialsUnreadable,
                format!(
                    "the job's credentials do not open: they are sealed to another key than {}, for another job, host or \
                     share, or were changed",
                    self.public()
                ),
            )
            .because(&error)
        })?);
        let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= private_file::BYTES_MAX);
        text.map(|text| Zeroizing::new(text.to_owned())).ok_or_else(|| {
            let limit = private_file::BYTES_MAX;
            let text = format!("what is sealed in the job's credentials is no text of at most {limit} bytes");
            Failure::new(Code::CredentialsUnreadable, text)
        })
    }
}

/// Seals the text of a credentials file for what it is bound to.
///
/// # Errors
/// `credentials_unreadable`: it is no such text. `invalid_field`: the key is none that anything can be sealed to.
pub fn seal(text: &str, key: &PublicKey, bound_to: String) -> Result<Sealed, Failure> {
    if text.len() > private_file::BYTES_MAX || !super::mount::are_credentials(text) {
        let text = "these are no credentials: a line is `key=value`, of keys that are known";
        return Err(Failure::new(Code::CredentialsUnreadable, text));
    }
    let sealed = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &key.0,
        INFO,
        text.as_bytes(),
        bound_to.as_bytes(),
    );
    let (enc, ciphertext) = sealed.map_err(|error| {
        Failure::new(Code::InvalidField, format!("cannot seal to the host's key `{key}`")).because(&error)
    })?;
    Ok(Sealed { enc: enc.to_bytes().to_vec(), ciphertext, bound_to })
}

/// Makes the file with all its content, and never in the place of another.
fn make_if_missing(path: &Path) -> std::io::Result<()> {
    // What one that was killed has left may be a second name of the key.
    let new = Unfinished(path.with_extension("new"));
    new.remove()?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        _ => return Ok(()),
    }
    let (private, _) = X25519HkdfSha256::gen_keypair();
    let mut text = Zeroizing::new([b'\n'; TEXT_BYTES + 1]);
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    private.write_exact(bytes.as_mut_slice());
    STANDARD.encode_slice(bytes.as_slice(), &mut text[..TEXT_BYTES]).map_err(std::io::Error::other)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new.0)?;
    file.write_all(text.as_slice())?;
    file.sync_all()?;
    std::fs::hard_link(&new.0, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A file that goes when this is dropped.
struct Unfinished(PathBuf);

impl Unfinished {
    fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, file = %self.0.display(), "cannot remove what is left of making the host's key");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const TEXT: &str = "username=backup\npassword=hunter2\n";

    #[test]
    fn what_is_sealed_opens_with_that_key_for_what_it_is_bound_to_and_shows_nothing() {
        let place = tempfile::tempdir().unwrap();
        let key = HostKey::read_or_make(&place.path().join("ours")).unwrap();
        let sealed = seal(TEXT, &key.public().to_string().parse().unwrap(), "job and share".into()).unwrap();
        assert_eq!(key.open(&sealed).unwrap().as_str(), TEXT);
        assert!(!sealed.ciphertext.windows(4).any(|shown| TEXT.as_bytes().windows(4).any(|plain| plain == shown)));
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            bytes
        };
        for (what, changed) in [
            ("what it is bound to", Sealed { bound_to: "job and other share".into(), ..sealed.clone() }),
            ("enc", Sealed { enc: flipped(&sealed.enc), ..sealed.clone() }),
            ("enc's length", Sealed { enc: sealed.enc[1..].to_vec(), ..sealed.clone() }),
            ("ciphertext", Sealed { ciphertext: flipped(&sealed.ciphertext), ..sealed.clone() }),
            ("nothing", Sealed { ciphertext: Vec::new(), ..sealed.clone() }),
        ] {
            assert_eq!(key.open(&changed).unwrap_err().code, Code::CredentialsUnreadable, "{what}");
        }
        let other = HostKey::read_or_make(&place.path().join("other")).unwrap();
        assert_eq!(other.open(&sealed).unwrap_err().code, Code::CredentialsUnreadable);
    }

    #[test]
    fn what_are_no_credentials_is_not_sealed() {
        let place = tempfile::tempdir().unwrap();
        let key = HostKey::read_or_make(&place.path().join("ours")).unwrap().public();
        for text in ["hunter2", "user=backup\npassword=hunter2\n", "", &format!("password={}\n", "x".repeat(5000))] {
            let failure = seal(text, &key, String::new()).unwrap_err();
            assert_eq!(failure.code, Code::CredentialsUnreadable, "{text}");
            assert!(!format!("{failure:#}").contains("hunter2"));
        }
    }

    #[test]
    fn a_host_has_one_private_key_and_nothing_of_one_that_was_killed_while_making_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("host.key");
        let made = HostKey::read_or_make(&path).unwrap().public();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        std::fs::hard_link(&path, place.path().join("host.new")).unwrap();
        assert_eq!(HostKey::read_or_make(&path).unwrap().public(), made);
        assert_eq!(HostKey::read(&path).unwrap().public(), made);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_key_that_is_open_to_others_or_none_is_refused_and_never_replaced() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("host.key");
        for (content, mode) in
            [(STANDARD.encode([7; 32]), 0o640), (STANDARD.encode([7; 31]), 0o600), ("hunter2".into(), 0o600)]
        {
            std::fs::write(&path, &content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let failure = HostKey::read_or_make(&path).map(drop).unwrap_err();
            assert_eq!(failure.code, Code::CredentialsUnreadable);
            assert!(!format!("{failure:#}").contains(&content));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }
}
