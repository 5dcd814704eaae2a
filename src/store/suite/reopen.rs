use super::*;

pub async fn what_was_acknowledged_is_there(open: Open) {
    let mut world = World::new(open).await;
    for state in [State::SUCCEEDED, State::FAILED, State::CANCELLED, State::EXPIRED, State::BACKING_OFF] {
        world.reach(job(&state.to_string()).label("state", "x").request(&state.to_string()), state).await;
    }
    world.reach(job("SCHEDULED"), State::SCHEDULED).await;
    world.reach(job("QUEUED").unique("k"), State::QUEUED).await;
    let mut before = Vec::new();
    for job in world.list(Filter::default()).await {
        before.push(world.get(job.id.as_str()).await);
    }
    let (feed, head) = (world.feed().await, world.head());
    let counts = world.store().counts().await.unwrap();
    let log = world.store().log_id();
    for _ in 0..2 {
        world.reopen().await;
        for job in &before {
            assert_eq!(world.get(job.id.as_str()).await, *job);
        }
        assert_eq!(world.list(Filter::default()).await.len(), before.len());
        let again = world.feed().await;
        assert_eq!(again.len(), feed.len());
        for (again, before) in again.iter().zip(&feed) {
            assert_eq!((again.position, &again.job), (before.position, &before.job));
        }
        assert_eq!((world.head(), world.store().log_id()), (head, log));
        assert_eq!(world.store().counts().await.unwrap(), counts);
        world.recount().await;
    }
    assert_matches!(
        world.try_add(drawn("x").request("FAILED").payload("else")).await,
        Err(Error::RequestIdReused { .. })
    );
    assert_matches!(world.try_add(drawn("x").unique("k").reject()).await, Err(Error::UniqueKeyInUse { .. }));
}

pub async fn a_killed_process_takes_nothing_along(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("done").request("r"), State::SUCCEEDED).await;
    let leased = world.start(job("running").max_attempts(1)).await;
    world.renew(leased.lease, secs(60), None).await;
    world.reach(job("queued").unique("k"), State::QUEUED).await;
    let (queued, done, log) = (world.get("queued").await, world.get("done").await, world.store().log_id());
    for _ in 0..2 {
        world.crash().await;
        assert_eq!((world.get("queued").await, world.get("done").await), (queued.clone(), done.clone()));
        assert_eq!(world.get("running").await.error.unwrap().cause, Cause::Crash);
        let feed = world.feed().await;
        assert_eq!(outcome_ids(&feed), ["done", "running"]);
        assert_eq!((world.head(), world.store().log_id()), (feed[1].position, log));
        world.repeat(job("done").request("r")).await;
        world.recount().await;
    }
}

pub async fn work_goes_on(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("later").delay(secs(10))).await;
    world.add(job("low").priority(-1)).await;
    world.add(job("high").priority(1)).await;
    let leased = world.take().await;
    world.fail(&leased, busy()).await;
    world.reopen().await;
    assert_eq!(world.take().await.job.id, id("low"));
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(1))));
    world.pass(secs(10)).await;
    assert_eq!(leased_ids(&world.claim(World::wish(9)).await), ["high", "later"]);
}

pub async fn an_attempt_that_ran_is_spent(open: Open) {
    let mut world = World::new(open).await;
    let first = world.start(job("a").max_attempts(2)).await;
    let progress = Progress { fraction: 0.5, note: "half".into(), details: None, update_time: world.now };
    world.renew(first.lease, secs(3600), Some(progress.clone())).await;
    let last = world.start(job("last").max_attempts(1)).await;
    world.start(job("cancelled")).await;
    world.cancel("cancelled").await.unwrap();
    world.sleep(secs(5));
    world.reopen().await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt, there.progress), (State::BACKING_OFF, 1, Some(progress)));
    let error = there.error.unwrap();
    assert_eq!((error.cause, error.retryable), (Cause::Crash, true));
    let told = &there.attempts[0];
    assert_eq!((told.start_time, told.finish_time), (first.job.start_time, world.now));
    assert!(there.next_attempt_time.unwrap().since(world.now) <= secs(1));
    let there = world.get("last").await;
    assert_eq!((there.state, there.error.unwrap().cause), (State::FAILED, Cause::Crash));
    assert_eq!((there.worker, there.start_time), (last.job.worker.clone(), last.job.start_time));
    assert_eq!(world.state("cancelled").await, State::CANCELLED);
    assert_eq!(world.head(), world.feed().await.last().unwrap().position);
    world.recount().await;
    world.pass(secs(1)).await;
    assert_eq!(world.take().await.job.attempt, 2);
    world.reopen().await;
    assert_eq!(world.state("a").await, State::FAILED);
}

pub async fn leases_of_before_are_over(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.reopen().await;
    assert_eq!(world.renew(leased.lease, secs(30), None).await, Renewed::Lost);
    assert_eq!(world.try_fail(&leased, busy()).await, Err(Error::LeaseLost));
    assert_eq!(world.try_release(&leased, Duration::ZERO).await, Err(Error::LeaseLost));
    world.pass(secs(1)).await;
    let next = world.take().await;
    assert_ne!(next.lease, leased.lease);
    assert_eq!(world.try_succeed(&leased).await, Err(Error::LeaseLost));
    world.succeed(&next).await;
}

/// A worker beyond the process may have gone on: its result is the newest until another attempt begins.
pub async fn a_late_success_counts_over_a_restart(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.reopen().await;
    world.succeed(&leased).await;
    assert_eq!(world.state("a").await, State::SUCCEEDED);
}

/// It was the server that ended, not the worker.
pub async fn a_lease_beyond_the_process_outlives_it(open: Open) {
    let mut world = World::new(open).await;
    world.group([job("a"), job("b"), job("c")]).await.unwrap();
    let theirs = Claim { worker: "w1".parse().unwrap(), ..World::wish(3) };
    let leases = world.claim(theirs).await;
    let [a, b, c] = &leases[..] else { panic!("{leases:?}") };
    world.renew(c.lease, secs(3600), None).await;
    world.cancel("b").await.unwrap();
    world.sleep(secs(100));
    world.reopen().await;
    for (id, leased) in [("a", a), ("c", c)] {
        let there = world.get(id).await;
        assert_eq!((there.state, there.attempt, &there.worker), (State::RUNNING, 1, &leased.job.worker));
    }
    // Their leases have a whole life before them, or what they had.
    assert_eq!(world.pass(secs(29)).await.revoked, []);
    assert_eq!(world.renew(a.lease, secs(30), None).await, Renewed::Held);
    assert_eq!(world.renew(b.lease, secs(1), None).await, Renewed::Cancelled);
    // What another process gave may be left to that one for a second.
    assert_eq!(world.pass(secs(2)).await.revoked, [b.lease]);
    assert_eq!(world.state("b").await, State::CANCELLED);
    world.succeed(a).await;
    world.pass(secs(3000)).await;
    world.succeed(c).await;
    for id in ["a", "c"] {
        assert_eq!((world.state(id).await, world.get(id).await.attempt), (State::SUCCEEDED, 1));
    }
    world.recount().await;
}

/// A fence is not drawn again, even if the store forgot that it ever was.
pub async fn fences_never_repeat(open: Open) {
    let mut world = World::new(open).await;
    let mut fences = Vec::new();
    for n in 0..3 {
        for m in 0..3 {
            fences.push(world.start(job(&format!("job-{n}-{m}"))).await.lease.fence);
        }
        world.reopen().await;
    }
    fences.sort_unstable();
    fences.dedup();
    assert_eq!(fences.len(), 9);
}

pub async fn positions_go_on(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::CANCELLED).await;
    world.reach(job("b"), State::CANCELLED).await;
    let head = world.head();
    world.delete("b").await.unwrap();
    world.delete("a").await.unwrap();
    world.reopen().await;
    assert_eq!(world.head(), head);
    world.reach(job("c"), State::CANCELLED).await;
    assert!(world.head() > head);
    assert_eq!(outcome_ids(&world.feed_after(head).await), ["c"]);
}

pub async fn settings_of_queues_may_change(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("a").queue("q")).await;
    world
        .reopen_with(|config| {
            let queue = config.queues.entry("q".into()).or_default();
            queue.max_attempts = Some(1);
            queue.retention = Some(secs(7));
        })
        .await;
    let leased = world.take().await;
    world.fail(&leased, busy()).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.delete_time), (State::FAILED, Some(world.now.after(secs(7)))));
}

pub async fn a_closed_store_does_nothing(open: Open) {
    let world = World::new(open).await;
    world.add(job("a")).await;
    let store = world.store();
    store.close().await;
    store.close().await;
    let (now, lease) = (world.now, LeaseId { job: 1, fence: 1 });
    let submit = store.submit(now, vec![vec![job("b").into()]]).await;
    assert_matches!(submit, Err(Error::StoreUnavailable(_)));
    assert_matches!(store.claim(now, World::wish(1)).await, Err(Error::StoreUnavailable(_)));
    assert_matches!(store.tick(now).await, Err(Error::StoreUnavailable(_)));
    let renewal = Renewal { lease, until: Some(now), progress: None };
    assert_matches!(store.renew(now, vec![renewal]).await, Err(Error::StoreUnavailable(_)));
    assert_matches!(store.get(vec![id("a")], View::Basic).await, Err(Error::StoreUnavailable(_)));
    assert_matches!(store.outcomes(Position(0), 1, &Queues::All).await, Err(Error::StoreUnavailable(_)));
    assert!(store.signals().failed.borrow().is_none(), "to close is not to fail");
}
