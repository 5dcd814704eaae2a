//! What workers say.

use std::time::Duration;

use prost::Message;
use prost_types::Duration as ProtoDuration;

use super::{MS, refused, submit::counted};
use crate::{
    config::{Config, Limits},
    fuzz::text,
    job::{Cause, Report, Timestamp},
    proto::{
        self, Finish, LeaseJobsRequest, LeaseProgress, RenewLeasesRequest, WorkRequest, WorkerHello, finish,
        payload::Body, work_request,
    },
    server::{convert, lists::List, tokens::LeaseKey},
    store::LeaseId,
};

const LEASE: LeaseId = LeaseId { job: 7, fence: 0x1234_5678_0000_0001 };

fn lease_key() -> LeaseKey {
    LeaseKey::new(&[7; 32])
}

fn finishes() -> Vec<Finish> {
    use finish::Outcome::*;
    let five = Some(ProtoDuration { seconds: 5, nanos: 0 });
    let text = |text: &str| proto::Payload { body: Some(Body::Text(text.into())), ..Default::default() };
    let error = proto::JobError {
        cause: 3,
        code: "smtp.refused".into(),
        message: "no\0".into(),
        retryable: true,
        details: Some(text("{}")),
        retry_delay: five,
    };
    let release = proto::Release { reason: "busy".into(), delay: five };
    let outcomes = [None, Some(Succeeded(text("out"))), Some(Failed(error)), Some(Released(release))];
    let lease_id = lease_key().text(LEASE);
    outcomes.map(|outcome| Finish { lease_id: lease_id.clone(), outcome }).into()
}

fn step_seed() -> LeaseProgress {
    let details = proto::Payload { body: Some(Body::Text("{}".into())), ..Default::default() };
    let progress =
        proto::Progress { fraction: 0.5, note: "half".into(), details: Some(details), update_time: None };
    LeaseProgress { lease_id: lease_key().text(LEASE), progress: Some(progress) }
}

pub fn work_seeds() -> Vec<Vec<u8>> {
    use work_request::Message::{Capacity, Heartbeat, Hello, Progress};
    let lease_ids = vec![lease_key().text(LEASE), "nonsense".into()];
    let hello = WorkerHello {
        worker_id: "w1".into(),
        kinds: vec!["email.send".into()],
        queues: vec!["acme/mail".into()],
        max_in_flight: 8,
        held_lease_ids: lease_ids.clone(),
        labels: [("zone".into(), "a".into())].into(),
        sdk: "rust\u{1}".into(),
        payload_format: 1,
    };
    let messages = [
        Hello(hello),
        Capacity(proto::WorkerCapacity { max_in_flight: -1 }),
        Heartbeat(proto::WorkerHeartbeat { lease_ids, last_lease_sequence: 7 }),
        Progress(step_seed()),
    ];
    let finishes = finishes().into_iter().map(work_request::Message::Finish);
    messages.into_iter().chain(finishes).map(|m| WorkRequest { message: Some(m) }.encode_to_vec()).collect()
}

pub fn work(bytes: &[u8]) {
    let Ok(WorkRequest { message: Some(message) }) = WorkRequest::decode(bytes) else { return };
    let (config, key) = (Config::default(), lease_key());
    match message {
        work_request::Message::Hello(asked) => match convert::hello(asked.clone(), &config, &key) {
            Err(error) => refused(&error),
            Ok(hello) => {
                worker(&asked.worker_id, &asked.kinds, &asked.queues);
                assert!(hello.window <= 10_000 && hello.window as i64 <= i64::from(asked.max_in_flight));
                assert!(hello.sdk.len() <= 128 && asked.labels.len() <= 64);
                told_back(asked.held_lease_ids.len(), &hello.held);
            }
        },
        work_request::Message::Capacity(capacity) => {
            match convert::window("capacity.max_in_flight", capacity.max_in_flight, &config) {
                Err(error) => refused(&error),
                Ok(window) => assert!(window <= 10_000),
            }
        }
        work_request::Message::Heartbeat(beat) => {
            let names = beat.lease_ids.len();
            match convert::named("heartbeat.lease_ids", beat.lease_ids, &key) {
                Err(error) => refused(&error),
                Ok(named) => told_back(names, &named),
            }
        }
        work_request::Message::Progress(step) => progress(step),
        work_request::Message::Finish(finish) => report(finish),
    }
}

fn worker(id: &str, kinds: &[String], queues: &[String]) {
    assert!((1..=128).contains(&id.len()) && !id.starts_with("server-"));
    assert!((1..=256).contains(&kinds.len()) && queues.len() <= 256);
    assert!(kinds.iter().chain(queues).all(|name| (1..=128).contains(&name.len())));
}

fn told_back(names: usize, leases: &convert::Leases) {
    assert!(names <= 10_000 && leases.ours.len() + leases.others.len() <= names);
    assert!(leases.others.iter().all(|text| text.len() <= 128 && lease_key().lease(text).is_none()));
    let told =
        convert::lost(&leases.ours.iter().copied().collect::<Vec<_>>(), Default::default(), &lease_key());
    assert!(
        told.iter().all(|text| lease_key().lease(text).is_some_and(|lease| leases.ours.contains(&lease)))
    );
}

fn progress(step: LeaseProgress) {
    match convert::step("progress", step, Timestamp(5)) {
        Err(error) => refused(&error),
        Ok((_, progress)) => {
            assert!((0.0..=1.0).contains(&progress.fraction) && progress.note.len() <= 1 << 10);
            assert!(!progress.note.contains('\0') && progress.update_time == Timestamp(5));
            assert!(progress.details.is_none_or(|details| details.size <= 16 << 10));
        }
    }
}

fn report(finish: Finish) {
    match convert::report(finish, &Limits::default()) {
        Err(error) => refused(&error),
        Ok(Report::Succeeded(output)) => assert!(output.size <= 1 << 20),
        Ok(Report::Released { delay }) => assert!(delay <= Duration::from_secs(366 * 86_400)),
        Ok(Report::Failed(error)) => {
            assert!(error.cause == Cause::Handler && error.code.len() <= 128);
            assert!(error.message.len() <= 8 << 10 && !error.message.contains('\0'));
            assert!(error.details.is_none_or(|details| details.size <= 16 << 10));
            assert!(error.retry_delay.is_none_or(|delay| delay <= Duration::from_secs(366 * 86_400)));
        }
    }
}

pub fn worker_call_seeds() -> Vec<Vec<u8>> {
    let lease = LeaseJobsRequest {
        worker_id: "me".into(),
        kinds: vec!["email.send".into()],
        queues: vec!["mail".into()],
        max_jobs: 5,
        wait: Some(ProtoDuration { seconds: 20, nanos: 0 }),
        lease_duration: Some(ProtoDuration { seconds: 60, nanos: 0 }),
        request_id: "r1".into(),
        payload_format: 1,
    };
    let renew = RenewLeasesRequest {
        worker_id: "me".into(),
        lease_ids: vec![lease_key().text(LEASE)],
        lease_duration: lease.lease_duration,
        progress: vec![step_seed()],
    };
    let calls = [(0, lease.encode_to_vec()), (1, renew.encode_to_vec())];
    let finish = |finish| (2, proto::FinishJobRequest { finish: Some(finish) }.encode_to_vec());
    let calls = calls.into_iter().chain(finishes().into_iter().map(finish));
    calls.map(|(call, bytes)| [&[call][..], &bytes].concat()).collect()
}

/// The first byte picks the call.
pub fn worker_calls(bytes: &[u8]) {
    let Some((&call, bytes)) = bytes.split_first() else { return };
    let config = Config::default();
    match call {
        0 => {
            let Ok(asked) = LeaseJobsRequest::decode(bytes) else { return };
            match convert::lease_request(asked.clone(), &config, 100, None) {
                Err(error) => refused(&error),
                Ok(request) => {
                    worker(&asked.worker_id, &asked.kinds, &asked.queues);
                    assert!((1..=1000).contains(&request.max_jobs) && request.lease >= 1000 * MS);
                    assert_eq!(request.request_id.is_none(), asked.request_id.is_empty());
                }
            }
        }
        1 => {
            let _ = List::progress(5).check(bytes).map_err(|error| refused(&error));
            let Ok(asked) = RenewLeasesRequest::decode(bytes) else { return };
            counted(List::progress, bytes, asked.progress.len());
            let _ = convert::lease_duration(asked.lease_duration.as_ref(), &config).map_err(|e| refused(&e));
            let _ = convert::named("lease_ids", asked.lease_ids, &lease_key()).map_err(|e| refused(&e));
            asked.progress.into_iter().for_each(progress);
        }
        _ => {
            let Ok(asked) = proto::FinishJobRequest::decode(bytes) else { return };
            asked.finish.into_iter().for_each(report);
        }
    }
}

pub fn lease_seeds() -> Vec<Vec<u8>> {
    let text = lease_key().text(LEASE);
    let cut = text[..text.len() - 1].to_owned();
    vec![text.into(), cut.into(), b"l1.".to_vec()]
}

pub fn lease_id(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    // A text is a lease's if it is exactly what the lease is told as.
    if let Some(lease) = lease_key().lease(text) {
        assert_eq!(lease_key().text(lease), text);
    }
}
