//! Epochs of the log: one for each server and timeline that it was written on.
//!
//! When a standby takes the place of the primary, the end of the log may be missing. Positions do not tell: so whoever
//! comes first to the new primary begins a new epoch there, which notes where the log ended and goes on far beyond. A
//! replica belongs to one epoch with all that it knows. A session never outlives a timeline, so it is enough that each is
//! looked at when it is made ([`Guard`]); a replica whose sessions are refused opens the database anew.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_postgres::Client;

use super::{
    link::Link,
    open::{self, OpenError},
    parts,
};
use crate::{
    job::Timestamp,
    store::{Break, Breaks, LogId, Position},
};

const EPOCH: &str = include_str!("sql/epoch.sql");
pub const GUARD: &str = include_str!("sql/guard.sql");
const LANE: &str = "select pg_advisory_xact_lock('feed'::regclass::oid::int4, 0)";
const SERVERS: &str = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2
    and database = (select oid from pg_database where datname = current_database())
    and classid = 'replica'::regclass::oid";
const RENAME: &str = "update feed set log_id = $1";
const BREAKS: &str = "select ended, first from epoch order by first";

/// An epoch of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    pub log_id: LogId,
    /// Its positions are larger.
    pub first: Position,
}

impl Epoch {
    /// Enters the epoch that the log is in on this server. Whoever comes first begins it: then leases hold at least until
    /// that time, and the feed stands still until it has begun.
    pub async fn enter(
        client: &mut Client,
        log_id: LogId,
        leases_until: Timestamp,
    ) -> Result<(Self, Breaks), OpenError> {
        let known = client.query_opt(GUARD, &[]).await?;
        if !known.is_some_and(|row| row.get("is_here")) {
            let lane = client.transaction().await?;
            lane.execute(LANE, &[]).await?;
            lane.execute(EPOCH, &[&false, &leases_until.0]).await?;
            parts::make_ahead(&lane).await?;
            lane.commit().await?;
        }
        parts::make_ahead(client).await?;
        let rows = client.query(BREAKS, &[]).await?;
        let at = |position| Position(position);
        let all = rows.iter().map(|row| Break { ended: at(row.get("ended")), resumed: at(row.get("first")) });
        let breaks: Breaks = all.collect();
        let first = breaks.last().map_or(Position(0), |newest| newest.resumed);
        Ok((Self { log_id, first }, breaks))
    }
}

/// Begins a new log in the database of a URL, which was restored from a dump or a snapshot: no cursor from before is good in it, and no
/// number from before is given a second time.
///
/// # Errors
/// As [`PostgresStore::open`](super::PostgresStore::open), and if it holds no store, or a server uses it.
pub async fn new_log(url: &str) -> Result<LogId, OpenError> {
    let mut client = open::connect(url).await?;
    open::check(&client).await?;
    open::refuse_empty(&client).await?;
    open::migrate(&client).await?;
    open::identity(&client).await?;
    let servers: i64 = client.query_one(SERVERS, &[]).await?.get(0);
    if servers > 0 {
        return Err(OpenError::InUse { servers });
    }
    let drawn: [u8; 8] = open::draw()?;
    // Whoever held a lease when the dump was made does not hold it any more.
    let no_lease = 0_i64;
    let lane = client.transaction().await?;
    lane.execute(LANE, &[]).await?;
    lane.execute(EPOCH, &[&true, &no_lease]).await?;
    parts::make_ahead(&lane).await?;
    lane.execute(RENAME, &[&drawn.as_slice()]).await?;
    lane.commit().await?;
    LogId::of(&drawn)
}

/// Lets only sessions of one epoch pass.
#[derive(Debug)]
pub struct Guard {
    pub epoch: Epoch,
    link: Link,
    /// Told when a session is refused.
    moved: Arc<Notify>,
}

impl Guard {
    pub fn new(epoch: Epoch, link: Link, moved: Arc<Notify>) -> Self {
        Self { epoch, link, moved }
    }

    /// # Errors
    /// [`OpenError::Moved`] if it is not the epoch any more in which the log is on that server.
    pub async fn check(&self, client: &Client) -> Result<(), OpenError> {
        let row = client.query_one(GUARD, &[]).await?;
        let log_id = LogId::of(row.get("log_id"))?;
        let found = Epoch { log_id, first: Position(row.get("first")) };
        if found == self.epoch && row.get("is_here") {
            return Ok(());
        }
        if found.first < self.epoch.first {
            self.link.avoid_old_primary(self.epoch.first);
        }
        self.moved.notify_one();
        Err(OpenError::Moved)
    }
}
