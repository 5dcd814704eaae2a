//! A watch that outlives its connections.

use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Streaming, transport::Channel};

use super::{
    Error, PATIENCE,
    backoff::Backoff,
    resume::{Resume, worth_resuming},
};
use crate::proto::{WatchResultsRequest, WatchResultsResponse, job_service_client::JobServiceClient};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

struct Watch {
    rpc: JobServiceClient<Channel>,
    resume: Resume,
    stream: Option<Streaming<WatchResultsResponse>>,
    backoff: Backoff,
    began: Instant,
    failing_since: Option<Instant>,
}

pub(super) fn watch(
    rpc: JobServiceClient<Channel>,
    request: WatchResultsRequest,
) -> BoxStream<'static, Result<WatchResultsResponse, Error>> {
    let watch = Watch {
        rpc,
        resume: Resume::new(request),
        stream: None,
        backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        began: Instant::now(),
        failing_since: None,
    };
    stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        match watch.next().await {
            Ok(Some(message)) => Some((Ok(message), Some(watch))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Watch {
    /// The next message that the caller has not had yet. None: everything asked for was sent.
    async fn next(&mut self) -> Result<Option<WatchResultsResponse>, Error> {
        loop {
            match self.receive().await {
                Ok(Some(message)) => {
                    self.failing_since = None;
                    self.backoff.reset();
                    if self.resume.note(&message) {
                        return Ok(Some(message));
                    }
                }
                Ok(None) => return Ok(None),
                Err(error) if self.resume.note_gone(&error) => {
                    self.stream = None;
                    if self.resume.fulfilled() {
                        return Ok(None);
                    }
                }
                Err(error) => self.pause_after(error).await?,
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<WatchResultsResponse>, Error> {
        let silence = self.resume.max_silence();
        let message = timeout(silence, async {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let request = self.resume.request(self.began.elapsed());
                    self.stream.insert(self.rpc.watch_results(request).await?.into_inner())
                }
            };
            stream.message().await
        })
        .await
        .map_err(|_| Error::Silent(silence))??;
        if message.is_none() && !self.resume.ends() {
            return Err(Error::Ended);
        }
        Ok(message)
    }

    /// Waits before the next try, or passes the error on.
    async fn pause_after(&mut self, error: Error) -> Result<(), Error> {
        self.stream = None;
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if !worth_resuming(&error) || since.elapsed() > PATIENCE {
            return Err(error);
        }
        // A planned end is nothing that a person needs to know.
        if error.reason() == Some("STREAM_ROTATED") {
            tracing::debug!(%error, "the stream moves on");
        } else {
            tracing::warn!(%error, "lost the stream, coming back to it");
        }
        sleep(self.backoff.pause(error.retry_delay(), fastrand::f64())).await;
        Ok(())
    }
}
