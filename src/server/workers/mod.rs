//! WorkerService: programs that connect and run jobs.

mod stream;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::stream::BoxStream;
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert::{self, Format, format, job, proto_timestamp},
    deadline::Deadline,
    jobs::{leave_bodies_out, patience},
    listener::Retire,
    room::Room,
    status::status,
    tokens::LeaseKey,
};
use crate::{
    engine::Engine,
    job::{Error, View},
    proto::{self, worker_service_server::WorkerService},
    store::LeaseId,
};

/// A method's name on the wire.
pub const RENEW_LEASES: &str = "/jobwire.v1.WorkerService/RenewLeases";

/// Bytes of inputs that one LeaseJobs hands out, the last one aside.
const LEASE_BYTES: usize = 2 << 20;

/// Bytes of a reply. A message may have a little more.
const MAX_REPLY: usize = 4_000_000;

/// Workers that are told of the stop have this long to go, or to another server.
const RECONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The service. It answers UNAVAILABLE until there is an engine.
#[derive(Clone)]
pub struct WorkersApi {
    workers: Arc<OnceLock<Workers>>,
    room: Room,
    connected: Arc<Semaphore>,
    limit: usize,
    sessions: TaskTracker,
}

impl WorkersApi {
    /// For at most `limit` workers at a time.
    pub fn new(room: Room, limit: usize) -> Self {
        let connected = Arc::new(Semaphore::new(limit));
        Self { workers: Arc::default(), room, connected, limit, sessions: TaskTracker::new() }
    }

    /// From now on calls are served.
    pub fn open(&self, engine: Engine, instance: &str) {
        let key = LeaseKey::new(&engine.lease_key());
        // The first one stays; there is no second.
        let _ = self.workers.set(Workers { engine, key, instance: instance.into() });
    }

    /// Waits until the workers that were told of the stop have gone.
    pub async fn drain(&self, patience: Duration) {
        self.sessions.close();
        // Those that stay are told by the end of their streams; what they hold stays theirs.
        let _ = tokio::time::timeout(patience.min(RECONNECT_WITHIN), self.sessions.wait()).await;
    }

    fn workers(&self) -> Result<&Workers, Status> {
        self.workers.get().ok_or_else(|| status(Error::StoreUnavailable("it recovers after a start".into())))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        let full = |_| Error::WatchLimit { what: "workers", limit: self.limit as u64 };
        self.connected.clone().try_acquire_owned().map_err(full)
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// What the calls do.
#[derive(Clone)]
struct Workers {
    engine: Engine,
    key: LeaseKey,
    /// Of this start of the server.
    instance: Arc<str>,
}

impl Workers {
    async fn lease_jobs(
        &self,
        request: proto::LeaseJobsRequest,
        deadline: Option<Instant>,
        place: OwnedSemaphorePermit,
    ) -> Result<proto::LeaseJobsResponse, Error> {
        let config = self.engine.config();
        let until = patience(request.wait.as_ref(), deadline, config.limits.max_wait)?;
        let format = format("payload_format", request.payload_format, Format::Raw)?;
        let request = convert::lease_request(request, config, LEASE_BYTES, until)?;
        let mut granted = self.engine.lease_jobs(request, place).await?;
        let mut leases: Vec<_> =
            granted.iter().map(|granted| convert::lease(granted, &self.key, format)).collect();
        let fitting = fitting(&leases);
        let too_much: Vec<LeaseId> = granted.drain(fitting..).map(|granted| granted.lease).collect();
        leases.truncate(fitting);
        self.give_back(&too_much).await;
        if let [one] = &leases[..]
            && one.encoded_len() > MAX_REPLY
        {
            leases = granted.iter().map(|granted| convert::lease(granted, &self.key, Format::Text)).collect();
        }
        Ok(proto::LeaseJobsResponse { leases: numbered(leases) })
    }

    /// Gives leases back that have not reached their worker.
    async fn give_back(&self, leases: &[LeaseId]) {
        self.engine.give_back(self.engine.take_unconfirmed(leases)).await;
    }

    async fn renew_leases(
        &self,
        request: proto::RenewLeasesRequest,
    ) -> Result<proto::RenewLeasesResponse, Error> {
        let config = self.engine.config();
        let lease = convert::lease_duration(request.lease_duration.as_ref(), config)?;
        let named = convert::named("lease_ids", request.lease_ids, &self.key)?;
        let now = self.engine.clock().now();
        let mut others = named.others;
        let mut steps = Vec::new();
        // No more than leases are given to anybody: they were counted before they were read.
        for (index, step) in request.progress.into_iter().enumerate() {
            steps.push(convert::step(&format!("progress[{index}]"), step, now)?);
        }
        // Progress goes to the store with the renewal, so the leases must be known before.
        self.engine.adopt(&named.ours).await?;
        for (text, progress) in steps {
            let held =
                self.key.lease(&text).is_some_and(|lease| self.engine.report_progress(lease, progress));
            if !held {
                others.insert(text);
            }
        }
        let found = self.engine.renew_named(None, &named.ours, lease).await?;
        let revoked = found.stopped.iter();
        Ok(proto::RenewLeasesResponse {
            revoked: revoked
                .map(|&(lease, why, grace)| convert::revoked(self.key.text(lease), why, grace))
                .collect(),
            lease_expire_time: found.until.map(proto_timestamp),
            lost_lease_ids: convert::lost(&found.lost, others, &self.key),
        })
    }

    async fn finish_job(&self, request: proto::FinishJobRequest) -> Result<proto::FinishJobResponse, Error> {
        let finish = request.finish.ok_or_else(|| Error::invalid("finish", "is required"))?;
        if finish.lease_id.is_empty() {
            return Err(Error::invalid("finish.lease_id", "is required"));
        }
        let lease = self.key.lease(&finish.lease_id).ok_or(Error::LeaseLost)?;
        let report = convert::report(finish, &self.engine.config().limits)?;
        // Carried out to its end, also if the caller goes away meanwhile.
        let finished = tokio::spawn(self.engine.finish(lease, report)).await;
        finished.map_err(|panic| Error::Internal(panic.to_string()))??;
        let Some(id) = self.engine.lease_job(lease).await? else {
            // Its retention was over at once.
            return Ok(proto::FinishJobResponse::default());
        };
        let done = self.engine.get(&id, View::Result).await?;
        Ok(proto::FinishJobResponse { job: Some(job(&done, View::Result, Format::Readable, usize::MAX)) })
    }
}

/// How many of the leases a reply has room for, at least one.
fn fitting(leases: &[proto::Lease]) -> usize {
    let mut size = 0;
    let fits = leases.iter().take_while(|lease| {
        // A tag and a length precede it.
        size += lease.encoded_len() + 8;
        size <= MAX_REPLY
    });
    fits.count().max(1).min(leases.len())
}

fn numbered(mut leases: Vec<proto::Lease>) -> Vec<proto::Lease> {
    (1..).zip(&mut leases).for_each(|(sequence, lease)| lease.sequence = sequence);
    leases
}

#[tonic::async_trait]
impl WorkerService for WorkersApi {
    type WorkStream = BoxStream<'static, Result<proto::WorkResponse, Status>>;

    async fn work(&self, request: Request<Streaming<proto::WorkRequest>>) -> Answer<Self::WorkStream> {
        let workers = self.workers()?.clone();
        workers.engine.take_work().map_err(status)?;
        let place = self.place().map_err(status)?;
        let ends = (Deadline::of(&request), Retire::of(&request));
        Ok(Response::new(stream::work(workers, &self.sessions, request.into_inner(), ends, place)))
    }

    async fn lease_jobs(
        &self,
        request: Request<proto::LeaseJobsRequest>,
    ) -> Answer<proto::LeaseJobsResponse> {
        let place = self.place().map_err(status)?;
        let deadline = Deadline::of(&request);
        let workers = self.workers()?;
        let answer = workers.lease_jobs(request.into_inner(), deadline, place).await;
        let reply = answer.map_err(status)?;
        let leases: Vec<_> =
            reply.leases.iter().filter_map(|lease| workers.key.lease(&lease.lease_id)).collect();
        match self.room.reply(reply) {
            Ok(reply) => Ok(reply),
            Err(full) => {
                workers.give_back(&leases).await;
                Err(status(full))
            }
        }
    }

    async fn renew_leases(
        &self,
        request: Request<proto::RenewLeasesRequest>,
    ) -> Answer<proto::RenewLeasesResponse> {
        self.workers()?.renew_leases(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn finish_job(
        &self,
        request: Request<proto::FinishJobRequest>,
    ) -> Answer<proto::FinishJobResponse> {
        let done = self.workers()?.finish_job(request.into_inner()).await.map_err(status)?;
        Ok(self.room.reply_at_least(done, |response| leave_bodies_out(response.job.as_mut())))
    }
}
