//! Calls whose answers are read only as far as a measurement needs: the load is to stay smaller than what it measures.
//!
//! The numbers of the fields are those of the contract; what is not named here is skipped.

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::{Message, Oneof};
use tonic::{IntoStreamingRequest, Request, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::Error;
use crate::proto::{
    BatchSubmitRequest, GetResultRequest, Rejection, StreamSubmitRequest, SubmitRequest, WatchResultsRequest,
    WorkerHeartbeat, WorkerHello, WorkerWelcome,
};

/// Of SubmitResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Submitted {
    #[prost(bool, tag = "3")]
    pub done: bool,
}

/// Of GetResultResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Found {
    #[prost(bool, tag = "1")]
    pub done: bool,
}

/// Of StreamSubmitResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Judged {
    #[prost(oneof = "Verdict", tags = "2, 3")]
    verdict: Option<Verdict>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Verdict {
    #[prost(message, tag = "2")]
    Accepted(Accepted),
    #[prost(message, tag = "3")]
    Rejected(Rejection),
}

/// Of Accepted: nothing.
#[derive(Clone, Copy, PartialEq, Message)]
struct Accepted {}

impl Judged {
    pub fn accepted(self) -> Result<(), Error> {
        match self.verdict {
            Some(Verdict::Accepted(_)) => Ok(()),
            other => Err(Error::Unexpected(format!("a job was not accepted: {other:?}"))),
        }
    }
}

/// Of WatchResultsResponse.
#[derive(Clone, PartialEq, Message)]
pub struct Watched {
    #[prost(message, optional, tag = "2")]
    finished: Option<Finished>,
}

/// Of Job.
#[derive(Clone, PartialEq, Message)]
struct Finished {
    #[prost(message, optional, tag = "6")]
    output: Option<Output>,
}

/// Of Payload.
#[derive(Clone, PartialEq, Message)]
struct Output {
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

impl Watched {
    /// The output of the job whose outcome this is.
    pub fn output(self) -> Option<Bytes> {
        Some(self.finished?.output.unwrap_or_default().data)
    }
}

/// Of WorkRequest.
#[derive(Clone, PartialEq, Message)]
pub struct Says {
    #[prost(oneof = "Saying", tags = "1, 3, 5")]
    pub message: Option<Saying>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Saying {
    #[prost(message, tag = "1")]
    Hello(WorkerHello),
    #[prost(message, tag = "3")]
    Heartbeat(WorkerHeartbeat),
    #[prost(message, tag = "5")]
    Finish(Finish),
}

/// Of Finish.
#[derive(Clone, PartialEq, Message)]
pub struct Finish {
    #[prost(bytes = "bytes", tag = "1")]
    lease_id: Bytes,
    #[prost(message, optional, tag = "2")]
    succeeded: Option<Output>,
}

/// Of WorkResponse. An arm of a `oneof` is a field like others.
#[derive(Clone, PartialEq, Message)]
pub struct Hears {
    #[prost(message, optional, tag = "1")]
    pub welcome: Option<WorkerWelcome>,
    #[prost(message, optional, tag = "2")]
    pub lease: Option<Lease>,
    #[prost(message, optional, tag = "4")]
    pub finish_ack: Option<FinishAck>,
}

/// Of Lease.
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    #[prost(bytes = "bytes", tag = "1")]
    lease_id: Bytes,
    #[prost(int64, tag = "2")]
    pub sequence: i64,
    #[prost(message, optional, tag = "3")]
    job: Option<Leased>,
}

/// Of Job.
#[derive(Clone, PartialEq, Message)]
struct Leased {
    #[prost(message, optional, tag = "2")]
    spec: Option<Spec>,
}

/// Of JobSpec.
#[derive(Clone, PartialEq, Message)]
struct Spec {
    #[prost(message, optional, tag = "3")]
    payload: Option<Output>,
}

impl Lease {
    /// Succeeds with its payload.
    pub fn echo(self) -> Finish {
        let succeeded = self.job.and_then(|job| job.spec?.payload).unwrap_or_default();
        Finish { lease_id: self.lease_id, succeeded: Some(succeeded) }
    }
}

/// Of FinishAck.
#[derive(Clone, PartialEq, Message)]
pub struct FinishAck {
    #[prost(bool, tag = "2")]
    accepted: bool,
    #[prost(message, optional, tag = "3")]
    rejection: Option<Rejection>,
}

impl FinishAck {
    pub fn accepted(self) -> Result<(), Error> {
        match self.accepted {
            true => Ok(()),
            false => Err(Error::Unexpected(format!("a result was not accepted: {:?}", self.rejection))),
        }
    }
}

pub async fn submit(channel: Channel, request: SubmitRequest) -> Result<Submitted, Error> {
    unary(channel, "/jobwire.v1.JobService/Submit", request).await
}

/// Of its answer nothing is read: it says that all were accepted.
pub async fn batch_submit(channel: Channel, request: BatchSubmitRequest) -> Result<(), Error> {
    unary(channel, "/jobwire.v1.JobService/BatchSubmit", request).await
}

pub async fn get_result(channel: Channel, request: GetResultRequest) -> Result<Found, Error> {
    unary(channel, "/jobwire.v1.JobService/GetResult", request).await
}

pub async fn stream_submit(
    channel: Channel,
    requests: impl IntoStreamingRequest<Message = StreamSubmitRequest>,
) -> Result<Streaming<Judged>, Error> {
    streaming(channel, "/jobwire.v1.JobService/StreamSubmit", requests).await
}

pub async fn watch_results(
    channel: Channel,
    request: WatchResultsRequest,
) -> Result<Streaming<Watched>, Error> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/jobwire.v1.JobService/WatchResults");
    let codec = ProstCodec::<WatchResultsRequest, Watched>::default();
    Ok(client.server_streaming(Request::new(request), path, codec).await?.into_inner())
}

pub async fn work(
    channel: Channel,
    requests: impl IntoStreamingRequest<Message = Says>,
) -> Result<Streaming<Hears>, Error> {
    streaming(channel, "/jobwire.v1.WorkerService/Work", requests).await
}

async fn streaming<Q, A>(
    channel: Channel,
    path: &'static str,
    requests: impl IntoStreamingRequest<Message = Q>,
) -> Result<Streaming<A>, Error>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let (requests, codec) = (requests.into_streaming_request(), ProstCodec::<Q, A>::default());
    Ok(client.streaming(requests, PathAndQuery::from_static(path), codec).await?.into_inner())
}

async fn unary<Q, A>(channel: Channel, path: &'static str, request: Q) -> Result<A, Error>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(client.unary(Request::new(request), PathAndQuery::from_static(path), codec).await?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        self, GetResultResponse, Job, JobSpec, Payload, StreamSubmitResponse, SubmitResponse,
        WatchResultsResponse, WorkRequest, WorkResponse, finish::Outcome, payload::Body,
        stream_submit_response, watch_results_response::Event, work_request, work_response,
    };

    fn read<T: Message + Default>(message: impl Message) -> T {
        T::decode(&message.encode_to_vec()[..]).unwrap()
    }

    #[test]
    fn the_numbers_are_those_of_the_contract() {
        let output = Payload { body: Some(Body::Data("out".into())), ..Default::default() };
        let job = Job { job_id: "a".into(), output: Some(output), ..Default::default() };
        let reply = SubmitResponse { job: Some(job.clone()), done: true, ..Default::default() };
        assert!(read::<Submitted>(reply).done);
        assert!(read::<Found>(GetResultResponse { done: true, ..Default::default() }).done);
        let watched = WatchResultsResponse { cursor: "c".into(), event: Some(Event::Finished(job.into())) };
        assert_eq!(read::<Watched>(watched).output().unwrap(), "out");
        let checkpoint = Event::Checkpoint(proto::Checkpoint::default());
        let watched = WatchResultsResponse { cursor: "c".into(), event: Some(checkpoint) };
        assert_eq!(read::<Watched>(watched).output(), None);
        let accepted = stream_submit_response::Verdict::Accepted(proto::Accepted::default());
        let rejected = stream_submit_response::Verdict::Rejected(Rejection::default());
        for (verdict, good) in [(Some(accepted), true), (Some(rejected), false), (None, false)] {
            let reply = StreamSubmitResponse { sequence: 7, verdict };
            assert_eq!(read::<Judged>(reply).accepted().is_ok(), good);
        }
    }

    #[test]
    fn a_worker_speaks_as_the_contract_has_it() {
        let payload = Payload { body: Some(Body::Data("in".into())), ..Default::default() };
        let spec = JobSpec { payload: Some(payload.clone()), ..Default::default() };
        let job = Job { job_id: "a".into(), spec: Some(spec), ..Default::default() };
        let lease = proto::Lease { lease_id: "l".into(), sequence: 7, job: Some(job), ..Default::default() };
        let told = |message| WorkResponse { message: Some(message) };
        let lease = read::<Hears>(told(work_response::Message::Lease(lease.into()))).lease.unwrap();
        assert_eq!(lease.sequence, 7);
        let finish = proto::Finish { lease_id: "l".into(), outcome: Some(Outcome::Succeeded(payload)) };
        assert_eq!(
            read::<WorkRequest>(Says { message: Some(Saying::Finish(lease.echo())) }).message,
            Some(work_request::Message::Finish(finish))
        );
        for accepted in [true, false] {
            let ack = proto::FinishAck { accepted, ..Default::default() };
            let ack = read::<Hears>(told(work_response::Message::FinishAck(ack))).finish_ack.unwrap();
            assert_eq!(ack.accepted().is_ok(), accepted);
        }
        let welcome = WorkerWelcome { instance_id: "i".into(), ..Default::default() };
        let heard = read::<Hears>(told(work_response::Message::Welcome(welcome.clone())));
        assert_eq!(heard.welcome, Some(welcome));
        for (said, meant) in [
            (Saying::Hello(WorkerHello::default()), work_request::Message::Hello(WorkerHello::default())),
            (
                Saying::Heartbeat(WorkerHeartbeat::default()),
                work_request::Message::Heartbeat(WorkerHeartbeat::default()),
            ),
        ] {
            assert_eq!(read::<WorkRequest>(Says { message: Some(said) }).message, Some(meant));
        }
    }
}
