//! Whether the node lives, and whether it takes requests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::lease::PoolSummary;
use crate::node::Node;

/// Answer to `GET /readyz`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Readiness {
    /// Requests are admitted and can be served.
    ready: bool,
    /// Registered functions.
    functions: usize,
    /// Environments, by state.
    environments: PoolSummary,
}

/// `GET /healthz`: 200 as long as the agent answers at all.
#[utoipa::path(get, path = "/healthz", responses((status = 200)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: 503 while the node is shutting down, and when missing pages do not come
/// any more.
#[utoipa::path(get, path = "/readyz",
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub async fn readyz(State(node): State<Arc<Node>>) -> (StatusCode, Json<Readiness>) {
    let ready = node.is_ready();
    let environments = node.environments().await;
    let readiness = Readiness {
        ready,
        functions: node.list().len(),
        environments,
    };
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}
