//! The first look at a body: is it well formed, and whose is it?
//!
//! Goes once through the bytes in their order, keeps nothing but the identity, and stops at the first fault. So a body
//! that breaks off in the middle still tells which job it was, and one that is too deep is given up before anything is
//! built from it. It also sees every field that could hold a secret, known or not, and each one of those that are there
//! twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::secret::Rule;
use crate::model::id::JobId;

/// What a body says of itself, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// `job_id`, if it is one.
    pub job_id: Option<JobId>,
    /// `run`, if it is a number that can be one.
    pub run: Option<u32>,
    /// `kind`, if it is a text.
    pub kind: Option<String>,
    /// `host`, if it is a text.
    pub host: Option<String>,
    /// The walk met maps and arrays nested deeper than allowed.
    pub too_deep: bool,
    /// Path of the first field that holds a secret.
    pub secret: Option<String>,
}

/// Longest text that is kept of `kind` and `host`, bytes; longer ones are wrong anyhow.
const KEPT_BYTES_MAX: usize = 255;

/// Walks through a body; the identity gathers in the head also when it fails.
pub(super) struct Walk<'h> {
    head: &'h mut Head,
    /// Maps and arrays around the value that comes next.
    depth: usize,
    depth_max: usize,
    place: Place<'h>,
    rule: Rule,
}

/// Where a value stands: the outermost one, or a field and what is around it.
#[derive(Clone, Copy)]
struct Place<'p> {
    around: Option<&'p Place<'p>>,
    name: &'p str,
}

impl Place<'_> {
    fn path(&self) -> String {
        match self.around {
            Some(around) if around.around.is_some() => format!("{}.{}", around.path(), self.name),
            _ => self.name.to_owned(),
        }
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        Ok(name.to_owned())
    }
}

impl<'h> Walk<'h> {
    /// A walk that tells the head what it meets and goes no deeper than `depth_max`.
    pub fn new(head: &'h mut Head, depth_max: usize) -> Self {
        Self { head, depth: 0, depth_max, place: Place { around: None, name: "" }, rule: Rule::Outermost }
    }

    fn field<'a>(&'a mut self, name: &'a str) -> Walk<'a> {
        let place = Place { around: Some(&self.place), name };
        Walk {
            head: self.head,
            depth: self.depth + 1,
            depth_max: self.depth_max,
            place,
            rule: self.rule.of_field(name),
        }
    }

    fn item(&mut self) -> Walk<'_> {
        let (depth, rule) = (self.depth + 1, self.rule.of_item());
        Walk { head: self.head, depth, depth_max: self.depth_max, place: self.place, rule }
    }

    /// The name of the field, if it is one of the outermost map.
    fn outer_field(&self) -> Option<&str> {
        (self.depth == 1).then_some(self.place.name)
    }

    fn enter<E: Error>(&mut self) -> Result<(), E> {
        if self.rule == Rule::Secret {
            self.note_secret();
        }
        if self.depth < self.depth_max {
            return Ok(());
        }
        self.head.too_deep = true;
        Err(E::custom(format_args!("nested deeper than {} levels", self.depth_max)))
    }

    fn note_secret(&mut self) {
        let place = &self.place;
        self.head.secret.get_or_insert_with(|| place.path());
    }

    fn text<E: Error>(mut self, text: &str) -> Result<(), E> {
        if self.rule.start_in(text).is_some() {
            self.note_secret();
        }
        self.scalar()
    }

    fn other<E: Error>(mut self, null: bool) -> Result<(), E> {
        if self.rule.forbids_other(null) {
            self.note_secret();
        }
        self.scalar()
    }

    fn scalar<E: Error>(&self) -> Result<(), E> {
        if self.depth > 0 { Ok(()) } else { Err(E::custom("the body is no map of named fields")) }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.other(false)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.other(false)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        if self.outer_field() == Some("run") {
            self.head.run = u32::try_from(number).ok();
        }
        self.other(false)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.other(false)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let short = || (text.len() <= KEPT_BYTES_MAX).then(|| text.to_owned());
        match self.outer_field() {
            Some("job_id") => self.head.job_id = text.parse().ok(),
            Some("kind") => self.head.kind = short(),
            Some("host") => self.head.host = short(),
            _ => {}
        }
        self.text(text)
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<(), E> {
        self.text(&String::from_utf8_lossy(bytes))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.other(true)
    }

    /// An extension type of MessagePack, which no field of ours is: an array of a number and bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.scalar()?;
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.scalar()?;
        self.enter()?;
        while items.next_element_seed(self.item())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.enter()?;
        while let Some(name) = fields.next_key_seed(Key)? {
            if self.rule.forbids_name(&name) {
                self.note_secret();
            }
            fields.next_value_seed(self.field(&name))?;
        }
        Ok(())
    }
}
