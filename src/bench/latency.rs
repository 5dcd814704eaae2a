//! One caller that waits for each result.

use std::time::Duration;

use super::{Error, Load, Report, Target, load, short, submit::of_calls, workload::Queue};

const WAIT: Duration = Duration::from_secs(10);

pub async fn run(target: &Target, load: &Load) -> Result<Report, Error> {
    let queue = Queue::new(load.payload);
    let channel = target.channel().await?;
    let caller = |_| {
        let (channel, queue) = (channel.clone(), queue.clone());
        move || {
            let mut request = queue.echo(0);
            request.wait = WAIT.try_into().ok();
            let submitted = short::submit(channel.clone(), request);
            async move {
                match submitted.await?.done {
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
