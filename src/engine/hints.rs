//! What a watcher may be told beside outcomes: that a job has changed, how far it has come. Only the newest counts;
//! what a watcher is too slow for is dropped.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::sync::broadcast::{
    Receiver,
    error::{RecvError, TryRecvError},
};

use crate::{
    job::JobId,
    store::{Listening, ProgressHint},
};

/// Jobs of one round.
const MAX_JOBS: usize = 1024;

pub struct Hints {
    changed: Option<Receiver<JobId>>,
    progress: Option<Receiver<Arc<ProgressHint>>>,
    dirty: HashSet<JobId>,
    newest: HashMap<JobId, Arc<ProgressHint>>,
}

impl Hints {
    pub fn new((changed, progress): Listening) -> Self {
        Self { changed, progress, dirty: HashSet::new(), newest: HashMap::new() }
    }

    /// Waits until there is something to tell. May be dropped at any time without a loss.
    pub async fn next(&mut self) {
        if !self.dirty.is_empty() || !self.newest.is_empty() {
            return;
        }
        tokio::select! {
            Ok(id) = receive(&mut self.changed) => drop(self.dirty.insert(id)),
            Ok(hint) = receive(&mut self.progress) => drop(self.newest.insert(hint.job_id.clone(), hint)),
            else => std::future::pending().await,
        }
    }

    /// Everything there is to tell, the newest of each job.
    pub fn take(&mut self) -> (Vec<JobId>, Vec<Arc<ProgressHint>>) {
        drain(&mut self.changed, |id| {
            self.dirty.insert(id);
            self.dirty.len() < MAX_JOBS
        });
        drain(&mut self.progress, |hint| {
            self.newest.insert(hint.job_id.clone(), hint);
            self.newest.len() < MAX_JOBS
        });
        (self.dirty.drain().collect(), self.newest.drain().map(|(_, hint)| hint).collect())
    }
}

/// A lagging receiver has lost hints, as it may.
async fn receive<T: Clone>(receiver: &mut Option<Receiver<T>>) -> Result<T, ()> {
    let Some(receiver) = receiver else { return std::future::pending().await };
    loop {
        match receiver.recv().await {
            Err(RecvError::Lagged(_)) => {}
            received => return received.map_err(drop),
        }
    }
}

fn drain<T: Clone>(receiver: &mut Option<Receiver<T>>, mut take: impl FnMut(T) -> bool) {
    let Some(receiver) = receiver else { return };
    loop {
        match receiver.try_recv() {
            Ok(item) => {
                if !take(item) {
                    return;
                }
            }
            Err(TryRecvError::Lagged(_)) => {}
            Err(_) => return,
        }
    }
}
