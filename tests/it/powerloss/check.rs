//! Opens what a loss of power has left, as a start of the server does, and compares it with what was told before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use jobwire::{
    config::Config,
    job::{Error, Filter, JobId, JobSpec, Key, Payload, Timestamp, View},
    proto::{SubmitRequest, payload::Body},
    store::{GroupReply, ListQuery, LogId, Position, Queues, Store, Submission, sqlite, sqlite::SqliteStore},
};
use tempfile::TempDir;
use uuid::Uuid;

use super::ledger::{Known, Outcome, Run};
use crate::support::memory_dir;

/// Jobs of one page.
const PAGE: usize = 1000;

/// Where states are built, one after the other.
pub struct Checker {
    dir: TempDir,
    config: Arc<Config>,
    plans: Arc<BTreeMap<String, SubmitRequest>>,
    /// The log that cursors belong to, once one was told.
    log: Option<LogId>,
    runtime: tokio::runtime::Runtime,
}

impl Checker {
    pub fn new(plans: Arc<BTreeMap<String, SubmitRequest>>) -> Self {
        let mut config = Config::default();
        config.store.readers = 1;
        config.store.reserve_bytes = 0;
        Self {
            dir: memory_dir(),
            config: config.into(),
            plans,
            log: None,
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
        }
    }

    /// What is wrong with these files, if something is.
    pub fn check(&mut self, files: &BTreeMap<String, Vec<u8>>, known: &Known) -> Result<(), String> {
        let root = self.dir.path().join("disk");
        if root.exists() {
            fs::remove_dir_all(&root).expect("a directory that can be removed");
        }
        put(files, &root);
        let data = root.join("data");
        let store = SqliteStore::open(&data, self.config.clone(), now())
            .map_err(|error| format!("does not open: {error}"))?;
        let found = self.runtime.block_on(compare(&store, &data, &self.plans, known));
        let log = store.log_id();
        self.runtime.block_on(store.close());
        found?;
        if !known.accepted.is_empty() && *self.log.get_or_insert(log) != log {
            return Err("the log of outcomes has another name".into());
        }
        Ok(())
    }
}

/// Writes files below a directory.
pub fn put(files: &BTreeMap<String, Vec<u8>>, root: &Path) {
    fs::create_dir_all(root).expect("a directory");
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    Timestamp(since.as_millis() as i64)
}

async fn compare(
    store: &SqliteStore,
    data: &Path,
    plans: &BTreeMap<String, SubmitRequest>,
    known: &Known,
) -> Result<(), String> {
    let report = sqlite::verify(data).map_err(|error| format!("cannot be verified: {error}"))?;
    if !report.problems.is_empty() {
        return Err(format!("damaged: {:?}", report.problems));
    }
    compare_feed(store, known).await?;
    compare_jobs(store, plans, known).await?;
    compare_requests(store, plans, known).await
}

async fn compare_feed(store: &SqliteStore, known: &Known) -> Result<(), String> {
    let mut feed: Vec<(Run, Outcome)> = Vec::new();
    let mut after = Position(0);
    loop {
        let page = store.outcomes(after, PAGE, &Queues::All).await.map_err(|error| error.to_string())?;
        if page.upto == after {
            break;
        }
        after = page.upto;
        feed.extend(
            page.outcomes
                .iter()
                .map(|outcome| ((outcome.job.id.to_string(), outcome.job.run), Outcome::from(&*outcome.job))),
        );
    }
    let told = |run: &&Run| !known.deleting.contains(&run.0);
    let begin = feed.iter().map(|(run, _)| run).filter(told);
    let watched: Vec<_> = known.watched.iter().filter(told).collect();
    let begin: Vec<_> = begin.take(watched.len()).collect();
    if let Some((was, is)) = watched.iter().zip(&begin).find(|(was, is)| was != is) {
        return Err(format!("the feed had {was:?} and has {is:?} at its place"));
    }
    if begin.len() < watched.len() {
        return Err(format!(
            "the feed of {} outcomes has lost {}",
            watched.len(),
            watched.len() - begin.len()
        ));
    }
    let feed: BTreeMap<_, _> = feed.into_iter().collect();
    for (run, was) in known.ended.iter().filter(|(run, _)| told(run)) {
        match feed.get(run) {
            None => return Err(format!("the outcome of {run:?} is lost")),
            Some(is) if is != was => {
                return Err(format!("the outcome of {run:?} was {was:?} and is {is:?}"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

async fn compare_jobs(
    store: &SqliteStore,
    plans: &BTreeMap<String, SubmitRequest>,
    known: &Known,
) -> Result<(), String> {
    let mut found = BTreeSet::new();
    let mut after = None;
    loop {
        let query =
            ListQuery { filter: Filter::default(), view: View::Full, limit: PAGE, oldest_first: true, after };
        let page = store.list(query).await.map_err(|error| error.to_string())?;
        for job in page.jobs {
            let id = job.id.to_string();
            let Some(plan) = plans.get(&id) else { return Err(format!("{id} was never asked for")) };
            if job.spec.payload.bytes() != payload(plan) {
                return Err(format!("{id} has another payload"));
            }
            if known.cancelled.contains(&id) && !job.cancel_requested && !job.state.is_final() {
                return Err(format!("{id} was cancelled and is {}", job.state));
            }
            if known.runs.get(&id).is_some_and(|&run| job.run < run) {
                return Err(format!("{id} was retried and is in run {}", job.run));
            }
            if known.deleted.contains(&id) {
                return Err(format!("{id} was deleted and is {}", job.state));
            }
            if known.ended.keys().any(|(ended, run)| *ended == id && *run == job.run) && !job.state.is_final()
            {
                return Err(format!("{id} had ended and is {}", job.state));
            }
            found.insert(id);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let lost: Vec<_> = known.accepted.difference(&found).filter(|id| !known.deleting.contains(*id)).collect();
    match lost.first() {
        None => Ok(()),
        Some(one) => Err(format!(
            "{} acknowledged jobs of {} are lost, such as {one}",
            lost.len(),
            known.accepted.len()
        )),
    }
}

/// Asks again with request ids that were answered before.
async fn compare_requests(
    store: &SqliteStore,
    plans: &BTreeMap<String, SubmitRequest>,
    known: &Known,
) -> Result<(), String> {
    let there: Vec<_> = known.accepted.difference(&known.deleting).collect();
    for &id in there.last().into_iter().chain(fastrand::choice(&there)) {
        let job_id: JobId = id.parse().expect("an id");
        let (found, _) = store.get(vec![job_id], View::Full).await.map_err(|error| error.to_string())?;
        let job = found[0].as_ref().ok_or_else(|| format!("{id} is in lists only"))?;
        match repeat(store, &plans[id], job.spec.clone()).await? {
            Ok(submitted) if submitted[0].deduplicated && submitted[0].job.id == job.id => {}
            other => return Err(format!("the request of {id} is forgotten: {other:?}")),
        }
    }
    if let Some(id) = fastrand::choice(&known.deleted) {
        let any = JobSpec::new("echo".parse().expect("a kind"), Payload::none());
        match repeat(store, &plans[id], any.into()).await? {
            Err((_, Error::JobDeleted { .. })) => {}
            other => return Err(format!("the request of {id}, deleted, is forgotten: {other:?}")),
        }
    }
    Ok(())
}

async fn repeat(store: &SqliteStore, plan: &SubmitRequest, spec: Arc<JobSpec>) -> Result<GroupReply, String> {
    let submission = Submission {
        job_id: Uuid::new_v4().to_string().parse().expect("an id"),
        own_id: false,
        caller: String::new(),
        request_id: Some(Key::parse("request_id", &plan.request_id).expect("a request id")),
        spec,
        reject_duplicate: false,
        check_only: false,
        trace: BTreeMap::new(),
    };
    let mut replies = store.submit(now(), vec![vec![submission]]).await.map_err(|error| error.to_string())?;
    Ok(replies.remove(0))
}

fn payload(plan: &SubmitRequest) -> &[u8] {
    match plan.spec.as_ref().and_then(|spec| spec.payload.as_ref()).and_then(|payload| payload.body.as_ref())
    {
        Some(Body::Text(text)) => text.as_bytes(),
        other => panic!("not a text: {other:?}"),
    }
}
