//! What workers say: leases prolonged, attempts reported.

use std::sync::Arc;

use rusqlite::params;

use super::{rows::Result, tx::Tx};
use crate::{
    job::{Error, LiveState, Next, Report, Timestamp},
    store::{OnlyIf, Renewal, Renewed, Settlement},
};

pub fn renew(tx: &mut Tx<'_>, renewals: Vec<Renewal>) -> Result<Vec<Renewed>> {
    renewals.into_iter().map(|renewal| renew_one(tx, &renewal)).collect()
}

fn renew_one(tx: &mut Tx<'_>, renewal: &Renewal) -> Result<Renewed> {
    let lease = renewal.lease;
    let Some(row) = tx.live(lease.job)?.filter(|row| row.live.fence == lease.fence) else {
        return Ok(Renewed::Lost);
    };
    if row.live.state != LiveState::Running {
        return Ok(Renewed::Lost);
    }
    // A bundle keeps neither.
    tx.unbundle(row.num)?;
    if let Some(until) = renewal.until {
        // Not a transition: the version stays.
        tx.connection
            .prepare_cached("UPDATE live SET until = ?2 WHERE num = ?1")?
            .execute(params![row.num, until])?;
        tx.recent.renew(row.num, until);
    }
    if let Some(progress) = &renewal.progress {
        tx.store_progress(row.num, progress)?;
    }
    Ok(if row.live.cancel_reason.is_some() { Renewed::Cancelled } else { Renewed::Held })
}

pub fn settle(
    tx: &mut Tx<'_>,
    now: Timestamp,
    settlements: Vec<Settlement>,
) -> Result<Vec<std::result::Result<(), Error>>> {
    settlements.into_iter().map(|settlement| settle_one(tx, now, settlement)).collect()
}

fn settle_one(
    tx: &mut Tx<'_>,
    now: Timestamp,
    settlement: Settlement,
) -> Result<std::result::Result<(), Error>> {
    let Settlement { lease, report, only_if, jitter, progress, job } = settlement;
    let Some(row) = tx.live(lease.job)?.filter(|row| only_if != OnlyIf::OwnAndOver || row.live.is_over(now))
    else {
        return Ok(Err(Error::LeaseLost));
    };
    // Only a failure asks for the job's own retries, which are another read.
    let policy = match report {
        Report::Failed(_) => Arc::new(tx.policy(&row)?),
        _ => tx.lines.get(row.line)?.policy.clone(),
    };
    let step = match row.live.settle(lease.fence, report, &policy, now, jitter) {
        Ok(step) => step,
        Err(error) => return Ok(Err(error)),
    };
    tx.apply(&row, &step, now, job.as_deref())?;
    if let (Next::Live(_), Some(progress)) = (&step.next, progress) {
        tx.store_progress(row.num, &progress)?;
    }
    Ok(Ok(()))
}
