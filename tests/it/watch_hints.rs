//! What a watcher may be told beside outcomes: changes and progress.

use std::collections::BTreeSet;

use jobwire::proto::{
    JobFilter, SubmitRequest, WatchResultsRequest, job::State, watch_results_response::Event,
};
use tonic::Code;

use crate::{
    calls::{Refusal, Watch, place},
    support::{Server, submit},
};

#[tokio::test]
async fn transitions_and_progress_are_told_live() {
    let server = Server::start();
    let client = server.client().await;
    let request = WatchResultsRequest {
        include_progress: true,
        include_transitions: true,
        filter: Some(JobFilter { kinds: vec!["sleep".into()], ..Default::default() }),
        ..Default::default()
    };
    let mut watch = Watch::open(&client, request).await;
    watch.replay().await;
    place(&client, submit("echo", "1")).await;
    let id = place(&client, submit("sleep", r#"{"duration":"1s"}"#)).await;
    let (mut states, mut fractions) = (BTreeSet::new(), Vec::new());
    loop {
        match watch.event().await {
            Event::Changed(job) => {
                assert_eq!(job.job_id, id);
                states.insert(job.state());
            }
            Event::Progress(hint) => {
                assert_eq!((hint.job_id.as_str(), hint.run, hint.attempt), (id.as_str(), 1, 1));
                fractions.push(hint.progress.unwrap().fraction);
            }
            Event::Finished(job) => {
                assert_eq!(job.job_id, id);
                break;
            }
            _ => {}
        }
    }
    assert!(states.contains(&State::Running), "{states:?}");
    assert!(!fractions.is_empty() && fractions.is_sorted(), "{fractions:?}");
}

#[tokio::test]
async fn nothing_is_told_that_was_not_asked_for() {
    let server = Server::start();
    let client = server.client().await;
    let mut watch = Watch::open(&client, WatchResultsRequest::default()).await;
    watch.replay().await;
    place(&client, submit("sleep", r#"{"duration":"300ms"}"#)).await;
    assert!(matches!(watch.event().await, Event::Finished(_)));
}

#[tokio::test]
async fn states_pick_among_transitions_too() {
    let server = Server::start();
    let client = server.client().await;
    let filter = |state: State| Some(JobFilter { states: vec![state.into()], ..Default::default() });
    let unfinished = WatchResultsRequest { filter: filter(State::Running), ..Default::default() };
    let refused = Refusal::of(client.clone().watch_results(unfinished.clone()).await);
    assert_eq!(refused.field(), "filter.states");
    refused.is(Code::InvalidArgument, "INVALID_FIELD").says(&["include_transitions"]);

    let request = WatchResultsRequest { include_transitions: true, ..unfinished };
    let mut watch = Watch::open(&client, request).await;
    watch.replay().await;
    place(&client, SubmitRequest { job_id: "runs".into(), ..submit("sleep", r#"{"duration":"1h"}"#) }).await;
    let Event::Changed(job) = watch.event().await else { panic!() };
    assert_eq!((job.job_id.as_str(), job.state()), ("runs", State::Running));
}
