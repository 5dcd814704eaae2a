//! The settings of a server from their four layers: default < file < environment < flag.

mod decode;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod tree;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Serialize;

use self::tree::Node;
pub(super) use self::tree::Origin;
use crate::config::Config;

const PREFIX: &str = "JOBWIRE_";
/// Variables of the command line itself.
const NOT_SETTINGS: [&str; 3] = ["JOBWIRE_CONFIG", "JOBWIRE_LOG", "JOBWIRE_SERVER"];

/// The short form of JOBWIRE_STORE__URL.
const STORE: &str = "JOBWIRE_STORE";

/// Where settings are read from, apart from the environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Sources {
    /// TOML file with settings; `jobwire config show` prints all there are
    #[arg(long, env = "JOBWIRE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to serve on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Directory of the store, created if it is not there
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// PostgreSQL database to keep jobs in, shared with other replicas, instead of a directory [env: JOBWIRE_STORE]
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
    /// Serve on an address that other machines reach, although nothing is encrypted and nobody is asked who they are
    #[arg(long)]
    pub insecure_allow_remote: bool,
}

/// Settings that passed every check, and where each comes from.
#[derive(Debug)]
pub(super) struct Settings {
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

/// One setting as it holds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// The path of keys, as in the file.
    pub key: String,
    pub value: toml::Value,
    pub source: String,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not TOML: {source}", path.display())]
    Syntax { path: PathBuf, source: toml::de::Error },
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

/// What is wrong with one setting.
#[derive(Debug)]
pub(super) struct Problem {
    pub path: String,
    pub origin: Option<Origin>,
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "`{}` ", self.path)?;
        }
        f.write_str(&self.why)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Invalid(vec![problem])
    }
}

impl Settings {
    /// Reads and checks all layers.
    pub(super) fn load(
        sources: &Sources,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut tree = Node::empty();
        if let Some(path) = &sources.config {
            tree = read(path)?;
        }
        for (name, value) in environment {
            if let Some(node) = variable(&name, &value)? {
                tree.merge(node, "")?;
            }
        }
        for node in sources.flags() {
            tree.merge(node, "")?;
        }
        Self::of(tree)
    }

    /// Checks what all layers together say.
    fn of(tree: Node) -> Result<Self, Error> {
        let mut origins = BTreeMap::new();
        tree.origins("", &mut origins);
        let config: Config = decode::decode(&tree)?;
        refuse_two_stores(&origins)?;
        config.validate().map_err(|invalid| {
            let locate = |key: &str| {
                // Of an item, where its list comes from; of a group, where the first of its values does.
                let key = key.rsplit_once('[').filter(|_| key.ends_with(']')).map_or(key, |(list, _)| list);
                let inside = |path: &str| path.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
                origins
                    .iter()
                    .find(|(path, _)| *path == key || inside(path))
                    .map(|(_, origin)| origin.clone())
            };
            let problem = |e: crate::config::InvalidSetting| Problem {
                origin: locate(&e.key),
                path: e.key,
                why: e.why,
            };
            Error::Invalid(invalid.0.into_iter().map(problem).collect())
        })?;
        Ok(Self { config, origins })
    }

    /// Every setting with its value and where it comes from.
    pub(super) fn rows(&self) -> Result<Vec<Row>, toml::ser::Error> {
        let mut rows = Vec::new();
        self.collect("", &toml::Value::try_from(&self.config)?, &mut rows);
        Ok(rows)
    }

    fn collect(&self, path: &str, value: &toml::Value, rows: &mut Vec<Row>) {
        if let toml::Value::Table(table) = value {
            return table.iter().for_each(|(key, value)| self.collect(&tree::join(path, key), value, rows));
        }
        let source = self.origins.get(path).unwrap_or(&Origin::Default).to_string();
        rows.push(Row { key: path.to_owned(), value: value.clone(), source });
    }
}

impl Sources {
    fn flags(&self) -> impl Iterator<Item = Node> {
        let listen = self.listen.as_ref().map(|text| Node::at(&["listen"], text, Origin::Flag("--listen")));
        let data = self.data.as_ref().map(|text| Node::at(&["data"], text, Origin::Flag("--data")));
        let store = self.store.as_ref();
        let store = store.map(|url| Node::at(&["store", "url"], url, Origin::Flag("--store")));
        let remote = self
            .insecure_allow_remote
            .then(|| Node::at(&["insecure_allow_remote"], "true", Origin::Flag("--insecure-allow-remote")));
        [listen, data, store, remote].into_iter().flatten()
    }
}

fn read(path: &Path) -> Result<Node, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    tree::parse(path, &text).map_err(|source| Error::Syntax { path: path.to_owned(), source })
}

/// `JOBWIRE_LIMITS__MAX_WAIT=30s` is `limits.max_wait`.
fn variable(name: &OsString, value: &OsString) -> Result<Option<Node>, Problem> {
    let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { return Ok(None) };
    if NOT_SETTINGS.contains(&name) || is_of_kubernetes(name, value) {
        return Ok(None);
    }
    let origin = Origin::Environment(Arc::from(name));
    let path = name.trim_start_matches(PREFIX).to_lowercase();
    let path = if name == STORE { "store__url".to_owned() } else { path };
    let Some(value) = value.to_str() else {
        return Err(Problem { path, origin: Some(origin), why: "is not UTF-8".to_owned() });
    };
    Ok(Some(Node::at(&path.split("__").collect::<Vec<_>>(), value, origin)))
}

/// Whether Kubernetes tells by it where a service is, one that is called `jobwire` or `jobwire-…`. Settings in groups have
/// `__` in their names, and others are not called so.
fn is_of_kubernetes(name: &str, value: &OsStr) -> bool {
    let is_url = || value.to_string_lossy().contains("://");
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.contains("_PORT_")
            || name.ends_with("_PORT") && is_url())
}

/// A flag that names a directory is not passed over in silence because a database was named before.
fn refuse_two_stores(origins: &BTreeMap<String, Origin>) -> Result<(), Error> {
    let (Some(flag @ Origin::Flag(_)), Some(database)) = (origins.get("data"), origins.get("store.url"))
    else {
        return Ok(());
    };
    if matches!(database, Origin::Flag(_)) {
        return Ok(());
    }
    let why =
        format!("jobs are kept in the database that is named by {database}: take that away, or the flag");
    Err(Problem { path: String::new(), origin: Some(flag.clone()), why }.into())
}

#[cfg(test)]
mod tests;
