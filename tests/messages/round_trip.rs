//! What is written is read back as the same value, and its properties say what it is.

use longshore::message::event::LetterDetail;
use longshore::message::{DeadLetter, Encoding, Event, JobMessage, Properties};

use super::{catalogue, examples};

#[test]
fn every_message_is_read_back_as_it_was_written() {
    let of_types = catalogue::all().into_iter().map(|message| message.message_type);
    let values = of_types.map(|message_type| (message_type, examples::value(message_type)));
    for (name, value) in values.chain(examples::more()) {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            let written = examples::encoded(&value, encoding);
            let message_type = written.properties.message_type.clone();
            assert!(name.starts_with(&message_type), "{name}: {message_type}");
            assert_eq!(written.properties.content_type, encoding.content_type());
            let read = examples::read(&message_type, encoding, &written.body).unwrap();
            assert_eq!(read, value, "{name}");
        }
    }
}

#[test]
fn an_event_is_a_cloud_event_in_binary_mode() {
    let examples::Value::Event(event) = examples::value("longshore.event.progress.v1") else { unreachable!() };
    assert_eq!(event.routing_key(), "backup.progress.kvm-07");
    let written = examples::encoded(&examples::Value::Event(event), Encoding::Json);
    let headers: Vec<(&str, &str)> = written.properties.headers.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        headers,
        [
            ("cloudEvents_id", examples::EVENT_ID),
            ("cloudEvents_source", "/longshore/hosts/kvm-07"),
            ("cloudEvents_specversion", "1.0"),
            ("cloudEvents_subject", examples::JOB_ID),
            ("cloudEvents_time", "2026-03-01T02:00:05.25Z"),
            ("cloudEvents_type", "longshore.event.progress.v1"),
            ("traceparent", examples::TRACEPARENT),
        ]
    );
    assert_eq!(written.properties.message_id, examples::EVENT_ID);
    assert_eq!(written.properties.correlation_id.as_deref(), Some(examples::JOB_ID));
    assert!(!written.properties.persistent, "the next progress makes this one worthless");
}

#[test]
fn the_events_of_hosts_and_the_letters_have_routing_keys_of_three_words_and_the_host() {
    for message in catalogue::all() {
        let key = match examples::value(message.message_type) {
            examples::Value::Event(event) if matches!(*event, Event::Letter(_)) => continue,
            examples::Value::Event(event) => event.routing_key(),
            examples::Value::DeadLetter(letter) => letter.routing_key(),
            examples::Value::Superseded(mark) => mark.routing_key(),
            examples::Value::Job(_) | examples::Value::Control(_) => continue,
        };
        assert!(key.ends_with(".kvm-07"), "{key}");
        assert_eq!(key.split('.').count(), 3, "{key}");
    }
}

#[test]
fn what_became_of_a_letter_is_told_by_a_user_and_no_host() {
    for words in LetterDetail::WORDS {
        let message_type = format!("longshore.event.{words}.v1");
        let value = examples::value(&message_type);
        let examples::Value::Event(event) = &value else { unreachable!() };
        assert_eq!(event.routing_key(), format!("{words}.fleet.ops"));
        assert_eq!((event.host(), event.message_type()), (None, message_type));
        let Properties { correlation_id, message_id, persistent, headers, .. } =
            examples::encoded(&value, Encoding::Json).properties;
        assert_eq!((correlation_id.as_deref(), message_id.as_str()), (Some(examples::JOB_ID), examples::EVENT_ID));
        assert_eq!(headers["cloudEvents_source"], "/longshore/users/fleet.ops");
        assert_eq!(headers["cloudEvents_subject"], "019a0f3e-9000-7000-8000-00000000000d");
        assert!(persistent, "no other event follows that says it");
    }
}

#[test]
fn a_letters_event_says_what_the_letter_says_and_no_more() {
    let body = br#"{"user":"fleet.ops","letter_id":"7","code":"malformed_message","time":"2026-03-01T02:00:05.25Z","detail":{}}"#;
    let message_type = "longshore.event.letter.discarded.v1";
    let read = examples::read(message_type, Encoding::Json, body).unwrap();
    let written = examples::encoded(&read, Encoding::Json);
    assert_eq!(written.properties.correlation_id, None);
    assert_eq!(String::from_utf8(written.body).unwrap(), String::from_utf8(body.to_vec()).unwrap());
}

#[test]
fn a_letter_with_a_hostile_code_has_no_more_words_in_its_routing_key() {
    let examples::Value::DeadLetter(mut letter) = examples::value(DeadLetter::MESSAGE_TYPE) else { unreachable!() };
    letter.failure.code = format!("a.b.#{}", "x".repeat(300));
    let key = letter.routing_key();
    assert_eq!(key.split('.').count(), 3, "{key}");
    assert!(key.len() < 256 && !key.contains('#'), "{key}");
}

#[test]
fn exactly_three_events_are_final() {
    let last: Vec<&str> = catalogue::all()
        .iter()
        .filter(|message| match examples::value(message.message_type) {
            examples::Value::Event(event) => matches!(*event, Event::Run(event) if event.detail.is_final()),
            _ => false,
        })
        .map(|message| message.message_type)
        .collect();
    assert_eq!(last, ["longshore.event.completed.v1", "longshore.event.failed.v1", "longshore.event.cancelled.v1"]);
}

#[test]
fn a_job_is_written_from_its_checked_form_and_checked_back_into_it() {
    let job = examples::job();
    assert_eq!(JobMessage::from(&job).check(), Ok(job));
}
