//! From a tree of values to a typed structure, with errors that know the path and the origin.

use std::fmt;

use serde::{
    de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer as _, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};

use super::{
    Problem,
    tree::{Node, Origin, Value, join},
};

/// How many letters may differ for a name to be suggested.
const MAX_DISTANCE: usize = 3;

pub(super) fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, Problem> {
    T::deserialize(Decoder { node, path: String::new() }).map_err(Failed::into_problem)
}

struct Decoder<'a> {
    node: &'a Node,
    path: String,
}

/// An error on its way up to the first place that knows where it happened.
#[derive(Debug)]
struct Failed {
    why: Why,
    place: Option<(String, Origin)>,
}

#[derive(Debug)]
enum Why {
    Message(String),
    Unknown(&'static [&'static str]),
}

impl Failed {
    fn because(message: String) -> Self {
        Self { why: Why::Message(message), place: None }
    }

    fn at(mut self, path: &str, origin: &Origin) -> Self {
        self.place.get_or_insert_with(|| (path.to_owned(), origin.clone()));
        self
    }

    fn into_problem(self) -> Problem {
        let (path, origin) = self.place.unzip();
        let path = path.unwrap_or_default();
        let why = match self.why {
            Why::Message(message) => message,
            Why::Unknown(known) => unknown(&path, origin.as_ref(), known),
        };
        Problem { path, origin, why }
    }
}

/// What to say of a key that no setting has.
fn unknown(path: &str, origin: Option<&Origin>, known: &[&str]) -> String {
    let (parents, key) = path.rsplit_once('.').unwrap_or(("", path));
    let closest = known.iter().min_by_key(|name| strsim::levenshtein(name, key));
    match closest.filter(|name| strsim::levenshtein(name, key) <= MAX_DISTANCE) {
        Some(name) => {
            let full = join(parents, name);
            let meant = match origin {
                Some(Origin::Environment(_)) => {
                    format!("JOBWIRE_{}", full.replace('.', "__").to_uppercase())
                }
                _ => full,
            };
            format!("is not a setting; did you mean `{meant}`?")
        }
        None => format!("is not a setting; there are {}", known.join(", ")),
    }
}

impl de::Error for Failed {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::because(format!("cannot be read: {message}"))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::because(format!("is {found}, but must be {expected}"))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self { why: Why::Unknown(known), place: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::because(format!("lacks `{field}`"))
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::Message(message) => f.write_str(message),
            Why::Unknown(_) => f.write_str("unknown setting"),
        }
    }
}

impl std::error::Error for Failed {}

impl Decoder<'_> {
    /// Runs a visitor on text whose type the setting decides.
    fn parsed<T: std::str::FromStr, R>(
        &self,
        text: &str,
        what: &str,
        visit: impl FnOnce(T) -> Result<R, Failed>,
    ) -> Result<R, Failed> {
        let value = text.parse().map_err(|_| Failed::because(format!("is `{text}`, but must be {what}")));
        value.and_then(visit).map_err(|error: Failed| error.at(&self.path, &self.node.origin))
    }
}

macro_rules! whole_numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
            match &self.node.value {
                Value::Raw(text) => self.parsed(text, "a whole number", |n| visitor.visit_i64(n)),
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Decoder<'_> {
    type Error = Failed;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        let result = match &self.node.value {
            Value::Table(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), path: &self.path, next: None })
            }
            Value::List(items) => {
                visitor.visit_seq(Items { items: items.iter(), path: &self.path, index: 0 })
            }
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) | Value::Raw(text) => visitor.visit_str(text),
        };
        result.map_err(|error| error.at(&self.path, &self.node.origin))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.value {
            Value::Raw(text) => self.parsed(text, "true or false", |b| visitor.visit_bool(b)),
            _ => self.deserialize_any(visitor),
        }
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        match &self.node.value {
            Value::Raw(text) => self.parsed(text, "a number", |n| visitor.visit_f64(n)),
            _ => self.deserialize_any(visitor),
        }
    }

    /// Outside a file, a list is written with commas.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        let Value::Raw(text) = &self.node.value else { return self.deserialize_any(visitor) };
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let origin = &self.node.origin;
        let items = parts.map(|part| Node { origin: origin.clone(), value: Value::Raw(part.to_owned()) });
        let list = Node { origin: origin.clone(), value: Value::List(items.collect()) };
        Decoder { node: &list, path: self.path }.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failed> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failed> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

struct Entries<'a> {
    entries: std::collections::btree_map::Iter<'a, String, Node>,
    path: &'a str,
    next: Option<(String, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Failed;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Failed> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        let path = join(self.path, key);
        let key = seed.deserialize(key.as_str().into_deserializer());
        let key = key.map_err(|error: Failed| error.at(&path, &node.origin))?;
        self.next = Some((path, node));
        Ok(Some(key))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failed> {
        let Some((path, node)) = self.next.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        let place = path.clone();
        // The visitor of a type that reads its text itself fails outside of the decoder.
        seed.deserialize(Decoder { node, path }).map_err(|error| error.at(&place, &node.origin))
    }
}

struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    path: &'a str,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failed;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failed> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.path, self.index);
        self.index += 1;
        let place = path.clone();
        seed.deserialize(Decoder { node, path }).map(Some).map_err(|error| error.at(&place, &node.origin))
    }
}
