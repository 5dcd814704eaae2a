//! TLS to the database: each mode asks of the server's certificate what it says.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{Cluster, execute};
use crate::{
    calls::finish,
    support::{Server, submit},
};

/// Signs certificates.
struct Authority {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Has the server of a cluster take TLS, with a certificate for this host.
fn take_tls(cluster: &Cluster, host: &str) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    write(cluster, "server.crt", &certificate.pem());
    write(cluster, "server.key", &key.serialize_pem());
    execute(&cluster.url, "alter system set ssl = on");
    execute(&cluster.url, "select pg_reload_conf()");
    Authority { root, issuer }
}

/// By the server's own hands: its key must be readable for nobody else.
fn write(cluster: &Cluster, name: &str, text: &str) {
    let lines: Vec<_> = text.lines().map(|line| format!("('{line}')")).collect();
    let write = format!("copy (values {}) to program 'umask 077; cat >{name}'", lines.join(","));
    execute(&cluster.url, &write);
}

/// The path of a new file.
fn file(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn each_mode_asks_what_it_says() {
    let cluster = Cluster::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| file(&dir, name, text);
    let url = cluster.schema();
    let plain = Server::try_on_database(&format!("{url}&sslmode=require"), "").err().expect("no TLS yet");
    assert!(plain.contains("TLS"), "{plain}");

    let stranger = file("stranger.pem", &take_tls(&cluster, "127.0.0.1").root);
    let root = file("root.pem", &take_tls(&cluster, "127.0.0.1").root);
    let with = |mode: &str, roots: &str| format!("{url}&sslmode={mode}&sslrootcert={roots}");
    for (url, tls) in [
        (format!("{url}&sslmode=disable"), false),
        (url.clone(), true),
        (format!("{url}&sslmode=require"), true),
        (with("require", &root), true),
        (with("verify-ca", &root), true),
        (with("verify-full", &root), true),
    ] {
        let server = Server::on_database(&url, "");
        finish(&server.client().await, submit("echo", "1")).await;
        assert!(server.log().contains(&format!("tls={tls}")), "{url}: {}", server.log());
    }
    let refused = |url: &str, words: &str| {
        let said = Server::try_on_database(url, "").err().unwrap_or_else(|| panic!("{url} is taken"));
        assert!(said.contains(words), "{url}: {said}");
    };
    for mode in ["require", "verify-ca", "verify-full"] {
        refused(&with(mode, &stranger), "invalid peer certificate");
    }
    refused(&format!("{url}&sslmode=verify-full"), "sslrootcert=/etc");

    // Signed as it should be, but for another host.
    let root = file("other.pem", &take_tls(&cluster, "db.example.org").root);
    refused(&with("verify-full", &root), "not valid for name");
    let server = Server::on_database(&with("verify-ca", &root), "");
    finish(&server.client().await, submit("echo", "1")).await;
}

#[tokio::test]
async fn a_role_may_log_in_by_certificate() {
    let cluster = Cluster::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| file(&dir, name, text);
    let url = cluster.schema();
    let authority = take_tls(&cluster, "127.0.0.1");
    write(&cluster, "root.crt", &authority.root);
    write(&cluster, "pg_hba.conf", "hostssl all all 127.0.0.1/32 cert");
    execute(&cluster.url, "alter system set ssl_ca_file = 'root.crt'");
    execute(&cluster.url, "select pg_reload_conf()");
    let root = file("root.pem", &authority.root);
    let full = format!("{url}&sslmode=verify-full&sslrootcert={root}");
    let of = |role: &str| {
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::default();
        own.distinguished_name.push(DnType::CommonName, role);
        let certificate = own.signed_by(&key, &authority.issuer).unwrap();
        let certificate = file(&format!("{role}.pem"), &certificate.pem());
        let key = file(&format!("{role}.key"), &key.serialize_pem());
        format!("{full}&sslcert={certificate}&sslkey={key}")
    };
    for (url, words) in [(full.clone(), "certificate"), (of("somebody"), "certificate authentication failed")]
    {
        let said = Server::try_on_database(&url, "").err().unwrap_or_else(|| panic!("{url} is taken"));
        assert!(said.contains(words), "{url}: {said}");
    }
    let server = Server::on_database(&of("jobwire"), "");
    finish(&server.client().await, submit("echo", "1")).await;
}
