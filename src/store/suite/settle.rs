use super::*;

pub async fn a_success_ends_the_job(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let started = world.now;
    world.sleep(secs(2));
    let output = Payload::new("application/x-result", vec![9, 0, 255]);
    let report = Report::Succeeded(output.clone());
    world.settle(World::report(&leased, report)).await.unwrap();
    let job = world.get("a").await;
    assert_eq!((job.state, job.attempt, job.run, job.version), (State::SUCCEEDED, 1, 1, 3));
    assert_eq!((job.output, job.error.as_ref()), (Some(output), None));
    assert_eq!((job.start_time, job.finish_time), (Some(started), Some(world.now)));
    assert_eq!((job.next_attempt_time, job.worker), (None, Some("server-w1".parse().unwrap())));
    assert_eq!(job.delete_time, Some(world.now.after(secs(24 * 3600))));
    assert!(job.attempts.is_empty());
    world.recount().await;
}

pub async fn an_output_may_be_empty(open: Open) {
    let world = World::new(open).await;
    for (name, output) in [("none", Payload::none()), ("empty", Payload::new(Payload::TEXT, ""))] {
        let leased = world.start(job(name)).await;
        world.settle(World::report(&leased, Report::Succeeded(output.clone()))).await.unwrap();
        assert_eq!(world.get(name).await.output, Some(output));
    }
}

pub async fn a_failure_backs_off(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let started = world.now;
    world.sleep(secs(2));
    let error = busy().with_details(&serde_json::json!({"status": 503}));
    world.fail(&leased, error.clone()).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt, there.version), (State::BACKING_OFF, 1, 3));
    assert_eq!(there.next_attempt_time, Some(world.now.after(secs(1))));
    assert_eq!((there.finish_time, there.delete_time, there.output), (None, None, None));
    assert_eq!((there.start_time, there.worker.clone()), (Some(started), Some("server-w1".parse().unwrap())));
    let attempt = Attempt {
        run: 1,
        attempt: 1,
        worker: there.worker.clone(),
        start_time: Some(started),
        finish_time: world.now,
        error: Some(error.clone()),
    };
    assert_eq!((there.error, there.attempts), (Some(error), vec![attempt]));
    world.recount().await;
}

pub async fn jitter_shortens_the_back_off(open: Open) {
    let world = World::new(open).await;
    for (name, jitter, due) in [("a", 0.0, 0), ("b", 0.25, 250), ("c", 1.0, 1000)] {
        let leased = world.start(job(name)).await;
        let settlement = Settlement { jitter, ..World::report(&leased, Report::Failed(busy())) };
        world.settle(settlement).await.unwrap();
        let next = world.now.after(Duration::from_millis(due));
        assert_eq!(world.get(name).await.next_attempt_time, Some(next));
    }
}

pub async fn retries_follow_the_job_then_its_queue(open: Open) {
    let world = World::with(open, |config| {
        let mail = config.queues.entry("mail".into()).or_default();
        mail.max_attempts = Some(3);
        mail.initial_backoff = Some(secs(10));
        mail.backoff_multiplier = Some(3.0);
        mail.max_backoff = Some(secs(25));
    });
    let mut world = world.await;
    let own = job("own").queue("mail").spec(|spec| {
        spec.retry.max_attempts = Some(4);
        spec.retry.initial_backoff = Some(secs(2));
        spec.retry.backoff_multiplier = Some(2.0);
        spec.retry.max_backoff = Some(secs(7));
    });
    for (new, delays) in [(job("queue").queue("mail"), vec![10, 25]), (own, vec![2, 4, 7])] {
        let name = new.id();
        world.add(new).await;
        for delay in delays {
            let leased = world.take().await;
            world.fail(&leased, busy()).await;
            let next = world.get(&name).await.next_attempt_time;
            assert_eq!(next, Some(world.now.after(secs(delay))));
            world.pass(secs(delay)).await;
        }
        let leased = world.take().await;
        world.fail(&leased, busy()).await;
        assert_eq!(world.state(&name).await, State::FAILED);
    }
}

pub async fn some_failures_are_for_good(open: Open) {
    let world = World::new(open).await;
    let picky = job("code").spec(|spec| spec.retry.non_retryable_codes = vec!["x".into(), "busy".into()]);
    for (new, error) in [
        (job("permanent"), JobError::permanent("broken", "it broke")),
        (picky, busy()),
        (job("last").max_attempts(1), busy().retry_after(secs(1))),
    ] {
        let name = new.id();
        let leased = world.start(new).await;
        world.fail(&leased, error.clone()).await;
        let there = world.get(&name).await;
        assert_eq!((there.state, there.error, there.output), (State::FAILED, Some(error), None));
        assert_eq!((there.attempts.len(), there.finish_time), (1, Some(world.now)));
    }
    world.recount().await;
}

pub async fn a_failure_may_say_when_to_try_again(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.fail(&leased, busy().retry_after(secs(7200))).await;
    assert_eq!(world.get("a").await.next_attempt_time, Some(world.now.after(secs(7200))));
}

pub async fn the_newest_attempts_are_remembered(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("a").max_attempts(13)).await;
    for run in 1..=2 {
        for attempt in 1..=13 {
            let leased = world.take().await;
            assert_eq!((leased.job.run, leased.job.attempt), (run, attempt));
            world.fail(&leased, JobError::retryable("busy", format!("{run}/{attempt}"))).await;
            world.pass(secs(600)).await;
        }
        assert_eq!(world.state("a").await, State::FAILED);
        if run == 1 {
            world.retry("a").await.unwrap();
        }
    }
    let told: Vec<_> = world.get("a").await.attempts.into_iter().map(|a| (a.run, a.attempt)).collect();
    let all = (1..=2).flat_map(|run| (1..=13).map(move |attempt| (run, attempt)));
    assert_eq!(told, all.skip(6).collect::<Vec<_>>());
    assert_eq!(told.len(), Attempt::KEPT);
}

pub async fn a_released_attempt_does_not_count(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("a").max_attempts(1)).await;
    world.sleep(secs(1));
    world.add(job("b")).await;
    for _ in 0..3 {
        let leased = world.take().await;
        assert_eq!((leased.job.id.as_str(), leased.job.attempt), ("a", 1));
        world.release(&leased, Duration::ZERO).await;
        let there = world.get("a").await;
        assert_eq!((there.state, there.attempt, there.attempts.len()), (State::QUEUED, 0, 0));
        // It keeps its place in the line.
        assert_eq!(there.next_attempt_time, Some(world.now.before(secs(1))));
    }
    world.recount().await;
}

pub async fn a_release_may_wait(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.fail(&leased, busy()).await;
    world.pass(secs(1)).await;
    let leased = world.take().await;
    world.release(&leased, secs(10)).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt), (State::SCHEDULED, 1));
    assert_eq!(there.next_attempt_time, Some(world.now.after(secs(10))));
    world.pass(secs(10)).await;
    assert_eq!(world.take().await.job.attempt, 2);
}

pub async fn a_release_may_be_only_of_what_is_over(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let release = World::report(&leased, Report::Released { delay: Duration::ZERO });
    let release = Settlement { only_if: OnlyIf::OwnAndOver, ..release };
    assert_eq!(world.settle(release.clone()).await, Err(Error::LeaseLost));
    world.renew(leased.lease, secs(40), None).await;
    world.sleep(secs(39));
    assert_eq!(world.settle(release.clone()).await, Err(Error::LeaseLost));
    assert_eq!(world.state("a").await, State::RUNNING);
    world.sleep(secs(1));
    assert_eq!(world.settle(release).await, Ok(()));
    assert_eq!(world.state("a").await, State::QUEUED);
    assert_eq!(world.take().await.job.attempt, 1);
}

pub async fn progress_outlives_a_release_but_not_the_run(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let progress = Progress { fraction: 0.1, note: "n".into(), details: None, update_time: world.now };
    let release = World::report(&leased, Report::Released { delay: Duration::ZERO });
    world.settle(Settlement { progress: Some(progress.clone()), ..release }).await.unwrap();
    assert_eq!(world.get("a").await.progress.as_ref(), Some(&progress));
    let leased = world.take().await;
    assert_eq!(leased.job.progress, Some(progress));
    world.release(&leased, Duration::ZERO).await;
    world.cancel("a").await.unwrap();
    assert_eq!(world.get("a").await.progress, None);
    world.retry("a").await.unwrap();
    assert_eq!(world.get("a").await.progress, None);
    assert_eq!(world.take().await.job.progress, None);
}

pub async fn a_late_success_counts_until_the_next_attempt(open: Open) {
    let mut world = World::new(open).await;
    // While it backs off.
    let leased = world.start(job("a")).await;
    world.pass(secs(30)).await;
    assert_eq!(world.state("a").await, State::BACKING_OFF);
    world.succeed(&leased).await;
    let there = world.get("a").await;
    assert_eq!((there.state, there.attempt, there.error), (State::SUCCEEDED, 1, None));
    assert_eq!(there.output.unwrap().bytes(), "out");
    assert_eq!((there.worker, there.start_time), (leased.job.worker.clone(), leased.job.start_time));
    // While it is due again.
    let leased = world.start(job("b")).await;
    world.pass(secs(30)).await;
    world.pass(secs(60)).await;
    assert_eq!(world.state("b").await, State::QUEUED);
    world.succeed(&leased).await;
    // Not after somebody else has begun.
    let leased = world.start(job("c")).await;
    world.pass(secs(30)).await;
    world.pass(secs(60)).await;
    let next = world.take().await;
    assert_eq!(world.try_succeed(&leased).await, Err(Error::LeaseLost));
    world.succeed(&next).await;
    world.recount().await;
}

pub async fn a_late_failure_does_not_count(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.pass(secs(30)).await;
    let before = world.get("a").await;
    assert_eq!(before.error.as_ref().unwrap().cause, Cause::LeaseExpired);
    assert_eq!(world.try_fail(&leased, busy()).await, Err(Error::LeaseLost));
    assert_eq!(world.try_release(&leased, Duration::ZERO).await, Err(Error::LeaseLost));
    assert_eq!(world.get("a").await, before);
}

pub async fn a_report_before_the_lease_is_found_over_counts(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.sleep(secs(3600));
    world.succeed(&leased).await;
    assert_eq!(world.tick().await.revoked, []);
}

pub async fn a_lease_is_settled_once(open: Open) {
    let mut world = World::new(open).await;
    for (name, first) in [
        ("succeeded", Report::Succeeded(Payload::none())),
        ("failed", Report::Failed(JobError::permanent("broken", ""))),
        ("backing-off", Report::Failed(busy().retry_after(secs(100)))),
        ("released", Report::Released { delay: secs(100) }),
    ] {
        let leased = world.start(job(name)).await;
        world.settle(World::report(&leased, first)).await.unwrap();
        let before = world.get(name).await;
        for again in [
            Report::Succeeded(Payload::none()),
            Report::Failed(busy()),
            Report::Released { delay: Duration::ZERO },
        ] {
            let settled = world.settle(World::report(&leased, again)).await;
            assert_eq!(settled, Err(Error::LeaseLost), "{name}");
        }
        assert_eq!(world.renew(leased.lease, secs(9), None).await, Renewed::Lost);
        assert_eq!(world.get(name).await, before);
    }
    world.pass(secs(100)).await;
    world.recount().await;
}

pub async fn a_batch_of_reports_is_carried_out_in_order(open: Open) {
    let world = World::new(open).await;
    let a = world.start(job("a")).await;
    let b = world.start(job("b")).await;
    let store = world.store();
    let settled = store.settle(
        world.now,
        vec![
            World::report(&a, Report::Succeeded(Payload::new(Payload::TEXT, "first"))),
            World::report(&a, Report::Failed(busy())),
            World::report(&b, Report::Released { delay: Duration::ZERO }),
            World::report(&b, Report::Succeeded(Payload::none())),
        ],
    );
    let lost = || Err(Error::LeaseLost);
    assert_eq!(settled.await.unwrap(), [Ok(()), lost(), Ok(()), lost()]);
    assert_eq!(world.get("a").await.output.unwrap().bytes(), "first");
    assert_eq!(world.state("b").await, State::QUEUED);
}

pub async fn a_foreign_lease_is_refused(open: Open) {
    let world = World::new(open).await;
    let a = world.start(job("a")).await;
    let b = world.start(job("b")).await;
    world.add(job("waiting")).await;
    let before = world.list(Filter::default()).await;
    for lease in [
        LeaseId { job: a.lease.job, fence: b.lease.fence },
        LeaseId { job: a.lease.job, fence: 0 },
        LeaseId { job: a.lease.job, fence: a.lease.fence + 1000 },
        LeaseId { job: b.lease.job + 1, fence: 0 },
        LeaseId { job: 1_000_000, fence: a.lease.fence },
    ] {
        let foreign = Leased { lease, ..a.clone() };
        assert_eq!(world.try_succeed(&foreign).await, Err(Error::LeaseLost), "{lease:?}");
        assert_eq!(world.try_fail(&foreign, busy()).await, Err(Error::LeaseLost));
        assert_eq!(world.try_release(&foreign, Duration::ZERO).await, Err(Error::LeaseLost));
        assert_eq!(world.renew(lease, secs(9), None).await, Renewed::Lost);
    }
    assert_eq!(world.list(Filter::default()).await, before);
}

pub async fn a_cancel_takes_effect_unless_success_comes_first(open: Open) {
    let world = World::new(open).await;
    for (name, report, state) in [
        ("done", Report::Succeeded(Payload::none()), State::SUCCEEDED),
        ("gave-in", Report::Failed(busy()), State::CANCELLED),
        ("broke", Report::Failed(JobError::permanent("broken", "")), State::CANCELLED),
        ("released", Report::Released { delay: secs(1) }, State::CANCELLED),
    ] {
        let leased = world.start(job(name)).await;
        world.cancel(name).await.unwrap();
        world.settle(World::report(&leased, report)).await.unwrap();
        let there = world.get(name).await;
        assert_eq!((there.state, there.cancel_requested), (state, false));
        if state == State::CANCELLED {
            let error = there.error.unwrap();
            assert_eq!((error.cause, error.message.as_str()), (Cause::Cancelled, "enough"));
        }
    }
    world.recount().await;
}
