//! Statements are planned once, perhaps while the tables are empty. They must not read more of them when they are full,
//! whether the planner knows that or not.

use super::{server::Schema, *};
use crate::{
    job::{Filter, JobError, Payload, Progress, Report, State, View},
    store::{
        Cancel, Delete, ListQuery, Position, Queues, Renewal, Retry,
        suite::{World, drawn, job, secs},
    },
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// Jobs in each state, far away from those of the test: later, and in lines of their own.
const FILL: &str = "
    insert into line (queue, kind) select 'full/' || n, 'full' from generate_series(1, 20) n;
    insert into job select n, array['full-' || n], 2 + n % 20, 0, 1, 't', array['in'::bytea], array[2], null, 'full-' || n, 'full-' || n
      from generate_series(1000001, 1180000) n;
    insert into ready select n, 2 + n % 20, 2, 1, 0, 1, 0, 1, n, 9e15, null, 9e15, 2, null, 0
      from generate_series(1000001, 1060000) n;
    insert into waiting select n, 2 + n % 20, 1, 1, 0, 1, 0, 9e15, 9e15, 9e15, null, null, 2, null, 0
      from generate_series(1060001, 1120000) n;
    insert into done select n - 1000000, n, array[n], 1, 1, 3, 5, 2 + n % 20, 1, 'w', 1, 1, 9e15, null, 't', array['out'::bytea], array[3]
      from generate_series(1120001, 1180000) n;
    insert into bundle select n, n - 2000000, n - 2000000, array[n - 2000000], B'1', 1, 'w', 0, 1, 9e15, 0
      from generate_series(1000001, 1001000) n;
    insert into failure select n, 1, 1, 'w', 1, 1, '{}' from generate_series(1000001, 1180000) n;
    insert into progress select n, 1, 0.5, '', null, null from generate_series(1000001, 1120000) n;
    insert into request select 'full', 'r-' || n, n, 'full-' || n, 'asked', null, 9e15
      from generate_series(1000001, 1180000) n;
    insert into uniq select 'full', 'k-' || n, n from generate_series(1000001, 1120000) n;
    select setval('done_seq', 200000);";

/// Pages of tables and indexes that were asked for so far, as far as sessions have told.
const PAGES: &str = "select coalesce(sum(heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0)), 0)::int8
    from pg_statio_user_tables where schemaname = current_schema()";

/// Its reading would count too, and it would tell the planner how full the tables are.
const NO_AUTOVACUUM: &str = "
    do $$ declare t regclass; begin
      for t in select oid from pg_class where relnamespace = current_schema::regnamespace and relkind = 'r' loop
        execute format('alter table %s set (autovacuum_enabled = off)', t);
      end loop;
    end $$";

/// Several partitions of each table that there are any of.
const PARTS: &str = "select add_part(parent, n, n + 65536)
    from unnest(array['job', 'done']) parent, generate_series(196608, 1200000, 65536) n";

const ROUNDS: usize = 20;

/// Uses every statement, one job at a time.
async fn use_all(store: &PostgresStore, name: &str) {
    for round in 0..ROUNDS {
        let id = format!("{name}-{round}");
        let of = |new: crate::store::suite::New| vec![vec![new.max_attempts(1).into()]];
        let named = job(&id).request(&id).unique(&id);
        for _ in 0..2 {
            store.submit(NOW, of(named.clone())).await.unwrap().remove(0).unwrap();
        }
        store
            .submit(NOW, of(drawn(&format!("{id}-later")).delay(secs(1000))))
            .await
            .unwrap()
            .remove(0)
            .unwrap();
        let time = uuid::Timestamp::from_unix(uuid::NoContext, 1_800_000_000 + round as u64, 0);
        let like_drawn = uuid::Uuid::new_v7(time).to_string();
        store.submit(NOW, of(job(&like_drawn).delay(secs(1000)))).await.unwrap().remove(0).unwrap();
        let leased = store.claim(NOW, World::wish(1)).await.unwrap().remove(0);
        let progress = Progress { fraction: 0.5, note: String::new(), details: None, update_time: NOW };
        let renewal =
            Renewal { lease: leased.lease, until: Some(NOW.after(secs(30))), progress: Some(progress) };
        store.renew(NOW, vec![renewal]).await.unwrap();
        store.leased(vec![leased.lease], true).await.unwrap();
        let failed = Report::Failed(JobError::permanent("no", "no"));
        let settled = store.settle(NOW, vec![World::report(&leased, failed)]).await.unwrap();
        assert!(settled[0].is_ok());
        let retry = Retry { job_id: id.parse().unwrap(), delay: secs(0), etag: None };
        store.retry(NOW, vec![retry]).await.unwrap().remove(0).unwrap();
        let leased = store.claim(NOW, World::wish(1)).await.unwrap().remove(0);
        let success = World::report(&leased, Report::Succeeded(Payload::none()));
        assert!(store.settle(NOW, vec![success]).await.unwrap()[0].is_ok());
        store.lease_job(leased.lease).await.unwrap();
        let later: crate::job::JobId = format!("{id}-later").parse().unwrap();
        let cancel = Cancel { job_id: later.clone(), reason: String::new(), etag: None };
        store.cancel(NOW, vec![cancel]).await.unwrap().remove(0).unwrap();
        let (found, head) = store.get(vec![id.parse().unwrap()], View::Full).await.unwrap();
        assert_eq!(found[0].as_ref().unwrap().state, State::SUCCEEDED);
        let page = store.outcomes(Position(head.0 - 2), 10, &Queues::All).await.unwrap();
        assert_eq!(page.upto, head);
        store.existing(Position(head.0 - 2), head, &Filter::default(), 10).await.unwrap();
        // From the beginning, however much comes after that.
        assert!(!store.outcomes(Position(0), 10, &Queues::All).await.unwrap().outcomes.is_empty());
        store.existing(Position(0), head, &Filter::default(), 10).await.unwrap();
        assert_eq!(store.position_at(NOW).await.unwrap(), head);
        let filter = Filter { job_ids: [later.clone()].into(), ..Filter::default() };
        let query = ListQuery { filter, view: View::Full, limit: 5, oldest_first: false, after: None };
        assert_eq!(store.list(query).await.unwrap().jobs.len(), 1);
        let delete = Delete { job_id: later, etag: None, allow_missing: false };
        store.delete(NOW, vec![delete]).await.unwrap().remove(0).unwrap();
        store.tick(NOW).await.unwrap();
    }
}

#[tokio::test]
async fn full_tables_cost_no_more_than_empty_ones() {
    let open = async |schema: &Schema| {
        let store = PostgresStore::open(schema.url(), Arc::new(Config::default()), NOW).await.unwrap();
        schema.execute(PARTS).await;
        schema.execute(NO_AUTOVACUUM).await;
        // So the database believes that tables are always small.
        schema.execute("analyze").await;
        store
    };
    let (small, large) = (Schema::new().await, Schema::new().await);
    let store = open(&small).await;
    use_all(&store, "empty").await;
    store.close().await;
    let empty = told(&small, 0).await;

    let store = open(&large).await;
    use_all(&store, "planned").await;
    large.execute(FILL).await;
    let before = told(&large, 0).await;
    use_all(&store, "full").await;
    store.close().await;
    let full = told(&large, before).await - before;
    // Trees are a level higher, and sessions may have told of the round before only now; one that is read from end to
    // end would be hundreds of pages for each job.
    assert!(full < 4 * empty, "{full} pages instead of {empty}");

    // Planned anew, by a database that knows how full they are.
    large.execute("analyze").await;
    let store = PostgresStore::open(large.url(), Arc::new(Config::default()), NOW).await.unwrap();
    let before = told(&large, 0).await;
    use_all(&store, "analysed").await;
    store.close().await;
    let analysed = told(&large, before).await - before;
    assert!(analysed < 4 * empty, "{analysed} pages instead of {empty}");
}

/// Sessions tell what they have read when they end, or a second later.
async fn told(schema: &Schema, before: i64) -> i64 {
    let client = schema.connect().await;
    let mut last = before;
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let now: i64 = client.query_one(PAGES, &[]).await.unwrap().get(0);
        if now == last && now > before {
            return now;
        }
        last = now;
    }
}
