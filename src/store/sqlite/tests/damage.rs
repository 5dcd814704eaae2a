//! A damaged body is not handed out, and is no reason to stop.

use super::*;
use crate::{
    job::{Cause, Error, Filter, State, View},
    store::{
        sqlite::verify,
        suite::{busy, drawn, id, job, leased_ids},
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
