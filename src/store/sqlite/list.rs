//! Lists: pages by key, newest submit first, each a bounded amount of work.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::{done, feed, read, rows::Result};
use crate::{
    job::{FinalState, LiveState, State, View},
    store::{ListPage, ListQuery, weight::weight},
};

/// Jobs that one call looks at, at most.
const SCAN: usize = 5000;

/// Bytes of bodies on one page, about; a message is 4 MiB.
const PAGE_BYTES: usize = 3 << 20;

pub fn list(connection: &Connection, query: &ListQuery) -> Result<ListPage> {
    let mut page = ListPage { jobs: Vec::new(), next: None, position: feed::head(connection)? };
    let candidates = candidates(connection, query)?;
    let exhausted = candidates.len() < SCAN;
    let (mut bytes, mut before, last) = (0, query.after, candidates.last().copied());
    for num in candidates {
        let Some(job) = read::job(connection, num, View::Basic)? else { continue };
        if query.filter.matches(&job) {
            let job = match query.view {
                View::Basic => job,
                view => read::job(connection, num, view)?.unwrap_or(job),
            };
            bytes += weight(&job);
            if bytes > PAGE_BYTES && !page.jobs.is_empty() {
                // Begins the next page.
                page.next = before;
                return Ok(page);
            }
            page.jobs.push(job);
        }
        before = Some(num);
        if page.jobs.len() == query.limit {
            page.next = before.filter(|_| !exhausted || before != last);
            return Ok(page);
        }
    }
    page.next = if exhausted { None } else { last };
    Ok(page)
}

/// Numbers of jobs after the page before, from the smallest indexes that hold every match.
fn candidates(connection: &Connection, query: &ListQuery) -> Result<Vec<i64>> {
    let filter = &query.filter;
    if !filter.job_ids.is_empty() {
        let mut nums = BTreeSet::new();
        for id in &filter.job_ids {
            nums.extend(read::num(connection, id)?);
        }
        let after = |num: &i64| match (query.after, query.oldest_first) {
            (None, _) => true,
            (Some(after), true) => *num > after,
            (Some(after), false) => *num < after,
        };
        let mut nums: Vec<i64> = nums.into_iter().filter(after).collect();
        if !query.oldest_first {
            nums.reverse();
        }
        return Ok(nums);
    }
    let only = |allowed: fn(State) -> bool| {
        !filter.states.is_empty() && filter.states.iter().all(|&state| allowed(state))
    };
    let sources: &[&str] = if only(|state| state == State::Live(LiveState::Running)) {
        &["live INDEXED BY live_running WHERE state = 3 AND num", "seat WHERE +num"]
    } else if only(|state| matches!(state, State::Live(_))) {
        &["live WHERE num", "seat WHERE +num"]
    } else if only(|state| state.is_final() && state != State::Final(FinalState::Succeeded)) {
        return done::nums(connection, true, query.after, query.oldest_first, SCAN);
    } else if only(State::is_final) {
        return done::nums(connection, false, query.after, query.oldest_first, SCAN);
    } else {
        &["job WHERE num"]
    };
    let (compare, order, from) =
        if query.oldest_first { (">", "ASC", i64::MIN) } else { ("<", "DESC", i64::MAX) };
    let mut nums: Vec<i64> = Vec::new();
    for source in sources {
        let sql = format!("SELECT num FROM {source} {compare} ?1 ORDER BY num {order} LIMIT ?2");
        let mut statement = connection.prepare_cached(&sql)?;
        let found = statement
            .query_map(params![query.after.unwrap_or(from), SCAN as i64], |row| row.get::<_, i64>(0))?;
        for num in found {
            nums.push(num?);
        }
    }
    if sources.len() > 1 {
        nums.sort_unstable_by_key(|num| if query.oldest_first { *num } else { -num });
        nums.truncate(SCAN);
    }
    Ok(nums)
}
