//! What callers do to a job that is there: cancel, retry, delete.
//!
//! What changes an unfinished job is a move, which nobody else can have made meanwhile. A final job has no row that a move
//! could take away: there the lock of its `job` row keeps others out, until the statement after it has looked again.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    database::Database,
    hints::Hint,
    moves::{Present, Unit},
    pool::{Failure, Result, Step},
    rows::{JobRow, get, millis},
    standing::Span,
};
use crate::{
    job::{
        Cancelled, Error, Job, JobId, JobSpec, Live, LiveState, Retried, State, Suspension, Timestamp, View,
    },
    store::{Cancel, Change, Delete, LeaseId, Position, Retry, fixed::Fixed},
};

const LOCK: &str = include_str!("sql/lock.sql");
const RERUN: &str = include_str!("sql/rerun.sql");
const REMOVE: &str = include_str!("sql/remove.sql");

type Answer<T> = std::result::Result<T, Error>;

/// A new run of a final job.
struct Rerun {
    /// Its place in the batch: of two that take the same key, the first one gets it.
    place: usize,
    num: i64,
    line: i32,
    was_version: i64,
    bytes: i64,
    spec: std::sync::Arc<JobSpec>,
    id: JobId,
    live: Live,
}

impl Rerun {
    /// The job at the beginning of its new run.
    fn begun(&self, row: &JobRow) -> Job {
        let fixed = Fixed {
            id: self.id.clone(),
            spec: self.spec.clone(),
            trace: row.job.trace.clone(),
            submitted: row.job.submit_time,
        };
        fixed.live(&self.live)
    }
}

/// Jobs that callers name, as they are now.
struct Named {
    /// How far the feed had come.
    head: Position,
    unit: Unit,
    nums: HashMap<JobId, i64>,
    reruns: HashMap<i64, Rerun>,
    /// Positions and versions of the newest outcomes of jobs that are to go.
    removals: HashMap<i64, (i64, i64)>,
}

impl Named {
    /// The job, if it is there and its etag is this one.
    fn find(&self, id: &JobId, etag: Option<&str>) -> Answer<i64> {
        let found = self.nums.get(id).filter(|num| !self.removals.contains_key(num));
        let Some((num, job)) = found.and_then(|&num| Some((num, self.unit.job(num)?))) else {
            return Err(Error::JobNotFound { job_id: id.to_string() });
        };
        let version = self.reruns.get(&num).map_or(job.present.version(), |rerun| rerun.live.version);
        let present = Job::etag_of(version);
        if etag.is_some_and(|etag| etag != present) {
            return Err(Error::EtagMismatch { job_id: id.to_string(), etag: present });
        }
        Ok(num)
    }
}

impl Database {
    async fn named(&self, ids: impl Iterator<Item = &JobId>) -> Result<Named> {
        let ids: Vec<JobId> = ids.collect::<HashSet<_>>().into_iter().cloned().collect();
        let found = self.jobs_by_id(&ids, View::Basic).await?;
        let rows: Vec<_> = found.jobs.into_iter().flatten().collect();
        let nums = rows.iter().map(|row| (row.job.id.clone(), row.num)).collect();
        Ok(Named {
            head: found.head,
            unit: Unit::new(rows),
            nums,
            reruns: HashMap::new(),
            removals: HashMap::new(),
        })
    }

    pub async fn cancel_jobs(&self, now: Timestamp, cancels: Vec<Cancel>) -> Result<Vec<Answer<Change>>> {
        let mut answers = BTreeMap::new();
        let mut open: Vec<usize> = (0..cancels.len()).collect();
        while !open.is_empty() {
            let mut named = self.named(open.iter().map(|&at| &cancels[at].job_id)).await?;
            let verdicts: Vec<_> =
                open.iter().map(|&at| (at, cancel_one(&mut named, &cancels[at]))).collect();
            let moved = self.carry_out(now, &named.unit).await?;
            open.clear();
            for (at, verdict) in verdicts {
                let num = named.nums.get(&cancels[at].job_id);
                if num.is_some_and(|&num| named.unit.is_changed(num) && !moved.has(num)) {
                    open.push(at);
                } else {
                    answers.insert(at, self.changed(&named, &cancels[at].job_id, verdict, now)?);
                }
            }
        }
        Ok(answers.into_values().collect())
    }

    pub async fn retry_jobs(&self, now: Timestamp, retries: Vec<Retry>) -> Result<Vec<Answer<Change>>> {
        let mut answers = BTreeMap::new();
        let mut open: Vec<usize> = (0..retries.len()).collect();
        while !open.is_empty() {
            let mut named = self.named(open.iter().map(|&at| &retries[at].job_id)).await?;
            let verdicts: Vec<_> =
                open.iter().map(|&at| (at, retry_one(&mut named, now, &retries[at]))).collect();
            let moved = self.carry_out(now, &named.unit).await?;
            let begun = self.begin_runs(&named.reruns).await?;
            open.clear();
            for (at, verdict) in verdicts {
                let id = &retries[at].job_id;
                let num = named.nums.get(id).copied();
                let refused =
                    num.and_then(|num| named.reruns.get(&num)).filter(|run| !begun.contains(&run.num));
                if let Some(rerun) = refused {
                    // Somebody holds its key, or has changed it meanwhile: then it is looked at anew.
                    match self.key_in_use(rerun).await? {
                        Some(error) if verdict.is_ok() => drop(answers.insert(at, Err(error))),
                        _ => open.push(at),
                    }
                } else if num.is_some_and(|num| named.unit.is_changed(num) && !moved.has(num)) {
                    open.push(at);
                } else {
                    answers.insert(at, self.changed(&named, id, verdict.map(|()| None), now)?);
                }
            }
        }
        Ok(answers.into_values().collect())
    }

    /// The answer to a change that was carried out, or refused. The job as the change has left it: what followed at once,
    /// by other hands, is not told.
    fn changed(
        &self,
        named: &Named,
        id: &JobId,
        verdict: Answer<Option<LeaseId>>,
        now: Timestamp,
    ) -> Result<Answer<Change>> {
        let revoke = match verdict {
            Ok(revoke) => revoke,
            Err(error) => return Ok(Err(error)),
        };
        let found = named.nums.get(id).and_then(|num| Some((named.unit.job(*num)?, named.reruns.get(num))));
        let Some((job, rerun)) = found else { return Err(Failure::Damaged("a job")) };
        let job = match rerun {
            Some(rerun) => rerun.begun(&job.row),
            None => job.as_left(&self.lines, now)?,
        };
        Ok(Ok(Change { job, revoke }))
    }

    /// Begins new runs where the jobs are still as they were. Answers with those.
    async fn begin_runs(&self, reruns: &HashMap<i64, Rerun>) -> Result<HashSet<i64>> {
        if reruns.is_empty() {
            return Ok(HashSet::new());
        }
        let mut runs: Vec<&Rerun> = reruns.values().collect();
        runs.sort_unstable_by_key(|run| run.place);
        let nums: Vec<i64> = runs.iter().map(|run| run.num).collect();
        let versions: Vec<i64> = runs.iter().map(|run| run.was_version).collect();
        let line: Vec<i32> = runs.iter().map(|run| run.line).collect();
        let state: Vec<i32> = runs.iter().map(|run| run.live.state as i32).collect();
        let number: Vec<i32> = runs.iter().map(|run| run.live.run as i32).collect();
        let priority: Vec<i32> = runs.iter().map(|run| run.live.priority).collect();
        let version: Vec<i64> = runs.iter().map(|run| run.live.version).collect();
        let due: Vec<i64> = runs.iter().map(|run| run.live.due.0).collect();
        let rank: Vec<i64> = runs.iter().map(|run| run.live.rank()).collect();
        let wake: Vec<_> = runs.iter().map(|run| run.live.wake().map(|time| time.0)).collect();
        let start_by: Vec<_> = runs.iter().map(|run| run.live.start_by.map(|time| time.0)).collect();
        let end_by: Vec<_> = runs.iter().map(|run| run.live.end_by.map(|time| time.0)).collect();
        let bytes: Vec<i64> = runs.iter().map(|run| run.bytes).collect();
        let retention: Vec<_> = runs.iter().map(|run| run.spec.retention.map(millis)).collect();
        let key = |run: &Rerun| run.spec.unique_key.as_ref().map(ToString::to_string);
        let queues: Vec<_> =
            runs.iter().map(|run| key(run).map(|_| run.spec.queue.as_str().to_owned())).collect();
        let keys: Vec<_> = runs.iter().map(|run| key(run)).collect();
        let rows = self
            .pools
            .write
            .transaction(&[
                Step { sql: LOCK, params: &[&nums] },
                Step {
                    sql: RERUN,
                    params: &[
                        &nums, &versions, &line, &state, &number, &priority, &version, &due, &rank, &wake,
                        &start_by, &end_by, &bytes, &retention, &queues, &keys,
                    ],
                },
            ])
            .await?;
        let begun: HashSet<i64> = rows.iter().map(|row| get(row, "num")).collect();
        let changed = runs.iter().filter(|run| begun.contains(&run.num)).map(|run| run.id.clone());
        let due = runs.iter().filter(|run| begun.contains(&run.num) && run.live.state == LiveState::Queued);
        let standing = due.map(|run| Span::at(run.line, run.live.rank()));
        self.news(Hint { due: !begun.is_empty(), ..Hint::standing(standing) }, changed);
        Ok(begun)
    }

    /// Why a run cannot begin, if another job holds its key.
    async fn key_in_use(&self, rerun: &Rerun) -> Result<Option<Error>> {
        let Some(key) = &rerun.spec.unique_key else { return Ok(None) };
        let Some(holder) = self.holder(&rerun.spec.queue, key).await? else { return Ok(None) };
        if holder == rerun.num {
            return Ok(None);
        }
        let row = self.jobs(&[holder], View::Basic).await?.pop().flatten();
        Ok(row
            .map(|row| Error::UniqueKeyInUse { unique_key: key.to_string(), job_id: row.job.id.to_string() }))
    }

    pub async fn delete_jobs(&self, deletes: Vec<Delete>) -> Result<Vec<Answer<Position>>> {
        let mut answers: Vec<Answer<Position>> = deletes.iter().map(|_| Ok(Position(0))).collect();
        let mut open: Vec<usize> = (0..deletes.len()).collect();
        while !open.is_empty() {
            let mut named = self.named(open.iter().map(|&at| &deletes[at].job_id)).await?;
            for &at in &open {
                answers[at] = delete_one(&mut named, &deletes[at]);
            }
            let Named { nums, removals, .. } = named;
            let changes: Vec<_> =
                removals.iter().map(|(&num, &(upto, version))| (num, upto, Some(version))).collect();
            let removed = self.remove(&changes).await.inspect_err(|failure| {
                if failure.may_have_worked() {
                    self.hints.post_missed();
                }
            })?;
            for (id, num) in nums.iter().filter(|(_, num)| removed.contains(num)) {
                if let Some(&(upto, _)) = removals.get(num) {
                    self.hints.post_deleted(id.clone(), Position(upto));
                }
            }
            open.retain(|&at| {
                let num = nums.get(&deletes[at].job_id).filter(|_| answers[at].is_ok());
                num.is_some_and(|num| !removed.contains(num))
            });
        }
        Ok(answers)
    }

    /// Removes outcomes of final jobs up to a position, and jobs that have no other: (number, position, the version that
    /// must still be the newest). Answers with the jobs that are gone.
    pub async fn remove(&self, removals: &[(i64, i64, Option<i64>)]) -> Result<HashSet<i64>> {
        if removals.is_empty() {
            return Ok(HashSet::new());
        }
        let nums: Vec<i64> = removals.iter().map(|&(num, ..)| num).collect();
        let upto: Vec<i64> = removals.iter().map(|&(_, upto, _)| upto).collect();
        let versions: Vec<Option<i64>> = removals.iter().map(|&(.., version)| version).collect();
        let steps =
            [Step { sql: LOCK, params: &[&nums] }, Step { sql: REMOVE, params: &[&nums, &upto, &versions] }];
        let rows = self.pools.write.transaction(&steps).await?;
        Ok(rows.iter().map(|row| get(row, "num")).collect())
    }
}

fn cancel_one(named: &mut Named, cancel: &Cancel) -> Answer<Option<LeaseId>> {
    let num = named.find(&cancel.job_id, cancel.etag.as_deref())?;
    let Some(Present::Live(live)) = named.unit.job(num).map(|job| &job.present) else { return Ok(None) };
    let lease = live.lease.as_ref().map(|_| LeaseId { job: num, fence: live.fence });
    match live.cancel(&cancel.reason) {
        Cancelled::Now(ending) => named.unit.finish(num, ending),
        Cancelled::Asked(live) => named.unit.live(num, live),
        Cancelled::Already => {}
    }
    Ok(lease)
}

fn retry_one(named: &mut Named, now: Timestamp, retry: &Retry) -> Answer<()> {
    let num = named.find(&retry.job_id, retry.etag.as_deref())?;
    let Some(job) = named.unit.job(num) else { return Ok(()) };
    let suspension = match (&job.present, named.reruns.get(&num)) {
        (_, Some(rerun)) => Suspension::Live(&rerun.live),
        (Present::Live(live), None) => Suspension::Live(live),
        (&Present::Final { state, run, version }, None) => Suspension::Final { state, run, version },
    };
    let row = &job.row;
    match suspension.retry(retry.job_id.as_str(), &row.job.spec, retry.delay, now)? {
        Retried::Now(live) => named.unit.live(num, live),
        Retried::Run(live) => {
            let rerun = Rerun {
                place: named.reruns.len(),
                num,
                line: row.line,
                was_version: row.job.version,
                bytes: row.job.spec.payload.size as i64,
                spec: row.job.spec.clone(),
                id: row.job.id.clone(),
                live,
            };
            named.reruns.insert(num, rerun);
        }
    }
    Ok(())
}

fn delete_one(named: &mut Named, delete: &Delete) -> Answer<Position> {
    let num = match named.find(&delete.job_id, delete.etag.as_deref()) {
        Err(Error::JobNotFound { .. }) if delete.allow_missing => return Ok(named.head),
        found => found?,
    };
    let Some(job) = named.unit.job(num) else { return Ok(named.head) };
    match (job.present.state(), job.row.seq) {
        (State::Final(_), Some(seq)) => {
            named.removals.insert(num, (seq, job.row.job.version));
            Ok(Position(seq))
        }
        (state, _) => Err(Error::JobState {
            job_id: delete.job_id.to_string(),
            state,
            wanted: "a final state: cancel it first",
        }),
    }
}
