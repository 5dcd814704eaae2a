//! Requests that are compressed, for a server that was told to take them.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use futures_util::stream;
use http::HeaderMap;
use jobwire::proto::{
    LeaseJobsRequest, StreamSubmitRequest, WatchResultsRequest, job::State, stream_submit_response::Verdict,
};
use prost::Message as _;
use tonic::{Code, Status, codec::CompressionEncoding};

use crate::{
    calls::{Refusal, Watch, accept, finish, result},
    floods::peak,
    support::{Client, Server, lazy_clients, submit, value},
    wire::{Bare, GRPC},
};

const ACCEPT: &str = "[http2]\naccept_gzip = true\n";

/// A call that compresses what it sends.
async fn compressing(server: &Server) -> Client {
    server.client().await.send_compressed(CompressionEncoding::Gzip)
}

/// A message of gRPC that says it is compressed.
pub fn flagged(content: &[u8]) -> Vec<u8> {
    [&[1][..], &(content.len() as u32).to_be_bytes(), content].concat()
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// What a Submit is answered whose body is this, said to be compressed in such a way.
async fn answer(connection: &mut Bare, encoding: &str, body: Vec<u8>) -> HeaderMap {
    connection.submit(&[GRPC, ("grpc-encoding", encoding)], body).await.1
}

async fn refusal(connection: &mut Bare, encoding: &str, body: Vec<u8>) -> Refusal {
    let headers = answer(connection, encoding, body).await;
    Refusal::read(Status::from_header_map(&headers).expect("a refusal in the headers"))
}

#[tokio::test]
async fn unless_told_so_a_server_takes_nothing_compressed() {
    let server = Server::start();
    let refused = Refusal::of(compressing(&server).await.submit(submit("echo", "1")).await);
    refused.is(Code::Unimplemented, "NOT_SUPPORTED").says(&["gzip", "http2.accept_gzip = true"]);
    finish(&server.client().await, submit("echo", "1")).await;
}

#[tokio::test]
async fn calls_streams_and_workers_may_compress() {
    let server = Server::with(ACCEPT);
    let client = compressing(&server).await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.replay().await;
    let text = format!("\"{}\"", "compressible ".repeat(10_000));
    let job = finish(&client, submit("echo", &text)).await;
    assert_eq!(job.state(), State::Succeeded);
    assert_eq!(value(job.output.as_ref()).encoded_len(), text.len() - 2 + 4);
    assert_eq!(watch.finished().await.job_id, job.job_id);

    let items = (0..100).map(|sequence| StreamSubmitRequest {
        sequence,
        request: Some(submit("echo", &format!("\"{}\"", "x".repeat(1000 * sequence as usize)))),
    });
    let mut verdicts = client.clone().stream_submit(stream::iter(items)).await.unwrap().into_inner();
    let mut accepted = 0;
    while let Some(verdict) = verdicts.message().await.unwrap() {
        let Some(Verdict::Accepted(job)) = verdict.verdict else { panic!("{verdict:?}") };
        assert_eq!(result(&client, &job.job_id).await.state(), State::Succeeded);
        accepted += 1;
    }
    assert_eq!(accepted, 100);

    let id = accept(&client, submit("elsewhere", "1")).await.job.unwrap().job_id;
    let mut workers = lazy_clients(server.address()).1.send_compressed(CompressionEncoding::Gzip);
    let request = LeaseJobsRequest {
        worker_id: "w".into(),
        kinds: vec!["elsewhere".into()],
        max_jobs: 1,
        ..Default::default()
    };
    let leases = workers.lease_jobs(request).await.unwrap().into_inner().leases;
    assert_eq!(leases[0].job.as_ref().unwrap().job_id, id);
}

#[tokio::test]
async fn answers_are_never_compressed() {
    let server = Server::with(ACCEPT);
    let body = flagged(&gzip(&submit("echo", &format!("\"{}\"", "x".repeat(10_000))).encode_to_vec()));
    let asked = [GRPC, ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip,identity")];
    let (_, headers) = Bare::connect(&server).await.submit(&asked, body).await;
    assert!(!headers.contains_key("grpc-status") && !headers.contains_key("grpc-encoding"), "{headers:?}");
}

/// Would inflate to 1 GiB.
fn bomb() -> Vec<u8> {
    const HEADER: usize = 10;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; 1 << 20]).unwrap();
    // Ends its block, so that the next may follow.
    encoder.flush().unwrap();
    let (header, block) = encoder.get_ref().split_at(HEADER);
    assert!(block.len() < 1100, "1 MiB is {} bytes", block.len());
    flagged(&[header, &block.repeat(1024)].concat())
}

#[tokio::test]
async fn what_inflates_beyond_a_message_is_too_large_and_costs_no_more_than_one() {
    // Each thread has its own buffers.
    let server = Server::with_variables(ACCEPT, &[("TOKIO_WORKER_THREADS", "2".into())]);
    finish(&server.client().await, submit("echo", "1")).await;
    let before = peak(&server);
    let mut connection = Bare::connect(&server).await;
    let bomb = bomb();
    for _ in 0..20 {
        let refused = refusal(&mut connection, "gzip", bomb.clone()).await;
        assert_eq!((refused.field(), refused.metadata["limit"].as_str()), ("message", "4194304"));
        refused.is(Code::InvalidArgument, "TOO_LARGE");
    }
    let grown = peak(&server).saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
    finish(&server.client().await, submit("echo", "1")).await;
}

#[tokio::test]
async fn what_is_no_gzip_is_refused_and_the_connection_lives() {
    let server = Server::with(ACCEPT);
    let mut connection = Bare::connect(&server).await;
    let sound = gzip(&submit("echo", "1").encode_to_vec());
    let mut wrong_sum = sound.clone();
    let end = wrong_sum.len() - 8;
    wrong_sum[end] ^= 1;
    for (what, content) in [
        ("nothing", &b""[..]),
        ("text", b"this is no gzip"),
        ("half", &sound[..sound.len() / 2]),
        ("a wrong sum", &wrong_sum),
        ("no message inside", &gzip(b"\xff\xff")),
    ] {
        let refused = refusal(&mut connection, "gzip", flagged(content)).await;
        assert_eq!(refused.field(), "message", "{what}");
        refused.is(Code::InvalidArgument, "INVALID_FIELD");
    }
    // Others than gzip are not taken, and what may be sent instead is told.
    for encoding in ["deflate", "zstd", "x"] {
        let headers = answer(&mut connection, encoding, flagged(&sound)).await;
        assert_eq!(headers["grpc-accept-encoding"], "gzip,identity");
        refusal(&mut connection, encoding, flagged(&sound)).await.is(Code::Unimplemented, "NOT_SUPPORTED");
    }
    let headers = answer(&mut connection, "gzip", flagged(&sound)).await;
    assert!(!headers.contains_key("grpc-status"), "{headers:?}");
}
