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
const FINISH: &str = include_str!("../../src/store/postgres/sql/finish.sql");
/// As many as a store that has served for long has, with room for all that is measured.
const PARTS: &str = "select add_part(parent, n << 20, (n + 1) << 20)
    from unnest(array['job', 'done']) parent, generate_series(0::int8, 15) n";
const BATCH: usize = 500;
/// Jobs of a block, as many as fit with payloads of 100 bytes, and so outcomes of a row.
const BLOCK: usize = 25;
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
                    bare.finish(started).await.map_err(failed)?;
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

/// Jobs that were inserted: where their blocks begin, and the fence of their leases.
struct Started {
    blocks: Vec<i64>,
    fence: i64,
}

/// Where the blocks begin and end in the arrays, from 1.
fn slices() -> (Vec<i32>, Vec<i32>) {
    (0..BATCH).step_by(BLOCK).map(|first| (first as i32 + 1, (first + BLOCK) as i32)).unzip()
}

impl Loop {
    async fn new(url: &str) -> Result<Self, Error> {
        let client = postgres::connect(url).await.map_err(failed)?;
        Ok(Self {
            submit: client.prepare(SUBMIT).await.map_err(failed)?,
            finish: client.prepare(FINISH).await.map_err(failed)?,
            client,
        })
    }

    async fn start(&self, number: usize, from: usize) -> Result<Started, tokio_postgres::Error> {
        let id = |at| uuid::Builder::from_unix_timestamp_millis(at as u64, &[number as u8; 10]).into_uuid();
        let ids: Vec<String> = (from..from + BATCH).map(|at| id(at).to_string()).collect();
        let payload = [b'x'; 100];
        let (beginning, ending) = slices();
        let blocks = BATCH / BLOCK;
        let low: Vec<&String> = ids.iter().step_by(BLOCK).collect();
        let high: Vec<&String> = ids.iter().skip(BLOCK - 1).step_by(BLOCK).collect();
        let places = (0..BATCH).map(|at| ((at / BLOCK) as i32 + 1, (at % BLOCK) as i32));
        let (bundled_block, bundled_place): (Vec<i32>, Vec<i32>) = places.unzip();
        let (int4, int8, text) = (Vec::<i32>::new(), Vec::<i64>::new(), Vec::<&str>::new());
        let rows = self
            .client
            .query(
                &self.submit,
                &[
                    &ids,
                    &vec![&payload[..]; BATCH],
                    &beginning,
                    &ending,
                    &vec![1_i32; blocks],
                    &vec![0_i32; blocks],
                    &vec!["application/octet-stream"; blocks],
                    &vec![None::<&str>; blocks],
                    &low,
                    &high,
                    &NOW,
                    &"worker",
                    &1_i64,
                    &(NOW + 30_000),
                    &1_i64,
                    &bundled_block,
                    &bundled_place,
                    // Nothing else is to be said of any job.
                    &int4,
                    &int4,
                    &int4,
                    &int4,
                    &int4,
                    &int8,
                    &int8,
                    &int8,
                    &int8,
                    &int8,
                    &int8,
                    &int8,
                    &int4,
                    &int4,
                    &text,
                    &text,
                    &text,
                    &int8,
                    &int4,
                    &int4,
                    &text,
                    &text,
                    &text,
                    &int4,
                    &int4,
                    &int8,
                    &text,
                    &Vec::<&[u8]>::new(),
                    &text,
                    &NOW,
                    &vec![1_i32],
                    &vec![0_i64],
                    &vec![0_i64],
                    &vec![BATCH as i64],
                    &vec![(BATCH * payload.len()) as i64],
                    &vec![payload.len() as i32; BATCH],
                ],
            )
            .await?;
        let blocks = rows.iter().map(|row| row.get("num")).collect();
        Ok(Started { blocks, fence: rows[0].get("fence") })
    }

    async fn finish(&self, started: Started) -> Result<(), tokio_postgres::Error> {
        let Started { blocks, fence } = started;
        let nums: Vec<i64> =
            blocks.iter().flat_map(|&first| (0..BLOCK as i64).map(move |place| first + place)).collect();
        let output = [b'x'; 100];
        let (beginning, ending) = slices();
        let count = blocks.len();
        let none = Vec::<i64>::new();
        self.client
            .query(
                &self.finish,
                &[
                    &vec![fence],
                    &vec!["1".repeat(BATCH)],
                    &nums,
                    &vec![&output[..]; BATCH],
                    &beginning,
                    &ending,
                    &vec![fence; count],
                    &blocks,
                    &vec![5_i32; count],
                    &vec![1_i32; count],
                    &vec![(BLOCK * output.len()) as i64; count],
                    &vec![NOW; count],
                    &vec![None::<&str>; count],
                    &vec!["application/octet-stream"; count],
                    &NOW,
                    &none,
                    &none,
                    &vec![output.len() as i32; BATCH],
                ],
            )
            .await
            .map(drop)
    }
}
