use super::*;

const MILLI: Duration = Duration::from_millis(1);

fn day() -> Duration {
    secs(24 * 3600)
}

async fn assert_expired(world: &World, name: &str) {
    let job = world.get(name).await;
    assert_eq!((job.state, job.finish_time), (State::EXPIRED, Some(world.now)));
    let error = job.error.unwrap();
    assert_eq!((error.cause, error.retryable), (Cause::Expired, false));
}

pub async fn a_scheduled_job_becomes_due(open: Open) {
    let mut world = World::new(open).await;
    let before = world.add(job("a").delay(secs(10))).await;
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(10))));
    world.pass(secs(10) - MILLI).await;
    assert_eq!(world.get("a").await.version, before.version);
    world.pass(MILLI).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.version), (State::QUEUED, before.version + 1));
    assert_eq!(there.next_attempt_time, before.next_attempt_time);
    assert_eq!(world.tick().await.next, None);
    assert_eq!(world.get("a").await, there);
    world.recount().await;
}

pub async fn a_back_off_ends(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let error = busy().retry_after(secs(10));
    world.fail(&leased, error.clone()).await;
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(10))));
    world.pass(secs(10) - MILLI).await;
    assert_eq!(world.state("a").await, State::BACKING_OFF);
    world.pass(MILLI).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt, there.error), (State::QUEUED, 1, Some(error)));
    world.recount().await;
}

pub async fn a_job_that_nobody_starts_in_time_expires(open: Open) {
    let mut world = World::new(open).await;
    let new = |name| job(name).spec(|spec| spec.start_timeout = Some(secs(5)));
    world.add(new("now")).await;
    world.add(new("later").delay(secs(10))).await;
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(5))));
    world.pass(secs(5) - MILLI).await;
    assert_eq!(world.state("now").await, State::QUEUED);
    world.pass(MILLI).await;
    assert_expired(&world, "now").await;
    // The time counts from when it is due.
    world.pass(secs(10) - MILLI).await;
    assert_eq!(world.state("later").await, State::QUEUED);
    world.pass(MILLI).await;
    assert_expired(&world, "later").await;
    world.recount().await;
}

pub async fn only_the_first_start_has_a_timeout(open: Open) {
    let mut world = World::new(open).await;
    let new = |name| job(name).spec(|spec| spec.start_timeout = Some(secs(5)));
    let leased = world.start(new("failed")).await;
    world.fail(&leased, busy()).await;
    let leased = world.start(new("released")).await;
    world.release(&leased, Duration::ZERO).await;
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(1))));
    world.pass(secs(3600)).await;
    assert_eq!(world.state("failed").await, State::QUEUED);
    assert_eq!(world.state("released").await, State::QUEUED);
}

pub async fn a_job_that_waits_too_long_expires(open: Open) {
    let mut world = World::new(open).await;
    for state in [State::SCHEDULED, State::BACKING_OFF, State::QUEUED] {
        let new = job(&state.to_string()).spec(|spec| spec.total_timeout = Some(secs(60)));
        world.reach(new, state).await;
    }
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(60))));
    world.pass(secs(60) - MILLI).await;
    assert_eq!(world.feed().await.len(), 0);
    assert_eq!(world.pass(MILLI).await.revoked, []);
    for name in ["SCHEDULED", "BACKING_OFF", "QUEUED"] {
        assert_expired(&world, name).await;
    }
    world.recount().await;
}

pub async fn a_job_that_runs_too_long_expires(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a").spec(|spec| spec.total_timeout = Some(secs(20)))).await;
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(20))));
    assert_eq!(world.pass(secs(20)).await.revoked, [leased.lease]);
    assert_expired(&world, "a").await;
    assert_eq!(world.get("a").await.start_time, leased.job.start_time);
    assert_eq!(world.try_succeed(&leased).await, Err(Error::LeaseLost));
    assert_eq!(world.renew(leased.lease, secs(9), None).await, Renewed::Lost);
}

pub async fn the_total_timeout_is_over_all_attempts(open: Open) {
    let mut world = World::new(open).await;
    let new = job("a").max_attempts(100).spec(|spec| spec.total_timeout = Some(secs(60)));
    world.add(new).await;
    for _ in 0..5 {
        let leased = world.take().await;
        world.fail(&leased, busy().retry_after(secs(11))).await;
        world.pass(secs(11)).await;
    }
    world.pass(secs(5) - MILLI).await;
    let leased = world.take().await;
    assert_eq!(world.pass(MILLI).await.revoked, [leased.lease]);
    assert_expired(&world, "a").await;
    assert_eq!(world.get("a").await.attempts.len(), 5);
}

pub async fn a_retry_restarts_the_clocks(open: Open) {
    let mut world = World::new(open).await;
    for (name, timeout) in [("start", "start_timeout"), ("total", "total_timeout")] {
        let new = job(name).spec(|spec| {
            let limit =
                if timeout == "start_timeout" { &mut spec.start_timeout } else { &mut spec.total_timeout };
            *limit = Some(secs(60));
        });
        world.add(new).await;
        world.pass(secs(60)).await;
        assert_expired(&world, name).await;
        world.sleep(secs(100));
        world.retry(name).await.unwrap();
        world.pass(secs(60) - MILLI).await;
        assert_eq!(world.state(name).await, State::QUEUED);
        world.pass(MILLI).await;
        assert_expired(&world, name).await;
    }
}

pub async fn a_lease_that_runs_out_spends_its_attempt(open: Open) {
    let mut world = World::new(open).await;
    let first = world.start(job("a").max_attempts(2)).await;
    let started = world.now;
    assert_eq!(world.pass(secs(30) - MILLI).await.revoked, []);
    assert_eq!(world.pass(MILLI).await.revoked, [first.lease]);
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt), (State::BACKING_OFF, 1));
    assert_eq!(there.error.as_ref().unwrap().cause, Cause::LeaseExpired);
    let wait = there.next_attempt_time.unwrap().since(world.now);
    assert!(wait <= secs(1), "{wait:?}");
    let told = &there.attempts[0];
    assert_eq!((told.start_time, told.finish_time), (Some(started), world.now));
    assert_eq!((&told.worker, &told.error), (&first.job.worker, &there.error));
    world.pass(secs(1)).await;
    let second = world.take().await;
    assert_eq!(world.pass(secs(30)).await.revoked, [second.lease]);
    let there = world.get("a").await;
    assert_eq!((there.state, there.error.unwrap().cause), (State::FAILED, Cause::LeaseExpired));
    world.recount().await;
}

/// Others may have told the store a later one before its turn comes.
pub async fn a_tick_goes_by_its_own_time(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let begin = world.now;
    world.sleep(secs(40));
    world.add(job("later")).await;
    let tick = world.store().tick(begin.after(secs(20))).await.unwrap();
    assert_eq!((tick.revoked, world.state("a").await), (vec![], State::RUNNING));
    let tick = world.store().tick(begin.after(secs(30))).await.unwrap();
    assert_eq!(tick.revoked, [leased.lease]);
}

pub async fn a_back_off_of_nothing_is_over_at_once(open: Open) {
    let mut world = World::with(open, |config| config.defaults.initial_backoff = secs(0)).await;
    world.start(job("a").max_attempts(2)).await;
    world.pass(secs(30)).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt), (State::QUEUED, 1));
    assert_eq!(world.take().await.job.attempt, 2);
}

pub async fn retention_removes_the_job(open: Open) {
    let mut world = World::with(open, |config| {
        config.queues.entry("short".into()).or_default().retention = Some(secs(10));
    })
    .await;
    let own = |name: &str| job(name).spec(|spec| spec.retention = Some(secs(5)));
    for (new, retention) in [
        (own("own").queue("short"), secs(5)),
        (job("queue").queue("short"), secs(10)),
        (job("default"), day()),
    ] {
        let name = new.id();
        let there = world.reach(new.request(&name), State::SUCCEEDED).await;
        assert_eq!(there.delete_time, Some(world.now.after(retention)));
    }
    let waits = world.reach(own("waits"), State::SCHEDULED).await;
    for (wait, left) in [
        (secs(5) - MILLI, &["own", "queue", "default"][..]),
        (MILLI, &["queue", "default"]),
        (secs(5), &["default"]),
        (day() - secs(10), &[]),
    ] {
        world.pass(wait).await;
        assert_eq!(outcome_ids(&world.feed().await), left);
        for name in ["own", "queue", "default"] {
            assert_eq!(world.find(name, View::Full).await.is_some(), left.contains(&name));
        }
    }
    assert_eq!(world.get("waits").await.submit_time, waits.submit_time);
    assert_eq!(world.list(Filter::default()).await.len(), 1);
    assert_eq!(world.count("default", KIND, State::SUCCEEDED).await, 1);
    world.recount().await;
}

pub async fn a_removed_job_is_not_forgotten_by_its_request(open: Open) {
    let mut world = World::new(open).await;
    let new = job("a").request("r").spec(|spec| spec.retention = Some(secs(5)));
    world.reach(new.clone(), State::SUCCEEDED).await;
    world.pass(secs(5)).await;
    assert_matches!(world.try_add(new.clone()).await, Err(Error::JobDeleted { .. }));
    world.pass(day()).await;
    world.add(new).await;
}

pub async fn retention_counts_from_the_last_end(open: Open) {
    let mut world = World::new(open).await;
    let new = job("a").spec(|spec| spec.retention = Some(secs(10)));
    world.reach(new, State::CANCELLED).await;
    world.sleep(secs(6));
    world.retry("a").await.unwrap();
    // The outcome of the first run goes, the job does not.
    world.pass(secs(4)).await;
    assert_eq!(world.feed().await.len(), 0);
    assert_eq!(world.state("a").await, State::QUEUED);
    world.cancel("a").await.unwrap();
    world.pass(secs(10) - MILLI).await;
    assert_eq!(world.state("a").await, State::CANCELLED);
    world.pass(MILLI).await;
    assert_eq!(world.find("a", View::Basic).await, None);
}

/// The newest outcome may be kept for less long than the one before: that one is not the job's present then.
pub async fn an_older_outcome_does_not_come_back(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::FAILED).await;
    world.reopen_with(|config| config.defaults.retention = secs(10)).await;
    world.retry("a").await.unwrap();
    let leased = world.take().await;
    world.succeed(&leased).await;
    world.pass(secs(10)).await;
    assert_eq!(world.find("a", View::Basic).await, None);
    assert_eq!(world.feed().await.len(), 0);
}

pub async fn a_deleted_job_is_not_removed_again(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::CANCELLED).await;
    world.delete("a").await.unwrap();
    world.sleep(secs(3600));
    world.reach(job("a"), State::CANCELLED).await;
    world.pass(day() - secs(3600)).await;
    assert_eq!(world.state("a").await, State::CANCELLED);
    world.pass(secs(3600)).await;
    assert_eq!(world.find("a", View::Basic).await, None);
}

pub async fn the_feed_forgets_what_is_old(open: Open) {
    let mut world = World::with(open, |config| config.watch.retention = secs(60)).await;
    let begin = world.now;
    let start = world.store().feed_start().await.unwrap();
    assert_eq!((start.position, start.cut), (Position(0), Timestamp(0)));
    for name in ["a", "b", "c"] {
        world.reach(job(name), State::SUCCEEDED).await;
        world.sleep(secs(20));
    }
    let feed = world.feed().await;
    world.tick().await;
    let start = world.store().feed_start().await.unwrap();
    assert_eq!((start.position, start.time), (feed[0].position, begin.after(secs(20))));
    assert_eq!(start.cut, begin);
    assert_eq!(outcome_ids(&world.feed_after(start.position).await), ["b", "c"]);
    // Only from the feed.
    assert_eq!(world.state("a").await, State::SUCCEEDED);
    world.pass(day() / 2).await;
    let start = world.store().feed_start().await.unwrap();
    assert_eq!((start.position, start.time), (world.head(), world.now));
    assert_eq!(start.cut, begin.after(secs(40)));
    world.reopen().await;
    assert_eq!(world.store().feed_start().await.unwrap(), start);
    assert_eq!(world.list(Filter::default()).await.len(), 3);
}

pub async fn the_feed_forgets_what_is_too_much(open: Open) {
    let mut world = World::with(open, |config| config.watch.max_events = 3).await;
    for n in 0..8 {
        world.reach(job(&format!("job-{n}")), State::SUCCEEDED).await;
        world.pass(secs(1)).await;
    }
    let start = world.store().feed_start().await.unwrap();
    assert_eq!(outcome_ids(&world.feed_after(start.position).await), ["job-5", "job-6", "job-7"]);
    assert_eq!(start.cut, world.now.before(secs(4)));
    assert_eq!(start.time, world.now.before(secs(3)));
    assert_eq!(world.list(Filter::default()).await.len(), 8);
}

pub async fn much_may_be_due_at_once(open: Open) {
    let mut world = World::new(open).await;
    let many = |prefix: &'static str| (0..1100).map(move |n| format!("{prefix}-{n}"));
    world.group(many("later").map(|name| job(&name).delay(secs(5)))).await.unwrap();
    world
        .group(many("start").map(|name| {
            job(&name).spec(|spec| {
                spec.start_timeout = Some(secs(5));
                spec.retention = Some(secs(10));
            })
        }))
        .await
        .unwrap();
    world.sleep(secs(5));
    assert!(world.store().tick(world.now).await.unwrap().more);
    world.tick().await;
    assert_eq!(world.count("default", KIND, State::QUEUED).await, 1100);
    assert_eq!(world.count("default", KIND, State::EXPIRED).await, 1100);
    let leases = world.claim(World::wish(2000)).await;
    assert_eq!(leases.len(), 1100);
    world.pass(secs(10)).await;
    assert_eq!(world.feed().await.len(), 0);
    assert_eq!(world.pass(secs(30)).await.revoked.len(), 1100);
    world.recount().await;
}

pub async fn the_next_time_is_the_nearest(open: Open) {
    let world = World::new(open).await;
    let next = |after| Some(world.now.after(secs(after)));
    let (n30, n20, n10, n5) = (next(30), next(20), next(10), next(5));
    assert_eq!(world.tick().await.next, None);
    let leased = world.start(job("runs")).await;
    assert_eq!(world.tick().await.next, n30);
    world.add(job("later").delay(secs(20))).await;
    assert_eq!(world.tick().await.next, n20);
    world.add(job("start").spec(|spec| spec.start_timeout = Some(secs(10)))).await;
    assert_eq!(world.tick().await.next, n10);
    world.renew(leased.lease, secs(5), None).await;
    assert_eq!(world.tick().await.next, n5);
    world.succeed(&leased).await;
    world.cancel("start").await.unwrap();
    assert_eq!(world.tick().await.next, n20);
}
