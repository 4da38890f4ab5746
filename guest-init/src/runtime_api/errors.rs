//! What a refused call and a failed function look like, in Lambda's words.

use serde::Serialize;
use snapback_proto::guest::ExitStatus;
use snapback_proto::ids::RequestId;

use crate::http::Reply;

/// Lambda's error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionError {
    /// For example `Runtime.ExitError`.
    pub error_type: String,
    /// For people.
    pub error_message: String,
}

impl FunctionError {
    /// Makes one.
    #[must_use]
    pub fn new(error_type: &str, error_message: impl Into<String>) -> Self {
        Self {
            error_type: error_type.to_owned(),
            error_message: error_message.into(),
        }
    }

    /// The runtime's process ended when it should not have. `request` is the one
    /// that was running.
    #[must_use]
    pub fn exited(request: Option<&RequestId>, status: ExitStatus) -> Self {
        let reason = match status {
            ExitStatus::Code(0) => "Runtime exited without providing a reason".to_owned(),
            status => format!("Runtime exited with error: {}", ending(status)),
        };
        Self::new("Runtime.ExitError", with_request(request, &reason))
    }

    /// An extension failed, in the way that its error type says.
    #[must_use]
    pub fn extension(request: Option<&RequestId>, error_type: &str, reason: &str) -> Self {
        Self::new(error_type, with_request(request, reason))
    }

    /// There is no bootstrap, or it cannot be started.
    #[must_use]
    pub fn invalid_entrypoint(reason: &str) -> Self {
        Self::new("Runtime.InvalidEntrypoint", with_request(None, reason))
    }

    /// The answer is longer than `cap` bytes.
    #[must_use]
    pub fn response_too_large(cap: usize) -> Self {
        let message =
            format!("Response payload size exceeded maximum allowed payload size ({cap} bytes).");
        Self::new("Function.ResponseSizeTooLarge", message)
    }

    /// The object as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Two strings always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn with_request(request: Option<&RequestId>, reason: &str) -> String {
    match request {
        Some(id) => format!("RequestId: {id} Error: {reason}"),
        None => format!("Error: {reason}"),
    }
}

/// How a process ended, in Lambda's words.
#[must_use]
pub fn ending(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exit status {code}"),
        ExitStatus::Signal(signal) => format!("signal: {}", signal_name(signal)),
    }
}

/// Go's words for a signal, which are what Lambda's messages carry.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGILL => "illegal instruction",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGTERM => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such path.
    #[error("There is no such resource in the Runtime API")]
    NotFound,
    /// The path exists with another method.
    #[error("The method is not allowed here")]
    MethodNotAllowed,
    /// The id in the path is not the current request's.
    #[error("Invalid request ID")]
    InvalidRequestId,
    /// Not now.
    #[error("The runtime's state does not allow this call")]
    InvalidStateTransition,
    /// The body is over its cap.
    #[error("Exceeded maximum allowed payload size ({cap} bytes).")]
    TooLarge {
        /// The cap, in bytes.
        cap: usize,
    },
    /// The body is not what it should be.
    #[error("Invalid request format")]
    InvalidFormat,
    /// `Lambda-Extension-Identifier` is not there.
    #[error("Missing Lambda-Extension-Identifier header")]
    MissingExtensionId,
    /// Nobody has this identifier.
    #[error("Unknown extension")]
    UnknownExtension,
    /// `Lambda-Extension-Name` is not there or no name.
    #[error("Invalid extension name")]
    InvalidExtensionName,
    /// There is no such event.
    #[error("Invalid event type: it is INVOKE or SHUTDOWN")]
    InvalidExtensionEvent,
    /// A part of the runtime's process cannot outlive it.
    #[error("Internal extensions cannot register for SHUTDOWN")]
    ShutdownNotSupported,
    /// The runtime is initialised.
    #[error("Extension registration closed already")]
    RegistrationClosed,
    /// There are as many as there may be.
    #[error("Extension limit reached")]
    TooManyExtensions,
    /// Not now.
    #[error("The extension's state does not allow this call")]
    InvalidExtensionState,
    /// An error without `Lambda-Extension-Function-Error-Type`.
    #[error("Missing Lambda-Extension-Function-Error-Type header")]
    MissingErrorType,
    /// A telemetry subscription outside its ranges.
    #[error("Invalid subscription: {0}")]
    InvalidSubscription(&'static str),
}

impl Refusal {
    /// The response that says so.
    #[must_use]
    pub fn reply(self) -> Reply {
        let (status, error_type) = match self {
            Self::NotFound => (404, "ResourceNotFound"),
            Self::MethodNotAllowed => (405, "MethodNotAllowed"),
            Self::InvalidRequestId => (400, "InvalidRequestID"),
            Self::InvalidStateTransition => (403, "InvalidStateTransition"),
            Self::TooLarge { .. } => (413, "RequestEntityTooLarge"),
            Self::InvalidFormat => (400, "InvalidRequestFormat"),
            Self::MissingExtensionId => (403, "Extension.MissingExtensionIdentifier"),
            Self::UnknownExtension => (403, "Extension.UnknownExtensionIdentifier"),
            Self::InvalidExtensionName => (403, "Extension.InvalidExtensionName"),
            Self::InvalidExtensionEvent => (403, "Extension.InvalidEventType"),
            Self::ShutdownNotSupported => (403, "ShutdownEventNotSupportedForInternalExtension"),
            Self::RegistrationClosed => (403, "Extension.RegistrationClosed"),
            Self::TooManyExtensions => (403, "Extension.TooManyExtensions"),
            Self::InvalidExtensionState => (403, "Extension.InvalidExtensionState"),
            Self::MissingErrorType => (403, "Extension.MissingHeader"),
            Self::InvalidSubscription(_) => (400, "ValidationError"),
        };
        Reply::json(
            status,
            FunctionError::new(error_type, self.to_string()).to_json(),
        )
    }
}

/// The response to an accepted post.
#[must_use]
pub fn accepted() -> Reply {
    Reply::json(202, b"{\"status\":\"OK\"}\n".to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_reads_as_on_lambda() {
        let id = RequestId::from_random([0; 16]);
        let json = |error: FunctionError| String::from_utf8(error.to_json()).unwrap();
        assert_eq!(
            json(FunctionError::exited(Some(&id), ExitStatus::Code(1))),
            "{\"errorType\":\"Runtime.ExitError\",\"errorMessage\":\"RequestId: \
             00000000-0000-4000-8000-000000000000 Error: Runtime exited with error: exit status 1\"}"
        );
        assert_eq!(
            json(FunctionError::exited(None, ExitStatus::Signal(9))),
            "{\"errorType\":\"Runtime.ExitError\",\
             \"errorMessage\":\"Error: Runtime exited with error: signal: killed\"}"
        );
    }
}
