//! A damaged body is not handed out, and is no reason to stop.

use super::*;
use crate::{
    job::{Cause, Error, Filter, Payload, Report, State, View},
    store::{
        Position,
        sqlite::verify,
        suite::{busy, drawn, id, job, leased_ids, secs},
    },
};

fn damage_input(world: &World, name: &str) {
    assert_eq!(tamper(world, "UPDATE job SET payload = x'ffff' WHERE id = ?1", [name]), 1);
}

fn damage_output(world: &World) {
    assert_eq!(tamper(world, "UPDATE done SET output = x'ff' WHERE output IS NOT NULL", []), 1);
}

#[tokio::test]
async fn a_damaged_input_fails_its_job_only() {
    let mut world = World::new(OPEN).await;
    for name in ["a", "b", "c"] {
        world.add(job(name)).await;
    }
    damage_input(&world, "b");
    // What the writer has in memory is sound.
    world.reopen().await;
    assert_eq!(leased_ids(&world.claim(World::wish(9)).await), ["a", "c"]);
    let there = world.find("b", View::Result).await.unwrap();
    let error = there.error.unwrap();
    assert_eq!((there.state, error.cause), (State::FAILED, Cause::Internal));
    assert_eq!((error.code.as_str(), error.retryable), ("jobwire.data_loss", false));
    world.recount().await;
}

#[tokio::test]
async fn a_damaged_input_is_not_shown() {
    let world = World::new(OPEN).await;
    world.add(job("a")).await;
    damage_input(&world, "a");
    let full = world.store().get(vec![id("a")], View::Full).await;
    assert!(matches!(full, Err(Error::DataLoss(_))), "{full:?}");
    assert!(world.find("a", View::Result).await.is_some());
    assert_eq!(world.list(Filter::default()).await.len(), 1);
}

#[tokio::test]
async fn a_repeat_of_a_damaged_job_is_refused() {
    let world = World::new(OPEN).await;
    world.add(job("a")).await;
    damage_input(&world, "a");
    let replies = world.batch(vec![vec![job("b")], vec![job("a")], vec![job("c"), job("a")]]).await;
    assert!(replies[0].is_ok());
    assert!(matches!(replies[1], Err((0, Error::DataLoss(_)))), "{:?}", replies[1]);
    assert!(matches!(replies[2], Err((1, Error::DataLoss(_)))), "{:?}", replies[2]);
    assert_eq!(world.list(Filter::default()).await.len(), 2);
    world.recount().await;
}

#[tokio::test]
async fn a_damaged_output_is_not_shown() {
    let mut world = World::new(OPEN).await;
    world.reach(job("a").request("r"), State::SUCCEEDED).await;
    damage_output(&world);
    let lost = |error: Option<Error>| assert!(matches!(error, Some(Error::DataLoss(_))), "{error:?}");
    lost(world.store().get(vec![id("a")], View::Result).await.err());
    for told in [
        world.repeat(job("a")).await,
        world.repeat(drawn("b").request("r")).await,
        world.cancel("a").await.unwrap().job,
    ] {
        assert_eq!(told.output.unwrap().body, None);
    }
    assert!(world.find("a", View::Basic).await.is_some());
    // Nothing else is in the way.
    let leased = world.start(job("c")).await;
    world.fail(&leased, busy()).await;
    world.delete("a").await.unwrap();
    world.add(job("a")).await;
}

#[tokio::test]
async fn an_outcome_cannot_pass_for_another_one() {
    for change in ["state = 6", "error = '{}'", "content_type = 'text/html'", "run = 2", "held = 4"] {
        let mut world = World::new(OPEN).await;
        for name in ["a", "b"] {
            world.reach(job(name), State::SUCCEEDED).await;
        }
        tamper(&world, "DELETE FROM done WHERE held = 4", []);
        assert_eq!(tamper(&world, &format!("UPDATE done SET {change} WHERE held = 2"), []), 1, "{change}");
        for name in ["a", "b"] {
            let shown = world.store().get(vec![id(name)], View::Result).await;
            assert!(matches!(shown, Err(Error::DataLoss(_))), "{change}: {shown:?}");
        }
        assert!(!verify(&world.dir()).unwrap().problems.is_empty(), "{change}");
    }
}

/// What an outcome is found by, and what is told of it, may be damaged as well as its body.
#[tokio::test]
async fn a_damaged_outcome_is_no_reason_to_stop() {
    for damage in [
        "error = CAST(x'ff' AS TEXT)",
        "worker = CAST(x'ff' AS TEXT)",
        "ends = CAST(x'ff' AS TEXT)",
        "ends = '[1, 0]'",
        "held = 0",
        "held = -1",
        "held = held | 1 << 40",
    ] {
        let mut world = World::with(OPEN, |config| config.defaults.retention = secs(60)).await;
        let together = world.wanted([job("a"), job("b"), job("c")]).await;
        let reports = together.iter().map(|leased| World::report(leased, Report::Succeeded(Payload::none())));
        world.store().settle(world.now, reports.collect()).await.unwrap();
        let failed = world.start(job("failed").max_attempts(1)).await;
        world.fail(&failed, busy()).await;
        assert_eq!(tamper(&world, &format!("UPDATE done SET {damage}"), []), 2, "{damage}");
        for name in ["a", "failed"] {
            // Done, or refused for what it is.
            let told = [
                world.cancel(name).await.err(),
                world.retry(name).await.err(),
                world.delete(name).await.err(),
            ];
            for error in told.into_iter().flatten() {
                assert!(
                    matches!(error, Error::DataLoss(_) | Error::JobState { .. } | Error::JobNotFound { .. }),
                    "{damage}: {error:?}"
                );
            }
        }
        assert!(
            !verify(&world.dir()).unwrap().problems.is_empty() || damage.starts_with("worker"),
            "{damage}"
        );
        // Time goes on, and so does the store.
        world.pass(secs(100)).await;
        world.reopen().await;
        world.pass(secs(100)).await;
        world.add(job("new")).await;
    }
}

#[tokio::test]
async fn where_damaged_outputs_are_does_not_matter_to_those_who_do_not_ask() {
    let world = World::new(OPEN).await;
    let leased = world.wanted([job("a"), job("b")]).await;
    let reports =
        leased.iter().map(|leased| World::report(leased, Report::Succeeded(Payload::new("a/b", "out"))));
    world.store().settle(world.now, reports.collect()).await.unwrap();
    for damage in ["ends = '[2, 5]'", "ends = CAST(x'ff' AS TEXT)", "output = x'00'", "output = NULL"] {
        assert_eq!(tamper(&world, &format!("UPDATE done SET {damage}"), []), 1, "{damage}");
        assert_eq!(world.list(Filter::default()).await.len(), 2, "{damage}");
        let shown = world.store().get(vec![id("a")], View::Result).await;
        assert!(matches!(shown, Err(Error::DataLoss(_))), "{damage}: {shown:?}");
        let all = world.store().existing(Position(0), Position(2), &Filter::default(), 9).await.unwrap();
        let told: Vec<_> = world.feed().await.into_iter().chain(all.outcomes).collect();
        assert_eq!(told.len(), 4, "{damage}");
        for one in told {
            let output = one.job.output.as_ref().expect("it is left out, but there is one");
            assert_eq!(output.body, None, "{damage}");
        }
    }
}
