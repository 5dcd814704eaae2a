//! Real servers and sockets.

mod redirects;
mod refusals;
mod responses;
mod server;
mod trouble;

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use serde_json::{Value, json};

use self::server::Names;
use super::*;
use crate::handlers::{
    testing::{context, json_payload},
    typed::read,
};

/// Loopback's first address may be called, nothing else that is not public.
fn settings() -> config::Http {
    config::Http { allow_networks: vec!["127.0.0.1/32".parse().unwrap()], ..config::Http::default() }
}

fn no_roots() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

fn http_with(settings: &config::Http, names: &Arc<Names>) -> Http {
    Http::with(settings, names.clone(), no_roots()).unwrap()
}

fn http() -> Http {
    http_with(&settings(), &Names::new(&[]))
}

fn input(json: Value) -> Input {
    read(&json_payload(json)).unwrap()
}

async fn run(http: &Http, json: Value) -> Result<Value, JobError> {
    let output = http.run(context().0, input(json)).await?;
    Ok(serde_json::from_str(&serde_json::to_string(&output).unwrap()).unwrap())
}

async fn fail(http: &Http, json: Value) -> JobError {
    run(http, json).await.expect_err("must fail")
}

fn details(error: &JobError) -> Value {
    serde_json::from_slice(&error.details.as_ref().unwrap().bytes()).unwrap()
}
