//! Errors as Lambda's API has them: status, `x-amzn-ErrorType`, JSON.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use snapback_proto::words::chain;

use crate::exec::BuildError;
use crate::images::ImageError;
use crate::lease::LeaseError;
use crate::node::{CreateError, DeleteError, InvokeFailure};

/// `x-amzn-ErrorType`, as it is written.
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// An error that a caller sees.
#[derive(Debug)]
pub enum ApiError {
    /// One of Lambda's.
    Lambda {
        /// Its name.
        kind: Kind,
        /// What happened.
        message: String,
    },
    /// The function failed to initialise: Lambda's error JSON.
    Init {
        /// For example `Runtime.ImportModuleError`.
        error_type: String,
        /// The JSON.
        body: Vec<u8>,
    },
}

/// Lambda's names for what can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There is no such function (or request, or path).
    ResourceNotFound,
    /// There is one of this name.
    ResourceConflict,
    /// The body is not JSON.
    InvalidRequestContent,
    /// A parameter is wrong.
    InvalidParameterValue,
    /// The body is too long.
    RequestTooLarge,
    /// The node is busy.
    TooManyRequests,
    /// The method is not one of this path.
    MethodNotAllowed,
    /// The node is shutting down.
    ServiceUnavailable,
    /// Anything else.
    Service,
}

impl Kind {
    const fn status(self) -> StatusCode {
        match self {
            Self::ResourceNotFound => StatusCode::NOT_FOUND,
            Self::ResourceConflict => StatusCode::CONFLICT,
            Self::InvalidRequestContent | Self::InvalidParameterValue => StatusCode::BAD_REQUEST,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Service => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::ResourceNotFound => "ResourceNotFoundException",
            Self::ResourceConflict => "ResourceConflictException",
            Self::InvalidRequestContent => "InvalidRequestContentException",
            Self::InvalidParameterValue => "InvalidParameterValueException",
            Self::RequestTooLarge => "RequestTooLargeException",
            Self::TooManyRequests => "TooManyRequestsException",
            Self::MethodNotAllowed => "MethodNotAllowedException",
            Self::ServiceUnavailable | Self::Service => "ServiceException",
        }
    }
}

/// The body; Lambda writes `Message` in some errors and `message` in others, and
/// SDKs look for either.
#[derive(Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// `User` or `Service`: whose fault it is.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// What happened.
    pub message: String,
    /// The same.
    #[serde(rename = "Message")]
    pub message_again: String,
    /// Why a request was throttled.
    #[serde(rename = "Reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
}

impl ApiError {
    /// One of Lambda's errors.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self::Lambda {
            kind,
            message: message.into(),
        }
    }

    /// An error of ours with all its sources; it is logged, too.
    fn service(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "a request failed");
        Self::new(Kind::Service, chain(error))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Lambda { kind, message } => {
                let status = kind.status();
                let fault = if status.is_server_error() {
                    "Service"
                } else {
                    "User"
                };
                let throttled = kind == Kind::TooManyRequests;
                let body = ErrorBody {
                    kind: fault,
                    message_again: message.clone(),
                    message,
                    reason: throttled.then_some("ConcurrentInvocationLimitExceeded"),
                };
                let error_type = HeaderValue::from_static(kind.name());
                (status, [(ERROR_TYPE, error_type)], Json(body)).into_response()
            }
            Self::Init { error_type, body } => {
                let json = HeaderValue::from_static("application/json");
                let error_type = HeaderValue::try_from(error_type)
                    .unwrap_or(HeaderValue::from_static("Runtime.Unknown"));
                let headers = [
                    (axum::http::header::CONTENT_TYPE, json),
                    (ERROR_TYPE, error_type),
                    (
                        super::invoke::FUNCTION_ERROR,
                        HeaderValue::from_static("Unhandled"),
                    ),
                ];
                (StatusCode::UNPROCESSABLE_ENTITY, headers, body).into_response()
            }
        }
    }
}

impl From<InvokeFailure> for ApiError {
    fn from(failure: InvokeFailure) -> Self {
        use crate::admission::Refused;

        match &failure {
            InvokeFailure::NotFound(name) => function_not_found(name.as_str()),
            InvokeFailure::Refused(Refused::Full | Refused::TooLate(_))
            | InvokeFailure::TooLate { .. }
            | InvokeFailure::Lease {
                source: LeaseError::Busy,
                ..
            } => Self::new(Kind::TooManyRequests, chain(&failure)),
            InvokeFailure::Refused(Refused::Draining)
            | InvokeFailure::Lease {
                source: LeaseError::Closed,
                ..
            } => Self::new(Kind::ServiceUnavailable, chain(&failure)),
            InvokeFailure::Snapshot { .. }
            | InvokeFailure::Lease { .. }
            | InvokeFailure::Invoke { .. }
            | InvokeFailure::CutOff(_) => Self::service(&failure),
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match &error {
            CreateError::Invalid(_)
            | CreateError::NoCode(_)
            | CreateError::NoLayer(_)
            | CreateError::NotProvided { .. }
            | CreateError::LayersOfContainer
            | CreateError::Template(..)
            | CreateError::Image(ImageError::Compose(_)) => {
                Self::new(Kind::InvalidParameterValue, chain(&error))
            }
            CreateError::Exists(_) => Self::new(Kind::ResourceConflict, chain(&error)),
            CreateError::TooMany(_) | CreateError::Busy => {
                Self::new(Kind::TooManyRequests, chain(&error))
            }
            CreateError::Draining => Self::new(Kind::ServiceUnavailable, chain(&error)),
            CreateError::Build { source, .. } => match &**source {
                BuildError::Init { error_type, body } => Self::Init {
                    error_type: error_type.clone(),
                    body: body.clone(),
                },
                _ => Self::service(&error),
            },
            _ => Self::service(&error),
        }
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        match &error {
            ImageError::Unpack(_) => Self::new(Kind::InvalidParameterValue, chain(&error)),
            _ => Self::service(&error),
        }
    }
}

impl From<DeleteError> for ApiError {
    fn from(error: DeleteError) -> Self {
        match &error {
            DeleteError::NotFound(name) => function_not_found(name.as_str()),
            DeleteError::Store(_) => Self::service(&error),
        }
    }
}

/// Lambda's words for a function that is not there.
pub fn function_not_found(name: &str) -> ApiError {
    let arn = crate::function::ARN_PREFIX;
    ApiError::new(
        Kind::ResourceNotFound,
        format!("Function not found: {arn}{name}"),
    )
}

/// For paths that do not exist.
pub async fn not_found() -> ApiError {
    ApiError::new(Kind::ResourceNotFound, "there is nothing at this path")
}

/// For methods that a path does not have.
pub async fn method_not_allowed() -> ApiError {
    ApiError::new(
        Kind::MethodNotAllowed,
        "this path does not have this method",
    )
}
