//! The contract in `schemas/` equals the types, and every message in it can be read.
//!
//! `LONGSHORE_BLESS=1 cargo test --test messages` writes the schemas anew; what it changes is what other programs have
//! to be told of.
//!
//! The files in `schemas/examples/` are golden: each was promised to somebody when it was added, is never rewritten, and
//! must be read by every later version. Nothing compares them with today's values (`round_trip` looks at those), so a new
//! optional field leaves them alone. To show a new field, add a file beside them: give the value in `examples.rs` the
//! field and write it under a name of its own,
//!
//! ```text
//! LONGSHORE_BLESS=1 LONGSHORE_EXAMPLE=with-scratch cargo test --test messages
//! schemas/examples/longshore.event.worker.inventory.v1.with-scratch.json, .msgpack
//! ```
//!
//! of which those that show nothing new are not added. Without the second variable only messages that have no example
//! at all are given one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "messages/arbitrary.rs"]
mod arbitrary;
#[path = "messages/asyncapi.rs"]
mod asyncapi;
#[path = "messages/catalogue.rs"]
mod catalogue;
#[path = "messages/examples.rs"]
mod examples;
#[path = "messages/hostile.rs"]
mod hostile;
#[path = "messages/round_trip.rs"]
mod round_trip;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use longshore::message::Encoding;
use serde_json::Value;

fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap();
    text.push(b'\n');
    text
}

/// Writes `schemas/` anew when asked to, once for all tests.
fn bless_if_asked() {
    static BLESSED: Once = Once::new();
    BLESSED.call_once(|| {
        if std::env::var_os("LONGSHORE_BLESS").is_none() {
            return;
        }
        fs::create_dir_all(schemas().join("examples")).unwrap();
        fs::write(schemas().join("asyncapi.json"), pretty(&asyncapi::document())).unwrap();
        for message in catalogue::all() {
            fs::write(schemas().join(message.schema_file()), pretty(&message.schema())).unwrap();
            for encoding in [Encoding::Json, Encoding::MessagePack] {
                let name = match std::env::var("LONGSHORE_EXAMPLE") {
                    Ok(word) => format!("{}.{word}", message.message_type),
                    Err(_) => message.message_type.to_owned(),
                };
                write_new(&name, &examples::value(message.message_type), encoding);
            }
        }
        for (name, value) in examples::more() {
            for encoding in [Encoding::Json, Encoding::MessagePack] {
                write_new(name, &value, encoding);
            }
        }
    });
}

/// Writes an example unless there is one of that name: what was promised stays.
fn write_new(name: &str, value: &examples::Value, encoding: Encoding) {
    let path = examples::path(&schemas(), name, encoding);
    if !path.exists() {
        fs::write(path, examples::file(value, encoding)).unwrap();
    }
}

/// Compares a generated file with the one in the repository.
fn assert_equals(path: &Path, generated: &[u8]) {
    bless_if_asked();
    let same = fs::read(path).unwrap_or_default() == generated;
    assert!(same, "{} differs from the types; see tests/messages.rs on how to write it anew", path.display());
}

#[test]
fn the_schemas_equal_the_types() {
    for message in catalogue::all() {
        assert_equals(&schemas().join(message.schema_file()), &pretty(&message.schema()));
    }
}

#[test]
fn the_asyncapi_document_equals_the_types() {
    assert_equals(&schemas().join("asyncapi.json"), &pretty(&asyncapi::document()));
}

fn files_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|file| file.file_name().to_str().unwrap().to_owned()).collect()
}

#[test]
fn schemas_of_nothing_do_not_lie_about() {
    bless_if_asked();
    let all = catalogue::all();
    let wanted = all.iter().map(catalogue::Message::schema_file).chain(["asyncapi.json".to_owned()]).collect();
    assert_eq!(files_in(&schemas()), wanted);
}

/// Names of the golden examples, without their endings, each with the message type that its name begins with.
fn golden() -> Vec<(String, &'static str)> {
    bless_if_asked();
    let all = catalogue::all();
    let names = files_in(&schemas().join("examples")).into_iter().map(|file| {
        let ending = file.rsplit_once('.').filter(|(_, ending)| ["json", "msgpack"].contains(ending));
        ending.unwrap_or_else(|| panic!("{file} is no example in a known encoding")).0.to_owned()
    });
    let names: BTreeSet<String> = names.collect();
    let typed = names.into_iter().map(|name| {
        let message = all.iter().find(|message| {
            name.strip_prefix(message.message_type).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        let message_type = message.unwrap_or_else(|| panic!("{name} is an example of no message")).message_type;
        (name, message_type)
    });
    typed.collect()
}

#[test]
fn every_message_has_an_example() {
    let shown: BTreeSet<_> = golden().into_iter().map(|(_, message_type)| message_type).collect();
    assert_eq!(shown, catalogue::all().iter().map(|message| message.message_type).collect());
}

#[test]
fn every_example_ever_promised_is_read_in_both_encodings_into_the_same_value() {
    for (name, message_type) in golden() {
        let [json, msgpack] = [Encoding::Json, Encoding::MessagePack].map(|encoding| {
            let path = examples::path(&schemas(), &name, encoding);
            let body = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            examples::read(message_type, encoding, &body)
                .unwrap_or_else(|refusal| panic!("{}: {refusal}", path.display()))
        });
        assert_eq!(json, msgpack, "{name}");
    }
}
