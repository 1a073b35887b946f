//! The first look at a body: is it well formed, and whose is it?
//!
//! Goes once through the bytes in their order, keeps nothing but the identity, and stops at the first fault. So a body
//! that breaks off in the middle still tells which job it was, and one that is too deep is given up before anything is
//! built from it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

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
}

/// Longest text that is kept of `kind` and `host`, bytes; longer ones are wrong anyhow.
const KEPT_BYTES_MAX: usize = 255;

/// Walks through a body; the identity gathers in the head also when it fails.
pub(super) struct Walk<'h> {
    /// Where the identity goes.
    pub head: &'h mut Head,
    /// Maps and arrays around the value that comes next.
    pub depth: usize,
    /// Deepest nesting allowed.
    pub depth_max: usize,
    /// The field of the outermost map that the value belongs to.
    pub field: Field,
}

/// The fields of the outermost map that matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// `job_id`.
    JobId,
    /// `run`.
    Run,
    /// `kind`.
    Kind,
    /// `host`.
    Host,
    /// Any other, and everything deeper.
    Other,
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Field, E> {
        Ok(match name {
            "job_id" => Field::JobId,
            "run" => Field::Run,
            "kind" => Field::Kind,
            "host" => Field::Host,
            _ => Field::Other,
        })
    }
}

impl Walk<'_> {
    fn inner(&mut self, field: Field) -> Walk<'_> {
        let field = if self.depth == 0 { field } else { Field::Other };
        Walk { head: self.head, depth: self.depth + 1, depth_max: self.depth_max, field }
    }

    fn enter<E: Error>(&mut self) -> Result<(), E> {
        if self.depth < self.depth_max {
            return Ok(());
        }
        self.head.too_deep = true;
        Err(E::custom(format_args!("nested deeper than {} levels", self.depth_max)))
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
        self.scalar()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        if self.field == Field::Run {
            self.head.run = u32::try_from(number).ok();
        }
        self.scalar()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let short = || (text.len() <= KEPT_BYTES_MAX).then(|| text.to_owned());
        match self.field {
            Field::JobId => self.head.job_id = text.parse().ok(),
            Field::Kind => self.head.kind = short(),
            Field::Host => self.head.host = short(),
            Field::Run | Field::Other => {}
        }
        self.scalar()
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }

    /// An extension type of MessagePack: a number and bytes, which no field of ours is.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.scalar()?;
        deserializer.deserialize_any(IgnoredAny).map(|_| ())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.scalar()?;
        self.enter()?;
        while items.next_element_seed(self.inner(Field::Other))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        self.enter()?;
        while let Some(field) = fields.next_key_seed(Key)? {
            fields.next_value_seed(self.inner(field))?;
        }
        Ok(())
    }
}
