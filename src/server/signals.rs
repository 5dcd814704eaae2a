use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Resolves at the first SIGTERM or SIGINT; the second ends the process at once. Signals count from the call on, not
/// only once the future is polled. Must be called within a runtime.
pub fn stop_signal() -> impl Future<Output = ()> {
    let first = CancellationToken::new();
    match Signals::install() {
        Ok(signals) => drop(tokio::spawn(stop(signals, first.clone()))),
        Err(error) => {
            tracing::error!(%error, "signals cannot be received: stop this process with SIGKILL");
        }
    }
    first.cancelled_owned()
}

async fn stop(mut signals: Signals, first: CancellationToken) {
    signals.next().await;
    first.cancel();
    signals.next().await;
    tracing::warn!("a second signal: leaving at once");
    std::process::exit(130);
}

/// From its making on, no signal is missed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
