//! Accepting jobs: names are looked up, it is decided what is new, and that is inserted. If somebody has taken a name in
//! between, the insert fails as a whole, and the names are looked up again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio_postgres::Row;

use super::{
    block::{is_drawn, lowest_with},
    database::Database,
    pool::Result,
    room::Room,
    rows::{JobRow, get},
};
use crate::{
    job::{Error, Job, JobId, Key, Live, QueueName, Timestamp, View},
    store::{GroupReply, Position, Submission, Submitted, fixed::Fixed, written::fingerprint},
};

const NAMES: &str = include_str!("sql/names.sql");
const HOLDER: &str = "select num from uniq where queue = $1 and key = $2";

/// Names that are taken each time that they have just been looked up: something else is wrong.
const TRIES: usize = 20;

type Answer<T> = std::result::Result<T, Error>;

/// The job that an item leads to.
#[derive(Clone, Copy, Debug)]
pub enum Found {
    /// One that is there.
    There(i64),
    /// One of the batch, by its place among the new ones.
    New(usize),
}

/// A request id that is known.
#[derive(Clone, Debug)]
struct Known {
    found: Found,
    job_id: String,
    asked: Vec<u8>,
    own_id: Option<String>,
    is_there: bool,
}

/// What is there of all that a batch names.
#[derive(Default)]
pub struct Names {
    requests: HashMap<usize, Known>,
    ids: HashMap<usize, i64>,
    /// Ids that callers have named, of jobs that are not there any more.
    pub stale: Vec<(String, i64)>,
    keys: HashMap<usize, i64>,
    jobs: HashMap<i64, JobRow>,
}

/// A job that is new.
pub struct Accepted<'a> {
    pub submission: &'a Submission,
    pub live: Live,
    pub fixed: Fixed,
    job: Arc<Job>,
}

/// A request id that will be known.
pub struct Request<'a> {
    pub submission: &'a Submission,
    pub found: Found,
    pub job_id: JobId,
}

/// What a batch comes to, as far as it was looked at.
pub struct Plan<'a> {
    pub now: Timestamp,
    position: Position,
    pub names: Names,
    room: Room<'a>,
    pub accepted: Vec<Accepted<'a>>,
    pub requests: Vec<Request<'a>>,
    /// What the items before have taken.
    new_requests: HashMap<(&'a str, &'a Key), Known>,
    new_ids: HashMap<&'a JobId, usize>,
    new_keys: HashMap<(&'a QueueName, &'a Key), Found>,
}

impl Database {
    pub async fn submit_groups(
        &self,
        now: Timestamp,
        groups: Vec<Vec<Submission>>,
    ) -> Result<Vec<GroupReply>> {
        let items: Vec<&Submission> = groups.iter().flatten().collect();
        for tries in 1.. {
            let position = *self.signals.head.borrow();
            // Where the limits are near, one batch after the other looks at exact numbers.
            let _turn = if self.room.is_near(&items) { Some(self.room.turn().await) } else { None };
            if _turn.is_some() {
                self.room.count(&self.lines.counts(&self.pools.read).await?);
            }
            let mut plan = Plan {
                now,
                position,
                names: self.look_up(now, &items).await?,
                room: self.room.as_of_now(&self.lines),
                accepted: Vec::new(),
                requests: Vec::new(),
                new_requests: HashMap::new(),
                new_ids: HashMap::new(),
                new_keys: HashMap::new(),
            };
            let mut at = 0;
            let mut replies = Vec::with_capacity(groups.len());
            for group in &groups {
                replies.push(plan.group(at, group));
                at += group.len();
            }
            match self.insert(&plan).await {
                Err(failure) if failure.is_taken() && tries < TRIES => continue,
                inserted => inserted?,
            }
            return Ok(replies);
        }
        unreachable!("every try returns or goes on")
    }

    /// The job that holds a unique key.
    pub async fn holder(&self, queue: &QueueName, key: &Key) -> Result<Option<i64>> {
        let rows = self.pools.read.query(HOLDER, &[&queue.as_str(), &key.as_str()]).await?;
        Ok(rows.first().map(|row| row.get(0)))
    }

    async fn look_up(&self, now: Timestamp, items: &[&Submission]) -> Result<Names> {
        let (mut request_at, mut callers, mut request_ids) = (Vec::new(), Vec::new(), Vec::new());
        let (mut id_at, mut ids) = (Vec::new(), Vec::new());
        let (mut drawn_at, mut drawn, mut lowest) = (Vec::new(), Vec::new(), Vec::new());
        let (mut key_at, mut queues, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for (at, item) in items.iter().enumerate() {
            let at = at as i64;
            if let Some(request_id) = &item.request_id {
                request_at.push(at);
                callers.push(item.caller.as_str());
                request_ids.push(request_id.as_str());
            }
            if item.own_id {
                id_at.push(at);
                ids.push(item.job_id.as_str());
                // The drawn ones are not among those that callers have named.
                if is_drawn(&item.job_id) {
                    drawn_at.push(at);
                    drawn.push(item.job_id.as_str());
                    lowest.push(lowest_with(&item.job_id));
                }
            }
            if let Some(key) = &item.spec.unique_key {
                key_at.push(at);
                queues.push(item.spec.queue.as_str());
                keys.push(key.as_str());
            }
        }
        if request_at.is_empty() && id_at.is_empty() && key_at.is_empty() {
            return Ok(Names::default());
        }
        let found = self
            .pools
            .read
            .query(
                NAMES,
                &[
                    &request_at,
                    &callers,
                    &request_ids,
                    &id_at,
                    &ids,
                    &key_at,
                    &queues,
                    &keys,
                    &now.0,
                    &drawn_at,
                    &drawn,
                    &lowest,
                ],
            )
            .await?;
        let mut names = Names::default();
        for row in &found {
            names.add(row, items);
        }
        let nums: HashSet<i64> = found.iter().map(|row| get(row, "num")).collect();
        let nums: Vec<i64> = nums.into_iter().collect();
        if !nums.is_empty() {
            names.jobs = by_num(self.jobs(&nums, View::Basic).await?).collect();
            let same = names.may_be_same(items);
            if !same.is_empty() {
                names.jobs.extend(by_num(self.jobs_with_input(&same).await?));
            }
        }
        Ok(names)
    }
}

fn by_num(rows: Vec<Option<JobRow>>) -> impl Iterator<Item = (i64, JobRow)> {
    rows.into_iter().flatten().map(|row| (row.num, row))
}

impl Names {
    /// Jobs whose ids the items name and whose specs are theirs too, but for what the documents say: these must be read.
    fn may_be_same(&self, items: &[&Submission]) -> Vec<i64> {
        let same = self.ids.iter().filter(|(at, num)| {
            self.jobs.get(num).is_some_and(|row| *row.job.spec == *items[**at].spec.omit_payload())
        });
        same.map(|(_, num)| *num).collect::<HashSet<_>>().into_iter().collect()
    }

    fn add(&mut self, row: &Row, items: &[&Submission]) {
        let (sort, at, num): (i32, i64, i64) = (get(row, "sort"), get(row, "at"), get(row, "num"));
        let at = at as usize;
        let is_there: bool = get(row, "is_there");
        match sort {
            1 => {
                let known = Known {
                    found: Found::There(num),
                    job_id: get(row, "job_id"),
                    asked: get(row, "asked"),
                    own_id: get(row, "own_id"),
                    is_there,
                };
                drop(self.requests.insert(at, known));
            }
            2 | 3 if is_there => {
                // Of several the newest.
                let newest = self.ids.entry(at).or_insert(num);
                *newest = num.max(*newest);
            }
            2 => self.stale.push((items[at].job_id.to_string(), num)),
            3 => {}
            _ => drop(self.keys.insert(at, num)),
        }
    }
}

impl<'a> Plan<'a> {
    /// A group, whose items begin at this place of the batch: all of it or nothing.
    fn group(&mut self, at: usize, group: &'a [Submission]) -> GroupReply {
        let (accepted, requests) = (self.accepted.len(), self.requests.len());
        let mark = self.room.mark();
        let mut replies = Vec::with_capacity(group.len());
        for (index, item) in group.iter().enumerate() {
            match self.item(at + index, item) {
                Ok(reply) => replies.push(reply),
                Err(error) => {
                    self.room.roll_back(mark);
                    self.roll_back(accepted, requests);
                    return Err((index, error));
                }
            }
        }
        Ok(replies)
    }

    fn roll_back(&mut self, accepted: usize, requests: usize) {
        for Accepted { submission, .. } in self.accepted.drain(accepted..) {
            self.new_ids.remove(&submission.job_id);
            if let Some(key) = &submission.spec.unique_key {
                self.new_keys.remove(&(&submission.spec.queue, key));
            }
        }
        for Request { submission, .. } in self.requests.drain(requests..) {
            if let Some(request_id) = &submission.request_id {
                self.new_requests.remove(&(submission.caller.as_str(), request_id));
            }
        }
    }

    fn item(&mut self, at: usize, item: &'a Submission) -> Answer<Submitted> {
        if let Some(found) = self.find(at, item)? {
            let job = self.job(found)?;
            if !item.check_only {
                self.remember(at, item, found, &job.id);
            }
            return Ok(Submitted { job, deduplicated: true, position: self.position });
        }
        self.room.admit(item)?;
        let live = Live::admit(&item.spec, self.now);
        let fixed = Fixed {
            id: item.job_id.clone(),
            spec: item.spec.clone(),
            trace: item.trace.clone(),
            submitted: self.now,
        };
        let job = Arc::new(fixed.clone().live(&live));
        if !item.check_only {
            let place = self.accepted.len();
            self.room.take(item);
            self.accepted.push(Accepted { submission: item, live, fixed, job: job.clone() });
            self.new_ids.insert(&item.job_id, place);
            if let Some(key) = &item.spec.unique_key {
                self.new_keys.insert((&item.spec.queue, key), Found::New(place));
            }
            self.remember(at, item, Found::New(place), &item.job_id);
        }
        Ok(Submitted { job, deduplicated: false, position: self.position })
    }

    /// The job that is there already, by request_id, job_id or unique_key, in this order.
    fn find(&self, at: usize, item: &'a Submission) -> Answer<Option<Found>> {
        if let Some(request_id) = &item.request_id
            && let Some(known) = self.request(at, item)
        {
            let (request_id, job_id) = (request_id.to_string(), known.job_id.clone());
            let named = item.job_id.as_str();
            let same_id = !item.own_id || named == job_id || Some(named) == known.own_id.as_deref();
            return if !known.is_there {
                Err(Error::JobDeleted { request_id, job_id })
            } else if !same_id || known.asked != fingerprint(item) {
                Err(Error::RequestIdReused { request_id, job_id })
            } else {
                Ok(Some(known.found))
            };
        }
        let by_id = self.new_ids.get(&item.job_id).map(|&at| Found::New(at));
        let by_id = by_id.or_else(|| self.names.ids.get(&at).map(|&num| Found::There(num)));
        if let Some(found) = by_id.filter(|_| item.own_id) {
            let is_same = match found {
                Found::New(at) => self.accepted[at].submission.spec == item.spec,
                Found::There(num) => self.row(num)?.job.spec == item.spec,
            };
            return if is_same {
                Ok(Some(found))
            } else {
                Err(Error::JobIdInUse { job_id: item.job_id.to_string() })
            };
        }
        let Some(key) = &item.spec.unique_key else { return Ok(None) };
        let holder = self.new_keys.get(&(&item.spec.queue, key)).copied();
        let holder = holder.or_else(|| self.names.keys.get(&at).map(|&num| Found::There(num)));
        match holder {
            Some(holder) if item.reject_duplicate => {
                let job_id = self.job(holder)?.id.to_string();
                Err(Error::UniqueKeyInUse { unique_key: key.to_string(), job_id })
            }
            holder => Ok(holder),
        }
    }

    fn request(&self, at: usize, item: &'a Submission) -> Option<&Known> {
        let request_id = item.request_id.as_ref()?;
        let new = self.new_requests.get(&(item.caller.as_str(), request_id));
        new.or_else(|| self.names.requests.get(&at))
    }

    /// The first answer counts: a repeat does not prolong it.
    fn remember(&mut self, at: usize, item: &'a Submission, found: Found, job_id: &JobId) {
        let Some(request_id) = &item.request_id else { return };
        if self.request(at, item).is_some() {
            return;
        }
        let known = Known {
            found,
            job_id: job_id.to_string(),
            asked: fingerprint(item).into(),
            own_id: item.own_id.then(|| item.job_id.to_string()),
            is_there: true,
        };
        self.new_requests.insert((&item.caller, request_id), known);
        self.requests.push(Request { submission: item, found, job_id: job_id.clone() });
    }

    fn row(&self, num: i64) -> Answer<&JobRow> {
        // It was there a moment ago, when its name was found.
        let gone = || Error::StoreUnavailable("the job was removed at this moment".into());
        self.names.jobs.get(&num).ok_or_else(gone)
    }

    /// A job as it is now, without its input and its output.
    fn job(&self, found: Found) -> Answer<Arc<Job>> {
        let job = match found {
            Found::New(at) => (*self.accepted[at].job).clone(),
            Found::There(num) => (*self.row(num)?.job).clone(),
        };
        Ok(Arc::new(Job { spec: job.spec.omit_payload(), ..job }))
    }
}
