//! Web servers on a free port of loopback.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};

use super::super::connector::Resolve;

/// A request as the server got it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub version: http::Version,
}

/// A server, and what it saw.
#[derive(Clone, Default)]
pub struct Server {
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// Answers each request by a function.
    pub async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(Seen) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        Self::listen(move |server, stream| server.serve(stream, answer.clone())).await
    }

    /// The same over TLS, for the name `secure.test`; with a client that trusts it.
    pub async fn start_tls<F, Fut>(answer: F) -> (Self, ClientConfig)
    where
        F: Fn(Seen) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let made = rcgen::generate_simple_self_signed(["secure.test".to_owned()]).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let server = Self::listen(move |server, stream| {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    server.serve(stream, answer).await;
                }
            }
        });
        (server.await, client)
    }

    /// Answers every connection with these bytes as soon as it has sent something, and closes it.
    pub async fn raw(bytes: &'static [u8]) -> Self {
        Self::listen(move |_, mut stream| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(bytes).await;
        })
        .await
    }

    /// Takes connections and leaves them to a function.
    pub async fn listen<F, Fut>(serve: F) -> Self
    where
        F: Fn(Self, tokio::net::TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { port: listener.local_addr().unwrap().port(), ..Self::default() };
        let this = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                this.connections.fetch_add(1, SeqCst);
                let serving = serve(this.clone(), stream);
                tokio::spawn(serving);
            }
        });
        server
    }

    async fn serve<F, Fut>(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, answer: F)
    where
        F: Fn(Seen) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let (seen, answer) = (self.seen.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let path = head.uri.path_and_query().unwrap().to_string();
                let request =
                    Seen { method: head.method, path, headers: head.headers, body, version: head.version };
                seen.lock().unwrap().push(request.clone());
                Ok::<_, hyper::Error>(answer(request).await)
            }
        });
        let _ =
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn last(&self) -> Seen {
        self.seen().pop().unwrap()
    }
}

/// A response.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Full::new(body.into())).unwrap()
}

/// Names and their addresses, a list for each time one is asked for; the last list stays.
#[derive(Default)]
pub struct Names {
    lists: Mutex<BTreeMap<String, Vec<Vec<IpAddr>>>>,
    pub asked: AtomicUsize,
}

impl Names {
    pub fn new(names: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let parse = |list: &&[&str]| list.iter().map(|address| address.parse().unwrap()).collect();
        let lists = names.iter().map(|(name, lists)| (name.to_string(), lists.iter().map(parse).collect()));
        Arc::new(Self { lists: Mutex::new(lists.collect()), ..Self::default() })
    }
}

#[async_trait]
impl Resolve for Names {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, SeqCst);
        let mut lists = self.lists.lock().unwrap();
        let lists = lists.get_mut(name).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(if lists.len() > 1 { lists.remove(0) } else { lists[0].clone() })
    }
}
