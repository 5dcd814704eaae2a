//! One `Work` stream, on a connection of its own.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, codec::CompressionEncoding, transport::Endpoint};

use crate::{
    client::{Error, MAX_MESSAGE_BYTES, connect},
    proto::{
        WorkRequest, WorkResponse, WorkerHello, WorkerWelcome, work_request::Message as Said,
        work_response::Message as Told, worker_service_client::WorkerServiceClient,
    },
};

/// For the connection and the welcome.
const WELCOME: Duration = Duration::from_secs(15);

/// Messages on their way to the socket. What waits longer is kept where newer ones take its place.
const BUFFER: usize = 16;

/// Where a server does not say.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// A session with the server. Dropping it ends the stream.
pub struct Link {
    says: mpsc::Sender<WorkRequest>,
    hears: Streaming<WorkResponse>,
    /// When something came last.
    heard: Instant,
    pub heartbeat: Duration,
    /// The highest of the leases that came.
    pub last_sequence: i64,
    /// For each heartbeat that is not answered yet, in order: it names the leases that came up to this one.
    pub named: VecDeque<i64>,
}

impl Link {
    /// Begins a session, or fails if the server does not welcome the worker.
    pub async fn open(
        endpoint: Endpoint,
        gzip: bool,
        hello: WorkerHello,
    ) -> Result<(Self, WorkerWelcome), Error> {
        timeout(WELCOME, Self::begin(endpoint, gzip, hello)).await.map_err(|_| Error::Silent(WELCOME))?
    }

    async fn begin(
        endpoint: Endpoint,
        gzip: bool,
        hello: WorkerHello,
    ) -> Result<(Self, WorkerWelcome), Error> {
        let channel = connect(&endpoint).await?;
        let (says, said) = mpsc::channel(BUFFER);
        // There is room: it is the first one.
        let _ = says.try_send(WorkRequest { message: Some(Said::Hello(hello)) });
        let mut client = WorkerServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        if gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut hears = client.work(ReceiverStream::new(said)).await?.into_inner();
        let first = hears.message().await?.ok_or(Error::Ended)?;
        let Some(Told::Welcome(welcome)) = first.message else {
            return Err(Error::Incomplete("welcome"));
        };
        let heartbeat = welcome.heartbeat_interval.and_then(|interval| Duration::try_from(interval).ok());
        let heartbeat = heartbeat.filter(|interval| !interval.is_zero()).unwrap_or(HEARTBEAT);
        let (heard, named) = (Instant::now(), VecDeque::new());
        Ok((Self { says, hears, heard, heartbeat, last_sequence: 0, named }, welcome))
    }

    /// The next message. None for one that this version does not know.
    pub async fn hear(&mut self) -> Result<Option<Told>, Error> {
        // Each heartbeat is answered.
        let silence = self.heartbeat * 3;
        let message = timeout_at(self.heard + silence, self.hears.message()).await;
        let message = message.map_err(|_| Error::Silent(silence))??.ok_or(Error::Ended)?;
        self.heard = Instant::now();
        if let Some(Told::Lease(lease)) = &message.message {
            self.last_sequence = self.last_sequence.max(lease.sequence);
        }
        Ok(message.message)
    }

    /// Waits for room for one message. For ever if the stream has ended: [`Link::hear`] tells why.
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let says = self.says.clone();
        async move {
            if says.reserve().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Sends a message that there is room for.
    pub fn say(&self, message: Said) {
        // On a stream that has ended nothing is lost: the next one begins with all that is held.
        let _ = self.says.try_send(WorkRequest { message: Some(message) });
    }
}
