//! Shares due jobs among the claims that wait for them.

use super::{claim::claim, lines::Line, rows::Result, tx::Tx};
use crate::{
    job::{State, Timestamp},
    store::{Claim, Leased},
};

/// What each claim gets of what stands in the lines that are [`due`], at its place, and at most so many jobs. The first in
/// line leaves something for those behind it: what there is, is divided evenly among those who may have it, and what
/// somebody does not need goes to the others.
pub fn share(
    tx: &mut Tx<'_>,
    now: Timestamp,
    due: &[i64],
    claims: &[(&Claim, usize)],
) -> Result<Vec<Vec<Leased>>> {
    let mut given = vec![Vec::new(); claims.len()];
    if due.is_empty() {
        return Ok(given);
    }
    let mut hungry = Vec::new();
    for (at, &(claim, wanted)) in claims.iter().enumerate() {
        if wanted > 0 && available(tx, due, claim)? > 0 {
            hungry.push(at);
        }
    }
    for (served, &at) in hungry.iter().enumerate() {
        let (asking, wanted) = claims[at];
        let most = available(tx, due, asking)?.div_ceil(hungry.len() - served);
        claim(tx, now, asking, most.min(wanted), &mut given[at])?;
    }
    if hungry.len() > 1 {
        for at in hungry {
            let (asking, wanted) = claims[at];
            let most = wanted.saturating_sub(given[at].len());
            if most > 0 && available(tx, due, asking)? > 0 {
                claim(tx, now, asking, most, &mut given[at])?;
            }
        }
    }
    Ok(given)
}

/// The lines in which jobs stand.
pub fn due(tx: &Tx<'_>) -> Vec<i64> {
    tx.lines.iter().filter(|line| queued(line) > 0).map(|line| line.id).collect()
}

/// Jobs in these lines that a claim may have.
pub fn available(tx: &Tx<'_>, due: &[i64], claim: &Claim) -> Result<usize> {
    let mut available = 0;
    for &id in due {
        let line = tx.lines.get(id)?;
        if claim.asks_for(&line.queue, &line.kind) {
            available += queued(line);
        }
    }
    Ok(available)
}

fn queued(line: &Line) -> usize {
    line.count(State::QUEUED) as usize
}
