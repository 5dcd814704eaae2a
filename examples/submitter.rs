//! Submits a few jobs in one stream, then waits for the result of one more.
//!
//! ```sh
//! cargo run --example submitter -- 127.0.0.1:50051 100
//! ```

use std::{env, time::Duration};

use futures_util::{StreamExt as _, stream};
use jobwire::{
    client::Client,
    proto::{
        JobSpec, Payload, StreamSubmitRequest, SubmitRequest, payload::Body, stream_submit_response::Verdict,
    },
};

fn echo(text: String) -> SubmitRequest {
    let payload = Payload { body: Some(Body::Text(text)), ..Default::default() };
    let spec = JobSpec { kind: "echo".into(), payload: Some(payload), ..Default::default() };
    SubmitRequest { spec: Some(spec), ..Default::default() }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:50051".into());
    let count: i64 = arguments.next().map_or(Ok(100), |text| text.parse())?;
    let client = Client::connect(&server).await?;

    let requests = stream::iter(1..=count).map(|sequence| {
        let request = Some(echo(format!("number {sequence}")));
        StreamSubmitRequest { sequence, request }
    });
    let mut verdicts = client.stream_submit(requests).await?;
    let (mut accepted, mut rejected) = (0, 0);
    while let Some(reply) = verdicts.next().await {
        let reply = reply?;
        match reply.verdict {
            Some(Verdict::Accepted(_)) => accepted += 1,
            Some(Verdict::Rejected(why)) => {
                rejected += 1;
                eprintln!("{}: {} ({})", reply.sequence, why.message, why.reason);
            }
            // Of a newer server.
            None => {}
        }
    }
    println!("{accepted} accepted, {rejected} rejected");

    let submitted = client.submit(echo("the last one".into())).await?;
    let job = submitted.job.ok_or("a reply without a job")?;
    let result = client.result(&job.job_id, Duration::from_secs(30)).await?;
    println!("{} done: {}", job.job_id, result.done);
    Ok(())
}
