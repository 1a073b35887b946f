//! Arbitrary and damaged bodies: never a panic, and what is accepted is read back as it was written.

use longshore::failure::Code;
use longshore::message::dead_letter::Original;
use longshore::message::{
    Encoding, Properties, decode_control, decode_dead_letter, decode_event, decode_job, decode_superseded, redact,
};
use longshore::model::id::HostId;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::hostile::properties;
use super::{catalogue, examples};

fn hosts() -> impl Strategy<Value = HostId> {
    Just(examples::host())
}

fn read_in_every_way(content_type: &str, message_type: &str, body: &[u8], host: &HostId) {
    let properties = Properties {
        content_type: content_type.to_owned(),
        message_type: message_type.to_owned(),
        ..Properties::default()
    };
    for refusal in [
        decode_job(&properties, body, host).err(),
        decode_event(&properties, body).err(),
        control(&properties, body),
        decode_dead_letter(&properties, body).err(),
        decode_superseded(&properties, body).err(),
    ]
    .into_iter()
    .flatten()
    {
        assert!(refusal.text.len() < 4096, "{}", refusal.text.len());
        assert!(!refusal.text.chars().any(char::is_control), "{:?}", refusal.text);
    }
    redact(body, content_type);
}

/// Read under the command that goes with the type, or under one.
fn control(properties: &Properties, body: &[u8]) -> Option<longshore::message::Refusal> {
    let command = properties.message_type.split('.').nth(2).unwrap_or_default();
    let read = decode_control(command, properties, body).or_else(|| decode_control("pause", properties, body));
    read.expect("a known command").err()
}

fn message_types() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(catalogue::all().iter().map(|message| message.message_type).collect::<Vec<_>>())
}

fn encodings() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Json), Just(Encoding::MessagePack)]
}

/// Pointers to the maps of a job.
fn places() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["", "/repository", "/repository/credentials", "/backup", "/labels", "/unknown"])
}

fn put(job: &mut Json, place: &str, name: &str, value: Json) {
    job["unknown"] = json!({});
    job.pointer_mut(place).unwrap()[name] = value;
}

fn written(value: &Json, encoding: Encoding) -> Vec<u8> {
    match encoding {
        Encoding::Json => serde_json::to_vec(value).unwrap(),
        Encoding::MessagePack => rmp_serde::to_vec_named(value).unwrap(),
    }
}

fn field_names() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z_]{1,8}", "(pass|key|secret|cred|mon)[a-z]{0,4}", any::<String>()]
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9:/@%=, .]{0,16}", "(pass|key|secret|user)[=: ]{1,2}[a-z%@]{0,4}", any::<String>()]
}

/// A field that holds the secret `hunter2`, in one of the ways in which people write secrets.
fn secrets() -> impl Strategy<Value = (String, Json)> {
    let by_name =
        ("(nas_)?(password2?|Passwd|passphrase|SECRET|pass|credentials)", any::<u8>()).prop_map(|(name, shape)| {
            let value = match shape % 3 {
                0 => json!("hunter2"),
                1 => json!(["a", {"b": "hunter2"}]),
                _ => json!({"is": "hunter2"}),
            };
            (name, value)
        });
    let by_text = ("[a-z]{1,6}", "[a-z=, ]{0,6}", 0usize..8).prop_map(|(name, before, form)| {
        let forms = [
            "password=hunter2",
            "smb://bob:hunter2@nas/s",
            " bob:hunter2@nas:/x",
            r"\\bob:hunter2@nas\s",
            ",Secret = hunter2",
            ",username=bob%hunter2",
            "\"password\": \"hunter2\"",
            "\npasswd: hunter2",
        ];
        (name, json!(format!("{before}{}", forms[form])))
    });
    let in_name = Just(("password=hunter2".to_owned(), json!(1)));
    prop_oneof![3 => by_name, 5 => by_text, 1 => in_name]
}

fn content_types() -> impl Strategy<Value = Option<&'static str>> {
    proptest::sample::select(vec![
        None,
        None,
        Some("text/plain"),
        Some("application/json"),
        Some("application/msgpack"),
    ])
}

proptest! {
    #[test]
    fn no_bytes_make_the_codec_panic(
        body in proptest::collection::vec(any::<u8>(), 0..300),
        message_type in message_types(), encoding in encodings(), host in hosts(),
    ) {
        read_in_every_way(encoding.content_type(), message_type, &body, &host);
    }

    #[test]
    fn no_damage_to_a_good_message_makes_the_codec_panic(
        message_type in message_types(), encoding in encodings(), host in hosts(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut body = examples::body(message_type, encoding);
        for (index, byte) in damage {
            let place = index.index(body.len());
            body[place] = byte;
        }
        read_in_every_way(encoding.content_type(), message_type, &body, &host);
    }

    #[test]
    fn whatever_is_accepted_is_written_and_read_back_as_the_same_job(
        labels in proptest::collection::btree_map("[^\\x00-\\x1f\\x7f-\\x9f]{1,20}", "[^\\x00-\\x1f\\x7f-\\x9f]{0,40}", 0..5),
        name in "[^/\\x00-\\x1f\\x7f-\\x9f]{1,40}", run in 1u32.., seconds in 1u64..2_592_000,
        encoding in encodings(),
    ) {
        let mut job = examples::job();
        job.key.run = run;
        job.labels = labels;
        job.instance = Some(longshore::model::id::InstanceRef::Name(name.parse().unwrap()));
        job.deadline = std::time::Duration::from_secs(seconds);
        let body = examples::encoded(&examples::Value::Job(Box::new(job.clone())), encoding).body;
        let read = decode_job(&properties(encoding), &body, &examples::host());
        prop_assume!(!matches!(&read, Err(refusal) if refusal.code == Code::SecretInOptions));
        prop_assert_eq!(read, Ok(job));
    }

    #[test]
    fn the_body_of_a_job_that_was_taken_needs_no_redaction(
        name in field_names(), value in texts(), address in "[a-z0-9:/@%,.\\[\\]=-]{1,16}", place in places(),
        encoding in encodings(),
    ) {
        let mut job: Json = serde_json::from_slice(&examples::body("longshore.job.v1", Encoding::Json)).unwrap();
        put(&mut job, place, &name, json!(value));
        for kind in ["directory", "nfs", "cifs", "ceph"] {
            for address in [&address, &format!("//{address}"), &format!("/srv/{address}"), &format!("nas:/{address}")] {
                job["repository"]["type"] = json!(kind);
                job["repository"]["address"] = json!(address);
                let body = written(&job, encoding);
                if decode_job(&properties(encoding), &body, &examples::host()).is_ok() {
                    prop_assert_eq!(redact(&body, encoding.content_type()), body);
                }
            }
        }
    }

    #[test]
    fn no_secret_of_a_refused_message_is_in_its_letter(
        (name, value) in secrets(), place in places(), encoding in encodings(), twice in any::<bool>(),
        kept in 0.0f64..2.0, header in "[a-z-]{1,8}|cloudEvents_subject|traceparent", content_type in content_types(),
    ) {
        let mut job: Json = serde_json::from_slice(&examples::body("longshore.job.v1", Encoding::Json)).unwrap();
        put(&mut job, place, &name, value.clone());
        let mut body = written(&job, encoding);
        if twice && encoding == Encoding::Json {
            let again = format!("{{\"again\":{},\"again\":1,", json!({ (name): value }));
            body.splice(0..1, again.into_bytes());
        }
        // Mostly whole, sometimes broken off.
        body.truncate((body.len() as f64 * kept) as usize);
        let properties = Properties {
            content_type: content_type.unwrap_or(encoding.content_type()).to_owned(),
            message_type: if twice { "longshore.job.v1" } else { "password=hunter2" }.to_owned(),
            message_id: "smb://bob:hunter2@nas/s".to_owned(),
            headers: [(header, "password=hunter2".to_owned()), ("x-own".to_owned(), "hunter2".to_owned())].into(),
            ..properties(encoding)
        };
        let refusal = decode_job(&properties, &body, &examples::host()).unwrap_err();
        let original = Original::new(&properties, &body);
        let bytes = original.body.bytes().unwrap();
        let letter = format!("{original:?} {refusal:?} {}", String::from_utf8_lossy(&bytes));
        prop_assert!(!letter.contains("hunter2"), "{}", letter);
    }
}
