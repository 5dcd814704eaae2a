//! Every row of the table of states, the refused ones too.

use std::time::Duration;

use super::*;
use crate::job::{Payload, RetryOptions, Start};

pub const SECOND: Duration = Duration::from_secs(1);

/// Seconds after the beginning of a test.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp(1_700_000_000_000 + seconds * 1000)
}

pub fn spec() -> JobSpec {
    JobSpec::new("echo".parse().unwrap(), Payload::none())
}

/// Three attempts, back-off of 4 s, 8 s, … before jitter.
pub fn policy() -> Policy {
    Policy {
        max_attempts: 3,
        initial_backoff: 4 * SECOND,
        max_backoff: 100 * SECOND,
        backoff_multiplier: 2.0,
        non_retryable_codes: vec!["hopeless".to_owned()],
        attempt_timeout: 300 * SECOND,
        retention: 3600 * SECOND,
    }
}

pub fn lease(now: Timestamp) -> Lease {
    Lease { worker: "w".parse().unwrap(), started: now, until: now.after(30 * SECOND) }
}

fn queued() -> Live {
    Live::admit(&spec(), at(0))
}

fn scheduled() -> Live {
    Live::admit(&JobSpec { start: Start::Delay(10 * SECOND), ..spec() }, at(0))
}

/// The first attempt runs since the first second, under fence 7.
fn running() -> Live {
    queued().claim(7, lease(at(1)))
}

/// The first attempt failed at 2 s; due again at 6 s.
fn backing_off() -> Live {
    live(settle(&running(), 7, Report::Failed(busy())))
}

fn cancelling() -> Live {
    match running().cancel("enough") {
        Cancelled::Asked(live) => live,
        other => panic!("{other:?}"),
    }
}

fn busy() -> JobError {
    JobError::retryable("busy", "try again")
}

/// At 2 s and with the longest back-off.
fn settle(live: &Live, fence: Fence, report: Report) -> Step {
    live.settle(fence, report, &policy(), at(2), 1.0).unwrap()
}

fn refused(live: &Live, fence: Fence, report: Report) {
    assert_eq!(live.settle(fence, report, &policy(), at(2), 1.0), Err(Error::LeaseLost));
}

fn every_report() -> [Report; 4] {
    [
        Report::Succeeded(Payload::none()),
        Report::Failed(busy()),
        Report::Released { delay: Duration::ZERO },
        Report::Released { delay: SECOND },
    ]
}

fn live(step: Step) -> Live {
    match step.next {
        Next::Live(live) => live,
        Next::Final(ending) => panic!("ended: {ending:?}"),
    }
}

fn ending(step: Step) -> Ending {
    match step.next {
        Next::Final(ending) => ending,
        Next::Live(live) => panic!("goes on: {live:?}"),
    }
}

fn retry(of: &Suspension<'_>, delay: Duration) -> Result<Retried, Error> {
    of.retry("job", &spec(), delay, at(5))
}

#[test]
fn a_new_job_is_queued_or_scheduled() {
    let begin = |start| Live::admit(&JobSpec { start, ..spec() }, at(0));
    assert_eq!((queued().state, queued().due), (LiveState::Queued, at(0)));
    assert_eq!((scheduled().state, scheduled().due), (LiveState::Scheduled, at(10)));
    assert_eq!(begin(Start::At(at(3))).state, LiveState::Scheduled);
    assert_eq!(begin(Start::Delay(Duration::ZERO)).state, LiveState::Queued);
    let late = begin(Start::At(at(-3)));
    assert_eq!((late.state, late.due), (LiveState::Queued, at(0)), "the past is no head start");
    assert_eq!((late.run, late.attempt, late.version, late.fence), (1, 0, 1, 0));
}

#[test]
fn a_scheduled_job_is_queued_when_due() {
    let job = scheduled();
    assert_eq!(job.wake(), Some(at(10)));
    assert_eq!(job.elapse(&policy(), at(9), 0.5), None);
    let due = live(job.elapse(&policy(), at(10), 0.5).unwrap());
    assert_eq!((due.state, due.due, due.attempt), (LiveState::Queued, at(10), 0));
    assert_eq!(due.version, job.version + 1);
}

#[test]
fn a_queued_job_waits_as_long_as_it_takes() {
    assert_eq!(queued().wake(), None);
    assert_eq!(queued().elapse(&policy(), at(1_000_000), 0.5), None);
}

#[test]
fn a_claim_begins_an_attempt() {
    let job = running();
    assert_eq!((job.state, job.attempt, job.version, job.fence), (LiveState::Running, 1, 2, 7));
    assert_eq!(job.lease, Some(lease(at(1))));
}

#[test]
#[should_panic(expected = "only a queued job")]
fn a_job_that_is_not_queued_cannot_be_claimed() {
    scheduled().claim(8, lease(at(1)));
}

#[test]
fn success_ends_the_job() {
    let output = Payload::new(Payload::TEXT, "done");
    let step = settle(&running(), 7, Report::Succeeded(output.clone()));
    assert_eq!(step.failure, None);
    assert_eq!(ending(step), Ending::succeeded(output));
}

#[test]
fn a_failure_backs_off() {
    let step = settle(&running(), 7, Report::Failed(busy()));
    assert_eq!(step.failure, Some(busy()));
    let job = live(step);
    assert_eq!((job.state, job.attempt, job.due), (LiveState::BackingOff, 1, at(6)));
    assert_eq!((job.fence, job.lease, job.version), (0, None, 3));
}

#[test]
fn a_failure_that_cannot_be_mended_ends_the_job() {
    let last = Live { attempt: 3, ..running() };
    let hopeless = JobError { code: "hopeless".to_owned(), ..busy() };
    let permanent = JobError::permanent("bad", "never");
    for (job, error) in [(last, busy()), (running(), hopeless), (running(), permanent)] {
        let step = settle(&job, 7, Report::Failed(error.clone()));
        assert_eq!(step.failure, Some(error.clone()), "the last attempt counts too");
        assert_eq!(ending(step), Ending::without_result(FinalState::Failed, error));
    }
}

#[test]
fn a_back_off_ends_by_time() {
    let job = backing_off();
    assert_eq!(job.wake(), Some(at(6)));
    assert_eq!(job.elapse(&policy(), at(5), 0.5), None);
    let due = live(job.elapse(&policy(), at(6), 0.5).unwrap());
    assert_eq!((due.state, due.attempt, due.due), (LiveState::Queued, 1, at(6)));
    assert_eq!(due.claim(8, lease(at(6))).attempt, 2);
}

#[test]
fn a_lost_attempt_is_spent() {
    let message = "it died";
    for (cause, code) in [(Cause::Crash, "jobwire.crash"), (Cause::LeaseExpired, "jobwire.lease_expired")] {
        let step = running().lose(cause, message, &policy(), at(2), 1.0);
        assert_eq!(step.failure, Some(JobError::new(cause, code, message, true)));
        let job = live(step);
        assert_eq!((job.state, job.attempt, job.due), (LiveState::BackingOff, 1, at(6)));
        let last = Live { attempt: 3, ..running() };
        let end = ending(last.lose(cause, message, &policy(), at(2), 1.0));
        assert_eq!((end.state, end.error.unwrap().cause), (FinalState::Failed, cause));
    }
}

#[test]
fn a_lease_that_is_not_renewed_runs_out() {
    let job = running();
    assert_eq!(job.elapse(&policy(), at(30), 0.0), None);
    let step = job.elapse(&policy(), at(31), 0.0).unwrap();
    assert_eq!(step.failure.as_ref().unwrap().cause, Cause::LeaseExpired);
    assert_eq!(live(step).state, LiveState::BackingOff);
}

#[test]
fn a_released_attempt_does_not_count() {
    let job = live(settle(&running(), 7, Report::Released { delay: Duration::ZERO }));
    assert_eq!((job.state, job.attempt, job.due), (LiveState::Queued, 0, at(0)), "its place is kept");
    assert_eq!((job.fence, job.lease, job.version), (0, None, 3));
    let job = live(settle(&running(), 7, Report::Released { delay: 3 * SECOND }));
    assert_eq!((job.state, job.attempt, job.due), (LiveState::Scheduled, 0, at(5)));
}

#[test]
fn a_cancel_ends_what_does_not_run() {
    for job in [scheduled(), queued(), backing_off()] {
        let Cancelled::Now(end) = job.cancel("enough") else { panic!("{job:?}") };
        let error = end.error.unwrap();
        assert_eq!((end.state, end.output), (FinalState::Cancelled, None));
        assert_eq!((error.cause, error.message.as_str()), (Cause::Cancelled, "enough"));
    }
    let Cancelled::Now(end) = queued().cancel("") else { panic!() };
    assert_eq!(end.error.unwrap().message, "cancelled");
}

#[test]
fn a_cancel_asks_what_runs() {
    let job = cancelling();
    assert_eq!((job.state, job.fence, job.version), (LiveState::Running, 7, 3));
    assert_eq!(job.cancel("again"), Cancelled::Already);
}

#[test]
fn an_attempt_that_gives_in_is_cancelled() {
    let gives_in = [
        Report::Failed(busy()),
        Report::Failed(JobError::permanent("bad", "never")),
        Report::Released { delay: Duration::ZERO },
        Report::Released { delay: SECOND },
    ];
    for report in gives_in {
        let step = settle(&cancelling(), 7, report);
        assert_eq!(step.failure, None, "it did not fail");
        assert_eq!(ending(step).error.unwrap().message, "enough");
    }
    let crashed = cancelling().lose(Cause::Crash, "it died", &policy(), at(2), 1.0);
    assert_eq!(ending(crashed).state, FinalState::Cancelled);
    let silent = cancelling().elapse(&policy(), at(31), 1.0).unwrap();
    assert_eq!(ending(silent).state, FinalState::Cancelled);
}

#[test]
fn success_wins_over_a_cancel_that_it_overtook() {
    let step = settle(&cancelling(), 7, Report::Succeeded(Payload::none()));
    assert_eq!(ending(step).state, FinalState::Succeeded);
}

#[test]
fn only_the_newest_grant_may_report() {
    for report in every_report() {
        for job in [scheduled(), queued(), backing_off()] {
            refused(&job, 0, report.clone());
            refused(&job, 7, report.clone());
        }
        for fence in [0, 6, 8, -7] {
            refused(&running(), fence, report.clone());
            refused(&cancelling(), fence, report.clone());
        }
    }
}

#[test]
fn a_late_success_counts_until_the_next_attempt_begins() {
    let lost = live(running().elapse(&policy(), at(31), 1.0).unwrap());
    let due = live(lost.elapse(&policy(), at(35), 1.0).unwrap());
    for job in [&lost, &due] {
        let step = settle(job, 7, Report::Succeeded(Payload::none()));
        assert_eq!((step.failure.clone(), ending(step).state), (None, FinalState::Succeeded));
        for report in &every_report()[1..] {
            refused(job, 7, report.clone());
        }
    }
    let next = due.claim(8, lease(at(36)));
    for report in every_report() {
        refused(&next, 7, report);
    }
}

#[test]
fn the_start_timeout_is_for_the_first_attempt_only() {
    let spec = JobSpec { start: Start::Delay(10 * SECOND), start_timeout: Some(5 * SECOND), ..spec() };
    let job = Live::admit(&spec, at(0));
    assert_eq!((job.start_by, job.wake()), (Some(at(15)), Some(at(10))));
    let due = live(job.elapse(&policy(), at(10), 0.0).unwrap());
    assert_eq!(due.wake(), Some(at(15)));
    assert_eq!(due.elapse(&policy(), at(14), 0.0), None);
    for waiting in [&job, &due] {
        let end = ending(waiting.elapse(&policy(), at(15), 0.0).unwrap());
        let error = end.error.unwrap();
        assert_eq!((end.state, error.cause), (FinalState::Expired, Cause::Expired));
        assert_eq!(error.code, "jobwire.start_timeout");
    }
    let started = due.claim(7, lease(at(12)));
    let later = [
        live(settle(&started, 7, Report::Failed(busy()))),
        live(settle(&started, 7, Report::Released { delay: Duration::ZERO })),
        started,
    ];
    for job in later {
        assert_eq!(job.start_by, None);
    }
}

#[test]
fn the_total_timeout_is_over_all_attempts() {
    let spec = JobSpec { total_timeout: Some(20 * SECOND), ..spec() };
    let queued = Live::admit(&spec, at(0));
    let running = queued.claim(7, lease(at(1)));
    let backing_off = live(settle(&running, 7, Report::Failed(busy())));
    let again = live(backing_off.elapse(&policy(), at(6), 0.0).unwrap()).claim(8, lease(at(7)));
    for job in [queued, running, backing_off, again] {
        assert_eq!(job.end_by, Some(at(20)));
        let end = ending(job.elapse(&policy(), at(20), 0.0).unwrap());
        assert_eq!(
            (end.state, end.error.unwrap().code.as_str()),
            (FinalState::Expired, "jobwire.total_timeout")
        );
    }
    let delayed = Live::admit(&JobSpec { start: Start::Delay(50 * SECOND), ..spec }, at(0));
    assert_eq!(delayed.wake(), Some(at(20)), "from the submit, not from being due");
}

#[test]
fn a_retry_runs_a_job_again_that_ended_without_success() {
    for state in [FinalState::Failed, FinalState::Cancelled, FinalState::Expired] {
        let of = Suspension::Final { state, run: 1, version: 9 };
        let Ok(Retried::Run(job)) = retry(&of, Duration::ZERO) else { panic!() };
        assert_eq!((job.state, job.run, job.attempt, job.version), (LiveState::Queued, 2, 0, 10));
        assert_eq!((job.due, job.fence, job.cancel_reason), (at(5), 0, None));
        let Ok(Retried::Run(job)) = retry(&of, 3 * SECOND) else { panic!() };
        assert_eq!((job.state, job.due), (LiveState::Scheduled, at(8)));
    }
}

#[test]
fn a_retry_restarts_the_clocks() {
    let spec = JobSpec {
        start: Start::Delay(99 * SECOND),
        start_timeout: Some(5 * SECOND),
        total_timeout: Some(20 * SECOND),
        ..spec()
    };
    let of = Suspension::Final { state: FinalState::Expired, run: 1, version: 2 };
    let Ok(Retried::Run(job)) = of.retry("job", &spec, 2 * SECOND, at(100)) else { panic!() };
    assert_eq!(job.due, at(102), "the delay of the submit is not waited for again");
    assert_eq!((job.start_by, job.end_by), (Some(at(107)), Some(at(120))));
}

#[test]
fn a_retry_skips_the_rest_of_a_back_off() {
    let job = backing_off();
    let Ok(Retried::Now(now)) = retry(&Suspension::Live(&job), Duration::ZERO) else { panic!() };
    assert_eq!((now.state, now.due), (LiveState::Queued, at(5)));
    assert_eq!((now.run, now.attempt, now.version), (1, 1, job.version + 1));
    let Ok(Retried::Now(later)) = retry(&Suspension::Live(&job), 9 * SECOND) else { panic!() };
    assert_eq!((later.state, later.due), (LiveState::BackingOff, at(14)));
}

#[test]
fn a_retry_is_refused_in_any_other_state() {
    let succeeded = Suspension::Final { state: FinalState::Succeeded, run: 1, version: 3 };
    let (scheduled, queued, running) = (scheduled(), queued(), running());
    for (of, wanted) in [
        (succeeded, State::SUCCEEDED),
        (Suspension::Live(&scheduled), State::SCHEDULED),
        (Suspension::Live(&queued), State::QUEUED),
        (Suspension::Live(&running), State::RUNNING),
    ] {
        let error = retry(&of, Duration::ZERO).unwrap_err();
        assert!(
            matches!(&error, Error::JobState { job_id, state, .. } if job_id == "job" && *state == wanted)
        );
    }
}

#[test]
fn a_point_of_priority_is_worth_a_minute() {
    let rank = |priority, seconds| Live::admit(&JobSpec { priority, ..spec() }, at(seconds)).rank();
    assert_eq!(rank(1, 60), rank(0, 0));
    assert!(rank(1, 59) < rank(0, 0));
    assert!(rank(1, 61) > rank(0, 0));
    assert_eq!(rank(-100, 0), rank(100, 200 * 60));
    let job = Live::admit(&JobSpec { priority: 5, ..spec() }, at(0));
    let again = live(settle(&job.claim(7, lease(at(1))), 7, Report::Failed(busy())));
    assert_eq!(again.rank(), rank(5, 6), "from when it became due again");
}

#[test]
fn a_rank_stops_at_the_end_of_time() {
    let low = JobSpec { priority: -100, start: Start::Delay(Duration::MAX), ..spec() };
    assert_eq!(Live::admit(&low, at(0)).rank(), i64::MAX);
}

#[test]
fn the_jobs_own_word_wins_over_its_queues() {
    let spec = JobSpec {
        retry: RetryOptions {
            max_attempts: Some(9),
            initial_backoff: Some(SECOND),
            max_backoff: Some(2 * SECOND),
            backoff_multiplier: Some(1.5),
            non_retryable_codes: vec!["mine".to_owned()],
        },
        attempt_timeout: Some(3 * SECOND),
        retention: Some(4 * SECOND),
        ..spec()
    };
    let own = Policy {
        max_attempts: 9,
        initial_backoff: SECOND,
        max_backoff: 2 * SECOND,
        backoff_multiplier: 1.5,
        non_retryable_codes: vec!["mine".to_owned()],
        attempt_timeout: 3 * SECOND,
        retention: 4 * SECOND,
    };
    assert_eq!(policy().of(&spec), own);
    let silent = Policy { non_retryable_codes: Vec::new(), ..policy() };
    assert_eq!(silent.of(&self::spec()), silent);
}
