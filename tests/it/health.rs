//! Health checks, and reflection: what tools see before they know the contract.

use futures_util::stream;
use jobwire::proto::job::State;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{
    calls::{place, reach},
    support::{PATIENCE, Server, submit},
};

const SERVICES: [&str; 2] = ["", "jobwire.v1.JobService"];

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn health_turns_while_the_server_drains() {
    let mut server = Server::with("drain_timeout = \"500ms\"\n");
    let client = server.client().await;
    let mut health = HealthClient::new(server.channel().await);
    let mut watches = Vec::new();
    for service in SERVICES {
        let status = health.check(about(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving);
        let mut watch = health.watch(about(service)).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watches.push(watch);
    }
    let unknown = health.check(about("no.such.Service")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let id = place(&client, submit("sleep", r#"{"duration":"1h"}"#)).await;
    reach(&client, &id, State::Running).await;
    server.signal("TERM");
    for watch in &mut watches {
        let turned = timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(turned.status(), ServingStatus::NotServing);
    }
    for service in SERVICES {
        let status = health.check(about(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::NotServing);
    }
    // New connections are served meanwhile, so that those who look can tell.
    let mut late = HealthClient::new(server.channel().await);
    assert_eq!(late.check(about("")).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    // Nor do they hold up its end.
    for watch in &mut watches {
        assert!(timeout(PATIENCE, watch.message()).await.unwrap().unwrap().is_none());
    }
    assert!(server.ended().await.success());
    assert!(!server.log().contains("connections are cut"), "{}", server.log());
}

/// Services by name, and the files of a symbol, from either version.
macro_rules! reflection {
    ($version:ident, $server:expr) => {{
        use $version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new($server.channel().await);
        let requests = [
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into()),
            MessageRequest::FileContainingSymbol("jobwire.v1.JobService".into()),
        ];
        let requests = requests
            .map(|request| ServerReflectionRequest { message_request: Some(request), ..Default::default() });
        let mut answers = client.server_reflection_info(stream::iter(requests)).await.unwrap().into_inner();
        let (mut services, mut files) = (Vec::new(), Vec::new());
        while let Some(answer) = answers.message().await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    services.extend(list.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(found) => {
                    files.extend(found.file_descriptor_proto);
                }
                other => panic!("{other:?}"),
            }
        }
        (services, files)
    }};
}

fn names(files: &[Vec<u8>]) -> Vec<String> {
    let file = |bytes: &Vec<u8>| FileDescriptorProto::decode(&bytes[..]).unwrap().name().to_owned();
    files.iter().map(file).collect()
}

#[tokio::test]
async fn reflection_knows_the_services_and_the_details_of_errors() {
    let server = Server::start();
    for (services, files) in [reflection!(v1, server), reflection!(v1alpha, server)] {
        for service in ["jobwire.v1.JobService", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|known| known == service), "{service}: {services:?}");
        }
        let files = names(&files);
        for file in ["error_details.proto", "jobwire/v1/job_service.proto"] {
            assert!(files.iter().any(|known| known.ends_with(file)), "{file}: {files:?}");
        }
    }
}
