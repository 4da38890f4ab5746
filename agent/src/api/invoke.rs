//! Lambda's Invoke.
//!
//! A function that fails is not an error of the API: status 200, the error's JSON
//! as the body, and `X-Amz-Function-Error`. It is always `Unhandled`, as Lambda
//! answers for every runtime that speaks the Runtime API.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use snapback_proto::frame::MAX_BODY;
use snapback_proto::ids::{FunctionName, RequestId};

use super::body;
use super::errors::{ApiError, Kind, function_not_found};
use crate::exec::Outcome;
use crate::function::{ARN_PREFIX, VERSION};
use crate::ids::{new_request_id, new_trace_id};
use crate::node::{Answer, Ask, Node};

/// `X-Amz-Function-Error`.
pub const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
/// `x-amzn-RequestId`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

const INVOCATION_TYPE: HeaderName = HeaderName::from_static("x-amz-invocation-type");
const LOG_TYPE: HeaderName = HeaderName::from_static("x-amz-log-type");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const CLIENT_CONTEXT: HeaderName = HeaderName::from_static("x-amz-client-context");
const TENANT_ID: HeaderName = HeaderName::from_static("x-amz-tenant-id");
const TRACE_ID: HeaderName = HeaderName::from_static("x-amzn-trace-id");
pub(super) const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");

/// Longest client context, in base64, as Lambda has it.
const MAX_CLIENT_CONTEXT: usize = 3583;
/// Longest tenant or trace id, in bytes.
const MAX_ID: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InvocationType {
    RequestResponse,
    Event,
    DryRun,
}

/// The query of an invocation.
#[derive(Debug, Deserialize)]
pub struct InvokeQuery {
    #[serde(rename = "Qualifier")]
    qualifier: Option<String>,
}

/// `POST /2015-03-31/functions/{name}/invocations`.
#[utoipa::path(post, path = "/2015-03-31/functions/{name}/invocations",
    params(("name" = String, Path), ("X-Amz-Invocation-Type" = Option<String>, Header),
        ("X-Amz-Log-Type" = Option<String>, Header),
        ("X-Amz-Client-Context" = Option<String>, Header),
        ("X-Amz-Tenant-Id" = Option<String>, Header)),
    request_body(content = Object, content_type = "application/json"),
    responses((status = 200, description = "the function's answer, or its error"),
        (status = 202, description = "the event was accepted"),
        (status = 204, description = "it could be invoked"),
        (status = 400), (status = 404), (status = 413), (status = 429), (status = 500)))]
pub async fn invoke(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    Query(query): Query<InvokeQuery>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    named(|request| answer(&node, &name, &query, &headers, body, request)).await
}

/// Gives a request its id, and names it in the answer, whatever that is.
pub(super) async fn named<F>(answer: impl FnOnce(RequestId) -> F) -> Response
where
    F: Future<Output = Result<Response, ApiError>>,
{
    let request = match new_request_id() {
        Ok(request) => request,
        Err(error) => return ApiError::new(Kind::Service, error.to_string()).into_response(),
    };
    let id = HeaderValue::try_from(request.as_str());
    let mut response = answer(request)
        .await
        .unwrap_or_else(ApiError::into_response);
    if let Ok(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn answer(
    node: &Arc<Node>,
    name: &str,
    query: &InvokeQuery,
    headers: &HeaderMap,
    body: Body,
    request: RequestId,
) -> Result<Response, ApiError> {
    let Asked { ask, kind, tail } = asked(node, name, query, headers, body, request).await?;
    match kind {
        InvocationType::DryRun => Ok(StatusCode::NO_CONTENT.into_response()),
        InvocationType::Event => {
            node.invoke_event(ask).await?;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        InvocationType::RequestResponse => Ok(respond(node.invoke(ask, None).await?, tail)),
    }
}

/// A request that may be made.
pub(super) struct Asked {
    pub ask: Ask,
    pub kind: InvocationType,
    /// The caller wants the end of the output.
    pub tail: bool,
}

/// Reads a request and checks all of it.
pub(super) async fn asked(
    node: &Node,
    name: &str,
    query: &InvokeQuery,
    headers: &HeaderMap,
    body: Body,
    request: RequestId,
) -> Result<Asked, ApiError> {
    let payload = body::read(headers, body, MAX_BODY).await?;
    let function = function_name(name, query.qualifier.as_deref())?;
    let kind = invocation_type(headers)?;
    let tail = log_tail_wanted(headers)?;
    let client_context = client_context(headers)?;
    if node.function(&function).is_none() {
        return Err(function_not_found(function.as_str()));
    }
    let ask = Ask {
        request,
        function,
        payload: event(payload)?,
        trace_id: Some(trace_id(headers)?),
        client_context,
        tenant_id: text(headers, &TENANT_ID)?,
    };
    Ok(Asked { ask, kind, tail })
}

/// The caller's trace, or one of its own for the request: runtimes count on one.
fn trace_id(headers: &HeaderMap) -> Result<String, ApiError> {
    if let Some(given) = text(headers, &TRACE_ID)? {
        return Ok(given);
    }
    new_trace_id().map_err(|error| ApiError::new(Kind::Service, error.to_string()))
}

fn respond(answer: Answer, tail: bool) -> Response {
    let json = HeaderValue::from_static("application/json");
    let (body, content_type, failed) = match answer.outcome {
        Outcome::Response { body, content_type } => {
            // Whatever the runtime says about its answer, if it can be a header.
            (
                body,
                HeaderValue::try_from(content_type).unwrap_or(json),
                false,
            )
        }
        Outcome::FunctionError { body, .. } => (body, json, true),
    };
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(EXECUTED_VERSION, HeaderValue::from_static(VERSION));
    if failed {
        headers.insert(FUNCTION_ERROR, HeaderValue::from_static("Unhandled"));
    }
    if tail && let Ok(log) = HeaderValue::try_from(STANDARD.encode(answer.log_tail)) {
        headers.insert(LOG_RESULT, log);
    }
    response
}

/// A name, a name with the only version, or the ARN of either.
fn function_name(text: &str, qualifier: Option<&str>) -> Result<FunctionName, ApiError> {
    let name = text.strip_prefix(ARN_PREFIX).unwrap_or(text);
    let (name, version) = name.split_once(':').unwrap_or((name, VERSION));
    if version != VERSION || qualifier.is_some_and(|qualifier| qualifier != VERSION) {
        return Err(function_not_found(text));
    }
    name.parse().map_err(|_| function_not_found(name))
}

fn invocation_type(headers: &HeaderMap) -> Result<InvocationType, ApiError> {
    match headers.get(INVOCATION_TYPE).map(HeaderValue::as_bytes) {
        None | Some(b"RequestResponse") => Ok(InvocationType::RequestResponse),
        Some(b"Event") => Ok(InvocationType::Event),
        Some(b"DryRun") => Ok(InvocationType::DryRun),
        Some(_) => Err(invalid(
            "X-Amz-Invocation-Type must be RequestResponse, Event or DryRun",
        )),
    }
}

fn log_tail_wanted(headers: &HeaderMap) -> Result<bool, ApiError> {
    match headers.get(LOG_TYPE).map(HeaderValue::as_bytes) {
        None | Some(b"None") => Ok(false),
        Some(b"Tail") => Ok(true),
        Some(_) => Err(invalid("X-Amz-Log-Type must be None or Tail")),
    }
}

fn client_context(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(encoded) = headers.get(CLIENT_CONTEXT) else {
        return Ok(None);
    };
    if encoded.len() > MAX_CLIENT_CONTEXT {
        return Err(invalid("X-Amz-Client-Context is longer than 3583 bytes"));
    }
    let text = STANDARD
        .decode(encoded.as_bytes())
        .ok()
        .and_then(|b| String::from_utf8(b).ok());
    let refused = || invalid("X-Amz-Client-Context is not JSON in base64");
    let text = text.ok_or_else(refused)?;
    serde_json::from_str::<IgnoredAny>(&text).map_err(|_| refused())?;
    Ok(Some(text))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if text.len() <= MAX_ID => Ok(Some(text.to_owned())),
        _ => Err(invalid(&format!(
            "{name} is not text of at most {MAX_ID} bytes"
        ))),
    }
}

/// The payload, which must be JSON; nothing at all is an empty object.
fn event(payload: Vec<u8>) -> Result<Vec<u8>, ApiError> {
    if payload.is_empty() {
        return Ok(b"{}".to_vec());
    }
    serde_json::from_slice::<IgnoredAny>(&payload).map_err(|error| {
        let message = format!("Could not parse request body into json: {error}");
        ApiError::new(Kind::InvalidRequestContent, message)
    })?;
    Ok(payload)
}

pub(super) fn invalid(message: &str) -> ApiError {
    ApiError::new(Kind::InvalidParameterValue, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_lambdas_forms() {
        let name = |text: &str, qualifier: Option<&str>| {
            function_name(text, qualifier).ok().map(String::from)
        };
        assert_eq!(name("f", None).as_deref(), Some("f"));
        assert_eq!(name("f:$LATEST", Some("$LATEST")).as_deref(), Some("f"));
        assert_eq!(name(&format!("{ARN_PREFIX}f"), None).as_deref(), Some("f"));
        for (text, qualifier) in [
            ("f:1", None),
            ("f", Some("prod")),
            ("../f", None),
            ("", None),
        ] {
            assert_eq!(name(text, qualifier), None, "{text}");
        }
    }

    #[test]
    fn an_event_is_json() {
        assert_eq!(event(Vec::new()).ok().as_deref(), Some(&b"{}"[..]));
        assert!(event(b" [1] ".to_vec()).is_ok());
        // Deep nesting does not exhaust the stack.
        let deep = [vec![b'['; 1_000_000], vec![b']'; 1_000_000]].concat();
        let _ = event(deep);
        for bad in ["{", "{} {}", "text", "\u{feff}{}"] {
            assert!(event(bad.into()).is_err(), "{bad}");
        }
    }
}
