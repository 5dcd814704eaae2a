//! A connection's socket: what is said in one turn leaves in one write.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
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

/// Bytes that wait for the end of a turn. With more, the protocol waits too.
const BUFFER: usize = 64 << 10;

/// Bytes that a connection keeps for its next turn.
const KEPT: usize = 4 << 10;

/// A connection that can be had back when its protocol has ended. The lock is never contended.
#[derive(Clone, Debug)]
pub struct Socket(Arc<Mutex<Buffered>>);

#[derive(Debug)]
struct Buffered {
    stream: TcpStream,
    /// Said in this turn.
    said: Vec<u8>,
    /// Bytes of it that were written.
    written: usize,
}

impl Socket {
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(Buffered { stream, said: Vec::new(), written: 0 })))
    }

    /// Runs what speaks through this socket, and writes what it has said whenever it pauses.
    ///
    /// Whatever else is ready goes first each time: then the answers of many calls leave in one write, where the
    /// scheduler would run the connection after each of them.
    pub async fn in_turns<F: Future>(&self, work: F) -> F::Output {
        let mut work = pin!(work);
        let mut gave_way = false;
        poll_fn(|context| {
            gave_way = !gave_way;
            if gave_way {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let done = work.as_mut().poll(context);
            // An error comes again with the next write, or the peer's end is read: whatever speaks is told.
            let _ = self.0.lock().poll_write_out(context);
            done
        })
        .await
    }

    /// Says that nothing more is sent, and waits for the peer to say the same, for a while.
    ///
    /// A socket that is closed while bytes wait to be read is reset, and the reset overtakes what was sent last: a
    /// watcher would never see its closing checkpoint. So the rest is read and dropped first.
    pub async fn linger(self) {
        let Some(buffered) = Arc::into_inner(self.0) else { return };
        let Buffered { mut stream, said, written } = buffered.into_inner();
        // All fail only if the connection is gone already.
        let _ = timeout(LINGER, async {
            stream.write_all(&said[written..]).await?;
            stream.shutdown().await?;
            let mut waste = [0; 4096];
            while stream.read(&mut waste).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
    }
}

impl Buffered {
    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.said.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, &self.said[self.written..]))?;
            self.written += count;
        }
        self.written = 0;
        self.said.clear();
        self.said.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.said.len() >= BUFFER {
            ready!(self.poll_write_out(context))?;
        }
        Poll::Ready(Ok(BUFFER - self.said.len()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut buffered = self.0.lock();
        let room = ready!(buffered.poll_room(context))?;
        let mut taken = 0;
        for slice in slices {
            let part = slice.len().min(room - taken);
            buffered.said.extend_from_slice(&slice[..part]);
            taken += part;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The end of the turn writes it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut buffered = self.0.lock();
        ready!(buffered.poll_write_out(context))?;
        Pin::new(&mut buffered.stream).poll_shutdown(context)
    }
}
