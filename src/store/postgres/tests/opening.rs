//! What is met when a database is opened.

use std::time::Duration;

use futures_util::future::join_all;

use super::{
    super::{
        Durability, connect,
        open::{identity, migrate},
        warnings::look,
    },
    server::Schema,
    *,
};
use crate::store::{
    migrate::Origin,
    postgres::{OpenError, Target},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);

async fn open(url: &str) -> Result<Arc<PostgresStore>, OpenError> {
    PostgresStore::open(url, Arc::new(Config::default()), NOW).await
}

#[tokio::test]
async fn replicas_that_start_together_migrate_once() {
    let schema = Schema::new().await;
    let stores = join_all((0..6).map(|_| open(schema.url()))).await;
    let stores: Vec<_> = stores.into_iter().map(Result::unwrap).collect();
    for store in &stores {
        assert_eq!((store.log_id(), store.lease_key()), (stores[0].log_id(), stores[0].lease_key()));
    }
    let mut replicas: Vec<i64> = stores.iter().map(|store| store.database().replica).collect();
    replicas.sort_unstable();
    replicas.dedup();
    assert_eq!(replicas.len(), 6);
}

#[tokio::test]
async fn a_store_has_one_identity_however_many_draw_it() {
    let schema = Schema::new().await;
    let clients = join_all((0..20).map(|_| connect(schema.url()))).await;
    let clients: Vec<_> = clients.into_iter().map(Result::unwrap).collect();
    migrate(&clients[0]).await.unwrap();
    for _ in 0..20 {
        schema.execute("delete from feed").await;
        let drawn = join_all(clients.iter().map(identity)).await;
        let drawn: Vec<_> = drawn.into_iter().map(Result::unwrap).collect();
        assert!(drawn.iter().all(|one| *one == drawn[0]), "{drawn:?}");
    }
}

/// Its identity comes with it.
#[tokio::test]
async fn no_identity_is_drawn_while_a_store_is_taken_over() {
    let schema = Schema::new().await;
    let client = connect(schema.url()).await.unwrap();
    migrate(&client).await.unwrap();
    let origin =
        Origin { log_id: None, lease_key: None, feed_start: 0, feed_cut: 0, last_num: 0, last_seq: 0 };
    let target = Target::open(schema.url()).await.unwrap();
    assert!(!target.was_broken_off());
    let import = target.begin(&origin).await.unwrap();
    let underway = Target::open(schema.url()).await.unwrap_err();
    assert!(matches!(underway, OpenError::Underway), "{underway}");
    let drawing = tokio::time::timeout(Duration::from_millis(500), identity(&client));
    assert!(drawing.await.is_err(), "it waits");
    drop((import, client));
    let target = loop {
        match Target::open(schema.url()).await {
            Err(OpenError::Underway) => tokio::time::sleep(Duration::from_millis(5)).await,
            opened => break opened.unwrap(),
        }
    };
    assert!(target.was_broken_off());
    target.begin(&origin).await.unwrap();
}

#[tokio::test]
async fn a_migration_that_fails_says_why() {
    let schema = Schema::new().await;
    schema.execute("create table job ()").await;
    let error = open(schema.url()).await.unwrap_err().to_string();
    assert!(error.contains("job") && error.contains("already exists"), "{error}");
}

/// What is looked at under a lock is what there is once the lock is had.
#[tokio::test]
async fn a_session_sees_what_others_commit() {
    let schema = Schema::new().await;
    let url = format!("{}%20-cdefault_transaction_isolation%3Dserializable", schema.url());
    let client = connect(&url).await.unwrap();
    let level: String = client.query_one("show transaction_isolation", &[]).await.unwrap().get(0);
    assert_eq!(level, "read committed");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let schema = Schema::new().await;
    open(schema.url()).await.unwrap();
    schema.execute("update jobwire set version = 99").await;
    let error = open(schema.url()).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99 }), "{error}");
    assert!(error.to_string().contains("schema 99"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_used_is_told() {
    let schema = Schema::new().await;
    let missing = schema.url().replace("test_", "missing_");
    for (url, word) in [
        ("postgres://127.0.0.1:1/nobody".to_owned(), "refused"),
        ("postgres://127.0.0.1/?nonsense=1".to_owned(), "nonsense"),
        (missing, "search_path"),
        (schema.url().replace("/postgres?", "/not_there?"), "not_there"),
        (format!("{}%20-cdefault_transaction_read_only%3Don", schema.url()), "writes"),
        (format!("{}&sslmode=require", schema.url()), "TLS"),
    ] {
        let error = open(&url).await.unwrap_err().to_string();
        assert!(error.contains(word), "{url}: {error}");
    }
}

#[tokio::test]
async fn the_settings_say_what_an_acknowledgement_is_worth() {
    let schema = Schema::new().await;
    let durability =
        async |settings: &str| open(&format!("{}{settings}", schema.url())).await.unwrap().durability();
    assert_eq!(durability("").await, Durability::Synced);
    assert_eq!(durability("%20-csynchronous_commit%3Doff").await, Durability::Asynchronous);
    let row = |safe: bool, synchronous: bool, standby: bool| (safe, synchronous, standby);
    for ((safe, synchronous, standby), expected) in [
        (row(false, true, true), Durability::Unsafe),
        (row(true, false, true), Durability::Asynchronous),
        (row(true, true, true), Durability::Replicated),
        (row(true, true, false), Durability::Synced),
    ] {
        assert_eq!(Durability::of(safe, synchronous, standby), expected);
    }
}

#[tokio::test]
async fn what_keeps_a_database_from_serving_well_is_told() {
    let schema = Schema::new().await;
    let store = open(schema.url()).await.unwrap();
    let other = schema.connect().await;
    let name: String =
        other.query_one("select current_setting('application_name')", &[]).await.unwrap().get(0);
    let told = async |patience: u64, needed: usize| -> Vec<String> {
        let patience = Duration::from_secs(patience);
        look(&store.database().pools.read, patience, needed).await.unwrap().into_iter().collect()
    };
    let open_by_other = |told: Vec<String>| {
        told.iter().any(|line| line.contains("a transaction is open since") && line.contains(&name))
    };
    assert!(!open_by_other(told(0, 0).await));
    other.batch_execute("begin isolation level repeatable read; select from feed").await.unwrap();
    assert!(open_by_other(told(0, 0).await));
    assert!(!open_by_other(told(600, 0).await));
    other.batch_execute("commit").await.unwrap();
    assert!(!open_by_other(told(0, 0).await));
    let few = |told: Vec<String>| told.iter().any(|line| line.contains("connections to the server are left"));
    assert!(few(told(0, 100_000).await));
    assert!(!few(told(0, 0).await));
}
