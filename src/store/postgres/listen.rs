//! Hints between replicas, and a sign of life: the one connection that a replica keeps for itself.
//!
//! A hint says that jobs may be due, or how far the feed has come. It is sent apart from what it tells of, and may be
//! lost: behind each is a slow look. The lock that the connection holds says that this process lives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_postgres::{AsyncMessage, Client};

use super::{epoch::Guard, lines::Lines, link::Link, open::OpenError, pool::SESSION};
use crate::store::{Position, Signals};

const REGISTER: &str = include_str!("sql/register.sql");
const HEAD: &str = "select greatest(last, coalesce((select max(seq) from done), 0)) from feed";
const HOLD: &str = include_str!("sql/hold.sql");

/// Hints go out together, at most so often.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// How often the clock is compared and the sign of life is looked after.
const BEAT: Duration = Duration::from_secs(5);

/// Between attempts to connect again.
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be told to the other replicas.
#[derive(Debug, Default)]
pub struct Hints {
    pending: Mutex<Hint>,
    wake: Notify,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hint {
    head: Option<Position>,
    due: bool,
}

impl Hints {
    pub fn post(&self, head: Option<Position>, due: bool) {
        if head.is_some() || due {
            let mut pending = self.pending.lock();
            pending.head = pending.head.max(head);
            pending.due |= due;
            self.wake.notify_one();
        }
    }

    fn take(&self) -> Hint {
        std::mem::take(&mut *self.pending.lock())
    }
}

/// The connection.
#[derive(Debug)]
struct Session {
    client: Client,
    notes: mpsc::Receiver<String>,
    channel: String,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Listener {
    /// The number of this replica.
    pub replica: i64,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Registers this process as a replica, and listens from now on. `ahead`: how many milliseconds the database's clock is
    /// ahead of the machine's, kept up to date.
    pub async fn start(
        link: &Link,
        guard: Arc<Guard>,
        signals: Arc<Signals>,
        hints: Arc<Hints>,
        lines: Arc<Lines>,
        ahead: Arc<AtomicI64>,
    ) -> Result<Self, OpenError> {
        let session = Session::open(link, &guard).await?;
        let replica: i64 = session.client.query_one(REGISTER, &[]).await?.get("id");
        compare_clocks(&session.client, &ahead).await?;
        let listening = Listening { link: link.clone(), guard, replica, signals, hints, lines, ahead };
        Ok(Self { replica, task: tokio::spawn(listening.run(session)) })
    }
}

impl Session {
    async fn open(link: &Link, guard: &Guard) -> Result<Self, OpenError> {
        let (client, mut connection) = link.connect().await?;
        // What does not fit is lost, as hints may be.
        let (sender, notes) = mpsc::channel(256);
        let driver = tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(note) = message {
                    let _ = sender.try_send(note.payload().to_owned());
                }
            }
        });
        client.batch_execute(SESSION).await?;
        guard.check(&client).await?;
        // Hints need not be synced.
        client.batch_execute("set synchronous_commit = off").await?;
        let channel: String =
            client.query_one("select 'jobwire_' || 'feed'::regclass::oid", &[]).await?.get(0);
        client.batch_execute(&format!("listen {channel}")).await?;
        Ok(Self { client, notes, channel, driver })
    }
}

struct Listening {
    link: Link,
    guard: Arc<Guard>,
    replica: i64,
    signals: Arc<Signals>,
    hints: Arc<Hints>,
    lines: Arc<Lines>,
    ahead: Arc<AtomicI64>,
}

impl Listening {
    async fn run(self, first: Session) {
        let mut session = Some(first);
        loop {
            match session.take() {
                Some(open) => {
                    let Err(error) = self.follow(open).await;
                    tracing::warn!(error = %error, "the connection for hints is lost: looking by the clock until it is back");
                }
                None => match Session::open(&self.link, &self.guard).await {
                    Ok(open) => {
                        // Nobody knows what was missed.
                        self.take_in(None, true);
                        session = Some(open);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "no connection for hints");
                        sleep(PAUSE).await;
                    }
                },
            }
        }
    }

    async fn follow(&self, mut session: Session) -> Result<std::convert::Infallible, OpenError> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                note = session.notes.recv() => match note {
                    Some(note) => self.heard(&note),
                    // It has ended: the next statement says why.
                    None => drop(session.client.simple_query("").await?),
                },
                () = self.hints.wake.notified() => {
                    self.tell(&session).await?;
                    sleep(DEBOUNCE).await;
                }
                _ = beat.tick() => {
                    self.guard.check(&session.client).await?;
                    session.client.query(HOLD, &[&self.replica]).await?;
                    compare_clocks(&session.client, &self.ahead).await?;
                    let head: i64 = session.client.query_one(HEAD, &[]).await?.get(0);
                    self.take_in(Some(Position(head)), false);
                }
            }
        }
    }

    async fn tell(&self, session: &Session) -> Result<(), OpenError> {
        let Hint { head, due } = self.hints.take();
        let text = format!("{} {} {}", self.replica, head.map_or(0, |head| head.0), u8::from(due));
        session.client.query("select pg_notify($1, $2)", &[&session.channel, &text]).await?;
        Ok(())
    }

    fn heard(&self, note: &str) {
        let parts: Vec<i64> = note.split(' ').filter_map(|part| part.parse().ok()).collect();
        match parts[..] {
            [replica, ..] if replica == self.replica => {}
            [_, head, due] => self.take_in(Some(Position(head)), due != 0),
            // From a replica that says more than we know.
            _ => self.take_in(None, true),
        }
    }

    fn take_in(&self, head: Option<Position>, due: bool) {
        if due {
            self.lines.heard();
        }
        self.signals.advance(head, due);
    }
}

/// The database's clock is the one that counts.
async fn compare_clocks(client: &Client, ahead: &AtomicI64) -> Result<(), OpenError> {
    let before = machine_time();
    let there: i64 =
        client.query_one("select (extract(epoch from clock_timestamp()) * 1000)::int8", &[]).await?.get(0);
    ahead.store(there - (before + machine_time()) / 2, Ordering::Relaxed);
    Ok(())
}

/// Milliseconds since 1970, as this machine has it.
pub fn machine_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
