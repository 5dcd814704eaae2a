use super::*;

const UNFINISHED: [State; 4] = [State::SCHEDULED, State::QUEUED, State::RUNNING, State::BACKING_OFF];
const FINAL: [State; 4] = [State::SUCCEEDED, State::FAILED, State::CANCELLED, State::EXPIRED];

pub async fn a_cancel_ends_what_waits(open: Open) {
    let mut world = World::new(open).await;
    for state in [State::SCHEDULED, State::BACKING_OFF, State::QUEUED] {
        let name = state.to_string();
        let before = world.reach(job(&name), state).await;
        world.sleep(secs(1));
        let Change { job, revoke } = world.cancel(&name).await.unwrap();
        assert_eq!((job.state, revoke, job.version), (State::CANCELLED, None, before.version + 1));
        assert_eq!((job.attempt, job.finish_time), (before.attempt, Some(world.now)));
        assert_eq!((job.start_time, job.worker), (before.start_time, before.worker));
        let error = job.error.unwrap();
        assert_eq!((error.cause, error.message.as_str()), (Cause::Cancelled, "enough"));
        assert!(!error.retryable);
    }
    assert!(world.claim(World::wish(9)).await.is_empty());
    world.recount().await;
}

pub async fn a_cancel_asks_what_runs(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let Change { job, revoke } = world.cancel("a").await.unwrap();
    assert_eq!((job.state, job.cancel_requested, revoke), (State::RUNNING, true, Some(leased.lease)));
    assert_eq!(job.version, leased.job.version + 1);
    // Again: the lease is told again, nothing changes.
    let again = world.cancel("a").await.unwrap();
    assert_eq!((&again.job, again.revoke), (&job, revoke));
    world.try_fail(&leased, busy()).await.unwrap();
    assert_eq!(world.get("a").await.version, job.version + 1);
}

pub async fn a_cancelled_attempt_that_is_lost_is_cancelled(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.cancel("a").await.unwrap();
    assert_eq!(world.pass(secs(30)).await.revoked, [leased.lease]);
    assert_eq!(world.state("a").await, State::CANCELLED);
    assert_eq!(world.try_succeed(&leased).await, Err(Error::LeaseLost));
}

pub async fn a_cancel_leaves_a_final_job(open: Open) {
    let mut world = World::new(open).await;
    for state in FINAL {
        let name = state.to_string();
        world.reach(job(&name), state).await;
        let before = world.find(&name, View::Basic).await.unwrap();
        world.sleep(secs(1));
        let Change { job, revoke } = world.cancel(&name).await.unwrap();
        assert_eq!((job, revoke), (before, None));
    }
}

pub async fn a_reason_may_be_missing(open: Open) {
    let world = World::new(open).await;
    world.add(job("a")).await;
    let cancel = Cancel { job_id: id("a"), reason: String::new(), etag: None };
    let change = world.store().cancel(world.now, vec![cancel]).await.unwrap().remove(0).unwrap();
    assert!(!change.job.error.unwrap().message.is_empty());
}

pub async fn an_etag_is_compared(open: Open) {
    let mut world = World::new(open).await;
    for state in State::ALL {
        let name = state.to_string();
        let job = world.reach(job(&name), state).await;
        let mismatch = Error::EtagMismatch { job_id: name.clone(), etag: job.etag() };
        for wrong in ["", "0", "zz", &Job::etag_of(job.version + 1)] {
            let etag = Some(wrong.to_owned());
            assert_eq!(world.cancel_if(&name, etag.clone()).await.unwrap_err(), mismatch);
            let retry = Retry { job_id: id(&name), delay: Duration::ZERO, etag: etag.clone() };
            assert_eq!(world.retry_with(retry).await.unwrap_err(), mismatch);
            let delete = Delete { job_id: id(&name), etag, allow_missing: true };
            assert_eq!(world.delete_with(delete).await.unwrap_err(), mismatch);
        }
        assert_eq!(world.get(&name).await, job);
        world.cancel_if(&name, Some(job.etag())).await.unwrap();
        let etag = Some(world.get(&name).await.etag());
        if state == State::QUEUED {
            world.delete_with(Delete { job_id: id(&name), etag, allow_missing: false }).await.unwrap();
        } else if state == State::FAILED {
            world.retry_with(Retry { job_id: id(&name), delay: secs(9), etag }).await.unwrap();
        }
    }
}

pub async fn an_unknown_job_is_not_found(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("gone"), State::SUCCEEDED).await;
    world.delete("gone").await.unwrap();
    for name in ["never", "gone"] {
        let missing = Error::JobNotFound { job_id: name.into() };
        assert_eq!(world.cancel(name).await.unwrap_err(), missing);
        assert_eq!(world.cancel_if(name, Some("1".into())).await.unwrap_err(), missing);
        assert_eq!(world.retry(name).await.unwrap_err(), missing);
        assert_eq!(world.delete(name).await.unwrap_err(), missing);
        let delete = Delete { job_id: id(name), etag: Some("1".into()), allow_missing: true };
        world.delete_with(delete).await.unwrap();
    }
}

pub async fn a_retry_begins_a_new_run(open: Open) {
    let mut world = World::new(open).await;
    for state in [State::FAILED, State::CANCELLED, State::EXPIRED] {
        let name = state.to_string();
        let before = world.reach(job(&name), state).await;
        world.sleep(secs(1));
        let Change { job, revoke } = world.retry(&name).await.unwrap();
        assert_eq!((job.state, job.run, job.attempt, revoke), (State::QUEUED, 2, 0, None));
        assert!(job.version > before.version);
        assert_eq!((job.next_attempt_time, job.finish_time), (Some(world.now), None));
        assert_eq!((job.error, job.start_time, job.delete_time), (None, None, None));
        assert_eq!((job.submit_time, job.spec.payload.size), (before.submit_time, 2));
        // What failed in the run before is not forgotten.
        assert_eq!(world.get(&name).await.attempts, before.attempts);
        let leased = world.take().await;
        assert_eq!((leased.job.run, leased.job.attempt), (2, 1));
        world.succeed(&leased).await;
    }
    world.recount().await;
}

pub async fn a_retry_may_wait(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::FAILED).await;
    let retry = Retry { job_id: id("a"), delay: secs(10), etag: None };
    let Change { job, .. } = world.retry_with(retry).await.unwrap();
    assert_eq!((job.state, job.next_attempt_time), (State::SCHEDULED, Some(world.now.after(secs(10)))));
    world.pass(secs(10)).await;
    world.take().await;
}

pub async fn a_retry_ends_a_back_off(open: Open) {
    let mut world = World::new(open).await;
    let before = world.reach(job("a"), State::BACKING_OFF).await;
    let Change { job, .. } = world.retry("a").await.unwrap();
    assert_eq!((job.state, job.run, job.attempt), (State::QUEUED, 1, 1));
    assert_eq!((job.version, job.next_attempt_time), (before.version + 1, Some(world.now)));
    assert_eq!(world.take().await.job.attempt, 2);
}

pub async fn a_retry_is_refused_elsewhere(open: Open) {
    let mut world = World::new(open).await;
    for state in [State::SCHEDULED, State::RUNNING, State::SUCCEEDED, State::QUEUED] {
        let name = state.to_string();
        let before = world.reach(job(&name), state).await;
        let error = world.retry(&name).await.unwrap_err();
        assert_matches!(error, Error::JobState { job_id, state: told, .. } if job_id == name && told == state);
        assert_eq!(world.get(&name).await, before);
    }
}

pub async fn a_retry_takes_its_unique_key_again(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a").unique("k"), State::FAILED).await;
    world.add(job("b").unique("k")).await;
    let error = world.retry("a").await.unwrap_err();
    assert_eq!(error, Error::UniqueKeyInUse { unique_key: "k".into(), job_id: "b".into() });
    assert_eq!(world.state("a").await, State::FAILED);
    world.cancel("b").await.unwrap();
    world.retry("a").await.unwrap();
    assert_eq!(world.repeat(drawn("c").unique("k")).await.id, id("a"));
    assert_matches!(world.retry("b").await, Err(Error::UniqueKeyInUse { .. }));
    world.recount().await;
}

pub async fn of_two_retries_the_first_takes_the_unique_key(open: Open) {
    let mut world = World::new(open).await;
    for round in 0..4 {
        let names = ["a", "b", "c"].map(|name| format!("{name}-{round}"));
        for name in &names {
            world.reach(job(name).unique(&format!("k-{round}")), State::FAILED).await;
        }
        let retry = |name: &String| Retry { job_id: id(name), delay: Duration::ZERO, etag: None };
        let changes = world.store().retry(world.now, names.iter().map(retry).collect()).await.unwrap();
        assert_eq!(changes[0].as_ref().unwrap().job.state, State::QUEUED);
        for change in &changes[1..] {
            assert_matches!(change, Err(Error::UniqueKeyInUse { job_id, .. }) if *job_id == names[0]);
        }
        world.cancel(&names[0]).await.unwrap();
    }
    world.recount().await;
}

pub async fn a_retry_leaves_no_lease_of_the_run_before(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a").max_attempts(1)).await;
    world.fail(&leased, busy()).await;
    world.retry("a").await.unwrap();
    assert_eq!(world.try_succeed(&leased).await, Err(Error::LeaseLost));
    world.take().await;
    assert_eq!(world.try_succeed(&leased).await, Err(Error::LeaseLost));
}

pub async fn a_delete_removes_a_final_job(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("kept"), State::SUCCEEDED).await;
    for state in FINAL {
        let name = state.to_string();
        world.reach(job(&name), state).await;
        let (head, at) = (world.head(), world.feed().await.len());
        world.delete(&name).await.unwrap();
        assert_eq!(world.find(&name, View::Full).await, None);
        assert_eq!((world.head(), world.feed().await.len()), (head, at - 1));
        assert_eq!(world.count("default", KIND, state).await, 1 + u64::from(state == State::SUCCEEDED));
    }
    assert_eq!(outcome_ids(&world.feed().await), ["kept"]);
    assert_eq!(ids(&world.list(Filter::default()).await), ["kept"]);
    world.reopen().await;
    assert_eq!(outcome_ids(&world.feed().await), ["kept"]);
}

pub async fn a_delete_takes_the_outcomes_of_every_run(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::FAILED).await;
    for _ in 0..2 {
        world.retry("a").await.unwrap();
        world.cancel("a").await.unwrap();
    }
    assert_eq!(world.feed().await.len(), 3);
    world.delete("a").await.unwrap();
    assert!(world.feed().await.is_empty());
}

pub async fn a_delete_is_refused_before_the_end(open: Open) {
    let mut world = World::new(open).await;
    for state in UNFINISHED.into_iter().rev() {
        let name = state.to_string();
        let before = world.reach(job(&name), state).await;
        for allow_missing in [false, true] {
            let delete = Delete { job_id: id(&name), etag: None, allow_missing };
            let error = world.delete_with(delete).await.unwrap_err();
            assert_matches!(error, Error::JobState { state: told, .. } if told == state);
        }
        assert_eq!(world.get(&name).await, before);
    }
}

pub async fn a_batch_of_changes_is_carried_out_in_order(open: Open) {
    let world = World::new(open).await;
    world.add(job("a")).await;
    let cancel = |name: &str| Cancel { job_id: id(name), reason: "enough".into(), etag: Some("1".into()) };
    let changes =
        world.store().cancel(world.now, vec![cancel("a"), cancel("none"), cancel("a")]).await.unwrap();
    assert_eq!(changes[0].as_ref().unwrap().job.state, State::CANCELLED);
    assert_matches!(&changes[1], Err(Error::JobNotFound { .. }));
    assert_matches!(&changes[2], Err(Error::EtagMismatch { .. }));
    let retry = || Retry { job_id: id("a"), delay: Duration::ZERO, etag: None };
    let changes = world.store().retry(world.now, vec![retry(), retry()]).await.unwrap();
    assert_eq!(changes[0].as_ref().unwrap().job.run, 2);
    assert_matches!(&changes[1], Err(Error::JobState { state: State::QUEUED, .. }));
    world.cancel("a").await.unwrap();
    let delete = || Delete { job_id: id("a"), etag: None, allow_missing: false };
    let deleted = world.store().delete(world.now, vec![delete(), delete()]).await.unwrap();
    assert_matches!(&deleted[..], [Ok(_), Err(Error::JobNotFound { .. })]);
}
