use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::Host;

use crate::{config, job::Error};

/// Which addresses may be called: public ones, and what the configuration adds.
#[derive(Clone, Debug)]
pub struct Guard {
    hosts: Vec<AllowedHost>,
    networks: Vec<IpNet>,
}

#[derive(Clone, Debug)]
struct AllowedHost {
    host: Host,
    port: Option<u16>,
}

impl Guard {
    /// Reads what is allowed. An error names the key of the setting that is wrong.
    pub fn new(settings: &config::Http) -> Result<Self, Error> {
        let read = |(i, entry): (usize, &String)| {
            AllowedHost::parse(entry).ok_or_else(|| {
                let why = format!("{entry:?} is neither a host nor host:port, such as intranet.example:8080");
                Error::invalid(format!("http.allow_hosts[{i}]"), why)
            })
        };
        let hosts = settings.allow_hosts.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Self { hosts, networks: settings.allow_networks.clone() })
    }

    /// Whether a host may be called at all of its addresses. The error says why not, and what would allow it.
    pub fn check(&self, host: &Host, port: u16, addresses: &[IpAddr]) -> Result<(), String> {
        if self.hosts.iter().any(|allowed| allowed.matches(host, port)) {
            return Ok(());
        }
        let refused = addresses.iter().find_map(|&address| {
            let allowed = self.networks.iter().any(|network| network.contains(&address));
            let sort = special(address)?;
            (!allowed).then_some((address, sort))
        });
        match refused {
            None => Ok(()),
            Some((address, sort)) => Err(format!(
                "{host} leads to {address}, which is not a public address ({sort}): the server's configuration can allow it with http.allow_networks or http.allow_hosts"
            )),
        }
    }
}

/// Whether an entry of `http.allow_hosts` can be read.
pub fn is_allowed_host(entry: &str) -> bool {
    AllowedHost::parse(entry).is_some()
}

impl AllowedHost {
    fn parse(entry: &str) -> Option<Self> {
        if let Ok(address) = entry.parse::<IpAddr>() {
            let host = match address {
                IpAddr::V4(v4) => Host::Ipv4(v4),
                IpAddr::V6(v6) => Host::Ipv6(v6),
            };
            return Some(Self { host, port: None });
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
            _ => (entry, None),
        };
        Some(Self { host: Host::parse(host).ok()?, port })
    }

    fn matches(&self, host: &Host, port: u16) -> bool {
        let same = match (&self.host, host) {
            // A dot at the end only says that the name is complete.
            (Host::Domain(a), Host::Domain(b)) => a.trim_end_matches('.') == b.trim_end_matches('.'),
            (a, b) => a == b,
        };
        same && self.port.is_none_or(|allowed| allowed == port)
    }
}

/// What sort of address this is, unless it is a global unicast one. Everything that may lead anywhere else than to
/// the public network is named, tunnels and translations among them: what they lead to is not seen from here.
pub fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => V4.iter().find(|(network, _)| network.contains(&v4)).map(|&(_, sort)| sort),
        IpAddr::V6(v6) => match V6.iter().find(|(network, _)| network.contains(&v6)) {
            Some(&(_, sort)) => Some(sort),
            None => (!V6_GLOBAL.contains(&v6)).then_some("not allocated"),
        },
    }
}

/// The part of IPv6 that global unicast addresses are taken from.
const V6_GLOBAL: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// IANA's special-purpose registry, and multicast.
const V4: [(Ipv4Net, &str); 18] = [
    (v4([0, 0, 0, 0], 8), "this network"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "carrier-grade NAT"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "protocol assignments"),
    (v4([192, 0, 2, 0], 24), "documentation"),
    (v4([192, 31, 196, 0], 24), "AS112"),
    (v4([192, 52, 193, 0], 24), "AMT relay"),
    (v4([192, 88, 99, 0], 24), "6to4 relay"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([192, 175, 48, 0], 24), "AS112"),
    (v4([198, 18, 0, 0], 15), "benchmarking"),
    (v4([198, 51, 100, 0], 24), "documentation"),
    (v4([203, 0, 113, 0], 24), "documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    // With the broadcast address.
    (v4([240, 0, 0, 0], 4), "reserved"),
];

const V6: [(Ipv6Net, &str); 18] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "IPv4-compatible"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated"),
    (v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), "NAT64"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discard"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), "Teredo"),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation"),
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation"),
    (v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16), "segment routing"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

#[cfg(test)]
mod tests;
