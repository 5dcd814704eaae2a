//! Group commit, seen from the callers: whatever arrives while a batch is on its way makes up the next one.

use std::{future::Future, mem, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep_until},
};

use crate::job::Error;

struct Call<I, O> {
    item: I,
    reply: oneshot::Sender<Result<O, Error>>,
    _room: OwnedSemaphorePermit,
}

/// Collects items from many callers and hands them on together. Bounded by the size of what waits.
pub struct Batcher<I, O> {
    calls: mpsc::UnboundedSender<Call<I, O>>,
    room: Arc<Semaphore>,
    capacity: usize,
}

/// How large batches become, and how many of them are on their way.
pub struct Bounds<I> {
    /// A batch takes no more once its weights come to this.
    pub most: usize,
    pub weight: fn(&I) -> usize,
    pub flights: usize,
    /// A batch that weighs less waits until no other is on its way, but not for long.
    pub enough: usize,
}

/// The batch before may hang on a connection that is dead.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a caller does when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// It is told at once.
    Refuse,
    /// It waits.
    Wait,
}

impl<I: Send + 'static, O: Send + 'static> Batcher<I, O> {
    /// `capacity` bounds the sizes of all items that wait together, `bounds` the batches. The channel itself has no bound of
    /// its own: every item in it holds a part of the capacity.
    pub fn spawn<F>(capacity: usize, bounds: Bounds<I>, flush: impl Fn(Vec<I>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<O>, Error>> + Send + 'static,
    {
        let capacity = capacity.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        let (calls, queue) = mpsc::unbounded_channel();
        tokio::spawn(run(queue, bounds, flush));
        Self { calls, room: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// Hands in one item of some size, at least 1, and waits for its reply.
    ///
    /// # Errors
    /// What the batch answered for this item or as a whole; [`Error::QueueFull`] if there is no room and the caller
    /// does not wait.
    pub async fn call(&self, item: I, size: usize, pressure: Pressure) -> Result<O, Error> {
        self.enter(item, size, pressure).await?.await
    }

    /// Hands in one item, as [`Batcher::call`] does. Its reply comes later: items that are handed in one after the other
    /// stay in that order.
    ///
    /// # Errors
    /// As [`Batcher::call`], now and later.
    pub async fn enter(
        &self,
        item: I,
        size: usize,
        pressure: Pressure,
    ) -> Result<impl Future<Output = Result<O, Error>> + Send + use<I, O>, Error> {
        let full =
            || Error::QueueFull { what: "the server's write buffer".into(), limit: self.capacity as u64 };
        let size = u32::try_from(size.clamp(1, self.capacity)).map_err(|_| full())?;
        let room = match pressure {
            Pressure::Refuse => self.room.clone().try_acquire_many_owned(size).map_err(|_| full())?,
            Pressure::Wait => self.room.clone().acquire_many_owned(size).await.map_err(|_| closed())?,
        };
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { item, reply, _room: room }).map_err(|_| closed())?;
        Ok(async move { answer.await.map_err(|_| closed())? })
    }
}

fn closed() -> Error {
    Error::StoreUnavailable("it is closed".into())
}

async fn run<I, O, F>(
    mut queue: mpsc::UnboundedReceiver<Call<I, O>>,
    Bounds { most, weight, flights, enough }: Bounds<I>,
    flush: impl Fn(Vec<I>) -> F,
) where
    F: Future<Output = Result<Vec<O>, Error>>,
{
    let mut flying = FuturesUnordered::new();
    let (mut items, mut replies, mut weights) = (Vec::new(), Vec::new(), 0);
    let mut is_open = true;
    let mut since = Instant::now();
    while is_open || !items.is_empty() || !flying.is_empty() {
        let may_fly =
            flying.is_empty() || flying.len() < flights && (weights >= enough || since.elapsed() >= PATIENCE);
        if !items.is_empty() && may_fly {
            let (flight, replies) = (flush(mem::take(&mut items)), mem::take(&mut replies));
            weights = 0;
            flying.push(async move { answer(replies, flight.await) });
        }
        tokio::select! {
            biased;
            Some(()) = flying.next() => {}
            () = sleep_until(since + PATIENCE), if !items.is_empty() && flying.len() < flights => {}
            first = queue.recv(), if is_open && weights < most => {
                is_open = first.is_some();
                if items.is_empty() {
                    since = Instant::now();
                }
                let mut next = first;
                while let Some(Call { item, reply, _room }) = next {
                    weights += weight(&item);
                    items.push(item);
                    replies.push((reply, _room));
                    next = if weights < most { queue.try_recv().ok() } else { None };
                }
            }
        }
    }
}

type Waiting<O> = (oneshot::Sender<Result<O, Error>>, OwnedSemaphorePermit);

/// A caller that went away is no error: what it asked for is done all the same.
fn answer<O>(replies: Vec<Waiting<O>>, outcome: Result<Vec<O>, Error>) {
    match outcome {
        Ok(outputs) => {
            assert_eq!(outputs.len(), replies.len(), "one answer for each item of a batch");
            for ((reply, _), output) in replies.into_iter().zip(outputs) {
                let _ = reply.send(Ok(output));
            }
        }
        Err(error) => {
            for (reply, _) in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds<I>(most: usize) -> Bounds<I> {
        Bounds { most, weight: |_| 1, flights: 64, enough: 1 }
    }

    /// A batcher that answers one batch for each permit, and the sizes of the batches so far.
    struct Gated {
        batcher: Arc<Batcher<u32, u32>>,
        gate: Arc<Semaphore>,
        sizes: Arc<parking_lot::Mutex<Vec<usize>>>,
    }

    fn gated(bounds: Bounds<u32>) -> Gated {
        let (gate, sizes) = (Arc::new(Semaphore::new(0)), Arc::new(parking_lot::Mutex::new(Vec::new())));
        let (opened, seen) = (gate.clone(), sizes.clone());
        let batcher = Batcher::spawn(100, bounds, move |items: Vec<u32>| {
            seen.lock().push(items.len());
            let opened = opened.clone();
            async move {
                opened.acquire().await.unwrap().forget();
                Ok(items.into_iter().map(|item| item * 2).collect())
            }
        });
        Gated { batcher: batcher.into(), gate, sizes }
    }

    type Called = tokio::task::JoinHandle<Result<u32, Error>>;

    async fn call(batcher: &Arc<Batcher<u32, u32>>, items: std::ops::Range<u32>) -> Vec<Called> {
        let call = |item| {
            let batcher = batcher.clone();
            tokio::spawn(async move { batcher.call(item, 1, Pressure::Refuse).await })
        };
        let calls = items.map(call).collect();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        calls
    }

    #[tokio::test]
    async fn what_waits_goes_together() {
        let Gated { batcher, gate, sizes } = gated(bounds(50));
        let calls = call(&batcher, 0..20).await;
        gate.add_permits(20);
        for (item, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap().unwrap(), item as u32 * 2);
        }
        assert!(sizes.lock().len() <= 4, "{sizes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_batch_waits_for_the_one_before_it_but_not_for_ever() {
        let Gated { batcher, gate, sizes } = gated(Bounds { flights: 2, enough: 10, ..bounds(10) });
        let mut calls = call(&batcher, 0..1).await;
        calls.extend(call(&batcher, 1..10).await);
        assert_eq!(*sizes.lock(), [1]);
        calls.extend(call(&batcher, 10..14).await);
        assert_eq!(*sizes.lock(), [1, 10]);
        // There is room for one more, but it is small.
        gate.add_permits(1);
        calls.extend(call(&batcher, 14..15).await);
        assert_eq!(*sizes.lock(), [1, 10]);
        tokio::time::sleep(2 * PATIENCE).await;
        assert_eq!(*sizes.lock(), [1, 10, 4]);
        gate.add_permits(2);
        for (item, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap().unwrap(), item as u32 * 2);
        }
    }

    #[tokio::test]
    async fn a_full_buffer_refuses_or_waits() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = gate.clone();
        let batcher = Arc::new(Batcher::spawn(10, bounds(50), move |items: Vec<()>| {
            let opened = opened.clone();
            async move {
                opened.acquire().await.unwrap().forget();
                Ok(items)
            }
        }));
        let first = batcher.clone();
        let first = tokio::spawn(async move { first.call((), 8, Pressure::Refuse).await });
        tokio::task::yield_now().await;
        let refused = batcher.call((), 3, Pressure::Refuse).await;
        assert!(matches!(refused, Err(Error::QueueFull { limit: 10, .. })), "{refused:?}");
        let second = batcher.clone();
        let second = tokio::spawn(async move { second.call((), 3, Pressure::Wait).await });
        gate.add_permits(2);
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_error_reaches_every_caller() {
        let batcher: Batcher<(), ()> = Batcher::spawn(10, bounds(50), |_| async {
            Err(Error::StoreUnavailable("the disk is gone".into()))
        });
        let (one, two) =
            tokio::join!(batcher.call((), 1, Pressure::Refuse), batcher.call((), 1, Pressure::Refuse));
        assert!(one.is_err() && two.is_err());
    }
}
