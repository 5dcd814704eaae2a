//! A program that runs jobs for a server elsewhere, until SIGTERM. Its handlers could run inside a server as well.
//!
//! ```sh
//! cargo run --example worker -- 127.0.0.1:50051
//! ```

use std::env;

use jobwire::{Context, JobError, client::Worker, config::Workers, handlers::Handlers};

async fn shout(context: Context, text: String) -> Result<String, JobError> {
    context.progress(0.5, "breathing in");
    Ok(text.to_uppercase())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Says, among other things, when the server is not there.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let server = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".into());
    let mut handlers = Handlers::new(&Workers::default());
    handlers.add("shout", shout)?;
    Worker::new(&server, handlers)?.concurrency(8).run(jobwire::stop_signal()).await?;
    Ok(())
}
