use super::*;

pub async fn a_view_shows_what_was_asked_for(open: Open) {
    let mut world = World::new(open).await;
    let leased = world.start(job("a").payload("input")).await;
    world.fail(&leased, busy()).await;
    world.pass(secs(1)).await;
    let leased = world.take().await;
    world.succeed(&leased).await;
    let full = world.find("a", View::Full).await.unwrap();
    let result = world.find("a", View::Result).await.unwrap();
    let basic = world.find("a", View::Basic).await.unwrap();
    assert_eq!(full.spec.payload, Payload::new(Payload::TEXT, "input"));
    assert_eq!((full.output.as_ref(), full.attempts.len()), (Some(&Payload::new(Payload::TEXT, "out")), 1));
    // Sizes and types are always told.
    let input = full.spec.payload.omit_body();
    for job in [&result, &basic] {
        assert_eq!((&job.spec.payload, job.attempts.len()), (&input, 0));
        let mut expected = full.clone();
        expected.spec = job.spec.clone();
        expected.attempts.clear();
        expected.output = job.output.clone();
        assert_eq!(*job, expected);
    }
    assert_eq!(result.output, full.output);
    assert_eq!(basic.output, full.output.map(|output| output.omit_body()));
}

pub async fn jobs_come_at_the_places_of_their_ids(open: Open) {
    let world = World::new(open).await;
    world.group([job("a"), job("b")]).await.unwrap();
    let wanted = ["b", "none", "a", "b"].map(id).to_vec();
    let (jobs, _) = world.store().get(wanted, View::Basic).await.unwrap();
    let names: Vec<_> = jobs.iter().map(|job| job.as_ref().map(|job| job.id.as_str())).collect();
    assert_eq!(names, [Some("b"), None, Some("a"), Some("b")]);
}

pub async fn a_read_knows_the_head_of_the_feed(open: Open) {
    let world = World::new(open).await;
    for n in 0..3 {
        let leased = world.start(job(&format!("job-{n}"))).await;
        let (jobs, before) = world.store().get(vec![leased.job.id.clone()], View::Basic).await.unwrap();
        assert!(!jobs[0].as_ref().unwrap().state.is_final());
        world.succeed(&leased).await;
        let (_, after) = world.store().get(vec![], View::Basic).await.unwrap();
        assert!(after > before);
        assert_eq!(after, world.head());
        assert_eq!(outcome_ids(&world.feed_after(before).await), [leased.job.id.as_str()]);
    }
}

pub async fn every_answer_shows_the_same_job(open: Open) {
    let mut world = World::new(open).await;
    for state in State::ALL.into_iter().rev() {
        let full = world.reach(job(&state.to_string()), state).await;
        let name = full.id.as_str();
        let result = world.find(name, View::Result).await.unwrap();
        let basic = world.find(name, View::Basic).await.unwrap();
        assert_eq!(world.repeat(job(name).spec(|spec| *spec = (*full.spec).clone())).await, basic);
        assert_eq!(world.list(Filter::default()).await[0], basic);
        if state.is_final() {
            assert_eq!(world.cancel(name).await.unwrap().job, basic);
            assert_eq!(*world.feed().await.last().unwrap().job, result);
        }
    }
}
