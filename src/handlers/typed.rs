use std::{marker::PhantomData, panic::resume_unwind, sync::Arc};

use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    job::{JobError, Payload},
    worker::{Context, Handler},
};

/// An async function as a handler.
pub struct Typed<F, I> {
    run: F,
    input: PhantomData<fn(I)>,
}

impl<F, I> Typed<F, I> {
    pub fn new(run: F) -> Self {
        Self { run, input: PhantomData }
    }
}

#[async_trait]
impl<I, O, E, F, Fut> Handler for Typed<F, I>
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    E: Into<JobError> + Send + 'static,
    F: Fn(Context, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, E>> + Send + 'static,
{
    async fn run(&self, context: Context, payload: Payload) -> Result<Payload, JobError> {
        let output = (self.run)(context, read(&payload)?).await.map_err(Into::into)?;
        write(&output)
    }
}

/// A function that blocks as a handler.
///
/// The runtime keeps, reuses and ends the threads; a semaphore bounds how many work here. A set of own threads would
/// bound the same with more code.
pub struct Blocking<F, I> {
    run: Arc<F>,
    threads: Arc<Semaphore>,
    input: PhantomData<fn(I)>,
}

impl<F, I> Blocking<F, I> {
    pub fn new(run: F, threads: Arc<Semaphore>) -> Self {
        Self { run: Arc::new(run), threads, input: PhantomData }
    }
}

#[async_trait]
impl<I, O, E, F> Handler for Blocking<F, I>
where
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    E: Into<JobError> + Send + 'static,
    F: Fn(Context, I) -> Result<O, E> + Send + Sync + 'static,
{
    async fn run(&self, context: Context, payload: Payload) -> Result<Payload, JobError> {
        let input = read(&payload)?;
        let permit = context.in_line(self.threads.clone().acquire_owned()).await?;
        let run = self.run.clone();
        let thread = spawn_blocking(move || {
            // Held until the function returns, also when nobody waits for it any more.
            let _permit = permit;
            write(&run(context, input).map_err(Into::into)?)
        });
        match thread.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => {
                    Err(JobError::retryable("interrupted", "the server stopped before a thread was free"))
                }
            },
        }
    }
}

/// The input in a payload; no document reads as `null`.
pub fn read<I: DeserializeOwned>(payload: &Payload) -> Result<I, JobError> {
    let bytes = payload.bytes();
    let json = if payload.is_none() { b"null" } else { &*bytes };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let input = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| invalid(format!("payload, at {}: {}", error.path(), error.inner())))?;
    reader.end().map_err(|error| invalid(format!("payload, after its end: {error}")))?;
    Ok(input)
}

/// The payload is not what the kind takes.
pub fn invalid(why: impl std::fmt::Display) -> JobError {
    JobError::permanent("payload.invalid", why)
}

fn write(output: &impl Serialize) -> Result<Payload, JobError> {
    let json = serde_json::to_vec(output).map_err(|error| {
        JobError::permanent("output.invalid", format!("the output cannot be written as JSON: {error}"))
    })?;
    Ok(Payload::new(Payload::JSON, json))
}
