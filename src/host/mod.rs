//! The doors to the host: each a narrow trait with the real thing and a stateful fake behind it, and one contract suite
//! that both pass. Nobody outside this folder names libvirt; nobody outside this folder and `mover/` starts a process.

pub mod guard;
pub mod hypervisor;
pub mod mover;
pub mod remains;
