use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
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
use tokio::{sync::Semaphore, time::timeout};
use tower::{Service, service_fn};
use url::Host;

use super::{connection::Connection, failure::Refused, guard::Guard};

/// Connections open at the same time, idle ones among them. Above it, new ones wait for others to close.
const MAX_CONNECTIONS: usize = 1024;

/// From the look-up of a name to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Finds the addresses of a name.
#[async_trait]
pub trait Resolve: Send + Sync + 'static {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
pub struct System;

#[async_trait]
impl Resolve for System {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
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
