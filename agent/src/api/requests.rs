//! What a request cost.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use snapback_proto::ids::RequestId;

use super::errors::{ApiError, Kind};
use crate::node::{Node, RequestRecord};

/// `GET /v1/requests/{id}`: waits (bounded) until the reset after the request is
/// done.
#[utoipa::path(get, path = "/v1/requests/{id}", params(("id" = String, Path)),
    responses((status = 200, body = RequestRecord), (status = 404)))]
pub async fn get(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<RequestRecord>, ApiError> {
    let not_found = || {
        ApiError::new(
            Kind::ResourceNotFound,
            "there are no figures of this request (any more)",
        )
    };
    let id: RequestId = id.parse().map_err(|_| not_found())?;
    let limit = Duration::from_millis(node.config().timeouts.record_wait_ms);
    node.records()
        .get(&id, limit)
        .await
        .map(Json)
        .ok_or_else(not_found)
}
