//! What requests meet first: the way of native gRPC, which is short, and that of web pages.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use futures_util::{TryFutureExt as _, future::BoxFuture};
use http::{HeaderName, HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use tonic::{
    body::Body,
    codec::{Codec, CompressionEncoding, EnabledCompressionEncodings},
    server::{Grpc, NamedService as _},
    service::Routes,
};
use tonic_prost::ProstCodec;
use tower::{Layer as _, Service, ServiceExt as _, service_fn, util::BoxCloneSyncService};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{
    MAX_MESSAGE, deadline,
    jobs::{self, JobsApi},
    lists::{Counted, List},
    room::Room,
    status::status,
    watches::{self, EncodedAnswers, Watches},
    workers::{self, WorkersApi},
};
use crate::{
    config::Config,
    job::Error,
    proto::{
        job_service_server::{JobService as _, JobServiceServer},
        worker_service_server::WorkerService as _,
    },
};

/// What a caller calls its call: told back with the answer, whatever it is.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    calls: Arc<Calls>,
    web: BoxCloneSyncService<Request<Incoming>, Response<Body>, Infallible>,
}

impl Front {
    pub fn new(config: &Config, room: Room, (api, workers): (JobsApi, WorkersApi), others: Routes) -> Self {
        let watches = Watches::new(api.clone());
        let mut jobs = JobServiceServer::new(api.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut accepted = EnabledCompressionEncodings::default();
        if config.http2.accept_gzip {
            jobs = jobs.accept_compressed(CompressionEncoding::Gzip);
            accepted.enable(CompressionEncoding::Gzip);
        }
        let others = others.prepare().into_axum_router();
        let calls = Arc::new(Calls {
            jobs,
            watches,
            api,
            submits: List::requests(config.limits.max_batch_items),
            workers,
            progress: List::progress(config.workers.max_in_flight),
            accepted,
            others,
            room,
            cap: config.limits.max_unary,
        });
        let origins: Vec<HeaderValue> =
            config.web.allowed_origins.iter().filter_map(|origin| origin.parse().ok()).collect();
        let pages = Pages { calls: calls.clone(), allowed: origins.as_slice().into() };
        let translated = tonic_web::GrpcWebLayer::new().layer(pages);
        let web = match origins.is_empty() {
            true => BoxCloneSyncService::new(translated),
            false => BoxCloneSyncService::new(cors(origins).layer(translated)),
        };
        Self { calls, web }
    }

    pub async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let id = request.headers().get(REQUEST_ID).cloned();
        let mut response = match is_native(&request) {
            true => self.calls.answer(request).await,
            false => Box::pin(self.web.oneshot(request)).await?,
        };
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        Ok(response)
    }
}

/// gRPC itself: pages cannot speak it, and it needs no translation.
fn is_native(request: &Request<Incoming>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    request.version() == Version::HTTP_2
        && content_type.starts_with(b"application/grpc")
        && !content_type.starts_with(b"application/grpc-web")
}

fn cors(origins: Vec<HeaderValue>) -> CorsLayer {
    let own = ["grpc-timeout", "x-grpc-web", "x-user-agent", "traceparent", "tracestate", "x-request-id"]
        .map(HeaderName::from_static);
    let told = ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"]
        .map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([http::Method::POST])
        .allow_headers([header::CONTENT_TYPE].into_iter().chain(own).collect::<Vec<_>>())
        .expose_headers(told)
        .max_age(Duration::from_secs(3600))
}

/// The services, each call within its deadline.
struct Calls {
    jobs: JobServiceServer<JobsApi>,
    /// Methods with codecs of their own.
    watches: Watches,
    api: JobsApi,
    submits: List,
    workers: WorkersApi,
    progress: List,
    /// How their requests may be compressed.
    accepted: EnabledCompressionEncodings,
    /// Services of which no call is in a hurry.
    others: Router,
    room: Room,
    cap: Duration,
}

impl Calls {
    async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send>
            + Unpin
            + Send
            + 'static,
    {
        deadline::enforce(self.cap, &self.room, request, |request| self.call(request)).await
    }

    /// Boxed, each way by itself: what is on its way is moved about by the library, and the rare ways are large.
    fn call<B>(&self, request: Request<B>) -> BoxFuture<'static, Result<Response<Body>, Infallible>>
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send>
            + Unpin
            + Send
            + 'static,
    {
        let path = request.uri().path();
        let service = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        match service {
            _ if path == watches::PATH => {
                let mut grpc = self.grpc(EncodedAnswers);
                let watches = self.watches.clone();
                Box::pin(async move { Ok(grpc.server_streaming(watches, request).await) })
            }
            _ if path == jobs::BATCH_SUBMIT => {
                let mut grpc = self.grpc(Counted { list: self.submits, inner: ProstCodec::default() });
                let api = self.api.clone();
                let method = service_fn(move |request| {
                    let api = api.clone();
                    async move { api.batch_submit(request).await }
                });
                Box::pin(async move { Ok(grpc.unary(method, request).await) })
            }
            _ if path == workers::RENEW_LEASES => {
                let mut grpc = self.grpc(Counted { list: self.progress, inner: ProstCodec::default() });
                let api = self.workers.clone();
                let method = service_fn(move |request| {
                    let api = api.clone();
                    async move { api.renew_leases(request).await }
                });
                Box::pin(async move { Ok(grpc.unary(method, request).await) })
            }
            Some((JobServiceServer::<JobsApi>::NAME, _)) => self.jobs.clone().call(request),
            _ => Box::pin(self.others.clone().oneshot(request).map_ok(|response| response.map(Body::new))),
        }
    }
}

impl Calls {
    /// As the generated services have it.
    fn grpc<C: Codec>(&self, codec: C) -> Grpc<C> {
        Grpc::new(codec)
            .apply_compression_config(self.accepted, EnabledCompressionEncodings::default())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

/// The services, below the layers for web pages.
///
/// Browsers keep answers from pages of other origins, but send simple requests all the same; and of a page whose name was
/// made to lead here they think that it is the server's own. So each request of a page says whose it is, and is refused
/// before it has an effect.
#[derive(Clone)]
struct Pages {
    calls: Arc<Calls>,
    allowed: Arc<[HeaderValue]>,
}

impl Service<Request<Body>> for Pages {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let calls = self.calls.clone();
        let origin = request.headers().get(header::ORIGIN);
        let refused = origin.filter(|origin| !self.allowed.contains(origin)).map(|origin| {
            let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
            status(Error::OriginNotAllowed { origin }).into_http()
        });
        Box::pin(async move {
            Ok(match refused {
                Some(refusal) => refusal,
                None => calls.answer(request).await,
            })
        })
    }
}
