//! The API's own description.

use axum::Json;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

use super::{functions, health, invoke, metrics, requests, streaming};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Snapback",
        description = "The worker node's API, over a Unix socket."
    ),
    paths(
        invoke::invoke,
        streaming::invoke,
        functions::upload,
        functions::create,
        functions::list,
        functions::get,
        functions::delete,
        requests::get,
        health::healthz,
        health::readyz,
        metrics::metrics,
    )
)]
struct Document;

/// The OpenAPI document; `docs/openapi.json` is a copy, and a test compares them.
#[must_use]
pub fn document() -> OpenApi {
    Document::openapi()
}

/// `GET /openapi.json`.
pub async fn serve() -> Json<OpenApi> {
    Json(document())
}
