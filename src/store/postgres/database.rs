//! The database in one epoch, with all that a replica knows of it: connections, lines, counts, claims that wait. Another
//! epoch takes nothing over of that, because it may never have happened there.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    epoch::{Epoch, Guard},
    held::Held,
    hints::{Hint, Hints},
    lines::Lines,
    link::Link,
    listen::{Listener, Listening, machine_time},
    open::{self, Durability, OpenError},
    parts::Parts,
    pool::{self, Failure, Pools},
    room::Rooms,
    share::Parked,
    standing::Standing,
    tick::LastTick,
    unheard::Unheard,
    warnings::Warnings,
};
use crate::{
    config::Config,
    job::{JobId, Timestamp},
    store::{Breaks, LogId, ProgressHint, Signals},
};

/// What a replica keeps from one epoch to the next.
#[derive(Debug)]
pub struct Common {
    pub config: Arc<Config>,
    pub link: Link,
    pub signals: Arc<Signals>,
    /// The newest time heard of, milliseconds: what a call without one goes by.
    pub now: AtomicI64,
    /// Milliseconds that the database's clock is ahead of the machine's.
    pub ahead: Arc<AtomicI64>,
    /// Told when a session was refused: the log is in another epoch.
    pub moved: Arc<Notify>,
    pub unheard: Unheard,
    /// The numbers that this process has had among the replicas: another one in each epoch.
    pub replicas: Mutex<Vec<i64>>,
}

impl Common {
    /// The database's, as far as it is known here.
    pub fn time(&self) -> Timestamp {
        Timestamp(machine_time() + self.ahead.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
pub struct Database {
    pub me: Weak<Self>,
    pub common: Arc<Common>,
    pub config: Arc<Config>,
    pub signals: Arc<Signals>,
    pub epoch: Epoch,
    pub breaks: Breaks,
    pub pools: Pools,
    pub lines: Arc<Lines>,
    pub room: Rooms,
    pub held: Held,
    pub standing: Arc<Standing>,
    pub hints: Arc<Hints>,
    pub listener: Mutex<Option<Listener>>,
    /// The number of this process among the replicas.
    pub replica: i64,
    pub durability: Durability,
    pub is_encrypted: bool,
    pub lease_key: [u8; 32],
    pub kept_house: Mutex<Instant>,
    /// When this process began to use it.
    pub begun: Timestamp,
    pub last_tick: Mutex<LastTick>,
    /// What other processes left behind is looked for once more.
    pub just_begun: AtomicBool,
    pub parked: Parked,
    pub warnings: Warnings,
    pub parts: Parts,
}

impl Database {
    /// Opens the database, and recovers what processes that are gone have left behind. None if it is in the same epoch as
    /// `before`.
    ///
    /// # Errors
    /// It cannot be reached, will not do, has been used by a newer version, or is in an older epoch than `before`.
    pub async fn open(
        common: &Arc<Common>,
        before: Option<Epoch>,
        now: Timestamp,
    ) -> Result<Option<Arc<Self>>, OpenError> {
        let Common { config, link, signals, ahead, moved, .. } = &**common;
        let asked = Instant::now();
        let (mut client, durability) = open::open(link).await?;
        open::migrate(&client).await?;
        open::check_grants(&client).await?;
        let is_encrypted = open::is_encrypted(&client).await?;
        let (log_id, lease_key) = open::identity(&client).await?;
        let leases_until = now.after(config.workers.lease);
        let (epoch, breaks) = Epoch::enter(&mut client, log_id, leases_until).await?;
        drop(client);
        match before {
            Some(before) if before == epoch => return Ok(None),
            Some(before) if before.first >= epoch.first => {
                link.avoid_old_primary(before.first);
                return Err(OpenError::Outdated);
            }
            _ => {}
        }

        let guard = Arc::new(Guard::new(epoch, link.clone(), moved.clone()));
        let (lines, standing) = (Arc::new(Lines::new(config.clone())), Arc::new(Standing::default()));
        let hints = Arc::new(Hints::default());
        let listening = Listening {
            link: link.clone(),
            guard: guard.clone(),
            signals: signals.clone(),
            hints: hints.clone(),
            lines: lines.clone(),
            standing: standing.clone(),
            ahead: ahead.clone(),
            closing: Arc::default(),
        };
        let listener = Listener::start(listening).await?;
        common.replicas.lock().push(listener.replica);
        // The first time is by this machine's clock. Opening may take long, where somebody changes the schema.
        let off = if before.is_none() { ahead.load(Ordering::Relaxed) } else { 0 };
        let begun = Timestamp(now.0 + off).after(asked.elapsed());
        let pools = Pools::new(link, &guard).map_err(failed)?;
        let database = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            common: common.clone(),
            config: config.clone(),
            signals: signals.clone(),
            epoch,
            breaks,
            pools,
            lines,
            room: Rooms::new(config.clone()),
            held: Held::default(),
            standing,
            hints,
            replica: listener.replica,
            listener: Mutex::new(Some(listener)),
            durability,
            is_encrypted,
            lease_key,
            kept_house: Mutex::new(Instant::now()),
            begun,
            last_tick: Mutex::default(),
            just_begun: AtomicBool::new(true),
            parked: Parked::default(),
            warnings: Warnings::default(),
            parts: Parts::default(),
        });
        database.begin(now).await.map_err(failed)?;
        Ok(Some(database))
    }

    async fn begin(&self, now: Timestamp) -> pool::Result<()> {
        self.warn().await?;
        self.lines.refresh(&self.pools.write).await?;
        self.keep_house().await?;
        // Of jobs that were deleted by a process that was killed then, or while this one was away, it was not told.
        self.hints.post_missed();
        let spent = self.recover(now).await?;
        if spent > 0 {
            tracing::warn!(
                attempts = spent,
                "attempts that ended processes were running are counted as failed"
            );
        }
        Ok(())
    }

    /// Tells how far the feed has come.
    pub async fn tell_head(&self) -> Result<(), OpenError> {
        let (_, head) = self.bounds().await.map_err(failed)?;
        self.signals.advance(Some(head), true);
        Ok(())
    }

    pub fn log_id(&self) -> LogId {
        self.epoch.log_id
    }

    pub fn last_time(&self) -> Timestamp {
        Timestamp(self.common.now.load(Ordering::Relaxed))
    }

    /// Tells those who listen, here and at other replicas, what has come of a commit.
    pub fn news(&self, hint: Hint, changed: impl Iterator<Item = JobId>) {
        self.standing.tell(&hint.standing);
        self.signals.advance(hint.head, hint.due);
        self.hints.post(hint);
        let (here, elsewhere) = (self.signals.changed.receiver_count() > 0, self.hints.is_watched());
        if here || elsewhere {
            for job in changed {
                if elsewhere {
                    self.hints.post_changed(job.clone());
                }
                // Only hints: without a listener, or with a slow one, they are lost.
                let _ = self.signals.changed.send(job);
            }
        }
    }

    /// Whether somebody may want to hear of changes.
    pub fn is_watched(&self) -> bool {
        self.signals.changed.receiver_count() > 0 || self.hints.is_watched()
    }

    pub fn tell_progress(&self, hint: Arc<ProgressHint>) {
        if self.hints.is_watched() {
            self.hints.post_progress(hint.clone());
        }
        let _ = self.signals.progress.send(hint);
    }

    /// Ends all connections. Claims that wait are answered.
    pub fn close(&self) {
        self.pools.close();
        drop(self.listener.lock().take());
        self.parked.release();
    }
}

fn failed(failure: Failure) -> OpenError {
    match failure {
        Failure::Postgres(error) => OpenError::Postgres(error),
        other => OpenError::Store(other.into()),
    }
}
