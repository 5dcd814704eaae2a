//! Messages made by hand, byte by byte.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, uri::PathAndQuery};
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jobwire::{
    bench::raw,
    proto::{GetResultRequest, ListJobsRequest, SubmitResponse, job::State},
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use tokio::net::TcpStream;
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};

use crate::{
    calls::{Refusal, finish, get},
    support::{Server, submit},
    vanish::framed,
};

/// Calls a method of any service with a message of any bytes.
async fn call(channel: &Channel, path: &str, message: Vec<u8>) -> Result<Bytes, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("the server is there");
    let path = path.parse::<PathAndQuery>().expect("a path");
    Ok(grpc.unary(Request::new(message.into()), path, raw::Codec).await?.into_inner())
}

const SUBMIT: &str = "/jobwire.v1.JobService/Submit";

/// A field with a length.
fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(number << 3 | 2, &mut bytes);
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let server = Server::start();
    let channel = server.channel().await;
    let bad_utf8 = field(1, &field(2, b"echo\xff"));
    let wrong_type = vec![0x10, 0x01];
    let mut deep = Vec::new();
    for _ in 0..5000 {
        // Value.list_value, ListValue.values.
        deep = field(6, &field(1, &deep));
    }
    let deep = field(1, &[field(2, b"echo"), field(3, &field(1, &deep))].concat());
    let truncated = field(1, &[0; 10])[..5].to_vec();
    let endless_varint = vec![0xff; 20];
    let lies = vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 1];
    let group = vec![0x0b; 200];
    for (what, bytes) in [
        ("bad UTF-8", bad_utf8),
        ("wrong type", wrong_type),
        ("deep", deep),
        ("truncated", truncated),
        ("endless", endless_varint),
        ("lies", lies),
        ("groups", group),
    ] {
        for method in [SUBMIT, "/jobwire.v1.JobService/StreamSubmit"] {
            let refused = Refusal::of(call(&channel, method, bytes.clone()).await);
            assert_eq!(refused.field(), "message", "{what}");
            refused.is(Code::InvalidArgument, "INVALID_FIELD");
        }
    }
    let client = server.client().await;
    let list = client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner();
    assert!(list.jobs.is_empty());
    finish(&client, submit("echo", "1")).await;
}

/// Messages that are sound but for one text inside of them, one for each text there is.
fn with_bad_text(message: &MessageDescriptor, around: &mut Vec<String>) -> Vec<(String, Vec<u8>)> {
    let name = message.full_name().to_owned();
    if around.contains(&name) {
        return Vec::new();
    }
    around.push(name);
    let mut found = Vec::new();
    for inner in message.fields() {
        let number = inner.number().into();
        match inner.kind() {
            Kind::String => found.push((inner.name().to_owned(), field(number, b"a\xc3\x28"))),
            Kind::Message(message) => {
                let bad = with_bad_text(&message, around).into_iter();
                found.extend(
                    bad.map(|(path, bytes)| (format!("{}.{path}", inner.name()), field(number, &bytes))),
                );
            }
            _ => {}
        }
    }
    around.pop();
    found
}

#[tokio::test]
async fn text_is_utf_8_wherever_it_stands() {
    let server = Server::start();
    let channel = server.channel().await;
    let pool = DescriptorPool::decode(jobwire::proto::DESCRIPTORS).unwrap();
    let service = pool.get_service_by_name("jobwire.v1.JobService").unwrap();
    let mut tried = 0;
    for method in service.methods() {
        let path = format!("/jobwire.v1.JobService/{}", method.name());
        for (field, bytes) in with_bad_text(&method.input(), &mut Vec::new()) {
            let refused = Refusal::of(call(&channel, &path, bytes).await);
            assert_eq!(refused.field(), "message", "{path} {field}");
            refused.is(Code::InvalidArgument, "INVALID_FIELD").says(&["UTF-8"]);
            tried += 1;
        }
    }
    assert!(tried > 50, "{tried}");
    finish(&server.client().await, submit("echo", "1")).await;
}

/// A connection over HTTP/2, for what no client library would send.
pub struct Bare(SendRequest<Full<Bytes>>);

impl Bare {
    pub async fn connect(server: &Server) -> Self {
        let io = TokioIo::new(TcpStream::connect(server.address()).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// The answer to a Submit.
    pub async fn submit(&mut self, headers: &[(&str, &str)], body: Vec<u8>) -> (StatusCode, HeaderMap) {
        let mut request = http::Request::post(format!("http://localhost{SUBMIT}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.0.send_request(request.body(body.into()).unwrap()).await.unwrap();
        (answer.status(), answer.headers().clone())
    }
}

/// The answer to a Submit on a connection of its own.
async fn odd(server: &Server, headers: &[(&str, &str)], body: Vec<u8>) -> (StatusCode, HeaderMap) {
    Bare::connect(server).await.submit(headers, body).await
}

pub const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn what_is_almost_grpc_is_told_why_not() {
    let server = Server::start();
    let sound = framed(&submit("echo", "1"));
    for content_type in ["text/plain", "application/json", "application/x-www-form-urlencoded", ""] {
        let (status, _) = odd(&server, &[("content-type", content_type)], sound.clone()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    assert_eq!(odd(&server, &[], sound.clone()).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let of = |flag: u8, length: u32, body: &[u8]| [&[flag][..], &length.to_be_bytes(), body].concat();
    for (what, body, reason) in [
        ("nothing", Vec::new(), "INVALID_FIELD"),
        ("half a head", vec![0, 0, 0], "INVALID_FIELD"),
        ("half a message", sound[..sound.len() - 1].to_vec(), "INVALID_FIELD"),
        ("compressed without saying how", of(1, 3, b"abc"), "INVALID_FIELD"),
        ("a flag that there is not", of(7, 3, b"abc"), "INVALID_FIELD"),
        ("a byte too much", of(0, (4 << 20) + 1, b""), "TOO_LARGE"),
        ("four gigabytes", of(0, u32::MAX, b""), "TOO_LARGE"),
    ] {
        let (status, headers) = odd(&server, &[GRPC], body).await;
        assert_eq!(status, StatusCode::OK);
        let refused = Refusal::read(Status::from_header_map(&headers).expect(what));
        assert_eq!(refused.field(), "message", "{what}");
        refused.is(Code::InvalidArgument, reason);
    }
    for encoding in ["gzip", "deflate", "zstd", "x"] {
        let (_, headers) = odd(&server, &[GRPC, ("grpc-encoding", encoding)], of(1, 3, b"abc")).await;
        let refused = Refusal::read(Status::from_header_map(&headers).expect(encoding));
        refused.is(Code::Unimplemented, "NOT_SUPPORTED").says(&[encoding, "http2.accept_gzip"]);
    }
    let client = server.client().await;
    assert!(client.clone().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs.is_empty());
    finish(&client, submit("echo", "1")).await;
}

#[tokio::test]
async fn what_a_newer_client_adds_is_passed_over() {
    let server = Server::start();
    let channel = server.channel().await;
    let mut request = submit("echo", "1").encode_to_vec();
    request.extend(field(1000, b"from the future"));
    request.extend([0xa0, 0x3f, 0x01]);
    let answer = SubmitResponse::decode(call(&channel, SUBMIT, request).await.unwrap()).unwrap();
    let client = server.client().await;
    let id = answer.job.unwrap().job_id;
    crate::calls::result(&client, &id).await;
    assert_eq!(get(&client, &id).await.state(), State::Succeeded);
}

#[tokio::test]
async fn the_last_of_two_values_counts_and_defaults_may_be_left_out() {
    let server = Server::start();
    let channel = server.channel().await;
    let twice = [
        GetResultRequest { job_id: "first".into(), ..Default::default() }.encode_to_vec(),
        GetResultRequest { job_id: "second".into(), ..Default::default() }.encode_to_vec(),
    ];
    let path = "/jobwire.v1.JobService/GetResult";
    let status = call(&channel, path, twice.concat()).await.unwrap_err();
    assert!(status.code() == Code::NotFound && status.message().contains("second"), "{status:?}");
    let status = call(&channel, SUBMIT, Vec::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    call(&channel, "/jobwire.v1.JobService/ListJobs", Vec::new()).await.unwrap();
    for unknown in ["/jobwire.v1.JobService/NoSuchCall", "/no.such.Service/Call"] {
        let refused = Refusal::of(call(&channel, unknown, Vec::new()).await);
        refused.is(Code::Unimplemented, "NOT_SUPPORTED").says(&["no such call"]);
    }
}
