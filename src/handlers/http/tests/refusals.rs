//! What is never sent.

use std::sync::atomic::Ordering::SeqCst;

use super::{
    server::{Server, answer},
    *,
};
use crate::{
    config::Config,
    handlers::{Handlers, testing::json_payload},
};

#[tokio::test]
async fn bad_inputs_are_refused_by_name() {
    let config = Config { http: settings(), ..Config::default() };
    let handlers = Handlers::builtin(&config).unwrap();
    let handler = handlers.get(&"http".parse().unwrap()).unwrap();
    for (field, more) in [
        ("url", json!({ "url": "nowhere" })),
        ("url", json!({ "url": "ftp://host/" })),
        ("url", json!({ "url": "file:///etc/passwd" })),
        ("url", json!({ "url": "http://" })),
        ("url", json!({ "url": "http://user@host/" })),
        ("url", json!({ "url": "http://:pw@host/" })),
        ("url", json!({ "url": 7 })),
        ("method", json!({ "method": "CONNECT" })),
        ("method", json!({ "method": "trace" })),
        ("method", json!({ "method": "A B" })),
        ("headers.host", json!({ "headers": { "host": "x" } })),
        ("headers.Content-Length", json!({ "headers": { "Content-Length": "5" } })),
        ("headers.transfer-encoding", json!({ "headers": { "transfer-encoding": "chunked" } })),
        ("headers.connection", json!({ "headers": { "connection": "close" } })),
        ("headers.a b", json!({ "headers": { "a b": "x" } })),
        ("headers.x", json!({ "headers": { "x": "a\r\nhost: b" } })),
        ("headers", json!({ "headers": { "x": 5 } })),
        ("json, text", json!({ "json": null, "text": "" })),
        ("data_base64", json!({ "data_base64": "*" })),
        ("timeout", json!({ "timeout": "soon" })),
        ("timeout", json!({ "timeout": 0 })),
        ("timeout", json!({ "timeout": -1 })),
        ("expect_status", json!({ "expect_status": 99 })),
        ("expect_status", json!({ "expect_status": "9xx" })),
        ("expect_status", json!({ "expect_status": [] })),
        ("expect_status", json!({ "expect_status": [200, true] })),
        ("max_response_bytes", json!({ "max_response_bytes": (512 << 10) + 1 })),
        ("max_response_bytes", json!({ "max_response_bytes": -1 })),
        ("follow_redirects", json!({ "follow_redirects": 4 })),
        ("follow_redirects", json!({ "follow_redirects": "yes" })),
        ("proxy", json!({ "proxy": "http://127.0.0.1:1/" })),
    ] {
        let mut payload = json!({ "url": "http://127.0.0.1:1/" });
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = handler.run(context().0, json_payload(payload)).await.unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.retryable),
            ("payload.invalid", false),
            "{more}: {}",
            error.message
        );
        assert!(error.message.contains(field), "{more}: {}", error.message);
    }
}

#[tokio::test]
async fn nothing_inside_is_connected_to() {
    let server = Server::start(async |_| answer(200, &[], "")).await;
    let names = Names::new(&[
        ("inside.test", &[&["127.0.0.1"]]),
        ("mixed.test", &[&["8.8.8.8", "127.0.0.1"]]),
        ("mapped.test", &[&["::ffff:127.0.0.1"]]),
    ]);
    let http = http_with(&config::Http::default(), &names);
    for host in [
        "127.0.0.1",
        "0x7f.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "inside.test",
        "mixed.test",
        "mapped.test",
    ] {
        let error = fail(&http, json!({ "url": format!("http://{host}:{}/", server.port) })).await;
        assert_eq!(
            (error.code.as_str(), error.retryable),
            ("http.blocked", false),
            "{host}: {}",
            error.message
        );
    }
    assert_eq!(server.connections.load(SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_changes_its_mind_gains_nothing() {
    let server = Server::start(async |_| answer(200, &[("connection", "close")], "")).await;
    let names = Names::new(&[("rebind.test", &[&["127.0.0.1"], &["127.0.0.2"]])]);
    let http = http_with(&settings(), &names);
    let url = json!({ "url": format!("http://rebind.test:{}/", server.port) });
    run(&http, url.clone()).await.unwrap();
    // One look-up for the check and the connection: there is no moment in between.
    assert_eq!(names.asked.load(SeqCst), 1);
    assert_eq!(fail(&http, url).await.code, "http.blocked");
    assert_eq!(names.asked.load(SeqCst), 2);
}

#[tokio::test]
async fn allowed_hosts_may_be_anywhere() {
    let server = Server::start(async |_| answer(200, &[], "")).await;
    let names = Names::new(&[("intranet.test", &[&["127.0.0.1"]]), ("other.test", &[&["127.0.0.1"]])]);
    let allow_hosts = vec![format!("intranet.test:{}", server.port)];
    let http = http_with(&config::Http { allow_hosts, ..config::Http::default() }, &names);
    let url = |host: &str| json!({ "url": format!("http://{host}:{}/", server.port) });
    assert!(run(&http, url("intranet.test")).await.is_ok());
    assert_eq!(fail(&http, url("other.test")).await.code, "http.blocked");
}

#[test]
fn mistakes_of_the_configuration_name_their_key() {
    let default = config::Http::default;
    for (key, settings) in [
        (
            "http.allow_hosts[1]",
            config::Http { allow_hosts: vec!["ok".into(), "http://x".into()], ..default() },
        ),
        ("http.concurrency_per_host", config::Http { concurrency_per_host: 0, ..default() }),
        ("http.timeout", config::Http { timeout: Duration::ZERO, ..default() }),
    ] {
        let error = Http::new(&settings).err().unwrap().to_string();
        assert!(error.starts_with(&format!("{key}: ")), "{error}");
    }
}
