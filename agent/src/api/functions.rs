//! Functions: upload, create, list, describe, delete.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use snapback_proto::ids::FunctionName;

use super::body;
use super::errors::{ApiError, Kind, function_not_found};
use super::types::{CodeInfo, CreateFunction, FunctionInfo, FunctionList};
use crate::keys;
use crate::node::{CreateInput, Node};
use crate::store::Function;

/// Longest description, in bytes.
const MAX_DESCRIPTION: usize = 64 * 1024;

/// `POST /v1/code`: a folder or a container image's layout (as a tar archive), or a zip,
/// becomes an image: a function's code, or a layer. Which of them it is, its bytes say.
#[utoipa::path(post, path = "/v1/code", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = CodeInfo),
        (status = 400, description = "the archive is refused: the message says for what, where"),
        (status = 413)))]
pub async fn upload(
    State(node): State<Arc<Node>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<CodeInfo>), ApiError> {
    let workspace = node.images().workspace()?;
    let archive = workspace.path().join("archive");
    body::save(&headers, body, node.images().max_archive(), &archive).await?;
    let code = node.images().import(&workspace, archive).await?;
    Ok((StatusCode::CREATED, Json(CodeInfo { code })))
}

/// `POST /v1/functions`: returns when the function can be invoked.
#[utoipa::path(post, path = "/v1/functions", request_body = CreateFunction,
    responses((status = 201, body = FunctionInfo), (status = 400), (status = 409),
        (status = 422, description = "the function failed to initialise: Lambda's error JSON")))]
pub async fn create(
    State(node): State<Arc<Node>>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<FunctionInfo>), ApiError> {
    let bytes = body::read(&headers, body, MAX_DESCRIPTION).await?;
    let CreateFunction { config, code } = parse_create(&bytes)?;
    let function = node.create(CreateInput { config, code }).await?;
    Ok((StatusCode::CREATED, Json(info(&node, &function))))
}

/// `GET /v1/functions`.
#[utoipa::path(get, path = "/v1/functions", responses((status = 200, body = FunctionList)))]
pub async fn list(State(node): State<Arc<Node>>) -> Json<FunctionList> {
    let functions = node
        .list()
        .iter()
        .map(|function| info(&node, function))
        .collect();
    Json(FunctionList { functions })
}

/// `GET /v1/functions/{name}`.
#[utoipa::path(get, path = "/v1/functions/{name}", params(("name" = String, Path)),
    responses((status = 200, body = FunctionInfo), (status = 404)))]
pub async fn get(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
) -> Result<Json<FunctionInfo>, ApiError> {
    let function = node
        .function(&parse(&name)?)
        .ok_or_else(|| function_not_found(&name))?;
    Ok(Json(info(&node, &function)))
}

/// `DELETE /v1/functions/{name}`.
#[utoipa::path(delete, path = "/v1/functions/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404)))]
pub async fn delete(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    node.delete(&parse(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn info(node: &Node, function: &Function) -> FunctionInfo {
    FunctionInfo::new(function, node.cache_stats(function))
}

/// A name that cannot be one is not there either.
fn parse(name: &str) -> Result<FunctionName, ApiError> {
    name.parse().map_err(|_| function_not_found(name))
}

/// The code's hash apart, the rest must be a description to the last field (a
/// flattened struct would let unknown fields pass).
fn parse_create(bytes: &[u8]) -> Result<CreateFunction, ApiError> {
    let refused = |error: serde_json::Error| {
        ApiError::new(
            Kind::InvalidParameterValue,
            format!("this describes no function: {error}"),
        )
    };
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(bytes).map_err(refused)?;
    keys::check(fields.keys()).map_err(|unknown| {
        ApiError::new(
            Kind::InvalidParameterValue,
            format!("this describes no function: {unknown}"),
        )
    })?;
    let code = fields.remove("code").unwrap_or_default();
    Ok(CreateFunction {
        code: serde_json::from_value(code).map_err(refused)?,
        config: serde_json::from_value(fields.into()).map_err(refused)?,
    })
}
