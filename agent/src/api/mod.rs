//! HTTP: the only place that knows of it.
//!
//! ```text
//!  POST   /2015-03-31/functions/{name}/invocations   Lambda's Invoke
//!  POST   /2021-11-15/functions/{name}/response-streaming-invocations
//!                                                    Lambda's InvokeWithResponseStream
//!  POST   /v1/code                                   upload a tar, get its hash
//!  POST   /v1/functions                              create (JSON)
//!  GET    /v1/functions, /v1/functions/{name}
//!  DELETE /v1/functions/{name}
//!  GET    /v1/requests/{id}                          what a request cost
//!  GET    /healthz, /readyz, /metrics, /openapi.json
//! ```
//!
//! Errors are Lambda's everywhere: a JSON body and `x-amzn-ErrorType`.

mod body;
mod errors;
mod event_stream;
mod functions;
mod health;
mod invoke;
mod metrics;
mod openapi;
mod requests;
mod serve;
mod streaming;
mod types;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

pub use errors::ApiError;
pub use openapi::document;
pub use serve::{ServeError, Server};
pub use types::{CodeInfo, CreateFunction, FunctionInfo, FunctionList};

use crate::node::Node;

/// All routes of a node.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route(
            "/2015-03-31/functions/{name}/invocations",
            post(invoke::invoke),
        )
        .route(
            "/2021-11-15/functions/{name}/response-streaming-invocations",
            post(streaming::invoke),
        )
        .route("/v1/code", post(functions::upload))
        .route(
            "/v1/functions",
            get(functions::list).post(functions::create),
        )
        .route(
            "/v1/functions/{name}",
            get(functions::get).delete(functions::delete),
        )
        .route("/v1/requests/{id}", get(requests::get))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::serve))
        .fallback(errors::not_found)
        .method_not_allowed_fallback(errors::method_not_allowed)
        // Every handler reads its body with a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .with_state(node)
}

#[cfg(test)]
mod tests;
