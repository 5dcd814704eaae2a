use std::{net::SocketAddr, path::PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::{ServeError, Server};
use crate::{
    config::Config,
    handlers::Handlers,
    job::{Error, JobError},
    worker::{Context, Handler},
};

/// Puts a server together, with handlers of the program's own beside the built-in kinds.
///
/// ```no_run
/// use jobwire::{Context, JobError, Server};
///
/// #[derive(serde::Deserialize)]
/// struct Greet {
///     name: String,
/// }
///
/// # async fn example() -> Result<(), jobwire::ServeError> {
/// let server = Server::builder()
///     .data("greeter-data")
///     .handler("greet", async |_: Context, input: Greet| Ok::<_, JobError>(format!("Hello, {}!", input.name)))
///     .start()
///     .await?;
/// println!("listening on {}", server.address());
/// server.serve(jobwire::stop_signal()).await
/// # }
/// ```
#[must_use = "nothing happens before `start`"]
#[derive(Default)]
pub struct Builder {
    config: Config,
    registrations: Vec<Registration>,
}

type Registration = Box<dyn FnOnce(&mut Handlers) -> Result<(), Error> + Send>;

impl Builder {
    /// Replaces all settings.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The address to serve on. Port 0 takes a free one.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.config.listen = address;
        self
    }

    /// The directory of the store.
    pub fn data(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config.data = dir.into();
        self
    }

    /// Runs jobs of `kind` with an async function from the JSON payload to the JSON output: see [`Handlers::add`].
    pub fn handler<I, O, E, F, Fut>(self, kind: &str, run: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<JobError> + Send + 'static,
        F: Fn(Context, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, E>> + Send + 'static,
    {
        let kind = kind.to_owned();
        self.register(move |handlers| handlers.add(&kind, run))
    }

    /// The same with a function that blocks, on threads of its own: see [`Handlers::add_blocking`].
    pub fn blocking_handler<I, O, E, F>(self, kind: &str, run: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: Into<JobError> + Send + 'static,
        F: Fn(Context, I) -> Result<O, E> + Send + Sync + 'static,
    {
        let kind = kind.to_owned();
        self.register(move |handlers| handlers.add_blocking(&kind, run))
    }

    /// The same with a handler that takes payloads as they are.
    pub fn raw_handler(self, kind: &str, handler: impl Handler) -> Self {
        let kind = kind.to_owned();
        self.register(move |handlers| handlers.add_handler(&kind, handler))
    }

    fn register(mut self, add: impl FnOnce(&mut Handlers) -> Result<(), Error> + Send + 'static) -> Self {
        self.registrations.push(Box::new(add));
        self
    }

    /// Opens the store, recovers, and starts to run jobs.
    ///
    /// # Errors
    /// A setting or a kind is not valid, the port is taken, or the store cannot be opened.
    pub async fn start(self) -> Result<Server, ServeError> {
        self.config.validate()?;
        let mut handlers = Handlers::builtin(&self.config).map_err(ServeError::Config)?;
        for add in self.registrations {
            add(&mut handlers).map_err(ServeError::Config)?;
        }
        Server::start(self.config, handlers).await
    }
}
