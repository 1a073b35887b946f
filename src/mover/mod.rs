//! The mover: the child process of one job that mounts the share, reads, hashes, writes, verifies and publishes.
//!
//! The worker never touches a share; everything that could get stuck behind a dead one happens here, in a process with
//! mount and PID namespaces of its own. Kill it and nothing of it is left. It knows nothing of queues, journals or
//! libvirt: it does what it is asked, one request at a time, over [`protocol`].

pub mod command;
pub mod image;
pub mod nbd;
pub mod protocol;
