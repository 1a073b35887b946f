//! Bringing what was written to a file to stable storage, on file systems that do not all tell alike that it failed.

use std::fs::File;
use std::io;

/// Makes everything that was written to the file durable, by whomever, or says why it is not.
///
/// fdatasync(2) before fsync(2): since Linux 5.7 the fsync of CephFS answers 0 though pages could not be written (`ceph_fsync` overwrites the
/// error of the write-back; seen with 6.1), where its fdatasync fails. What is to be durable beside the content, fsync alone sees to.
pub(in crate::mover) fn sync(file: &File) -> io::Result<()> {
    file.sync_data()?;
    file.sync_all()
}
