mod between;
mod blocks;
mod bundles;
mod claims;
mod epochs;
mod fresh;
mod opening;
mod parts;
mod plans;
mod replicas;
pub mod server;

use std::{path::PathBuf, sync::Arc};

use super::PostgresStore;
use crate::{
    config::Config,
    job::Timestamp,
    store::{Store, suite::store_suite},
};

async fn open(dir: PathBuf, config: Arc<Config>, now: Timestamp) -> Arc<dyn Store> {
    let schema = server::Schema::of(&dir);
    schema.make().await;
    PostgresStore::open(schema.url(), config, now).await.unwrap()
}

store_suite!(crate::store::postgres::tests::open);
