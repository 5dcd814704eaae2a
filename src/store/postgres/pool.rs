//! Connections: a fixed number, each kind of work with its own, so that none can take them all.

use std::{future::Future, sync::Arc, time::Duration};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::{Row, error::SqlState, types::ToSql};

use super::{epoch::Guard, link::Link, parts};
use crate::{job::Error, store::written::Damaged};

pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];
pub type Result<T> = std::result::Result<T, Failure>;

/// Connections for what each sort of work does at the same time. With the listener, a replica has one more.
const WRITERS: usize = 4;
const CLAIMERS: usize = 4;
const READERS: usize = 4;

/// Connections of one replica.
pub const CONNECTIONS: usize = WRITERS + CLAIMERS + READERS + 1;

/// How long a call waits for a connection, and a connection for the server.
const PATIENCE: Duration = Duration::from_secs(10);

/// What others have undone (a deadlock, a conflict) is tried again so often.
const TRIES: usize = 10;

/// Every session. Plans are made once, for tables of any size: they must never depend on how full these happened to be.
/// Nothing breaks off a statement that waits for its commit to be replicated. What is looked at under a lock is what there is
/// once the lock is had.
pub const SESSION: &str = "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; \
     set enable_nestloop = off; set enable_bitmapscan = off; set jit = off; set statement_timeout = 0; set lock_timeout = 0; \
     set idle_in_transaction_session_timeout = '10s'; set client_min_messages = warning; \
     set default_transaction_isolation = 'read committed'";

/// Why a statement was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the store is closed")]
    Closed,
    #[error("no connection: {0}")]
    NoConnection(String),
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error("what is stored of {0} is not what was written")]
    Damaged(&'static str),
}

impl Failure {
    pub fn state(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Somebody has taken a name in between: it can be looked up now.
    pub fn is_taken(&self) -> bool {
        self.state() == Some(&SqlState::UNIQUE_VIOLATION)
    }

    /// The server's disk is full.
    pub fn is_full(&self) -> bool {
        self.state() == Some(&SqlState::DISK_FULL)
    }

    /// It is not known whether the statement took effect: the connection is lost, or was ended by somebody, as a crash of
    /// the server ends it.
    pub fn may_have_worked(&self) -> bool {
        let Self::Postgres(error) = self else { return false };
        let unknown = ["08", "57", "58", "XX", "40003"];
        error.code().is_none_or(|code| unknown.iter().any(|class| code.code().starts_with(class)))
    }

    /// There is no partition for a number yet. (Nothing else is checked.)
    fn is_beyond(&self) -> bool {
        self.state() == Some(&SqlState::CHECK_VIOLATION)
    }

    /// Undone because of what others do, or were to do: it can be tried again.
    fn is_conflict(&self) -> bool {
        self.is_beyond()
            || [Some(&SqlState::T_R_DEADLOCK_DETECTED), Some(&SqlState::T_R_SERIALIZATION_FAILURE)]
                .contains(&self.state())
    }
}

impl From<Damaged> for Failure {
    fn from(Damaged(what): Damaged) -> Self {
        Self::Damaged(what)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match &failure {
            Failure::Closed => Self::StoreUnavailable("it is closed".into()),
            Failure::Damaged(what) => Self::DataLoss((*what).into()),
            Failure::NoConnection(_) => Self::StoreUnavailable(format!("PostgreSQL: {failure}")),
            Failure::Postgres(error) => match error.as_db_error() {
                Some(told) => {
                    Self::StoreUnavailable(format!("PostgreSQL: {} ({})", told.message(), told.code().code()))
                }
                None => Self::StoreUnavailable(format!("PostgreSQL: {error}")),
            },
        }
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
                Self::Postgres(error)
            }
            PoolError::PostCreateHook(HookError::Message(why)) => Self::NoConnection(why.into()),
            PoolError::Closed => Self::Closed,
            PoolError::Timeout(_) => Self::NoConnection(format!("none was free for {PATIENCE:?}")),
            other => Self::NoConnection(other.to_string()),
        }
    }
}

/// One statement, and what it is given.
pub struct Step<'a> {
    pub sql: &'static str,
    pub params: Params<'a>,
}

/// The connections of one sort.
#[derive(Clone, Debug)]
pub struct Connections(Pool);

/// All connections of a replica but the listener's.
#[derive(Debug)]
pub struct Pools {
    pub write: Connections,
    pub claim: Connections,
    pub read: Connections,
}

impl Pools {
    pub fn new(link: &Link, guard: &Arc<Guard>) -> Result<Self> {
        Ok(Self {
            write: Connections::new(link, guard, WRITERS)?,
            claim: Connections::new(link, guard, CLAIMERS)?,
            read: Connections::new(link, guard, READERS)?,
        })
    }

    pub fn close(&self) {
        for Connections(pool) in [&self.write, &self.claim, &self.read] {
            pool.close();
        }
    }
}

impl Connections {
    fn new(link: &Link, guard: &Arc<Guard>, size: usize) -> Result<Self> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(link.config.clone(), link.clone(), recycling);
        let patience = Some(PATIENCE);
        let guard = guard.clone();
        let pool = Pool::builder(manager)
            .max_size(size)
            .timeouts(Timeouts { wait: patience, create: patience, recycle: patience })
            .runtime(Runtime::Tokio1)
            .post_create(Hook::async_fn(move |client, _| {
                let guard = guard.clone();
                Box::pin(async move {
                    client.batch_execute(SESSION).await.map_err(HookError::Backend)?;
                    guard.check(client).await.map_err(|error| HookError::Message(error.to_string().into()))
                })
            }))
            .build()
            .map_err(|error| Failure::NoConnection(error.to_string()))?;
        Ok(Self(pool))
    }

    /// Carries out one statement, which is a transaction by itself: one round trip, and no lock outlives it.
    ///
    /// # Errors
    /// Unless it was refused by the server, nothing is known of it.
    pub async fn query(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>> {
        again(|| async {
            let client = self.0.get().await?;
            let statement = client.prepare_cached(sql).await?;
            let answer = client.query(&statement, params).await.map_err(Failure::from);
            if answer.as_ref().is_err_and(Failure::is_beyond) {
                // Numbers were used up faster than partitions were made.
                parts::make_ahead(&**client).await?;
            }
            answer
        })
        .await
    }

    /// Makes partitions until there are enough beyond the numbers in use.
    ///
    /// # Errors
    /// As [`Connections::query`].
    pub async fn make_ahead(&self) -> Result<()> {
        let client = self.0.get().await?;
        Ok(parts::make_ahead(&**client).await?)
    }

    /// Carries out statements as one transaction, sent together: one round trip again. Answers with the rows of the last.
    ///
    /// # Errors
    /// As [`Connections::query`].
    pub async fn transaction(&self, steps: &[Step<'_>]) -> Result<Vec<Row>> {
        again(|| async {
            let client = self.0.get().await?;
            let mut statements = Vec::with_capacity(steps.len());
            for step in steps {
                statements.push(client.prepare_cached(step.sql).await?);
            }
            let begin = client.batch_execute("begin");
            let work = futures_util::future::join_all(
                statements.iter().zip(steps).map(|(statement, step)| client.query(statement, step.params)),
            );
            let commit = client.batch_execute("commit");
            let (begun, done, committed) = tokio::join!(begin, work, commit);
            begun?;
            let mut rows = Vec::new();
            for step in done {
                rows = step?;
            }
            committed?;
            Ok(rows)
        })
        .await
    }
}

/// Tries again what others have undone.
async fn again<T, F: Future<Output = Result<T>>>(run: impl Fn() -> F) -> Result<T> {
    let mut tries = 1;
    loop {
        match run().await {
            Err(failure) if failure.is_conflict() && tries < TRIES => tries += 1,
            outcome => return outcome,
        }
    }
}
