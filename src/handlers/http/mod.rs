//! The `http` kind: makes a request, and hands back the response. Only public addresses are called, unless the
//! configuration allows others; a host is spared more than its share.

mod connection;
mod connector;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guard;
mod hop;
mod input;
mod limits;
mod output;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, crypto::ring};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use self::{
    connector::{Connector, Resolve, System},
    guard::Guard,
    hop::Hop,
    input::Request,
    limits::Limits,
};
pub use self::{guard::is_allowed_host, input::Input, output::Output};
use crate::{
    config,
    job::{Error, JobError},
    worker::Context,
};

/// How long a connection is kept for the next request, and how many for one host.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_PER_HOST: usize = 8;

/// Bytes of a response's headers.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// Bytes of an unexpected response's body that its failure keeps.
const DETAILS_BODY_MAX: usize = 4 << 10;

/// How long such a body is read: its status is known, whatever is still to come.
const DETAILS_BODY_TIME: Duration = Duration::from_secs(1);

/// One client for all jobs.
pub struct Http {
    settings: config::Http,
    limits: Limits,
    client: Client<Connector, Full<Bytes>>,
}

/// What one request led to.
enum Step {
    Follow(Box<Hop>),
    Done { status: StatusCode, headers: HeaderMap, body: Bytes },
    Unexpected { status: StatusCode, headers: HeaderMap, body: Incoming },
}

impl Http {
    /// A client that trusts the usual authorities. An error names the key of the setting that is wrong.
    pub fn new(settings: &config::Http) -> Result<Self, Error> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Internal(format!("no TLS: {error}")))?
            .with_webpki_roots()
            .with_no_client_auth();
        Self::with(settings, Arc::new(System::default()), tls)
    }

    fn with(settings: &config::Http, resolver: Arc<dyn Resolve>, tls: ClientConfig) -> Result<Self, Error> {
        if !(1..=Semaphore::MAX_PERMITS).contains(&settings.concurrency_per_host) {
            return Err(Error::invalid("http.concurrency_per_host", "must be 1 or more"));
        }
        if settings.timeout.is_zero() {
            return Err(Error::invalid("http.timeout", "must be more than 0"));
        }
        let connector = Connector::new(Guard::new(settings)?, resolver, tls);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_max_buf_size(MAX_HEADER_BYTES)
            .http2_max_header_list_size(MAX_HEADER_BYTES as u32)
            .build(connector);
        Ok(Self { settings: settings.clone(), limits: Limits::new(settings), client })
    }

    /// Makes the request, follows redirects as far as it may, and judges the final response.
    pub async fn run(&self, context: Context, input: Input) -> Result<Output, JobError> {
        let request = input.check(&self.settings, &context)?;
        let mut hop = request.first.clone();
        let mut redirects = request.redirects;
        let mut elapsed = Duration::ZERO;
        loop {
            let _place = self.limits.enter(hop.url.host_str().unwrap_or_default(), &context).await?;
            let start = Instant::now();
            let left = request.timeout.saturating_sub(elapsed);
            let exchange = timeout(left, self.exchange(&hop, &request));
            let step = context.unless_stopped(exchange).await?;
            let step = step.map_err(|_| failure::timeout(&hop.url, request.timeout))??;
            elapsed += start.elapsed();
            match step {
                Step::Done { status, headers, body } => {
                    return Ok(Output::new(status, &headers, &body, hop.url, elapsed));
                }
                Step::Unexpected { status, headers, body } => {
                    let (start, cut) = context.unless_stopped(start_of(body)).await?;
                    let details = output::details(status, &headers, &start, cut);
                    return Err(failure::status(&hop.url, status, &headers, &details));
                }
                Step::Follow(_) if redirects == 0 => {
                    let why = format!(
                        "{} redirects were followed already: raise follow_redirects",
                        request.redirects
                    );
                    return Err(failure::redirect(&hop.url, &why));
                }
                Step::Follow(next) => {
                    redirects -= 1;
                    hop = *next;
                }
            }
        }
    }

    async fn exchange(&self, hop: &Hop, request: &Request) -> Result<Step, JobError> {
        let sent = self.client.request(hop.request()?).await;
        let response = sent.map_err(|error| failure::request(&hop.url, &error))?;
        let (head, body) = response.into_parts();
        if request.redirects > 0
            && let Some(next) = hop.next(head.status, &head.headers)
        {
            return Ok(Step::Follow(Box::new(next?)));
        }
        if !request.expect.iter().any(|expected| expected.accepts(head.status)) {
            return Ok(Step::Unexpected { status: head.status, headers: head.headers, body });
        }
        let body = self::body(body, request.max_bytes, hop).await?;
        Ok(Step::Done { status: head.status, headers: head.headers, body })
    }
}

/// The whole body, unless it has more than `limit` bytes.
async fn body(body: Incoming, limit: usize, hop: &Hop) -> Result<Bytes, JobError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(failure::too_large(&hop.url, limit));
    }
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(failure::too_large(&hop.url, limit)),
        Err(error) => Err(failure::protocol(&hop.url, &*error)),
    }
}

/// The beginning of a body, as far as it comes soon, and whether there may be more.
async fn start_of(body: Incoming) -> (Bytes, bool) {
    let mut start = BytesMut::new();
    let cut = timeout(DETAILS_BODY_TIME, fill(&mut start, body)).await.unwrap_or(true);
    (start.freeze(), cut)
}

/// Reads a body as far as there is room. True if there is more. One that breaks off is as good as a short one here.
async fn fill(start: &mut BytesMut, mut body: Incoming) -> bool {
    while let Some(Ok(frame)) = body.frame().await {
        let data = frame.into_data().unwrap_or_default();
        let room = DETAILS_BODY_MAX - start.len();
        start.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return true;
        }
    }
    false
}
