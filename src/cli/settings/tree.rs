//! Settings as they were written, each with where it was written.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use toml::de::{DeArray, DeTable, DeValue};

use super::Problem;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Origin {
    Default,
    File {
        path: Arc<Path>,
        line: usize,
    },
    /// The name of the variable.
    Environment(Arc<str>),
    /// The flag, with its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One value, or a group of them.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub origin: Origin,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// From outside a file: the setting says which type it has.
    Raw(String),
}

impl Node {
    pub(super) fn empty() -> Self {
        Self { origin: Origin::Default, value: Value::Table(BTreeMap::new()) }
    }

    /// A value at the end of a path.
    pub(super) fn at(path: &[&str], text: &str, origin: Origin) -> Self {
        let leaf = Self { origin: origin.clone(), value: Value::Raw(text.to_owned()) };
        path.iter().rev().fold(leaf, |node, key| Self {
            origin: origin.clone(),
            value: Value::Table(BTreeMap::from([((*key).to_owned(), node)])),
        })
    }

    /// Lays `above` over this: what it sets wins, the rest stays.
    pub(super) fn merge(&mut self, above: Self, path: &str) -> Result<(), Problem> {
        match (&mut self.value, above.value) {
            (Value::Table(below), Value::Table(entries)) => {
                for (key, node) in entries {
                    let path = join(path, &key);
                    match below.get_mut(&key) {
                        Some(existing) => existing.merge(node, &path)?,
                        None => {
                            below.insert(key, node);
                        }
                    }
                }
            }
            (Value::Table(_), _) | (_, Value::Table(_)) => {
                let why =
                    format!("is a group of settings in one place and a value in another ({})", self.origin);
                return Err(Problem { path: path.to_owned(), origin: Some(above.origin), why });
            }
            (_, value) => *self = Self { origin: above.origin, value },
        }
        Ok(())
    }

    /// The origin of every value below this, by its path.
    pub(super) fn origins(&self, path: &str, into: &mut BTreeMap<String, Origin>) {
        match &self.value {
            Value::Table(entries) => {
                entries.iter().for_each(|(key, node)| node.origins(&join(path, key), into));
            }
            _ => {
                into.insert(path.to_owned(), self.origin.clone());
            }
        }
    }
}

/// Reads a TOML document.
pub(super) fn parse(path: &Path, text: &str) -> Result<Node, toml::de::Error> {
    let file = File { path: path.into(), text };
    let table = DeTable::parse(text)?;
    Ok(Node { origin: file.origin(0), value: file.table(table.get_ref()) })
}

struct File<'a> {
    path: Arc<Path>,
    text: &'a str,
}

impl File<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        Origin::File { path: self.path.clone(), line: 1 + before.iter().filter(|b| **b == b'\n').count() }
    }

    fn table(&self, table: &DeTable<'_>) -> Value {
        let entries = table.iter().map(|(key, value)| {
            let node = Node { origin: self.origin(key.span().start), value: self.value(value.get_ref()) };
            (key.get_ref().clone().into_owned(), node)
        });
        Value::Table(entries.collect())
    }

    fn list(&self, array: &DeArray<'_>) -> Value {
        let nodes = array.iter();
        Value::List(
            nodes
                .map(|v| Node { origin: self.origin(v.span().start), value: self.value(v.get_ref()) })
                .collect(),
        )
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::Table(table) => self.table(table),
            DeValue::Array(array) => self.list(array),
            DeValue::Boolean(bool) => Value::Bool(*bool),
            DeValue::String(text) => Value::Text(text.clone().into_owned()),
            DeValue::Integer(int) => match i64::from_str_radix(int.as_str(), int.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Text(int.to_string()),
            },
            DeValue::Float(float) => match float.as_str().parse() {
                Ok(number) => Value::Float(number),
                Err(_) => Value::Text(float.to_string()),
            },
            DeValue::Datetime(time) => Value::Text(time.to_string()),
        }
    }
}

/// `path.key`, as a TOML key: quoted where it must be.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
