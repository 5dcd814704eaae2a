//! Group commit, seen from the callers: whatever arrives while a batch is on its way makes up the next one.

use std::{future::Future, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

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
}

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
        let full =
            || Error::QueueFull { what: "the server's write buffer".into(), limit: self.capacity as u64 };
        let closed = || Error::StoreUnavailable("it is closed".into());
        let size = u32::try_from(size.clamp(1, self.capacity)).map_err(|_| full())?;
        let room = match pressure {
            Pressure::Refuse => self.room.clone().try_acquire_many_owned(size).map_err(|_| full())?,
            Pressure::Wait => self.room.clone().acquire_many_owned(size).await.map_err(|_| closed())?,
        };
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { item, reply, _room: room }).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

async fn run<I, O, F>(
    mut queue: mpsc::UnboundedReceiver<Call<I, O>>,
    Bounds { most, weight, flights }: Bounds<I>,
    flush: impl Fn(Vec<I>) -> F,
) where
    F: Future<Output = Result<Vec<O>, Error>>,
{
    let mut flying = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = flying.next() => {}
            first = queue.recv(), if flying.len() < flights => {
                let Some(first) = first else { break };
                let mut weights = weight(&first.item);
                let (mut items, mut replies) = (vec![first.item], vec![(first.reply, first._room)]);
                while weights < most && let Ok(call) = queue.try_recv() {
                    weights += weight(&call.item);
                    items.push(call.item);
                    replies.push((call.reply, call._room));
                }
                let flight = flush(items);
                flying.push(async move { answer(replies, flight.await) });
            }
        }
    }
    while flying.next().await.is_some() {}
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
        Bounds { most, weight: |_| 1, flights: 64 }
    }

    #[tokio::test]
    async fn what_waits_goes_together() {
        let (gate, batches) = (Arc::new(Semaphore::new(0)), Arc::new(parking_lot::Mutex::new(Vec::new())));
        let (opened, seen) = (gate.clone(), batches.clone());
        let batcher = Arc::new(Batcher::spawn(100, bounds(50), move |items: Vec<u32>| {
            let (opened, seen) = (opened.clone(), seen.clone());
            async move {
                opened.acquire().await.unwrap().forget();
                seen.lock().push(items.len());
                Ok(items.into_iter().map(|item| item * 2).collect())
            }
        }));
        let calls: Vec<_> = (0..20)
            .map(|item| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.call(item, 1, Pressure::Refuse).await })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.add_permits(20);
        for (item, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap().unwrap(), item as u32 * 2);
        }
        assert!(batches.lock().len() <= 4, "{batches:?}");
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
