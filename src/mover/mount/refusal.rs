//! What a mount helper's refusal means for the job: whether somebody has to correct something first, or it may pass by itself.
//! The helpers have no codes for that, only sentences and errno; what is not known here is taken as passing.

use crate::failure::Code;
use crate::model::repository::RepositoryType;

/// How a helper ended.
pub(super) struct Said<'a> {
    /// Its exit status, if it had one.
    pub status: Option<i32>,
    /// Its words, in the plain locale.
    pub text: &'a str,
    /// It waited for as long as the kernel waits for a cluster of CephFS.
    pub unanswered: bool,
    /// What the kernel's client of CephFS has written into its log meanwhile; nothing where that can't be read.
    pub kernel: &'a [String],
}

/// mount(8): the helper was called in a way that it does not understand.
const USAGE: i32 = 1;

/// errno(3) as the helpers of CIFS and CephFS print it.
const NOT_FOUND: u32 = 2;
const NO_SUCH_DEVICE_OR_ADDRESS: u32 = 6;
const PERMISSION_DENIED: u32 = 13;
const NO_SUCH_DEVICE: u32 = 19;
const INVALID_ARGUMENT: u32 = 22;
/// A module of the kernel's that the mount needs, as for `iocharset=`, is missing.
const NO_MODULE: u32 = 79;
const NOT_SUPPORTED: u32 = 95;
const KEY_NOT_AVAILABLE: u32 = 126;
const KEY_REJECTED: u32 = 129;

/// Sentences of mount.nfs(8), and of the other helpers where they print no number; the first that is found counts.
const SENTENCES: [(&str, Code); 17] = [
    ("could not resolve", Code::MountFailed),
    ("failed to resolve", Code::MountFailed),
    ("server name not found", Code::MountFailed),
    ("unable to determine mon addresses", Code::MountFailed),
    ("secret file", Code::CredentialsUnreadable),
    ("secret key", Code::CredentialsUnreadable),
    ("access denied by server", Code::MountDenied),
    ("permission denied", Code::MountDenied),
    ("operation not permitted", Code::MountDenied),
    ("no such file or directory", Code::RepositoryNotFound),
    ("no such device", Code::MountTypeUnsupported),
    ("unknown filesystem type", Code::MountTypeUnsupported),
    ("not supported by the system", Code::MountTypeUnsupported),
    ("incorrect mount option", Code::InvalidMountOption),
    ("invalid argument", Code::InvalidMountOption),
    ("protocol not supported", Code::InvalidMountOption),
    ("nfs version or transport protocol is not supported", Code::InvalidMountOption),
];

/// mount.ceph's words for EHOSTUNREACH, which the kernel gives for every end before a file system was found: "no mds server is up or the
/// cluster is laggy" before version 17, "no mds (Metadata Server) is up. The cluster might be laggy, or you may not be authorized" since.
const NO_MDS: &str = "mount error: no mds ";
/// What the kernel's log has of a monitor that does not know the user or his key: `auth protocol 'cephx' mauth authentication failed: -13`.
const NOT_AUTHENTICATED: &str = "authentication failed";
/// And of a mount without a key, where one is asked for.
const NO_KEY: &str = "no secret set";

pub(super) fn code(repository_type: RepositoryType, said: &Said<'_>) -> Code {
    let text = said.text.to_ascii_lowercase();
    if text.contains(NO_MDS) {
        return code_of_no_mds(said);
    }
    if let Some(errno) = errno(&text) {
        return match errno {
            PERMISSION_DENIED | KEY_NOT_AVAILABLE | KEY_REJECTED => Code::MountDenied,
            NOT_FOUND => Code::RepositoryNotFound,
            // What a Windows server says of a share that it doesn't have.
            NO_SUCH_DEVICE_OR_ADDRESS if repository_type == RepositoryType::Cifs => Code::RepositoryNotFound,
            NO_SUCH_DEVICE | NO_MODULE => Code::MountTypeUnsupported,
            INVALID_ARGUMENT | NOT_SUPPORTED => Code::InvalidMountOption,
            _ => Code::MountFailed,
        };
    }
    let known = SENTENCES.iter().find(|(sentence, _)| text.contains(sentence)).map(|(_, code)| *code);
    known.unwrap_or(if said.status == Some(USAGE) { Code::InvalidMountOption } else { Code::MountFailed })
}

/// The log may speak of another mount at the same time, so it is asked last.
fn code_of_no_mds(said: &Said<'_>) -> Code {
    let has = |words: &str| said.kernel.iter().any(|line| line.contains(words));
    if said.unanswered {
        Code::MountTimedOut
    } else if has(NOT_AUTHENTICATED) || has(NO_KEY) {
        Code::MountDenied
    } else {
        Code::MountFailed
    }
}

/// The number of `mount error(13)` and of `mount error 13`.
fn errno(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("mount error")?;
    let digits: String = rest.trim_start_matches([' ', '(']).chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_somebody_must_correct_is_told_from_one_that_may_pass() {
        use RepositoryType::{Ceph, Cifs, Nfs};
        for (repository_type, text, wanted) in [
            (Nfs, "mount.nfs: access denied by server while mounting nas:/x", Code::MountDenied),
            (
                Nfs,
                "mount.nfs: mounting nas:/x failed, reason given by server: No such file or directory",
                Code::RepositoryNotFound,
            ),
            (Nfs, "mount.nfs: Connection refused", Code::MountFailed),
            (Nfs, "mount.nfs: Failed to resolve server nas: Name or service not known", Code::MountFailed),
            (Nfs, "mount.nfs: an incorrect mount option was specified", Code::InvalidMountOption),
            (Nfs, "mount.nfs: No such device", Code::MountTypeUnsupported),
            (Nfs, "mount.nfs: Protocol not supported", Code::InvalidMountOption),
            (Nfs, "mount.nfs: requested NFS version or transport protocol is not supported", Code::InvalidMountOption),
            (Ceph, "server name not found: mon1 (Name or service not known)", Code::MountFailed),
            (Ceph, "adding ceph secret key to kernel failed: Invalid argument", Code::CredentialsUnreadable),
            (Ceph, "error reading secret file: -61", Code::CredentialsUnreadable),
            (Cifs, "mount error(13): Permission denied\nRefer to the mount.cifs(8) manual page", Code::MountDenied),
            (Cifs, "mount error(2): No such file or directory", Code::RepositoryNotFound),
            (Cifs, "mount error(6): No such device or address", Code::RepositoryNotFound),
            (Cifs, "mount error(22): Invalid argument", Code::InvalidMountOption),
            (Cifs, "mount error(111): could not connect to nas", Code::MountFailed),
            (Cifs, "mount error(112): Host is down", Code::MountFailed),
            (Cifs, "mount error(19): No such device", Code::MountTypeUnsupported),
            (Cifs, "mount error(79): Can not access a needed shared library", Code::MountTypeUnsupported),
            (Ceph, "mount error 13 = Permission denied", Code::MountDenied),
            (Ceph, "mount error 110 = Connection timed out", Code::MountFailed),
            (Ceph, "mount error 2 = No such file or directory", Code::RepositoryNotFound),
            (Ceph, "mount error: ceph filesystem not supported by the system", Code::MountTypeUnsupported),
        ] {
            assert_eq!(
                code(repository_type, &Said { status: Some(32), text, unanswered: false, kernel: &[] }),
                wanted,
                "{text}"
            );
        }
        assert_eq!(
            code(Cifs, &Said { status: Some(1), text: "usage", unanswered: false, kernel: &[] }),
            Code::InvalidMountOption
        );
        let unknown = "mount error: could not resolve address for nas: Unknown error";
        assert_eq!(
            code(Cifs, &Said { status: Some(1), text: unknown, unanswered: false, kernel: &[] }),
            Code::MountFailed
        );
    }

    #[test]
    fn what_cephs_helper_calls_a_cluster_without_mds_is_told_apart_by_its_time_and_the_kernels_log() {
        let denied = "libceph: auth protocol 'cephx' mauth authentication failed: -13";
        let denied_by_the_second_protocol = "libceph: auth protocol 'cephx' msgr authentication failed: -13";
        let no_mds = "ceph: No mds server is up or the cluster is laggy";
        for (unanswered, kernel, wanted) in [
            (false, &[denied, no_mds][..], Code::MountDenied),
            (false, &[denied_by_the_second_protocol, no_mds], Code::MountDenied),
            (false, &["libceph: no secret set (for auth_x protocol)", no_mds], Code::MountDenied),
            (false, &["libceph: mon0 (1)192.0.2.1:6789 session established", no_mds], Code::MountFailed),
            (false, &[], Code::MountFailed),
            (
                true,
                &["libceph: mon0 (1)192.0.2.1:6789 socket closed (con state V1_BANNER)", no_mds],
                Code::MountTimedOut,
            ),
            (true, &[denied, no_mds], Code::MountTimedOut),
        ] {
            let kernel: Vec<_> = kernel.iter().map(|line| (*line).to_owned()).collect();
            for text in [
                "mount error: no mds server is up or the cluster is laggy\n",
                "mount error: no mds (Metadata Server) is up. The cluster might be laggy, or you may not be authorized\n",
            ] {
                let said = Said { status: Some(32), text, unanswered, kernel: &kernel };
                assert_eq!(code(RepositoryType::Ceph, &said), wanted, "{kernel:?}");
            }
        }
    }
}
