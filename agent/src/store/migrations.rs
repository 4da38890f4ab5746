//! The schema's history. A migration is never changed once it was released; a new
//! one is added below.

use rusqlite::Connection;

use super::StoreError;

const MIGRATIONS: [&str; 1] = [
    // 1: functions, and the agent's own row.
    "CREATE TABLE function (
         name TEXT PRIMARY KEY NOT NULL,
         config TEXT NOT NULL,
         code TEXT NOT NULL,
         snapshot TEXT NOT NULL UNIQUE,
         build TEXT NOT NULL,
         created_unix_ms INTEGER NOT NULL
     ) STRICT;
     CREATE TABLE agent (
         one INTEGER PRIMARY KEY CHECK (one = 1),
         epoch INTEGER NOT NULL
     ) STRICT;
     INSERT INTO agent (one, epoch) VALUES (1, 0);",
];

/// Runs what is missing, each step in its own transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let found: u32 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(StoreError::sqlite("reading the schema's version"))?;
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    for (version, sql) in (1..)
        .zip(MIGRATIONS)
        .skip(usize::try_from(found).unwrap_or(0))
    {
        let failed = StoreError::sqlite;
        let transaction = connection.transaction().map_err(failed("migrating"))?;
        transaction
            .execute_batch(sql)
            .map_err(failed("migrating"))?;
        let version: u32 = version;
        transaction
            .pragma_update(None, "user_version", version)
            .map_err(failed("setting the schema's version"))?;
        transaction.commit().map_err(failed("migrating"))?;
    }
    Ok(())
}
