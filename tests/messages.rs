//! The contract in `schemas/` equals the types, and every message in it can be read.
//!
//! `LONGSHORE_BLESS=1 cargo test --test messages` writes `schemas/` anew; what it changes is what other programs have
//! to be told of. Examples are written only for messages that have none: one that exists was promised to somebody and
//! stays readable, which is the test.
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
                let path = examples::path(&schemas(), message.message_type, encoding);
                if !path.exists() {
                    fs::write(path, examples::file(message.message_type, encoding)).unwrap();
                }
            }
        }
    });
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

#[test]
fn schemas_and_examples_of_nothing_do_not_lie_about() {
    bless_if_asked();
    let mut wanted: BTreeSet<String> = ["asyncapi.json".to_owned()].into();
    for message in catalogue::all() {
        wanted.insert(message.schema_file());
        wanted.insert(format!("examples/{}.json", message.message_type));
        wanted.insert(format!("examples/{}.msgpack", message.message_type));
    }
    let mut found = BTreeSet::new();
    for (folder, prefix) in [(schemas(), ""), (schemas().join("examples"), "examples/")] {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                found.insert(format!("{prefix}{}", entry.file_name().to_str().unwrap()));
            }
        }
    }
    assert_eq!(found, wanted);
}

#[test]
fn every_example_is_read_in_both_encodings_into_the_same_value() {
    bless_if_asked();
    for message in catalogue::all() {
        let [json, msgpack] = [Encoding::Json, Encoding::MessagePack].map(|encoding| {
            let path = examples::path(&schemas(), message.message_type, encoding);
            let body = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            examples::read(message.message_type, encoding, &body)
                .unwrap_or_else(|refusal| panic!("{}: {refusal}", path.display()))
        });
        assert_eq!(json, msgpack, "{}", message.message_type);
        assert_eq!(json, examples::value(message.message_type), "{}", message.message_type);
    }
}
