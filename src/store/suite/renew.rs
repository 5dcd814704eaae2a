use super::*;

fn progress(world: &World, fraction: f64) -> Progress {
    let details = Some(Payload::new(Payload::JSON, format!("{{\"at\":{fraction}}}")));
    Progress { fraction, note: format!("{fraction} of it"), details, update_time: world.now }
}

pub async fn a_renewal_prolongs_the_lease(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    assert_eq!(world.tick().await.next, Some(world.now.after(secs(30))));
    world.sleep(secs(29));
    assert_eq!(world.renew(leased.lease, secs(30), None).await, Renewed::Held);
    assert_eq!(world.pass(secs(29)).await.next, Some(world.now.after(secs(1))));
    assert_eq!(world.state("a").await, State::RUNNING);
    assert_eq!(world.pass(secs(1)).await.revoked, [leased.lease]);
    assert_eq!(world.renew(leased.lease, secs(30), None).await, Renewed::Lost);
    assert_eq!(world.state("a").await, State::BACKING_OFF);
}

pub async fn a_renewal_is_not_a_transition(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.renew(leased.lease, secs(99), None).await;
    assert_eq!(world.get("a").await, *leased.job);
}

pub async fn a_lease_that_nobody_found_over_can_be_renewed(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.sleep(secs(100));
    assert_eq!(world.renew(leased.lease, secs(30), None).await, Renewed::Held);
    assert_eq!(world.tick().await.revoked, []);
}

pub async fn a_renewal_tells_of_a_cancel(open: Open) {
    let world = World::new(open).await;
    let leased = world.start(job("a")).await;
    world.cancel("a").await.unwrap();
    for _ in 0..2 {
        assert_eq!(world.renew(leased.lease, secs(30), None).await, Renewed::Cancelled);
    }
    assert!(world.get("a").await.cancel_requested);
}

pub async fn a_lease_leads_to_its_job(open: Open) {
    let mut world = World::new(open).await;
    let over = world.start(job("a")).await;
    world.release(&over, Duration::ZERO).await;
    let held = world.take().await;
    let progress = progress(&world, 0.5);
    world.renew(held.lease, secs(30), Some(progress.clone())).await;
    let unknown = LeaseId { job: 99, fence: held.lease.fence };
    let jobs = world.store().leased(vec![over.lease, held.lease, unknown], true).await.unwrap();
    let there = Job { progress: Some(progress), ..(*held.job).clone() };
    assert_eq!(jobs, [None, Some(there.clone()), None]);
    let there = Job { spec: there.spec.omit_payload(), ..there };
    assert_eq!(world.store().leased(vec![held.lease], false).await.unwrap(), [Some(there)]);
    for lease in [over.lease, held.lease] {
        assert_eq!(world.store().lease_job(lease).await.unwrap(), Some((held.job.id.clone(), false)));
    }
    assert_eq!(world.store().lease_job(unknown).await.unwrap(), None);
    world.pass(secs(30)).await;
    assert_eq!(world.store().leased(vec![held.lease], true).await.unwrap(), [None]);
    world.succeed(&held).await;
    assert_eq!(world.store().leased(vec![held.lease], true).await.unwrap(), [None]);
    for (lease, newest) in [(over.lease, false), (held.lease, true)] {
        assert_eq!(world.store().lease_job(lease).await.unwrap(), Some((held.job.id.clone(), newest)));
    }
}

pub async fn a_lost_lease_is_not_renewed(open: Open) {
    let mut world = World::new(open).await;
    let released = world.start(job("a")).await;
    world.release(&released, Duration::ZERO).await;
    let held = world.take().await;
    let expired = world.start(job("b")).await;
    world.sleep(secs(29));
    world.renew(held.lease, secs(30), None).await;
    world.pass(secs(1)).await;
    let renewals = [released.lease, held.lease, expired.lease, LeaseId { job: 99, fence: 1 }];
    let until = Some(world.now.after(secs(30)));
    let progress = Some(progress(&world, 0.5));
    let renewals =
        renewals.map(|lease| Renewal { lease, until, progress: progress.clone() }).into_iter().collect();
    let renewed = world.store().renew(world.now, renewals).await.unwrap();
    assert_eq!(renewed, [Renewed::Lost, Renewed::Held, Renewed::Lost, Renewed::Lost]);
    assert_eq!(world.get("a").await.progress, progress);
    assert_eq!(world.get("b").await.progress, None);
}

pub async fn the_newest_progress_is_seen(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    assert_eq!(leased.job.progress, None);
    for fraction in [0.25, 0.5, 1.0] {
        world.sleep(secs(1));
        let progress = progress(&world, fraction);
        world.renew(leased.lease, secs(30), Some(progress.clone())).await;
        assert_eq!(world.get("a").await.progress, Some(progress));
    }
    // A renewal without news leaves it, and one that only brings news leaves the lease.
    world.renew(leased.lease, secs(30), None).await;
    assert_eq!(world.get("a").await.progress.unwrap().fraction, 1.0);
    let news = Renewal { lease: leased.lease, until: None, progress: Some(progress(&world, 0.5)) };
    assert_eq!(world.store().renew(world.now, vec![news]).await.unwrap(), [Renewed::Held]);
    assert_eq!(world.get("a").await.progress.unwrap().fraction, 0.5);
    world.pass(secs(29)).await;
    assert_eq!(world.state("a").await, State::RUNNING);
    world.pass(secs(1)).await;
    assert_eq!(world.state("a").await, State::BACKING_OFF);
}

pub async fn progress_survives_a_lost_lease(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a")).await;
    let progress = progress(&world, 0.75);
    world.renew(leased.lease, secs(30), Some(progress.clone())).await;
    world.pass(secs(30)).await;
    assert_eq!(world.get("a").await.progress.as_ref(), Some(&progress));
    world.pass(secs(60)).await;
    let next = world.take().await;
    assert_eq!(next.job.progress, Some(progress));
    world.succeed(&next).await;
    assert_eq!(world.get("a").await.progress, None);
}
