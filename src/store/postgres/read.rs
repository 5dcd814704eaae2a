//! Reading jobs.

use std::sync::Arc;

use tokio_postgres::Row;

use super::{
    block::lowest_with,
    database::Database,
    pool::Result,
    rows::{self, JobRow, get},
};
use crate::{
    job::{Attempt, Job, JobId, View},
    store::{LeaseId, Position},
};

const JOBS: &str = include_str!("sql/jobs.sql");

/// Jobs of one snapshot.
pub struct Snapshot {
    /// At the places where they were asked for, numbers first.
    pub jobs: Vec<Option<JobRow>>,
    /// The end of the feed.
    pub head: Position,
}

impl Database {
    pub async fn jobs(&self, nums: &[i64], view: View) -> Result<Vec<Option<JobRow>>> {
        Ok(self.snapshot(nums, &[], view, view == View::Full).await?.jobs)
    }

    /// The same, but ends once their outputs come to so many bytes.
    pub async fn jobs_within(&self, nums: &[i64], view: View, bytes: usize) -> Result<Vec<Option<JobRow>>> {
        let mut sizes = 0;
        let sized = self.jobs(nums, View::Basic).await?;
        let few = sized.iter().take_while(|row| {
            let room = sizes < bytes;
            sizes += row.as_ref().and_then(|row| row.job.output.as_ref()).map_or(0, |output| output.size);
            room
        });
        let few = few.count();
        self.jobs(&nums[..few], view).await
    }

    /// The same with their inputs, but without outputs.
    pub async fn jobs_with_input(&self, nums: &[i64]) -> Result<Vec<Option<JobRow>>> {
        Ok(self.snapshot(nums, &[], View::Basic, true).await?.jobs)
    }

    pub async fn jobs_by_id(&self, ids: &[JobId], view: View) -> Result<Snapshot> {
        self.snapshot(&[], ids, view, view == View::Full).await
    }

    /// `view` says what is told besides the input.
    async fn snapshot(&self, nums: &[i64], ids: &[JobId], view: View, with_input: bool) -> Result<Snapshot> {
        let names: Vec<&str> = ids.iter().map(JobId::as_str).collect();
        let (output, full) = (view >= View::Result, view == View::Full);
        let kept = Attempt::KEPT as i64;
        let lowest: Vec<String> = ids.iter().map(lowest_with).collect();
        let found = self
            .pools
            .read
            .query(JOBS, &[&nums, &names, &with_input, &output, &full, &kept, &lowest])
            .await?;
        self.know_lines(&found).await?;
        let mut jobs = vec![None; nums.len() + ids.len()];
        for row in &found {
            if let Some(at) = get::<Option<i64>>(row, "at") {
                jobs[at as usize - 1] = rows::job(row, &self.lines, view)?;
            }
        }
        Ok(Snapshot { jobs, head: Position(found.first().map_or(0, |row| get(row, "head"))) })
    }

    /// Gets to know the lines in rows, if another replica has made them.
    pub async fn know_lines(&self, rows: &[Row]) -> Result<()> {
        let lines = rows.iter().filter_map(|row| get::<Option<i32>>(row, "line"));
        if !self.lines.know(lines) {
            self.lines.refresh(&self.pools.read).await?;
        }
        Ok(())
    }

    /// The jobs of leases that are not over, without their history.
    pub async fn leased_jobs(&self, leases: &[LeaseId], with_input: bool) -> Result<Vec<Option<Job>>> {
        let nums: Vec<i64> = leases.iter().map(|lease| lease.job).collect();
        let found = self.snapshot(&nums, &[], View::Basic, with_input).await?.jobs;
        let held = |lease: &LeaseId, row: JobRow| {
            let live = row.live?.live;
            (live.lease.is_some() && live.fence == lease.fence).then(|| Arc::unwrap_or_clone(row.job))
        };
        Ok(leases.iter().zip(found).map(|(lease, row)| held(lease, row?)).collect())
    }

    /// The job of a lease, and whether it is final and this was its newest.
    pub async fn job_of_lease(&self, lease: LeaseId) -> Result<Option<(JobId, bool)>> {
        let row = self.jobs(&[lease.job], View::Basic).await?.pop().flatten();
        Ok(row.map(|row| (row.job.id.clone(), row.live.is_none() && row.fence == lease.fence)))
    }
}
