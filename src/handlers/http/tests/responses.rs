//! What goes out and what comes back.

use std::time::Duration;

use super::{
    server::{Server, answer},
    *,
};
use crate::job::Payload;

#[tokio::test]
async fn a_request_says_who_it_is_for() {
    let server = Server::start(async |_| answer(200, &[("X-Reply", "yes")], "hello")).await;
    let output = run(&http(), json!({ "url": server.url("/a?b=c#d") })).await.unwrap();
    assert_eq!((&output["status"], &output["text"]), (&json!(200), &json!("hello")));
    assert_eq!(output["headers"]["x-reply"], "yes");
    assert_eq!(output["url"], server.url("/a?b=c"));
    assert!(output["elapsed_ms"].is_u64());

    let seen = server.last();
    assert_eq!((seen.method, seen.path.as_str()), (http::Method::GET, "/a?b=c"));
    assert_eq!(seen.headers["host"], format!("127.0.0.1:{}", server.port));
    assert_eq!(seen.headers["user-agent"], concat!("jobwire/", env!("CARGO_PKG_VERSION")));
    assert_eq!(seen.headers["idempotency-key"], "job-1-1");
    assert!(seen.headers["traceparent"].to_str().unwrap().starts_with("00-0af76519"));
    for absent in ["accept-encoding", "content-type", "tracestate"] {
        assert!(!seen.headers.contains_key(absent), "{absent}");
    }
}

#[tokio::test]
async fn bodies_and_headers_go_out_as_they_are() {
    let server = Server::start(async |_| answer(201, &[], "")).await;
    let http = http();
    let text = format!(
        r#"{{"url": "{}", "method": "post", "json": {{"n":123456789012345678901234567890, "a" : [ ]}}}}"#,
        server.url("/")
    );
    http.run(context().0, read(&Payload::new(Payload::JSON, text)).unwrap()).await.unwrap();
    let seen = server.last();
    assert_eq!(seen.method, http::Method::POST);
    assert_eq!(seen.body, r#"{"n":123456789012345678901234567890, "a" : [ ]}"#);
    assert_eq!(seen.headers["content-type"], "application/json");

    run(&http, json!({ "url": server.url("/"), "method": "PUT", "json": null })).await.unwrap();
    assert_eq!(server.last().body, "null");

    run(&http, json!({ "url": server.url("/"), "method": "PATCH", "text": "ü" })).await.unwrap();
    assert_eq!(
        (server.last().body, &server.last().headers["content-type"]),
        ("ü".into(), &"text/plain; charset=utf-8".parse().unwrap())
    );

    let headers = json!({ "Content-Type": "image/x", "X-A": ["1", "2"], "user-agent": "me", "idempotency-key": "mine" });
    run(
        &http,
        json!({ "url": server.url("/"), "method": "POST", "data_base64": "AP8=", "headers": headers }),
    )
    .await
    .unwrap();
    let seen = server.last();
    assert_eq!(&*seen.body, [0, 255]);
    assert_eq!(
        (&seen.headers["content-type"], &seen.headers["user-agent"]),
        (&"image/x".parse().unwrap(), &"me".parse().unwrap())
    );
    assert_eq!(seen.headers["idempotency-key"], "mine");
    assert_eq!(seen.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    // One connection did for all of them.
    assert_eq!(server.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn statuses_become_stable_errors() {
    let server = Server::start(async |seen| {
        let status = seen.path[1..].parse().unwrap();
        answer(status, &[("retry-after", "7"), ("x-a", "b")], "the reason")
    })
    .await;
    let http = http();
    for (status, retryable, delay) in [
        (503, true, Some(7)),
        (429, true, Some(7)),
        (500, true, None),
        (502, true, None),
        (408, true, None),
        (425, true, None),
        (400, false, None),
        (404, false, None),
        (301, false, None),
        (204, true, None),
    ] {
        // 204 is as unexpected as the others if only 200 will do.
        let expected = if status == 204 { json!([200, "5xx"]) } else { json!("2xx") };
        let error =
            fail(&http, json!({ "url": server.url(&format!("/{status}")), "expect_status": expected })).await;
        assert_eq!(error.code, format!("http.status.{status}"));
        assert_eq!(error.retryable, retryable && status != 204, "{status}");
        assert_eq!(error.retry_delay, delay.map(Duration::from_secs), "{status}");
        let details = details(&error);
        assert_eq!((&details["status"], &details["headers"]["x-a"]), (&json!(status), &json!("b")));
        assert_eq!(details["text"], if status == 204 { "" } else { "the reason" });
    }
    for (status, expected) in [(404, json!(404)), (404, json!([200, 404])), (302, json!(["2xx", "3XX"]))] {
        let url = server.url(&format!("/{status}"));
        let output = run(&http, json!({ "url": url, "expect_status": expected })).await.unwrap();
        assert_eq!(output["status"], status);
    }
}

#[tokio::test]
async fn a_failure_keeps_the_beginning_of_a_body() {
    let server = Server::start(async |_| answer(500, &[], "é".repeat(1 << 20))).await;
    let details = details(&fail(&http(), json!({ "url": server.url("/") })).await);
    assert_eq!(details["body_truncated"], true);
    assert_eq!(details["text"].as_str().unwrap().len(), DETAILS_BODY_MAX);
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused() {
    let server = Server::start(async |_| answer(200, &[], "x".repeat(100_001))).await;
    let http = http();
    let ok = json!({ "url": server.url("/"), "max_response_bytes": 100_001 });
    assert_eq!(run(&http, ok).await.unwrap()["text"].as_str().unwrap().len(), 100_001);
    let error = fail(&http, json!({ "url": server.url("/"), "max_response_bytes": 100_000 })).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.too_large", false));

    // Without a length, and without an end.
    let endless = Server::listen(|_, mut stream| async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
    })
    .await;
    assert_eq!(fail(&http, json!({ "url": endless.url("/") })).await.code, "http.too_large");
}

#[tokio::test]
async fn tls_and_http2_work_and_strangers_are_refused() {
    let (server, trusting) = Server::start_tls(async |_| answer(200, &[], "secret")).await;
    let names = Names::new(&[("secure.test", &[&["127.0.0.1"]]), ("other.test", &[&["127.0.0.1"]])]);
    let url = |name: &str| json!({ "url": format!("https://{name}:{}/", server.port) });

    let http = Http::with(&settings(), names.clone(), trusting).unwrap();
    assert_eq!(run(&http, url("secure.test")).await.unwrap()["text"], "secret");
    assert_eq!(server.last().version, http::Version::HTTP_2);
    let error = fail(&http, url("other.test")).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.tls", false), "{}", error.message);

    let error = fail(&http_with(&settings(), &names), url("secure.test")).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.tls", false), "{}", error.message);

    let plain = Server::raw(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let error = fail(&http, json!({ "url": plain.url("/").replace("http:", "https:") })).await;
    assert_eq!(error.code, "http.tls", "{}", error.message);
}
