//! The management API's JSON.

use serde::{Deserialize, Serialize};
use snapback_vmm::snapshot::Digest;

use crate::exec::BuildFacts;
use crate::function::FunctionConfig;
use crate::pager::CacheStats;
use crate::store::Function;

/// `POST /v1/functions`.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreateFunction {
    /// The description.
    #[serde(flatten)]
    pub config: FunctionConfig,
    /// The code's hash, from `POST /v1/code`.
    #[schema(value_type = String)]
    pub code: Digest,
}

/// Answer to `POST /v1/code`.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CodeInfo {
    /// The image's hash.
    #[schema(value_type = String)]
    pub code: Digest,
}

/// A function, as it is told.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FunctionInfo {
    /// The description.
    #[serde(flatten)]
    pub config: FunctionConfig,
    /// Its ARN.
    pub arn: String,
    /// The hash of its image: its code, with its layers.
    #[schema(value_type = String)]
    pub code: Digest,
    /// The snapshot's id.
    pub snapshot: String,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    /// What its build took.
    pub build: BuildFacts,
    /// Its memory on this host, once it was used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory: Option<CacheStats>,
}

impl FunctionInfo {
    /// A function with what is known of its memory.
    #[must_use]
    pub fn new(function: &Function, memory: Option<CacheStats>) -> Self {
        Self {
            config: function.config.clone(),
            arn: function.config.arn(),
            code: function.code,
            snapshot: function.snapshot.to_string(),
            created_unix_ms: function.created_unix_ms,
            build: function.build,
            memory,
        }
    }
}

/// Answer to `GET /v1/functions`.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FunctionList {
    /// All functions, by name.
    pub functions: Vec<FunctionInfo>,
}
