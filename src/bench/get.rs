//! GetResult of jobs that are final.

use std::{sync::Arc, time::Duration};

use super::{Error, Load, Report, Target, load, short, submit::of_calls, workload::Queue};
use crate::proto::{BatchSubmitRequest, GetResultRequest, job_service_client::JobServiceClient};

const JOBS: u64 = 10_000;
const BATCH: u64 = 500;

pub async fn run(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let channels = target.channels(load.connections).await?;
    let ids = Arc::new(finished(target, &queue).await?);
    let caller = |index: usize| {
        let (channel, ids) = (channels[index % channels.len()].clone(), ids.clone());
        move || {
            let job_id = ids[fastrand::usize(..ids.len())].clone();
            let found = short::get_result(channel.clone(), GetResultRequest { job_id, ..Default::default() });
            async move {
                match found.await?.done {
                    true => Ok(()),
                    false => Err(Error::Unexpected("a final job is not done".into())),
                }
            }
        }
    };
    let mut before = None;
    let tally = load::callers(load.callers, load.duration, caller, || before = target.usage()).await?;
    Ok(of_calls("get", target, before, &tally))
}

/// Makes jobs and waits for their ends.
async fn finished(target: &Target, queue: &Queue) -> Result<Vec<String>, Error> {
    let mut client = JobServiceClient::new(target.channel().await?);
    let mut ids = Vec::new();
    for batch in 0..JOBS / BATCH {
        let requests = (0..BATCH).map(|number| queue.echo(batch * BATCH + number)).collect();
        let reply = client.batch_submit(BatchSubmitRequest { requests }).await?.into_inner();
        ids.extend(reply.responses.into_iter().filter_map(|response| Some(response.job?.job_id)));
    }
    for job_id in &ids {
        let wait = Duration::from_secs(10).try_into().ok();
        client.get_result(GetResultRequest { job_id: job_id.clone(), wait, ..Default::default() }).await?;
    }
    Ok(ids)
}
