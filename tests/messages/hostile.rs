//! Whatever comes in is refused with the right code, and never with a panic, a secret or much memory.

use std::collections::BTreeMap;

use longshore::failure::Code;
use longshore::message::job::JobMessage;
use longshore::message::{Encoding, Properties, Refusal, decode_job, redact};
use serde_json::{Value, json};

use super::examples;

pub fn properties(encoding: Encoding) -> Properties {
    Properties {
        content_type: encoding.content_type().to_owned(),
        message_type: "longshore.job.v1".to_owned(),
        ..Properties::default()
    }
}

fn job_body() -> Value {
    serde_json::from_slice(&examples::body("longshore.job.v1", Encoding::Json)).unwrap()
}

fn msgpack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap()
}

/// The refusal of the example job with `value` at `pointer`; the same in both encodings.
fn refusal_with(pointer: &str, value: Value) -> Refusal {
    let mut body = job_body();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    body.pointer_mut(parent).unwrap()[name] = value;
    let json = decode_job(&properties(Encoding::Json), &serde_json::to_vec(&body).unwrap(), &examples::host());
    let packed = decode_job(&properties(Encoding::MessagePack), &msgpack(&body), &examples::host());
    let (json, packed) = (json.unwrap_err(), packed.unwrap_err());
    assert_eq!(json.code, packed.code, "{json} / {packed}");
    json
}

/// Each case is a place, the value put there, and the code and beginning of the text of its refusal.
fn assert_refused<const N: usize>(cases: [(&str, Value, Code, &str); N]) {
    for (pointer, value, code, text) in cases {
        let refusal = refusal_with(pointer, value);
        assert_eq!(refusal.code, code, "{refusal}");
        assert!(refusal.text.starts_with(text), "{refusal}\n{text}");
        assert!(!refusal.text.contains("hunter2"), "{refusal}");
    }
}

#[test]
fn a_wrong_value_is_refused_by_the_name_of_its_field() {
    assert_refused([
        ("/job_id", json!("7"), Code::InvalidField, "`job_id` has a value that is not allowed: "),
        ("/run", json!(0), Code::InvalidField, "`run` has a value that is not allowed: it is less than 1"),
        (
            "/kind",
            json!("migrate"),
            Code::UnknownKind,
            "the kind `migrate` is not one that this worker can do: backup, restore, restore-new, repo-validate, backup-delete",
        ),
        ("/kind", json!("restore"), Code::MalformedMessage, "a job of the kind `restore` has no part `restore`"),
        (
            "/kind",
            json!("restore-new"),
            Code::MalformedMessage,
            "a job of the kind `restore-new` has no part `restore_new`",
        ),
        (
            "/kind",
            json!("backup-delete"),
            Code::MalformedMessage,
            "a job of the kind `backup-delete` has no part `delete`",
        ),
        ("/host", json!("kvm-08"), Code::WrongHost, "the job names the host `kvm-08` and came to `kvm-07`"),
        ("/host", json!("../etc"), Code::WrongHost, "the job names the host `../etc` and came to `kvm-07`"),
        (
            "/instance",
            json!({}),
            Code::InvalidField,
            "`instance` has a value that is not allowed: it has either `id` or `name`",
        ),
        (
            "/instance/id",
            json!("5a1d5c4e-3b0b-4a53-9a83-6a6f7c1d2e3f"),
            Code::InvalidField,
            "`instance` has a value that is not allowed: it has either `id` or `name`",
        ),
        (
            "/instance/name",
            json!("../web"),
            Code::InvalidField,
            "`instance.name` has a value that is not allowed: `../web` is no instance name",
        ),
        (
            "/backup/mode",
            json!("differential"),
            Code::InvalidField,
            "`backup.mode` has a value that is not allowed: unknown variant `differential`, expected one of `auto`, `full`, `incremental`",
        ),
        (
            "/backup/full_every",
            json!(0),
            Code::InvalidField,
            "`backup.full_every` has a value that is not allowed: it is less than 1",
        ),
        (
            "/backup/full_every",
            json!(21),
            Code::InvalidField,
            "`backup.full_every` has a value that is not allowed: it is over 20",
        ),
        (
            "/backup/transfer",
            json!("pushy"),
            Code::InvalidField,
            "`backup.transfer` has a value that is not allowed: unknown variant `pushy`, expected one of `auto`, `pull`, `push`",
        ),
        (
            "/backup/exclude_disks",
            json!(["vda", "../vdb"]),
            Code::InvalidField,
            "`backup.exclude_disks[1]` has a value that is not allowed: `../vdb` is no disk target",
        ),
        (
            "/retry/attempts",
            json!(0),
            Code::InvalidField,
            "`retry.attempts` has a value that is not allowed: it is less than 1",
        ),
        (
            "/retry/first_pause_seconds",
            json!(10_000),
            Code::InvalidField,
            "`retry.first_pause_seconds` has a value that is not allowed: it is over 1800",
        ),
        (
            "/start_before",
            json!("tomorrow"),
            Code::InvalidField,
            "`start_before` has a value that is not allowed: it is no RFC 3339 time",
        ),
        (
            "/deadline_seconds",
            json!(u64::MAX),
            Code::InvalidField,
            "`deadline_seconds` has a value that is not allowed: it is over 2592000",
        ),
        (
            "/labels",
            json!({"a": "b".repeat(2000)}),
            Code::InvalidField,
            "`labels.a` has a value that is not allowed: it has at most 1024 bytes and no control character",
        ),
        (
            "/labels",
            json!({"a": "b\u{1}"}),
            Code::InvalidField,
            "`labels.a` has a value that is not allowed: it has at most 1024 bytes and no control character",
        ),
        (
            "/labels",
            json!((0..17).map(|number| (number.to_string(), "b".repeat(1000))).collect::<BTreeMap<_, _>>()),
            Code::InvalidField,
            "`labels (bytes of all together)` has a value that is not allowed: it is over 16384",
        ),
        ("/requested_by", json!(""), Code::InvalidField, "`requested_by` has a value that is not allowed: "),
    ]);
}

#[test]
fn a_repository_that_may_not_reach_mount_is_refused() {
    assert_refused([
        (
            "/repository/type",
            json!("ftp"),
            Code::InvalidField,
            "`repository.type` has a value that is not allowed: unknown variant `ftp`, expected one of",
        ),
        (
            "/repository/address",
            json!("/export"),
            Code::InvalidMountOption,
            "`repository.address`: the address does not fit the type: `host:/path`, an IPv6 address in brackets",
        ),
        (
            "/repository/options",
            json!("vers=4.2,exec"),
            Code::InvalidMountOption,
            "`repository.options`: mount option 2 (`exec`) is not allowed: it would change what is mounted, or how safely",
        ),
        (
            "/repository/options",
            json!("vers=4.2\nrw"),
            Code::InvalidMountOption,
            "`repository.options`: mount option 1 (`vers`) is not allowed: a value has",
        ),
        (
            "/repository/options",
            json!("vers=3.0,password=hunter2"),
            Code::SecretInOptions,
            "`repository.options` holds a secret; give credentials by reference instead",
        ),
        (
            "/repository/credentials/reference",
            json!("../shadow"),
            Code::InvalidField,
            "`repository.credentials.reference` has a value that is not allowed: a file name has",
        ),
    ]);
}

#[test]
fn a_secret_is_told_as_such_whatever_else_is_wrong_with_a_job() {
    let mut job = JobMessage::from(&examples::job());
    job.repository.options = "password=hunter2".to_owned();
    for spoil in [
        |job: &mut JobMessage| job.host = "no host".to_owned(),
        |job: &mut JobMessage| job.repository.id = "no id".to_owned(),
        |job: &mut JobMessage| job.repository.repository_type = "no type".to_owned(),
    ] {
        let mut job = job.clone();
        spoil(&mut job);
        assert_eq!(job.check().unwrap_err().code, Code::SecretInOptions);
    }
}

#[test]
fn a_secret_anywhere_in_a_job_is_refused_also_where_nobody_would_read_it() {
    let bytes = json!({"deep": [{"er": "password=hunter2"}]});
    for (pointer, value, place) in [
        ("/password", json!("hunter2"), "`password`"),
        ("/repository/password", json!("hunter2"), "`repository.password`"),
        ("/repository/nas_password", json!(null), "`repository.nas_password`"),
        ("/repository/Secret", json!(["hunter2"]), "`repository.Secret`"),
        ("/repository/mountopts", json!("vers=3.0,password=hunter2"), "`repository.mountopts`"),
        ("/repository/mountopts", json!(["password=hunter2"]), "`repository.mountopts`"),
        ("/repository/address", json!("//bob:hunter2@nas/share"), "`repository.address`"),
        ("/repository/options", json!({"password": "hunter2"}), "`repository.options.password`"),
        ("/repository/credentials", json!("bob:hunter2"), "`repository.credentials`"),
        ("/repository/credentials/password", json!("hunter2"), "`repository.credentials.password`"),
        ("/repository/credentials/pw", json!("hunter2"), "`repository.credentials.pw`"),
        ("/repository/credentials/sealed", json!({"password": "hunter2"}), "`repository.credentials.sealed.password`"),
        ("/credentials", json!({"reference": "hunter2"}), "`credentials`"),
        ("/backup/credentials", json!({"reference": "hunter2"}), "`backup.credentials`"),
        ("/labels/key", json!("hunter2"), "`labels.key`"),
        ("/labels/note", json!("password: hunter2"), "`labels.note`"),
        ("/labels/password=hunter2", json!("x"), "`labels`"),
        ("/from_v1_1", bytes, "`from_v1_1.deep.er`"),
    ] {
        let refusal = refusal_with(pointer, value);
        assert_eq!(refusal.code, Code::SecretInOptions, "{pointer}: {refusal}");
        assert_eq!(refusal.text, format!("{place} holds a secret; give credentials by reference instead"));
        assert_eq!(refusal.job_id.unwrap().to_string(), examples::JOB_ID);
        assert_eq!(refusal.kind, Some(longshore::model::job::JobKind::Backup));
    }
}

#[test]
fn a_secret_in_a_field_that_is_there_twice_is_refused() {
    let body = job_body();
    let text = serde_json::to_string(&body).unwrap();
    let twice = text.replacen('{', r#"{"zone":{"password":"hunter2"},"zone":1,"#, 1);
    let json = decode_job(&properties(Encoding::Json), twice.as_bytes(), &examples::host()).unwrap_err();
    let mut packed = msgpack(&body);
    assert_eq!(packed[0] & 0xf0, 0x80, "a map of at most 15 fields");
    packed[0] += 2;
    packed.extend(b"\xa4zone\xb0password=hunter2\xa4zone\x01");
    let packed = decode_job(&properties(Encoding::MessagePack), &packed, &examples::host()).unwrap_err();
    for refusal in [json, packed] {
        assert_eq!(refusal.code, Code::SecretInOptions, "{refusal}");
    }
}

#[test]
fn sealed_credentials_are_no_secret_in_a_wrong_place() {
    let mut body = job_body();
    // Base64 may end in what looks like an option.
    body["repository"]["credentials"] = json!({"sealed": {"enc": "a+key=", "ciphertext": "/secret="}});
    for (encoding, bytes) in
        [(Encoding::Json, serde_json::to_vec(&body).unwrap()), (Encoding::MessagePack, msgpack(&body))]
    {
        let refusal = decode_job(&properties(encoding), &bytes, &examples::host()).err();
        assert!(refusal.is_none_or(|refusal| refusal.code == Code::InvalidField));
        assert_eq!(redact(&bytes, encoding.content_type()), bytes);
    }
}

#[test]
fn a_wrong_type_is_malformed_and_the_text_says_where_but_not_what() {
    for (pointer, value, place) in [
        ("/run", json!("hunter2"), "at `run`"),
        ("/run", json!(-1), "at `run`"),
        ("/run", json!(1.5), "at `run`"),
        ("/host", json!(7), "at `host`"),
        ("/instance", json!(["name", "web-1"]), "at `instance`"),
        ("/repository", json!(["7d0f1a52-0c0e-4f4e-9b5b-0d7c4f3f8a11", "nfs", "hunter2:/"]), "at `repository`"),
        ("/repository/options", json!({"hunter2": 1}), "at `repository.options`"),
        ("/backup/exclude_disks", json!({"vda": "hunter2"}), "at `backup.exclude_disks`"),
        ("/labels", json!(["hunter2"]), "at `labels`"),
        ("/labels", json!({"a": {"hunter2": 1}}), "at `labels.a`"),
    ] {
        let refusal = refusal_with(pointer, value);
        assert_eq!(refusal.code, Code::MalformedMessage, "{refusal}");
        assert!(refusal.text.contains(place), "{refusal}");
        assert!(!refusal.text.contains("hunter2"), "{refusal}");
    }
}

#[test]
fn a_refusal_repeats_no_control_character_and_no_long_value() {
    for (pointer, value) in [
        ("/job_id", "019a0f3e-7c00-7000-8000-00000000000\u{1b}"),
        ("/start_before", "2026-03-01T06:00:00\u{1b}"),
        ("/start_before", &"2".repeat(100_000)),
        ("/host", "\u{1b}[2J"),
        ("/kind", &"k".repeat(100_000)),
        ("/backup/transfer", "\u{7}"),
        ("/repository/type", &"t".repeat(100_000)),
    ] {
        let refusal = refusal_with(pointer, json!(value));
        assert!(!refusal.text.chars().any(char::is_control), "{:?}", refusal.text);
        assert!(refusal.text.len() < 1000, "{} bytes", refusal.text.len());
    }
}

#[test]
fn a_restore_with_a_wrong_value_is_refused_by_the_name_of_its_field() {
    let refused = |part: Value| {
        let mut body = job_body();
        (body["kind"], body["restore"]) = (json!("restore"), part);
        decode_job(&properties(Encoding::MessagePack), &msgpack(&body), &examples::host()).unwrap_err()
    };
    let backup = "019a0f3e-8000-7000-8000-000000000002";
    for (part, text) in [
        (json!({"backup_id": "latest"}), "`restore.backup_id` has a value that is not allowed"),
        (
            json!({"backup_id": backup, "disks": ["vda", "../vdb"]}),
            "`restore.disks[1]` has a value that is not allowed",
        ),
        (json!({"backup_id": backup, "onto": {"vda": "/dev/sda"}}), "`restore.onto (a disk of the instance)`"),
        (json!({"backup_id": backup, "onto": {"": "vda"}}), "`restore.onto (a disk of the backup)`"),
        (
            json!({"backup_id": backup, "disks": ["vda"], "onto": {"vdb": "vdb"}}),
            "`restore.onto` has a value that is not allowed: `vdb` is none of the disks to be restored",
        ),
        (
            json!({"backup_id": backup, "keep_previous": true, "overwrite": true}),
            "`restore.overwrite` has a value that is not allowed: of what is written over nothing can be kept",
        ),
    ] {
        let refusal = refused(part);
        assert_eq!((refusal.code, refusal.kind), (Code::InvalidField, Some(longshore::model::job::JobKind::Restore)));
        assert!(refusal.text.starts_with(text), "{refusal}\n{text}");
    }
}

#[test]
fn a_restore_to_elsewhere_with_a_wrong_value_is_refused_by_the_name_of_its_field() {
    let refused = |part: Value| {
        let mut body = job_body();
        (body["kind"], body["restore_new"]) = (json!("restore-new"), part);
        body["restore_new"]["backup_id"] = json!("019a0f3e-8000-7000-8000-000000000002");
        let json = serde_json::to_vec(&body).unwrap();
        decode_job(&properties(Encoding::Json), &json, &examples::host()).unwrap_err()
    };
    for (part, text) in [
        (json!({}), "`restore_new` has a value that is not allowed: it has either"),
        (
            json!({"new_instance": {"name": "a"}, "volume": {"path": "/a/b"}}),
            "`restore_new` has a value that is not allowed: it has either",
        ),
        (
            json!({"disks": ["vda", "vdb"], "volume": {"path": "/a/b"}}),
            "`restore_new.disks` has a value that is not allowed: one volume",
        ),
        (json!({"disks": ["../vda"], "volume": {"path": "/a/b"}}), "`restore_new.disks[0]`"),
        (json!({"volume": {"path": "b.raw"}}), "`restore_new.volume.path`"),
        (json!({"volume": {"path": "/a/../b"}}), "`restore_new.volume.path`"),
        (json!({"volume": {"path": "/a/b", "format": "vmdk"}}), "`restore_new.volume.format`"),
        (
            json!({"volume": {"path": "/a/b", "attach": {"instance": {}, "target": "vdb"}}}),
            "`restore_new.volume.attach.instance` has a value that is not allowed: it has either",
        ),
        (
            json!({"volume": {"path": "/a/b", "attach": {"instance": {"name": "a"}, "target": "sdb"}}}),
            "`restore_new.volume.attach.target` has a value that is not allowed: it does not fit the bus `virtio`",
        ),
        (json!({"new_instance": {"name": "a/b"}}), "`restore_new.new_instance.name`"),
        (json!({"new_instance": {"name": "a", "id": "b"}}), "`restore_new.new_instance.id`"),
        (json!({"new_instance": {"name": "a", "mac_addresses": "keep"}}), "`restore_new.new_instance.mac_addresses`"),
        (json!({"new_instance": {"name": "a", "directory": "images"}}), "`restore_new.new_instance.directory`"),
        (
            json!({"new_instance": {"name": "a", "volumes": {"vda": "/a\u{0}"}}}),
            "`restore_new.new_instance.volumes.vda`",
        ),
    ] {
        let refusal = refused(part);
        assert_eq!(
            (refusal.code, refusal.kind),
            (Code::InvalidField, Some(longshore::model::job::JobKind::RestoreNew))
        );
        assert!(refusal.text.starts_with(text), "{refusal}\n{text}");
    }
}

#[test]
fn a_validation_with_a_wrong_value_is_refused_by_the_name_of_its_field() {
    let validation = |part: Value| {
        let mut body = job_body();
        (body["kind"], body["validate"]) = (json!("repo-validate"), part);
        body
    };
    let read = |body: &Value| decode_job(&properties(Encoding::MessagePack), &msgpack(body), &examples::host());
    let refusal = read(&validation(json!({}))).unwrap_err();
    assert_eq!(refusal.code, Code::InvalidField, "it is about no instance");
    assert!(refusal.text.starts_with("`instance` has a value that is not allowed"), "{refusal}");
    assert!(refusal.text.contains("`validate.instances`"), "{refusal}");
    let without_instance = |part: Value| {
        let mut body = validation(part);
        body.as_object_mut().unwrap().remove("instance");
        body
    };
    for (part, text) in [
        (json!({"level": "deep"}), "`validate.level` has a value that is not allowed"),
        (json!({"instances": ["web-1"]}), "`validate.instances[0]` has a value that is not allowed"),
        (json!({"max_bytes_per_second": 1000}), "`validate.max_bytes_per_second` has a value that is not allowed"),
    ] {
        let refusal = read(&without_instance(part)).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.kind),
            (Code::InvalidField, Some(longshore::model::job::JobKind::RepoValidate))
        );
        assert!(refusal.text.starts_with(text), "{refusal}\n{text}");
    }
    let job = read(&without_instance(json!({}))).unwrap();
    assert_eq!(job.instance, None);
    let mut body = without_instance(json!({}));
    body.as_object_mut().unwrap().remove("validate");
    let refusal = read(&body).unwrap_err();
    assert_eq!(refusal.code, Code::MalformedMessage);
    assert!(refusal.text.contains("a job of the kind `repo-validate` has no part `validate`"), "{refusal}");
}

#[test]
fn a_deletion_with_a_wrong_value_is_refused_by_the_name_of_its_field() {
    let backup = "019a0f3e-8000-7000-8000-000000000002";
    for (part, text) in [
        (json!({"backup_id": "../.."}), "`delete.backup_id` has a value that is not allowed"),
        (json!({"backup_id": backup, "mode": "everything"}), "`delete.mode` has a value that is not allowed"),
    ] {
        let mut body = job_body();
        (body["kind"], body["delete"]) = (json!("backup-delete"), part);
        let refusal = decode_job(&properties(Encoding::MessagePack), &msgpack(&body), &examples::host()).unwrap_err();
        let kind = Some(longshore::model::job::JobKind::BackupDelete);
        assert_eq!((refusal.code, refusal.kind), (Code::InvalidField, kind));
        assert!(refusal.text.starts_with(text), "{refusal}\n{text}");
    }
}

#[test]
fn a_missing_field_is_named_and_an_unknown_one_is_skipped() {
    for field in ["job_id", "run", "kind", "host", "instance", "repository", "backup"] {
        let mut body = job_body();
        body.as_object_mut().unwrap().remove(field);
        let refusal = decode_job(&properties(Encoding::MessagePack), &msgpack(&body), &examples::host()).unwrap_err();
        assert_eq!(refusal.code, Code::MalformedMessage);
        assert!(refusal.text.contains(&format!("`{field}`")), "{refusal}");
    }
    let mut body = job_body();
    body["from_v1_1"] = json!({"deep": [{"er": null}]});
    body["repository"]["zone"] = json!(7);
    let job = decode_job(&properties(Encoding::MessagePack), &msgpack(&body), &examples::host());
    assert_eq!(job, Ok(examples::job()));
}

#[test]
fn content_type_and_message_type_decide_before_the_body_is_looked_at() {
    let body = examples::body("longshore.job.v1", Encoding::Json);
    let refusal = |content_type: &str, message_type: &str| {
        let properties = Properties {
            content_type: content_type.to_owned(),
            message_type: message_type.to_owned(),
            ..Properties::default()
        };
        decode_job(&properties, &body, &examples::host()).map_err(|refusal| refusal.code)
    };
    for good in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\";v=1"] {
        assert_eq!(refusal(good, "longshore.job.v1"), Ok(examples::job()), "{good}");
    }
    for bad in ["", "text/plain", "application/cbor", "application/json; charset=latin-1", "json"] {
        assert_eq!(refusal(bad, "longshore.job.v1"), Err(Code::UnsupportedContentType), "{bad}");
    }
    for packed in ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack; v=5"] {
        assert_eq!(refusal(packed, "longshore.job.v1"), Err(Code::MalformedMessage), "{packed}");
    }
    for bad in ["", "longshore.job.v2", "longshore.event.started.v1", "job"] {
        assert_eq!(refusal("application/json", bad), Err(Code::UnsupportedVersion), "{bad}");
        assert_eq!(refusal("application/msgpack", bad), Err(Code::UnsupportedVersion), "{bad}");
    }
}

#[test]
fn a_body_that_breaks_off_still_says_whose_it_was() {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let body = examples::body("longshore.job.v1", encoding);
        let whole = body.len();
        for length in 0..whole {
            let refusal = decode_job(&properties(encoding), &body[..length], &examples::host()).unwrap_err();
            assert_eq!(refusal.code, Code::MalformedMessage);
            if length > whole / 2 {
                assert_eq!(refusal.job_id.unwrap().to_string(), examples::JOB_ID);
                assert_eq!(refusal.run, Some(1));
            }
        }
        let longer = [body.as_slice(), body.as_slice()].concat();
        let refusal = decode_job(&properties(encoding), &longer, &examples::host()).unwrap_err();
        assert_eq!(refusal.code, Code::MalformedMessage);
    }
}

#[test]
fn only_maps_with_names_are_read() {
    let positional = rmp_serde::to_vec(&longshore::message::JobMessage::from(&examples::job())).unwrap();
    let numbered = [0x81, 0x00, 0xa1, b'x'].to_vec();
    for body in [positional, numbered, vec![0xc0], vec![0xa1, b'x'], vec![]] {
        let refusal = decode_job(&properties(Encoding::MessagePack), &body, &examples::host()).unwrap_err();
        assert_eq!(refusal.code, Code::MalformedMessage, "{refusal}");
    }
    for body in ["[]", "null", "\"x\"", "7", "{\"run\":1,\"run\":1}"] {
        let refusal = decode_job(&properties(Encoding::Json), body.as_bytes(), &examples::host()).unwrap_err();
        assert_eq!(refusal.code, Code::MalformedMessage, "{refusal}");
    }
}

#[test]
fn size_and_depth_have_their_limits() {
    let deep = |levels: usize| (1..levels).fold(json!([]), |inner, _| json!([inner]));
    let mut body = job_body();
    body["extra"] = deep(31);
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let bytes = |body: &Value| match encoding {
            Encoding::Json => serde_json::to_vec(body).unwrap(),
            Encoding::MessagePack => msgpack(body),
        };
        assert!(decode_job(&properties(encoding), &bytes(&body), &examples::host()).is_ok());
        let mut deeper = body.clone();
        deeper["extra"] = deep(32);
        let refusal = decode_job(&properties(encoding), &bytes(&deeper), &examples::host()).unwrap_err();
        assert_eq!(refusal.code, Code::MessageTooLarge, "{refusal}");
        assert_eq!(refusal.text, "the body is nested deeper than 32 levels");

        let mut large = job_body();
        let room = 256 * 1024 - bytes(&large).len() - 32;
        large["extra"] = json!("x".repeat(room));
        assert!(decode_job(&properties(encoding), &bytes(&large), &examples::host()).is_ok());
        large["extra"] = json!("x".repeat(room + 32));
        let refusal = decode_job(&properties(encoding), &bytes(&large), &examples::host()).unwrap_err();
        assert_eq!(refusal.text, "the body is longer than 262144 bytes");
    }
    for bomb in
        [vec![0x91; 200_000], vec![0x81; 200_000], [b"{\"a\":".repeat(30_000), vec![]].concat(), vec![b'['; 200_000]]
    {
        for encoding in [Encoding::Json, Encoding::MessagePack] {
            assert!(decode_job(&properties(encoding), &bomb, &examples::host()).is_err());
        }
    }
}

#[test]
fn no_body_makes_the_search_for_secrets_take_long() {
    let patterns =
        ["1", "a-", ",", "a:,", "a:\" ", "//a:", "a=", "\"a\":", ": ", "\\u0061", "p", "a.a_", "user=", "= "];
    for pattern in patterns {
        let text = format!("{}\"@", pattern.repeat(250_000 / pattern.len()));
        let readable = serde_json::to_vec(&json!({"extra": text})).unwrap();
        for (body, content_type) in [(text.as_bytes(), "text/plain"), (&readable, "application/json")] {
            let begun = std::time::Instant::now();
            redact(body, content_type);
            let took = begun.elapsed();
            assert!(took < std::time::Duration::from_secs(20), "{pattern:?} took {took:?}");
        }
    }
}

fn virtual_memory_peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_length_that_is_only_claimed_takes_no_memory() {
    let before = virtual_memory_peak_kib();
    for marker in [0xdb, 0xc6, 0xdd, 0xdf, 0xc9] {
        let claimed = [&[marker][..], &[0xff; 4], b"x"].concat();
        for key in ["host", "labels", "extra", "backup"] {
            let inside = [&[0x81, 0xa0 + u8::try_from(key.len()).unwrap()][..], key.as_bytes(), &claimed].concat();
            for body in [&claimed, &inside] {
                assert!(decode_job(&properties(Encoding::MessagePack), body, &examples::host()).is_err());
                redact(body, Encoding::MessagePack.content_type());
            }
        }
    }
    let grown = virtual_memory_peak_kib() - before;
    assert!(grown < 1024 * 1024, "{grown} KiB for claims of 4 GiB");
}
