//! A program with handlers of its own: an async one, a blocking one with progress, and the server around them.
//!
//! ```sh
//! cargo run --example embed -- 127.0.0.1:50051 greeter-data
//! ```

use std::{env, time::Duration};

use jobwire::{Context, JobError, Server};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Greet {
    name: String,
}

#[derive(Deserialize)]
struct Primes {
    below: u32,
}

#[derive(Serialize)]
struct Count {
    primes: u32,
}

async fn greet(context: Context, input: Greet) -> Result<String, JobError> {
    if input.name.is_empty() {
        return Err(JobError::permanent("greet.nobody", "there is nobody to greet: name is empty"));
    }
    // Ends early, with the right error, when the job is cancelled or its time is over.
    context.unless_stopped(tokio::time::sleep(Duration::from_millis(10))).await?;
    Ok(format!("Hello, {}!", input.name))
}

/// Holds up its thread, so it is registered as blocking.
fn count_primes(context: Context, input: Primes) -> Result<Count, JobError> {
    let mut primes = 0;
    for n in 2..input.below {
        if n % 1000 == 0 {
            if context.cancelled().is_cancelled() {
                return Err(context.interrupted());
            }
            context.progress(f64::from(n) / f64::from(input.below), "counting");
        }
        primes += u32::from((2..).take_while(|d| d * d <= n).all(|d| n % d != 0));
    }
    Ok(Count { primes })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:50051".into()).parse()?;
    let data = arguments.next().unwrap_or_else(|| "greeter-data".into());
    let server = Server::builder()
        .listen(listen)
        .data(data)
        .handler("greet", greet)
        .blocking_handler("primes", count_primes)
        .start()
        .await?;
    println!("listening on {}", server.address());
    server.serve(jobwire::stop_signal()).await?;
    Ok(())
}
