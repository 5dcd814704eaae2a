use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::atomic::{AtomicI64, Ordering},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::{Handover, Now};

async fn claimed(world: &World, limit: usize) -> Vec<String> {
    leased_ids(&world.claim(World::wish(limit)).await)
}

pub async fn a_lease_carries_the_job(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("a").label("tenant", "acme").payload("do it")).await;
    world.sleep(secs(1));
    let leased = world.take().await;
    let there = world.get("a").await;
    assert_eq!(*leased.job, there);
    assert_eq!(leased.job.spec.payload, Payload::new(Payload::TEXT, "do it"));
    assert_eq!((there.state, there.attempt, there.run, there.version), (State::RUNNING, 1, 1, 2));
    assert_eq!((there.start_time, there.next_attempt_time), (Some(world.now), None));
    assert_eq!(there.worker, Some("server-w1".parse().unwrap()));
    assert_ne!(leased.lease.fence, 0);
}

pub async fn jobs_come_in_the_order_they_became_due(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("third").delay(secs(30))).await;
    world.add(job("second").delay(secs(20))).await;
    world.sleep(secs(10));
    world.add(job("first")).await;
    world.pass(secs(50)).await;
    world.add(job("last")).await;
    assert_eq!(claimed(&world, 10).await, ["first", "second", "third", "last"]);
}

pub async fn equals_come_in_submit_order(open: Open) {
    let world = World::new(open).await;
    let names: Vec<String> = (0..30).map(|n| format!("job-{n}")).collect();
    world.group(names.iter().map(|name| job(name))).await.unwrap();
    let mut order = claimed(&world, 7).await;
    order.extend(claimed(&world, 100).await);
    assert_eq!(order, names);
}

pub async fn a_point_of_priority_is_worth_a_minute(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("plain")).await;
    world.sleep(Duration::from_millis(59_999));
    world.add(job("just-before").priority(1)).await;
    world.sleep(Duration::from_millis(1));
    world.add(job("equal").priority(1)).await;
    world.sleep(Duration::from_millis(1));
    world.add(job("just-after").priority(1)).await;
    world.add(job("low").priority(-100)).await;
    world.add(job("high").priority(100)).await;
    let order = ["high", "just-before", "plain", "equal", "just-after", "low"];
    assert_eq!(claimed(&world, 10).await, order);
}

pub async fn kinds_of_a_queue_share_one_order(open: Open) {
    let mut world = World::new(open).await;
    for n in 0..6 {
        world.add(job(&format!("job-{n}")).kind(["a", "b", "c"][n % 3])).await;
        world.sleep(secs(1));
    }
    let kinds = ["b", "c"].map(|kind| kind.parse().unwrap()).to_vec();
    let leases = world.claim(Claim { kinds: kinds.clone(), ..World::wish(3) }).await;
    assert_eq!(leased_ids(&leases), ["job-1", "job-2", "job-4"]);
    let leases = world.claim(Claim { kinds, ..World::wish(3) }).await;
    assert_eq!(leased_ids(&leases), ["job-5"]);
    assert_eq!(world.state("job-0").await, State::QUEUED);
}

pub async fn only_what_was_asked_for_is_claimed(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").queue("one")).await;
    world.add(job("b").queue("two")).await;
    world.add(job("c").queue("two").kind("else")).await;
    world.add(job("d").queue("two/below")).await;
    let queues = |names: &[&str]| Some(names.iter().map(|name| name.parse().unwrap()).collect());
    assert!(world.claim(Claim { kinds: vec![], ..World::wish(9) }).await.is_empty());
    assert!(world.claim(Claim { queues: queues(&[]), ..World::wish(9) }).await.is_empty());
    assert!(world.claim(World::wish(0)).await.is_empty());
    let leases = world.claim(Claim { queues: queues(&["two", "none"]), ..World::wish(9) }).await;
    assert_eq!(leased_ids(&leases), ["b"]);
    assert_eq!(world.claim(World::wish(9)).await.len(), 2);
    assert_eq!(world.state("c").await, State::QUEUED);
}

pub async fn only_queued_jobs_are_claimed(open: Open) {
    let mut world = World::new(open).await;
    for state in State::ALL {
        world.reach(job(&state.to_string()).queue(&state.to_string().to_lowercase()), state).await;
        if state == State::QUEUED {
            // It must not be in the way of those that run.
            world.take().await;
        }
    }
    assert!(claimed(&world, 10).await.is_empty());
    world.recount().await;
}

/// Nobody has looked at the clock since: after a pause of the server it may be a while.
pub async fn what_waited_too_long_is_not_claimed(open: Open) {
    let mut world = World::new(open).await;
    world.add(job("start").spec(|spec| spec.start_timeout = Some(secs(10)))).await;
    world.add(job("total").spec(|spec| spec.total_timeout = Some(secs(10)))).await;
    world.add(job("good").spec(|spec| spec.start_timeout = Some(secs(11)))).await;
    world.sleep(secs(10));
    assert_eq!(claimed(&world, 10).await, ["good"]);
    world.tick().await;
    for name in ["start", "total"] {
        assert_eq!(world.state(name).await, State::EXPIRED);
    }
}

pub async fn nothing_is_claimed_twice(open: Open) {
    let world = World::new(open).await;
    world.group((0..40).map(|n| job(&format!("job-{n}")).queue(["one", "two"][n % 2]))).await.unwrap();
    let claims = (0..20).map(|_| world.claim(World::wish(3)));
    let leases: Vec<_> = futures_util::future::join_all(claims).await.concat();
    assert_eq!(leases.len(), 40);
    assert_eq!(leases.iter().map(|leased| leased.lease).collect::<HashSet<_>>().len(), 40);
    assert_eq!(leased_ids(&leases).into_iter().collect::<BTreeSet<_>>().len(), 40);
    world.recount().await;
}

pub async fn a_short_queue_is_not_kept_waiting(open: Open) {
    let world = World::new(open).await;
    world.group((0..50).map(|n| job(&format!("long-{n}")).queue("long"))).await.unwrap();
    world.group((0..2).map(|n| job(&format!("short-{n}")).queue("short"))).await.unwrap();
    let of = |leases: &[Leased], queue: &str| {
        leases.iter().filter(|leased| leased.job.spec.queue.as_str() == queue).count()
    };
    let leases = world.claim(World::wish(10)).await;
    // Nothing is left idle: what the short one does not need goes to the long one.
    assert_eq!((of(&leases, "short"), of(&leases, "long")), (2, 8));
    world.group((0..9).map(|n| job(&format!("new-{n}")).queue("short"))).await.unwrap();
    let leases = world.claim(World::wish(10)).await;
    assert_eq!((of(&leases, "short"), of(&leases, "long")), (5, 5));
}

pub async fn every_queue_has_its_turn(open: Open) {
    let world = World::new(open).await;
    world.group((0..400).map(|n| job(&format!("job-{n}")).queue(&format!("q{}", n % 4)))).await.unwrap();
    let mut turns = BTreeSet::new();
    for _ in 0..100 {
        turns.insert(world.take().await.job.spec.queue.clone());
    }
    assert_eq!(turns.len(), 4);
}

pub async fn a_cap_holds_for_its_queue(open: Open) {
    let world = World::new(open).await;
    for queue in ["one", "two", "none"] {
        world.group((0..5).map(|n| job(&format!("{queue}-{n}")).queue(queue))).await.unwrap();
    }
    let caps = HashMap::from([("one".parse().unwrap(), 2), ("none".parse().unwrap(), 0)]);
    let leases = world.claim(Claim { caps, ..World::wish(100) }).await;
    assert_eq!(leased_ids(&leases).iter().filter(|id| id.starts_with("one")).count(), 2);
    assert_eq!(leased_ids(&leases).iter().filter(|id| id.starts_with("two")).count(), 5);
    assert_eq!(leases.len(), 7);
}

pub async fn a_claim_ends_with_its_bytes(open: Open) {
    let world = World::new(open).await;
    let large =
        |n: usize| job(&format!("job-{n}")).spec(|spec| spec.payload = Payload::new("", vec![1; 100]));
    world.group((0..5).map(large)).await.unwrap();
    let upto = |max_bytes| Claim { max_bytes, ..World::wish(3) };
    // One is always handed out, however large.
    assert_eq!(leased_ids(&world.claim(upto(1)).await), ["job-0"]);
    assert_eq!(leased_ids(&world.claim(upto(101)).await), ["job-1", "job-2"]);
    assert_eq!(leased_ids(&world.claim(upto(1000)).await), ["job-3", "job-4"]);
}

pub async fn the_attempt_timeout_is_the_jobs_or_its_queues(open: Open) {
    let world = World::with(open, |config| {
        config.defaults.attempt_timeout = secs(11);
        config.queues.entry("slow".into()).or_default().attempt_timeout = Some(secs(22));
    });
    let world = world.await;
    let timeout = |new: New| async { world.start(new).await.attempt_timeout };
    assert_eq!(timeout(job("a")).await, secs(11));
    assert_eq!(timeout(job("b").queue("slow")).await, secs(22));
    let own = |new: New| new.spec(|spec| spec.attempt_timeout = Some(secs(33)));
    assert_eq!(timeout(own(job("c").queue("slow"))).await, secs(33));
}

pub async fn the_next_attempt_hears_of_the_last(open: Open) {
    let mut world = World::new(open).await;
    let first = world.start(job("a")).await;
    let details = Some(Payload::new(Payload::BYTES, vec![1, 2, 0xff]));
    let progress = Progress { fraction: 0.5, note: "half".into(), details, update_time: world.now };
    let report = World::report(&first, Report::Failed(busy()));
    world.settle(Settlement { progress: Some(progress.clone()), ..report }).await.unwrap();
    world.pass(secs(60)).await;
    let second = world.take().await;
    assert_eq!((second.job.attempt, second.job.progress.clone()), (2, Some(progress)));
    assert_eq!(second.job.error, Some(busy()));
    assert_ne!(second.lease.fence, first.lease.fence);
}

pub async fn a_new_run_begins_with_nothing(open: Open) {
    let mut world = World::new(open).await;
    let first = world.start(job("a").max_attempts(1)).await;
    let progress = Progress { fraction: 0.5, note: "half".into(), details: None, update_time: world.now };
    world.renew(first.lease, secs(30), Some(progress)).await;
    world.fail(&first, busy()).await;
    world.sleep(secs(5));
    world.retry("a").await.unwrap();
    let second = world.take().await;
    assert_eq!((second.job.run, second.job.attempt), (2, 1));
    assert_eq!((&second.job.progress, &second.job.error), (&None, &None));
    assert_eq!(second.job.start_time, Some(world.now));
}

pub async fn claims_that_wait_share_what_comes(open: Open) {
    let world = World::new(open).await;
    let end = CancellationToken::new();
    let waiting = |room, kind: &str| {
        let wait = Some(World::wait(Arc::new(Semaphore::new(room)), &end, None));
        let claim = Claim { wait, kinds: vec![kind.parse().unwrap()], ..World::wish(100) };
        let (store, now) = (world.store(), world.now);
        tokio::spawn(async move { store.claim(now, claim).await.unwrap().len() })
    };
    let mut claims = Vec::new();
    for (room, kind) in [(100, KIND), (1, KIND), (100, "none"), (100, KIND)] {
        claims.push(waiting(room, kind));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.group((0..9).map(|n| job(&format!("job-{n}")))).await.unwrap();
    let mut given = Vec::new();
    for (at, claim) in claims.into_iter().enumerate() {
        if at == 2 {
            end.cancel();
        }
        given.push(claim.await.unwrap());
    }
    assert_eq!(given, [3, 1, 0, 5]);
}

pub async fn a_claim_may_wait_for_jobs(open: Open) {
    let world = World::new(open).await;
    let (slots, end) = (Arc::new(Semaphore::new(2)), CancellationToken::new());
    let wait = Some(World::wait(slots.clone(), &end, None));
    let waiting = || {
        tokio::spawn({
            let (store, now) = (world.store(), world.now);
            let claim = Claim { wait: wait.clone(), ..World::wish(10) };
            async move { store.claim(now, claim).await.unwrap() }
        })
    };
    // Whether it waits or is asked again, each job is handed out once, and never more than there is room for.
    let claim = waiting();
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.group([job("a"), job("b"), job("c")]).await.unwrap();
    let mut leases = claim.await.unwrap();
    if leases.is_empty() {
        leases = waiting().await.unwrap();
    }
    assert_eq!(leased_ids(&leases), ["a", "b"]);
    let rest = waiting().await.unwrap();
    assert_eq!(leased_ids(&rest), ["c"]);
    let claim = waiting();
    tokio::time::sleep(Duration::from_millis(20)).await;
    end.cancel();
    assert!(claim.await.unwrap().is_empty());
    // Whoever is cancelled before does not wait at all.
    assert!(waiting().await.unwrap().is_empty());
}

pub async fn a_job_that_is_claimed_as_it_comes_is_like_any_other(open: Open) {
    let mut world = World::new(open).await;
    // Both queues are known: a look must not find one before it knows of the other.
    for queue in ["default", "two"] {
        world.add(job(queue).queue(queue).delay(secs(60))).await;
    }
    let wait = World::wait(Arc::new(Semaphore::new(4)), &CancellationToken::new(), None);
    let claim = Claim { wait: Some(wait), ..World::wish(10) };
    let waiting = {
        let (store, now) = (world.store(), world.now);
        tokio::spawn(async move { store.claim(now, claim).await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let replies = world
        .batch(vec![
            vec![job("a"), job("b").unique("one"), job("later").delay(secs(9))],
            vec![job("refused"), job("also-refused").unique("one").reject()],
            vec![job("urgent").priority(1).queue("two"), job("a"), job("d").label("tenant", "acme")],
            vec![job("e"), job("f")],
        ])
        .await;
    let refused: Vec<_> = replies.iter().map(Result::is_err).collect();
    assert_eq!(refused, [false, true, false, false]);
    assert!(replies[2].as_ref().unwrap()[1].deduplicated);
    let mut leased = waiting.await.unwrap();
    let rest = world.claim(World::wish(10 - leased.len())).await;
    // A short queue is not kept waiting, and within a queue they come in order.
    let order: Vec<_> = leased_ids(&leased).into_iter().filter(|id| id != "urgent").collect();
    assert_eq!((leased.len(), order), (4, vec!["a".into(), "b".into(), "d".into()]));
    leased.extend(rest);
    assert_eq!(leased.len(), 6);
    world.recount().await;
    for leased in &leased {
        assert_eq!(*leased.job, world.get(leased.job.id.as_str()).await);
        assert_eq!((leased.job.state, leased.job.version), (State::RUNNING, 2));
    }
    assert!(world.find("refused", View::Result).await.is_none());
    assert_eq!(world.state("later").await, State::SCHEDULED);
    world.succeed(&leased[0]).await;
    world.fail(&leased[1], busy()).await;
    world.crash().await;
    assert_eq!(world.try_succeed(&leased[0]).await, Err(Error::LeaseLost));
    world.recount().await;
    assert_eq!(world.feed().await.len(), 1);
}

/// A claim that is given jobs in either way: with its answer, after which it is asked again, or while it waits on.
struct Pool {
    world: World,
    /// What the claim's clock says, milliseconds.
    time: Arc<AtomicI64>,
    claim: Claim,
    handed: mpsc::UnboundedReceiver<Handover>,
    answer: JoinHandle<Vec<Leased>>,
}

impl Pool {
    fn start(world: World, slots: &Arc<Semaphore>, end: &CancellationToken) -> Self {
        let (handover, handed) = mpsc::unbounded_channel();
        let time = Arc::new(AtomicI64::new(0));
        let clock = time.clone();
        let now = Now(Arc::new(move || Timestamp(clock.load(Ordering::Relaxed))));
        let wait = ClaimWait { now, ..World::wait(slots.clone(), end, Some(handover)) };
        let claim = Claim { wait: Some(wait), ..World::wish(10) };
        let answer = Self::ask(&world, &claim);
        Self { world, time, claim, handed, answer }
    }

    fn ask(world: &World, claim: &Claim) -> JoinHandle<Vec<Leased>> {
        let (store, now, claim) = (world.store(), world.now, claim.clone());
        tokio::spawn(async move {
            // Whoever has no room does not ask.
            drop(claim.wait.as_ref().unwrap().slots.acquire().await);
            store.claim(now, claim).await.unwrap()
        })
    }

    /// So many jobs, each with its slot.
    async fn take(&mut self, count: usize) -> Vec<(Leased, OwnedSemaphorePermit)> {
        let slots = self.claim.wait.as_ref().unwrap().slots.clone();
        let mut taken = Vec::new();
        while taken.len() < count {
            let (leased, mut slots) = tokio::select! {
                Some(Handover { leased, slots }) = self.handed.recv() => (leased, slots),
                leased = &mut self.answer => {
                    let leased = leased.unwrap();
                    let room = slots.clone().try_acquire_many_owned(leased.len() as u32);
                    (leased, room.expect("no more than there is room for"))
                }
                () = tokio::time::sleep(secs(10)) => panic!("only {} of {count} jobs came", taken.len()),
            };
            taken.extend(leased.into_iter().map(|leased| (leased, slots.split(1).expect("a slot for each"))));
            assert_eq!(slots.num_permits(), 0);
            if self.answer.is_finished() {
                self.answer = Self::ask(&self.world, &self.claim);
            }
        }
        taken
    }
}

pub async fn a_claim_may_wait_on_while_it_is_given_jobs(open: Open) {
    let (slots, end) = (Arc::new(Semaphore::new(4)), CancellationToken::new());
    let mut pool = Pool::start(World::new(open).await, &slots, &end);
    pool.world.add(job("there").delay(secs(60))).await;
    pool.world.add(job("first")).await;
    let first = pool.take(1).await;
    // All that stood has been looked at by now.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let limited = job("a").spec(|spec| spec.total_timeout = Some(secs(5)));
    pool.world
        .batch(vec![
            vec![limited.clone(), job("b").unique("one"), job("later").delay(secs(9))],
            vec![job("refused"), job("also-refused").unique("one").reject()],
            vec![job("urgent").priority(1), limited, job("c").label("tenant", "acme").payload("in")],
            vec![job("d"), job("e")],
        ])
        .await;
    let mut taken = pool.take(3).await;
    drop(first);
    taken.extend(pool.take(1).await);
    let order = |taken: &[(Leased, OwnedSemaphorePermit)]| {
        taken.iter().map(|(leased, _)| leased.job.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(order(&taken), ["urgent", "a", "b", "c"]);
    // What had to wait for room is not overtaken by what comes meanwhile.
    pool.world.group([job("f")]).await.unwrap();
    let (leases, room): (Vec<Leased>, Vec<_>) = taken.into_iter().unzip();
    assert_eq!(slots.available_permits(), 0);
    drop(room);
    assert_eq!(order(&pool.take(3).await), ["d", "e", "f"]);

    let world = &pool.world;
    world.recount().await;
    for leased in &leases {
        assert_eq!(*leased.job, world.get(leased.job.id.as_str()).await);
        assert_eq!((leased.job.state, leased.job.attempt, leased.job.version), (State::RUNNING, 1, 2));
    }
    assert!(world.find("refused", View::Result).await.is_none());
    assert_eq!(world.state("later").await, State::SCHEDULED);
    world.succeed(&leases[0]).await;
    world.fail(&leases[2], busy()).await;
    world.recount().await;
    pool.world.pass(secs(6)).await;
    assert_eq!(pool.world.state("a").await, State::EXPIRED);
    let again = pool.take(1).await;
    assert_eq!((order(&again), again[0].0.job.attempt), (vec!["b".into()], 2));
    end.cancel();
    assert!(pool.answer.await.unwrap().is_empty());
    drop(pool.claim);
    assert!(pool.handed.recv().await.is_none());
}

pub async fn a_claim_that_waited_knows_the_time(open: Open) {
    let (slots, end) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
    let mut pool = Pool::start(World::new(open).await, &slots, &end);
    pool.world.group([job("a"), job("b")]).await.unwrap();
    let first = pool.take(1).await;
    assert_eq!(first[0].0.job.start_time, Some(pool.world.now));
    pool.world.sleep(secs(5));
    pool.time.store(pool.world.now.0, Ordering::Relaxed);
    // Nothing is told to the store before there is room again.
    drop(first);
    let (second, _slot) = pool.take(1).await.remove(0);
    assert_eq!(second.job.start_time, Some(pool.world.now));
    pool.world.pass(secs(29)).await;
    assert_eq!(pool.world.state("b").await, State::RUNNING);
    end.cancel();
}

pub async fn claims_that_share_keep_their_limits(open: Open) {
    let world = World::new(open).await;
    let end = CancellationToken::new();
    let waiting = |claim: Claim| {
        let wait = Some(World::wait(Arc::new(Semaphore::new(10)), &end, None));
        let (store, now) = (world.store(), world.now);
        tokio::spawn(async move { store.claim(now, Claim { wait, ..claim }).await.unwrap().len() })
    };
    let of_kind = |kind: &str| Claim { kinds: vec![kind.parse().unwrap()], ..World::wish(10) };
    let claims = [
        Claim { caps: HashMap::from([("capped".parse().unwrap(), 1)]), ..of_kind("one") },
        Claim { max_bytes: 3, ..of_kind("two") },
        of_kind("three"),
    ];
    let claims = claims.map(waiting);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let jobs = ["one", "two", "three"].into_iter().flat_map(|kind| {
        (0..5).map(move |n| job(&format!("{kind}-{n}")).kind(kind).queue("capped").payload("in"))
    });
    world.group(jobs).await.unwrap();
    let mut given = Vec::new();
    for claim in claims {
        given.push(claim.await.unwrap());
    }
    assert_eq!(given, [1, 2, 5]);
}
