//! Credentials that travel in a job, sealed to the one host that is to open them: HPKE (RFC 9180) in its base mode, with
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20Poly1305, which any HPKE library has.
//!
//! Job id and host are the associated data, so that what was sealed for one job is of no use in another one, nor for another
//! host. What is sealed is the text of a credentials file. The private key never leaves the host; in memory it is zeroed once it
//! was used. Whoever has it can open all jobs that were ever sealed to it: it is as precious as the files with credentials.

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
use hpke::{Deserializable, HpkeError, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use secrecy::zeroize::Zeroizing;

use super::private_file;
use crate::failure::{Code, Failure};
use crate::model::id::{HostId, JobId};
use crate::model::repository::Sealed;

/// HPKE's `info`: what the key is used for, so that nothing that was sealed to it for something else opens here.
const INFO: &[u8] = b"longshore credentials v1";

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
    /// Reads the key of the file, which is made with a new one if there is none.
    ///
    /// # Errors
    /// `credentials_unreadable`: it is there and cannot be trusted or read. `host_io`: it cannot be made.
    pub fn read_or_make(path: &Path) -> Result<Self, Failure> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make(path).map_err(|error| {
                    let text = format!("cannot make the host's key `{}`", path.display());
                    Failure::new(Code::HostIo, text).because(&error)
                })?;
                Self::read(path)
            }
            _ => Self::read(path),
        }
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

    /// What was sealed to this key for the job and the host that the credentials came with.
    ///
    /// # Errors
    /// `credentials_unreadable`: sealed to another key, for another job or host, changed on the way, or no text.
    pub(super) fn open(&self, sealed: &Sealed) -> Result<Zeroizing<String>, Failure> {
        let opened = Encapsulated::from_bytes(&sealed.enc).and_then(|enc| {
            let bound = bound_to(&sealed.host, sealed.job_id);
            single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                &OpModeR::Base,
                &self.private,
                &enc,
                INFO,
                &sealed.ciphertext,
                &bound,
            )
        });
        let bytes = Zeroizing::new(opened.map_err(|error| {
            Failure::new(
                Code::CredentialsUnreadable,
                format!("the job's credentials do not open: they are sealed to another key than {}, for another job or host, or were changed", self.public()),
            )
            .because(&error)
        })?);
        let text = std::str::from_utf8(&bytes);
        text.map(|text| Zeroizing::new(text.to_owned())).map_err(|_| {
            Failure::new(Code::CredentialsUnreadable, "what is sealed in the job's credentials is no text")
        })
    }
}

/// Seals the text of a credentials file.
///
/// # Errors
/// The key is none that anything can be sealed to.
pub fn seal(text: &str, key: &PublicKey, host: &HostId, job_id: JobId) -> Result<Sealed, HpkeError> {
    let bound = bound_to(host, job_id);
    let (enc, ciphertext) = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &key.0,
        INFO,
        text.as_bytes(),
        &bound,
    )?;
    Ok(Sealed { enc: enc.to_bytes().to_vec(), ciphertext, job_id, host: host.clone() })
}

/// The associated data: the host, a line feed, the job id in its usual form.
fn bound_to(host: &HostId, job_id: JobId) -> Vec<u8> {
    format!("{host}\n{job_id}").into_bytes()
}

/// Makes the file at once with its content, and never in the place of another: two that begin together end with one key.
fn make(path: &Path) -> std::io::Result<()> {
    let (private, _) = X25519HkdfSha256::gen_keypair();
    let mut text = Zeroizing::new(STANDARD.encode(Zeroizing::new(private.to_bytes().to_vec()).as_slice()));
    text.push('\n');
    let new = Unfinished(path.with_extension(format!("new-{}", uuid::Uuid::new_v4())));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new.0)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    match std::fs::hard_link(&new.0, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all(),
    }
}

/// A file that goes when this is dropped.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is ours alone; one that stays is private and never read.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const TEXT: &str = "username=backup\npassword=hunter2\n";

    fn host() -> HostId {
        "kvm-07".parse().unwrap()
    }

    #[test]
    fn what_is_sealed_to_a_host_for_a_job_opens_there_and_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        let key = HostKey::read_or_make(&place.path().join("ours")).unwrap();
        let sealed = seal(TEXT, &key.public().to_string().parse().unwrap(), &host(), JobId::draw()).unwrap();
        assert_eq!(key.open(&sealed).unwrap().as_str(), TEXT);
        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[0] ^= 1;
            bytes
        };
        for (what, changed) in [
            ("job", Sealed { job_id: JobId::draw(), ..sealed.clone() }),
            ("host", Sealed { host: "kvm-08".parse().unwrap(), ..sealed.clone() }),
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
    fn a_host_has_one_key_whoever_asks_first_and_it_is_private() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("host.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                (0..8).map(|_| scope.spawn(|| HostKey::read_or_make(&path).map(|key| key.public()))).collect();
            asked.into_iter().map(|asked| asked.join().unwrap().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
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
