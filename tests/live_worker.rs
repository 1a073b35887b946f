//! The product as its user gets it: the real binary as worker and as command line, a real RabbitMQ, a real libvirt with
//! real guests, and shares that misbehave. Each test has a worker of its own, and ends by looking whether the host, the
//! share and the journal are as they should be. Needs the laboratory: `scripts/lab up`, then `eval "$(scripts/lab env)"`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "contract/chains.rs"]
#[allow(dead_code)] // As with the two below, a part of it.
mod chains;
#[path = "contract/mover.rs"]
#[allow(dead_code)]
mod contract;
#[path = "contract/volumes.rs"]
#[allow(dead_code)]
mod volumes;

#[path = "support/asked.rs"]
mod asked;
#[path = "support/consumer.rs"]
mod consumer;
#[path = "support/damaged.rs"]
mod damaged;
#[path = "support/fleet.rs"]
mod fleet;
#[path = "support/gate.rs"]
mod gate;
#[path = "support/halt.rs"]
mod halt;
#[path = "support/heard.rs"]
mod heard;
#[path = "support/image.rs"]
mod image;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/loops.rs"]
mod loops;
#[path = "support/rabbit.rs"]
mod rabbit;
#[path = "support/raw.rs"]
mod raw;
#[path = "support/rbd.rs"]
mod rbd_images;
#[path = "support/share.rs"]
mod share;
#[path = "support/slate.rs"]
mod slate;

// Of the matrix of faults, which is a target of its own, what a few of its cells need.
#[path = "live_faults/kind.rs"]
mod kind;
#[path = "live_faults/matrix.rs"]
#[allow(dead_code)]
mod matrix;
#[path = "live_faults/processes.rs"]
mod processes;
#[path = "live_faults/scene.rs"]
#[allow(dead_code)]
mod scene;
#[path = "live_faults/walk.rs"]
mod walk;

#[path = "live_worker/agentless.rs"]
mod agentless;
#[path = "live_worker/announce.rs"]
mod announce;
#[path = "live_worker/bad_share.rs"]
mod bad_share;
#[path = "live_worker/between.rs"]
mod between;
#[path = "live_worker/block.rs"]
mod block;
#[path = "live_worker/broker_lost.rs"]
mod broker_lost;
#[path = "live_worker/by_hand.rs"]
mod by_hand;
#[path = "live_worker/cancel.rs"]
mod cancel;
#[path = "live_worker/circuit.rs"]
mod circuit;
#[path = "live_worker/command_line.rs"]
mod command_line;
#[path = "live_worker/control.rs"]
mod control;
#[path = "live_worker/dead.rs"]
mod dead;
#[path = "live_worker/delete.rs"]
mod delete;
#[path = "live_worker/drain.rs"]
mod drain;
#[path = "live_worker/elsewhere.rs"]
mod elsewhere;
#[path = "live_worker/faults.rs"]
mod faults;
#[path = "live_worker/fenced.rs"]
mod fenced;
#[path = "live_worker/hotplug.rs"]
mod hotplug;
#[path = "live_worker/incremental.rs"]
mod incremental;
#[path = "live_worker/journal.rs"]
mod journal;
#[path = "live_worker/killed.rs"]
mod killed;
#[path = "live_worker/migrated.rs"]
mod migrated;
#[path = "live_worker/moment.rs"]
mod moment;
#[path = "live_worker/others.rs"]
mod others;
#[path = "live_worker/pause.rs"]
mod pause;
#[path = "live_worker/pools.rs"]
mod pools;
#[path = "live_worker/push.rs"]
mod push;
#[path = "live_worker/push_changes.rs"]
mod push_changes;
#[path = "live_worker/rbd.rs"]
mod rbd;
#[path = "live_worker/rbd_left.rs"]
mod rbd_left;
#[path = "live_worker/rbd_restore.rs"]
mod rbd_restore;
#[path = "live_worker/rbd_room.rs"]
mod rbd_room;
#[path = "live_worker/restore.rs"]
mod restore;
#[path = "live_worker/running.rs"]
mod running;
#[path = "live_worker/secrets.rs"]
mod secrets;
#[path = "live_worker/stopped.rs"]
mod stopped;
#[path = "live_worker/stopping.rs"]
mod stopping;
#[path = "live_worker/tracked.rs"]
mod tracked;
#[path = "live_worker/two_hosts.rs"]
mod two_hosts;
#[path = "live_worker/validate.rs"]
mod validate;
