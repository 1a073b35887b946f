//! What the kernel says of a mount in its log alone. Its client of CephFS has one errno, which mount.ceph calls "no mds server is up or
//! the cluster is laggy", for a monitor that does not answer, one that refuses the key, and a file system that is not there (seen with
//! Linux 6.1). That a key was refused can only be told from its words.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

const PLACE: &str = "/dev/kmsg";
/// Longest record; a read gives one (`Documentation/ABI/testing/dev-kmsg`).
const RECORD_BYTES_MAX: usize = 8192;
/// Records looked at, in case somebody writes them faster than they are read.
const RECORDS_MAX: u32 = 10_000;
/// Lines kept, the last ones.
const LINES_MAX: usize = 8;
/// Where the client of CephFS begins its lines.
const SPEAKERS: [&str; 2] = ["libceph", "ceph:"];

/// The log from a moment on.
pub(super) struct KernelLog(File);

impl KernelLog {
    /// From now on. None where it can't be read, as in some containers.
    pub fn from_now_on() -> Option<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(PLACE).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// What the client of CephFS has said since, in whatever mount: the log does not say in which.
    pub fn of_ceph(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD_BYTES_MAX];
        for _ in 0..RECORDS_MAX {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(length) => lines.extend(ceph_line(&String::from_utf8_lossy(&record[..length]))),
                // Records that were overwritten before they were read are passed over.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        lines.split_off(lines.len().saturating_sub(LINES_MAX))
    }
}

/// The text of a record `priority,number,time,flags;text`, which its properties may follow on lines of their own.
fn ceph_line(record: &str) -> Option<String> {
    let (_, text) = record.split_once(';')?;
    let line = text.lines().next()?;
    SPEAKERS.iter().any(|speaker| line.starts_with(speaker)).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_lines_are_told_from_others() {
        let record = "3,1042,5098900,-;libceph: auth protocol 'cephx' mauth authentication failed: -13\n SUBSYSTEM=x\n";
        let line = "libceph: auth protocol 'cephx' mauth authentication failed: -13";
        assert_eq!(ceph_line(record).as_deref(), Some(line));
        assert_eq!(ceph_line("6,1,2,-;ceph: No mds server is up").as_deref(), Some("ceph: No mds server is up"));
        for other in ["6,1,2,-;nfs: libceph: no", "libceph: without a head", "6,1,2,-;", ""] {
            assert_eq!(ceph_line(other), None, "{other}");
        }
    }
}
