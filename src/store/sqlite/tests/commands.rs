//! What commands of one group may do to each other.

use std::sync::Arc;

use futures_util::future::join_all;

use super::*;
use crate::{
    job::{Error, JobId, State, View},
    store::{Cancel, Store, suite::job},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Each job is cancelled while it is accepted, often in the same transaction.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_is_answered_and_finds_what_was_accepted_before_it() {
    for max_group in [1, 3, 500] {
        let mut config = Config::default();
        config.store.max_group = max_group;
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Arc::new(config), NOW).unwrap();
        let course = async |n: usize| {
            let id: JobId = format!("job-{n}").parse().unwrap();
            let cancel = Cancel { job_id: id.clone(), reason: String::new(), etag: None };
            let (submitted, cancelled) = tokio::join!(
                store.submit(NOW, vec![vec![job(id.as_str()).into()]]),
                store.cancel(NOW, vec![cancel]),
            );
            submitted.unwrap().remove(0).unwrap();
            let (found, _) = store.get(vec![id], View::Basic).await.unwrap();
            let state = found[0].as_ref().unwrap().state;
            match cancelled.unwrap().remove(0) {
                Ok(_) => assert_eq!(state, State::CANCELLED),
                Err(Error::JobNotFound { .. }) => assert_eq!(state, State::QUEUED),
                Err(other) => panic!("{other}"),
            }
            state == State::CANCELLED
        };
        let all = join_all((0..300).map(course));
        let cancelled = tokio::time::timeout(std::time::Duration::from_secs(60), all).await.unwrap();
        let count = |state: bool| cancelled.iter().filter(|cancelled| **cancelled == state).count() as u64;
        let lines = store.counts().await.unwrap();
        let total =
            |state: State| lines.iter().map(|line| line.by_state[state.number() as usize - 1]).sum::<u64>();
        assert_eq!((total(State::CANCELLED), total(State::QUEUED)), (count(true), count(false)));
        store.close().await;
    }
}
