//! Lists: pages by key, newest submit first, each a bounded amount of work.

use std::sync::Arc;

use super::{database::Database, pool::Result};
use crate::{
    job::{Filter, FinalState, LiveState, State, View},
    store::{ListPage, ListQuery, weight::weight},
};

/// Jobs that one call looks at, at most.
const SCAN: usize = 5000;

/// Jobs that are read at a time.
const CHUNK: usize = 500;

/// Bytes of bodies on one page, about; a message is 4 MiB.
const PAGE_BYTES: usize = 3 << 20;

/// Numbers of jobs after the page before, from the smallest index that holds every match, ascending and descending. `$1`:
/// where to begin, `$2`: how many.
macro_rules! candidates {
    ($source:literal) => {
        (
            concat!("select distinct num from ", $source, " num > $1 order by num limit $2"),
            concat!("select distinct num from ", $source, " num < $1 order by num desc limit $2"),
        )
    };
}
const RUNNING: (&str, &str) = candidates!("running where");
const UNFINISHED: (&str, &str) = candidates!("unfinished where");
/// Each of these outcomes has a row of its own.
const UNSUCCESSFUL: (&str, &str) = (
    "select distinct nums[1] as num from done where state <> 5 and nums[1] > $1 order by num limit $2",
    "select distinct nums[1] as num from done where state <> 5 and nums[1] < $1 order by num desc limit $2",
);
/// Of the blocks before the number there may be nothing: as many as have their first number near it. They come in order, no
/// more of them than it takes.
const FINAL: (&str, &str) = (
    "select num from (
       select distinct block from done where block > $1::int8 - 32 order by block limit $2::int8 + 32) b,
       lateral (select distinct num from done d, unnest(d.nums) as u (num)
         where d.block = b.block and num > $1 order by num) n
     limit $2",
    "select num from (
       select distinct block from done where block < $1 order by block desc limit $2::int8 + 1) b,
       lateral (select distinct num from done d, unnest(d.nums) as u (num)
         where d.block = b.block and num < $1 order by num desc) n
     limit $2",
);
/// From the first one on that is there: what is left of those before goes with its partition.
const ALL: (&str, &str) = (
    "select num from (
       select first, ids from job
       where first > $1::int8 - 32 and first > least((select num from live order by num limit 1),
         (select min(first) from bundle), (select block from done order by block limit 1)) - 32
       order by first limit $2::int8 + 32) b,
       lateral (select b.first + place - 1 as num from unnest(b.ids) with ordinality as u (id, place)
         where id is not null and b.first + place - 1 > $1 order by place) n
     limit $2",
    "select num from (
       select first, ids from job
       where first < $1 and first > least((select num from live order by num limit 1),
         (select min(first) from bundle), (select block from done order by block limit 1)) - 32
       order by first desc limit $2::int8 + 1) b,
       lateral (select b.first + place - 1 as num from unnest(b.ids) with ordinality as u (id, place)
         where id is not null and b.first + place - 1 < $1 order by place desc) n
     limit $2",
);

impl Database {
    pub async fn list_jobs(&self, query: &ListQuery) -> Result<ListPage> {
        let (_, position) = self.bounds().await?;
        let mut page = ListPage { jobs: Vec::new(), next: None, position };
        let candidates = self.candidates(query).await?;
        let exhausted = candidates.len() < SCAN;
        let (mut bytes, mut before, last) = (0, query.after, candidates.last().copied());
        for nums in candidates.chunks(CHUNK.min(2 * query.limit.max(1))) {
            for (num, found) in nums.iter().zip(self.jobs(nums, View::Basic).await?) {
                if let Some(found) = found.filter(|row| query.filter.matches(&row.job)) {
                    let found = match query.view {
                        View::Basic => found,
                        view => match self.jobs(&[*num], view).await?.pop().flatten() {
                            Some(row) => row,
                            None => continue,
                        },
                    };
                    let job = Arc::unwrap_or_clone(found.job);
                    bytes += weight(&job);
                    if bytes > PAGE_BYTES && !page.jobs.is_empty() {
                        // Begins the next page.
                        page.next = before;
                        return Ok(page);
                    }
                    page.jobs.push(job);
                }
                before = Some(*num);
                if page.jobs.len() == query.limit {
                    page.next = before.filter(|_| !exhausted || before != last);
                    return Ok(page);
                }
            }
        }
        page.next = if exhausted { None } else { last };
        Ok(page)
    }

    async fn candidates(&self, query: &ListQuery) -> Result<Vec<i64>> {
        let (first, is_after): (i64, fn(&i64, i64) -> bool) = if query.oldest_first {
            (query.after.unwrap_or(0), |num, first| *num > first)
        } else {
            (query.after.unwrap_or(i64::MAX), |num, first| *num < first)
        };
        if !query.filter.job_ids.is_empty() {
            let ids: Vec<_> = query.filter.job_ids.iter().cloned().collect();
            let found = self.jobs_by_id(&ids, View::Basic).await?.jobs;
            let mut nums: Vec<i64> = found.into_iter().flatten().map(|row| row.num).collect();
            nums.retain(|num| is_after(num, first));
            nums.sort_unstable();
            nums.dedup();
            if !query.oldest_first {
                nums.reverse();
            }
            return Ok(nums);
        }
        let (ascending, descending) = source(&query.filter);
        let sql = if query.oldest_first { ascending } else { descending };
        let rows = self.pools.read.query(sql, &[&first, &(SCAN as i64)]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

fn source(filter: &Filter) -> (&'static str, &'static str) {
    let only = |allowed: fn(State) -> bool| {
        !filter.states.is_empty() && filter.states.iter().all(|&state| allowed(state))
    };
    if only(|state| state == State::Live(LiveState::Running)) {
        RUNNING
    } else if only(|state| matches!(state, State::Live(_))) {
        UNFINISHED
    } else if only(|state| state.is_final() && state != State::Final(FinalState::Succeeded)) {
        UNSUCCESSFUL
    } else if only(State::is_final) {
        FINAL
    } else {
        ALL
    }
}
