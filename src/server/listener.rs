//! The accept loop. gRPC, gRPC-Web and their HTTP/1 and HTTP/2 share one port; every limit is set by hand, because
//! the libraries' defaults leave some of them off.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulConnection},
};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{front::Front, socket::Socket};
use crate::config::Http2;

/// After an accept that failed, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Between two looks at a preface that comes in pieces.
const PREFACE_PAUSE: Duration = Duration::from_millis(20);

/// Goes along with every request: fires when its connection has reached its age, and streams are to close.
#[derive(Clone, Debug, Default)]
pub struct Retire(CancellationToken);

impl Retire {
    /// That of a request's connection.
    pub fn of<T>(request: &tonic::Request<T>) -> CancellationToken {
        request.extensions().get::<Self>().cloned().unwrap_or_default().0
    }
}

/// Serves connections until it is told to stop.
pub struct Listener {
    limits: Http2,
    front: Front,
    slots: Arc<Semaphore>,
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    connections: TaskTracker,
    stop: CancellationToken,
}

/// One connection's share of the limits.
struct Slot {
    by_address: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

impl Listener {
    pub fn new(limits: Http2, front: Front) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(limits.max_connections)),
            by_address: Arc::default(),
            connections: TaskTracker::new(),
            stop: CancellationToken::new(),
            limits,
            front,
        }
    }

    /// Accepts connections. Returns once [`Listener::stop`] was called.
    pub async fn accept(&self, socket: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Some(slot) = self.slot(peer.ip()) else {
            tracing::warn!(%peer, "too many connections: one more is closed");
            return;
        };
        let (limits, front, stop) = (self.limits.clone(), self.front.clone(), self.stop.clone());
        self.connections.spawn(async move {
            if let Err(error) = connection(&limits, front, stream, stop).await {
                tracing::debug!(%peer, error, "a connection ended");
            }
            drop(slot);
        });
    }

    fn slot(&self, address: IpAddr) -> Option<Slot> {
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= self.limits.max_connections_per_address {
            return None;
        }
        *count += 1;
        Some(Slot { by_address: self.by_address.clone(), address, _permit: permit })
    }

    /// Accepts no more, lets the calls under way end, and cuts what is left after `patience`.
    pub async fn stop(&self, patience: Duration) {
        self.stop.cancel();
        self.connections.close();
        if timeout(patience, self.connections.wait()).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "connections are cut");
        }
    }
}

async fn connection(
    limits: &Http2,
    front: Front,
    stream: TcpStream,
    stop: CancellationToken,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    tokio::select! {
        begun = opening(&stream, limits.first_byte_timeout) => begun.map_err(|error| error.to_string())?,
        () = stop.cancelled() => return Ok(()),
    }
    let builder = builder(limits);
    let retire = Retire::default();
    let marked = retire.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(marked.clone());
        front.clone().answer(request)
    });
    let socket = Socket::new(stream);
    let serving = builder.serve_connection(TokioIo::new(socket.clone()), service);
    let ended = socket.in_turns(until_it_goes(limits, serving, retire, stop)).await;
    socket.linger().await;
    ended
}

/// Serves a connection to its end, its age, or the end of the server.
async fn until_it_goes(
    limits: &Http2,
    serving: impl GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>>,
    retire: Retire,
    stop: CancellationToken,
) -> Result<(), String> {
    tokio::pin!(serving);
    let age = limits.max_connection_age.mul_f64(0.9 + 0.2 * fastrand::f64());
    tokio::select! {
        ended = serving.as_mut() => return ended.map_err(|error| error.to_string()),
        () = stop.cancelled() => {}
        () = sleep(age) => retire.0.cancel(),
    }
    serving.as_mut().graceful_shutdown();
    match timeout(limits.connection_grace, serving).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Err("its grace was over".into()),
    }
}

/// Waits until a peer has shown which protocol it speaks. The library waits for that without limit, and its pings do
/// not reach a peer that has not finished its preface.
async fn opening(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    let shown = async {
        let mut head = [0; PREFACE.len()];
        loop {
            let length = stream.peek(&mut head).await?;
            let said = &head[..length];
            if said.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if said == PREFACE || !PREFACE.starts_with(said) {
                return Ok(());
            }
            // What was looked at is there still, so there is nothing to wake up for.
            sleep(PREFACE_PAUSE).await;
        }
    };
    timeout(patience, shown).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn builder(limits: &Http2) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_local_error_reset_streams(limits.max_local_error_reset_streams)
        .max_pending_accept_reset_streams(limits.max_pending_accept_reset_streams)
        .max_header_list_size(limits.max_header_list_bytes)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_send_buf_size(limits.send_buffer_bytes)
        .keep_alive_interval(limits.ping_interval)
        .keep_alive_timeout(limits.ping_timeout);
    builder
}
