//! Which request is which call of the Runtime, Extensions and Telemetry APIs.

use super::errors::Refusal;
use super::state::Event;
use crate::http::Method;

/// What the paths of the Runtime API begin with.
const RUNTIME: &str = "/2018-06-01/runtime/";
/// What the paths of the Extensions API begin with.
const EXTENSION: &str = "/2020-01-01/extension/";
const TELEMETRY: &str = "/2022-07-01/telemetry";
const LOGS: &str = "/2020-08-15/logs";

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET invocation/next`.
    Next,
    /// `GET restore/next`.
    RestoreNext,
    /// `POST invocation/{id}/response`, with the id as it was sent.
    Response(String),
    /// `POST invocation/{id}/error`, with the id as it was sent.
    InvocationError(String),
    /// `POST init/error`.
    InitError,
    /// `POST restore/error`.
    RestoreError,
    /// A call of the Extensions API.
    Extension(ExtensionCall),
    /// `PUT` of the Telemetry API: a subscription.
    Telemetry,
    /// `PUT` of the Logs API, which the Telemetry API replaces.
    Logs,
}

/// A call of the Extensions API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtensionCall {
    /// `POST register`.
    Register,
    /// `GET event/next`.
    Next,
    /// `POST init/error`.
    InitError,
    /// `POST exit/error`.
    ExitError,
}

impl Route {
    /// Finds the call.
    ///
    /// # Errors
    /// When there is none at that path, or not with that method.
    pub fn of(method: Method, target: &str) -> Result<Self, Refusal> {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let (route, allowed) = match path {
            TELEMETRY => (Self::Telemetry, Method::Put),
            LOGS => (Self::Logs, Method::Put),
            path => match path.strip_prefix(EXTENSION) {
                Some(rest) => Self::of_extension(rest)?,
                None => Self::of_runtime(path.strip_prefix(RUNTIME).ok_or(Refusal::NotFound)?)?,
            },
        };
        if method == allowed {
            Ok(route)
        } else {
            Err(Refusal::MethodNotAllowed)
        }
    }

    fn of_runtime(rest: &str) -> Result<(Self, Method), Refusal> {
        let parts: Vec<&str> = rest.splitn(4, '/').collect();
        Ok(match parts[..] {
            ["invocation", "next"] => (Self::Next, Method::Get),
            ["restore", "next"] => (Self::RestoreNext, Method::Get),
            ["invocation", id, "response"] => (Self::Response(id.to_owned()), Method::Post),
            ["invocation", id, "error"] => (Self::InvocationError(id.to_owned()), Method::Post),
            ["init", "error"] => (Self::InitError, Method::Post),
            ["restore", "error"] => (Self::RestoreError, Method::Post),
            _ => return Err(Refusal::NotFound),
        })
    }

    fn of_extension(rest: &str) -> Result<(Self, Method), Refusal> {
        let (call, method) = match rest {
            "register" => (ExtensionCall::Register, Method::Post),
            "event/next" => (ExtensionCall::Next, Method::Get),
            "init/error" => (ExtensionCall::InitError, Method::Post),
            "exit/error" => (ExtensionCall::ExitError, Method::Post),
            _ => return Err(Refusal::NotFound),
        };
        Ok((Self::Extension(call), method))
    }

    /// What the call means to the runtime's state machine, if it is the runtime's.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        Some(match self {
            Self::Next => Event::Next,
            Self::RestoreNext => Event::RestoreNext,
            Self::Response(_) | Self::InvocationError(_) => Event::Answer,
            Self::InitError => Event::InitError,
            Self::RestoreError => Event::RestoreError,
            Self::Extension(_) | Self::Telemetry | Self::Logs => return None,
        })
    }

    /// The request id in the path, for calls that have one.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Response(id) | Self::InvocationError(id) => Some(id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_call_has_its_path_and_method() {
        let at = |method, rest: &str| Route::of(method, &format!("/2018-06-01/runtime/{rest}"));
        assert_eq!(at(Method::Get, "invocation/next"), Ok(Route::Next));
        assert_eq!(at(Method::Get, "invocation/next?x=1"), Ok(Route::Next));
        assert_eq!(at(Method::Get, "restore/next"), Ok(Route::RestoreNext));
        assert_eq!(
            at(Method::Post, "invocation/a/response"),
            Ok(Route::Response("a".into()))
        );
        assert_eq!(
            at(Method::Post, "invocation/a/error"),
            Ok(Route::InvocationError("a".into()))
        );
        assert_eq!(at(Method::Post, "init/error"), Ok(Route::InitError));
        let extension = |method, rest: &str| Route::of(method, &format!("/2020-01-01/{rest}"));
        for (method, rest, call) in [
            (Method::Post, "extension/register", ExtensionCall::Register),
            (Method::Get, "extension/event/next", ExtensionCall::Next),
            (
                Method::Post,
                "extension/init/error",
                ExtensionCall::InitError,
            ),
            (
                Method::Post,
                "extension/exit/error",
                ExtensionCall::ExitError,
            ),
        ] {
            assert_eq!(extension(method, rest), Ok(Route::Extension(call)));
        }
        assert_eq!(Route::of(Method::Put, TELEMETRY), Ok(Route::Telemetry));
        assert_eq!(Route::of(Method::Put, LOGS), Ok(Route::Logs));
        assert_eq!(at(Method::Post, "restore/error"), Ok(Route::RestoreError));
        assert_eq!(
            at(Method::Post, "invocation/next"),
            Err(Refusal::MethodNotAllowed)
        );
        assert_eq!(
            at(Method::Other, "init/error"),
            Err(Refusal::MethodNotAllowed)
        );
        for nothing in [
            "",
            "invocation",
            "invocation/a/b/response",
            "invocation/next/",
            "x/next",
        ] {
            assert_eq!(
                at(Method::Get, nothing),
                Err(Refusal::NotFound),
                "{nothing}"
            );
        }
        assert_eq!(
            Route::of(Method::Get, "/runtime/invocation/next"),
            Err(Refusal::NotFound)
        );
    }

    proptest! {
        #[test]
        fn no_target_panics(target in ".{0,80}") {
            let _ = Route::of(Method::Get, &target);
            for prefix in [RUNTIME, EXTENSION] {
                let _ = Route::of(Method::Post, &format!("{prefix}{target}"));
            }
        }
    }
}
