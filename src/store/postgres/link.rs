//! How the database is reached: what its URL says, and TLS.
//!
//! `sslmode` means what it means to other clients of PostgreSQL. The library knows it up to `require`; what checks the
//! certificate is ours. No mode is ever weaker than it was asked for: what cannot be had is refused.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::Connect;
use futures_util::future::BoxFuture;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Config, Connection, Socket,
    config::{LoadBalanceHosts, TargetSessionAttrs},
    tls::MakeTlsConnect,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::form_urlencoded;

use super::{epoch::GUARD, open::OpenError};
use crate::store::Position;

/// Connections that may lead to an old primary, one after the other.
const TRIES: usize = 8;

/// The settings of a URL, with what jobwire needs besides.
#[derive(Clone)]
pub struct Link {
    pub config: Config,
    tls: MakeRustlsConnect,
    /// The epoch that an old primary was found not to know of. From then on hosts are tried in any order.
    newest: Arc<AtomicI64>,
}

type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl Link {
    /// # Errors
    /// The URL is not one of PostgreSQL's, or asks for certificates to be checked and does not say how.
    pub fn of(url: &str) -> Result<Self, OpenError> {
        let (url, check, own) = take_files(url)?;
        let mut config: Config = url.parse().map_err(OpenError::Url)?;
        if config.get_application_name().is_none() {
            config.application_name("jobwire");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        // A peer that is gone without a word is noticed within half a minute.
        config
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(4);
        config.tcp_user_timeout(Duration::from_secs(30));
        // Of several hosts the primary.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        Ok(Self { config, tls: MakeRustlsConnect::new(check.client(own)?), newest: Arc::default() })
    }

    /// A connection, which somebody must drive.
    pub async fn connect(&self) -> Result<(Client, Driver), tokio_postgres::Error> {
        let mut config = self.config.clone();
        if self.newest.load(Ordering::Relaxed) > 0 {
            config.load_balance_hosts(LoadBalanceHosts::Random);
        }
        config.connect(self.tls.clone()).await
    }

    /// A connection that is driven until its client is dropped.
    pub async fn connect_driven(&self) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let mut tries = 1;
        loop {
            let (client, connection) = self.connect().await?;
            let driver = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to PostgreSQL has ended");
                }
            });
            if tries == TRIES || self.is_new(&client).await {
                return Ok((client, driver));
            }
            tries += 1;
        }
    }

    /// Whether it is not the old primary, as far as that can be told.
    async fn is_new(&self, client: &Client) -> bool {
        let newest = self.newest.load(Ordering::Relaxed);
        newest == 0
            || client.query_one(GUARD, &[]).await.is_ok_and(|row| row.get::<_, i64>("first") >= newest)
    }

    /// A server answers that knows of no epoch as new as this one: an old primary that nobody has stopped. It must not come
    /// first each time.
    pub fn avoid_old_primary(&self, newest: Position) {
        if self.newest.fetch_max(newest.0, Ordering::Relaxed) == 0 && self.config.get_hosts().len() > 1 {
            tracing::warn!(
                "a server of the URL serves an older state of the database than was seen before, as an old primary does that \
                 nobody has stopped: it is not used, and the others are tried too. Stop it"
            );
        }
    }
}

impl Connect for Link {
    fn connect(
        &self,
        _config: &Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(self.connect_driven())
    }
}

/// What is asked of the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Check {
    /// Nothing: TLS, if there is any, keeps out those who only listen.
    None,
    /// That an authority of this file has signed it.
    Signer(String),
    /// That too, and that it names the host.
    Host(String),
}

/// The files of the certificate that the server is shown, and of its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    certificate: String,
    key: String,
}

/// Takes out of a URL what the library does not know.
fn take_files(url: &str) -> Result<(String, Check, Option<Own>), OpenError> {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut roots, mut certificate, mut key, mut rest) = (None, None, None, None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        // A plus is a plus here.
        let decoded = pair.replace('+', "%2B");
        match form_urlencoded::parse(decoded.as_bytes()).next() {
            Some((name, value)) if name == "sslmode" => mode = Some(value.into_owned()),
            Some((name, value)) if name == "sslrootcert" => roots = Some(value.into_owned()),
            Some((name, value)) if name == "sslcert" => certificate = Some(value.into_owned()),
            Some((name, value)) if name == "sslkey" => key = Some(value.into_owned()),
            _ => rest.push(pair.to_owned()),
        }
    }
    let (known, check) = match (mode.as_deref(), roots) {
        (Some(mode @ ("verify-ca" | "verify-full")), None) => {
            return Err(OpenError::Tls(format!("sslmode={mode} needs the authorities to trust: {ROOTS}")));
        }
        (Some(_), Some(roots)) if roots == "system" => {
            return Err(OpenError::Tls(format!("sslrootcert=system is not known here: {ROOTS}")));
        }
        (Some("verify-full"), Some(roots)) => (Some("require"), Check::Host(roots)),
        // As with libpq: who names authorities wants them asked.
        (Some("verify-ca" | "require"), Some(roots)) => (Some("require"), Check::Signer(roots)),
        (_, Some(_)) => {
            let why = "sslrootcert checks nothing without a mode that checks: add sslmode=verify-full";
            return Err(OpenError::Tls(why.into()));
        }
        (mode, None) => (mode, Check::None),
    };
    let own = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Own { certificate, key }),
        (None, None) => None,
        _ => return Err(OpenError::Tls("sslcert and sslkey need each other: name both files".into())),
    };
    rest.extend(known.map(|mode| format!("sslmode={mode}")));
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    Ok((format!("{address}{query}"), check, own))
}

const ROOTS: &str = "name the file with their certificates, such as \
                     sslrootcert=/etc/ssl/certs/ca-certificates.crt for those that the system trusts";

impl Check {
    fn client(self, own: Option<Own>) -> Result<ClientConfig, OpenError> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let broken = |error: rustls::Error| OpenError::Tls(error.to_string());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(broken)?;
        let lenient = |roots| Arc::new(Lenient { roots, algorithms });
        let builder = match self {
            Self::None => builder.dangerous().with_custom_certificate_verifier(lenient(None)),
            Self::Signer(file) => {
                builder.dangerous().with_custom_certificate_verifier(lenient(Some(read_roots(&file)?)))
            }
            Self::Host(file) => builder.with_root_certificates(read_roots(&file)?),
        };
        let mut client = match own {
            Some(own) => {
                let (certificates, key) = own.read()?;
                builder.with_client_auth_cert(certificates, key).map_err(broken)?
            }
            None => builder.with_no_client_auth(),
        };
        // What sslnegotiation=direct asks for.
        client.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(client)
    }
}

impl Own {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), OpenError> {
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| broken("sslkey", &self.key, error))?;
        Ok((read_certificates("sslcert", &self.certificate)?, key))
    }
}

fn broken(name: &str, file: &str, why: impl fmt::Display) -> OpenError {
    OpenError::Tls(format!("{name} {file}: {why}"))
}

fn read_certificates(name: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, OpenError> {
    let found =
        CertificateDer::pem_file_iter(Path::new(file)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(none) if none.is_empty() => Err(broken(name, file, "no certificate in it")),
        found => found.map_err(|error| broken(name, file, error)),
    }
}

fn read_roots(file: &str) -> Result<RootCertStore, OpenError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("sslrootcert", file)? {
        roots.add(certificate).map_err(|error| broken("sslrootcert", file, error))?;
    }
    Ok(roots)
}

/// Asks who has signed a certificate, or not even that, but never whose it is.
#[derive(Debug)]
struct Lenient {
    roots: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let known = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, known)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "postgres://a:p@h1:1,h2:2/db";

    #[test]
    fn the_library_is_told_what_it_knows() {
        let taken = |query: &str| {
            let (url, check, own) = take_files(&format!("{AT}{query}")).unwrap();
            assert_eq!(own, None);
            (url, check)
        };
        let file = || "/a+b c.pem".to_owned();
        for (query, rest, check) in [
            ("", "", Check::None),
            ("?sslmode=disable", "?sslmode=disable", Check::None),
            ("?sslmode=require&x=%20+1", "?x=%20+1&sslmode=require", Check::None),
            ("?sslmode=nonsense", "?sslmode=nonsense", Check::None),
            ("?sslmode=require&sslrootcert=/a+b%20c.pem", "?sslmode=require", Check::Signer(file())),
            ("?sslrootcert=/a+b%20c.pem&sslmode=verify-ca", "?sslmode=require", Check::Signer(file())),
            (
                "?sslmode=verify-full&sslrootcert=/a+b%20c.pem&x=1",
                "?x=1&sslmode=require",
                Check::Host(file()),
            ),
            ("?ssl%6Dode=verif%79-full&sslrootcert=/a+b%20c.pem", "?sslmode=require", Check::Host(file())),
        ] {
            assert_eq!(taken(query), (format!("{AT}{rest}"), check), "{query}");
        }
    }

    #[test]
    fn a_certificate_comes_with_its_key() {
        let (url, check, own) =
            take_files(&format!("{AT}?sslcert=/me.pem&x=1&sslkey=/me%20too.key")).unwrap();
        assert_eq!((url, check), (format!("{AT}?x=1"), Check::None));
        assert_eq!(own, Some(Own { certificate: "/me.pem".into(), key: "/me too.key".into() }));
    }

    #[test]
    fn nothing_is_weaker_than_it_was_asked_for() {
        for (query, words) in [
            ("?sslmode=verify-full", "sslrootcert=/etc"),
            ("?sslmode=verify-ca", "sslrootcert=/etc"),
            ("?sslmode=verify-full&sslrootcert=system", "sslrootcert=/etc"),
            ("?sslrootcert=/ca.pem", "sslmode=verify-full"),
            ("?sslmode=prefer&sslrootcert=/ca.pem", "sslmode=verify-full"),
            ("?sslmode=disable&sslrootcert=/ca.pem", "sslmode=verify-full"),
            ("?sslmode=verify-full&sslrootcert=/not/there.pem", "/not/there.pem"),
            ("?sslmode=verify-full&sslrootcert=/dev/null", "no certificate"),
            ("?sslmode=allow", "sslmode"),
            ("?sslmode=verify_full", "sslmode"),
            ("?sslmode=require&sslcert=/me.pem", "sslkey"),
            ("?sslkey=/me.key", "sslcert"),
            ("?sslcert=/not/there.pem&sslkey=/not/there.key", "sslkey /not/there.key"),
        ] {
            let Err(error) = Link::of(&format!("{AT}{query}")) else { panic!("{query} is taken") };
            assert!(error.to_string().contains(words), "{query}: {error}");
        }
    }
}
