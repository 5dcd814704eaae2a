use super::*;

fn accepted(reply: &GroupReply) -> Vec<(String, bool)> {
    let accepted = reply.as_ref().unwrap();
    accepted.iter().map(|one| (one.job.id.to_string(), one.deduplicated)).collect()
}

fn there(jobs: &[(&str, bool)]) -> Vec<(String, bool)> {
    jobs.iter().map(|&(id, deduplicated)| (id.to_owned(), deduplicated)).collect()
}

pub async fn a_group_is_accepted_whole(open: Open) {
    let world = World::new(open).await;
    world.add(job("b")).await;
    let reply = world.group([job("a"), job("b"), drawn("c").queue("else")]).await;
    assert_eq!(accepted(&reply), there(&[("a", false), ("b", true), ("c", false)]));
    assert_eq!(ids(&world.list(Filter::default()).await), ["c", "a", "b"]);
    world.recount().await;
}

pub async fn a_refused_group_leaves_nothing_behind(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("taken").kind("else")).await;
    let group =
        [job("a").request("r").unique("k"), job("b").queue("new"), job("taken").request("s"), job("c")];
    let reply = world.group(group).await;
    assert_matches!(reply, Err((2, Error::JobIdInUse { .. })));
    assert_eq!(ids(&world.list(Filter::default()).await), ["taken"]);
    assert_eq!(world.store().counts().await.unwrap().len(), 1, "the new lines are forgotten");
    world.recount().await;
    world.add(drawn("d").request("r").unique("k").reject().payload("else")).await;
    world.add(job("a").queue("other")).await;
    world.add(job("e").request("s").queue("new")).await;
    world.recount().await;
    world.reopen().await;
    world.recount().await;
    assert_eq!(world.count("new", KIND, State::QUEUED).await, 1);
    assert_eq!(world.count("default", KIND, State::QUEUED).await, 1);
}

pub async fn the_others_are_not_touched(open: Open) {
    let world = World::new(open).await;
    world.add(job("taken")).await;
    let replies = world
        .batch(vec![
            vec![job("a"), job("b")],
            vec![job("c"), job("taken").payload("else")],
            vec![job("taken").payload("else")],
            vec![job("d").queue("new")],
        ])
        .await;
    assert_eq!(accepted(&replies[0]), there(&[("a", false), ("b", false)]));
    assert_matches!(&replies[1], Err((1, Error::JobIdInUse { .. })));
    assert_matches!(&replies[2], Err((0, Error::JobIdInUse { .. })));
    assert_eq!(accepted(&replies[3]), there(&[("d", false)]));
    assert_eq!(ids(&world.list(Filter::default()).await), ["d", "b", "a", "taken"]);
    world.recount().await;
}

pub async fn the_first_refusal_is_told(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").unique("k").request("r")).await;
    let reply = world
        .group([job("b"), drawn("c").unique("k").reject(), drawn("d").request("r").payload("else")])
        .await;
    assert_matches!(reply, Err((1, Error::UniqueKeyInUse { .. })));
}

pub async fn a_group_sees_its_own_job_ids(open: Open) {
    let world = World::new(open).await;
    let reply = world.group([job("a"), job("a")]).await;
    assert_eq!(accepted(&reply), there(&[("a", false), ("a", true)]));
    let reply = world.group([job("b"), job("c"), job("b").payload("else")]).await;
    assert_matches!(reply, Err((2, Error::JobIdInUse { .. })));
    assert_eq!(ids(&world.list(Filter::default()).await), ["a"]);
    world.recount().await;
}

pub async fn a_group_sees_its_own_request_ids(open: Open) {
    let world = World::new(open).await;
    let reply = world.group([drawn("a").request("r"), drawn("b").request("r")]).await;
    assert_eq!(accepted(&reply), there(&[("a", false), ("a", true)]));
    let reply = world.group([drawn("c").request("s"), drawn("d").request("s").payload("else")]).await;
    assert_matches!(reply, Err((1, Error::RequestIdReused { .. })));
    assert_eq!(ids(&world.list(Filter::default()).await), ["a"]);
}

pub async fn a_group_sees_its_own_unique_keys(open: Open) {
    let world = World::new(open).await;
    let reply = world.group([drawn("a").unique("k"), drawn("b").unique("k")]).await;
    assert_eq!(accepted(&reply), there(&[("a", false), ("a", true)]));
    let reply = world.group([drawn("c").unique("l"), drawn("d").unique("l").reject()]).await;
    assert_matches!(reply, Err((1, Error::UniqueKeyInUse { .. })));
    assert_eq!(ids(&world.list(Filter::default()).await), ["a"]);
}

pub async fn a_batch_sees_the_groups_before(open: Open) {
    let world = World::new(open).await;
    let replies = world
        .batch(vec![
            vec![job("a").request("r"), job("b").unique("k")],
            vec![drawn("c").request("r")],
            vec![job("d"), drawn("e").unique("k").reject()],
            vec![job("d").payload("else")],
        ])
        .await;
    assert_eq!(accepted(&replies[0]), there(&[("a", false), ("b", false)]));
    assert_eq!(accepted(&replies[1]), there(&[("a", true)]));
    assert_matches!(&replies[2], Err((1, Error::UniqueKeyInUse { .. })));
    // The group that had it was refused.
    assert_eq!(accepted(&replies[3]), there(&[("d", false)]));
    world.recount().await;
}

pub async fn nothing_asked_is_nothing_done(open: Open) {
    let world = World::new(open).await;
    assert!(world.batch(vec![]).await.is_empty());
    assert_eq!(accepted(&world.group([]).await), there(&[]));
    let store = world.store();
    assert!(store.settle(world.now, vec![]).await.unwrap().is_empty());
    assert!(store.renew(world.now, vec![]).await.unwrap().is_empty());
    assert!(store.cancel(world.now, vec![]).await.unwrap().is_empty());
    assert!(store.retry(world.now, vec![]).await.unwrap().is_empty());
    assert!(store.delete(world.now, vec![]).await.unwrap().is_empty());
    assert!(store.get(vec![], View::Full).await.unwrap().0.is_empty());
    assert!(world.claim(World::wish(10)).await.is_empty());
    let tick = world.tick().await;
    assert_eq!((tick.next, tick.revoked), (None, vec![]));
    assert_eq!((world.head(), world.feed().await.len()), (Position(0), 0));
}
