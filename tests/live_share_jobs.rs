//! The product on network shares: the real worker, libvirt and QEMU on a host whose kernel mounts NFS, CIFS and CephFS, jobs from a broker
//! elsewhere, and servers that stop, fill up or refuse. Each line of a table is one job: its share, how the bytes get there, what goes
//! wrong, and the code that must come of it; the run prints the lines with what came. Runs in a virtual host:
//! `scripts/virtual-host --network tests/lab/shares tests/lab/worker-host tests/lab/ceph-share PROGRAM`, which scripts/test does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/image.rs"]
mod image;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/logical.rs"]
mod logical;
#[path = "support/loops.rs"]
mod loops;
#[path = "support/share.rs"]
mod share;
#[path = "support/slate.rs"]
mod slate;

#[path = "live_share_jobs/afterwards.rs"]
mod afterwards;
#[path = "live_share_jobs/logical_volumes.rs"]
mod logical_volumes;
#[path = "live_share_jobs/nas.rs"]
mod nas;
#[path = "live_share_jobs/row.rs"]
mod row;
#[path = "live_share_jobs/table.rs"]
mod table;
#[path = "live_share_jobs/times.rs"]
mod times;
