use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};

/// How long a closed connection is listened to.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that can be had back when its protocol has ended. The lock is never contended.
#[derive(Clone, Debug)]
pub struct Socket(Arc<Mutex<TcpStream>>);

impl Socket {
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    /// Says that nothing more is sent, and waits for the peer to say the same, for a while.
    ///
    /// A socket that is closed while bytes wait to be read is reset, and the reset overtakes what was sent last: a
    /// watcher would never see its closing checkpoint. So the rest is read and dropped first.
    pub async fn linger(self) {
        let Some(stream) = Arc::into_inner(self.0) else { return };
        let mut stream = stream.into_inner();
        // Both fail only if the connection is gone already.
        let _ = timeout(LINGER, async {
            stream.shutdown().await?;
            let mut waste = [0; 4096];
            while stream.read(&mut waste).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
    }

    fn with<T>(&self, poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<T>) -> Poll<T> {
        poll(Pin::new(&mut self.0.lock()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(context))
    }
}
