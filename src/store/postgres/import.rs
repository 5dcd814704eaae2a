//! A database that takes over another store: all of it in one transaction, and nobody serves it before that has ended.

use tokio_postgres::{Client, binary_copy::BinaryCopyInWriter, types::Type};

use super::{
    link::Link,
    open::{self, OpenError},
    parts,
};
use crate::store::{LogId, migrate::Origin};

const IMPORT: &str = include_str!("sql/import.sql");

/// A database that another store may be taken over into, and that nobody else changes the schema of meanwhile.
#[derive(Debug)]
pub struct Target {
    client: Client,
    was_broken_off: bool,
    schema: String,
    /// Of the store that it holds.
    log_id: Option<LogId>,
}

impl Target {
    /// Brings the schema up to date.
    ///
    /// # Errors
    /// The database cannot be used, or a store is being taken over into it at this moment.
    pub async fn open(url: &str) -> Result<Self, OpenError> {
        let (client, _) = open::open(&Link::of(url)?).await?;
        open::refuse_underway(&client).await?;
        open::take_turn(&client).await?;
        let was_broken_off = open::migrate_alone(&client).await? < 0;
        let found = "select current_schema()::text as schema, (select log_id from feed)";
        let row = client.query_one(found, &[]).await?;
        let log_id = row.get::<_, Option<&[u8]>>("log_id").map(LogId::of).transpose()?;
        Ok(Self { was_broken_off, schema: row.get("schema"), log_id, client })
    }

    /// Whether a store was being taken over into it, which has not ended.
    pub fn was_broken_off(&self) -> bool {
        self.was_broken_off
    }

    /// Whether it holds this very store.
    pub fn holds(&self, origin: &Origin) -> bool {
        self.log_id.is_some() && self.log_id == origin.log_id
    }

    /// Makes room for what the other store has, and keeps servers out.
    ///
    /// # Errors
    /// It holds a store.
    pub async fn begin(self, origin: &Origin) -> Result<Import, OpenError> {
        let Self { client, schema, log_id, .. } = self;
        if log_id.is_some() {
            return Err(OpenError::NotEmpty { schema });
        }
        client.batch_execute(open::BEGIN_IMPORT).await?;
        client.batch_execute("begin").await?;
        parts::make_upto(&client, "job", origin.last_num).await?;
        parts::make_upto(&client, "done", origin.last_seq).await?;
        Ok(Import { client })
    }
}

/// A transaction that fills an empty database. Dropped before [`Import::commit`], it leaves the database empty.
#[derive(Debug)]
pub struct Import {
    client: Client,
}

impl Import {
    /// Writes rows into a table.
    ///
    /// # Errors
    /// As PostgreSQL says.
    pub async fn copy(&self, table: &str, columns: &str) -> Result<BinaryCopyInWriter, OpenError> {
        let types = self.client.prepare(&format!("select {columns} from {table}")).await?;
        let types: Vec<Type> = types.columns().iter().map(|column| column.type_().clone()).collect();
        let sink = self.client.copy_in(&format!("copy {table} ({columns}) from stdin binary")).await?;
        Ok(BinaryCopyInWriter::new(sink, &types))
    }

    /// Lets the database go on where the other store has ended.
    ///
    /// # Errors
    /// As PostgreSQL says.
    pub async fn settle(&self, origin: &Origin) -> Result<(), OpenError> {
        let log_id = origin.log_id.map_or_else(open::draw, |id| Ok(id.0.to_be_bytes()))?;
        let lease_key = origin.lease_key.map_or_else(open::draw, Ok)?;
        self.client
            .query_one(
                IMPORT,
                &[
                    &log_id.as_slice(),
                    &lease_key.as_slice(),
                    &origin.feed_start,
                    &origin.feed_cut,
                    &origin.last_seq,
                    &origin.last_num,
                ],
            )
            .await?;
        Ok(())
    }

    /// # Errors
    /// Refused ([`OpenError::is_refusal`]): nothing was taken over. Otherwise nobody knows.
    pub async fn commit(self) -> Result<(), OpenError> {
        self.client.batch_execute(open::END_IMPORT).await?;
        Ok(self.client.batch_execute("commit").await?)
    }
}
