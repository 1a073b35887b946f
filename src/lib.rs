//! Longshore: a message-queue driven worker fleet that backs up and restores KVM instances to shared storage.
//!
//! This page is the map. Whoever knows it knows where to look.
//!
//! # What happens
//!
//! A publisher puts a **job** into the AMQP queue of a **host**. The [`worker`] of that host writes it into its [`journal`],
//! acknowledges it, and from then on owns it: it does the job in **attempts**, tells **events** about it, and ends each **run** of it
//! in exactly one final event; a run that failed for good also becomes a **dead letter**.
//!
//! A job gathers facts, makes a plan (pure) and runs the plan's **steps** through the [`saga`] engine, which writes each step
//! into the journal before its effect, and unwinds in reverse what a failure leaves half done. Three processes take part:
//!
//! ```text
//!   worker ── libvirt ──► QEMU ◄── NBD ── mover ──► share        the worker writes to no share and no volume;
//!     │                                    ▲                      the mover touches nothing else
//!     ├── requests, answers ───────────────┘
//!     └── pipe ──► guard ── libvirt ──► thaws, ends the pull job   when the worker can't
//! ```
//!
//! That is a **pull**. In a **push** QEMU writes to the share itself, into the one directory of it that the mover shows to the host; the
//! mover then proves what was written. Of a disk that an earlier backup of the instance holds, only what has changed is stored, in an
//! image on top of that backup's: found by the hypervisor's bitmap or, where there is none, by the hashes of the earlier one. A stopped
//! instance's volumes the mover reads alone, and in a **restore** it makes new ones beside them, which take their places all at once when
//! they are proven; or it makes volumes where none were, which become those of a new instance, or a disk of one that is there. In a
//! **deletion** it takes a backup off the share, after another one that is based on it has taken over what it held. A **validation** is
//! about a repository and no instance: its mover only looks, and what it finds is the job's result.
//!
//! What a broker lets a host do is little ([`broker::access`]): it is made so by `longshore broker setup`, and readers believe what the
//! broker vouches for ([`message::vouch`]).
//!
//! # Words
//!
//! | word | means |
//! |---|---|
//! | job, run, attempt | one request; one time that it is asked for; one execution within a run |
//! | delivery | one AMQP hand-over; never a job |
//! | instance, domain | the machine as management knows it; libvirt's object for it, a word of [`host`] only |
//! | backup repository | a share with an identity: type, address, mount options |
//! | backup, chain | one restore point; a full one with those that are based on it |
//! | checkpoint | libvirt's checkpoint and its dirty bitmap: what was written since a backup |
//! | freeze, thaw | the guest's file systems quiesced and released; never its vCPUs |
//! | step, undo, release, commit | see [`saga::step`] |
//! | mover, guard | the two child processes above |
//! | installation, incarnation | one life of a worker's journal; one start of a worker |
//! | left-over | what could not be removed yet, and is named until it can |
//!
//! # Modules, in reading order
//!
//! - [`model`]: the nouns, pure. [`failure`]: why something did not work, as stable codes.
//! - [`message`]: what is on the wire, and its encodings. The contract made from it is in `schemas/`.
//! - [`letters`]: dead letters as operators see them, and what becomes of one that is replayed.
//! - [`saga`]: steps with their way back. [`journal`]: the worker's durable record and its outbox. [`broker`]: the door to RabbitMQ.
//! - [`mover`]: the child's side: mount, share, NBD, images. Others see its [`mover::protocol`].
//! - [`host`]: the doors to libvirt, to guards and to movers, each with a stateful fake that passes the same contract suite.
//! - [`job`]: facts, plan and steps of each kind of job. [`worker`]: takes, does, tells.
//! - [`cli`]: the commands, and the place where real doors are built. [`config`], [`telemetry`], [`shutdown`],
//!   [`supervisor`]: know nobody.
//!
//! # What is deliberately absent
//!
//! Only `broker/` names lapin; only `host/` names libvirt; only `host/` and `mover/` start processes, mount, and hold `unsafe`. Nothing in
//! `model/`, and no plan, settlement, admission or fold of records, waits or does I/O. `tests/tidy.rs` checks this, and who may
//! use whom.

pub mod broker;
pub mod cli;
pub mod config;
pub mod failure;
pub mod host;
pub mod job;
pub mod journal;
pub mod letters;
pub mod message;
pub mod model;
pub mod mover;
pub mod saga;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;
pub mod worker;
