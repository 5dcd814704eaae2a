//! Opening: migrations, and what the server's settings promise.

use std::{fmt, io};

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use super::{link::Link, pool::SESSION};
use crate::store::LogId;

/// Each takes the schema one version further. Never edit one that was released: add the next.
const MIGRATIONS: [&str; 1] = [include_str!("sql/schema_1.sql")];

const SETTINGS: &str = include_str!("sql/settings.sql");
const GRANTS: &str = include_str!("sql/grants.sql");

/// The oldest server that will do.
const OLDEST: i32 = 14;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the URL of the store is not one of PostgreSQL's: {}", reason(.0))]
    Url(#[source] tokio_postgres::Error),
    #[error("cannot use the database: {}", reason(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("cannot use the database: {0}")]
    Store(crate::job::Error),
    #[error(
        "the database has schema {found} of jobwire, this one knows {}: use the newer jobwire that wrote it",
        MIGRATIONS.len()
    )]
    Newer { found: i32 },
    #[error("the server is PostgreSQL {0}: jobwire needs {OLDEST} or later")]
    Old(i32),
    #[error("the database has the encoding {0}: jobwire needs UTF8")]
    Encoding(String),
    #[error(
        "there is no schema that the role may use: create the one that search_path names, or grant usage on it"
    )]
    NoSchema,
    #[error(
        "the server takes no writes: it is a standby, or default_transaction_read_only is on. Name the primary, or all hosts \
         in one URL: postgres://USER@HOST1,HOST2/DATABASE finds it"
    )]
    ReadOnly,
    #[error(
        "a pooler hands the sessions of this connection around (pgbouncer with pool_mode = transaction, or the like), and \
         with them locks, listeners and settings: use pool_mode = session, or the address of the database itself"
    )]
    Pooled,
    #[error(
        "the database has schema {found} of jobwire, this one needs {}, and the role {role} may not create tables: let their \
         owner run `jobwire migrate --to postgres://…` first",
        MIGRATIONS.len()
    )]
    MayNotMigrate { found: i32, role: String },
    #[error("the role {role} may not {missing}: let the owner of the tables grant it, see docs/scaling.md")]
    NotGranted { role: String, missing: String },
    #[error(
        "the schema {schema} holds a jobwire store already, and nothing was taken over: name an empty database, or an \
         empty schema as in postgres://…/DATABASE?options=-csearch_path%3DSCHEMA"
    )]
    NotEmpty { schema: String },
    #[error(
        "the schema {schema} holds no jobwire store: name the role that serves, or the schema as in \
         postgres://…/DATABASE?options=-csearch_path%3DSCHEMA; what was restored may lie in another one"
    )]
    NoStore { schema: String },
    #[error(
        "a store was being taken over into the database, and that has not ended: run the same `jobwire migrate` again, or \
         use an empty database"
    )]
    Unfinished,
    #[error("a store is being taken over into the database at this moment: wait until that has ended")]
    Underway,
    #[error("TLS to the database: {0}")]
    Tls(String),
    #[error(
        "the database has failed over, or its log was begun anew: it is opened again, try again in a moment"
    )]
    Moved,
    #[error("servers use the database ({servers}): stop them first, and start them again afterwards")]
    InUse { servers: i64 },
    #[error(
        "the server that answers is not the primary any more: it knows nothing of the newest failover. Stop it; if it was \
         restored on purpose, restart jobwire"
    )]
    Outdated,
    #[error("the system has no random numbers")]
    NoRandomness,
}

impl OpenError {
    /// Whether it may be different in a moment: the server cannot be reached, starts, has no connection to give, or somebody
    /// holds a lock.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Postgres(error) => match error.code() {
                Some(state) => {
                    ["08", "53", "55P03", "57P"].iter().any(|class| state.code().starts_with(class))
                }
                None => {
                    let cause = std::error::Error::source(error);
                    let io = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
                    // What TLS has against a certificate stays so.
                    error.is_closed() || io.is_some_and(|io| io.kind() != io::ErrorKind::InvalidData)
                }
            },
            Self::Moved => true,
            Self::Store(error) => matches!(error, crate::job::Error::StoreUnavailable(_)),
            // A standby may be the primary in a moment.
            Self::ReadOnly => true,
            _ => false,
        }
    }

    /// Whether the server has said no, so that it is known that nothing was done. It has not where it only takes its leave:
    /// then what it was at may have been done.
    pub fn is_refusal(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        error.code().is_some_and(|state| !["08", "57"].iter().any(|class| state.code().starts_with(class)))
    }
}

/// What the server says, which the library keeps for itself.
fn reason(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(told), _) if *told.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            format!("{}; docs/scaling.md lists what a role needs", told.message())
        }
        (Some(told), _) => told.message().to_owned(),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// A connection of its own to the database of a URL, driven until its client is dropped.
///
/// # Errors
/// The database cannot be reached.
pub async fn connect(url: &str) -> Result<Client, OpenError> {
    connect_with(&Link::of(url)?).await
}

/// The same with settings that are known.
pub async fn connect_with(link: &Link) -> Result<Client, OpenError> {
    let (client, _) = link.connect_driven().await.map_err(unreachable)?;
    client.batch_execute(SESSION).await?;
    Ok(client)
}

fn unreachable(error: tokio_postgres::Error) -> OpenError {
    let io = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    // The library's own word for a server that is not the primary: no call of the system has failed.
    match io {
        Some(io) if io.kind() == io::ErrorKind::PermissionDenied && io.raw_os_error().is_none() => {
            OpenError::ReadOnly
        }
        _ => error.into(),
    }
}

/// The first session with a database, which will do.
///
/// # Errors
/// It cannot be reached, or will not do.
pub async fn open(link: &Link) -> Result<(Client, Durability), OpenError> {
    let client = connect_with(link).await?;
    refuse_pooler(link, &client).await?;
    let durability = check(&client).await?;
    Ok((client, durability))
}

/// Brings the schema of a database up to date. Answers with its version.
///
/// # Errors
/// The database cannot be used, its schema is of a later version, or the role may not change it.
pub async fn migrate_schema(url: &str) -> Result<usize, OpenError> {
    let (client, _) = open(&Link::of(url)?).await?;
    migrate(&client).await?;
    Ok(MIGRATIONS.len())
}

/// What an acknowledgement is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Written by the primary and by a synchronous standby.
    Replicated,
    /// Written by the primary alone.
    Synced,
    /// `synchronous_commit` is off: the last moments may be lost with the server.
    Asynchronous,
    /// `fsync` or `full_page_writes` is off: everything may be lost with the power.
    Unsafe,
}

impl Durability {
    /// Of whether data is synced, commits wait for it, and a standby is named that they wait for too.
    pub(super) fn of(is_safe: bool, is_synchronous: bool, has_standby: bool) -> Self {
        match (is_safe, is_synchronous, has_standby) {
            (false, _, _) => Self::Unsafe,
            (true, false, _) => Self::Asynchronous,
            (true, true, true) => Self::Replicated,
            (true, true, false) => Self::Synced,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replicated => {
                "every acknowledgement is synced, here and by a synchronous standby: it outlives the loss of one of them"
            }
            Self::Synced => {
                "every acknowledgement is synced, but by no synchronous standby: with the server's disk all is lost, \
                 and after a failover the last moments may be"
            }
            Self::Asynchronous => {
                "synchronous_commit is off: what was acknowledged in the last moments may be lost with the server"
            }
            Self::Unsafe => {
                "fsync or full_page_writes is off: with the power everything may be lost, acknowledged or not"
            }
        })
    }
}

/// Checks the server.
///
/// # Errors
/// It will not do at all.
pub async fn check(client: &Client) -> Result<Durability, OpenError> {
    let row = client.query_one(SETTINGS, &[]).await?;
    let (version, encoding): (i32, String) = (row.get("version"), row.get("encoding"));
    if version < OLDEST {
        return Err(OpenError::Old(version));
    }
    if encoding != "UTF8" {
        return Err(OpenError::Encoding(encoding));
    }
    if row.get::<_, Option<&str>>("schema").is_none() {
        return Err(OpenError::NoSchema);
    }
    Ok(Durability::of(row.get("is_safe"), row.get("is_synchronous"), row.get("has_standby")))
}

/// Whether what is said to the server is encrypted.
pub async fn is_encrypted(client: &Client) -> Result<bool, OpenError> {
    let row = client.query_opt("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[]).await?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// Refuses a connection whose statements do not all reach one and the same session, which is not that of any other.
pub async fn refuse_pooler(link: &Link, client: &Client) -> Result<(), OpenError> {
    let other = connect_with(link).await?;
    let first = session(client).await?;
    for _ in 0..3 {
        // A transaction keeps the other from giving its session away.
        other.batch_execute("begin").await.map_err(|error| match error.code() {
            // One that hands sessions around after every statement allows none.
            Some(code) if *code == SqlState::PROTOCOL_VIOLATION => OpenError::Pooled,
            _ => error.into(),
        })?;
        let (here, there) = (session(client).await?, session(&other).await?);
        other.batch_execute("commit").await?;
        if here != first || here == there {
            return Err(OpenError::Pooled);
        }
    }
    Ok(())
}

/// The process that serves a statement. Asked without a prepared one: a pooler may lose those.
async fn session(client: &Client) -> Result<Option<String>, OpenError> {
    let told = client.simple_query("select pg_backend_pid()").await?;
    Ok(told.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Brings the schema up to date. Replicas that start together do it one after the other.
///
/// # Errors
/// It is of a later version, the role may not, or another store is being taken over.
pub async fn migrate(client: &Client) -> Result<(), OpenError> {
    refuse_underway(client).await?;
    if in_turn(client, migrate_alone(client)).await? < 0 { Err(OpenError::Unfinished) } else { Ok(()) }
}

/// # Errors
/// [`OpenError::NoStore`].
pub async fn refuse_empty(client: &Client) -> Result<(), OpenError> {
    if version(client).await? != 0 {
        return Ok(());
    }
    Err(OpenError::NoStore { schema: client.query_one("select current_schema()::text", &[]).await?.get(0) })
}

/// Whoever takes a store over has the turn for as long as that lasts, also where its commit still waits for a standby.
///
/// # Errors
/// [`OpenError::Underway`].
pub async fn refuse_underway(client: &Client) -> Result<(), OpenError> {
    let is_over =
        format!("select case when pg_try_advisory_lock{TURN} then pg_advisory_unlock{TURN} else false end");
    if version(client).await? < 0 && !client.query_one(&is_over, &[]).await?.get::<_, bool>(0) {
        return Err(OpenError::Underway);
    }
    Ok(())
}

/// The lock of those who change the schema.
const TURN: &str = "(hashtext('jobwire'), hashtext(current_schema))";

/// Does something in one's turn. If it fails the session is of no more use, and has the turn until it ends.
async fn in_turn<T>(
    client: &Client,
    work: impl Future<Output = Result<T, OpenError>>,
) -> Result<T, OpenError> {
    take_turn(client).await?;
    let done = work.await?;
    client.batch_execute(&format!("select pg_advisory_unlock{TURN}")).await?;
    Ok(done)
}

/// Waits for the turn, and has it until the session ends.
pub async fn take_turn(client: &Client) -> Result<(), OpenError> {
    Ok(client.batch_execute(&format!("select pg_advisory_lock{TURN}")).await?)
}

pub const BEGIN_IMPORT: &str = "update jobwire set version = -abs(version)";
pub const END_IMPORT: &str = "update jobwire set version = abs(version)";

/// How many of the migrations the database has seen. Negative while a store is being taken over: then nobody serves.
async fn version(client: &Client) -> Result<i32, OpenError> {
    let is_new: bool = client.query_one("select to_regclass('jobwire') is null", &[]).await?.get(0);
    Ok(match is_new {
        true => 0,
        false => client.query_one("select version from jobwire", &[]).await?.get(0),
    })
}

/// Brings the schema up to date, in one's turn. Answers with the version before.
pub async fn migrate_alone(client: &Client) -> Result<i32, OpenError> {
    let found = version(client).await?;
    let done = usize::try_from(found.unsigned_abs()).ok().filter(|&done| done <= MIGRATIONS.len());
    let done = done.ok_or(OpenError::Newer { found })?;
    let due = MIGRATIONS.iter().enumerate().skip(done);
    if due.len() > 0 {
        let may = "select has_schema_privilege(current_schema, 'create'), current_user::text";
        let row = client.query_one(may, &[]).await?;
        if !row.get::<_, bool>(0) {
            return Err(OpenError::MayNotMigrate { found, role: row.get(1) });
        }
    }
    for (at, migration) in due {
        let version = at + 1;
        let noted = match at {
            0 => format!(
                "create table jobwire (version int4 not null); insert into jobwire values ({version})"
            ),
            _ => format!("update jobwire set version = sign(version) * {version}"),
        };
        client.batch_execute(&format!("begin; {migration}; {noted}; commit")).await?;
    }
    Ok(found)
}

/// Refuses a role that may not do with the tables what servers do.
pub async fn check_grants(client: &Client) -> Result<(), OpenError> {
    let rows = client.query(GRANTS, &[]).await?;
    let missing: Vec<&str> = rows.iter().map(|row| row.get("missing")).collect();
    match rows.first() {
        Some(row) => Err(OpenError::NotGranted { role: row.get("role"), missing: missing.join(", ") }),
        None => Ok(()),
    }
}

/// What the store is called, and signs with. Drawn by whoever comes first, unless another store is being taken over.
pub async fn identity(client: &Client) -> Result<Identity, OpenError> {
    match known_identity(client).await? {
        Some(known) => Ok(known),
        None => in_turn(client, draw_identity(client)).await,
    }
}

type Identity = (LogId, [u8; 32]);

async fn known_identity(client: &Client) -> Result<Option<Identity>, OpenError> {
    let Some(row) = client.query_opt("select log_id, lease_key from feed", &[]).await? else {
        return Ok(None);
    };
    let (log_id, lease_key): (&[u8], &[u8]) = (row.get(0), row.get(1));
    Ok(Some((LogId::of(log_id)?, lease_key.try_into().map_err(|_| damaged())?)))
}

async fn draw_identity(client: &Client) -> Result<Identity, OpenError> {
    if version(client).await? < 0 {
        return Err(OpenError::Unfinished);
    }
    let drawn: [u8; 40] = draw()?;
    let (log_id, lease_key) = drawn.split_at(8);
    let into = "insert into feed (log_id, lease_key) select $1, $2 where not exists (select from feed)";
    client.execute(into, &[&log_id, &lease_key]).await?;
    known_identity(client).await?.ok_or_else(damaged)
}

/// Random bytes.
pub fn draw<const N: usize>() -> Result<[u8; N], OpenError> {
    let mut drawn = [0; N];
    SystemRandom::new().fill(&mut drawn).map_err(|_| OpenError::NoRandomness)?;
    Ok(drawn)
}

fn damaged() -> OpenError {
    OpenError::Store(crate::job::Error::DataLoss("the identity of the store".into()))
}

impl LogId {
    /// As it is stored.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, OpenError> {
        Ok(Self(u64::from_be_bytes(bytes.try_into().map_err(|_| damaged())?)))
    }
}
