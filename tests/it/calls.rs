//! What most tests do: a job from submit to end, a refusal read in full, a watch followed.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use jobwire::proto::{
    Checkpoint, GetJobRequest, GetResultRequest, Job, JobView, SubmitRequest, SubmitResponse,
    WatchResultsRequest, WatchResultsResponse, job::State, watch_results_response::Event,
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::support::{Client, PATIENCE, seconds};

/// A status of ours, with what it says.
#[derive(Debug)]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    pub metadata: HashMap<String, String>,
    pub message: String,
    pub details: ErrorDetails,
}

impl Refusal {
    /// Of a call that must have failed. Checks what holds for every error.
    pub fn of<T: Debug>(result: Result<T, Status>) -> Self {
        Self::read(result.expect_err("the call is refused"))
    }

    pub fn read(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}")).clone();
        assert_eq!(info.domain, "jobwire.v1", "{status:?}");
        assert!(status.details().len() < 4096, "{} bytes of details", status.details().len());
        assert!(!status.message().is_empty(), "{status:?}");
        Self {
            code: status.code(),
            reason: info.reason,
            metadata: info.metadata,
            message: status.message().to_owned(),
            details,
        }
    }

    /// Code and reason.
    #[track_caller]
    pub fn is(self, code: Code, reason: &str) -> Self {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:?}");
        self
    }

    /// The field that it is about.
    #[track_caller]
    pub fn field(&self) -> &str {
        let bad = self.details.bad_request().unwrap_or_else(|| panic!("no BadRequest: {self:?}"));
        assert!(!bad.field_violations[0].description.is_empty(), "{self:?}");
        &bad.field_violations[0].field
    }

    /// The resource that it is about.
    #[track_caller]
    pub fn resource(&self) -> &str {
        let resource = self.details.resource_info().unwrap_or_else(|| panic!("no ResourceInfo: {self:?}"));
        assert_eq!(resource.resource_type, "job");
        &resource.resource_name
    }

    /// When to come again.
    #[track_caller]
    pub fn retry_delay(&self) -> Duration {
        let retry = self.details.retry_info().unwrap_or_else(|| panic!("no RetryInfo: {self:?}"));
        retry.retry_delay.unwrap_or_default()
    }

    /// What there is too much of.
    #[track_caller]
    pub fn quota(&self) -> &str {
        let quota = self.details.quota_failure().unwrap_or_else(|| panic!("no QuotaFailure: {self:?}"));
        &quota.violations[0].subject
    }

    /// The words that a person needs: what, why and the way out.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.message.contains(word), "{word:?} is missing in {:?}", self.message);
        }
        self
    }
}

/// Submits, and expects it to be accepted.
pub async fn accept(client: &Client, request: SubmitRequest) -> SubmitResponse {
    client.clone().submit(request).await.expect("the job is accepted").into_inner()
}

/// Submits, and answers with the job's id.
pub async fn place(client: &Client, request: SubmitRequest) -> String {
    accept(client, request).await.job.expect("a job").job_id
}

/// Submits and waits for the end.
pub async fn finish(client: &Client, request: SubmitRequest) -> Job {
    let response = accept(client, SubmitRequest { wait: Some(seconds(30.0)), ..request }).await;
    assert!(response.done, "{response:?}");
    response.job.expect("a job")
}

/// Waits for the end of a job.
pub async fn result(client: &Client, job_id: &str) -> Job {
    let request = GetResultRequest { job_id: job_id.into(), wait: Some(seconds(30.0)), ..Default::default() };
    let response = client.clone().get_result(request).await.expect("the job is known").into_inner();
    assert!(response.done, "{response:?}");
    response.job.expect("a job")
}

/// A job as it is now, in full.
pub async fn get(client: &Client, job_id: &str) -> Job {
    let request = GetJobRequest { job_id: job_id.into(), view: JobView::Full.into(), ..Default::default() };
    client.clone().get_job(request).await.expect("the job is known").into_inner().job.expect("a job")
}

/// Waits until a job is in a state, and answers with it.
pub async fn reach(client: &Client, job_id: &str, state: State) -> Job {
    reach_when(client, job_id, |job| job.state() == state).await
}

/// Waits until a job is as it should be.
pub async fn reach_when(client: &Client, job_id: &str, holds: impl Fn(&Job) -> bool) -> Job {
    let mut job = get(client, job_id).await;
    let look = async {
        while !holds(&job) {
            sleep(Duration::from_millis(10)).await;
            job = get(client, job_id).await;
        }
    };
    let reached = timeout(PATIENCE, look).await;
    assert!(reached.is_ok(), "never came: {job:?}");
    job
}

/// A watch that is followed.
pub struct Watch {
    stream: Streaming<WatchResultsResponse>,
    /// Where to resume.
    pub cursor: String,
}

impl Watch {
    pub async fn open(client: &Client, request: WatchResultsRequest) -> Self {
        Self::of(client.clone().watch_results(request).await.expect("the watch begins"))
    }

    pub fn of(response: Response<Streaming<WatchResultsResponse>>) -> Self {
        Self { stream: response.into_inner(), cursor: String::new() }
    }

    /// The next message, or how the stream ended.
    pub async fn next(&mut self) -> Result<Option<Event>, Status> {
        let next = timeout(PATIENCE, self.stream.message()).await.expect("a message in time")?;
        Ok(next.map(|message| {
            assert!(message.cursor.len() <= 128);
            let event = message.event.expect("an event");
            let hint = matches!(event, Event::Changed(_) | Event::Progress(_));
            // What is before a gap may have none either.
            let opening = matches!(event, Event::Checkpoint(checkpoint) if !checkpoint.caught_up);
            let lacks = message.cursor.is_empty();
            assert!(lacks == hint || lacks && opening, "hints have no cursor, all else has: {event:?}");
            if !lacks {
                self.cursor = message.cursor;
            }
            event
        }))
    }

    /// The next message of a stream that goes on.
    pub async fn event(&mut self) -> Event {
        self.next().await.expect("no error").expect("the stream goes on")
    }

    /// The next outcome; everything else is passed over.
    pub async fn finished(&mut self) -> Job {
        loop {
            if let Event::Finished(job) = self.event().await {
                return *job;
            }
        }
    }

    /// The next checkpoint; it must be the next message.
    pub async fn checkpoint(&mut self) -> Checkpoint {
        match self.event().await {
            Event::Checkpoint(checkpoint) => checkpoint,
            other => panic!("no checkpoint: {other:?}"),
        }
    }

    /// The ids of all outcomes up to the checkpoint that says `caught_up`.
    pub async fn replay(&mut self) -> Vec<String> {
        let mut ids = Vec::new();
        loop {
            match self.event().await {
                Event::Finished(job) => ids.push(job.job_id),
                Event::Checkpoint(checkpoint) if checkpoint.caught_up => return ids,
                _ => {}
            }
        }
    }

    /// Everything up to the end, and how it ended.
    pub async fn rest(mut self) -> (Vec<Event>, Result<(), Status>) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (events, Ok(())),
                Err(status) => return (events, Err(status)),
            }
        }
    }
}

/// The ids of the outcomes among events.
pub fn outcomes(events: &[Event]) -> Vec<&str> {
    let mut ids = Vec::new();
    for event in events {
        if let Event::Finished(job) = event {
            ids.push(job.job_id.as_str());
        }
    }
    ids
}

/// Tries until there is something.
pub async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(PATIENCE, async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("it comes in time")
}
