use std::net::ToSocketAddrs as _;

use url::Url;

use super::*;

/// Hosts as a job may write them, that must not be reached: loopback in every spelling of IPv4; nothing, this network,
/// broadcast; private, shared and special networks; IPv6, and IPv4 inside of it; names that every resolver knows.
const REFUSED: &str = "
    127.0.0.1 127.0.0.1. 127.1 127.0.1 127.255.255.255 0177.0.0.1 0177.1 0177.00.00.01 0x7f.0.0.1 0x7f.1
    0X7F.1 0x7f000001 0x7F000001 0x000007f000001 2130706433 017700000001 0x7f.0x0.0x0.0x1 127.0.0.0x1
    127.0x0.1 127.0.0.01 127.000.000.001 127.00.1 %31%32%37.0.0.1 127%2e0.0.1 127。0。0。1 127．0．0．1
    127｡0｡0｡1 １２７.0.0.1 ①②⑦.0.0.1 １２７。０。０。１ 0ⓧ7f.1 127.0.0.1%2e 0x7f。1 2130706433.
    0 0.0.0.0 0.0 0x0 00 0.1.2.3 0.255.255.255 255.255.255.255 0xffffffff 4294967295 037777777777
    10.0.0.1 10.1 012.0.0.1 0xa.1 167772161 10.255.255.255 172.16.0.1 172.31.255.255 0xac.0x10.1
    2886729729 192.168.0.1 192.168.257 0300.0250.0.1 0xc0a80001 3232235521 100.64.0.1 100.127.255.255
    169.254.169.254 0xa9fea9fe 2852039166 0251.0376.0251.0376 169.254.43518 169.0xfea9fe 192.0.0.1
    192.0.0.170 192.0.2.1 192.88.99.1 192.31.196.1 192.52.193.1 192.175.48.1 198.18.0.1 198.19.255.255
    198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.255 233.252.0.1 240.0.0.1 250.1.2.3 0xe0.1
    [::] [::0] [0:0:0:0:0:0:0:0] [::1] [0:0:0:0:0:0:0:1] [0000::0001] [::0.0.0.1] [::ffff:127.0.0.1]
    [::ffff:7f00:1] [0:0:0:0:0:ffff:127.0.0.1] [::FFFF:10.0.0.1] [::ffff:169.254.169.254]
    [::ffff:8.8.8.8] [::ffff:0:127.0.0.1] [::127.0.0.1] [::7f00:1] [::8.8.8.8] [64:ff9b::7f00:1]
    [64:ff9b::127.0.0.1] [64:ff9b::8.8.8.8] [64:ff9b:1::1] [64:ff9b:1:ffff::10.0.0.1] [100::1] [2001::1]
    [2001:0:4136:e378:8000:63bf:3fff:fdd2] [2001:2::1] [2001:10::1] [2001:20::1] [2001:db8::1]
    [2001:DB8:0:0::1] [2002::1] [2002:7f00:1::] [2002:a00:1::1] [3fff::1] [3fff:fff::1] [5f00::1]
    [fc00::1] [fd00::1] [fdff::1] [fe80::1] [febf::1] [fec0::1] [ff02::1] [ff0e::1] [4000::1] [8000::1]
    [1::1] [200::1]
    localhost localhost. LOCALHOST LocalHost. l%6fcalhost ｌｏｃａｌｈｏｓｔ ⓛⓞⓒⓐⓛⓗⓞⓢⓣ
";

const PUBLIC: &str = "
    1.1.1.1 8.8.8.8 0x08080808 134744072 0127.0.0.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0
    126.255.255.255 128.0.0.1 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0
    192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 203.0.112.255 203.0.114.0 223.255.255.255
    [2606:4700:4700::1111] [2001:4860:4860::8888] [2001:200::1] [2001:db7::1] [2001:db9::1] [2003::1]
    [2a00:1450:4001::1] [3ffe::1] [3fff:1000::1]
";

fn guard(hosts: &[&str], networks: &[&str]) -> Guard {
    Guard::new(&config::Http {
        allow_hosts: hosts.iter().map(ToString::to_string).collect(),
        allow_networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        ..config::Http::default()
    })
    .unwrap()
}

/// What the guard says of a host as it stands in a URL. None if the URL is none.
fn verdict(guard: &Guard, host: &str) -> Option<Result<(), String>> {
    let url = Url::parse(&format!("http://{host}:8080/")).ok()?;
    let host = url.host().unwrap().to_owned();
    let addresses: Vec<IpAddr> = match &host {
        Host::Ipv4(v4) => vec![(*v4).into()],
        Host::Ipv6(v6) => vec![(*v6).into()],
        Host::Domain(name) => (&**name, 0).to_socket_addrs().ok()?.map(|address| address.ip()).collect(),
    };
    Some(guard.check(&host, 8080, &addresses))
}

#[test]
fn no_spelling_leads_inside() {
    let hosts: Vec<_> = REFUSED.split_whitespace().collect();
    assert!(hosts.len() >= 140, "{}", hosts.len());
    let guard = guard(&[], &[]);
    let mut read = 0;
    for host in &hosts {
        let verdict = verdict(&guard, host);
        assert!(!matches!(verdict, Some(Ok(()))), "{host} is let through");
        read += usize::from(verdict.is_some());
    }
    // A host that no URL can have is refused too, but most of these can be had.
    assert!(read > hosts.len() * 9 / 10, "{read}");
}

#[test]
fn public_addresses_are_let_through() {
    let guard = guard(&[], &[]);
    for host in PUBLIC.split_whitespace() {
        assert_eq!(verdict(&guard, host), Some(Ok(())), "{host}");
    }
}

#[test]
fn one_address_inside_is_enough_to_refuse() {
    let host = Host::parse("mixed.example").unwrap();
    let addresses = ["8.8.8.8".parse().unwrap(), "10.0.0.1".parse().unwrap()];
    let why = guard(&[], &[]).check(&host, 80, &addresses).unwrap_err();
    assert!(why.contains("mixed.example") && why.contains("10.0.0.1"), "{why}");
    assert!(why.contains("http.allow_networks"), "{why}");
    assert_eq!(guard(&[], &["10.0.0.0/24"]).check(&host, 80, &addresses), Ok(()));
}

#[test]
fn networks_open_what_they_hold_and_no_more() {
    let guard = guard(&[], &["10.1.0.0/16", "fd00:1::/32"]);
    for (host, open) in [
        ("10.1.2.3", true),
        ("10.2.0.1", false),
        ("0xa010203", true),
        ("[fd00:1::5]", true),
        ("[fd00:2::5]", false),
        ("[::ffff:10.1.2.3]", false),
        ("127.0.0.1", false),
    ] {
        assert_eq!(verdict(&guard, host).unwrap().is_ok(), open, "{host}");
    }
}

#[test]
fn allowed_hosts_are_names_with_or_without_a_port() {
    let localhost = ["127.0.0.1".parse().unwrap()];
    let ok = |entry: &str, host: &str, port: u16| {
        guard(&[entry], &[]).check(&Host::parse(host).unwrap(), port, &localhost).is_ok()
    };
    assert!(ok("localhost", "localhost", 1));
    assert!(ok("LOCALHOST", "localhost.", 1));
    assert!(ok("localhost.", "localhost", 1));
    assert!(ok("localhost:80", "localhost", 80));
    assert!(!ok("localhost:80", "localhost", 81));
    assert!(!ok("localhost", "host", 1));
    assert!(!ok("localhost", "a.localhost", 1));
    assert!(ok("127.0.0.1:8080", "127.0.0.1", 8080));
    assert!(ok("::1", "[::1]", 9));
    assert!(ok("[::1]:9", "[::1]", 9));
    assert!(!ok("[::1]:9", "[::1]", 8));
    assert!(ok("[::1]", "[::1]", 8));
    for bad in ["", "a b", "host:port", "host:99999", "http://host", "host/path", "[::1"] {
        assert_eq!(AllowedHost::parse(bad).map(|host| host.host), None, "{bad:?}");
    }
}
