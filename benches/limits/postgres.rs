//! PostgreSQL as the store uses it, with nothing around it: the same statements in the same sessions, one after the other.

use std::{
    error,
    time::{Duration, Instant},
};

use jobwire::{
    bench::{Error, empty_schema},
    store::postgres,
};
use tokio_postgres::{Client, Statement};

const SCHEMA: &str = include_str!("../../src/store/postgres/sql/schema_1.sql");
const SUBMIT: &str = include_str!("../../src/store/postgres/sql/submit.sql");
const MOVE: &str = include_str!("../../src/store/postgres/sql/move.sql");
/// As many as a store that has served for long has, with room for all that is measured.
const PARTS: &str = "select add_part(parent, n << 20, (n + 1) << 20)
    from unnest(array['job', 'done']) parent, generate_series(0::int8, 15) n";
const BATCH: usize = 500;
const NOW: i64 = 1_800_000_000_000;

fn failed(error: impl error::Error) -> Error {
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    Error::Unexpected(format!("PostgreSQL: {why}"))
}

struct Loop {
    client: Client,
    submit: Statement,
    finish: Statement,
}

/// Jobs a second that are inserted as running, and completed, in batches by as many loops as are asked for.
pub async fn lifecycles(url: &str, loops: usize, duration: Duration) -> Result<f64, Error> {
    let url = empty_schema(url).await?;
    let client = postgres::connect(&url).await.map_err(failed)?;
    client.batch_execute(SCHEMA).await.map_err(failed)?;
    client.batch_execute(PARTS).await.map_err(failed)?;
    client
        .batch_execute("insert into line (queue, kind) values ('default', 'echo')")
        .await
        .map_err(failed)?;
    let start = Instant::now();
    let running: Vec<_> = (0..loops)
        .map(|number| {
            let url = url.clone();
            tokio::spawn(async move {
                let bare = Loop::new(&url).await?;
                let mut jobs = 0;
                while start.elapsed() < duration {
                    let started = bare.start(number, jobs).await.map_err(failed)?;
                    bare.finish(&started).await.map_err(failed)?;
                    jobs += BATCH;
                }
                Ok::<_, Error>(jobs)
            })
        })
        .collect();
    let mut jobs = 0;
    for bare in running {
        jobs += bare.await.map_err(failed)??;
    }
    Ok(jobs as f64 / start.elapsed().as_secs_f64())
}

fn none<T: Clone>(count: usize) -> Vec<Option<T>> {
    vec![None; count]
}

impl Loop {
    async fn new(url: &str) -> Result<Self, Error> {
        let client = postgres::connect(url).await.map_err(failed)?;
        Ok(Self {
            submit: client.prepare(SUBMIT).await.map_err(failed)?,
            finish: client.prepare(MOVE).await.map_err(failed)?,
            client,
        })
    }

    async fn start(&self, number: usize, from: usize) -> Result<Vec<i64>, tokio_postgres::Error> {
        let id = |at| uuid::Builder::from_unix_timestamp_millis(at as u64, &[number as u8; 10]).into_uuid();
        let ids: Vec<String> = (from..from + BATCH).map(|at| id(at).to_string()).collect();
        let payload = [b'x'; 100];
        let rows = self
            .client
            .query(
                &self.submit,
                &[
                    &ids,
                    &vec![1_i32; BATCH],
                    &vec![0_i32; BATCH],
                    &vec!["application/octet-stream"; BATCH],
                    &vec![&payload[..]; BATCH],
                    &none::<&str>(BATCH),
                    &vec![3_i32; BATCH],
                    &vec![NOW; BATCH],
                    &vec![NOW; BATCH],
                    &none::<i64>(BATCH),
                    &none::<i64>(BATCH),
                    &none::<i64>(BATCH),
                    &none::<i64>(BATCH),
                    &none::<&str>(BATCH),
                    &none::<&str>(BATCH),
                    &NOW,
                    &Vec::<&str>::new(),
                    &Vec::<&str>::new(),
                    &Vec::<i64>::new(),
                    &Vec::<i64>::new(),
                    &Vec::<&str>::new(),
                    &Vec::<&[u8]>::new(),
                    &Vec::<&str>::new(),
                    &NOW,
                    &vec![false; BATCH],
                    &Vec::<&str>::new(),
                    &Vec::<i64>::new(),
                    &"worker",
                    &1_i64,
                    &(NOW + 30_000),
                ],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get("num")).collect())
    }

    async fn finish(&self, started: &[i64]) -> Result<(), tokio_postgres::Error> {
        let count = started.len();
        let output = [b'x'; 100];
        self.client
            .query(
                &self.finish,
                &[
                    &started,
                    &vec![3_i32; count],
                    &vec![2_i64; count],
                    &vec![false; count],
                    &vec![5_i32; count],
                    &none::<i32>(count),
                    &none::<i32>(count),
                    &none::<i64>(count),
                    &none::<i64>(count),
                    &none::<i64>(count),
                    &none::<i64>(count),
                    &none::<i64>(count),
                    &none::<i64>(count),
                    &none::<i64>(count),
                    &none::<&str>(count),
                    &none::<&str>(count),
                    &none::<&str>(count),
                    &vec!["application/octet-stream"; count],
                    &vec![&output[..]; count],
                    &vec![NOW; count],
                    &none::<i64>(count),
                    &none::<f64>(count),
                    &none::<&str>(count),
                    &none::<&str>(count),
                    &none::<&[u8]>(count),
                    &NOW,
                    &20_i32,
                    &vec![false; count],
                    &vec![1_i64],
                ],
            )
            .await
            .map(drop)
    }
}
