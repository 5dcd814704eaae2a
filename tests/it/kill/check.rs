//! What must hold after a kill, and at the end.

use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, Instant},
};

use fastrand::Rng;
use jobwire::proto::{
    CancelJobRequest, Job, JobFilter, JobView, ListJobsRequest, SubmitRequest, job::State, job_error::Cause,
};
use tokio::time::sleep;

use super::{
    asks::ENDLESS,
    clients::{answer, reason},
    ledger::{Deletion, Fate, Ledger, Shared, is_final},
    watchers::{Key, Watcher},
};
use crate::support::{Client, PATIENCE, Server, program, told};

/// Failed attempts of a job that are kept.
const HISTORY: usize = 20;

/// Older jobs that are looked at again after a kill, and older requests that are repeated.
const SAMPLE: usize = 30;

/// Ids of one list.
const PAGE: usize = 500;

const UNFINISHED: [State; 4] = [State::Scheduled, State::Queued, State::Running, State::BackingOff];

/// Every page, body, state and count of the store.
pub fn verify(server: &Server) {
    let (code, said) = told(program().arg("verify").arg(server.data()));
    assert_eq!(code, Some(0), "{said}");
}

/// Whatever was learned since the last time is there, and some of what was known before.
pub async fn look(client: &mut Client, ledger: &Shared, rng: &mut Rng, looked: &mut usize) {
    let numbers: Vec<usize> = {
        let known = &ledger.lock().known;
        let older = (0..SAMPLE).filter_map(|_| rng.choice(&known[..*looked])).copied();
        older.chain(known[*looked..].iter().copied()).collect()
    };
    *looked = ledger.lock().known.len();
    look_up(client, ledger, &numbers, JobView::Basic, |_| {}).await;
}

/// Lists jobs by id, and enters what is said of them. Only those may be missing whose deletion was asked for.
async fn look_up(
    client: &mut Client,
    ledger: &Shared,
    numbers: &[usize],
    view: JobView,
    mut each: impl FnMut(&Job),
) {
    for numbers in numbers.chunks(PAGE) {
        let mut ids: BTreeSet<String> = {
            let ledger = ledger.lock();
            numbers.iter().filter_map(|&number| ledger.entries[number].job_id().map(str::to_owned)).collect()
        };
        let filter = JobFilter { job_ids: ids.iter().cloned().collect(), ..Default::default() };
        let request = ListJobsRequest {
            filter: Some(filter),
            page_size: PAGE as i32,
            view: view.into(),
            ..Default::default()
        };
        for job in list(client, request).await {
            assert!(ids.remove(&job.job_id), "{} was not asked for, or comes twice", job.job_id);
            let mut ledger = ledger.lock();
            ledger.saw(&job);
            let deletion = ledger.of(&job.job_id).deletion;
            assert!(deletion < Deletion::Acknowledged, "{} was deleted, and is back", job.job_id);
            each(&job);
        }
        let mut ledger = ledger.lock();
        let lost: Vec<_> = ids.iter().filter(|id| ledger.of(id).deletion == Deletion::None).collect();
        assert!(lost.is_empty(), "{} acknowledged jobs are lost, such as {}", lost.len(), lost[0]);
    }
}

async fn list(client: &mut Client, mut request: ListJobsRequest) -> Vec<Job> {
    let mut jobs = Vec::new();
    loop {
        let page = insist(async || answer(client.list_jobs(request.clone()).await, &[])).await;
        jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return jobs;
        }
        request.page_token = page.next_page_token;
    }
}

/// Asks again while answers are lost: some settings cut connections often.
async fn insist<T>(mut call: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = call().await {
            return answer;
        }
        assert!(Instant::now() < end, "no answer");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Sends requests again that were not answered, and some that were: there is one job for each.
pub async fn repeat(client: &mut Client, ledger: &Shared, rng: &mut Rng) {
    let requests: Vec<(usize, SubmitRequest)> = {
        let mut ledger = ledger.lock();
        let mut numbers = std::mem::take(&mut ledger.unanswered);
        numbers.extend((0..SAMPLE).filter_map(|_| rng.choice(&ledger.known)));
        numbers.sort_unstable();
        numbers.dedup();
        let entries = numbers.into_iter().map(|number| (number, &ledger.entries[number]));
        entries
            .filter(|(_, entry)| entry.is_repeatable())
            .map(|(number, entry)| (number, entry.ask.request.clone()))
            .collect()
    };
    for (number, request) in requests {
        let reply = insist(async || match client.submit(request.clone()).await {
            Err(status) => {
                let refused = ["QUEUE_FULL", "TOO_LARGE", "JOB_DELETED"];
                match reason(&status).filter(|reason| refused.contains(&reason.as_str())) {
                    Some(reason) => Some(Err(reason)),
                    None => answer(Err(status), &[]).map(Ok),
                }
            }
            reply => answer(reply, &[]).map(Ok),
        })
        .await;
        let mut ledger = ledger.lock();
        let entry = &ledger.entries[number];
        match reply {
            Ok(reply) => {
                let known = entry.job_id().is_some();
                assert!(
                    entry.deletion < Deletion::Acknowledged,
                    "request {number} makes a deleted job again"
                );
                assert!(reply.deduplicated || !known, "request {number} made a second job");
                ledger.acknowledge(number, &reply);
            }
            Err(reason) if reason == "JOB_DELETED" => {
                assert!(entry.deletion > Deletion::None, "nobody deleted the job of request {number}");
            }
            // Too large for the settings of this start is refused before anybody looks.
            Err(reason) => {
                assert!(
                    reason == "TOO_LARGE" || entry.fate == Fate::Unanswered,
                    "request {number}: {reason}"
                );
            }
        }
    }
}

/// Cancels what would never end: one job, and others whose submit was not answered.
pub async fn end_endless(client: &mut Client, ledger: &Shared) {
    let filter = JobFilter { queues: vec![ENDLESS.into()], ..Default::default() };
    let request = ListJobsRequest { filter: Some(filter), ..Default::default() };
    for job in list(client, request).await {
        {
            let mut ledger = ledger.lock();
            ledger.saw(&job);
            ledger.of(&job.job_id).cancel_sent = true;
        }
        let request = CancelJobRequest { job_id: job.job_id, ..Default::default() };
        let reply = client.cancel_job(request).await.expect("it is cancelled").into_inner();
        ledger.lock().cancelled(&reply.job.expect("a job"));
    }
}

/// Waits until every job is final.
pub async fn finish(client: &mut Client) {
    let states = UNFINISHED.iter().map(|&state| state.into()).collect();
    let filter = JobFilter { states, ..Default::default() };
    let request = ListJobsRequest { filter: Some(filter), page_size: 1, ..Default::default() };
    let end = Instant::now() + PATIENCE * 3;
    loop {
        let page = insist(async || answer(client.list_jobs(request.clone()).await, &[])).await;
        if page.jobs.is_empty() && page.next_page_token.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "still unfinished: {:?}", page.jobs);
        sleep(Duration::from_millis(20)).await;
    }
}

/// Every run of every known job has one outcome in the feed, and each watcher was told just what is in it, in order.
/// Jobs whose deletion was asked for are left aside: watchers may have heard of them or not.
pub fn check_feed(ledger: &mut Ledger, feed: Vec<Key>, watchers: &[Watcher]) {
    for (job_id, _) in &feed {
        assert!(
            ledger.of(job_id).deletion < Deletion::Acknowledged,
            "{job_id} was deleted, and is in the feed"
        );
    }
    let kept = |ledger: &mut Ledger, (job_id, _): &&Key| ledger.of(job_id).deletion == Deletion::None;
    let feed: Vec<&Key> = feed.iter().filter(|key| kept(ledger, key)).collect();
    let ends: HashSet<_> = feed.iter().collect();
    assert_eq!(ends.len(), feed.len(), "an outcome is in the feed twice");
    for number in ledger.known.clone() {
        let entry = &ledger.entries[number];
        let job_id = entry.job_id().expect("a known job");
        if entry.deletion == Deletion::None {
            for run in entry.runs.keys() {
                assert!(ends.contains(&&(job_id.to_owned(), *run)), "run {run} of {job_id} has no outcome");
            }
        }
    }
    for (index, watcher) in watchers.iter().enumerate() {
        let about = |key: &Key, ledger: &mut Ledger| {
            let entry = ledger.of(&key.0);
            let outcome = entry.runs[&key.1].outcome.as_ref().expect("it was told");
            let state = outcome.state;
            watcher.is_about(entry, state)
        };
        let expected: Vec<_> = feed.iter().copied().filter(|key| about(key, ledger)).collect();
        let seen: Vec<_> = watcher.seen.iter().filter(|key| kept(ledger, key)).collect();
        let missed = expected.len().saturating_sub(seen.len());
        assert!(missed == 0 || !watcher.must_know_all(), "watcher {index} missed {missed}");
        let differs = expected[missed..].iter().zip(&seen).find(|(expected, seen)| expected != seen);
        assert_eq!(differs, None, "watcher {index} was told something else than the feed");
        assert_eq!(seen.len(), expected.len() - missed, "watcher {index} was told too much");
    }
}

/// Every job is as its last outcome says, with the attempts that led there. Counts those that crashes ended.
pub async fn check_jobs(client: &mut Client, ledger: &Shared) -> usize {
    let (numbers, servers_stop) = {
        let ledger = ledger.lock();
        (ledger.known.clone(), ledger.servers_stop)
    };
    let mut crashed = 0;
    look_up(client, ledger, &numbers, JobView::Full, |job| {
        assert!(is_final(job.state()), "{job:?}");
        let of_run = job.attempts.iter().filter(|failed| failed.run == job.run);
        let of_run: Vec<_> = of_run.collect();
        let failed: Vec<_> = of_run.iter().map(|failed| failed.attempt).collect();
        let mut causes = of_run.iter().filter_map(|failed| failed.error.as_ref()).map(|error| error.cause());
        let came_late = failed.last() == Some(&job.attempt)
            && match causes.next_back() {
                Some(Cause::LeaseExpired) => true,
                // A server that is frozen while its connections are cut is taken for dead.
                Some(Cause::Crash) => servers_stop,
                _ => false,
            };
        let expected: Vec<_> = match job.state() {
            State::Succeeded if !came_late => (1..job.attempt).collect(),
            // It was given up, and no other attempt had begun.
            State::Succeeded => (1..=job.attempt).collect(),
            State::Failed => (1..=job.attempt).collect(),
            _ => failed.clone(),
        };
        assert!(expected.ends_with(&failed), "{job:?}");
        assert!(job.attempts.len() == HISTORY || failed.len() == expected.len(), "{job:?}");
        let causes = job.attempts.iter().filter_map(|failed| failed.error.as_ref());
        crashed += causes.filter(|error| error.cause() == Cause::Crash).count();
    })
    .await;
    crashed
}
