//! URLs, addresses, payloads and responses of the `http` kind.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use url::Host;

use super::{
    failure,
    guard::{Guard, special},
    hop::Hop,
    input::{self, Input},
};
use crate::{
    config,
    fuzz::{Target, lines, text},
    handlers::{
        fuzz::{read, refused},
        testing::context,
    },
};

pub const TARGETS: &[Target] = &[
    Target { name: "http_address", run: address, seeds: address_seeds },
    Target { name: "http_url", run: url, seeds: url_seeds },
    Target { name: "http_payload", run: payload, seeds: payload_seeds },
    Target { name: "http_redirect", run: redirect, seeds: url_seeds },
    Target { name: "http_retry_after", run: retry_after, seeds: retry_seeds },
];

/// Global unicast, said as plainly as can be: RFC 6890 and its successors, prefix by prefix.
fn public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !matches!(
            v4.octets(),
            [0 | 10 | 127, ..]
                | [100, 64..=127, ..]
                | [169, 254, ..]
                | [172, 16..=31, ..]
                | [192, 0, 0 | 2, _]
                | [192, 31, 196, _]
                | [192, 52, 193, _]
                | [192, 88, 99, _]
                | [192, 168, ..]
                | [192, 175, 48, _]
                | [198, 18 | 19, ..]
                | [198, 51, 100, _]
                | [203, 0, 113, _]
                | [224..=255, ..]
        ),
        IpAddr::V6(v6) => match v6.segments() {
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
            [first, ..] => (0x2000..=0x3fff).contains(&first),
        },
    }
}

fn address_seeds() -> Vec<Vec<u8>> {
    let v6 = [
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::1",
        "2001:1ff::1",
        "2001:200::1",
        "2002::1",
        "3fff:fff::1",
        "fe80::1",
    ];
    let v6 = v6.map(|text| text.parse::<Ipv6Addr>().map_or(Vec::new(), |address| address.octets().to_vec()));
    [vec![vec![127, 0, 0, 1], vec![100, 64, 0, 0], vec![192, 0, 1, 0], vec![223, 255, 255, 255]], v6.to_vec()]
        .concat()
}

fn address(bytes: &[u8]) {
    if let Some(&octets) = bytes.first_chunk::<4>() {
        let address = Ipv4Addr::from(octets).into();
        assert_eq!(special(address).is_none(), public(address), "{address}");
    }
    if let Some(&octets) = bytes.first_chunk::<16>() {
        let address = Ipv6Addr::from(octets).into();
        assert_eq!(special(address).is_none(), public(address), "{address}");
    }
}

fn url_seeds() -> Vec<Vec<u8>> {
    lines(
        "https://example.org:8443/a?b=c#d\nhttp://0x7f.1/\nhttp://2130706433\nhttp://[::ffff:127.0.0.1]:80/\n\
         http://①②⑦.0.0.1/\nhttp://user:secret@example.org/\nhttp:\\\\127。0。0。1\\\nHTTPS:example.org\n/path?x\n//other.example/\n\
         http://1.1.1.1/\nhttp://[2606:4700::1111]/\nhttp://017700000001/\nhttp://example.org./\nhttp://a%2eb/\nfile:///etc/passwd",
    )
}

fn guard() -> Guard {
    Guard::new(&config::Http::default()).expect("the defaults are sound")
}

/// What holds of a URL that a request goes to.
fn sound(url: &url::Url) {
    assert!(["http", "https"].contains(&url.scheme()), "{url}");
    assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none(), "{url}");
    assert_eq!(input::url(url.as_str()).as_ref(), Ok(url));
    let check = |host: Host, address: IpAddr| {
        assert_eq!(guard().check(&host, 80, &[address]).is_ok(), public(address), "{url}");
    };
    match url.host().expect("a host") {
        Host::Ipv4(v4) => check(Host::Ipv4(v4), v4.into()),
        Host::Ipv6(v6) => check(Host::Ipv6(v6), v6.into()),
        // What a resolver could take for a number must not pass for a name.
        Host::Domain(name) => {
            let last = name.strip_suffix('.').unwrap_or(name).rsplit('.').next().unwrap_or_default();
            let number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
            assert!(!number && name.parse::<IpAddr>().is_err(), "{url}");
        }
    }
}

fn url(bytes: &[u8]) {
    if let Some(Ok(url)) = text(bytes).map(input::url) {
        sound(&url);
    }
}

fn payload_seeds() -> Vec<Vec<u8>> {
    lines(
        r#"{"url":"https://example.org/","method":"post","headers":{"a":"b","c":["d","e"]},"json":{"x":1},"timeout":"5s"}
           {"url":"http://127.0.0.1/","text":"hello","expect_status":["2xx",404],"max_response_bytes":100,"follow_redirects":2}
           {"url":"http://example.org/","data_base64":"AAEC","expect_status":200,"follow_redirects":true,"timeout":1.5}
           {"url":"http://example.org/","json":null,"headers":{"content-type":"x/y","authorization":"Bearer x"}}
           {"url":"http://example.org/","method":"CONNECT","headers":{"host":"x","te":"y"}}"#,
    )
}

fn payload(bytes: &[u8]) {
    let settings = config::Http::default();
    let Some(input) = read::<Input>(bytes) else { return };
    let request = match input.check(&settings, &context().0) {
        Ok(request) => request,
        Err(error) => return refused(&error),
    };
    sound(&request.first.url);
    assert!(![Method::CONNECT, Method::TRACE].contains(&request.first.method));
    let of_the_connection =
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"];
    assert!(of_the_connection.iter().all(|name| !request.first.headers.contains_key(*name)));
    assert!(request.first.headers.contains_key("idempotency-key"));
    assert!(request.timeout > Duration::ZERO && !request.expect.is_empty());
    assert!(request.max_bytes <= settings.max_response_bytes && request.redirects <= settings.max_redirects);
    if let Err(error) = request.first.request() {
        refused(&error);
    }
}

/// Wherever a response leads, the rules of the first request hold, and secrets stay at home.
fn redirect(bytes: &[u8]) {
    let Ok(location) = HeaderValue::from_bytes(bytes) else { return };
    let (secret, headers) =
        (HeaderValue::from_static("secret"), HeaderMap::from_iter([(header::LOCATION, location)]));
    let url = input::url("https://example.org/a/b").expect("a URL");
    let hop = Hop {
        method: Method::POST,
        url: url.clone(),
        headers: [(header::AUTHORIZATION, secret.clone()), (header::COOKIE, secret)].into_iter().collect(),
        body: "body".into(),
    };
    for status in [StatusCode::FOUND, StatusCode::TEMPORARY_REDIRECT] {
        match hop.next(status, &headers).expect("a redirect") {
            Ok(next) => {
                sound(&next.url);
                let home = next.url.scheme() == "https"
                    && next.url.host_str() == Some("example.org")
                    && next.url.port_or_known_default() == Some(443);
                assert_eq!(next.headers.contains_key(header::AUTHORIZATION), home);
                assert_eq!(next.headers.contains_key(header::COOKIE), home);
            }
            Err(error) => assert!(error.code == "http.redirects" && error.message.len() <= 8 << 10),
        }
    }
}

fn retry_seeds() -> Vec<Vec<u8>> {
    lines(
        "0\n120\n86400\n86401\n99999999999999999999\nSun, 06 Nov 1994 08:49:37 GMT\nSunday, 06-Nov-94 08:50:37 GMT\n-5\n+3\n1.5",
    )
}

/// Seconds are what the digits say, and nothing asks for more than a day.
fn retry_after(bytes: &[u8]) {
    const DAY: u64 = 86_400;
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let digits = text(bytes).map(|text| text.trim_matches([' ', '\t'])).filter(|text| !text.is_empty());
    let digits = digits.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value)]);
    let delay = failure::retry_after(&headers, SystemTime::UNIX_EPOCH);
    assert!(delay.is_none_or(|delay| delay.as_secs() <= DAY));
    if let Some(digits) = digits {
        let seconds = digits
            .bytes()
            .fold(0u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
        assert_eq!(delay, Some(Duration::from_secs(seconds.min(DAY))));
    }
}
