//! Calls whose answers are read only as far as a measurement needs: the load is to stay smaller than what it measures.
//!
//! The numbers of the fields are those of the contract; what is not named here is skipped.

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::{Message, Oneof};
use tonic::{IntoStreamingRequest, Request, Streaming, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use super::Error;
use crate::proto::{GetResultRequest, Rejection, StreamSubmitRequest, SubmitRequest, WatchResultsRequest};

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

pub async fn submit(channel: Channel, request: SubmitRequest) -> Result<Submitted, Error> {
    unary(channel, "/jobwire.v1.JobService/Submit", request).await
}

pub async fn get_result(channel: Channel, request: GetResultRequest) -> Result<Found, Error> {
    unary(channel, "/jobwire.v1.JobService/GetResult", request).await
}

pub async fn stream_submit(
    channel: Channel,
    requests: impl IntoStreamingRequest<Message = StreamSubmitRequest>,
) -> Result<Streaming<Judged>, Error> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/jobwire.v1.JobService/StreamSubmit");
    let codec = ProstCodec::<StreamSubmitRequest, Judged>::default();
    Ok(client.streaming(requests.into_streaming_request(), path, codec).await?.into_inner())
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
        self, GetResultResponse, Job, Payload, StreamSubmitResponse, SubmitResponse, WatchResultsResponse,
        payload::Body, stream_submit_response, watch_results_response::Event,
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
}
