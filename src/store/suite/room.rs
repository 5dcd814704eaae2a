use super::*;

pub async fn a_full_store_refuses_new_jobs(open: Open) {
    let world = World::with(open, |config| config.limits.max_unfinished = 2).await;
    world.add(job("a").queue("one")).await;
    world.add(job("b").queue("two").delay(secs(9))).await;
    assert_matches!(world.try_add(job("c").request("r")).await, Err(Error::QueueFull { limit: 2, .. }));
    assert_eq!(world.list(Filter::default()).await.len(), 2);
    world.cancel("a").await.unwrap();
    world.add(job("d").request("r")).await;
    world.recount().await;
}

pub async fn a_full_store_still_answers_repeats(open: Open) {
    let world = World::with(open, |config| config.limits.max_unfinished = 1).await;
    world.add(job("a").request("r").unique("k")).await;
    world.repeat(job("a").request("r").unique("k")).await;
    world.repeat(job("a").unique("k")).await;
    world.repeat(drawn("b").unique("k")).await;
    assert_matches!(world.try_add(job("a")).await, Err(Error::JobIdInUse { .. }));
}

pub async fn a_check_asks_for_room_but_takes_none(open: Open) {
    let world = World::with(open, |config| config.limits.max_unfinished = 1).await;
    let checked = world.try_add(job("a").unique("k").request("r").check()).await.unwrap();
    assert_eq!(
        (checked.job.id.as_str(), checked.job.state, checked.deduplicated),
        ("a", State::QUEUED, false)
    );
    assert!(world.list(Filter::default()).await.is_empty() && world.claim(World::wish(1)).await.is_empty());
    world.add(job("b").unique("k")).await;
    let full = world.try_add(job("a").check()).await.unwrap_err();
    assert!(matches!(full, Error::QueueFull { .. }), "{full}");
    let held = world.try_add(job("a").unique("k").reject().check()).await.unwrap_err();
    assert!(matches!(held, Error::UniqueKeyInUse { .. }), "{held}");
    let taken = world.try_add(job("b").payload("else").check()).await.unwrap_err();
    assert!(matches!(taken, Error::JobIdInUse { .. }), "{taken}");
    // What is there is told, and its request id is not remembered.
    assert_eq!(world.repeat(job("b").unique("k").request("q").check()).await.id.as_str(), "b");
    assert_eq!(world.repeat(job("b").unique("k")).await.id.as_str(), "b");
    world.cancel("b").await.unwrap();
    world.add(job("c").request("q")).await;
    world.recount().await;
}

pub async fn a_queue_has_a_limit_of_its_own(open: Open) {
    let world = World::with(open, |config| {
        config.queues.entry("small".into()).or_default().max_unfinished = Some(2);
    });
    let world = world.await;
    world.add(job("a").queue("small").kind("x")).await;
    world.add(job("b").queue("small").kind("y")).await;
    let error = world.try_add(job("c").queue("small")).await.unwrap_err();
    assert_matches!(&error, Error::QueueFull { what, limit: 2 } if what.contains("small"));
    world.add(job("d").queue("small/not")).await;
    world.cancel("a").await.unwrap();
    world.add(job("c").queue("small")).await;
}

pub async fn bytes_are_limited(open: Open) {
    let mut world = World::with(open, |config| config.limits.max_unfinished_bytes = 100).await;
    world.add(job("a").payload([1; 60])).await;
    assert_matches!(world.try_add(job("b").payload([2; 41])).await, Err(Error::QueueFull { limit: 100, .. }));
    world.add(job("b").payload([2; 40])).await;
    world.add(job("empty").payload("")).await;
    world.reopen().await;
    assert_matches!(world.try_add(job("c").payload("x")).await, Err(Error::QueueFull { .. }));
    let leased = world.take().await;
    world.succeed(&leased).await;
    world.add(job("c").payload([3; 60])).await;
    assert_matches!(world.try_add(job("d").payload("x")).await, Err(Error::QueueFull { .. }));
}

pub async fn a_group_may_be_too_much(open: Open) {
    let world = World::with(open, |config| config.limits.max_unfinished = 3).await;
    world.add(job("a")).await;
    let reply = world.group([job("b"), job("a"), job("c"), job("d")]).await;
    assert_matches!(reply, Err((3, Error::QueueFull { .. })));
    assert_eq!(ids(&world.list(Filter::default()).await), ["a"]);
    world.group([job("b"), job("c")]).await.unwrap();
    assert_matches!(world.group([job("d")]).await, Err((0, Error::QueueFull { .. })));
}

pub async fn every_end_makes_room(open: Open) {
    let world = World::with(open, |config| {
        config.limits.max_unfinished = 1;
        config.limits.max_unfinished_bytes = 10;
    });
    let mut world = world.await;
    for state in [State::SUCCEEDED, State::FAILED, State::CANCELLED, State::EXPIRED] {
        world.reach(job(&state.to_string()).payload([0; 10]), state).await;
    }
    // A new run takes it again.
    world.retry("FAILED").await.unwrap();
    assert_matches!(world.try_add(job("more")).await, Err(Error::QueueFull { .. }));
    world.cancel("FAILED").await.unwrap();
    world.reach(job("more").payload([0; 10]), State::BACKING_OFF).await;
    assert_matches!(world.try_add(job("still")).await, Err(Error::QueueFull { .. }));
}

pub async fn the_number_of_lines_is_limited(open: Open) {
    let world = World::with(open, |config| config.limits.max_lines = 2).await;
    world.add(job("a").queue("one")).await;
    world.add(job("b").queue("one").kind("else")).await;
    assert_matches!(world.try_add(job("c").queue("two")).await, Err(Error::QueueFull { limit: 2, .. }));
    world.add(job("c").queue("one")).await;
}

pub async fn a_full_disk_refuses_new_jobs_only(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("a")).await;
    world.add(job("b")).await;
    world.reach(job("c").priority(100), State::FAILED).await;
    world.reopen_with(|config| config.store.reserve_bytes = u64::MAX).await;
    assert_matches!(world.try_add(job("d")).await, Err(Error::StoreFull { reserve: u64::MAX, .. }));
    world.repeat(job("a")).await;
    let leased = world.take().await;
    world.succeed(&leased).await;
    let leased = world.take().await;
    world.fail(&leased, busy()).await;
    world.retry("c").await.unwrap();
    world.cancel("c").await.unwrap();
    world.delete("c").await.unwrap();
    world.pass(secs(60)).await;
    assert_eq!(world.state("b").await, State::QUEUED);
}
