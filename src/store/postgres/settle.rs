//! What workers say: leases prolonged, attempts reported.

use std::collections::{HashMap, HashSet};

use super::{
    database::Database,
    moves::{Present, Unit},
    pool::Result,
    rows::{JobRow, get},
};
use crate::{
    job::{Error, Next, Timestamp, View},
    store::{LeaseId, OnlyIf, Renewal, Renewed, Settlement},
};

const RENEW: &str = include_str!("sql/renew.sql");

impl Database {
    pub async fn renew_leases(&self, renewals: Vec<Renewal>) -> Result<Vec<Renewed>> {
        let leases: Vec<LeaseId> = renewals.iter().map(|renewal| renewal.lease).collect();
        // Of a lease that is named twice the last word counts.
        let mut newest: HashMap<LeaseId, Renewal> = HashMap::new();
        for renewal in renewals {
            let (until, progress) = match newest.remove(&renewal.lease) {
                Some(before) => (renewal.until.or(before.until), renewal.progress.or(before.progress)),
                None => (renewal.until, renewal.progress),
            };
            newest.insert(renewal.lease, Renewal { until, progress, ..renewal });
        }
        let mut held = self.renew_rows(newest.values()).await?;
        newest.retain(|lease, _| !held.contains_key(lease));
        if !newest.is_empty() {
            // They may be in bundles, or somebody has just taken them out.
            self.unbundle(&newest.keys().map(|lease| lease.fence).collect::<Vec<_>>()).await?;
            held.extend(self.renew_rows(newest.values()).await?);
        }
        let renewed = |lease| match held.get(lease) {
            Some(false) => Renewed::Held,
            Some(true) => Renewed::Cancelled,
            None => Renewed::Lost,
        };
        Ok(leases.iter().map(renewed).collect())
    }

    /// Those of leases that have rows of their own: which of them are held, and whether a cancel was asked for.
    async fn renew_rows(&self, renewals: impl Iterator<Item = &Renewal>) -> Result<HashMap<LeaseId, bool>> {
        let renewals: Vec<&Renewal> = renewals.collect();
        let progress = || renewals.iter().map(|renewal| renewal.progress.as_ref());
        let details = || progress().map(|progress| progress.and_then(|progress| progress.details.as_ref()));
        let nums: Vec<i64> = renewals.iter().map(|renewal| renewal.lease.job).collect();
        let fences: Vec<i64> = renewals.iter().map(|renewal| renewal.lease.fence).collect();
        let until: Vec<_> = renewals.iter().map(|renewal| renewal.until.map(|until| until.0)).collect();
        let at: Vec<_> = progress().map(|progress| progress.map(|progress| progress.update_time.0)).collect();
        let fraction: Vec<_> =
            progress().map(|progress| progress.map(|progress| progress.fraction)).collect();
        let note: Vec<_> =
            progress().map(|progress| progress.map(|progress| progress.note.as_str())).collect();
        let types: Vec<_> =
            details().map(|details| details.map(|details| details.content_type.as_str())).collect();
        let bodies: Vec<Option<Vec<u8>>> =
            details().map(|details| details.map(|details| details.bytes().into())).collect();
        let rows = self
            .pools
            .write
            .query(RENEW, &[&nums, &fences, &until, &at, &fraction, &note, &types, &bodies, &self.replica])
            .await?;
        let held = |row| (LeaseId { job: get(row, "num"), fence: get(row, "fence") }, get(row, "cancelled"));
        Ok(rows.iter().map(held).collect())
    }

    pub async fn settle_attempts(
        &self,
        now: Timestamp,
        settlements: Vec<Settlement>,
    ) -> Result<Vec<std::result::Result<(), Error>>> {
        let mut answers: Vec<_> = settlements.iter().map(|_| Ok(())).collect();
        let mut open: Vec<usize> = (0..settlements.len()).collect();
        while !open.is_empty() {
            let mut known: Vec<JobRow> =
                open.iter().filter_map(|&at| self.held_job(&settlements[at])).collect();
            let mut unread: HashSet<i64> = open.iter().map(|&at| settlements[at].lease.job).collect();
            for row in &known {
                unread.remove(&row.num);
            }
            if !unread.is_empty() {
                let unread: Vec<i64> = unread.into_iter().collect();
                known.extend(self.jobs(&unread, View::Basic).await?.into_iter().flatten());
            }
            let mut unit = Unit::new(known);
            for &at in &open {
                answers[at] = self.settle_one(&mut unit, now, &settlements[at])?;
            }
            let moved = self.carry_out(now, &unit).await?;
            // What somebody else has changed meanwhile is decided anew.
            open.retain(|&at| {
                unit.is_changed(settlements[at].lease.job) && !moved.has(settlements[at].lease.job)
            });
            for at in open.extract_if(.., |at| settlements[*at].only_if != OnlyIf::Held) {
                // It was prolonged, perhaps at another replica.
                answers[at] = Err(Error::LeaseLost);
            }
        }
        Ok(answers)
    }

    /// The job of a settlement as it was leased, the first time that it is asked for.
    fn held_job(&self, settlement: &Settlement) -> Option<JobRow> {
        let job = settlement.job.clone()?;
        let live = self.held.take(settlement.lease)?;
        Some(JobRow {
            num: live.num,
            line: live.line,
            fence: live.live.fence,
            live: Some(live),
            seq: None,
            job,
        })
    }

    fn settle_one(
        &self,
        unit: &mut Unit,
        now: Timestamp,
        settlement: &Settlement,
    ) -> Result<std::result::Result<(), Error>> {
        let num = settlement.lease.job;
        let Some(job) = unit.job(num) else { return Ok(Err(Error::LeaseLost)) };
        let Present::Live(live) = &job.present else { return Ok(Err(Error::LeaseLost)) };
        let must_be_over = settlement.only_if == OnlyIf::OwnAndOver;
        if must_be_over && !live.is_over(now) {
            return Ok(Err(Error::LeaseLost));
        }
        let policy = job.row.policy(&*self.lines.get(job.row.line)?);
        let report = settlement.report.clone();
        let step = match live.settle(settlement.lease.fence, report, &policy, now, settlement.jitter) {
            Ok(step) => step,
            Err(error) => return Ok(Err(error)),
        };
        let goes_on = matches!(step.next, Next::Live(_));
        unit.step(num, step);
        if let Some(job) = &settlement.job {
            unit.leased(num, job.clone());
        }
        if must_be_over {
            unit.only_if_over(num);
        }
        if settlement.only_if != OnlyIf::Held {
            unit.only_if_mine(num);
        }
        if let Some(progress) = settlement.progress.clone().filter(|_| goes_on) {
            unit.progress(num, progress);
        }
        Ok(Ok(()))
    }
}
