//! The AsyncAPI document: which message goes where.

use longshore::message::Cancel;
use serde_json::{Value, json};

use super::catalogue::{self, Channel, Message};

fn key(message_type: &str) -> String {
    message_type.replace('.', "_")
}

fn messages_of(channel: Channel) -> impl Iterator<Item = Message> {
    catalogue::all().into_iter().filter(move |message| message.channel == channel)
}

fn message(message: &Message) -> Value {
    json!({
        "name": message.message_type,
        "title": message.message_type,
        "contentType": "application/vnd.msgpack",
        "description": "MessagePack with named fields, or JSON as `application/json`; the content type of the message decides.",
        "correlationId": match message.channel {
            Channel::Jobs | Channel::RunEvents => json!({ "location": "$message.payload#/job_id" }),
            Channel::Control if message.message_type == Cancel::MESSAGE_TYPE => json!({ "location": "$message.payload#/job_id" }),
            Channel::Control | Channel::HostEvents | Channel::LetterEvents | Channel::Dead => Value::Null,
        },
        "headers": headers(message),
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": { "$ref": format!("./{}", message.schema_file()) },
        },
        "bindings": { "amqp": { "messageType": message.message_type, "bindingVersion": "0.3.0" } },
    })
    .as_object()
    .map(|fields| fields.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
    .unwrap()
}

fn headers(message: &Message) -> Value {
    let text = json!({ "type": "string" });
    match message.channel {
        Channel::Jobs | Channel::Dead => json!({ "type": "object", "properties": { "traceparent": text } }),
        Channel::Control => json!({ "type": "object" }),
        Channel::RunEvents | Channel::HostEvents | Channel::LetterEvents => json!({
            "type": "object",
            "required": [
                "cloudEvents_id", "cloudEvents_source", "cloudEvents_specversion", "cloudEvents_subject",
                "cloudEvents_time", "cloudEvents_type",
            ],
            "properties": {
                "cloudEvents_specversion": { "const": "1.0" },
                "cloudEvents_id": { "type": "string", "format": "uuid" },
                "cloudEvents_source": { "type": "string", "pattern": source(message.channel) },
                "cloudEvents_type": { "const": message.message_type },
                "cloudEvents_subject": text,
                "cloudEvents_time": { "type": "string", "format": "date-time" },
                "traceparent": text,
            },
        }),
    }
}

/// Who tells an event. A user's name is escaped like a segment of a path; those of `longshore broker setup` need no escape.
fn source(channel: Channel) -> &'static str {
    match channel {
        Channel::LetterEvents => "^/longshore/users/[A-Za-z0-9._~%-]+$",
        _ => "^/longshore/hosts/[a-z0-9-]{1,63}$",
    }
}

/// Name in the document, exchange, its type, routing key, what it is for.
const CHANNELS: [(Channel, &str, &str, &str, &str, &str); 6] = [
    (
        Channel::Jobs,
        "jobs",
        "longshore.jobs",
        "direct",
        "{host}",
        "Jobs for one host, into `longshore.jobs.<host>`; restores and ad-hoc work go to `<host>.urgent`. Publish persistent, \
         mandatory and confirmed, and never declare the queue: a job for an unknown host comes back as unroutable.",
    ),
    (
        Channel::Control,
        "control",
        "longshore.control",
        "topic",
        "{host}.{command}",
        "What a controller tells a host besides jobs, into `longshore.control.<host>`. Publish persistent, mandatory and confirmed, with \
         `user-id` (one of the host's `broker.controllers`) and without CC or BCC; everything else is not obeyed.",
    ),
    (
        Channel::RunEvents,
        "runEvents",
        "longshore.events",
        "topic",
        "{kind}.{event}.{host}",
        "What happens to the runs of jobs.",
    ),
    (
        Channel::HostEvents,
        "hostEvents",
        "longshore.events",
        "topic",
        "{subject}.{event}.{host}",
        "What happens on hosts.",
    ),
    (
        Channel::LetterEvents,
        "letterEvents",
        "longshore.events",
        "topic",
        "letter.{event}.{user}",
        "What operators did with dead letters. The user's name may have dots, and is never a host's: believe one only with that `user-id`, the \
         same user in `cloudEvents_source` and in the body, and without CC. Publish persistent, and confirmed before the letter is acknowledged.",
    ),
    (
        Channel::Dead,
        "deadLetters",
        "longshore.dead",
        "topic",
        "{kind}.{code}.{host}",
        "Messages that nobody works on any more, with the reason, into `longshore.dead`; and marks (`{kind}.superseded.{host}`) on those that a later \
         success has superseded, which a reader who does not know them acknowledges, since losing one costs only needless work.",
    ),
];

fn parameters(address: &str) -> Value {
    let described = |name: &str| match name {
        "host" => "host id: 1 to 63 of a-z, 0-9 and `-`",
        "kind" => "kind of the job, such as `backup`; of dead letters also `unknown`",
        "command" => "the command's word: `cancel`, `pause`, `resume`, `drain` or `announce`",
        "event" => "the event's word, such as `progress`",
        "subject" => "`worker` or `message`",
        "user" => "the broker user who did it, with all the words that the name has",
        "code" => "code of the failure, such as `wrong_host`; `superseded` of a mark",
        other => panic!("no description of {other}"),
    };
    let names = address.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    names
        .map(|name| (name.to_owned(), json!({ "description": described(name) })))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

pub fn document() -> Value {
    let mut channels = serde_json::Map::new();
    let mut operations = serde_json::Map::new();
    for (channel, name, exchange, exchange_type, address, description) in CHANNELS {
        let messages: serde_json::Map<String, Value> = messages_of(channel)
            .map(|message| {
                let key = key(message.message_type);
                let reference = json!({ "$ref": format!("#/components/messages/{key}") });
                (key, reference)
            })
            .collect();
        channels.insert(
            name.to_owned(),
            json!({
                "address": address,
                "description": description,
                "messages": messages,
                "parameters": parameters(address),
                "bindings": { "amqp": {
                    "is": "routingKey",
                    "exchange": {
                        "name": exchange, "type": exchange_type, "durable": true, "autoDelete": false,
                    },
                    "bindingVersion": "0.3.0",
                } },
            }),
        );
        // Of the events, only those that the next one makes worthless are neither persistent nor mandatory.
        let publishing = match channel {
            Channel::Jobs | Channel::Control | Channel::Dead => {
                json!({ "deliveryMode": 2, "mandatory": true, "bindingVersion": "0.3.0" })
            }
            // Nobody may listen, which keeps nobody from what is to be done with a letter.
            Channel::LetterEvents => json!({ "deliveryMode": 2, "bindingVersion": "0.3.0" }),
            Channel::RunEvents | Channel::HostEvents => json!({ "bindingVersion": "0.3.0" }),
        };
        let taken = matches!(channel, Channel::Jobs | Channel::Control);
        let (action, verb) = if taken { ("receive", "take") } else { ("send", "tell") };
        operations.insert(
            format!("{verb}_{name}"),
            json!({
                "action": action,
                "channel": { "$ref": format!("#/channels/{name}") },
                "bindings": { "amqp": publishing },
            }),
        );
    }
    let messages: serde_json::Map<String, Value> =
        catalogue::all().iter().map(|each| (key(each.message_type), message(each))).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Longshore worker",
            "version": "1.0.0",
            "description": "What a worker takes and tells, and what operators tell of dead letters, over AMQP 0-9-1. Within v1 optional fields, event types and failure \
                codes may be added; a reader skips what it does not know. Of the events of a run a reader drops those whose \
                id it has seen, orders by (run, attempt, sequence), and lets a final event (completed, failed, cancelled) win.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/vnd.msgpack",
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}
