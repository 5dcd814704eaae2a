//! Where redirects lead, and where they do not.

use super::{
    server::{Server, answer},
    *,
};

/// Redirects to what the query says, with the status that the path says.
async fn redirector() -> Server {
    Server::start(async |seen| {
        let Some((path, target)) = seen.path.split_once('?') else { return answer(200, &[], "here") };
        answer(path[1..].parse().unwrap(), &[("location", target)], "there")
    })
    .await
}

#[tokio::test]
async fn redirects_are_followed_if_asked_for() {
    let server = redirector().await;
    let http = http();
    let url = server.url("/302?/end");
    assert_eq!(fail(&http, json!({ "url": url })).await.code, "http.status.302");
    assert_eq!(fail(&http, json!({ "url": url, "follow_redirects": false })).await.code, "http.status.302");
    for follow in [json!(true), json!(1)] {
        let output = run(&http, json!({ "url": url, "follow_redirects": follow })).await.unwrap();
        assert_eq!((&output["text"], &output["url"]), (&json!("here"), &json!(server.url("/end"))));
    }
    let chain = server.url("/301?/302?/307?/end");
    assert!(run(&http, json!({ "url": chain, "follow_redirects": 3 })).await.is_ok());
    let error = fail(&http, json!({ "url": chain, "follow_redirects": 2 })).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.redirects", false));
}

#[tokio::test]
async fn loops_end() {
    let server = Server::start(async |_| answer(302, &[("location", "/")], "")).await;
    let error = fail(&http(), json!({ "url": server.url("/"), "follow_redirects": true })).await;
    assert_eq!((error.code.as_str(), error.retryable), ("http.redirects", false));
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn the_method_changes_as_the_status_says() {
    let server = redirector().await;
    let http = http();
    for (status, method, becomes) in [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (302, "PUT", "PUT"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
    ] {
        let url = server.url(&format!("/{status}?/end"));
        let body = if method == "HEAD" { "" } else { "body" };
        let input = json!({ "url": url, "method": method, "text": body, "follow_redirects": true });
        run(&http, input).await.unwrap();
        let seen = server.last();
        assert_eq!(seen.method.as_str(), becomes, "{method} {status}");
        let kept = becomes == method;
        assert_eq!(seen.body, if kept { body } else { "" }, "{method} {status}");
        assert_eq!(seen.headers.contains_key("content-type"), kept, "{method} {status}");
    }
}

#[tokio::test]
async fn credentials_stay_with_their_origin() {
    let (first, second) = (redirector().await, redirector().await);
    let http = http();
    let headers = json!({ "Authorization": "Bearer x", "Cookie": "a=b", "X-Other": "c" });
    let same = json!({ "url": first.url("/302?/end"), "headers": headers, "follow_redirects": true });
    run(&http, same).await.unwrap();
    assert_eq!(first.last().headers["authorization"], "Bearer x");

    // Away, and back again: what was dropped does not come back.
    let back = first.url("/end");
    let away = second.url(&format!("/302?{back}"));
    let there =
        json!({ "url": first.url(&format!("/302?{away}")), "headers": headers, "follow_redirects": true });
    run(&http, there).await.unwrap();
    for server in [&second, &first] {
        let seen = server.last();
        assert!(!seen.headers.contains_key("authorization") && !seen.headers.contains_key("cookie"));
        assert_eq!(seen.headers["x-other"], "c");
    }
}

#[tokio::test]
async fn every_hop_is_checked() {
    let server = redirector().await;
    let names = Names::new(&[("inside.test", &[&["10.0.0.1"]]), ("fine.test", &[&["127.0.0.1"]])]);
    let http = http_with(&settings(), &names);
    let to = |target: &str| json!({ "url": server.url(&format!("/302?{target}")), "follow_redirects": true });
    for inside in [
        "http://127.0.0.2/",
        "http://0x7f.2/",
        "http://[::1]/",
        "//169.254.169.254/latest",
        "http://inside.test/",
    ] {
        let error = fail(&http, to(inside)).await;
        assert_eq!(
            (error.code.as_str(), error.retryable),
            ("http.blocked", false),
            "{inside}: {}",
            error.message
        );
        assert!(error.message.contains("http.allow_networks"), "{}", error.message);
    }
    for bad in [
        "file:///etc/passwd",
        "gopher://fine.test/",
        "http://user:pw@fine.test/",
        "http://",
        "ftp://fine.test/",
    ] {
        let error = fail(&http, to(bad)).await;
        assert_eq!(
            (error.code.as_str(), error.retryable),
            ("http.redirects", false),
            "{bad}: {}",
            error.message
        );
    }
    assert!(run(&http, to(&format!("http://fine.test:{}/end", server.port))).await.is_ok());
}
