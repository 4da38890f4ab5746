//! The table of functions.

use rusqlite::{ErrorCode, OptionalExtension as _, Row};
use serde::Serialize;
use snapback_proto::ids::FunctionName;
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::manifest::SnapshotId;

use super::{Store, StoreError};
use crate::exec::BuildFacts;
use crate::function::FunctionConfig;

/// A registered function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Function {
    /// How it was described.
    pub config: FunctionConfig,
    /// The image that its machines have: its code, with its layers.
    pub code: Digest,
    /// Its snapshot.
    pub snapshot: SnapshotId,
    /// What its build took.
    pub build: BuildFacts,
    /// When it was registered, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
}

impl Function {
    /// The images that it needs: what its machines have, and its layers, which the next
    /// function may name without bringing them again.
    pub fn images(&self) -> impl Iterator<Item = Digest> + '_ {
        let layers = self.config.layers.iter().copied();
        std::iter::once(self.code).chain(layers)
    }
}

const COLUMNS: &str = "name, config, code, snapshot, build, created_unix_ms";

impl Store {
    /// Registers a function.
    ///
    /// # Errors
    /// `Exists` when there is one of this name.
    pub fn add_function(&self, function: &Function) -> Result<(), StoreError> {
        let name = function.config.name.as_str();
        let encode = |source| StoreError::Encode {
            function: name.to_owned(),
            source,
        };
        let config = serde_json::to_string(&function.config).map_err(encode)?;
        let build = serde_json::to_string(&function.build).map_err(encode)?;
        let created = i64::try_from(function.created_unix_ms).unwrap_or(i64::MAX);
        let sql = format!("INSERT INTO function ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
        let code = function.code.to_string();
        let snapshot = function.snapshot.as_str();
        let inserted = self.connection().execute(
            &sql,
            rusqlite::params![name, config, code, snapshot, build, created],
        );
        match inserted {
            Ok(_) => Ok(()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Err(StoreError::Exists(name.to_owned()))
            }
            Err(error) => Err(StoreError::sqlite("adding a function")(error)),
        }
    }

    /// All functions, by name.
    ///
    /// # Errors
    /// When the database fails or a row does not make sense.
    pub fn functions(&self) -> Result<Vec<Function>, StoreError> {
        let failed = StoreError::sqlite("listing the functions");
        let sql = format!("SELECT {COLUMNS} FROM function ORDER BY name");
        let connection = self.connection();
        let rows: Result<Vec<Stored>, rusqlite::Error> = connection
            .prepare(&sql)
            .and_then(|mut statement| statement.query_map([], stored)?.collect());
        rows.map_err(failed)?
            .into_iter()
            .map(Stored::understand)
            .collect()
    }

    /// One function.
    ///
    /// # Errors
    /// As [`Self::functions`].
    pub fn function(&self, name: &FunctionName) -> Result<Option<Function>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM function WHERE name = ?1");
        self.connection()
            .query_row(&sql, [name.as_str()], stored)
            .optional()
            .map_err(StoreError::sqlite("reading a function"))?
            .map(Stored::understand)
            .transpose()
    }

    /// Gives a function another snapshot; false when it has not the one that this is to
    /// replace.
    ///
    /// # Errors
    /// When the database fails.
    pub fn replace_snapshot(
        &self,
        name: &FunctionName,
        old: &SnapshotId,
        new: &SnapshotId,
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE function SET snapshot = ?3 WHERE name = ?1 AND snapshot = ?2";
        self.connection()
            .execute(sql, [name.as_str(), old.as_str(), new.as_str()])
            .map(|changed| changed > 0)
            .map_err(StoreError::sqlite("changing a function's snapshot"))
    }

    /// Removes a function; false when there was none.
    ///
    /// # Errors
    /// When the database fails.
    pub fn remove_function(&self, name: &FunctionName) -> Result<bool, StoreError> {
        self.connection()
            .execute("DELETE FROM function WHERE name = ?1", [name.as_str()])
            .map(|removed| removed > 0)
            .map_err(StoreError::sqlite("removing a function"))
    }
}

/// A row as it is in the file.
struct Stored {
    name: String,
    config: String,
    code: String,
    snapshot: String,
    build: String,
    created_unix_ms: i64,
}

fn stored(row: &Row<'_>) -> Result<Stored, rusqlite::Error> {
    Ok(Stored {
        name: row.get(0)?,
        config: row.get(1)?,
        code: row.get(2)?,
        snapshot: row.get(3)?,
        build: row.get(4)?,
        created_unix_ms: row.get(5)?,
    })
}

impl Stored {
    fn understand(self) -> Result<Function, StoreError> {
        let name = self.name;
        let bad = |field| StoreError::Row {
            function: name.clone(),
            field,
        };
        let config: FunctionConfig =
            serde_json::from_str(&self.config).map_err(|_| bad("config"))?;
        if config.name.as_str() != name {
            return Err(bad("name"));
        }
        Ok(Function {
            config,
            code: self.code.try_into().map_err(|_| bad("code"))?,
            snapshot: self.snapshot.try_into().map_err(|_| bad("snapshot"))?,
            build: serde_json::from_str(&self.build).map_err(|_| bad("build"))?,
            created_unix_ms: u64::try_from(self.created_unix_ms)
                .map_err(|_| bad("created_unix_ms"))?,
        })
    }
}
