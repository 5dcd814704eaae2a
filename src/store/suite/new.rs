use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::world::KIND;
use crate::{
    job::{JobSpec, Payload, Start},
    store::Submission,
};

/// A job to submit, plain unless more is said.
#[derive(Clone, Debug)]
pub struct New(Submission);

/// A job with an id of the caller's own.
pub fn job(id: &str) -> New {
    let spec = JobSpec::new(KIND.parse().unwrap(), Payload::new(Payload::TEXT, "in"));
    New(Submission {
        job_id: id.parse().unwrap(),
        own_id: true,
        caller: "ada".into(),
        request_id: None,
        spec: Arc::new(spec),
        reject_duplicate: false,
        check_only: false,
        trace: BTreeMap::new(),
    })
}

/// A job whose id was drawn for it.
pub fn drawn(id: &str) -> New {
    job(id).submission(|submission| submission.own_id = false)
}

impl New {
    pub fn id(&self) -> String {
        self.0.job_id.to_string()
    }

    pub fn submission(mut self, change: impl FnOnce(&mut Submission)) -> Self {
        change(&mut self.0);
        self
    }

    pub fn spec(mut self, change: impl FnOnce(&mut JobSpec)) -> Self {
        change(Arc::make_mut(&mut self.0.spec));
        self
    }

    pub fn queue(self, queue: &str) -> Self {
        self.spec(|spec| spec.queue = queue.parse().unwrap())
    }

    pub fn kind(self, kind: &str) -> Self {
        self.spec(|spec| spec.kind = kind.parse().unwrap())
    }

    pub fn payload(self, text: impl Into<Vec<u8>>) -> Self {
        self.spec(|spec| spec.payload = Payload::new(Payload::TEXT, text.into()))
    }

    pub fn priority(self, priority: i32) -> Self {
        self.spec(|spec| spec.priority = priority)
    }

    pub fn delay(self, delay: Duration) -> Self {
        self.spec(|spec| spec.start = Start::Delay(delay))
    }

    pub fn label(self, name: &str, value: &str) -> Self {
        self.spec(|spec| drop(spec.labels.insert(name.into(), value.into())))
    }

    pub fn max_attempts(self, attempts: u32) -> Self {
        self.spec(|spec| spec.retry.max_attempts = Some(attempts))
    }

    pub fn unique(self, key: &str) -> Self {
        self.spec(|spec| spec.unique_key = Some(key.parse().unwrap()))
    }

    pub fn request(self, id: &str) -> Self {
        self.submission(|submission| submission.request_id = Some(id.parse().unwrap()))
    }

    pub fn caller(self, caller: &str) -> Self {
        self.submission(|submission| submission.caller = caller.into())
    }

    pub fn check(self) -> Self {
        self.submission(|submission| submission.check_only = true)
    }

    pub fn reject(self) -> Self {
        self.submission(|submission| submission.reject_duplicate = true)
    }
}

impl From<New> for Submission {
    fn from(new: New) -> Self {
        new.0
    }
}
