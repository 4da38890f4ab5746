//! What survives the agent: registered functions, in SQLite.
//!
//! One file, `<state>/snapback.db`, opened by one agent at a time (the state
//! directory's lock sees to that). The schema's version is `user_version`; each
//! migration is one step and one transaction.

mod functions;
mod migrations;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

pub use functions::Function;

/// The database failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite reports an error.
    #[error("{operation} in the database")]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: rusqlite::Error,
    },
    /// The file cannot be opened.
    #[error("the database {} cannot be opened", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// The file was written by a newer agent.
    #[error("the database has schema version {found}; this agent knows up to {known}")]
    Newer {
        /// In the file.
        found: u32,
        /// The newest that this agent knows.
        known: u32,
    },
    /// A row does not make sense.
    #[error("the database row of function {function} cannot be understood: {field}")]
    Row {
        /// Which function.
        function: String,
        /// Which column.
        field: &'static str,
    },
    /// The function's row cannot be written down.
    #[error("function {function} cannot be stored")]
    Encode {
        /// Which function.
        function: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is a function of this name.
    #[error("function {0} exists already")]
    Exists(String),
}

impl StoreError {
    fn sqlite(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { operation, source }
    }
}

/// The open database. Its calls take well under a millisecond, and are rare.
#[derive(Debug)]
pub struct Store(Mutex<Connection>);

impl Store {
    /// Opens (or makes) the database and brings it up to date.
    ///
    /// # Errors
    /// When it cannot be opened, or a newer agent wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Connection::open(path).map_err(open)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;",
            )
            .map_err(open)?;
        migrations::migrate(&mut connection)?;
        Ok(Self(Mutex::new(connection)))
    }

    /// A number that is larger at every start of an agent: the upper half of the
    /// restore generations of this life.
    ///
    /// # Errors
    /// When the database fails.
    pub fn next_epoch(&self) -> Result<u32, StoreError> {
        let sql = "UPDATE agent SET epoch = epoch + 1 RETURNING epoch";
        self.connection()
            .query_row(sql, [], |row| row.get(0))
            .map_err(StoreError::sqlite("counting the agent's starts"))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A transaction that was cut off is rolled back by SQLite.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
