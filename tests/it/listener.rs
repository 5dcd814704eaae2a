//! The port: limits of connections and streams, and peers that mean no good.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use jobwire::proto::{GetServerInfoRequest, job_service_client::JobServiceClient};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::Endpoint;

use crate::{
    calls::eventually,
    frames::{
        ACK, Connection, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, headers,
    },
    support::{PATIENCE, Server, program, submit},
};

const SUBMIT: &str = "/jobwire.v1.JobService/Submit";
const WATCH: &str = "/jobwire.v1.JobService/WatchResults";

/// Error codes of RFC 9113.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Connections that were closed may still be counted for a moment.
async fn serves(server: &Server) {
    let call = async || server.client().await.submit(submit("echo", "1")).await.ok();
    eventually(call).await;
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.address()).await.unwrap()
}

/// Everything up to the end of a connection.
async fn end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection is closed");
    bytes
}

#[tokio::test]
async fn the_settings_on_the_wire_are_the_limits() {
    let server = Server::start();
    let mut connection = Connection::open(&server).await;
    let settings = connection.next(SETTINGS).await.unwrap();
    assert_eq!((settings.flags & ACK, settings.stream), (0, 0));
    let value = |id: u16| {
        let found = settings.payload.chunks(6).find(|chunk| chunk[..2] == id.to_be_bytes());
        found.map(|chunk| u32::from_be_bytes(chunk[2..].try_into().unwrap()))
    };
    let (streams, window, frame, list) = (value(3), value(4), value(5), value(6));
    assert_eq!((streams, window, list), (Some(200), Some(1 << 20), Some(16 << 10)));
    assert_eq!(frame.unwrap_or(16_384), 16_384);
    let update = connection.next(WINDOW_UPDATE).await.unwrap();
    let increment = u32::from_be_bytes(update.payload.try_into().unwrap());
    assert_eq!((update.stream, increment + 65_535), (0, 4 << 20));
}

#[tokio::test]
async fn the_silent_and_the_slow_are_closed() {
    let server = Server::with("[http2]\nfirst_byte_timeout = \"200ms\"\nheader_timeout = \"200ms\"\n");
    for said in [&b""[..], b"P", &PREFACE[..23], b"GET / HTTP/1.1\r\nhost: x"] {
        let mut stream = connect(&server).await;
        stream.write_all(said).await.unwrap();
        end(&mut stream).await;
    }
    // Those who are slow, but not too slow, are served.
    let mut connection = Connection(connect(&server).await);
    for part in PREFACE.chunks(6) {
        connection.send(part).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    connection.send(&frame(SETTINGS, 0, 0, &[])).await;
    assert!(connection.next(SETTINGS).await.is_some());
    serves(&server).await;
}

#[tokio::test]
async fn a_peer_that_does_not_answer_pings_is_closed() {
    let server = Server::with("[http2]\nping_interval = \"100ms\"\nping_timeout = \"100ms\"\n");
    let mut connection = Connection::open(&server).await;
    while connection.frame().await.is_some() {}
    serves(&server).await;
}

#[tokio::test]
async fn an_address_has_so_many_connections() {
    let server = Server::with("[http2]\nmax_connections_per_address = 3\n");
    let mut held: Vec<_> = Vec::new();
    for _ in 0..3 {
        let mut connection = Connection::open(&server).await;
        connection.next(SETTINGS).await.unwrap();
        held.push(connection);
    }
    assert!(end(&mut connect(&server).await).await.is_empty());
    held.pop();
    eventually(async || {
        let mut connection = Connection::open(&server).await;
        connection.next(SETTINGS).await.map(drop)
    })
    .await;
    drop(held);
    serves(&server).await;
}

#[tokio::test]
async fn garbage_is_not_answered_for_long() {
    let server = Server::start();
    let random: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let after_preface = [PREFACE, &random].concat();
    let post = b"POST /jobwire.v1.JobService/Submit HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    let endless = [b"GET /", &vec![b'a'; 1 << 20][..]].concat();
    for (what, bytes) in [
        ("random", &random[..]),
        ("preface", &after_preface),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00"),
        ("long", &endless),
    ] {
        let mut stream = connect(&server).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let answer = end(&mut stream).await;
        assert!(answer.len() < 1000, "{what}: {} bytes", answer.len());
    }
    let mut stream = connect(&server).await;
    stream.write_all(post).await.unwrap();
    let answer = String::from_utf8(end(&mut stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    serves(&server).await;
}

/// Reads on until the server says GOAWAY, and tells why.
async fn goaway(connection: &mut Connection) -> u32 {
    let frame = connection.next(GOAWAY).await.expect("GOAWAY before the end");
    u32::from_be_bytes(frame.payload[4..8].try_into().unwrap())
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let server = Server::start();
    let mut connection = Connection::open(&server).await;
    let mut flood = Vec::new();
    for stream in (1..20_000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &headers(WATCH)));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    connection.send(&flood).await;
    assert_eq!(goaway(&mut connection).await, ENHANCE_YOUR_CALM);
    serves(&server).await;
}

#[tokio::test]
async fn resets_that_the_server_is_made_to_send_end_the_connection() {
    let server = Server::with("[http2]\nmax_local_error_reset_streams = 100\n");
    let mut connection = Connection::open(&server).await;
    let mut flood = Vec::new();
    for stream in (1..2_000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &headers(SUBMIT)));
        // A window that grows too large is an error of its stream.
        flood.extend(frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
    }
    connection.send(&flood).await;
    assert_eq!(goaway(&mut connection).await, ENHANCE_YOUR_CALM);
    serves(&server).await;
}

#[tokio::test]
async fn a_connection_has_so_many_streams() {
    let server = Server::with("[http2]\nmax_concurrent_streams = 5\n");
    let mut connection = Connection::open(&server).await;
    for stream in (1..=11).step_by(2) {
        connection.send(&frame(HEADERS, END_HEADERS, stream, &headers(WATCH))).await;
        connection.send(&frame(DATA, END_STREAM, stream, &[0; 5])).await;
    }
    let reset = connection.next(RST_STREAM).await.expect("the sixth is refused");
    assert_eq!((reset.stream, reset.payload), (11, 7u32.to_be_bytes().to_vec()));
    serves(&server).await;
}

#[tokio::test]
async fn headers_have_a_bound() {
    let server = Server::start();
    let client = server.client().await;
    let mut request = tonic::Request::new(submit("echo", "1"));
    for n in 0..200 {
        let name: tonic::metadata::MetadataKey<_> = format!("x-{n}").parse().unwrap();
        request.metadata_mut().insert(name, "x".repeat(100).parse().unwrap());
    }
    client.clone().submit(request).await.expect_err("20 KiB of headers");
    serves(&server).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_does_not_hold_up_a_stop() {
    let mut server = Server::with("[http2]\nfirst_byte_timeout = \"1h\"\n");
    let silent = connect(&server).await;
    let mut half = connect(&server).await;
    half.write_all(b"PRI").await.unwrap();
    serves(&server).await;
    let start = Instant::now();
    server.signal("TERM");
    assert!(server.ended().await.success());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop((silent, half));
}

#[tokio::test]
async fn more_connections_fit_than_a_shell_allows_to_begin_with() {
    let dir = tempfile::tempdir().unwrap();
    let program = program();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -S -n 64; exec \"$0\" serve --listen 127.0.0.1:0"])
        .arg(program.get_program());
    let server = command.env("JOBWIRE_DATA", dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut server = Killed(server);
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    let mut clients = Vec::new();
    for _ in 0..200 {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let called = timeout(PATIENCE, async {
            let mut client = JobServiceClient::new(endpoint.connect().await.unwrap());
            client.get_server_info(GetServerInfoRequest {}).await.unwrap();
            client
        });
        clients.push(called.await.expect("there is room for one more"));
    }
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
