//! ListJobs: pages, their tokens, and the way on to a watch.

use jobwire::proto::{
    Job, JobFilter, JobView, ListJobsRequest, ListJobsResponse, SubmitRequest, job::State, payload::Body,
};
use tonic::{Code, Status};

use crate::{
    calls::{Refusal, Watch, finish, place},
    support::{Client, Server, submit},
    watch::after,
};

async fn list(client: &Client, request: ListJobsRequest) -> Result<ListJobsResponse, Status> {
    Ok(client.clone().list_jobs(request).await?.into_inner())
}

fn ids(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| job.job_id.as_str()).collect()
}

/// All pages of a list.
async fn pages(client: &Client, mut request: ListJobsRequest) -> Vec<Vec<Job>> {
    let mut pages = Vec::new();
    loop {
        let page = list(client, request.clone()).await.unwrap();
        pages.push(page.jobs);
        if page.next_page_token.is_empty() {
            return pages;
        }
        assert!(page.next_page_token.len() <= 512);
        request.page_token = page.next_page_token;
    }
}

async fn five(client: &Client) {
    for n in 0..5 {
        place(client, SubmitRequest { job_id: format!("job-{n}"), ..submit("nobody", "1") }).await;
    }
}

#[tokio::test]
async fn pages_cover_a_list_newest_first() {
    let server = Server::start();
    let client = server.client().await;
    assert!(list(&client, ListJobsRequest::default()).await.unwrap().jobs.is_empty());
    five(&client).await;
    let newest = ["job-4", "job-3", "job-2", "job-1", "job-0"];
    for size in [1, 2, 5, 100_000] {
        let found = pages(&client, ListJobsRequest { page_size: size, ..Default::default() }).await;
        assert!(found.iter().all(|page| page.len() <= size as usize));
        assert_eq!(ids(&found.concat()), newest);
    }
    let oldest = ListJobsRequest { page_size: 2, oldest_first: true, ..Default::default() };
    let mut expected = newest;
    expected.reverse();
    assert_eq!(ids(&pages(&client, oldest).await.concat()), expected);
}

#[tokio::test]
async fn a_page_has_fifty_jobs_unless_asked() {
    let server = Server::start();
    let client = server.client().await;
    let requests = (0..60).map(|_| submit("nobody", "1")).collect();
    client.clone().batch_submit(jobwire::proto::BatchSubmitRequest { requests }).await.unwrap();
    let page = list(&client, ListJobsRequest::default()).await.unwrap();
    assert_eq!(page.jobs.len(), 50);
    let job = &page.jobs[0];
    assert!(job.spec.as_ref().unwrap().payload.as_ref().unwrap().omitted, "{job:?}");
}

#[tokio::test]
async fn a_token_belongs_to_its_list() {
    let server = Server::start();
    let client = server.client().await;
    five(&client).await;
    let first = ListJobsRequest { page_size: 2, ..Default::default() };
    let token = list(&client, first.clone()).await.unwrap().next_page_token;
    let filtered = JobFilter { kinds: vec!["nobody".into()], ..Default::default() };
    for other in [
        ListJobsRequest { filter: Some(filtered), page_token: token.clone(), ..Default::default() },
        ListJobsRequest { oldest_first: true, page_token: token.clone(), ..Default::default() },
        ListJobsRequest { page_token: token[..token.len() - 1].into(), ..first.clone() },
        ListJobsRequest { page_token: token.to_ascii_uppercase(), ..first.clone() },
        ListJobsRequest { page_token: "x".repeat(100_000), ..first.clone() },
        ListJobsRequest { page_token: "c1.AAAA".into(), ..first.clone() },
    ] {
        let refused = Refusal::of(list(&client, other).await);
        assert_eq!(refused.field(), "page_token");
        refused.is(Code::InvalidArgument, "BAD_PAGE_TOKEN").says(&["same filter"]);
    }
    // Size and view may change from page to page.
    let rest = ListJobsRequest { page_token: token, view: JobView::Full.into(), ..Default::default() };
    assert_eq!(ids(&list(&client, rest).await.unwrap().jobs), ["job-2", "job-1", "job-0"]);
}

#[tokio::test]
async fn lists_filter_by_state() {
    let server = Server::start();
    let client = server.client().await;
    finish(&client, SubmitRequest { job_id: "ok".into(), ..submit("echo", "1") }).await;
    finish(&client, SubmitRequest { job_id: "bad".into(), ..submit("sleep", "1") }).await;
    place(&client, SubmitRequest { job_id: "waits".into(), ..submit("nobody", "1") }).await;
    for (states, expected) in [
        (vec![State::Failed], vec!["bad"]),
        (vec![State::Succeeded], vec!["ok"]),
        (vec![State::Queued], vec!["waits"]),
        (vec![State::Failed, State::Queued], vec!["waits", "bad"]),
        (vec![State::Running, State::Expired], vec![]),
    ] {
        let states = states.into_iter().map(Into::into).collect();
        let filter = Some(JobFilter { states, ..Default::default() });
        let page = list(&client, ListJobsRequest { filter, ..Default::default() }).await.unwrap();
        assert_eq!(ids(&page.jobs), expected);
    }
}

#[tokio::test]
async fn what_ends_after_the_list_is_in_the_watch() {
    let server = Server::start();
    let client = server.client().await;
    finish(&client, SubmitRequest { job_id: "before".into(), ..submit("echo", "1") }).await;
    let cursor = list(&client, ListJobsRequest::default()).await.unwrap().cursor;
    finish(&client, SubmitRequest { job_id: "after".into(), ..submit("echo", "1") }).await;
    assert_eq!(Watch::open(&client, after(&cursor)).await.replay().await, ["after"]);
}

#[tokio::test]
async fn a_page_of_large_jobs_is_short_and_fits() {
    let server = Server::start();
    let client = server.client().await;
    let large = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    let swelling = format!("[{}0]", "0,".repeat(250_000));
    for n in 0..4 {
        finish(&client, SubmitRequest { job_id: format!("large-{n}"), ..submit("echo", &large) }).await;
        finish(&client, SubmitRequest { job_id: format!("swell-{n}"), ..submit("echo", &swelling) }).await;
    }
    for view in [JobView::Result, JobView::Full] {
        let request = ListJobsRequest { view: view.into(), oldest_first: true, ..Default::default() };
        let pages = pages(&client, request).await;
        assert!(pages.len() > 1, "{view:?}");
        let jobs = pages.concat();
        assert_eq!(jobs.len(), 8);
        for job in jobs {
            let body = job.output.unwrap().body;
            assert!(matches!(body, Some(Body::Json(_) | Body::Text(_))));
        }
    }
}

#[tokio::test]
async fn a_page_size_is_not_negative() {
    let server = Server::start();
    let client = server.client().await;
    let refused = Refusal::of(list(&client, ListJobsRequest { page_size: -1, ..Default::default() }).await);
    assert_eq!(refused.field(), "page_size");
    refused.is(Code::InvalidArgument, "INVALID_FIELD");
}
