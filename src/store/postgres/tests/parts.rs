//! Partitions: outcomes that are many leave with theirs, and whoever asks finds no difference to their removal.

use futures_util::future::join_all;

use super::{replicas::*, *};
use crate::{
    job::{Error, Filter, JobId, Report, State, View},
    store::{
        Cancel, Delete, ListQuery, Position, Queues, Retry, Submitted,
        postgres::{connect, migrate_schema, parts},
        suite::{New, World, drawn, job, secs},
    },
};

/// Partitions of a hundred outcomes and of 320 jobs, up to a thousand or so. Outcomes and jobs that are removed from their rows
/// are counted.
const NARROW: &str = "
    select add_part('done', n, n + 100) from generate_series(0, 900, 100) n;
    select add_part('job', n, n + 320) from generate_series(0, 1000, 320) n;
    create sequence deleted;
    create function is_left(value jsonb) returns int8 language sql as $$
      select count(*) from jsonb_array_elements(coalesce(value -> 'ids', value -> 'nums')) e where e <> 'null' $$;
    create function count_deleted() returns trigger language plpgsql as $$ begin
      perform nextval('deleted') from generate_series(1,
        is_left(to_jsonb(old)) - case when tg_op = 'UPDATE' then is_left(to_jsonb(new)) else 0 end);
      return null;
    end $$;
    create trigger counted after delete or update on done for each row execute function count_deleted();
    create trigger counted after delete or update on job for each row execute function count_deleted()";

async fn narrow() -> Replicas {
    let replicas = Replicas::new().await;
    migrate_schema(replicas.schema.url()).await.unwrap();
    replicas.schema.execute(NARROW).await;
    replicas
}

impl Replicas {
    async fn number(&self, sql: &str) -> i64 {
        self.schema.connect().await.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn deleted(&self) -> i64 {
        self.number("select last_value - 1 + is_called::int from deleted").await
    }

    async fn has(&self, table: &str) -> bool {
        self.number(&format!("select count(to_regclass('{table}'))")).await == 1
    }
}

fn kept(new: New, seconds: u64) -> New {
    new.spec(|spec| spec.retention = Some(secs(seconds)))
}

/// Runs jobs to their end.
async fn run(store: &PostgresStore, now: Timestamp, jobs: impl IntoIterator<Item = New>) {
    let group: Vec<_> = jobs.into_iter().map(Into::into).collect();
    let count = group.len();
    store.submit(now, vec![group]).await.unwrap().remove(0).unwrap();
    finish(store, now, count).await;
}

async fn finish(store: &PostgresStore, now: Timestamp, count: usize) {
    let leased = store.claim(now, World::wish(count)).await.unwrap();
    assert_eq!(leased.len(), count);
    let settled = store.settle(now, leased.iter().map(success).collect()).await.unwrap();
    assert!(settled.iter().all(Result::is_ok), "{settled:?}");
}

async fn keep(store: &PostgresStore, now: Timestamp) {
    store.database().keep_parts(now).await.unwrap();
}

async fn tick(store: &PostgresStore, now: Timestamp) {
    while store.database().tick_now(now).await.unwrap().more {}
}

pub async fn find(store: &PostgresStore, id: &str) -> Option<crate::job::Job> {
    store.get(vec![id.parse().unwrap()], View::Full).await.unwrap().0.remove(0)
}

pub async fn list(store: &PostgresStore, filter: Filter, oldest_first: bool, limit: usize) -> Vec<String> {
    let (mut after, mut all) = (None, Vec::new());
    loop {
        let query = ListQuery { filter: filter.clone(), view: View::Basic, limit, oldest_first, after };
        let page = store.list(query).await.unwrap();
        assert!(page.jobs.len() <= limit);
        all.extend(page.jobs.iter().map(|job| job.id.to_string()));
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

async fn submit_one(store: &PostgresStore, now: Timestamp, new: New) -> Result<Submitted, Error> {
    let reply = store.submit(now, vec![vec![new.into()]]).await.unwrap().remove(0);
    reply.map(|mut group| group.remove(0)).map_err(|(_, error)| error)
}

/// A job that has left, but for the row of what was asked for.
async fn is_gone(store: &PostgresStore, now: Timestamp, id: &str) {
    let name: JobId = id.parse().unwrap();
    assert!(find(store, id).await.is_none());
    for oldest_first in [false, true] {
        assert!(!list(store, Filter::default(), oldest_first, 100).await.contains(&id.into()));
        let filter = Filter { job_ids: [name.clone()].into(), ..Filter::default() };
        assert!(list(store, filter, oldest_first, 100).await.is_empty());
    }
    let retry = Retry { job_id: name.clone(), delay: secs(0), etag: None };
    let retried = store.retry(now, vec![retry]).await.unwrap().remove(0);
    assert!(matches!(retried, Err(Error::JobNotFound { .. })), "{retried:?}");
    let cancel = Cancel { job_id: name.clone(), reason: String::new(), etag: None };
    let cancelled = store.cancel(now, vec![cancel]).await.unwrap().remove(0);
    assert!(matches!(cancelled, Err(Error::JobNotFound { .. })), "{cancelled:?}");
    for allow_missing in [false, true] {
        let delete = Delete { job_id: name.clone(), etag: None, allow_missing };
        let deleted = store.delete(now, vec![delete]).await.unwrap().remove(0);
        assert_eq!(deleted.is_ok(), allow_missing, "{deleted:?}");
    }
}

#[tokio::test]
async fn many_outcomes_leave_with_their_partition() {
    let replicas = narrow().await;
    let store = replicas.open().await;
    run(&store, NOW, (0..250).map(|n| kept(job(&format!("job-{n}")), 10).request(&format!("r-{n}")))).await;
    let head = *store.signals().head.borrow();
    let before = NOW.after(secs(9));
    keep(&store, before).await;
    tick(&store, before).await;
    assert_eq!((outcomes(&store, Position(0)).await.len(), replicas.deleted().await), (250, 0));

    // Those of the last one, which is not closed, go one by one.
    let now = NOW.after(secs(10));
    keep(&store, now).await;
    for (part, is_there) in [("done_0", false), ("done_100", false), ("done_200", true), ("job_0", true)] {
        assert_eq!(replicas.has(part).await, is_there, "{part}");
    }
    for id in ["job-0", "job-198"] {
        is_gone(&store, now, id).await;
    }
    assert!(find(&store, "job-199").await.is_some());
    let again = submit_one(&store, now, job("job-3").request("r-3")).await;
    assert!(matches!(again, Err(Error::JobDeleted { .. })), "{again:?}");
    // An id of one's own is free again, whatever is left of its job.
    let again = submit_one(&store, now, kept(job("job-3"), 9).payload("else")).await.unwrap();
    assert!(!again.deduplicated);
    assert!(submit_one(&store, now, kept(job("job-3"), 9).payload("else")).await.unwrap().deduplicated);
    assert_eq!(find(&store, "job-3").await.unwrap().state, State::QUEUED);

    keep(&store, now).await;
    tick(&store, now).await;
    assert_eq!(replicas.deleted().await, 2 * 51);
    // The feed has lost them as if they had been removed one by one.
    assert!(outcomes(&store, Position(0)).await.is_empty());
    assert_eq!(store.feed_start().await.unwrap().position, Position(0));
    assert_eq!(store.outcomes(Position(0), 10, &Queues::All).await.unwrap().upto, head);
    assert_eq!(list(&store, Filter::default(), true, 100).await, ["job-3"]);
    let again = submit_one(&store, now, drawn("other").request("r-3")).await;
    assert!(matches!(again, Err(Error::JobDeleted { .. })), "{again:?}");
    finish(&store, now, 1).await;
    assert_eq!(outcomes(&store, Position(0)).await[0].position, Position(head.0 + 1));
    assert_eq!(find(&store, "job-3").await.unwrap().state, State::SUCCEEDED);

    // With the last job goes the partition of all of them, and what was beside it.
    replicas.schema.execute("select setval('job_num', 320)").await;
    keep(&store, now).await;
    assert!(replicas.has("job_0").await);
    assert_eq!(replicas.number("select count(*) from own").await, 198 + 1);
    tick(&store, now.after(secs(9))).await;
    keep(&store, now.after(secs(9))).await;
    assert!(!replicas.has("job_0").await);
    assert_eq!(replicas.number("select count(*) from own").await, 0);
    assert_eq!(replicas.deleted().await, 2 * 52);
}

#[tokio::test]
async fn outcomes_wait_for_the_last_one_of_their_partition() {
    let replicas = narrow().await;
    let store = replicas.open().await;
    let later = NOW.after(std::time::Duration::from_millis(100));
    run(&store, NOW, (0..60).map(|n| kept(job(&format!("job-{n}")), 10))).await;
    run(&store, later, (60..120).map(|n| kept(job(&format!("job-{n}")), 10))).await;
    keep(&store, NOW.after(secs(9))).await;
    tick(&store, NOW.after(secs(10))).await;
    assert!(find(&store, "job-0").await.is_some());
    assert_eq!(replicas.deleted().await, 0);
    keep(&store, later.after(secs(10))).await;
    assert!(find(&store, "job-0").await.is_none() && find(&store, "job-98").await.is_none());
    assert_eq!(replicas.deleted().await, 0);
}

/// The outcome of a later run takes those of the runs before along, wherever they are.
#[tokio::test]
async fn an_older_run_does_not_come_back() {
    let replicas = narrow().await;
    let mut store = replicas.open().await;
    submit(&store, [job("again").max_attempts(1)]).await;
    let leased = store.claim(NOW, World::wish(1)).await.unwrap().remove(0);
    let failed = Report::Failed(crate::job::JobError::permanent("no", "no"));
    assert!(store.settle(NOW, vec![World::report(&leased, failed)]).await.unwrap()[0].is_ok());
    run(&store, NOW, (0..98).map(|n| job(&format!("day-{n}")))).await;
    // The first outcome is kept for a day, the second one for ten seconds.
    store.close().await;
    let mut config = (*replicas.config).clone();
    config.defaults.retention = secs(10);
    store = PostgresStore::open(replicas.schema.url(), config.into(), NOW).await.unwrap();
    let retry = Retry { job_id: "again".parse().unwrap(), delay: secs(0), etag: None };
    store.retry(NOW, vec![retry]).await.unwrap().remove(0).unwrap();
    finish(&store, NOW, 1).await;
    run(&store, NOW, (0..120).map(|n| job(&format!("short-{n}")))).await;
    let now = NOW.after(secs(10));
    keep(&store, now).await;
    assert!(replicas.has("done_100").await);
    tick(&store, now).await;
    is_gone(&store, now, "again").await;
    keep(&store, now).await;
    assert!(!replicas.has("done_100").await && replicas.has("done_0").await);
    assert!(find(&store, "day-0").await.is_some() && find(&store, "short-0").await.is_none());
}

/// A partition that a few jobs keep from being dropped gives way to one with only these.
#[tokio::test]
async fn the_rest_of_a_partition_takes_its_place() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    run(&store, NOW, [job("final")]).await;
    submit(&store, [job("later").delay(secs(3600)), job("kept").queue("else")]).await;
    // Each of them in a block of its own.
    submit(&store, (0..1500).map(|n| job(&format!("job-{n}")).queue("other").priority(n % 2))).await;
    // The jobs of a partition that was used up, whose outcomes have left with theirs.
    replicas.schema.execute("delete from ready where num > 96; select setval('job_num', 65536)").await;
    let rows = "select count(*) from accepted where num < 65536";
    assert_eq!(replicas.number(rows).await, 1503);
    assert_eq!(list(&store, Filter::default(), true, 100).await, ["final", "later", "kept"]);
    keep(&store, NOW).await;
    assert_eq!(replicas.number(rows).await, 3);
    assert_eq!(replicas.number("select count(*) from own").await, 1503);
    submit(&store, [job("job-7")]).await;
    for (id, state) in [
        ("later", State::SCHEDULED),
        ("kept", State::QUEUED),
        ("final", State::SUCCEEDED),
        ("job-7", State::QUEUED),
    ] {
        assert_eq!(find(&store, id).await.unwrap().state, state, "{id}");
    }
    let now = NOW.after(secs(3600));
    tick(&store, now).await;
    finish(&store, now, 3).await;
    // It holds no more than the rest: it stays, until that has left too.
    keep(&store, now).await;
    assert_eq!(replicas.number(rows).await, 3);
    tick(&store, now.after(secs(86_400))).await;
    keep(&store, now.after(secs(86_400))).await;
    assert!(!replicas.has("job_0").await);
    assert_eq!(replicas.number("select count(*) from own").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_drop_while_others_work() {
    let replicas = narrow().await;
    let stores = replicas.pair().await;
    run(&stores[0], NOW, (0..550).map(|n| kept(job(&format!("job-{n}")), 10))).await;
    let now = NOW.after(secs(10));
    let work = tokio::spawn({
        let store = stores[0].clone();
        async move {
            for n in 0..60 {
                run(&store, now, [job(&format!("new-{n}"))]).await;
            }
        }
    });
    let over = "select count(*) from part where of = 'done' and low < 500 or of = 'job' and low = 0";
    while !work.is_finished() || replicas.number(over).await > 0 {
        join_all(stores.iter().map(|store| keep(store, now))).await;
    }
    work.await.unwrap();
    assert_eq!(replicas.deleted().await, 0);
    assert_eq!(outcomes(&stores[1], Position(0)).await.len(), 550 - 499 + 60);
    for n in [0, 59] {
        assert_eq!(find(&stores[1], &format!("new-{n}")).await.unwrap().state, State::SUCCEEDED);
    }
}

/// Who reads keeps a partition, and is not waited for: others go on.
#[tokio::test]
async fn a_partition_that_is_read_is_dropped_later() {
    let replicas = narrow().await;
    let store = replicas.open().await;
    run(&store, NOW, (0..120).map(|n| kept(job(&format!("job-{n}")), 10))).await;
    let now = NOW.after(secs(10));
    let reader = replicas.schema.connect().await;
    reader.batch_execute("begin; select from done limit 1").await.unwrap();
    keep(&store, now).await;
    assert!(replicas.has("done_0").await);
    run(&store, now, [job("new")]).await;
    reader.batch_execute("commit").await.unwrap();
    while replicas.has("done_0").await {
        keep(&store, now).await;
        tokio::time::sleep(secs(0)).await;
    }
    assert_eq!(replicas.deleted().await, 0);
}

/// Faster than anybody looks.
#[tokio::test]
async fn numbers_without_a_partition_get_one() {
    let replicas = Replicas::new().await;
    let [a, b] = replicas.pair().await;
    let far = 1_i64 << 41;
    replicas
        .schema
        .execute(&format!("select setval('job_num', {far}), setval('done_seq', {far} + 70000)"))
        .await;
    let jobs = |name: &'static str| (0..3).map(move |n| job(&format!("{name}-{n}")));
    tokio::join!(submit(&a, jobs("a")), submit(&b, jobs("b")));
    finish(&a, NOW, 6).await;
    let all = outcomes(&b, Position(0)).await;
    assert_eq!(
        all.iter().map(|one| one.position.0).collect::<Vec<_>>(),
        (1..=6).map(|n| far + 70000 + n).collect::<Vec<_>>()
    );
}

/// Ids that servers draw are not among those that callers have named, and are found all the same.
#[tokio::test]
async fn an_id_that_was_drawn_can_be_named() {
    let replicas = Replicas::new().await;
    let store = replicas.open().await;
    let id = uuid::Uuid::now_v7().to_string();
    submit(&store, [drawn(&id)]).await;
    assert_eq!(replicas.number("select count(*) from own").await, 0);
    assert!(submit_one(&store, NOW, job(&id)).await.unwrap().deduplicated);
    let other = submit_one(&store, NOW, job(&id).payload("else")).await;
    assert!(matches!(other, Err(Error::JobIdInUse { .. })), "{other:?}");
}

/// A store that is taken over may have used many numbers.
#[tokio::test]
async fn there_is_room_for_all_numbers_of_another_store() {
    let replicas = Replicas::new().await;
    migrate_schema(replicas.schema.url()).await.unwrap();
    let client = connect(replicas.schema.url()).await.unwrap();
    for last in [0, 65_535, 65_536, 10_000_000] {
        client.batch_execute("begin").await.unwrap();
        parts::make_upto(&client, "job", last).await.unwrap();
        let made = "select count(*), min(low), max(high), sum(high - low)::int8 from part";
        let row = client.query_one(made, &[]).await.unwrap();
        let (count, low, high, sum): (i64, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert!((1..=8).contains(&count) && low == 0 && high > last && sum == high, "{count} up to {high}");
        client.batch_execute("rollback").await.unwrap();
    }
}
