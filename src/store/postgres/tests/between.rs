//! Stands between a store and the database, and loses answers.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Accepts connections until it is dropped.
pub struct Between {
    pub url: String,
    keeps_back: watch::Sender<bool>,
}

impl Between {
    pub async fn start(url: &str) -> Self {
        let config: tokio_postgres::Config = url.parse().unwrap();
        let port = config.get_ports()[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let url = url.replace(&format!(":{port}/"), &format!(":{own}/"));
        let keeps_back = watch::Sender::new(false);
        let mut told = keeps_back.subscribe();
        tokio::spawn(async move {
            while told.has_changed().is_ok() {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(pass_on(client, server, told.clone()));
                told.mark_unchanged();
            }
        });
        Self { url, keeps_back }
    }

    /// From now on the database hears, and nobody hears what it answers.
    pub fn keep_answers_back(&self) {
        self.keeps_back.send_replace(true);
    }

    /// Breaks these connections off. New ones are like any other.
    pub fn cut(&self) {
        self.keeps_back.send_replace(false);
    }
}

async fn pass_on(client: TcpStream, server: TcpStream, mut keeps_back: watch::Receiver<bool>) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let is_kept_back = keeps_back.clone();
    let answers = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(size @ 1..) = from_server.read(&mut buffer).await {
            if !*is_kept_back.borrow() && to_client.write_all(&buffer[..size]).await.is_err() {
                return;
            }
        }
    };
    let cut = async {
        // An error is the end of the test.
        let _ = keeps_back.wait_for(|&keeps_back| keeps_back).await;
        let _ = keeps_back.wait_for(|&keeps_back| !keeps_back).await;
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
        () = cut => {}
    }
}
