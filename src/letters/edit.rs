//! A change to a job before it is replayed: one field, by its path, is given another value or taken away.

use std::str::FromStr;

use serde_json::{Map, Value};

/// Fields that say whose job it is: other things decide them. The credentials are sealed anew, or refer to another file, and never
/// come along as text.
const LOCKED: [&str; 5] = ["/job_id", "/run", "/host", "/kind", "/repository/credentials"];

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is none.
    #[error("`{0}` is no `path=value`")]
    NoPair(String),
    /// The field is not for editing.
    #[error(
        "`{0}` cannot be set: `--to-host`, `--as-run`, `--credentials` and `--seal-credentials` are for that, and a job of another kind is another job"
    )]
    Locked(String),
    /// A part of the way there is a value and no map.
    #[error("there is no field `{0}` in the job")]
    NoSuchField(String),
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    path: Vec<String>,
    /// None takes the field away.
    value: Option<Value>,
}

impl FromStr for Edit {
    type Err = EditError;

    /// `path=value`: the path in words with dots between, or as a JSON pointer; the value is JSON, or else a text; `null` takes the
    /// field away.
    fn from_str(text: &str) -> Result<Self, EditError> {
        let (path, value) = text.split_once('=').ok_or_else(|| EditError::NoPair(text.to_owned()))?;
        let parts: Vec<String> = match path.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect(),
            None => path.split('.').map(str::to_owned).collect(),
        };
        if parts.iter().any(String::is_empty) {
            return Err(EditError::NoPair(text.to_owned()));
        }
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        let edit = Self { path: parts, value: (!value.is_null()).then_some(value) };
        let pointer = edit.pointer();
        let locked = |field: &&str| pointer == **field || pointer.starts_with(&format!("{field}/"));
        match LOCKED.iter().find(|field| locked(field)) {
            // A map in place of the repository would bring credentials with it.
            None if pointer != "/repository" => Ok(edit),
            _ => Err(EditError::Locked(edit.shown())),
        }
    }
}

impl Edit {
    /// The path as a JSON pointer.
    pub fn pointer(&self) -> String {
        self.path.iter().map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1"))).collect()
    }

    /// The path for people.
    pub fn shown(&self) -> String {
        self.path.join(".")
    }

    /// The value; none takes the field away.
    pub fn value(&self) -> Option<&Value> {
        self.value.as_ref()
    }

    /// Makes the change. Maps on the way are made where there is nothing.
    ///
    /// # Errors
    /// Something on the way is no map.
    pub fn apply(&self, fields: &mut Value) -> Result<(), EditError> {
        let nowhere = || EditError::NoSuchField(self.shown());
        let (last, way) = self.path.split_last().ok_or_else(nowhere)?;
        let mut map = fields.as_object_mut().ok_or_else(nowhere)?;
        for part in way {
            let next = map.entry(part).or_insert_with(|| Value::Object(Map::new()));
            map = next.as_object_mut().ok_or_else(nowhere)?;
        }
        match &self.value {
            Some(value) => drop(map.insert(last.clone(), value.clone())),
            None => drop(map.remove(last)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn edited(edits: &[&str]) -> Value {
        let mut job = json!({ "job_id": "x", "backup": { "quiesce": "off" }, "labels": { "a.b": "1" } });
        for edit in edits {
            edit.parse::<Edit>().unwrap().apply(&mut job).unwrap();
        }
        job
    }

    #[test]
    fn a_field_gets_another_value_of_its_type_or_goes() {
        let job = edited(&["backup.quiesce=require", "deadline_seconds=60", "retry.attempts=5", "/labels/a.b=null"]);
        assert_eq!(
            job,
            json!({
                "job_id": "x", "backup": { "quiesce": "require" }, "labels": {}, "deadline_seconds": 60,
                "retry": { "attempts": 5 },
            })
        );
    }

    #[test]
    fn what_says_whose_job_it_is_cannot_be_set() {
        for text in [
            "job_id=1",
            "run=4",
            "host=kvm-08",
            "kind=restore",
            "repository.credentials.reference=x",
            "/repository/credentials=null",
            "repository={}",
        ] {
            assert!(matches!(text.parse::<Edit>(), Err(EditError::Locked(_))), "{text}");
        }
        for text in ["", "=1", "backup", "backup..x=1", "/=1"] {
            assert!(matches!(text.parse::<Edit>(), Err(EditError::NoPair(_))), "{text}");
        }
    }

    #[test]
    fn a_value_holds_no_fields() {
        let mut job = json!({ "deadline_seconds": 60 });
        let edit: Edit = "deadline_seconds.x=1".parse().unwrap();
        assert_eq!(edit.apply(&mut job), Err(EditError::NoSuchField("deadline_seconds.x".to_owned())));
    }
}
