//! Arbitrary and damaged bodies: never a panic, and what is accepted is read back as it was written.

use longshore::message::{Encoding, Properties, decode_dead_letter, decode_event, decode_job, redact};
use longshore::model::id::HostId;
use proptest::prelude::*;

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
        decode_dead_letter(&properties, body).err(),
    ]
    .into_iter()
    .flatten()
    {
        assert!(refusal.text.len() < 4096, "{}", refusal.text.len());
        assert!(!refusal.text.chars().any(char::is_control), "{:?}", refusal.text);
    }
    redact(body, content_type);
}

fn message_types() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(catalogue::all().iter().map(|message| message.message_type).collect::<Vec<_>>())
}

fn encodings() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Json), Just(Encoding::MessagePack)]
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
        labels in proptest::collection::btree_map("[^\\x00-\\x1f\\x7f-\\x9f]{1,20}", any::<String>(), 0..5),
        name in "[^/\\x00-\\x1f\\x7f-\\x9f]{1,40}", run in 1u32.., seconds in 1u64..2_592_000,
        encoding in encodings(),
    ) {
        let mut job = examples::job();
        job.key.run = run;
        job.labels = labels;
        job.instance = longshore::model::id::InstanceRef::Name(name.parse().unwrap());
        job.deadline = std::time::Duration::from_secs(seconds);
        let body = examples::encoded(&examples::Value::Job(Box::new(job.clone())), encoding).body;
        prop_assert_eq!(decode_job(&properties(encoding), &body, &examples::host()), Ok(job));
    }
}
