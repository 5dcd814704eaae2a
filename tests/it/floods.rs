//! Peers that send what costs them little, again and again: the documented limit answers, memory stays bounded, and
//! honest callers are served.

use std::{collections::BTreeMap, fs, time::Duration};

use jobwire::proto::{
    BatchSubmitRequest, GetResultRequest, JobSpec, LeaseJobsRequest, StreamSubmitRequest, SubmitRequest,
    WatchResultsRequest, watch_results_request::Start,
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, codec::CompressionEncoding};

use crate::{
    calls::{Refusal, eventually, finish, place},
    frames::{
        ACK, CONTINUATION, Connection, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM,
        SETTINGS, WINDOW_UPDATE, frame, headers,
    },
    gzip::{flagged, gzip},
    support::{Server, seconds, submit},
    vanish::{framed, path},
    workers::{KIND, task, workers},
};

/// Bytes that a flood may cost.
const BOUND: u64 = 128 << 20;

/// Error codes of RFC 9113.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Bytes of memory that a process has used at its height.
pub fn peak(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") << 10
}

/// A server, and what it needed before anything came.
struct Target {
    server: Server,
    before: u64,
}

impl Target {
    async fn with(config: &str) -> Self {
        let server = Server::with(config);
        finish(&server.client().await, submit("echo", "1")).await;
        let before = peak(&server);
        Self { server, before }
    }

    async fn start() -> Self {
        Self::with("").await
    }

    /// It serves the honest, and has grown by no more than it may.
    async fn stands(&self) {
        let client = eventually(async || {
            let mut client = self.server.client().await;
            client.submit(submit("echo", "1")).await.ok().map(|_| client)
        })
        .await;
        finish(&client, submit("echo", "1")).await;
        let growth = peak(&self.server) - self.before;
        println!("{} KiB more at the height", growth >> 10);
        assert!(growth < BOUND, "{growth} bytes");
    }
}

/// Sends without reading, until all is sent or nobody takes it any more.
async fn pour(connection: &mut Connection, piece: &[u8], pieces: usize) {
    let flood = piece.repeat(1000);
    for _ in 0..pieces / 1000 {
        let sent = timeout(Duration::from_secs(2), connection.0.write_all(&flood)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// Why the server said GOAWAY.
async fn goaway(connection: &mut Connection) -> Option<u32> {
    let frame = connection.next(GOAWAY).await?;
    Some(u32::from_be_bytes(frame.payload[4..8].try_into().expect("a code")))
}

#[tokio::test]
async fn headers_that_go_on_and_on_end_the_connection() {
    let target = Target::start().await;
    for part in [&b""[..], b"\x00\x01a\x01b", &[0; 1000]] {
        let mut connection = Connection::open(&target.server).await;
        connection.send(&frame(HEADERS, 0, 1, &path("Submit"))).await;
        pour(&mut connection, &frame(CONTINUATION, 0, 1, part), 50_000).await;
        let why = goaway(&mut connection).await;
        assert!(why.is_none_or(|why| why != 0), "{why:?}");
    }
    target.stands().await;
}

#[tokio::test]
async fn answers_that_nobody_reads_are_not_piled_up() {
    let target = Target::start().await;
    for piece in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut connection = Connection::open(&target.server).await;
        // Nobody reads the acknowledgements: at some point no more is taken.
        pour(&mut connection, &piece, 2_000_000).await;
    }
    target.stands().await;
}

#[tokio::test]
async fn data_in_crumbs_is_bounded() {
    let target = Target::start().await;
    for (method, crumb) in
        [("StreamSubmit", &b"x"[..]), ("StreamSubmit", b""), ("Submit", b"x"), ("Submit", b"")]
    {
        let mut connection = Connection::open(&target.server).await;
        connection.send(&frame(HEADERS, END_HEADERS, 1, &path(method))).await;
        // The beginning of a message of 4 MiB.
        connection.send(&frame(DATA, 0, 1, &[0, 0, 0x40, 0, 0])).await;
        pour(&mut connection, &frame(DATA, 0, 1, crumb), 200_000).await;
    }
    target.stands().await;
}

#[tokio::test]
async fn streams_that_are_not_read_hold_little() {
    let target = Target::start().await;
    let client = target.server.client().await;
    let large = format!("\"{}\"", "x".repeat(1000));
    let id = finish(&client, submit("echo", &large)).await.job_id;
    let mut connection = Connection::open(&target.server).await;
    connection.send(&takes_nothing()).await;
    let get = framed(&GetResultRequest { job_id: id, ..Default::default() });
    let watch = framed(&WatchResultsRequest { include_existing: true, ..Default::default() });
    for n in 0..200u32 {
        let (method, body) = if n % 2 == 0 { ("GetResult", &get) } else { ("WatchResults", &watch) };
        connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path(method))).await;
        connection.send(&frame(DATA, END_STREAM, 2 * n + 1, body)).await;
    }
    for _ in 0..200 {
        assert!(connection.next(HEADERS).await.is_some());
    }
    target.stands().await;
}

#[tokio::test]
async fn a_hundred_thousand_streams_that_are_reset_cost_nothing() {
    let target = Target::start().await;
    let mut streams = 0;
    while streams < 100_000 {
        let mut connection = Connection::open(&target.server).await;
        let mut flood = Vec::new();
        for stream in (1..2_000).step_by(2) {
            flood.extend(frame(HEADERS, END_HEADERS, stream, &path("WatchResults")));
            flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
            streams += 1;
        }
        connection.send(&flood).await;
        if let Some(why) = goaway(&mut connection).await {
            assert_eq!(why, ENHANCE_YOUR_CALM);
        }
    }
    target.stands().await;
}

#[tokio::test]
async fn thousands_who_say_nothing_are_refused_or_let_go() {
    const SILENT: usize = 3000;
    let target = Target::with(
        "[http2]\nmax_connections = 2000\nmax_connections_per_address = 1500\nfirst_byte_timeout = \"1s\"\n",
    )
    .await;
    let mut held = Vec::new();
    for _ in 0..SILENT {
        // Beyond the limit they are closed at once, and may be before they are counted as open here.
        held.extend(TcpStream::connect(target.server.address()).await);
    }
    for mut silent in held {
        let mut nothing = Vec::new();
        let ended = timeout(Duration::from_secs(30), silent.read_to_end(&mut nothing)).await;
        assert!(ended.is_ok() && nothing.is_empty());
    }
    target.stands().await;
}

/// A response that ends with its headers is a refusal; one that goes on waits to be taken.
async fn refused(connection: &mut Connection, calls: usize) -> usize {
    let mut refused = 0;
    for _ in 0..calls {
        let headers = connection.next(HEADERS).await.expect("an answer");
        refused += usize::from(headers.flags & END_STREAM != 0);
    }
    refused
}

/// Bytes, less than the window of a stream.
const PART: usize = 900_000;

const ROOM: &str = "[limits]\nmessage_buffer_bytes = 16777216\n";

#[tokio::test]
async fn replies_that_nobody_takes_have_so_much_room() {
    let target = Target::with(ROOM).await;
    let client = target.server.client().await;
    let large = submit("echo", &format!("\"{}\"", "x".repeat((1 << 20) - 2)));
    let id = finish(&client, large.clone()).await.job_id;
    let get = GetResultRequest { job_id: id, ..Default::default() };
    let mut connection = Connection::open(&target.server).await;
    connection.send(&takes_nothing()).await;
    for n in 0..200u32 {
        connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path("GetResult"))).await;
        connection.send(&frame(DATA, END_STREAM, 2 * n + 1, &framed(&get))).await;
    }
    assert_eq!(refused(&mut connection, 200).await, 200 - 15);
    // Others find no room for large replies, but for all else; and what was done is told.
    let full = Refusal::of(client.clone().get_result(get.clone()).await);
    assert!(full.quota().contains("memory") && full.retry_delay() > Duration::ZERO);
    full.is(Code::ResourceExhausted, "QUEUE_FULL");
    let output = finish(&client, large).await.output.unwrap();
    assert!(output.omitted && output.body.is_none() && output.size_bytes == 1 << 20, "{output:.100?}");
    drop(connection);
    eventually(async || client.clone().get_result(get.clone()).await.ok()).await;
    target.stands().await;
}

#[tokio::test]
async fn leases_that_have_no_room_go_back() {
    let server = Server::with(ROOM);
    let (client, workers) = (server.client().await, workers(&server).await);
    let large = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    let id = finish(&client, submit("echo", &large)).await.job_id;
    let get = GetResultRequest { job_id: id, ..Default::default() };
    let mut connection = Connection::open(&server).await;
    connection.send(&takes_nothing()).await;
    for n in 0..16u32 {
        connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path("GetResult"))).await;
        connection.send(&frame(DATA, END_STREAM, 2 * n + 1, &framed(&get))).await;
    }
    assert_eq!(refused(&mut connection, 16).await, 1);
    place(&client, task(&large)).await;
    let ask = LeaseJobsRequest { worker_id: "me".into(), kinds: vec![KIND.into()], ..Default::default() };
    let full = Refusal::of(workers.clone().lease_jobs(ask.clone()).await);
    full.is(Code::ResourceExhausted, "QUEUE_FULL");
    drop(connection);
    eventually(async || client.clone().get_result(get.clone()).await.ok()).await;
    // Long before its lease would have run out.
    let ask = LeaseJobsRequest { wait: Some(seconds(5.0)), ..ask };
    let leases = workers.clone().lease_jobs(ask).await.unwrap().into_inner().leases;
    assert_eq!(leases.len(), 1);
}

/// SETTINGS_INITIAL_WINDOW_SIZE 0: nothing that is answered is taken.
fn takes_nothing() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])
}

#[tokio::test]
async fn verdicts_that_nobody_takes_hold_up_nobody() {
    let target = Target::with("[limits]\nmax_payload_bytes = 1000\nsubmit_buffer_bytes = 1000\n").await;
    let mut items = Vec::new();
    for sequence in 0..300 {
        let request = Some(submit("nobody", "1"));
        items.extend(framed(&StreamSubmitRequest { sequence, request }));
    }
    let mut connection = Connection::open(&target.server).await;
    connection.send(&takes_nothing()).await;
    connection.send(&frame(HEADERS, END_HEADERS, 1, &path("StreamSubmit"))).await;
    for part in items.chunks(16_000) {
        connection.send(&frame(DATA, 0, 1, part)).await;
    }
    // Time to judge some of them.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // All that came whole is accepted, and the room is free again.
    let client = target.server.client().await;
    for _ in 0..3 {
        eventually(async || client.clone().submit(submit("nobody", "1")).await.ok()).await;
    }
}

/// Bytes of outputs that are not sent along are not kept for slow watchers.
#[tokio::test]
async fn watchers_that_take_nothing_keep_little() {
    let target = Target::with("[watch]\nring_bytes = 0\n").await;
    let client = target.server.client().await;
    let large = submit("echo", &format!("\"{}\"", "x".repeat(200 << 10)));
    for _ in 0..300 {
        finish(&client, large.clone()).await;
    }
    let watch = WatchResultsRequest { start: Some(Start::Earliest(true)), ..Default::default() };
    let mut connection = Connection::open(&target.server).await;
    connection.send(&takes_nothing()).await;
    for n in 0..10u32 {
        connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path("WatchResults"))).await;
        connection.send(&frame(DATA, END_STREAM, 2 * n + 1, &framed(&watch))).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    target.stands().await;
}

/// What is there already may be larger than what asks for it.
#[tokio::test]
async fn batches_that_are_answered_with_more_than_they_are_have_so_much_room() {
    let target = Target::with(ROOM).await;
    let client = target.server.client().await;
    let unique = |labels| {
        let spec = JobSpec { unique_key: "key".into(), labels, ..submit("nobody", "1").spec.unwrap() };
        SubmitRequest { spec: Some(spec), ..Default::default() }
    };
    let labels = (0..64).map(|n| (format!("label-{n}"), "x".repeat(250))).collect();
    place(&client, unique(labels)).await;
    let batch = BatchSubmitRequest { requests: vec![unique(BTreeMap::new()); 190] };
    let mut connection = Connection::open(&target.server).await;
    connection.send(&takes_nothing()).await;
    for n in 0..100u32 {
        connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path("BatchSubmit"))).await;
        connection.send(&frame(DATA, END_STREAM, 2 * n + 1, &framed(&batch))).await;
    }
    // All of them have had their effect.
    assert_eq!(refused(&mut connection, 100).await, 0);
    target.stands().await;
}

/// Sends DATA, as windows allow.
async fn send(connection: &mut Connection, stream: u32, bytes: &[u8], room: &mut usize) {
    for part in bytes.chunks(16_000) {
        while *room < 16_000 {
            let update = connection.next(WINDOW_UPDATE).await.expect("the server reads");
            if update.stream == 0 {
                *room += u32::from_be_bytes(update.payload.try_into().unwrap()) as usize;
            }
        }
        connection.send(&frame(DATA, 0, stream, part)).await;
        *room -= part.len();
    }
}

#[tokio::test]
async fn lists_of_nothing_are_counted_before_they_are_read() {
    let target = Target::start().await;
    let mut connections = Vec::new();
    for (path, empty) in
        [(path("BatchSubmit"), b"\x0a\0"), (headers("/jobwire.v1.WorkerService/RenewLeases"), b"\x22\0")]
    {
        let mut connection = Connection::open(&target.server).await;
        connection.send(&frame(SETTINGS, ACK, 0, &[])).await;
        let mut room = 65_535;
        let items = empty.repeat(PART / 2);
        let message = [&[0][..], &(items.len() as u32).to_be_bytes(), &items].concat();
        for n in 0..4u32 {
            connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path)).await;
            // All of the message, but not the end of the call.
            send(&mut connection, 2 * n + 1, &message, &mut room).await;
        }
        connections.push(connection);
    }
    target.stands().await;
    for mut connection in connections {
        assert_eq!(refused(&mut connection, 4).await, 4);
    }
}

#[tokio::test]
async fn requests_that_never_end_have_so_much_room() {
    let config = format!("{ROOM}max_wait = \"1s\"\nmax_unary = \"3s\"\n");
    let target = Target::with(&config).await;
    let client = target.server.client().await;
    let large = submit("echo", &format!("\"{}\"", "x".repeat((1 << 20) - 2)));
    for method in ["Submit", "StreamSubmit"] {
        let mut connection = Connection::open(&target.server).await;
        connection.send(&frame(SETTINGS, ACK, 0, &[])).await;
        let mut room = 65_535;
        for n in 0..40u32 {
            connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &path(method))).await;
            // A message of 4 MiB, so far.
            connection.send(&frame(DATA, 0, 2 * n + 1, &[0, 0, 0x40, 0, 0])).await;
            room -= 5;
            send(&mut connection, 2 * n + 1, &vec![0; PART], &mut room).await;
        }
        let full = Refusal::of(client.clone().submit(large.clone()).await);
        full.is(Code::ResourceExhausted, "QUEUE_FULL");
        finish(&client, submit("echo", "1")).await;
        // They are not waited for without end.
        eventually(async || client.clone().submit(large.clone()).await.ok()).await;
        drop(connection);
    }
    target.stands().await;
}

#[tokio::test]
async fn requests_whose_end_is_withheld_have_so_much_room() {
    let config = format!("{ROOM}[http2]\naccept_gzip = true\n");
    let target = Target::with(&config).await;
    let client = target.server.client().await;
    let large = submit("echo", &format!("\"{}\"", "x".repeat(PART)));
    let content = large.encode_to_vec();
    let compressed = [path("Submit"), b"\x00\x0dgrpc-encoding\x04gzip".to_vec()].concat();
    let compressing = client.clone().send_compressed(CompressionEncoding::Gzip);
    for (client, head, body) in
        [(client, path("Submit"), framed(&large)), (compressing, compressed, flagged(&gzip(&content)))]
    {
        let mut connection = Connection::open(&target.server).await;
        connection.send(&frame(SETTINGS, ACK, 0, &[])).await;
        let mut room = 65_535;
        for n in 0..40u32 {
            connection.send(&frame(HEADERS, END_HEADERS, 2 * n + 1, &head)).await;
            // All of the message, but not the end of the call.
            send(&mut connection, 2 * n + 1, &body, &mut room).await;
        }
        let full = eventually(async || client.clone().submit(large.clone()).await.err()).await;
        Refusal::read(full).is(Code::ResourceExhausted, "QUEUE_FULL");
        drop(connection);
        eventually(async || client.clone().submit(large.clone()).await.ok()).await;
    }
    target.stands().await;
}
