//! Every message there is, with its schema.

use longshore::message::event::{
    Accepted, Cancelled, Completed, Discarded, Draining, Failed, Heartbeat, Inventory, MessageRefused, Online, Paused,
    Progress, Replayed, Resumed, Retrying, Started,
};
use longshore::message::{
    Announce, Cancel, DeadLetter, Drain, HostEvent, JobMessage, LetterEvent, Pause, Resume, RunEvent, Superseded,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Jobs,
    Control,
    RunEvents,
    HostEvents,
    LetterEvents,
    Dead,
}

pub struct Message {
    pub message_type: &'static str,
    pub channel: Channel,
    schema: fn() -> Schema,
}

impl Message {
    pub fn schema_file(&self) -> String {
        format!("{}.schema.json", self.message_type)
    }

    pub fn schema(&self) -> Value {
        let mut schema: Value = (self.schema)().into();
        schema["$id"] = json!(self.schema_file());
        schema["title"] = json!(self.message_type);
        schema
    }
}

fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>()
}

pub fn all() -> Vec<Message> {
    use Channel::{Control, Dead, HostEvents, Jobs, LetterEvents, RunEvents};
    let message = |message_type, channel, schema| Message { message_type, channel, schema };
    vec![
        message("longshore.job.v1", Jobs, of::<JobMessage>),
        message("longshore.control.cancel.v1", Control, of::<Cancel>),
        message("longshore.control.pause.v1", Control, of::<Pause>),
        message("longshore.control.resume.v1", Control, of::<Resume>),
        message("longshore.control.drain.v1", Control, of::<Drain>),
        message("longshore.control.announce.v1", Control, of::<Announce>),
        message("longshore.event.accepted.v1", RunEvents, of::<RunEvent<Accepted>>),
        message("longshore.event.started.v1", RunEvents, of::<RunEvent<Started>>),
        message("longshore.event.progress.v1", RunEvents, of::<RunEvent<Progress>>),
        message("longshore.event.retrying.v1", RunEvents, of::<RunEvent<Retrying>>),
        message("longshore.event.completed.v1", RunEvents, of::<RunEvent<Completed>>),
        message("longshore.event.failed.v1", RunEvents, of::<RunEvent<Failed>>),
        message("longshore.event.cancelled.v1", RunEvents, of::<RunEvent<Cancelled>>),
        message("longshore.event.worker.online.v1", HostEvents, of::<HostEvent<Online>>),
        message("longshore.event.worker.heartbeat.v1", HostEvents, of::<HostEvent<Heartbeat>>),
        message("longshore.event.worker.draining.v1", HostEvents, of::<HostEvent<Draining>>),
        message("longshore.event.worker.paused.v1", HostEvents, of::<HostEvent<Paused>>),
        message("longshore.event.worker.resumed.v1", HostEvents, of::<HostEvent<Resumed>>),
        message("longshore.event.worker.inventory.v1", HostEvents, of::<HostEvent<Inventory>>),
        message("longshore.event.message.refused.v1", HostEvents, of::<HostEvent<MessageRefused>>),
        message("longshore.event.letter.replayed.v1", LetterEvents, of::<LetterEvent<Replayed>>),
        message("longshore.event.letter.discarded.v1", LetterEvents, of::<LetterEvent<Discarded>>),
        message("longshore.dead-letter.v1", Dead, of::<DeadLetter>),
        message("longshore.superseded.v1", Dead, of::<Superseded>),
    ]
}
