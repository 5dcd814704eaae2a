use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;

use super::{
    echo::Echo,
    exec::Exec,
    http::Http,
    sleep,
    typed::{Blocking, Typed},
};
use crate::{
    config::{Config, Workers},
    job::{Error, JobError, Kind},
    worker::{Context, Handler},
};

/// Which handler runs which kind.
///
/// ```
/// # use jobwire::{config::Workers, handlers::Handlers, job::JobError, worker::Context};
/// #[derive(serde::Deserialize)]
/// struct Greet {
///     name: String,
/// }
///
/// let mut handlers = Handlers::new(&Workers::default());
/// handlers.add("greet", async |_: Context, input: Greet| {
///     Ok::<_, JobError>(format!("Hello, {}!", input.name))
/// })?;
/// # Ok::<(), jobwire::job::Error>(())
/// ```
#[derive(Clone)]
pub struct Handlers {
    by_kind: BTreeMap<Kind, Arc<dyn Handler>>,
    blocking_threads: usize,
    blocking: Arc<Semaphore>,
}

impl Handlers {
    /// No handlers yet. `workers.blocking_threads` bounds how many blocking ones run at the same time.
    pub fn new(workers: &Workers) -> Self {
        let blocking_threads = workers.blocking_threads.min(Semaphore::MAX_PERMITS);
        Self {
            by_kind: BTreeMap::new(),
            blocking_threads,
            blocking: Arc::new(Semaphore::new(blocking_threads)),
        }
    }

    /// The kinds that are built in and switched on: `echo`, `sleep`, `http`, `exec`.
    ///
    /// An error names the key of the setting that is wrong.
    pub fn builtin(config: &Config) -> Result<Self, Error> {
        let mut handlers = Self::new(&config.workers);
        handlers.add_handler("echo", Echo)?;
        handlers.add("sleep", sleep::run)?;
        if config.http.enabled {
            let http = Arc::new(Http::new(&config.http)?);
            handlers.add("http", move |context, input| {
                let http = http.clone();
                async move { http.run(context, input).await }
            })?;
        }
        if !config.exec.commands.is_empty() {
            let exec = Arc::new(Exec::new(&config.exec, config.limits.max_output_bytes)?);
            handlers.add("exec", move |context, input| {
                let exec = exec.clone();
                async move { exec.run(context, input).await }
            })?;
        }
        Ok(handlers)
    }

    /// Adds an async function from `I`, read from the JSON payload, to `O`, written as the JSON output; `()` is
    /// `null`. A payload that is no `I` fails the job for good with `payload.invalid`.
    ///
    /// Errors as for [`Handlers::add_handler`].
    pub fn add<I, O, E, F, Fut>(&mut self, kind: &str, run: F) -> Result<(), Error>
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<JobError> + Send + 'static,
        F: Fn(Context, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, E>> + Send + 'static,
    {
        self.add_handler(kind, Typed::new(run))
    }

    /// Like [`Handlers::add`], for a function that blocks. It runs on a thread of its own, at most
    /// `workers.blocking_threads` of them at a time; the others wait. In the server that takes none of their attempt's
    /// time, and one that has waited for as long as it may take is given back uncounted.
    ///
    /// A thread cannot be stopped from outside: a function that runs for long should look at
    /// [`Context::cancelled`] from time to time.
    pub fn add_blocking<I, O, E, F>(&mut self, kind: &str, run: F) -> Result<(), Error>
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<JobError> + Send + 'static,
        F: Fn(Context, I) -> Result<O, E> + Send + Sync + 'static,
    {
        if self.blocking_threads == 0 {
            return Err(Error::invalid(
                "workers.blocking_threads",
                format!("is 0, but kind {kind:?} needs a thread: set it to 1 or more"),
            ));
        }
        self.add_handler(kind, Blocking::new(run, self.blocking.clone()))
    }

    /// Adds a handler that takes the payload as it is. Fails if `kind` is no valid name, or has a handler already.
    pub fn add_handler(&mut self, kind: &str, handler: impl Handler) -> Result<(), Error> {
        let kind = Kind::parse("kind", kind)?;
        if self.by_kind.contains_key(&kind) {
            return Err(Error::invalid(
                "kind",
                format!("{kind:?} has a handler already: add each kind once"),
            ));
        }
        self.by_kind.insert(kind, Arc::new(handler));
        Ok(())
    }

    /// The handler of a kind.
    pub fn get(&self, kind: &Kind) -> Option<&Arc<dyn Handler>> {
        self.by_kind.get(kind)
    }

    /// Every kind there is a handler for, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.by_kind.keys()
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.kinds()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        handlers::testing::{context, json_payload, output},
        job::{Cause, Payload},
    };

    #[derive(serde::Deserialize)]
    struct Resize {
        sizes: Vec<Size>,
    }

    #[derive(serde::Deserialize)]
    struct Size {
        width: u32,
    }

    fn handlers() -> Handlers {
        Handlers::new(&Workers::default())
    }

    async fn run(handlers: &Handlers, kind: &str, payload: Payload) -> Result<Payload, JobError> {
        let handler = handlers.get(&kind.parse().unwrap()).unwrap();
        handler.run(context().0, payload).await
    }

    #[tokio::test]
    async fn a_typed_handler_reads_and_writes_json() {
        let mut handlers = handlers();
        handlers
            .add("resize", async |context: Context, input: Resize| {
                let total: u32 = input.sizes.iter().map(|size| size.width).sum();
                Ok::<_, JobError>(json!({ "job": context.job_id().as_str(), "total": total }))
            })
            .unwrap();
        handlers.add("nothing", async |_: Context, (): ()| Ok::<(), JobError>(())).unwrap();

        let payload = json_payload(json!({ "sizes": [{ "width": 2 }, { "width": 3 }] }));
        assert_eq!(output(run(&handlers, "resize", payload).await), json!({ "job": "job-1", "total": 5 }));
        assert_eq!(run(&handlers, "nothing", Payload::none()).await, Ok(Payload::new(Payload::JSON, "null")));
    }

    #[tokio::test]
    async fn a_payload_that_does_not_parse_says_where() {
        let mut handlers = handlers();
        handlers.add("resize", async |_: Context, _: Resize| Ok::<_, JobError>(1)).unwrap();
        let payload = json_payload(json!({ "sizes": [{ "width": 2 }, { "width": "x" }] }));
        let error = run(&handlers, "resize", payload).await.unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.retryable, error.cause),
            ("payload.invalid", false, Cause::Handler)
        );
        assert!(error.message.contains("sizes[1].width"), "{}", error.message);

        for text in ["{\"sizes\":[]} x", "\u{0}", "{"] {
            let error = run(&handlers, "resize", Payload::new(Payload::TEXT, text)).await.unwrap_err();
            assert_eq!(error.code, "payload.invalid", "{text:?}");
        }
    }

    #[test]
    fn names_are_checked_and_taken_once() {
        let mut handlers = handlers();
        handlers.add_handler("echo", Echo).unwrap();
        assert!(handlers.add_handler("echo", Echo).unwrap_err().to_string().contains("already"));
        assert!(handlers.add_handler("send mail", Echo).is_err());
        assert_eq!(handlers.kinds().map(Kind::as_str).collect::<Vec<_>>(), ["echo"]);
    }

    #[tokio::test]
    async fn blocking_handlers_run_on_so_many_threads_and_no_more() {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

        let mut handlers = Handlers::new(&Workers { blocking_threads: 2, ..Workers::default() });
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (running, peak) = (now.clone(), most.clone());
        handlers
            .add_blocking("hash", move |_, input: u32| {
                peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(20));
                running.fetch_sub(1, SeqCst);
                Ok::<_, JobError>(input + 1)
            })
            .unwrap();
        let runs = (0..8).map(|n| run(&handlers, "hash", json_payload(json!(n))));
        for (n, result) in futures_util::future::join_all(runs).await.into_iter().enumerate() {
            assert_eq!(output(result), json!(n + 1));
        }
        assert_eq!((now.load(SeqCst), most.load(SeqCst)), (0, 2));
    }

    #[tokio::test]
    async fn a_blocking_handler_that_waits_for_a_thread_can_be_cancelled() {
        let mut handlers = Handlers::new(&Workers { blocking_threads: 1, ..Workers::default() });
        handlers.add_blocking("nap", |_, (): ()| Ok::<_, JobError>(())).unwrap();
        let _taken = handlers.blocking.clone().acquire_owned().await.unwrap();
        let (context, cancelled) = context();
        cancelled.cancel();
        let handler = handlers.get(&"nap".parse().unwrap()).unwrap();
        assert_eq!(handler.run(context, Payload::none()).await.unwrap_err().code, "interrupted");
    }

    #[test]
    fn blocking_handlers_need_a_thread() {
        let mut handlers = Handlers::new(&Workers { blocking_threads: 0, ..Workers::default() });
        let error = handlers.add_blocking("nap", |_, (): ()| Ok::<_, JobError>(())).unwrap_err();
        assert!(error.to_string().starts_with("workers.blocking_threads:"), "{error}");
    }

    #[tokio::test]
    #[should_panic(expected = "on the other thread")]
    async fn a_panic_reaches_whoever_runs_the_attempt() {
        let mut handlers = handlers();
        handlers
            .add_blocking("panic", |_, (): ()| -> Result<(), JobError> { panic!("on the other thread") })
            .unwrap();
        let _ = run(&handlers, "panic", Payload::none()).await;
    }
}
