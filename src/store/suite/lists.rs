use std::collections::BTreeSet;

use super::*;

fn query(limit: usize) -> ListQuery {
    ListQuery { filter: Filter::default(), view: View::Basic, limit, oldest_first: false, after: None }
}

async fn matching(world: &World, filter: Filter) -> Vec<String> {
    let newest_first = ids(&world.list(filter.clone()).await);
    let mut oldest_first = Vec::new();
    let mut query = ListQuery { filter, oldest_first: true, ..query(2) };
    loop {
        let page = world.page(query.clone()).await;
        oldest_first.extend(ids(&page.jobs));
        query.after = Some(match page.next {
            Some(next) => next,
            None => break,
        });
    }
    oldest_first.reverse();
    assert_eq!(newest_first, oldest_first);
    newest_first
}

fn exact(names: &[&str]) -> Vec<NamePattern> {
    names.iter().map(|&name| NamePattern::Exact(name.into())).collect()
}

fn prefix(name: &str) -> Vec<NamePattern> {
    vec![NamePattern::Prefix(name.into())]
}

pub async fn the_newest_comes_first(open: Open) {
    let world = World::new(open).await;
    for name in ["a", "b", "c"] {
        world.add(job(name)).await;
    }
    assert_eq!(matching(&world, Filter::default()).await, ["c", "b", "a"]);
}

pub async fn jobs_are_found_by_id(open: Open) {
    let world = World::new(open).await;
    world.group(["a", "b", "c", "d"].map(job)).await.unwrap();
    let filter =
        |names: &[&str]| Filter { job_ids: names.iter().map(|name| id(name)).collect(), ..Filter::default() };
    assert_eq!(matching(&world, filter(&["a", "none", "d", "c"])).await, ["d", "c", "a"]);
    let other = Filter { queues: exact(&["other"]), ..filter(&["a"]) };
    assert!(matching(&world, other).await.is_empty());
}

pub async fn jobs_are_found_by_queue_and_kind(open: Open) {
    let world = World::new(open).await;
    for (name, queue, kind) in [
        ("a", "acme", "mail"),
        ("b", "acme/mail", "mail.send"),
        ("c", "acme/web", "web.get"),
        ("d", "acme2", "mail.send"),
    ] {
        world.add(job(name).queue(queue).kind(kind)).await;
    }
    let queues = |queues| Filter { queues, ..Filter::default() };
    assert_eq!(matching(&world, queues(exact(&["acme"]))).await, ["a"]);
    assert_eq!(matching(&world, queues(exact(&["acme", "acme2"]))).await, ["d", "a"]);
    assert_eq!(matching(&world, queues(prefix("acme/"))).await, ["c", "b"]);
    assert_eq!(matching(&world, queues(prefix(""))).await, ["d", "c", "b", "a"]);
    assert!(matching(&world, queues(prefix("%"))).await.is_empty());
    let kinds = |kinds| Filter { kinds, ..queues(prefix("acme/")) };
    assert_eq!(matching(&world, kinds(prefix("mail"))).await, ["b"]);
    assert_eq!(matching(&world, kinds([exact(&["mail.send"]), prefix("web")].concat())).await, ["c", "b"]);
    assert!(matching(&world, kinds(exact(&["mail"]))).await.is_empty());
}

pub async fn jobs_are_found_by_state(open: Open) {
    let mut world = World::new(open).await;
    for state in State::ALL.into_iter().rev() {
        world.reach(job(&state.to_string()), state).await;
    }
    let states = |states: &[State]| Filter { states: states.to_vec(), ..Filter::default() };
    for state in State::ALL {
        assert_eq!(matching(&world, states(&[state])).await, [state.to_string()]);
    }
    let found = matching(&world, states(&[State::RUNNING, State::QUEUED])).await;
    assert_eq!(found, ["QUEUED", "RUNNING"]);
    assert_eq!(matching(&world, states(&[State::FAILED, State::EXPIRED])).await, ["FAILED", "EXPIRED"]);
    assert_eq!(matching(&world, states(&[State::SUCCEEDED, State::RUNNING])).await, ["RUNNING", "SUCCEEDED"]);
    assert_eq!(matching(&world, states(&State::ALL)).await.len(), 8);
    // A job that was final, but is not any more.
    world.retry("FAILED").await.unwrap();
    assert!(matching(&world, states(&[State::FAILED])).await.is_empty());
    assert_eq!(matching(&world, states(&[State::QUEUED])).await, ["QUEUED", "FAILED"]);
    // One that ended twice is there once.
    world.cancel("FAILED").await.unwrap();
    assert_eq!(matching(&world, states(&[State::CANCELLED])).await, ["FAILED", "CANCELLED"]);
    let last = [State::SUCCEEDED, State::FAILED, State::CANCELLED, State::EXPIRED];
    assert_eq!(matching(&world, states(&last)).await.len(), 4);
}

pub async fn jobs_are_found_by_label(open: Open) {
    let world = World::new(open).await;
    world.add(job("a").label("tenant", "acme").label("urgent", "")).await;
    world.add(job("b").label("tenant", "acme2")).await;
    world.add(job("c")).await;
    let labels = |labels: &[(&str, LabelMatch)]| Filter {
        labels: labels.iter().map(|(name, wanted)| ((*name).to_owned(), wanted.clone())).collect(),
        ..Filter::default()
    };
    let equals = |value: &str| LabelMatch::Equals(value.into());
    assert_eq!(matching(&world, labels(&[("tenant", LabelMatch::Present)])).await, ["b", "a"]);
    assert_eq!(matching(&world, labels(&[("tenant", equals("acme"))])).await, ["a"]);
    assert_eq!(matching(&world, labels(&[("urgent", equals(""))])).await, ["a"]);
    assert!(matching(&world, labels(&[("tenant", equals(""))])).await.is_empty());
    let both = labels(&[("tenant", equals("acme2")), ("urgent", LabelMatch::Present)]);
    assert!(matching(&world, both).await.is_empty());
}

pub async fn jobs_are_found_by_submit_time(open: Open) {
    let mut world = World::new(open).await;
    let mut times = Vec::new();
    for name in ["a", "b", "c"] {
        world.add(job(name)).await;
        times.push(world.now);
        world.sleep(secs(1));
    }
    let between = |after: Option<usize>, before: Option<usize>| Filter {
        submitted_after: after.map(|at| times[at]),
        submitted_before: before.map(|at| times[at]),
        ..Filter::default()
    };
    assert_eq!(matching(&world, between(Some(0), None)).await, ["c", "b"]);
    assert_eq!(matching(&world, between(None, Some(2))).await, ["b", "a"]);
    assert_eq!(matching(&world, between(Some(0), Some(2))).await, ["b"]);
    assert!(matching(&world, between(Some(1), Some(2))).await.is_empty());
}

pub async fn a_page_ends_at_its_limit(open: Open) {
    let world = World::new(open).await;
    world.group((0..5).map(|n| job(&format!("job-{n}")))).await.unwrap();
    let page = world.page(query(5)).await;
    assert_eq!((page.jobs.len(), page.next), (5, None));
    let page = world.page(query(2)).await;
    assert_eq!((ids(&page.jobs), page.next.is_some()), (vec!["job-4".into(), "job-3".into()], true));
    let page = world.page(ListQuery { after: page.next, ..query(3) }).await;
    assert_eq!(ids(&page.jobs), ["job-2", "job-1", "job-0"]);
    if page.next.is_some() {
        let last = world.page(ListQuery { after: page.next, ..query(2) }).await;
        assert_eq!((last.jobs.len(), last.next), (0, None));
    }
}

/// Jobs that are there from the first page to the last come once each, whatever else comes and goes.
pub async fn pages_lose_and_repeat_nothing(open: Open) {
    for oldest_first in [false, true] {
        let world = World::new(open).await;
        world.group((0..30).map(|n| job(&format!("old-{n}")))).await.unwrap();
        world.group((0..5).map(|n| job(&format!("gone-{n}")))).await.unwrap();
        world.group((30..40).map(|n| job(&format!("old-{n}")))).await.unwrap();
        let (mut seen, mut after, mut round) = (Vec::new(), None, 0);
        loop {
            let page = world.page(ListQuery { after, oldest_first, ..query(4) }).await;
            seen.extend(ids(&page.jobs));
            after = page.next;
            if after.is_none() {
                break;
            }
            if round < 5 {
                world.add(job(&format!("new-{round}"))).await;
                world.cancel(&format!("gone-{round}")).await.unwrap();
                world.delete(&format!("gone-{round}")).await.unwrap();
                world.cancel(&format!("old-{}", round * 7)).await.unwrap();
            }
            round += 1;
        }
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!(unique.len(), seen.len());
        assert_eq!(seen.iter().filter(|name| name.starts_with("old")).count(), 40);
    }
}

pub async fn a_page_of_few_matches_ends(open: Open) {
    let world = World::new(open).await;
    for batch in 0..6 {
        let names = (0..1000).map(|n| job(&format!("job-{batch}-{n}")));
        world.group(names).await.unwrap();
    }
    world.add(job("rare").label("rare", "")).await;
    let labels = [("rare".to_owned(), LabelMatch::Present)].into();
    let filter = Filter { labels, ..Filter::default() };
    assert_eq!(ids(&world.list(filter.clone()).await), ["rare"]);
    let mut query = ListQuery { filter, oldest_first: true, ..query(1) };
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = world.page(query.clone()).await;
        found.extend(ids(&page.jobs));
        pages += 1;
        assert!(pages < 100);
        query.after = Some(match page.next {
            Some(next) => next,
            None => break,
        });
    }
    assert_eq!(found, ["rare"]);
}

pub async fn a_page_shows_its_view(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::SUCCEEDED).await;
    world.reach(job("b"), State::BACKING_OFF).await;
    for view in [View::Basic, View::Result, View::Full] {
        let page = world.page(ListQuery { view, ..query(10) }).await;
        for job in page.jobs {
            assert_eq!(Some(&job), world.find(job.id.as_str(), view).await.as_ref());
        }
    }
}

pub async fn a_page_is_bounded_in_bytes(open: Open) {
    let world = World::new(open).await;
    for n in 0..12 {
        world.add(job(&format!("job-{n}")).payload(vec![n; 1 << 20])).await;
    }
    let (mut seen, mut query) = (0, ListQuery { view: View::Full, ..query(100) });
    loop {
        let page = world.page(query.clone()).await;
        assert!((1..=4).contains(&page.jobs.len()), "{} MiB on a page", page.jobs.len());
        seen += page.jobs.len();
        query.after = Some(match page.next {
            Some(next) => next,
            None => break,
        });
    }
    assert_eq!(seen, 12);
}

pub async fn a_page_knows_where_to_watch_from(open: Open) {
    let mut world = World::new(open).await;
    world.reach(job("a"), State::SUCCEEDED).await;
    let leased = world.start(job("b")).await;
    let page = world.page(query(10)).await;
    assert_eq!(page.position, world.head());
    world.succeed(&leased).await;
    assert_eq!(outcome_ids(&world.feed_after(page.position).await), ["b"]);
}
