use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::{HttpConnector, dns::Name};
use rustls::ClientConfig;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use tower::{Service, service_fn};
use url::Host;

use super::{connection::Connection, failure::Refused, guard::Guard};

/// Connections open at the same time, idle ones among them. Above it, new ones wait for others to close.
const MAX_CONNECTIONS: usize = 1024;

/// From the look-up of a name to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Names that are looked up at the same time. A look-up that hangs keeps its thread, and the store reads on threads of
/// the same pool.
const MAX_LOOKUPS: usize = 32;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Finds the addresses of a name.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
pub struct System {
    places: Arc<Semaphore>,
}

impl Default for System {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl System {
    /// Runs a look-up on a thread, once there is a place for it.
    async fn on_a_thread<T: Send + 'static>(
        &self,
        look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let place = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let thread = spawn_blocking(move || {
            // Held until the look-up returns, also when nobody waits for it any more.
            let _place = place;
            look_up()
        });
        thread.await?
    }
}

#[async_trait]
impl Resolve for System {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = name.to_owned();
        let look_up = move || (name.as_str(), 0).to_socket_addrs();
        Ok(self.on_a_thread(look_up).await?.map(|address| address.ip()).collect())
    }
}

/// Connects to addresses that the guard lets through, and to no others: it checks the very addresses that are then
/// connected to, so a name that changes its mind in between gains nothing.
#[derive(Clone)]
pub struct Connector {
    guard: Arc<Guard>,
    resolver: Arc<dyn Resolve>,
    tls: Arc<ClientConfig>,
    connections: Arc<Semaphore>,
}

impl Connector {
    pub fn new(guard: Guard, resolver: Arc<dyn Resolve>, mut tls: ClientConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { guard: Arc::new(guard), resolver, tls: Arc::new(tls), connections }
    }

    async fn connect(self, uri: Uri) -> Result<Connection, BoxError> {
        let place = self.connections.clone().acquire_owned().await?;
        let addresses = self.addresses(&uri).await?;
        // Goes through these addresses only, whatever name the URI has.
        let resolver = service_fn(move |_: Name| {
            let addresses: Vec<_> = addresses.iter().map(|&ip| SocketAddr::new(ip, 0)).collect();
            std::future::ready(Ok::<_, Infallible>(addresses.into_iter()))
        });
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let io = HttpsConnector::from((tcp, self.tls.clone())).call(uri).await?;
        Ok(Connection::new(io, place))
    }

    /// The addresses of a URI's host, all of them checked.
    async fn addresses(&self, uri: &Uri) -> Result<Vec<IpAddr>, BoxError> {
        let host = Host::parse(uri.host().unwrap_or_default())?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut addresses = match &host {
            Host::Ipv4(v4) => vec![IpAddr::V4(*v4)],
            Host::Ipv6(v6) => vec![IpAddr::V6(*v6)],
            Host::Domain(name) => self.look_up(name).await?,
        };
        self.guard.check(&host, port, &addresses).map_err(Refused::Blocked)?;
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, Refused> {
        let found = self.resolver.resolve(name).await;
        let found = found.map_err(|error| Refused::Dns(format!("{name} cannot be looked up: {error}")))?;
        let mut seen = BTreeSet::new();
        let addresses: Vec<_> = found.into_iter().filter(|&address| seen.insert(address)).collect();
        if addresses.is_empty() {
            return Err(Refused::Dns(format!("{name} has no address")));
        }
        Ok(addresses)
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Connection, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async {
            let late = |_| {
                io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_TIMEOUT:?}"))
            };
            timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        thread,
    };

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn look_ups_that_hang_keep_so_many_threads_and_no_more() {
        let system = System::default();
        let (begun, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let hang = || {
            let (begun, is_over) = (begun.clone(), is_over.clone());
            move || {
                begun.fetch_add(1, SeqCst);
                while !is_over.load(SeqCst) {
                    thread::sleep(Duration::from_millis(5));
                }
                Ok::<_, io::Error>(())
            }
        };
        let look_ups = (0..2 * MAX_LOOKUPS).map(|_| system.on_a_thread(hang()));
        let ended = join_all(look_ups.map(|look_up| timeout(Duration::from_millis(300), look_up))).await;
        let (begun, free) = (begun.load(SeqCst), system.places.available_permits());
        // Before anything can fail: the runtime waits for its threads.
        is_over.store(true, SeqCst);
        assert!(ended.iter().all(Result::is_err));
        assert!(begun <= MAX_LOOKUPS && free == 0, "{begun} run, {free} more could");
        assert!(system.on_a_thread(|| Ok(())).await.is_ok());
    }
}
