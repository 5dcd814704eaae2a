//! The one thread that writes: it takes every command that waits, carries all of them out in one transaction, syncs
//! once, and only then answers.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    bundle::Bundles,
    fresh::Fresh,
    lines::Lines,
    recent::Recent,
    rows::Result,
    share::{available, due, share},
    tx::{Effects, Fences, Numbers, Statements, Tx},
};
use crate::{
    config::Config,
    job::Error,
    store::{Claim, ClaimWait, Handover, Leased, Position, Signals},
};

/// Commands that wait in front of the writer. Callers beyond it wait too: the engine bounds them.
const QUEUE: usize = 1024;

/// What a command does to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Changes or reads whatever it likes.
    Any,
    /// Ends attempts, and looks for nobody's outcome: those of one after the other may share rows.
    Settle,
    /// Accepts jobs. Carried out last, next to the claims, so that a job may be leased before its row is written, and
    /// nothing else looks for the row meanwhile.
    Submit,
}

type Answer = Box<dyn FnOnce() + Send>;
type Run = Box<dyn FnOnce(&mut Tx<'_>) -> Result<Answer> + Send>;

enum Command {
    /// Changes the store.
    Write {
        run: Run,
        /// Items in it, for the bound of a group.
        weight: usize,
        durable: Durable,
        work: Work,
    },
    /// Looks at the claims: one has come, or has been given up.
    Wake,
}

/// A claim without an answer yet. It is looked at after the writes of a group, so that it finds what they bring. One that
/// waits on is answered at its end only: jobs are handed over beside it, so that none comes while nobody waits.
struct Parked {
    claim: Claim,
    reply: oneshot::Sender<Vec<Leased>>,
    /// It had too little room for what there was, or may have had.
    is_behind: bool,
    /// Told when it has no room at all.
    full: Arc<Notify>,
}

impl Parked {
    fn is_over(&self) -> bool {
        self.claim.wait.as_ref().is_none_or(|wait| wait.end.is_cancelled())
    }

    /// Whether there may be something for it though nothing has come.
    fn has_room_again(&self) -> bool {
        self.is_behind && self.claim.wanted() > 0
    }

    fn park(self, parked: &mut Vec<Self>) {
        if self.is_behind && self.claim.wanted() == 0 {
            self.full.notify_one();
        }
        parked.push(self);
    }

    /// How many jobs it may have now; with the slots for them, if it takes them while it waits on. They are taken
    /// beforehand, because others come free, or are had for a moment, while jobs are leased.
    fn room(&self) -> (usize, Option<OwnedSemaphorePermit>) {
        let wanted = self.claim.wanted();
        match self.claim.wait.as_ref().filter(|wait| wait.handover.is_some() && !wait.end.is_cancelled()) {
            None => (wanted, None),
            Some(wait) => match wait.slots.clone().try_acquire_many_owned(wanted as u32) {
                Ok(slots) => (wanted, Some(slots)),
                Err(_) => (0, None),
            },
        }
    }

    /// Makes these leases, with a slot for each, the business of whoever takes jobs while the claim waits on.
    fn hand_over(&self, leased: Vec<Leased>, slots: OwnedSemaphorePermit) -> Answer {
        let handover = self.claim.wait.as_ref().and_then(|wait| wait.handover.clone());
        Box::new(move || drop(handover.map(|handover| handover.send(Handover { leased, slots }))))
    }
}

impl Command {
    fn weight(&self) -> usize {
        match self {
            Self::Write { weight, .. } => *weight,
            Self::Wake => 0,
        }
    }

    fn is_submit(&self) -> bool {
        matches!(self, Self::Write { work: Work::Submit, .. })
    }

    fn is_synced(&self) -> bool {
        matches!(self, Self::Write { durable: Durable::Synced, .. })
    }
}

/// Answers the claims that there is something for, and those that wait no longer.
fn serve(tx: &mut Tx<'_>, parked: &mut Vec<Parked>, answers: &mut Vec<Answer>) -> Result<()> {
    let mut waiting = std::mem::take(parked);
    // Nobody would hear of the leases.
    waiting.retain(|waiting| !waiting.reply.is_closed());
    let room: Vec<_> = waiting.iter().map(Parked::room).collect();
    let claims: Vec<_> = waiting.iter().zip(&room).map(|(one, (wanted, _))| (&one.claim, *wanted)).collect();
    let due = due(tx);
    // No write that says the time need have come with the room for them.
    if let Some(now) = waiting.iter().find_map(|waiting| Some(waiting.claim.wait.as_ref()?.now.0())) {
        tx.now = tx.shared.at(now);
    }
    // A claim that meets a damaged job ends it.
    tx.land_ended()?;
    let given = share(tx, tx.now, &due, &claims)?;
    // Whoever was given something stands behind the others: what comes one by one is for all of them in turn.
    let mut served = Vec::new();
    for ((mut waiting, (wanted, slots)), leased) in waiting.into_iter().zip(room).zip(given) {
        let handed_over = slots.and_then(|mut slots| slots.split(leased.len()));
        // Who had room and found nothing need not look at the same again.
        let is_exhausted = wanted > 0 && leased.is_empty();
        waiting.is_behind = !is_exhausted && available(tx, &due, &waiting.claim)? > 0;
        if leased.is_empty() && !waiting.is_over() {
            waiting.park(parked);
        } else if let Some(slots) = handed_over
            && !leased.is_empty()
        {
            answers.push(waiting.hand_over(leased, slots));
            waiting.park(&mut served);
        } else {
            answers.push(Box::new(move || drop(waiting.reply.send(leased))));
        }
    }
    parked.append(&mut served);
    Ok(())
}

/// Waits until a claim that had no room has some: its slots may come free without any write. Takes one for a moment.
async fn room_again(full: &Notify, slots: &Semaphore) {
    full.notified().await;
    drop(slots.acquire().await);
}

/// When a command may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// When it would survive lost power.
    Synced,
    /// When it would survive the end of the process.
    Written,
}

/// The way to the thread.
#[derive(Debug)]
pub struct Writer {
    commands: mpsc::Sender<Command>,
    /// A way of their own, so that a claim that comes while a group is carried out still finds what the group brings.
    claims: mpsc::Sender<Parked>,
    signals: Arc<Signals>,
}

impl Writer {
    /// Starts the thread. It ends, and closes the database, when the writer is dropped.
    pub fn start(mut state: State) -> (Self, thread::JoinHandle<()>) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (claims, waiting) = mpsc::channel(QUEUE);
        let signals = state.signals.clone();
        let thread = thread::Builder::new()
            .name("jobwire-writer".into())
            .spawn(move || state.run(queue, waiting))
            .expect("a thread can be started while the process starts");
        (Self { commands, claims, signals }, thread)
    }

    /// Carries out `run` in the next transaction.
    ///
    /// # Errors
    /// [`Error::StoreUnavailable`] if the store has failed: whether it took effect is unknown.
    pub async fn call<T: Send + 'static>(
        &self,
        weight: usize,
        durable: Durable,
        work: Work,
        run: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let run: Run = Box::new(move |tx| {
            let reply = run(tx)?;
            // Nobody listens any more: the caller went away, what was done stays done.
            Ok(Box::new(move || drop(sender.send(reply))))
        });
        self.send(Command::Write { run, weight, durable, work }).await;
        match receiver.await {
            Ok(reply) => Ok(reply),
            Err(_) => Err(self.gone().await),
        }
    }

    /// Leases, once they have reached the file.
    ///
    /// # Errors
    /// As [`Writer::call`].
    pub async fn claim(&self, claim: Claim) -> std::result::Result<Vec<Leased>, Error> {
        let (reply, mut receiver) = oneshot::channel();
        let (wait, full) = (claim.wait.clone(), Arc::new(Notify::new()));
        drop(self.claims.send(Parked { claim, reply, is_behind: false, full: full.clone() }).await);
        // If there is no room, commands wait whose group looks at the claims too.
        let _ = self.commands.try_send(Command::Wake);
        let leased = match wait {
            None => receiver.await,
            Some(ClaimWait { slots, end, handover, .. }) => loop {
                tokio::select! {
                    biased;
                    leased = &mut receiver => break leased,
                    () = end.cancelled() => {
                        self.send(Command::Wake).await;
                        break receiver.await;
                    }
                    () = room_again(&full, &slots), if handover.is_some() => self.send(Command::Wake).await,
                }
            },
        };
        match leased {
            Ok(leased) => Ok(leased),
            Err(_) => Err(self.gone().await),
        }
    }

    /// What cannot be sent is dropped, and its sender with it.
    async fn send(&self, command: Command) {
        drop(self.commands.send(command).await);
    }

    /// Why there is no answer: known once the thread has ended.
    async fn gone(&self) -> Error {
        self.commands.closed().await;
        let why = self.signals.failed.borrow().clone();
        Error::StoreUnavailable(why.map_or_else(|| "it is closed".to_owned(), |why| why.to_string()))
    }
}

/// What the thread owns.
pub struct State {
    pub connection: Connection,
    config: Arc<Config>,
    lines: Lines,
    recent: Recent,
    bundles: Bundles,
    numbers: Numbers,
    fences: Fences,
    signals: Arc<Signals>,
    shared: Arc<super::Shared>,
    /// What SQLite syncs at a commit at present.
    durable: Durable,
    /// Claims that wait for jobs, the oldest first.
    parked: Vec<Parked>,
}

impl State {
    /// Of a connection that [`super::open::writer`] has opened.
    pub fn new(
        connection: Connection,
        config: Arc<Config>,
        lines: Lines,
        signals: Arc<Signals>,
        shared: Arc<super::Shared>,
    ) -> Result<Self> {
        Ok(Self {
            numbers: Numbers::load(&connection)?,
            connection,
            config,
            lines,
            recent: Recent::default(),
            bundles: Bundles::default(),
            fences: Fences::new(),
            signals,
            shared,
            durable: Durable::Synced,
            parked: Vec::new(),
        })
    }

    fn run(&mut self, mut queue: mpsc::Receiver<Command>, mut claims: mpsc::Receiver<Parked>) {
        loop {
            // Claims that the last group had no room for have used up their wake-ups.
            let first = match claims.is_empty() && !self.parked.iter().any(Parked::has_room_again) {
                true => queue.blocking_recv(),
                false => Some(Command::Wake),
            };
            let Some(first) = first else { return };
            let mut room = self.config.store.max_group.saturating_sub(first.weight());
            let mut group = vec![first];
            while room > 0
                && let Ok(command) = queue.try_recv()
            {
                room = room.saturating_sub(command.weight());
                group.push(command);
            }
            // A panic leaves the transaction in the middle: as good as a failed commit.
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(group, &mut claims)));
            match committed {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => self.signals.fail(&format!("SQLite: {error}")),
                Err(_) => self.signals.fail("a bug in the writer"),
            }
            return self.leave();
        }
    }

    /// Carries out `run` on the caller's thread, before the writer's is started.
    pub fn now<T>(&mut self, run: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<T> {
        let (reply, effects) = self.transact(run)?;
        self.publish(effects);
        Ok(reply)
    }

    /// One group, one transaction, one sync; then the answers. False, and no answers, if the store has failed at
    /// another place.
    fn commit(&mut self, mut group: Vec<Command>, claims: &mut mpsc::Receiver<Parked>) -> Result<bool> {
        let only_woken = group.iter().all(|command| matches!(command, Command::Wake));
        let is_looked_at = |claim: &Parked| claim.is_over() || claim.has_room_again();
        if only_woken && claims.is_empty() && !self.parked.iter().any(is_looked_at) {
            return Ok(true);
        }
        let durable = match group.iter().any(Command::is_synced) {
            true => Durable::Synced,
            false => Durable::Written,
        };
        group.sort_by_key(Command::is_submit);
        self.set_durable(durable)?;
        let mut parked = std::mem::take(&mut self.parked);
        let (answers, effects) = self.transact(|tx| {
            let mut answers = Vec::with_capacity(group.len());
            for command in group {
                match command {
                    Command::Write { run, work, .. } => {
                        if work != Work::Settle {
                            tx.land_ended()?;
                        }
                        answers.push(run(tx)?);
                    }
                    Command::Wake => tx.effects.look = true,
                }
            }
            let mut room = tx.config.store.max_group;
            while room > 0
                && let Ok(waiting) = claims.try_recv()
            {
                room = room.saturating_sub(waiting.claim.wanted().max(1));
                parked.push(waiting);
                tx.effects.look = true;
            }
            if tx.effects.look || tx.effects.due || parked.iter().any(Parked::has_room_again) {
                serve(tx, &mut parked, &mut answers)?;
            }
            Ok(answers)
        })?;
        self.parked = parked;
        if self.signals.failed.borrow().is_some() {
            return Ok(false);
        }
        self.publish(effects);
        for answer in answers {
            answer();
        }
        Ok(true)
    }

    fn transact<T>(&mut self, run: impl FnOnce(&mut Tx<'_>) -> Result<T>) -> Result<(T, Effects)> {
        let head = *self.signals.head.borrow();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut tx = Tx {
            connection: &transaction,
            now: self.shared.now(),
            statements: Statements::default(),
            config: &self.config,
            lines: &mut self.lines,
            recent: &mut self.recent,
            bundles: &mut self.bundles,
            numbers: &mut self.numbers,
            fences: &mut self.fences,
            shared: &self.shared,
            fresh: Fresh::default(),
            gathered: None,
            ending: BTreeMap::new(),
            effects: Effects { head, ..Effects::default() },
            told: None,
            tell_changes: self.signals.changed.receiver_count() > 0,
            removed: false,
        };
        let reply = run(&mut tx)?;
        tx.land_ended()?;
        tx.land()?;
        tx.land_bundle()?;
        tx.save_numbers()?;
        let mut effects = std::mem::take(&mut tx.effects);
        drop(tx);
        effects.counted = self.lines.save(&transaction)?;
        transaction.commit()?;
        if self.durable == Durable::Written && effects.head != head {
            self.sync()?;
        }
        // All or none: those who follow the feed must not take a part for the whole.
        if effects.outcomes.len() as i64 != effects.head.0 - head.0 {
            effects.outcomes.clear();
        }
        Ok((reply, effects))
    }

    /// Syncs what was only written: a claim that meets a damaged job has ended it, and an outcome that is told must
    /// not be taken back. Any synced commit takes the ones before along, if it changes something.
    fn sync(&mut self) -> Result<()> {
        self.set_durable(Durable::Synced)?;
        let mut touch =
            self.connection.prepare_cached("UPDATE meta SET value = value + 1 WHERE key = 'syncs'")?;
        touch.execute([]).map(drop)
    }

    fn set_durable(&mut self, durable: Durable) -> Result<()> {
        if durable != self.durable {
            let level = if durable == Durable::Synced { "FULL" } else { "NORMAL" };
            self.connection.prepare_cached(&format!("PRAGMA synchronous = {level}"))?.execute([])?;
            self.durable = durable;
        }
        Ok(())
    }

    fn publish(&self, effects: Effects) {
        self.shared.update_counts(&self.lines, &effects.counted);
        let signals = &self.signals;
        signals.tell(effects.outcomes);
        signals.head.send_if_modified(|head: &mut Position| {
            let moved = *head != effects.head;
            *head = effects.head;
            moved
        });
        if effects.due {
            signals.due.send_modify(|count| *count = count.wrapping_add(1));
        }
        for job in effects.changed {
            // Only hints: without a listener, or with a slow one, they are lost.
            let _ = signals.changed.send(job);
        }
    }

    /// Nothing is known of the disk any more: no answer leaves from here on. The database is not closed, because
    /// that would write to it.
    fn leave(&mut self) {
        self.parked.clear();
        if let Ok(spare) = Connection::open_in_memory() {
            std::mem::forget(std::mem::replace(&mut self.connection, spare));
        }
    }
}
