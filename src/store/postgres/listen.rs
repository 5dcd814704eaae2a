//! Hints between replicas, and a sign of life: the one connection that a replica keeps for itself.
//!
//! A hint says that jobs may be due, how far the feed has come, or what became of a job. It is sent apart from what it
//! tells of, and may be lost: behind each is a slow look. The lock that the connection holds says that this process lives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::{AsyncMessage, Client};

use super::{
    epoch::Guard,
    hints::{self, Hint, Hints, Round},
    lines::Lines,
    link::Link,
    open::OpenError,
    pool::SESSION,
    standing::Standing,
};
use crate::store::{Position, Signals};

const REGISTER: &str = include_str!("sql/register.sql");
const HEAD: &str = "select greatest(last, coalesce((select max(seq) from done), 0)) from feed";
const HOLD: &str = include_str!("sql/hold.sql");
const TELL: &str = "select pg_notify($1 || '_' || r.id, n.note) from unnest($2::int8[]) as r (id), unnest($3::text[]) as n (note)";

/// Hints go out together, at most so often.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// How often the clock is compared and the sign of life is looked after.
const BEAT: Duration = Duration::from_secs(5);

/// Within this time an answer tells what the database's clock shows: once it is known, what takes longer is left aside.
const PROMPT: Duration = Duration::from_secs(1);

/// A replica that said it has watchers has them for so long, unless it says so again.
const BELIEVED: Duration = Duration::from_secs(15);

/// How long a process that ends tries to tell its last hints.
const FAREWELL: Duration = Duration::from_secs(1);

/// Between attempts to connect again.
const PAUSE: Duration = Duration::from_millis(500);

/// Of these the first ones, quickly: before others take this process for gone.
const HASTE: Duration = Duration::from_millis(100);
const HASTY: u32 = 5;

/// The connection.
#[derive(Debug)]
struct Session {
    client: Client,
    notes: mpsc::Receiver<String>,
    /// More came than was taken.
    overflown: Arc<AtomicBool>,
    channel: String,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Listens until it is closed or dropped.
#[derive(Debug)]
pub struct Listener {
    /// The number of this replica.
    pub replica: i64,
    closing: Arc<Notify>,
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
        let replica = session.register().await?;
        session.listen_for(replica).await?;
        compare_clocks(&session.client, &listening.ahead, Duration::MAX).await?;
        let closing = listening.closing.clone();
        Ok(Self { replica, closing, task: tokio::spawn(listening.run(replica, session)) })
    }

    /// Tells what is still to be told, if the database answers.
    pub async fn close(mut self) {
        self.closing.notify_one();
        let _ = timeout(FAREWELL, &mut self.task).await;
    }
}

impl Session {
    async fn open(link: &Link, guard: &Guard) -> Result<Self, OpenError> {
        let (client, mut connection) = link.connect().await?;
        let (sender, notes) = mpsc::channel(256);
        let overflown = Arc::new(AtomicBool::new(false));
        let lost = overflown.clone();
        let driver = tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(note) = message
                    && sender.try_send(note.payload().to_owned()).is_err()
                {
                    lost.store(true, Ordering::Relaxed);
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
        Ok(Self { client, notes, overflown, channel, driver })
    }

    /// The number of a new replica. A crash of the database must not forget that it was given: nobody else may be.
    async fn register(&self) -> Result<i64, OpenError> {
        self.client.batch_execute("set synchronous_commit = local").await?;
        let replica = self.client.query_one(REGISTER, &[]).await?.get("id");
        self.client.batch_execute("set synchronous_commit = off").await?;
        Ok(replica)
    }

    /// One that listens to what is told to this replica alone too.
    async fn open_for(link: &Link, guard: &Guard, replica: i64) -> Result<Self, OpenError> {
        let session = Self::open(link, guard).await?;
        session.listen_for(replica).await?;
        Ok(session)
    }

    async fn listen_for(&self, replica: i64) -> Result<(), OpenError> {
        Ok(self.client.batch_execute(&format!("listen {}_{replica}", self.channel)).await?)
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
    /// Told when this process ends.
    pub closing: Arc<Notify>,
}

impl Listening {
    async fn run(self, replica: i64, first: Session) {
        let mut session = Some(first);
        let mut failures = 0;
        loop {
            match session.take() {
                Some(open) => match self.follow(replica, open).await {
                    Ok(()) => return,
                    Err(error) => {
                        self.standing.hear(true);
                        tracing::warn!(
                            %error,
                            "the connection for hints is lost: looking by the clock until it is back"
                        );
                    }
                },
                None => match Session::open_for(&self.link, &self.guard, replica).await {
                    Ok(open) => {
                        self.miss();
                        self.hints.post_missed();
                        failures = 0;
                        session = Some(open);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "no connection for hints");
                        failures += 1;
                        sleep(if failures > HASTY { PAUSE } else { HASTE }).await;
                    }
                },
            }
        }
    }

    /// Until this process ends.
    async fn follow(&self, replica: i64, mut session: Session) -> Result<(), OpenError> {
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
                () = self.closing.notified() => return self.tell(replica, &session).await,
                () = self.signals.listened.notified() => self.tell(replica, &session).await?,
                _ = beat.tick() => {
                    self.guard.check(&session.client).await?;
                    session.client.query(HOLD, &[&replica]).await?;
                    compare_clocks(&session.client, &self.ahead, PROMPT).await?;
                    let head: i64 = session.client.query_one(HEAD, &[]).await?.get(0);
                    self.take_in(Hint { head: Some(Position(head)), ..Hint::default() });
                    if session.overflown.swap(false, Ordering::Relaxed) {
                        self.miss();
                    }
                    if self.signals.is_listened_to() {
                        self.tell(replica, &session).await?;
                    }
                }
            }
        }
    }

    async fn tell(&self, replica: i64, session: &Session) -> Result<(), OpenError> {
        let Round { hint, deleted, watched } = self.hints.take();
        let watches = self.signals.is_listened_to();
        if watches || hint != Hint::default() {
            let text = format!("{replica} {} {hint}", u8::from(watches));
            session.client.query("select pg_notify($1, $2)", &[&session.channel, &text]).await?;
        }
        for note in deleted {
            session.client.query("select pg_notify($1, $2)", &[&session.channel, &note]).await?;
        }
        if !watched.is_empty() {
            session.client.query(TELL, &[&session.channel, &self.hints.watching(), &watched]).await?;
        }
        Ok(())
    }

    fn heard(&self, replica: i64, note: &str) {
        if note.starts_with('{') {
            return hints::hear(note, &self.signals);
        }
        let numbers: Vec<i64> = note.split(' ').filter_map(|part| part.parse().ok()).collect();
        match &numbers[..] {
            [sender, ..] if *sender == replica => {}
            [sender, watches, hint @ ..] => {
                self.take_in(hint.into());
                if *watches != 0 {
                    self.hints.watches(*sender, BELIEVED);
                }
            }
            // From a replica that says more than we know.
            _ => self.take_in(Hint::anywhere()),
        }
    }

    /// Nobody knows what was missed.
    fn miss(&self) {
        self.take_in(Hint::anywhere());
        let _ = self.signals.deleted.send(None);
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

/// The database's clock is the one that counts. An answer that takes longer than `most` tells too little of it.
async fn compare_clocks(client: &Client, ahead: &AtomicI64, most: Duration) -> Result<(), OpenError> {
    let (asked, before) = (Instant::now(), machine_time());
    let there: i64 =
        client.query_one("select (extract(epoch from clock_timestamp()) * 1000)::int8", &[]).await?.get(0);
    let took = asked.elapsed();
    if took <= most {
        let halfway = before + took.as_millis() as i64 / 2;
        ahead.store(there - halfway, Ordering::Relaxed);
    }
    Ok(())
}

/// Milliseconds since 1970, as this machine has it.
pub fn machine_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::server::Schema, *};

    #[tokio::test]
    async fn an_answer_that_was_held_up_does_not_set_the_clock() {
        let client = Schema::new().await.connect().await;
        const KNOWN: i64 = i64::MIN;
        let ahead = AtomicI64::new(KNOWN);
        let hold_up = async |most| {
            let sleep = client.batch_execute("select pg_sleep(1.1)");
            let (slept, compared) = tokio::join!(sleep, compare_clocks(&client, &ahead, most));
            slept.unwrap();
            compared.unwrap();
        };
        hold_up(PROMPT).await;
        assert_eq!(ahead.load(Ordering::Relaxed), KNOWN);
        // Unless nothing else is known.
        hold_up(Duration::MAX).await;
        assert_ne!(ahead.load(Ordering::Relaxed), KNOWN);
    }
}
