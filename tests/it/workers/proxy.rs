//! A way to a server that can fall silent in one direction: no end, no error, just nothing. It can lead to another server,
//! or to none.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};
use tonic::transport::Endpoint;

use crate::support::{Server, Workers};

pub struct Proxy {
    address: String,
    server: Arc<Mutex<String>>,
    to_server: Arc<AtomicBool>,
    to_worker: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    pub async fn before(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (to_server, to_worker) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let server = Arc::new(Mutex::new(server.address().to_owned()));
        let (leads_to, up, down) = (server.clone(), to_server.clone(), to_worker.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((worker, _)) = listener.accept().await {
                let server = leads_to.lock().expect("no panic").clone();
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let ((from_worker, to_worker), (from_server, to_server)) =
                    (worker.into_split(), server.into_split());
                tokio::spawn(pass(from_worker, to_server, up.clone()));
                tokio::spawn(pass(from_server, to_worker, down.clone()));
            }
        });
        Self { address, server, to_server, to_worker, accepting }
    }

    /// `host:port`, the same for ever.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// New connections go to this server.
    pub fn lead_to(&self, server: &Server) {
        server.address().clone_into(&mut self.server.lock().expect("no panic"));
    }

    /// What the worker says is lost from now on, also its end.
    pub fn cut_to_server(&self) {
        self.to_server.store(false, Ordering::SeqCst);
    }

    /// What the server says is lost from now on, also its end.
    pub fn cut_to_worker(&self) {
        self.to_worker.store(false, Ordering::SeqCst);
    }

    pub async fn workers(&self) -> Workers {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        Workers::new(endpoint.connect().await.expect("the way is open"))
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, open: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if !open.load(Ordering::SeqCst) {
            if read == 0 {
                // The other side never hears of it.
                std::future::pending::<()>().await;
            }
            continue;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
