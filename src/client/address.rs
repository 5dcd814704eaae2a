//! Where a server is: `http://host:port`, or `host:port` for short.

use std::{num::NonZeroU16, str::FromStr};

use http::Uri;

use super::Error;

/// The port of an address that names none.
const DEFAULT_PORT: u16 = 50051;

/// Reads an address and writes it out in full, `http://host:port`.
pub(crate) fn normalise(address: &str) -> Result<String, Error> {
    let refuse = |why: &str| Error::Address { address: address.to_owned(), why: why.to_owned() };
    let rest = match address.trim().split_once("://") {
        None => address.trim(),
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(refuse(
                "TLS is not part of this version; use http://, on this machine or through a tunnel",
            ));
        }
        Some(_) => return Err(refuse("the scheme must be http")),
    };
    let uri =
        Uri::from_str(&format!("http://{rest}")).map_err(|_| refuse("it must look like http://host:port"))?;
    let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
    if authority.as_str().contains('@') {
        return Err(refuse("it must not hold a user name"));
    }
    if authority.host().is_empty() {
        return Err(refuse("it names no host"));
    }
    if !matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("" | "/")) {
        return Err(refuse("it must end after the port"));
    }
    let port = match authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':'))
    {
        Some(port) => port.parse::<NonZeroU16>().map_err(|_| refuse("the port must be 1 to 65535"))?.get(),
        None => DEFAULT_PORT,
    };
    Ok(format!("http://{}:{port}", authority.host()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_usual_spellings() {
        for (given, full) in [
            ("http://127.0.0.1:50051", "http://127.0.0.1:50051"),
            ("http://localhost:80/", "http://localhost:80"),
            ("localhost:7000", "http://localhost:7000"),
            (" jobs.example.org ", "http://jobs.example.org:50051"),
            ("[::1]:50051", "http://[::1]:50051"),
        ] {
            assert_eq!(normalise(given).unwrap(), full, "{given}");
        }
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for (given, why) in [
            ("https://localhost:50051", "TLS"),
            ("unix:///tmp/socket", "scheme"),
            ("http://a:b@localhost:1", "user"),
            ("http://localhost:1/path", "after the port"),
            ("http://localhost:99999", "port"),
            ("localhost:0", "port"),
            ("localhost:", "port"),
            ("", ""),
            ("http://", ""),
        ] {
            let error = normalise(given).unwrap_err();
            assert!(matches!(&error, Error::Address { .. }), "{given}: {error:?}");
            assert!(error.to_string().contains(why), "{given}: {error}");
        }
    }
}
