//! Follows every outcome, and goes on where it was when it is started again: the cursor is kept in a file, and stored
//! after each outcome was dealt with. So each is seen at least once, and none is missed.
//!
//! ```sh
//! cargo run --example watcher -- 127.0.0.1:50051 cursor.txt
//! ```

use std::{env, fs, io};

use futures_util::StreamExt as _;
use jobwire::{
    client::Client,
    proto::{
        WatchResultsRequest,
        watch_results_request::{OnGap, Start},
        watch_results_response::Event,
    },
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:50051".into());
    let file = arguments.next().unwrap_or_else(|| "cursor.txt".into());

    let start = match fs::read_to_string(&file) {
        Ok(cursor) => Start::AfterCursor(cursor),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Start::Earliest(true),
        Err(error) => return Err(error.into()),
    };
    let request =
        WatchResultsRequest { start: Some(start), on_gap: OnGap::Continue.into(), ..Default::default() };
    let mut messages = Client::connect(&server).await?.watch(request);
    while let Some(message) = messages.next().await {
        let message = message?;
        match message.event {
            Some(Event::Finished(job)) => println!("{} {}", job.job_id, job.state().as_str_name()),
            Some(Event::Gap(gap)) => println!("{} outcomes were missed", gap.missed_events),
            // Checkpoints, and what a newer server may send: only the cursor counts.
            _ => {}
        }
        if !message.cursor.is_empty() {
            // Renamed into place, so that a crash leaves the old cursor or the new one.
            let fresh = format!("{file}.new");
            fs::write(&fresh, &message.cursor)?;
            fs::rename(&fresh, &file)?;
        }
    }
    Ok(())
}
