//! Networks and servers that do not do what they should.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::oneshot,
    time::sleep,
};

use super::{
    server::{Server, answer},
    *,
};

#[tokio::test]
async fn time_ends_at_the_connect_the_headers_and_the_body() {
    let silent = Server::listen(|_, stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    let dripping = Server::listen(|_, mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let http = http();
    let urls = [silent.url("/"), silent.url("/").replace("http:", "https:"), dripping.url("/")];
    for url in urls {
        let start = Instant::now();
        let error = fail(&http, json!({ "url": url, "timeout": "200ms" })).await;
        assert_eq!((error.code.as_str(), error.retryable), ("http.timeout", true), "{url}");
        assert!(start.elapsed() < Duration::from_secs(5), "{url}");
    }
}

#[tokio::test]
async fn a_refusal_counts_although_its_body_does_not_end() {
    let stalling = Server::listen(|_, mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 10\r\n\r\nabc").await;
        std::future::pending().await
    })
    .await;
    let error = fail(&http(), json!({ "url": stalling.url("/"), "timeout": "900ms" })).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.status.404", false), "{}", error.message);
    let details = details(&error);
    assert_eq!((&details["text"], &details["body_truncated"]), (&json!("abc"), &json!(true)));
}

#[tokio::test]
async fn time_is_counted_over_all_redirects() {
    let server = Server::start(async |_| {
        sleep(Duration::from_millis(150)).await;
        answer(302, &[("location", "/")], "")
    })
    .await;
    let error =
        fail(&http(), json!({ "url": server.url("/"), "timeout": "250ms", "follow_redirects": 3 })).await;
    assert_eq!(error.code, "http.timeout");
    assert!(server.seen().len() <= 2);
}

#[tokio::test]
async fn a_cancel_closes_the_connection() {
    let (closed, is_closed) = oneshot::channel();
    let closed = Arc::new(std::sync::Mutex::new(Some(closed)));
    let (asked, is_asked) = oneshot::channel();
    let asked = Arc::new(std::sync::Mutex::new(Some(asked)));
    let server = Server::listen(move |_, mut stream| {
        let (asked, closed) = (asked.clone(), closed.clone());
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            asked.lock().unwrap().take().unwrap().send(()).unwrap();
            while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
            closed.lock().unwrap().take().unwrap().send(()).unwrap();
        }
    })
    .await;
    let (context, cancelled) = context();
    let url = server.url("/");
    let running = tokio::spawn(async move { http().run(context, input(json!({ "url": url }))).await });
    is_asked.await.unwrap();
    cancelled.cancel();
    assert_eq!(running.await.unwrap().err().unwrap().code, "interrupted");
    tokio::time::timeout(Duration::from_secs(10), is_closed).await.unwrap().unwrap();
}

#[tokio::test]
async fn broken_answers_are_named() {
    let http = http();
    for (bytes, code) in [
        (&b""[..], "http.protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "http.protocol"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc", "http.protocol"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "http.protocol"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "http.protocol"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", "http.protocol"),
        (b"HTTP/1.1 200", "http.protocol"),
    ] {
        let server = Server::raw(bytes).await;
        let error = fail(&http, json!({ "url": server.url("/") })).await;
        let bytes = String::from_utf8_lossy(bytes);
        assert_eq!((error.code.as_str(), error.retryable), (code, true), "{bytes:?}: {}", error.message);
    }
}

#[tokio::test]
async fn headers_without_end_are_cut_off() {
    let server = Server::listen(|_, mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
    })
    .await;
    assert_eq!(
        fail(&http(), json!({ "url": server.url("/"), "timeout": "20s" })).await.code,
        "http.protocol"
    );
}

#[tokio::test]
async fn nobody_there_is_http_connect() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = fail(&http(), json!({ "url": format!("http://127.0.0.1:{port}/") })).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.connect", true), "{}", error.message);

    let closing = Server::listen(|_, stream| async move { drop(stream) }).await;
    let error = fail(&http(), json!({ "url": closing.url("/").replace("http:", "https:") })).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.connect", true), "{}", error.message);
}

#[tokio::test]
async fn names_without_an_address_are_http_dns() {
    let names = Names::new(&[("empty.test", &[&[]])]);
    let http = http_with(&settings(), &names);
    for name in ["unknown.test", "empty.test"] {
        let error = fail(&http, json!({ "url": format!("http://{name}/") })).await;
        assert_eq!((error.code.as_str(), error.retryable), ("http.dns", true));
        assert!(error.message.contains(name), "{}", error.message);
    }
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let server = Server::start(async |_| answer(200, &[], "")).await;
    let names = Names::new(&[("two.test", &[&["127.0.0.3", "127.0.0.1"]])]);
    let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    let http = http_with(&config::Http { allow_networks, ..config::Http::default() }, &names);
    assert!(run(&http, json!({ "url": format!("http://two.test:{}/", server.port) })).await.is_ok());
}

#[tokio::test]
async fn a_host_sees_so_many_requests_at_a_time() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, peak) = (now.clone(), most.clone());
    let server = Server::start(move |_| {
        let (running, peak) = (running.clone(), peak.clone());
        async move {
            peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            sleep(Duration::from_millis(20)).await;
            running.fetch_sub(1, SeqCst);
            answer(200, &[], "")
        }
    })
    .await;
    let http = http_with(&config::Http { concurrency_per_host: 2, ..settings() }, &Names::new(&[]));
    let runs = (0..10).map(|_| run(&http, json!({ "url": server.url("/") })));
    assert!(futures_util::future::join_all(runs).await.iter().all(Result::is_ok));
    assert_eq!(most.load(SeqCst), 2);
}
