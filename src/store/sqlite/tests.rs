use std::{path::PathBuf, sync::Arc};

use super::SqliteStore;
use crate::{
    config::Config,
    job::Timestamp,
    store::{Store, suite::store_suite},
};

pub async fn open(dir: PathBuf, config: Arc<Config>, now: Timestamp) -> Arc<dyn Store> {
    SqliteStore::open(&dir, config, now).unwrap()
}

store_suite!(crate::store::sqlite::tests::open);
