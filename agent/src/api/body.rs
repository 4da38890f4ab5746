//! Reading bodies with a limit.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::errors::{ApiError, Kind};

/// How much of a body that is too long is read and thrown away, so that a caller
/// that writes first still gets its answer.
const MAX_DRAIN: usize = 64 * 1024 * 1024;
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A body that is too long.
fn too_large(limit: u64) -> ApiError {
    let message = format!("Request must be smaller than {limit} bytes");
    ApiError::new(Kind::RequestTooLarge, message)
}

/// Whether the caller announces more than `limit` bytes.
fn announced_too_large(headers: &HeaderMap, limit: u64) -> bool {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok())
        .is_some_and(|length| length > limit)
}

/// The whole body; at most `limit` bytes are ever kept.
///
/// # Errors
/// When it is longer, or cannot be read.
pub async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut stream = body.into_data_stream();
    let cap = u64::try_from(limit).unwrap_or(u64::MAX);
    if announced_too_large(headers, cap) {
        drain(&mut stream).await;
        return Err(too_large(cap));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| cut_off(&error))?;
        if bytes.len() + chunk.len() > limit {
            drop(std::mem::take(&mut bytes));
            drain(&mut stream).await;
            return Err(too_large(cap));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Writes the body to a new file; at most `limit` bytes.
///
/// # Errors
/// When it is longer, cannot be read, or the file cannot be written.
pub async fn save(
    headers: &HeaderMap,
    body: Body,
    limit: u64,
    path: &std::path::Path,
) -> Result<(), ApiError> {
    let mut stream = body.into_data_stream();
    if announced_too_large(headers, limit) {
        drain(&mut stream).await;
        return Err(too_large(limit));
    }
    let failed = |error: std::io::Error| {
        tracing::error!(%error, path = %path.display(), "an upload cannot be written");
        ApiError::new(
            Kind::Service,
            format!("the upload cannot be written: {error}"),
        )
    };
    let mut file = tokio::fs::File::create_new(path).await.map_err(failed)?;
    let mut left = limit;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| cut_off(&error))?;
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let Some(rest) = left.checked_sub(length) else {
            drain(&mut stream).await;
            return Err(too_large(limit));
        };
        left = rest;
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)
}

async fn drain(stream: &mut BodyDataStream) {
    let drained = async {
        let mut total = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            total += chunk.len();
            if total > MAX_DRAIN {
                return;
            }
        }
    };
    // Whatever is left is the connection's end.
    let _ = tokio::time::timeout(DRAIN_LIMIT, drained).await;
}

fn cut_off(error: &axum::Error) -> ApiError {
    ApiError::new(
        Kind::InvalidRequestContent,
        format!("the body cannot be read: {error}"),
    )
}
