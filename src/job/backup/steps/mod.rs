//! The steps of a backup, each with its way back.

mod basis;
mod copy;
mod ending;
mod moment;
mod publish;
mod push;
mod source;
mod staging;
mod tracking;
mod watch;

pub(super) use basis::ChooseBasis;
pub(super) use copy::{Compare, Copy, SourcesUnchanged};
pub(super) use moment::{Begun, Moment};
pub(super) use publish::{Publish, Seal};
pub(super) use push::{Inspect, Push, PushSource};
pub(super) use source::{PullSource, StoppedSource};
pub(super) use staging::{Records, Staging};
pub(super) use tracking::{ForgetCheckpoints, Track, Tracked};
