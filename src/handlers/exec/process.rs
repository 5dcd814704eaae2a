use std::{
    io,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::capture::Capture;

/// From SIGTERM to SIGKILL; and how long output may still come after the end.
const GRACE: Duration = Duration::from_secs(2);

/// How a process ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: Capture,
    pub stderr: Capture,
    /// It was told to end, because the attempt is over.
    pub stopped: bool,
}

/// Runs a command in a process group of its own until its leader has exited, or `stopped` is ready. Then no process
/// of the group is left. Keeps the first `limit` bytes of stdout and of stderr.
///
/// A process that leaves the group (by setsid) is beyond reach.
pub async fn run(
    mut command: Command,
    stdin: Bytes,
    limit: usize,
    stopped: impl Future<Output = ()>,
) -> io::Result<Ended> {
    let mut group = Group::spawn(&mut command)?;
    let (mut stdout, mut stderr) = (Capture::new(limit), Capture::new(limit));
    let pipes = (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let (status, stopped) = {
        let mut output = pin!(async {
            tokio::join!(feed(pipes.0, stdin), stdout.fill(pipes.1), stderr.fill(pipes.2));
        });
        let mut end = pin!(group.end(stopped));
        let mut drained = false;
        let ended = loop {
            tokio::select! {
                ended = &mut end => break ended?,
                () = &mut output, if !drained => drained = true,
            }
        };
        if !drained {
            // A process that left the group may hold the pipes for ever.
            let _ = timeout(GRACE, output).await;
        }
        ended
    };
    Ok(Ended { status, stdout, stderr, stopped })
}

async fn feed(pipe: Option<ChildStdin>, stdin: Bytes) {
    if let Some(mut pipe) = pipe {
        // A process may end, or close its stdin, without having read all of it.
        let _ = pipe.write_all(&stdin).await;
    }
}

/// A process group. Its leader is not reaped before the group is killed, so that the id cannot have a new owner by then.
struct Group {
    child: Child,
    id: Pid,
    reaped: bool,
}

impl Group {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let id = id.ok_or_else(|| io::Error::other("the process has no id"))?;
        Ok(Self { child, id, reaped: false })
    }

    /// Waits for the end of the leader, or brings it about. True if it was `stopped` that did.
    async fn end(mut self, stopped: impl Future<Output = ()>) -> io::Result<(ExitStatus, bool)> {
        let stopped = tokio::select! {
            exited = self.exited() => exited.map(|()| false)?,
            () = stopped => {
                self.signal(Signal::TERM);
                let _ = timeout(GRACE, self.exited()).await;
                true
            }
        };
        self.signal(Signal::KILL);
        let status = self.child.wait().await?;
        self.reaped = true;
        Ok((status, stopped))
    }

    /// Waits until the leader has exited, and leaves it a zombie.
    async fn exited(&self) -> io::Result<()> {
        let mut child_signal = signal(SignalKind::child())?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(self.id), options)?.is_none() {
            child_signal.recv().await;
        }
        Ok(())
    }

    /// A group without a process that could be signalled is as good as signalled.
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(self.id, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::KILL);
        }
    }
}
