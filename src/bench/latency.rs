//! One caller that waits for each result.

use std::time::Duration;

use super::{Error, Load, Report, Target, load, submit::of_calls, workload::Queue};

const WAIT: Duration = Duration::from_secs(10);

pub async fn run(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let client = target.clients(1).await?.remove(0);
    let caller = |_| {
        let (client, queue) = (client.clone(), queue.clone());
        move || {
            let mut client = client.clone();
            let mut request = queue.echo(0);
            request.wait = WAIT.try_into().ok();
            async move {
                match client.submit(request).await?.into_inner().done {
                    true => Ok(()),
                    false => Err(Error::Unexpected("a job did not end within its wait".into())),
                }
            }
        }
    };
    let mut before = None;
    let tally = load::callers(1, load.duration, caller, || before = target.usage()).await?;
    Ok(of_calls("latency", target, before, &tally))
}
