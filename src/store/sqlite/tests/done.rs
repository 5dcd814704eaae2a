//! Outcomes that share rows: nobody notices.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use rusqlite::Connection;

use super::{OPEN, tamper};
use crate::{
    job::{Error, Filter, JobError, Payload, Report, State, Timestamp, View},
    store::{
        Leased, ListQuery, Position, Queues,
        sqlite::{open::DATABASE, verify},
        suite::{World, busy, id, ids, job, outcome_ids, secs},
    },
};

/// Rows of `done`.
fn rows(world: &World) -> i64 {
    let connection = Connection::open(world.dir().join(DATABASE)).unwrap();
    connection.query_row("SELECT count(*) FROM done", [], |row| row.get(0)).unwrap()
}

fn name(n: usize) -> String {
    format!("job-{n:03}")
}

async fn wanted(world: &World, count: usize) -> Vec<Leased> {
    wanted_from(world, 0, count).await
}

async fn wanted_from(world: &World, first: usize, count: usize) -> Vec<Leased> {
    let leased = world.wanted((first..first + count).map(|n| job(&name(n)))).await;
    assert_eq!(leased.len(), count);
    leased
}

/// Ends them together. Their outputs are their ids.
async fn succeed(world: &World, leased: impl IntoIterator<Item = &Leased>) {
    let report = |leased: &Leased| {
        let output = Payload::new(Payload::TEXT, leased.job.id.to_string());
        World::report(leased, Report::Succeeded(output))
    };
    let settled = world.store().settle(world.now, leased.into_iter().map(report).collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
}

/// What the feed says: positions with ids. Every outcome of these jobs has its id as its output.
async fn told(world: &World) -> Vec<(i64, String)> {
    let told = world.feed().await.into_iter().map(|one| {
        assert_eq!(one.job.output.as_ref().unwrap().bytes(), one.job.id.as_str());
        (one.position.0, one.job.id.to_string())
    });
    told.collect()
}

async fn listed(world: &World, states: &[State], oldest_first: bool, limit: usize) -> Vec<String> {
    let filter = Filter { states: states.to_vec(), ..Filter::default() };
    let mut query = ListQuery { filter, view: View::Basic, limit, oldest_first, after: None };
    let mut all = Vec::new();
    loop {
        let page = world.page(query.clone()).await;
        all.extend(ids(&page.jobs));
        query.after = Some(match page.next {
            Some(next) => next,
            None => return all,
        });
    }
}

fn is_sound(world: &World) {
    assert_eq!(verify(&world.dir()).unwrap().problems, Vec::<String>::new());
}

#[tokio::test]
async fn successes_of_a_bundle_share_rows() {
    let world = World::new(OPEN).await;
    let mut leased = wanted(&world, 70).await;
    // In whatever order they are reported.
    leased.reverse();
    succeed(&world, &leased).await;
    // Numbers 1 to 31, 32 to 63, 64 to 70.
    assert_eq!(rows(&world), 3);
    let all: Vec<String> = (0..70).map(name).collect();
    let positions: Vec<(i64, String)> = (1..).zip(all.clone()).collect();
    assert_eq!(told(&world).await, positions);
    for name in &all {
        let job = world.get(name).await;
        assert_eq!((job.state, job.output.unwrap().bytes()), (State::SUCCEEDED, name.clone().into()));
        let basic = world.find(name, View::Basic).await.unwrap();
        assert_eq!(
            basic.output.unwrap(),
            Payload { content_type: Payload::TEXT.into(), size: 7, body: None }
        );
    }
    is_sound(&world);
}

#[tokio::test]
async fn what_is_not_alike_has_a_row_of_its_own() {
    let world = World::new(OPEN).await;
    let leased = world
        .wanted([
            job("plain"),
            job("kept").spec(|spec| spec.retention = Some(secs(60))),
            job("html"),
            job("failed"),
            job("large"),
            job("also-plain"),
        ])
        .await;
    let reports = [
        Report::Succeeded(Payload::none()),
        Report::Succeeded(Payload::none()),
        Report::Succeeded(Payload::new("text/html", "<p>")),
        Report::Failed(JobError::permanent("broken", "")),
        Report::Succeeded(Payload::new("text/html", vec![b'-'; 5000])),
        Report::Succeeded(Payload::none()),
    ];
    let settlements = leased.iter().zip(reports).map(|(leased, report)| World::report(leased, report));
    world.store().settle(world.now, settlements.collect()).await.unwrap();
    assert_eq!(rows(&world), 5);
    assert_eq!(world.get("large").await.output.unwrap().size, 5000);
    assert_eq!(world.get("html").await.output.unwrap().bytes(), "<p>");
    let failed = [State::FAILED];
    assert_eq!(listed(&world, &failed, true, 9).await, ["failed"]);
    assert_eq!(world.feed().await.len(), 6);
    is_sound(&world);
}

#[tokio::test]
async fn pages_may_begin_and_end_within_a_row() {
    let world = World::new(OPEN).await;
    let leased = wanted(&world, 50).await;
    succeed(&world, &leased[..40]).await;
    let all: Vec<String> = (0..50).map(name).collect();
    for limit in [1, 7, 31, 40, 100] {
        let mut after = Position(0);
        for chunk in all[..40].chunks(limit) {
            let page = world.store().outcomes(after, limit, &Queues::All).await.unwrap();
            assert_eq!(outcome_ids(&page.outcomes), chunk);
            assert_eq!(page.upto, Position(after.0 + chunk.len() as i64));
            let existing = world.store().existing(after, page.upto, &Filter::default(), limit).await.unwrap();
            assert_eq!(outcome_ids(&existing.outcomes), chunk);
            after = page.upto;
        }
        for (states, expected) in
            [(&[][..], &all[..]), (&[State::SUCCEEDED], &all[..40]), (&[State::RUNNING], &all[40..])]
        {
            assert_eq!(listed(&world, states, true, limit).await, expected);
            let newest_first: Vec<String> = expected.iter().rev().cloned().collect();
            assert_eq!(listed(&world, states, false, limit).await, newest_first);
        }
    }
}

#[tokio::test]
async fn one_of_a_row_can_leave() {
    let mut world = World::new(OPEN).await;
    succeed(&world, &wanted(&world, 10).await).await;
    for gone in [3, 7] {
        world.delete(&name(gone)).await.unwrap();
    }
    // Before, between, behind.
    assert_eq!(rows(&world), 3);
    let left: Vec<(i64, String)> =
        (0..10).filter(|n| ![3, 7].contains(n)).map(|n| (n as i64 + 1, name(n))).collect();
    for _ in 0..2 {
        assert_eq!(told(&world).await, left);
        assert!(world.find(&name(3), View::Basic).await.is_none());
        is_sound(&world);
        world.reopen().await;
    }
    // Its name is free.
    world.add(job(&name(3))).await;
    assert_eq!(world.state(&name(3)).await, State::QUEUED);
    world.recount().await;
}

#[tokio::test]
async fn retention_takes_whole_rows() {
    let mut world = World::with(OPEN, |config| config.defaults.retention = secs(60)).await;
    let leased = wanted(&world, 40).await;
    succeed(&world, &leased[..38]).await;
    world.fail(&leased[38], JobError::permanent("broken", "")).await;
    world.retry(&name(38)).await.unwrap();
    assert_eq!(rows(&world), 3);
    while world.pass(secs(61)).await.more {}
    assert_eq!(rows(&world), 0);
    assert_eq!(listed(&world, &[], true, 100).await, [name(38), name(39)]);
    world.recount().await;
    is_sound(&world);
}

#[tokio::test]
async fn a_cut_within_a_row_is_told_by_its_time() {
    let mut world = World::with(OPEN, |config| config.watch.max_events = 5).await;
    let leased = wanted(&world, 20).await;
    succeed(&world, &leased[..1]).await;
    world.pass(secs(1)).await;
    // Others than those of the bundle, which has got rows.
    succeed(&world, &world.wanted((20..40).map(|n| job(&name(n)))).await).await;
    let ended = world.now;
    world.pass(secs(1)).await;
    let start = world.store().feed_start().await.unwrap();
    assert_eq!((start.position, start.cut, start.time), (Position(16), ended, ended));
    let told = world.feed_after(start.position).await;
    assert_eq!(outcome_ids(&told), (35..40).map(name).collect::<Vec<_>>());
    assert_eq!(world.store().position_at(ended).await.unwrap(), Position(21));
}

#[tokio::test]
async fn a_damaged_row_is_refused_whole_and_stays_so() {
    let world = World::new(OPEN).await;
    succeed(&world, &wanted(&world, 3).await).await;
    let damage = "UPDATE done SET output = CAST(replace(output, 'job-001', 'job-009') AS BLOB)";
    assert_eq!(tamper(&world, damage, []), 1);
    for left in [&[0, 1, 2][..], &[0, 1]] {
        for &n in left {
            let shown = world.store().get(vec![id(&name(n))], View::Result).await;
            assert!(matches!(shown, Err(Error::DataLoss(_))), "{shown:?}");
            assert_eq!(world.state(&name(n)).await, State::SUCCEEDED);
        }
        // The feed goes on without what is lost.
        let feed = world.feed().await;
        assert_eq!(outcome_ids(&feed), left.iter().map(|&n| name(n)).collect::<Vec<_>>());
        assert!(feed.iter().all(|one| one.job.output.as_ref().is_some_and(|output| output.body.is_none())));
        assert_eq!(verify(&world.dir()).unwrap().problems.len(), left.len());
        let _ = world.delete(&name(2)).await;
    }
}

#[tokio::test]
async fn the_view_has_every_outcome_by_itself() {
    let mut world = World::new(OPEN).await;
    let leased = wanted(&world, 45).await;
    succeed(&world, leased.iter().step_by(2)).await;
    world.reach(job("empty"), State::CANCELLED).await;
    succeed(&world, leased.iter().skip(1).step_by(2)).await;
    let connection = Connection::open(world.dir().join(DATABASE)).unwrap();
    let mut view = connection.prepare("SELECT seq, num, output FROM outcome ORDER BY seq").unwrap();
    let seen = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let seen: Vec<(i64, i64, Option<Vec<u8>>)> =
        view.query_map([], seen).unwrap().collect::<Result<_, _>>().unwrap();
    let mut expected = Vec::new();
    for one in world.feed().await {
        let output = one.job.output.as_ref().map(|output| output.bytes().to_vec());
        let num = match one.job.id.as_str() {
            "empty" => 46,
            name => name[4..].parse::<i64>().unwrap() + 1,
        };
        expected.push((one.position.0, num, output));
    }
    assert_eq!((seen.len(), seen), (46, expected));
}

/// Calls of one moment after the other go into one transaction, while the clock goes on.
#[tokio::test]
async fn positions_grow_with_their_times() {
    let mut world = World::new(OPEN).await;
    for round in 0..20 {
        let leased = wanted_from(&world, 100 * round, 100).await;
        let settled = leased.chunks(3).enumerate().map(|(at, part)| {
            let reports = part.iter().enumerate().map(|(n, leased)| match (at + n) % 7 {
                0 => World::report(leased, Report::Failed(JobError::permanent("broken", ""))),
                _ => World::report(leased, Report::Succeeded(Payload::none())),
            });
            let (store, now) = (world.store(), Timestamp(world.now.0 + at as i64));
            let reports = reports.collect();
            async move { store.settle(now, reports).await.unwrap() }
        });
        join_all(settled).await;
        world.sleep(secs(1));
    }
    let times: Vec<_> = world.feed().await.iter().map(|one| one.job.finish_time).collect();
    assert_eq!(times.len(), 2000);
    assert!(times.is_sorted());
}

/// Whatever happens to some of a row, the others stay as they were told.
#[tokio::test]
async fn outcomes_stay_as_they_were_told() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(OPEN).await;
        let mut known: BTreeMap<i64, String> = BTreeMap::new();
        let mut next = 0;
        for _ in 0..15 {
            let count = random.usize(1..60);
            let mut leased = world.wanted((next..next + count).map(|n| job(&name(n)))).await;
            next += count;
            random.shuffle(&mut leased);
            let failing = leased.split_off(random.usize(0..=leased.len()));
            for part in leased.chunks(random.usize(1..40)) {
                succeed(&world, part).await;
            }
            for leased in failing.iter().take(2) {
                world.fail(leased, busy()).await;
            }
            let news = world.feed_after(Position(known.keys().next_back().copied().unwrap_or(0))).await;
            known.extend(news.iter().map(|one| (one.position.0, one.job.id.to_string())));
            for _ in 0..random.usize(0..5) {
                let Some((&position, _)) = known.iter().nth(random.usize(0..known.len().max(1))) else {
                    break;
                };
                let gone = known.remove(&position).unwrap();
                world.delete(&gone).await.unwrap();
            }
            if random.u8(0..4) == 0 {
                world.reopen().await;
            }
            assert_eq!(told(&world).await, known.clone().into_iter().collect::<Vec<_>>(), "seed {seed}");
            let done = listed(&world, &[State::SUCCEEDED], true, random.usize(1..50)).await;
            let mut expected: Vec<String> = known.values().cloned().collect();
            expected.sort();
            assert_eq!(done, expected, "seed {seed}");
        }
        is_sound(&world);
        world.recount().await;
    }
}
