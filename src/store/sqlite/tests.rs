mod bundles;
mod claims;
mod commands;
mod damage;
mod done;
mod maintenance;
mod opening;
mod plans;

use std::{path::PathBuf, sync::Arc};

use rusqlite::{Connection, Params};

use super::{SqliteStore, open::DATABASE};
use crate::{
    config::Config,
    job::Timestamp,
    store::{
        Store,
        suite::{Open, World, store_suite},
    },
};

async fn open(dir: PathBuf, config: Arc<Config>, now: Timestamp) -> Arc<dyn Store> {
    SqliteStore::open(&dir, config, now).unwrap()
}

store_suite!(crate::store::sqlite::tests::open);

const OPEN: Open = |dir, config, now| Box::pin(open(dir, config, now));

/// Changes the database behind the back of its store.
fn tamper(world: &World, sql: &str, params: impl Params) -> usize {
    let connection = Connection::open(world.dir().join(DATABASE)).unwrap();
    connection.execute(sql, params).unwrap()
}
