//! Figures for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use crate::node::Node;
use crate::telemetry;

/// `GET /metrics`: counters and gauges in the OpenMetrics text format.
#[utoipa::path(get, path = "/metrics",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub async fn metrics(State(node): State<Arc<Node>>) -> impl IntoResponse {
    let kind = [(CONTENT_TYPE, telemetry::CONTENT_TYPE)];
    (kind, node.metrics().await)
}
