//! What the guest agent says, from libvirt's named values and the agent's own JSON. Pure.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::super::{FreezeStatus, GuestFileSystem, GuestInfo};
use super::raw::{Value, Values};
use crate::failure::{Code, Failure};

/// The agent's question for a sign of life.
pub(super) const PING: &str = r#"{"execute":"guest-ping"}"#;

/// The agent's question whether it is frozen, one of the few that it answers while it is.
pub(super) const FREEZE_STATUS: &str = r#"{"execute":"guest-fsfreeze-status"}"#;

/// Values that are kept: what identifies the guest's system, not who is logged in or its addresses.
const FACTS: [&str; 3] = ["os.", "timezone.", "hostname"];

/// Most facts and most file systems that are kept of what a guest says about itself.
const ENTRIES_MAX: usize = 1024;

/// Longest text that is kept of what a guest says about itself, characters.
const TEXT_CHARACTERS_MAX: usize = 1024;

/// Most bytes of texts that are kept of what a guest says about itself, for its facts and for its file systems each: the
/// record of it has to fit into one frame to the mover.
const TEXTS_BYTES_MAX: usize = 1024 * 1024;

/// Sorts libvirt's values into facts and file systems. The guest chose the texts, so their number, their length and the sum of
/// it are bounded; what is over is left out.
pub(super) fn guest_info(values: Values) -> GuestInfo {
    let values: BTreeMap<String, Value> = values.into_iter().collect();
    let facts = values
        .iter()
        .filter(|(name, _)| FACTS.iter().any(|fact| name.starts_with(fact)))
        .filter_map(|(name, value)| Some((name.clone(), text(value)?)))
        .take(ENTRIES_MAX)
        .scan(0, |sum, (name, text)| within_bytes(sum, name.len() + text.len()).then_some((name, text)))
        .collect();
    let file_systems = (0..count(&values, "fs.count"))
        .filter_map(|index| file_system(&values, index))
        .scan(0, |sum, found| within_bytes(sum, file_system_bytes(&found)).then_some(found))
        .collect();
    GuestInfo { facts, file_systems }
}

fn within_bytes(sum: &mut usize, more: usize) -> bool {
    *sum += more;
    *sum <= TEXTS_BYTES_MAX
}

fn file_system_bytes(found: &GuestFileSystem) -> usize {
    let disks: usize = found.disks.iter().map(|disk| disk.as_str().len()).sum();
    found.mount_point.len() + found.kind.len() + found.device.len() + disks
}

fn file_system(values: &BTreeMap<String, Value>, index: usize) -> Option<GuestFileSystem> {
    let get = |name: &str| values.get(&format!("fs.{index}.{name}")).and_then(text);
    let disks = (0..count(values, &format!("fs.{index}.disk.count")))
        .filter_map(|disk| get(&format!("disk.{disk}.alias"))?.parse().ok())
        .collect();
    Some(GuestFileSystem {
        mount_point: get("mountpoint")?,
        kind: get("fstype").unwrap_or_default(),
        device: get("name").unwrap_or_default(),
        disks,
    })
}

fn count(values: &BTreeMap<String, Value>, name: &str) -> usize {
    let count = match values.get(name) {
        Some(Value::Unsigned(count)) => usize::try_from(*count).unwrap_or(ENTRIES_MAX),
        Some(Value::Signed(count)) => usize::try_from(*count).unwrap_or(0),
        _ => 0,
    };
    count.min(ENTRIES_MAX)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.chars().take(TEXT_CHARACTERS_MAX).collect()),
        Value::Unsigned(number) => Some(number.to_string()),
        Value::Signed(number) => Some(number.to_string()),
        Value::Truth(truth) => Some(truth.to_string()),
        Value::Other => None,
    }
}

/// Reads the answer to [`FREEZE_STATUS`].
pub(super) fn freeze_status(answer: &str) -> Result<FreezeStatus, Failure> {
    let word =
        serde_json::from_str::<Json>(answer).ok().and_then(|json| Some(json.get("return")?.as_str()?.to_owned()));
    match word.as_deref() {
        Some("thawed") => Ok(FreezeStatus::Thawed),
        Some("frozen") => Ok(FreezeStatus::Frozen),
        _ => {
            let shown: String = answer.chars().take(200).flat_map(char::escape_debug).collect();
            Err(Failure::new(Code::AgentSilent, format!("the agent's answer `{shown}` says neither thawed nor frozen")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn value(name: &str, value: Value) -> (String, Value) {
        (name.to_owned(), value)
    }

    #[test]
    fn file_systems_are_read_with_the_disks_they_lie_on() {
        let info = guest_info(vec![
            value("os.id", Value::Text("debian".into())),
            value("user.0.name", Value::Text("alice".into())),
            value("fs.count", Value::Unsigned(2)),
            value("fs.0.mountpoint", Value::Text("/".into())),
            value("fs.0.fstype", Value::Text("ext4".into())),
            value("fs.0.name", Value::Text("vda1".into())),
            value("fs.0.disk.count", Value::Unsigned(2)),
            value("fs.0.disk.0.alias", Value::Text("vda".into())),
            value("fs.0.disk.1.alias", Value::Text("../x".into())),
        ]);
        assert_eq!(info.facts.keys().collect::<Vec<_>>(), ["os.id"], "who is logged in is nobody's business");
        assert_eq!(info.file_systems.len(), 1, "one of the two has no mount point");
        let root = info.file_systems.first().unwrap();
        assert_eq!((root.mount_point.as_str(), root.kind.as_str(), root.device.as_str()), ("/", "ext4", "vda1"));
        assert_eq!(root.disks, ["vda".parse().unwrap()]);
    }

    #[test]
    fn a_guest_that_lies_about_its_counts_is_bounded() {
        for count in [Value::Unsigned(u64::MAX), Value::Signed(-1)] {
            assert!(guest_info(vec![value("fs.count", count)]).file_systems.is_empty());
        }
    }

    #[test]
    fn a_guest_that_talks_without_end_is_cut_off() {
        let long = "x".repeat(TEXT_CHARACTERS_MAX * 2);
        let mut values = vec![value("fs.count", Value::Unsigned(ENTRIES_MAX as u64))];
        for index in 0..ENTRIES_MAX {
            for name in ["mountpoint", "fstype", "name"] {
                values.push(value(&format!("fs.{index}.{name}"), Value::Text(long.clone())));
            }
            values.push(value(&format!("os.{index}"), Value::Text(long.clone())));
        }
        let info = guest_info(values);
        assert!(!info.file_systems.is_empty() && !info.facts.is_empty());
        let bytes: usize = info.file_systems.iter().map(file_system_bytes).sum();
        let facts: usize = info.facts.values().map(String::len).sum();
        assert!(bytes <= TEXTS_BYTES_MAX && facts <= TEXTS_BYTES_MAX, "{bytes}, {facts}");
    }

    #[test]
    fn the_freeze_status_is_one_of_two_words() {
        assert_eq!(freeze_status(r#"{"return":"frozen"}"#).unwrap(), FreezeStatus::Frozen);
        assert_eq!(freeze_status(r#"{"return":"thawed"}"#).unwrap(), FreezeStatus::Thawed);
        assert_eq!(freeze_status(r#"{"return":"soon\u001b"}"#).unwrap_err().code, Code::AgentSilent);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(answer in ".{0,200}") {
            let _ = freeze_status(&answer);
        }
    }
}
