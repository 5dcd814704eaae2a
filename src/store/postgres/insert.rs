//! Writing what was accepted: the parameters of `submit.sql`, column by column, and what its answer means.

use std::collections::HashMap;

use super::{
    block::{Blocks, Numbers, Slice, named},
    database::Database,
    hints::Hint,
    pool::Result,
    rows::millis,
    standing::Span,
    submit::{Found, Plan, Request},
};
use crate::{
    job::{Key, Live, LiveState},
    store::written::{self, fingerprint},
};

const SUBMIT: &str = include_str!("sql/submit.sql");

impl Database {
    /// All that is new of a batch, or nothing of it: somebody may have taken a name in between.
    pub async fn insert(&self, plan: &Plan<'_>) -> Result<()> {
        if plan.accepted.is_empty() && plan.requests.is_empty() {
            return Ok(());
        }
        let specs: Vec<_> = plan.accepted.iter().map(|new| &*new.submission.spec).collect();
        let lines = self.lines.make(&self.pools.write, &specs).await?;

        let new = || plan.accepted.iter();
        let count = plan.accepted.len();
        let ids: Vec<&str> = new().map(|new| new.submission.job_id.as_str()).collect();
        let bodies: Vec<_> = specs.iter().map(|spec| spec.payload.bytes()).collect();
        let sizes: Vec<i32> = bodies.iter().map(|body| body.len() as i32).collect();
        let payloads: Vec<&[u8]> = bodies.iter().map(|body| &body[..]).collect();
        let options: Vec<_> =
            new().map(|new| written::options(&new.submission.spec, &new.submission.trace)).collect();
        let Blocks { blocks, places } = Blocks::of(&plan.accepted, &lines, &options);
        let slices = || blocks.iter().map(|block| block.slice);
        let beginning: Vec<i32> = slices().map(|slice| slice.beginning).collect();
        let ending: Vec<i32> = slices().map(|slice| slice.ending).collect();
        // What they have in common they have from the first of them.
        let firsts: Vec<usize> = slices().map(Slice::first).collect();
        let block_line: Vec<i32> = firsts.iter().map(|&at| lines[at]).collect();
        let block_priority: Vec<i32> = firsts.iter().map(|&at| specs[at].priority).collect();
        let block_type: Vec<&str> =
            firsts.iter().map(|&at| specs[at].payload.content_type.as_str()).collect();
        let block_options: Vec<&Option<String>> = firsts.iter().map(|&at| &options[at]).collect();
        let low: Vec<_> = blocks.iter().map(|block| block.drawn.map(|drawn| drawn.low.as_str())).collect();
        let high: Vec<_> = blocks.iter().map(|block| block.drawn.map(|drawn| drawn.high.as_str())).collect();

        let grant = self.grant(plan.now, &plan.accepted, &lines);
        let mut states: Vec<LiveState> = new().map(|new| new.live.state).collect();
        grant.iter().flat_map(|grant| &grant.jobs).for_each(|&at| states[at] = LiveState::Running);
        let lease = grant.as_ref().map(|grant| &grant.lease);
        let (worker, leased_until) =
            (lease.map(|lease| lease.worker.as_str()), lease.map(|lease| lease.until.0));
        let claim = grant.as_ref().map(|grant| grant.claim);
        let bundled: Vec<usize> = grant.iter().flat_map(|grant| grant.bundled.iter().copied()).collect();
        let (bundled_block, bundled_place) = named(&places, &bundled);

        let is_apart = |at: &usize| grant.as_ref().is_none_or(|grant| !grant.bundled.contains(at));
        let apart: Vec<usize> = (0..count).filter(is_apart).collect();
        let (apart_block, apart_place) = named(&places, &apart);
        let live = || apart.iter().map(|&at| &plan.accepted[at].live);
        let line: Vec<i32> = apart.iter().map(|&at| lines[at]).collect();
        let state: Vec<i32> = apart.iter().map(|&at| states[at] as i32).collect();
        let priority: Vec<i32> = live().map(|live| live.priority).collect();
        let due_at: Vec<i64> = live().map(|live| live.due.0).collect();
        let rank: Vec<i64> = live().map(Live::rank).collect();
        let wake: Vec<_> = live().map(|live| live.wake().map(|time| time.0)).collect();
        let start_by: Vec<_> = live().map(|live| live.start_by.map(|time| time.0)).collect();
        let end_by: Vec<_> = live().map(|live| live.end_by.map(|time| time.0)).collect();
        let bytes: Vec<i64> = apart.iter().map(|&at| payloads[at].len() as i64).collect();
        let retention: Vec<_> = apart.iter().map(|&at| specs[at].retention.map(millis)).collect();

        let keyed: Vec<usize> = (0..count).filter(|&at| specs[at].unique_key.is_some()).collect();
        let (keyed_block, keyed_place) = named(&places, &keyed);
        let queues: Vec<&str> = keyed.iter().map(|&at| specs[at].queue.as_str()).collect();
        let keys: Vec<_> = keyed.iter().map(|&at| specs[at].unique_key.as_ref().map(Key::as_str)).collect();
        let (stale, stale_nums): (Vec<&str>, Vec<i64>) =
            plan.names.stale.iter().map(|(id, num)| (id.as_str(), *num)).unzip();
        let own: Vec<usize> = (0..count).filter(|&at| plan.accepted[at].submission.own_id).collect();
        let (own_block, own_place) = named(&places, &own);
        let own_id: Vec<&str> = own.iter().map(|&at| ids[at]).collect();

        let requests = || plan.requests.iter();
        let callers: Vec<&str> = requests().map(|known| known.submission.caller.as_str()).collect();
        let request_ids: Vec<_> =
            requests().map(|known| known.submission.request_id.as_ref().map(Key::as_str)).collect();
        let place_of = |known: &Request<'_>| match known.found {
            Found::New(at) => Some(places[at]),
            Found::There(_) => None,
        };
        let request_block: Vec<_> =
            requests().map(|known| place_of(known).map(|place| place.block)).collect();
        let request_place: Vec<_> =
            requests().map(|known| place_of(known).map(|place| place.place)).collect();
        let nums: Vec<Option<i64>> = requests()
            .map(|known| match known.found {
                Found::New(_) => None,
                Found::There(num) => Some(num),
            })
            .collect();
        let job_ids: Vec<&str> = requests().map(|known| known.job_id.as_str()).collect();
        let asked: Vec<Vec<u8>> = requests().map(|known| fingerprint(known.submission).into()).collect();
        let own_ids: Vec<Option<&str>> = requests()
            .map(|known| known.submission.own_id.then(|| known.submission.job_id.as_str()))
            .collect();
        let until = plan.now.after(self.config.limits.request_id_window);

        let tally = Tally::of((0..count).map(|at| (lines[at], states[at], payloads[at].len() as i64)));

        let inserted = self
            .pools
            .write
            .query(
                SUBMIT,
                &[
                    &ids,
                    &payloads,
                    &beginning,
                    &ending,
                    &block_line,
                    &block_priority,
                    &block_type,
                    &block_options,
                    &low,
                    &high,
                    &plan.now.0,
                    &worker,
                    &self.replica,
                    &leased_until,
                    &claim,
                    &bundled_block,
                    &bundled_place,
                    &apart_block,
                    &apart_place,
                    &line,
                    &state,
                    &priority,
                    &due_at,
                    &rank,
                    &wake,
                    &start_by,
                    &end_by,
                    &bytes,
                    &retention,
                    &keyed_block,
                    &keyed_place,
                    &queues,
                    &keys,
                    &stale,
                    &stale_nums,
                    &own_block,
                    &own_place,
                    &own_id,
                    &callers,
                    &request_ids,
                    &request_block,
                    &request_place,
                    &nums,
                    &job_ids,
                    &asked,
                    &own_ids,
                    &until.0,
                    &tally.line,
                    &tally.scheduled,
                    &tally.queued,
                    &tally.running,
                    &tally.bytes,
                    &sizes,
                ],
            )
            .await;
        let rows = match inserted {
            Ok(rows) => rows,
            Err(failure) => {
                if let Some(grant) = grant {
                    self.give_up(grant, &failure);
                }
                return Err(failure);
            }
        };
        self.room.take(&specs);
        let queued = (0..apart.len()).filter(|&at| state[at] == LiveState::Queued as i32);
        let standing = queued.map(|at| Span::at(line[at], rank[at]));
        let due = states.iter().any(|&state| state != LiveState::Running);
        let hint = Hint { due, ..Hint::standing(standing) };
        self.news(hint, new().map(|new| new.submission.job_id.clone()));
        match grant {
            Some(grant) => self.hand_out(grant, &plan.accepted, &lines, &Numbers::of(&rows, places)).await,
            None => Ok(()),
        }
    }
}

/// The parameters of `submit.sql` that are for `tally`: of each line how many jobs are new in which state.
#[derive(Default)]
struct Tally {
    line: Vec<i32>,
    scheduled: Vec<i64>,
    queued: Vec<i64>,
    running: Vec<i64>,
    bytes: Vec<i64>,
}

impl Tally {
    fn of(jobs: impl Iterator<Item = (i32, LiveState, i64)>) -> Self {
        let mut tally = Self::default();
        let mut places = HashMap::new();
        for (line, state, bytes) in jobs {
            let at = *places.entry(line).or_insert(tally.line.len());
            if at == tally.line.len() {
                tally.line.push(line);
                let counts = [&mut tally.scheduled, &mut tally.queued, &mut tally.running, &mut tally.bytes];
                counts.into_iter().for_each(|counts| counts.push(0));
            }
            tally.bytes[at] += bytes;
            match state {
                LiveState::Scheduled | LiveState::BackingOff => tally.scheduled[at] += 1,
                LiveState::Queued => tally.queued[at] += 1,
                LiveState::Running => tally.running[at] += 1,
            }
        }
        tally
    }
}
