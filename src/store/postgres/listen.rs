//! Hints between replicas, and a sign of life: the one connection that a replica keeps for itself.
//!
//! A hint says that jobs may be due, or how far the feed has come. It is sent apart from what it tells of, and may be
//! lost: behind each is a slow look. The lock that the connection holds says that this process lives.

use std::{
    fmt,
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

use super::{
    epoch::Guard,
    lines::Lines,
    link::Link,
    open::OpenError,
    pool::SESSION,
    standing::{Span, Standing, by_line},
};
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

/// Lines that one hint names. With more it only says that there are jobs: a payload of NOTIFY has 8,000 bytes at most.
const LINES: usize = 100;

/// What a commit means to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// The feed has come so far.
    pub head: Option<Position>,
    /// Jobs may be due, or be so soon.
    pub due: bool,
    /// Those that are stand here,
    pub standing: Vec<Span>,
    /// or anywhere.
    pub anywhere: bool,
}

impl Hint {
    /// Jobs stand in line that did not before.
    pub fn standing(spans: impl Iterator<Item = Span>) -> Self {
        let standing = by_line(spans);
        Self { due: !standing.is_empty(), standing, ..Self::default() }
    }

    /// Jobs may be due anywhere.
    fn anywhere() -> Self {
        Self { due: true, anywhere: true, ..Self::default() }
    }

    fn join(&mut self, other: Self) {
        self.head = self.head.max(other.head);
        self.due |= other.due;
        self.standing = by_line(self.standing.drain(..).chain(other.standing));
        self.anywhere |= other.anywhere;
        if self.standing.len() > LINES {
            self.anywhere = true;
            self.standing.clear();
        }
    }
}

/// Head, 1 if jobs may be due, 1 if they may be anywhere, and for each span three numbers.
impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head.map_or(0, |head| head.0);
        write!(f, "{head} {} {}", u8::from(self.due), u8::from(self.anywhere))?;
        self.standing.iter().try_for_each(|span| write!(f, " {} {} {}", span.line, span.low, span.high))
    }
}

/// Of a replica that says more than we know, that jobs may be due anywhere.
impl From<&[i64]> for Hint {
    fn from(numbers: &[i64]) -> Self {
        let [head, due, anywhere, spans @ ..] = numbers else { return Self::anywhere() };
        let standing = spans.chunks(3).map(|span| match *span {
            [line, low, high] => Some(Span { line: i32::try_from(line).ok()?, low, high }),
            _ => None,
        });
        match standing.collect() {
            Some(standing) => {
                Self { head: Some(Position(*head)), due: *due != 0, standing, anywhere: *anywhere != 0 }
            }
            None => Self::anywhere(),
        }
    }
}

/// What is to be told to the other replicas.
#[derive(Debug, Default)]
pub struct Hints {
    pending: Mutex<Hint>,
    wake: Notify,
}

impl Hints {
    pub fn post(&self, hint: Hint) {
        if hint != Hint::default() {
            self.pending.lock().join(hint);
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
    /// Registers this process as a replica, and listens from now on.
    pub async fn start(listening: Listening) -> Result<Self, OpenError> {
        let session = Session::open(&listening.link, &listening.guard).await?;
        let replica: i64 = session.client.query_one(REGISTER, &[]).await?.get("id");
        compare_clocks(&session.client, &listening.ahead).await?;
        Ok(Self { replica, task: tokio::spawn(listening.run(replica, session)) })
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

/// Who is told what others say, and who has something to say to them.
pub struct Listening {
    pub link: Link,
    pub guard: Arc<Guard>,
    pub signals: Arc<Signals>,
    pub hints: Arc<Hints>,
    pub lines: Arc<Lines>,
    pub standing: Arc<Standing>,
    /// Milliseconds that the database's clock is ahead of the machine's, kept up to date.
    pub ahead: Arc<AtomicI64>,
}

impl Listening {
    async fn run(self, replica: i64, first: Session) {
        let mut session = Some(first);
        loop {
            match session.take() {
                Some(open) => {
                    let Err(error) = self.follow(replica, open).await;
                    self.standing.hear(true);
                    tracing::warn!(error = %error, "the connection for hints is lost: looking by the clock until it is back");
                }
                None => match Session::open(&self.link, &self.guard).await {
                    Ok(open) => {
                        // Nobody knows what was missed.
                        self.take_in(Hint::anywhere());
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

    async fn follow(
        &self,
        replica: i64,
        mut session: Session,
    ) -> Result<std::convert::Infallible, OpenError> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                note = session.notes.recv() => match note {
                    Some(note) => self.heard(replica, &note),
                    // It has ended: the next statement says why.
                    None => drop(session.client.simple_query("").await?),
                },
                () = self.hints.wake.notified() => {
                    self.tell(replica, &session).await?;
                    sleep(DEBOUNCE).await;
                }
                _ = beat.tick() => {
                    self.guard.check(&session.client).await?;
                    session.client.query(HOLD, &[&replica]).await?;
                    compare_clocks(&session.client, &self.ahead).await?;
                    let head: i64 = session.client.query_one(HEAD, &[]).await?.get(0);
                    self.take_in(Hint { head: Some(Position(head)), ..Hint::default() });
                }
            }
        }
    }

    async fn tell(&self, replica: i64, session: &Session) -> Result<(), OpenError> {
        let text = format!("{replica} {}", self.hints.take());
        session.client.query("select pg_notify($1, $2)", &[&session.channel, &text]).await?;
        Ok(())
    }

    fn heard(&self, replica: i64, note: &str) {
        let numbers: Vec<i64> = note.split(' ').filter_map(|part| part.parse().ok()).collect();
        match &numbers[..] {
            [sender, ..] if *sender == replica => {}
            [_, hint @ ..] => self.take_in(hint.into()),
            [] => self.take_in(Hint::anywhere()),
        }
    }

    fn take_in(&self, hint: Hint) {
        if hint.due {
            self.lines.heard();
        }
        if hint.anywhere {
            self.standing.hear(false);
        }
        self.standing.tell(&hint.standing);
        self.signals.advance(hint.head, hint.due);
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
