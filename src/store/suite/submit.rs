use super::*;

pub async fn a_job_is_as_it_was_asked_for(open: Open) {
    let world = World::new(open).await;
    let new = job("full").queue("acme/mail").kind("mail.send").label("tenant", "acme").label("empty", "");
    let new = new.priority(-7).unique("k!").request("r-1").spec(|spec| {
        spec.payload = Payload::new("application/x-anything", vec![0, 255, 10]);
        spec.start = Start::At(world.now.after(secs(60)));
        spec.start_timeout = Some(secs(1));
        spec.attempt_timeout = Some(secs(2));
        spec.total_timeout = Some(secs(300));
        spec.retention = Some(secs(4));
        spec.retry = RetryOptions {
            max_attempts: Some(9),
            initial_backoff: Some(Duration::from_millis(5)),
            max_backoff: Some(secs(6)),
            backoff_multiplier: Some(1.1),
            non_retryable_codes: vec!["a".into(), "b".into()],
        };
    });
    let new = new.submission(|submission| drop(submission.trace.insert("traceparent".into(), "00-1".into())));
    let submission: Submission = new.clone().into();
    let answer = world.add(new).await;
    assert_eq!(answer.spec, submission.spec);
    let there = world.get("full").await;
    assert_eq!(there.spec, submission.spec);
    assert_eq!(there.trace, submission.trace);
    for job in [answer, there] {
        assert_eq!((job.id.as_str(), job.state), ("full", State::SCHEDULED));
        assert_eq!((job.attempt, job.run, job.version), (0, 1, 1));
        assert_eq!((job.submit_time, job.next_attempt_time), (world.now, Some(world.now.after(secs(60)))));
        assert_eq!((job.start_time, job.finish_time, job.delete_time), (None, None, None));
        assert_eq!((job.output, job.error, job.progress, job.worker), (None, None, None, None));
        assert!(!job.cancel_requested);
    }
}

pub async fn a_drawn_id_is_as_good_as_ones_own(open: Open) {
    let world = World::new(open).await;
    for name in ["0198c5f0-9d1e-7abc-8def-0123456789ab", "0198C5F0-9D1E-7ABC-8DEF-0123456789AB", "plain"] {
        world.add(drawn(name)).await;
        assert_eq!(world.get(name).await.id.as_str(), name);
    }
    assert_eq!(world.list(Filter::default()).await.len(), 3);
}

pub async fn a_job_starts_in_the_state_of_its_start_time(open: Open) {
    let world = World::new(open).await;
    let at = |time| job("a").spec(|spec| spec.start = Start::At(time));
    for (name, new, state, due) in [
        ("now", job("now"), State::QUEUED, world.now),
        ("at-once", job("at-once").delay(Duration::ZERO), State::QUEUED, world.now),
        ("later", job("later").delay(secs(5)), State::SCHEDULED, world.now.after(secs(5))),
        ("past", at(Timestamp(5)).submission(|s| s.job_id = id("past")), State::QUEUED, world.now),
        (
            "ahead",
            at(Timestamp(world.now.0 + 1)).submission(|s| s.job_id = id("ahead")),
            State::SCHEDULED,
            Timestamp(world.now.0 + 1),
        ),
    ] {
        world.add(new).await;
        let job = world.get(name).await;
        assert_eq!((job.state, job.next_attempt_time), (state, Some(due)), "{name}");
    }
}

pub async fn a_repeated_request_answers_with_its_job(open: Open) {
    let world = World::new(open).await;
    world.add(drawn("a").request("r")).await;
    assert_eq!(world.repeat(drawn("b").request("r")).await.id, id("a"));
    assert_eq!(world.find("b", View::Basic).await, None);
    world.recount().await;
}

pub async fn a_request_id_belongs_to_its_caller(open: Open) {
    let world = World::new(open).await;
    world.add(drawn("a").request("r").caller("ada")).await;
    world.add(drawn("b").request("r").caller("bob").payload("else")).await;
    assert_eq!(world.repeat(drawn("c").request("r").caller("ada")).await.id, id("a"));
}

pub async fn a_request_id_with_another_spec_is_refused(open: Open) {
    let world = World::new(open).await;
    world.add(drawn("a").request("r")).await;
    for other in [
        drawn("b").payload("else"),
        drawn("b").spec(|spec| spec.payload.content_type = Payload::JSON.into()),
        drawn("b").kind("else"),
        drawn("b").queue("else"),
        drawn("b").priority(1),
        drawn("b").label("a", "b"),
        drawn("b").unique("k"),
        drawn("b").delay(secs(1)),
        drawn("b").max_attempts(3),
        drawn("b").spec(|spec| spec.retention = Some(secs(1))),
        drawn("b").spec(|spec| spec.total_timeout = Some(secs(1))),
        job("b"),
    ] {
        let error = world.try_add(other.request("r")).await.unwrap_err();
        assert_eq!(error, Error::RequestIdReused { request_id: "r".into(), job_id: "a".into() });
    }
    assert_eq!(world.list(Filter::default()).await.len(), 1);
}

pub async fn a_request_id_is_remembered_beyond_its_job(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a").request("r"), State::SUCCEEDED).await;
    world.delete("a").await.unwrap();
    let deleted = Error::JobDeleted { request_id: "r".into(), job_id: "a".into() };
    assert_eq!(world.try_add(job("a").request("r")).await.unwrap_err(), deleted);
    assert_eq!(world.try_add(job("a").request("r").payload("else")).await.unwrap_err(), deleted);
    // The id itself is free: the new job is another one.
    world.add(job("a")).await;
    assert_eq!(world.try_add(job("a").request("r")).await.unwrap_err(), deleted);
}

pub async fn a_request_id_is_forgotten_after_its_window(open: Open) {
    let mut world = World::with(open, |config| config.limits.request_id_window = secs(10)).await;
    world.add(drawn("a").request("r")).await;
    world.sleep(Duration::from_millis(9999));
    assert_eq!(world.repeat(drawn("b").request("r")).await.id, id("a"));
    // The repeat has not prolonged it, and nothing needs to tick.
    world.sleep(Duration::from_millis(1));
    world.add(drawn("c").request("r").payload("else")).await;
    world.sleep(secs(9));
    assert_eq!(world.repeat(drawn("d").request("r").payload("else")).await.id, id("c"));
    world.pass(secs(1)).await;
    world.add(drawn("e").request("r")).await;
}

pub async fn a_job_id_answers_with_its_job(open: Open) {
    let world = World::new(open).await;
    world.add(job("a")).await;
    assert_eq!(world.repeat(job("a")).await.id, id("a"));
    // Whoever asks.
    assert_eq!(world.repeat(job("a").caller("bob").request("r")).await.id, id("a"));
}

pub async fn a_job_id_with_another_spec_is_refused(open: Open) {
    let world = World::new(open).await;
    world.add(job("a")).await;
    let error = world.try_add(job("a").payload("else").request("r")).await.unwrap_err();
    assert_eq!(error, Error::JobIdInUse { job_id: "a".into() });
    // Nothing is left of the refusal.
    world.add(job("b").request("r")).await;
}

pub async fn a_job_id_is_free_after_delete(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::FAILED).await;
    world.delete("a").await.unwrap();
    world.add(job("a").payload("else")).await;
    let job = world.get("a").await;
    assert_eq!((job.state, job.error, job.attempts.len()), (State::QUEUED, None, 0));
}

pub async fn a_repeat_by_job_id_remembers_its_request_id(open: Open) {
    let world = World::new(open).await;
    world.add(job("a")).await;
    world.repeat(job("a").request("r")).await;
    assert_eq!(world.repeat(drawn("b").request("r")).await.id, id("a"));
}

pub async fn request_ids_come_before_job_ids(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").request("r")).await;
    world.add(job("b")).await;
    let reused = Error::RequestIdReused { request_id: "r".into(), job_id: "a".into() };
    assert_eq!(world.try_add(job("b").request("r")).await.unwrap_err(), reused);
    assert_eq!(world.try_add(job("b").request("r").payload("else")).await.unwrap_err(), reused);
}

pub async fn job_ids_come_before_unique_keys(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a").unique("k"), State::SUCCEEDED).await;
    world.add(job("b").unique("k")).await;
    assert_eq!(world.repeat(job("a").unique("k").reject()).await.id, id("a"));
    let error = world.try_add(job("a").unique("k").payload("else").reject()).await.unwrap_err();
    assert_eq!(error, Error::JobIdInUse { job_id: "a".into() });
}

pub async fn request_ids_come_before_unique_keys(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a").unique("k").request("r"), State::SUCCEEDED).await;
    world.add(job("b").unique("k")).await;
    assert_eq!(world.repeat(drawn("c").unique("k").request("r").reject()).await.id, id("a"));
}

pub async fn a_unique_key_answers_with_its_holder(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").unique("k")).await;
    assert_eq!(world.repeat(drawn("b").unique("k")).await.id, id("a"));
    assert_eq!(world.repeat(job("c").unique("k").payload("else").kind("else")).await.id, id("a"));
    world.add(job("d").unique("l")).await;
    world.add(job("e")).await;
    world.recount().await;
}

pub async fn a_unique_key_refuses_if_asked_to(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").unique("k")).await;
    let error = world.try_add(drawn("b").unique("k").reject()).await.unwrap_err();
    assert_eq!(error, Error::UniqueKeyInUse { unique_key: "k".into(), job_id: "a".into() });
}

pub async fn a_unique_key_belongs_to_its_queue(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").unique("k").queue("one")).await;
    world.add(job("b").unique("k").queue("two").reject()).await;
}

pub async fn a_unique_key_is_free_at_the_end(open: Open) {
    let mut world = World::new(open).await;
    for (name, state) in [
        ("succeeded", State::SUCCEEDED),
        ("failed", State::FAILED),
        ("cancelled", State::CANCELLED),
        ("expired", State::EXPIRED),
    ] {
        world.reach(job(name).unique("k").reject(), state).await;
    }
    // Not before: while it backs off.
    world.reach(job("last").unique("k").reject(), State::BACKING_OFF).await;
    assert_matches!(world.try_add(job("more").unique("k").reject()).await, Err(Error::UniqueKeyInUse { .. }));
}

pub async fn a_request_that_met_a_unique_key_can_be_repeated(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").unique("k")).await;
    // In the words of the holder, in others, and with an id of one's own.
    let met = [drawn("b").request("r"), drawn("c").request("s").payload("else"), job("d").request("t")];
    let met = met.map(|new| new.unique("k"));
    for new in &met {
        assert_eq!(world.repeat(new.clone()).await.id, id("a"));
    }
    // Whoever holds the key by then.
    world.cancel("a").await.unwrap();
    world.add(job("e").unique("k")).await;
    for new in &met {
        assert_eq!(world.repeat(new.clone()).await.id, id("a"));
        let error = world.try_add(new.clone().payload("third")).await.unwrap_err();
        assert_matches!(error, Error::RequestIdReused { .. });
    }
    let other_id = job("f").request("t").unique("k");
    assert_matches!(world.try_add(other_id).await, Err(Error::RequestIdReused { .. }));
}

pub async fn a_repeat_shows_the_job_as_it_is_now(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a").request("r"), State::SUCCEEDED).await;
    for repeat in [job("a"), job("a").request("r")] {
        let job = world.repeat(repeat).await;
        assert_eq!(job.state, State::SUCCEEDED);
        assert_eq!(job.output.unwrap(), Payload::new(Payload::TEXT, "out").omit_body());
    }
}

pub async fn a_repeat_reads_no_bodies(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a").request("r").payload("x".repeat(1000))).await;
    let output = Payload::new(Payload::TEXT, "y".repeat(1000));
    world.settle(World::report(&leased, Report::Succeeded(output.clone()))).await.unwrap();
    let repeats = (0..100).map(|_| job("a").request("r").payload("x".repeat(1000)));
    for one in world.group(repeats).await.unwrap() {
        assert!(one.deduplicated);
        assert_eq!(
            (one.job.spec.payload.body.as_ref(), one.job.output.as_ref()),
            (None, Some(&output.omit_body()))
        );
    }
    // Neither does one that is refused, whatever its size.
    for other in ["x".to_owned(), format!("y{}", "x".repeat(999))] {
        assert_matches!(world.try_add(job("a").payload(other)).await, Err(Error::JobIdInUse { .. }));
    }
}

pub async fn a_submit_tells_where_to_watch_from(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("before"), State::SUCCEEDED).await;
    let submitted = world.try_add(job("a")).await.unwrap();
    assert_eq!(submitted.position, world.head());
    let leased = world.take().await;
    world.succeed(&leased).await;
    assert_eq!(outcome_ids(&world.feed_after(submitted.position).await), ["a"]);
}
