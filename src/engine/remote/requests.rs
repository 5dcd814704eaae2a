//! LeaseJobs: claims by a call that may be lost on its way back, and is then made again.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::Granted;
use crate::{
    engine::Engine,
    job::{Error, Key, Kind, QueueName, WorkerId},
    store::{Claim, ClaimWait, LeaseId},
};

/// Requests that are remembered. Beyond it the oldest is forgotten: a repeat of it is a request of its own.
const REMEMBERED: usize = 10_000;

/// A call for leases.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    pub worker: WorkerId,
    pub kinds: Vec<Kind>,
    pub queues: Vec<QueueName>,
    pub max_jobs: usize,
    pub max_bytes: usize,
    pub lease: Duration,
    pub request_id: Option<Key>,
    /// Until when to wait for jobs; None: not at all.
    pub until: Option<Instant>,
}

type Name = (WorkerId, Key);
type Answer = Shared<BoxFuture<'static, Result<Arc<[LeaseId]>, Error>>>;

/// The requests of late, each with the leases that it was answered with, or will be.
#[derive(Default)]
pub struct Requests(Mutex<State>);

#[derive(Default)]
struct State {
    answers: HashMap<Name, Answer>,
    order: VecDeque<Name>,
}

impl Requests {
    fn find(&self, name: &Name) -> Option<Answer> {
        self.0.lock().answers.get(name).cloned()
    }

    fn remember(&self, name: Name, answer: Answer) {
        let mut state = self.0.lock();
        if state.answers.insert(name.clone(), answer).is_none() {
            state.order.push_back(name);
        }
        if state.order.len() > REMEMBERED
            && let Some(oldest) = state.order.pop_front()
        {
            state.answers.remove(&oldest);
        }
    }
}

impl Engine {
    /// Gives due jobs to whoever asks. A repeat with the same `request_id` gets the same leases, as long as any of them
    /// is held. The `place` among those who wait is taken for as long as the store is asked, whatever becomes of the call.
    ///
    /// # Errors
    /// [`Error::Draining`] while the server stops.
    pub async fn lease_jobs(
        &self,
        request: LeaseRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<Vec<Granted>, Error> {
        self.take_work()?;
        let Some(key) = request.request_id.clone() else {
            return self.ask_once(request, place).await;
        };
        let name = (request.worker.clone(), key);
        if let Some(answer) = self.0.requests.find(&name) {
            let patience =
                request.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
            // One that failed is made anew.
            match timeout(patience, answer).await {
                Ok(Ok(leases)) => {
                    let again = self.granted_again(&leases).await?;
                    if !again.is_empty() {
                        return Ok(again);
                    }
                }
                Ok(Err(_)) => {}
                Err(_) => return Ok(Vec::new()),
            }
        }
        let (sender, granted) = oneshot::channel();
        let engine = self.clone();
        // Runs to its end, whatever becomes of the call: the leases are for the next one with this name.
        let asked = tokio::spawn(async move {
            let _place = place;
            let granted = engine.ask(&request, engine.claim_end()).await?;
            let leases = granted.iter().map(|granted| granted.lease).collect();
            // The caller may have gone.
            let _ = sender.send(granted);
            Ok(leases)
        });
        let answer =
            async move { asked.await.unwrap_or_else(|_| Err(Error::Internal("a claim panicked".into()))) };
        let answer = answer.boxed().shared();
        self.0.requests.remember(name, answer.clone());
        match granted.await {
            Ok(granted) => Ok(granted),
            Err(_) => Err(answer.await.err().unwrap_or(Error::Draining)),
        }
    }

    /// Without a name: what the caller is not there for goes back.
    async fn ask_once(
        &self,
        request: LeaseRequest,
        place: OwnedSemaphorePermit,
    ) -> Result<Vec<Granted>, Error> {
        let (sender, granted) = oneshot::channel();
        let (engine, end) = (self.clone(), self.claim_end());
        // When this call is dropped, the claim ends; leases may still come of it.
        let _guard = end.clone().drop_guard();
        tokio::spawn(async move {
            let _place = place;
            if let Err(Ok(missed)) = sender.send(engine.ask(&request, end).await) {
                let leases = missed.iter().map(|granted| granted.lease).collect::<Vec<_>>();
                leases.iter().for_each(|&lease| engine.remote().remove(lease));
                engine.give_back(leases).await;
            }
        });
        granted.await.map_err(|_| Error::Internal("a claim panicked".into()))?
    }

    async fn ask(
        &self,
        request: &LeaseRequest,
        end: tokio_util::sync::CancellationToken,
    ) -> Result<Vec<Granted>, Error> {
        let wait = request.until.map(|_| ClaimWait {
            slots: Arc::new(Semaphore::new(request.max_jobs)),
            end: end.clone(),
            handover: None,
            now: self.claim_clock(),
        });
        let claim = Claim {
            worker: request.worker.clone(),
            queues: Some(request.queues.clone()),
            kinds: request.kinds.clone(),
            limit: request.max_jobs,
            max_bytes: request.max_bytes,
            caps: HashMap::new(),
            // A reply that is lost locks its jobs no longer than this. The first renewal asks for the whole time.
            lease: request.lease.min(self.config().workers.lease),
            wait,
        };
        let granting = self.grant(None, claim);
        tokio::pin!(granting);
        if let Some(until) = request.until {
            tokio::select! {
                granted = &mut granting => return granted,
                () = sleep_until(until) => end.cancel(),
            }
        }
        granting.await
    }

    async fn granted_again(&self, leases: &[LeaseId]) -> Result<Vec<Granted>, Error> {
        let held = self.remote().held(leases);
        let jobs = self.0.store.leased(held.clone(), true).await?;
        let granted = held.into_iter().zip(jobs).filter_map(|(lease, job)| {
            let (until, deadline) = self.remote().times(lease)?;
            Some(Granted { lease, sequence: 0, job: job?.into(), until, deadline })
        });
        Ok(granted.collect())
    }
}
