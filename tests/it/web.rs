//! gRPC-Web over HTTP/1.1, as a browser would, and what other origins may do.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use jobwire::proto::{
    GetJobRequest, JobFilter, ListJobsRequest, SubmitRequest, SubmitResponse, WatchResultsRequest,
    WatchResultsResponse, watch_results_response::Event,
};
use prost::Message;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    calls::{accept, finish},
    support::{PATIENCE, Server, seconds, submit},
};

const ORIGIN: &str = "https://app.example.org";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The messages, and the trailers as text.
    fn read<M: Message + Default>(&self) -> (Vec<M>, String) {
        let (mut rest, mut messages) = (self.body.clone(), Vec::new());
        while rest.has_remaining() {
            let (flags, length) = (rest.get_u8(), rest.get_u32() as usize);
            let content = rest.split_to(length);
            match flags {
                0 => messages.push(M::decode(content).unwrap()),
                0x80 => {
                    assert!(!rest.has_remaining(), "trailers come last");
                    return (messages, String::from_utf8(content.to_vec()).unwrap());
                }
                other => panic!("flags {other}"),
            }
        }
        (messages, String::new())
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn allows_nobody(&self) -> bool {
        self.headers.keys().all(|name| !name.as_str().starts_with("access-control-"))
    }
}

async fn send(
    server: &Server,
    method: Method,
    name: &str,
    headers: &[(&str, &str)],
    body: Vec<u8>,
) -> Answer {
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("/jobwire.v1.JobService/{name}");
    let mut request = Request::builder().method(method).uri(uri).header("host", server.address());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let exchange = async {
        let response = sender.send_request(request.body(Full::<Bytes>::from(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        Answer { status: head.status, headers: head.headers, body: body.collect().await.unwrap().to_bytes() }
    };
    timeout(PATIENCE, exchange).await.expect("an answer in time")
}

fn framed(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&[0][..], &(body.len() as u32).to_be_bytes(), &body].concat()
}

const WEB: (&str, &str) = ("content-type", "application/grpc-web+proto");

async fn call(server: &Server, name: &str, message: &impl Message, more: &[(&str, &str)]) -> Answer {
    let headers = [&[WEB, ("x-grpc-web", "1")], more].concat();
    send(server, Method::POST, name, &headers, framed(message)).await
}

#[tokio::test]
async fn a_browser_submits_and_gets_the_outcome() {
    let server = Server::start();
    let request = SubmitRequest { wait: Some(seconds(30.0)), ..submit("echo", r#"{"a":1}"#) };
    let answer = call(&server, "Submit", &request, &[]).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (StatusCode::OK, "application/grpc-web+proto")
    );
    let (messages, trailers) = answer.read::<SubmitResponse>();
    assert!(messages.len() == 1 && messages[0].done, "{messages:?}");
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn a_browser_without_binary_bodies_uses_text() {
    let server = Server::start();
    let request = SubmitRequest { wait: Some(seconds(30.0)), ..submit("echo", "1") };
    let headers = [("content-type", "application/grpc-web-text"), ("accept", "application/grpc-web-text")];
    let body = STANDARD.encode(framed(&request)).into_bytes();
    let answer = send(&server, Method::POST, "Submit", &headers, body).await;
    // Every piece is encoded by itself.
    let mut decoded = Vec::new();
    for piece in answer.body.split_inclusive(|&byte| byte == b'=') {
        match piece {
            b"=" => {}
            _ => {
                let padded = [piece, &b"=="[..(4 - piece.len() % 4) % 4]].concat();
                decoded.extend(STANDARD.decode(padded).unwrap());
            }
        }
    }
    let (messages, trailers) = Answer { body: decoded.into(), ..answer }.read::<SubmitResponse>();
    assert!(messages[0].done && trailers.contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn a_browser_watches() {
    let server = Server::start();
    let client = server.client().await;
    let id = accept(&client, submit("sleep", r#"{"duration":"200ms"}"#)).await.job.unwrap().job_id;
    let request = WatchResultsRequest {
        filter: Some(JobFilter { job_ids: vec![id.clone()], ..Default::default() }),
        until_all_done: true,
        ..Default::default()
    };
    let (messages, trailers) =
        call(&server, "WatchResults", &request, &[]).await.read::<WatchResultsResponse>();
    let finished = messages.iter().filter_map(|message| match &message.event {
        Some(Event::Finished(job)) => Some(&job.job_id),
        _ => None,
    });
    assert_eq!(finished.collect::<Vec<_>>(), [&id]);
    assert!(trailers.contains("grpc-status:0"), "{trailers:?}");
}

#[tokio::test]
async fn errors_reach_a_browser_with_their_details() {
    let server = Server::start();
    let unknown = GetJobRequest { job_id: "unknown".into(), ..Default::default() };
    let answer = call(&server, "GetJob", &unknown, &[]).await;
    let trailers = answer.read::<SubmitResponse>().1;
    // Without a message the status may be told in the headers.
    let told = |name: &str| match answer.header(name) {
        "" => {
            trailers.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap_or("").to_owned()
        }
        value => value.to_owned(),
    };
    assert_eq!((answer.status, told("grpc-status").trim()), (StatusCode::OK, "5"));
    assert!(told("grpc-message").contains("unknown"));
    assert!(!told("grpc-status-details-bin").is_empty());
}

#[tokio::test]
async fn a_deadline_that_has_passed_ends_the_call() {
    let server = Server::start();
    let answer = call(&server, "Submit", &submit("echo", "1"), &[("grpc-timeout", "1n")]).await;
    let trailers = answer.read::<SubmitResponse>().1;
    assert!(answer.header("grpc-status") == "4" || trailers.contains("grpc-status:4"), "{trailers:?}");
    // One that makes no sense is none.
    let answer = call(&server, "Submit", &submit("echo", "1"), &[("grpc-timeout", "soon")]).await;
    assert_eq!(answer.read::<SubmitResponse>().0.len(), 1);
}

#[tokio::test]
async fn what_is_no_grpc_is_refused() {
    let server = Server::start();
    let refused = |method, headers: &'static [_]| send(&server, method, "Submit", headers, b"{}".to_vec());
    assert_eq!(refused(Method::GET, &[]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused(Method::POST, &[("content-type", "application/json")]).await.status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(refused(Method::PUT, &[WEB]).await.status, StatusCode::METHOD_NOT_ALLOWED);
    finish(&server.client().await, submit("echo", "1")).await;
}

#[tokio::test]
async fn half_a_frame_does_nothing() {
    let server = Server::start();
    for body in [vec![], vec![0, 0], vec![0, 0, 0, 0, 50, 1], vec![0, 0xff, 0xff, 0xff, 0xff], vec![7; 5]] {
        let answer = send(&server, Method::POST, "Submit", &[WEB], body).await;
        let trailers = answer.read::<SubmitResponse>().1;
        let ok = answer.header("grpc-status") == "0" || trailers.contains("grpc-status:0");
        assert!(!ok, "{trailers:?}");
    }
    finish(&server.client().await, submit("echo", "1")).await;
}

#[tokio::test]
async fn garbage_of_a_browser_is_refused() {
    let server = Server::start();
    let text = ("content-type", "application/grpc-web-text");
    for (header, body) in [
        (WEB, Vec::new()),
        (WEB, vec![0, 0]),
        (WEB, vec![0xff; 1000]),
        (WEB, [&[0, 0xff, 0xff, 0xff, 0xff][..], &[0; 100]].concat()),
        (WEB, [&[0, 0, 0, 0, 3][..], b"\xff\xff\xff"].concat()),
        // Trailers, which a request has none of.
        (WEB, [&[0x80, 0, 0, 0, 3][..], b"a:b"].concat()),
        (text, b"!!!!".to_vec()),
        (text, b"AAAA".to_vec()),
        (text, vec![b'A'; 1001]),
    ] {
        let told = format!("{header:?} {body:.40?}");
        let answer = send(&server, Method::POST, "Submit", &[header], body).await;
        let (_, trailers) = answer.read::<SubmitResponse>();
        let code = trailers.lines().find_map(|line| line.strip_prefix("grpc-status:")).map(str::trim);
        let code = code.unwrap_or_else(|| answer.header("grpc-status"));
        assert!(answer.status == StatusCode::OK && !["", "0"].contains(&code), "{told}: {code:?}");
    }
    let answer = send(&server, Method::GET, "Submit", &[WEB], Vec::new()).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    let answer = send(&server, Method::POST, "Submit", &[("content-type", "text/plain")], Vec::new()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    finish(&server.client().await, submit("echo", "1")).await;
}

async fn preflight(server: &Server, origin: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type,x-grpc-web,grpc-timeout"),
    ];
    send(server, Method::OPTIONS, "Submit", &headers, Vec::new()).await
}

#[tokio::test]
async fn other_origins_are_not_let_in() {
    let server = Server::start();
    assert!(preflight(&server, ORIGIN).await.allows_nobody());
    // One of them is what a page would say whose name was made to lead here.
    let rebound = format!("http://rebound.example.org:{}", server.address().rsplit(':').next().unwrap());
    for origin in [ORIGIN, "null", "", &rebound] {
        // The second one needs no preflight.
        let simple = ("content-type", "application/grpc-web");
        for headers in [vec![WEB, ("x-grpc-web", "1")], vec![simple]] {
            let headers = [headers, vec![("origin", origin)]].concat();
            let body = framed(&submit("nobody", "1"));
            let refused = send(&server, Method::POST, "Submit", &headers, body).await;
            assert!(refused.allows_nobody());
            assert_eq!(refused.header("grpc-status"), "7", "{origin}: {:?}", refused.headers);
            assert!(refused.header("grpc-message").contains("web.allowed_origins"));
        }
    }
    let stored = server.client().await.list_jobs(ListJobsRequest::default()).await.unwrap().into_inner();
    assert!(stored.jobs.is_empty(), "{stored:?}");
}

#[tokio::test]
async fn an_origin_that_is_named_is_let_in() {
    let server = Server::with(&format!("[web]\nallowed_origins = [\"{ORIGIN}\"]\n"));
    let allowed = preflight(&server, ORIGIN).await;
    assert_eq!(allowed.header("access-control-allow-origin"), ORIGIN);
    for name in ["content-type", "x-grpc-web", "grpc-timeout", "x-request-id"] {
        assert!(allowed.header("access-control-allow-headers").contains(name), "{name}");
    }
    assert!(allowed.header("access-control-allow-methods").contains("POST"));
    let answer = call(&server, "Submit", &submit("nobody", "1"), &[("origin", ORIGIN)]).await;
    assert_eq!(answer.header("access-control-allow-origin"), ORIGIN);
    for name in ["grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"] {
        assert!(answer.header("access-control-expose-headers").contains(name), "{name}");
    }
    for other in ["https://evil.example.org", "null", "https://app.example.org.evil.org"] {
        assert_eq!(preflight(&server, other).await.header("access-control-allow-origin"), "");
        let refused = call(&server, "Submit", &submit("nobody", "1"), &[("origin", other)]).await;
        assert_eq!(refused.header("grpc-status"), "7", "{other}");
    }
}
