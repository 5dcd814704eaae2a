use super::*;

fn positions(outcomes: &[Outcome]) -> Vec<Position> {
    outcomes.iter().map(|outcome| outcome.position).collect()
}

async fn existing(world: &World, filter: Filter) -> Vec<Outcome> {
    let (upto, mut after, mut outcomes) = (world.head(), Position(0), Vec::new());
    while after < upto {
        let page = world.store().existing(after, upto, &filter, 2).await.unwrap();
        assert!(page.outcomes.len() <= 2);
        assert!(page.upto > after && page.upto <= upto, "{after:?} {:?} {upto:?}", page.upto);
        for outcome in &page.outcomes {
            assert!(outcome.position > after && outcome.position <= page.upto);
        }
        after = page.upto;
        outcomes.extend(page.outcomes);
    }
    outcomes
}

pub async fn outcomes_come_in_commit_order(open: Open) {
    let mut world = World::new(open).await;
    let a = world.start(job("a")).await;
    let b = world.start(job("b")).await;
    world.reach(job("c"), State::CANCELLED).await;
    world.succeed(&b).await;
    world.fail(&a, JobError::permanent("broken", "")).await;
    world.reach(job("d"), State::EXPIRED).await;
    world.add(job("unfinished")).await;
    let feed = world.feed().await;
    assert_eq!(outcome_ids(&feed), ["c", "b", "a", "d"]);
    let states: Vec<_> = feed.iter().map(|outcome| outcome.job.state).collect();
    assert_eq!(states, [State::CANCELLED, State::SUCCEEDED, State::FAILED, State::EXPIRED]);
    assert!(positions(&feed).is_sorted_by(|a, b| a < b));
    assert_eq!(feed[3].position, world.head());
    assert!(feed[0].position > Position(0));
    for outcome in feed {
        assert_eq!(Some(&*outcome.job), world.find(outcome.job.id.as_str(), View::Result).await.as_ref());
    }
}

pub async fn outcomes_of_a_batch_keep_its_order(open: Open) {
    let world = World::new(open).await;
    world.group((0..20).map(|n| job(&format!("job-{n}")))).await.unwrap();
    let mut leases = world.claim(World::wish(20)).await;
    leases.reverse();
    let reports = leases.iter().map(|leased| World::report(leased, Report::Succeeded(Payload::none())));
    world.store().settle(world.now, reports.collect()).await.unwrap();
    assert_eq!(outcome_ids(&world.feed().await), leased_ids(&leases));
}

pub async fn a_page_of_outcomes_follows_the_other(open: Open) {
    let mut world = World::new(open).await;
    for n in 0..5 {
        world.reach(job(&format!("job-{n}")), State::SUCCEEDED).await;
    }
    let all = world.feed().await;
    let store = world.store();
    let first = store.outcomes(Position(0), 2, &Queues::All).await.unwrap();
    assert_eq!((outcome_ids(&first.outcomes), first.upto), (outcome_ids(&all[..2]), all[1].position));
    let last = store.outcomes(all[3].position, 2, &Queues::All).await.unwrap();
    assert_eq!((outcome_ids(&last.outcomes), last.upto), (outcome_ids(&all[4..]), world.head()));
    let none = store.outcomes(world.head(), 2, &Queues::All).await.unwrap();
    assert_eq!((none.outcomes.len(), none.upto), (0, world.head()));
    assert_eq!(none.start, store.feed_start().await.unwrap());
}

pub async fn a_page_may_be_of_some_queues_alone(open: Open) {
    let mut world = World::new(open).await;
    for (n, queue) in ["mail", "images", "images/small", "mail", "mail"].into_iter().enumerate() {
        world.reach(job(&format!("job-{n}")).queue(queue), State::SUCCEEDED).await;
    }
    let all = world.feed().await;
    let (store, prefix) = (world.store(), NamePattern::Prefix("images/".into()));
    let mail = Queues::from(&"mail".parse().unwrap());
    let page = store.outcomes(Position(0), 10, &mail).await.unwrap();
    assert_eq!(
        (outcome_ids(&page.outcomes), page.upto),
        (outcome_ids(&[all[0].clone(), all[3].clone(), all[4].clone()]), world.head())
    );
    // Rows are counted, whosever they are, and what was looked at is not looked at again.
    let page = store.outcomes(Position(0), 3, &mail).await.unwrap();
    assert_eq!((outcome_ids(&page.outcomes), page.upto), (outcome_ids(&all[..1]), all[2].position));
    let small = Queues::Only([prefix, NamePattern::Exact("nobody's".into())].into());
    let page = store.outcomes(all[0].position, 10, &small).await.unwrap();
    assert_eq!((outcome_ids(&page.outcomes), page.upto), (outcome_ids(&all[2..3]), world.head()));
    let page = store.outcomes(Position(0), 10, &Queues::Only([].into())).await.unwrap();
    assert_eq!((page.outcomes.len(), page.upto), (0, world.head()));
}

pub async fn what_was_deleted_is_left_out(open: Open) {
    let mut world = World::new(open).await;
    for n in 0..5 {
        world.reach(job(&format!("job-{n}")), State::SUCCEEDED).await;
    }
    let all = world.feed().await;
    for n in [1, 4] {
        world.delete(&format!("job-{n}")).await.unwrap();
    }
    assert_eq!(outcome_ids(&world.feed().await), ["job-0", "job-2", "job-3"]);
    // Looked at up to the head, although the last one is gone.
    let page = world.store().outcomes(all[3].position, 10, &Queues::All).await.unwrap();
    assert_eq!((page.outcomes.len(), page.upto), (0, all[4].position));
    // Its position does not come again.
    world.reach(job("new"), State::SUCCEEDED).await;
    assert!(world.head() > all[4].position);
}

pub async fn every_run_has_its_outcome(open: Open) {
    let mut world = World::new(open).await;
    let failed = world.start(job("a").max_attempts(1)).await;
    world.fail(&failed, busy()).await;
    let first = world.find("a", View::Result).await.unwrap();
    world.sleep(secs(1));
    world.retry("a").await.unwrap();
    let leased = world.take().await;
    world.succeed(&leased).await;
    let feed = world.feed().await;
    assert_eq!(outcome_ids(&feed), ["a", "a"]);
    assert_eq!(*feed[0].job, first);
    assert_eq!((feed[0].job.state, feed[0].job.run), (State::FAILED, 1));
    assert_eq!((feed[1].job.state, feed[1].job.run), (State::SUCCEEDED, 2));
    assert_eq!(feed[1].job.output.as_ref().unwrap().bytes(), "out");
}

pub async fn a_page_of_outcomes_is_bounded_in_bytes(open: Open) {
    let world = World::new(open).await;
    for n in 0..12 {
        let leased = world.start(job(&format!("job-{n}"))).await;
        let output = Payload::new(Payload::BYTES, vec![0; 1 << 20]);
        world.settle(World::report(&leased, Report::Succeeded(output))).await.unwrap();
    }
    let page = world.store().outcomes(Position(0), 100, &Queues::All).await.unwrap();
    assert!((1..=5).contains(&page.outcomes.len()), "{}", page.outcomes.len());
    assert_eq!(page.upto, page.outcomes.last().unwrap().position);
    assert_eq!(world.feed().await.len(), 12);
    assert_eq!(existing(&world, Filter::default()).await.len(), 12);
}

pub async fn existing_shows_the_newest_of_final_jobs(open: Open) {
    let mut world = World::new(open).await;
    for name in ["a", "b", "c", "d", "e"] {
        world.reach(job(name).label("name", name), State::FAILED).await;
    }
    // Ended twice; live again; deleted.
    world.retry("b").await.unwrap();
    world.cancel("b").await.unwrap();
    world.retry("c").await.unwrap();
    world.delete("d").await.unwrap();
    let outcomes = existing(&world, Filter::default()).await;
    assert_eq!(outcome_ids(&outcomes), ["a", "e", "b"]);
    assert_eq!((outcomes[2].job.run, outcomes[2].position), (2, world.head()));
    for outcome in &outcomes {
        assert_eq!(Some(&*outcome.job), world.find(outcome.job.id.as_str(), View::Result).await.as_ref());
    }
    let states = Filter { states: vec![State::CANCELLED], ..Filter::default() };
    assert_eq!(outcome_ids(&existing(&world, states).await), ["b"]);
    let labels = [("name".to_owned(), LabelMatch::Equals("e".into()))].into();
    assert_eq!(outcome_ids(&existing(&world, Filter { labels, ..Filter::default() }).await), ["e"]);
    let job_ids = ["e", "c", "d", "b", "none"].map(id).into_iter().collect();
    assert_eq!(outcome_ids(&existing(&world, Filter { job_ids, ..Filter::default() }).await), ["e", "b"]);
}

pub async fn existing_stays_in_its_bounds(open: Open) {
    let mut world = World::new(open).await;
    for name in ["a", "b", "c", "d"] {
        world.reach(job(name), State::FAILED).await;
    }
    let at = positions(&world.feed().await);
    world.retry("b").await.unwrap();
    world.cancel("b").await.unwrap();
    let all = ["a", "b", "c", "d"].map(id).into_iter().collect();
    for filter in [Filter::default(), Filter { job_ids: all, ..Filter::default() }] {
        let store = world.store();
        let page = store.existing(at[0], at[2], &filter, 100).await.unwrap();
        // The newest outcome of b comes later: it is not told by an older one.
        assert_eq!((outcome_ids(&page.outcomes), page.upto), (vec!["c".to_owned()], at[2]));
        let page = store.existing(at[0], world.head(), &filter, 1).await.unwrap();
        assert_eq!((outcome_ids(&page.outcomes), page.upto), (vec!["c".to_owned()], at[2]));
        let page = store.existing(at[2], world.head(), &filter, 100).await.unwrap();
        assert_eq!(outcome_ids(&page.outcomes), ["d", "b"]);
        assert_eq!(page.upto, world.head());
    }
}

pub async fn a_deletion_tells_up_to_where_outcomes_are_gone(open: Open) {
    let world = World::new(open).await;
    let mut deleted = 0;
    for name in (0..50).map(|n| format!("job-{n}")) {
        world.add(job(&name)).await;
        let before = world.head();
        // They may be one transaction: then the end of the job has been told to nobody yet.
        let (cancelled, gone) = tokio::join!(world.cancel(&name), world.delete(&name));
        cancelled.unwrap();
        if let Ok(upto) = gone {
            assert!(before < upto && upto <= world.head());
            assert!(world.feed_after(before).await.is_empty());
            deleted += 1;
        }
    }
    println!("{deleted} were deleted as they ended");
    // The writer of the embedded store takes them in turn; else the delete mostly comes too early.
    assert!(deleted > 0 || world.store().is_shared());
    world.add(job("last")).await;
    world.cancel("last").await.unwrap();
    assert_eq!(world.delete("last").await.unwrap(), world.head());
}

pub async fn a_time_has_a_position(open: Open) {
    let mut world = World::with(open, |config| config.watch.retention = secs(35)).await;
    let begin = world.now;
    assert_eq!(world.store().position_at(begin).await.unwrap(), Position(0));
    for name in ["a", "a2", "b", "c", "d"] {
        if name != "a2" {
            world.sleep(secs(10));
        }
        world.reach(job(name), State::CANCELLED).await;
    }
    let at = positions(&world.feed().await);
    world.delete("b").await.unwrap();
    let position = async |after: u64| world.store().position_at(begin.after(secs(after))).await.unwrap();
    assert_eq!(position(0).await, Position(0));
    assert_eq!(position(9).await, Position(0));
    assert_eq!(position(10).await, at[1]);
    assert_eq!(position(19).await, at[1]);
    // What was at 20 is deleted.
    assert!((at[1]..=at[2]).contains(&position(25).await));
    assert_eq!(position(30).await, at[3]);
    assert_eq!(position(39).await, at[3]);
    assert_eq!(position(40).await, at[4]);
    assert_eq!(position(9999).await, at[4]);
    // What the feed has dropped is not a place any more.
    let now = begin.after(secs(45));
    assert!(!world.store().tick(now).await.unwrap().more);
    assert_eq!(world.store().position_at(begin).await.unwrap(), at[1]);
}

/// Callers may come in another order than that of their times.
pub async fn a_time_passes_nothing_over(open: Open) {
    let mut world = World::new(open).await;
    let begin = world.now;
    let (one, other) = (world.start(job("a")).await, world.start(job("b")).await);
    world.sleep(secs(10));
    world.succeed(&one).await;
    world.now = begin.after(secs(5));
    world.succeed(&other).await;
    let at = world.store().position_at(begin.after(secs(9))).await.unwrap();
    assert!(outcome_ids(&world.feed_after(at).await).contains(&"a".to_owned()));
}

pub async fn the_head_is_told(open: Open) {
    let mut world = World::new(open).await;
    let store = world.store();
    let mut head = store.signals().head.subscribe();
    let leased = world.start(job("a")).await;
    assert!(!head.has_changed().unwrap());
    world.succeed(&leased).await;
    // Before the answer.
    assert!(head.has_changed().unwrap());
    let told = *head.borrow_and_update();
    assert_eq!(told, world.feed().await.last().unwrap().position);
    for state in [State::CANCELLED, State::EXPIRED, State::FAILED] {
        world.reach(job(&state.to_string()), state).await;
        assert_eq!(*head.borrow_and_update(), world.feed().await.last().unwrap().position);
    }
    world.delete("FAILED").await.unwrap();
    assert!(!head.has_changed().unwrap());
}

pub async fn outcomes_that_are_told_are_those_that_are_read(open: Open) {
    let mut world = World::new(open).await;
    let store = world.store();
    let mut told = store.signals().outcomes.subscribe();
    let first = job("labelled").label("a", "b").priority(3).payload("in").request("r");
    for new in [first, job("plain"), job("kept").spec(|spec| spec.retention = Some(secs(6000))), job("twice")]
    {
        let leased = world.start(new).await;
        world.sleep(secs(1));
        if leased.job.id.as_str() == "twice" {
            world.fail(&leased, busy()).await;
            world.pass(secs(1000)).await;
            let leased = world.take().await;
            world
                .settle(World::report(&leased, Report::Failed(JobError::permanent("no", ""))))
                .await
                .unwrap();
        } else {
            world
                .settle(World::report(&leased, Report::Succeeded(Payload::new("text/x", "out"))))
                .await
                .unwrap();
        }
    }
    let feed = world.feed().await;
    let mut seen = 0;
    while let Ok(outcomes) = told.try_recv() {
        for outcome in outcomes.iter() {
            let read = feed.iter().find(|read| read.position == outcome.position).unwrap();
            assert_eq!((&outcome.job, outcome.position.0), (&read.job, seen + 1));
            seen += 1;
        }
    }
    assert_eq!(seen, 4);
}

pub async fn what_may_be_due_is_told(open: Open) {
    let mut world = World::new(open).await;
    let store = world.store();
    let mut due = store.signals().due.subscribe();
    let mut told = || {
        let changed = due.has_changed().unwrap();
        due.borrow_and_update();
        changed
    };
    world.add(job("now")).await;
    assert!(told());
    world.add(job("later").delay(secs(100))).await;
    assert!(told());
    let leased = world.take().await;
    world.fail(&leased, busy()).await;
    assert!(told());
    world.retry("now").await.unwrap();
    assert!(told());
    let leased = world.take().await;
    told();
    world.release(&leased, Duration::ZERO).await;
    assert!(told());
    world.cancel("now").await.unwrap();
    told();
    world.retry("now").await.unwrap();
    assert!(told());
    world.pass(secs(100)).await;
    assert!(told());
    world.list(Filter::default()).await;
    assert!(!told());
}

pub async fn changes_are_told_while_somebody_listens(open: Open) {
    let world = World::new(open).await;
    world.add(job("before")).await;
    let store = world.store();
    let mut changed = store.signals().changed.subscribe();
    world.cancel("before").await.unwrap();
    let leased = world.start(job("a")).await;
    world.fail(&leased, busy()).await;
    world.cancel("a").await.unwrap();
    let mut told = Vec::new();
    while let Ok(job) = changed.try_recv() {
        told.push(job.to_string());
    }
    // Its outcome is in the feed, and not told here.
    assert_eq!(told, ["a", "a", "a"]);
}

pub async fn counts_follow_the_jobs(open: Open) {
    let mut world = World::new(open).await;
    assert!(world.store().counts().await.unwrap().is_empty());
    for state in State::ALL.into_iter().rev() {
        world.reach(job(&state.to_string()).queue("q").kind("echo"), state).await;
        world.recount().await;
    }
    for state in State::ALL {
        assert_eq!(world.count("q", KIND, state).await, 1, "{state}");
    }
    // Ends are counted for ever.
    world.retry("FAILED").await.unwrap();
    assert_eq!(world.count("q", KIND, State::FAILED).await, 1);
    assert_eq!(world.count("q", KIND, State::QUEUED).await, 2);
    world.cancel("FAILED").await.unwrap();
    world.delete("FAILED").await.unwrap();
    assert_eq!(world.count("q", KIND, State::CANCELLED).await, 2);
    world.add(job("else").queue("q").kind("else")).await;
    assert_eq!(world.count("q", "else", State::QUEUED).await, 1);
    let before = world.store().counts().await.unwrap();
    world.take().await;
    world.cancel("QUEUED").await.unwrap();
    world.recount().await;
    assert_ne!(world.store().counts().await.unwrap(), before);
}
