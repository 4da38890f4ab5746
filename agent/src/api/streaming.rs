//! Lambda's InvokeWithResponseStream.
//!
//! The answer's pieces leave as events while the function produces them, and the
//! last event says how it ended. What goes wrong before the first piece and is no
//! fault of the function has a status of its own, as with Invoke; after that the
//! status has been sent, and everything is said in the last event.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, Stream};
use snapback_proto::ids::RequestId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::errors::ApiError;
use super::event_stream::{InvokeComplete, MEDIA_TYPE, invoke_complete, payload_chunk};
use super::invoke::{Asked, EXECUTED_VERSION, InvocationType, InvokeQuery, asked, invalid, named};
use crate::exec::{Outcome, Piece, Sink, parts};
use crate::function::VERSION;
use crate::node::{Answer, InvokeFailure, Node};

/// The media type of the answer within the events.
const REMAPPED: HeaderName = HeaderName::from_static("x-amzn-remapped-content-type");

/// `POST /2021-11-15/functions/{name}/response-streaming-invocations`.
#[utoipa::path(post, path = "/2021-11-15/functions/{name}/response-streaming-invocations",
    params(("name" = String, Path), ("X-Amz-Invocation-Type" = Option<String>, Header),
        ("X-Amz-Log-Type" = Option<String>, Header),
        ("X-Amz-Client-Context" = Option<String>, Header),
        ("X-Amz-Tenant-Id" = Option<String>, Header)),
    request_body(content = Object, content_type = "application/json"),
    responses((status = 200, content_type = "application/vnd.amazon.eventstream",
            description = "`PayloadChunk` events while the function answers, then `InvokeComplete`"),
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
        InvocationType::DryRun => return Ok(StatusCode::NO_CONTENT.into_response()),
        InvocationType::Event => {
            let message = "X-Amz-Invocation-Type must be RequestResponse or DryRun";
            return Err(invalid(message));
        }
        InvocationType::RequestResponse => {}
    }
    let limit = node.config().limits.max_streamed_mib << 20;
    let (sink, mut pieces) = Sink::new(limit);
    let node = Arc::clone(node);
    // A task of its own: it has to go on while the pieces are waited for.
    let answer = tokio::spawn(async move { node.invoke(ask, Some(sink)).await });
    let (content_type, events) = match pieces.recv().await {
        Some(Piece::Started { content_type }) => {
            let events = Events::Pieces {
                pieces,
                answer,
                tail,
            };
            (content_type, events)
        }
        // Not in pieces, or not at all.
        Some(Piece::Bytes(_)) | None => {
            let answer = answer.await.map_err(InvokeFailure::CutOff)??;
            let end = end_of(&answer, tail);
            let (content_type, body) = match answer.outcome {
                Outcome::Response { body, content_type } => (content_type, body),
                Outcome::FunctionError { .. } => (JSON.to_owned(), Vec::new()),
            };
            let parts = if body.is_empty() {
                Vec::new()
            } else {
                parts(body)
            };
            let parts = parts.into_iter();
            (content_type, Events::Whole { parts, end })
        }
    };
    let mut response = Body::from_stream(events.into_stream()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(EXECUTED_VERSION, HeaderValue::from_static(VERSION));
    if let Ok(content_type) = HeaderValue::try_from(content_type) {
        headers.insert(REMAPPED, content_type);
    }
    Ok(response)
}

const JSON: &str = "application/json";

/// What is still to be sent.
enum Events {
    /// The pieces of an answer that is being produced.
    Pieces {
        pieces: mpsc::Receiver<Piece>,
        answer: JoinHandle<Result<Answer, InvokeFailure>>,
        tail: bool,
    },
    /// The parts of an answer that came whole.
    Whole {
        parts: std::vec::IntoIter<Vec<u8>>,
        end: InvokeComplete,
    },
    /// Nothing.
    Sent,
}

impl Events {
    fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        stream::try_unfold(self, |events| events.next())
    }

    async fn next(self) -> io::Result<Option<(Bytes, Self)>> {
        match self {
            Self::Pieces {
                mut pieces,
                answer,
                tail,
            } => loop {
                match pieces.recv().await {
                    Some(Piece::Started { .. }) => {}
                    Some(Piece::Bytes(bytes)) => {
                        let rest = Self::Pieces {
                            pieces,
                            answer,
                            tail,
                        };
                        return Ok(Some((payload_chunk(bytes)?, rest)));
                    }
                    None => {
                        let end = match answer.await {
                            Ok(Ok(answer)) => end_of(&answer, tail),
                            Ok(Err(failure)) => broken(&failure),
                            Err(error) => broken(&InvokeFailure::CutOff(error)),
                        };
                        return Ok(Some((invoke_complete(&end)?, Self::Sent)));
                    }
                }
            },
            Self::Whole { mut parts, end } => Ok(Some(match parts.next() {
                Some(part) => (payload_chunk(part)?, Self::Whole { parts, end }),
                None => (invoke_complete(&end)?, Self::Sent),
            })),
            Self::Sent => Ok(None),
        }
    }
}

fn end_of(answer: &Answer, tail: bool) -> InvokeComplete {
    let error_details = match &answer.outcome {
        Outcome::Response { .. } => None,
        Outcome::FunctionError { body, .. } => Some(String::from_utf8_lossy(body).into_owned()),
    };
    InvokeComplete {
        // As `X-Amz-Function-Error` has it.
        error_code: error_details.as_ref().map(|_| "Unhandled".to_owned()),
        error_details,
        log_result: tail.then(|| STANDARD.encode(&answer.log_tail)),
    }
}

/// The node failed when the answer had begun.
fn broken(failure: &InvokeFailure) -> InvokeComplete {
    InvokeComplete {
        error_code: Some("ServiceException".to_owned()),
        error_details: Some(failure.to_string()),
        log_result: None,
    }
}
