//! Which request is which call of the Runtime API.

use super::errors::Refusal;
use super::state::Event;
use crate::http::Method;

/// The version that every path begins with.
const PREFIX: &str = "/2018-06-01/runtime/";

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
}

impl Route {
    /// Finds the call.
    ///
    /// # Errors
    /// When there is none at that path, or not with that method.
    pub fn of(method: Method, target: &str) -> Result<Self, Refusal> {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let rest = path.strip_prefix(PREFIX).ok_or(Refusal::NotFound)?;
        let parts: Vec<&str> = rest.splitn(4, '/').collect();
        let (route, allowed) = match parts[..] {
            ["invocation", "next"] => (Self::Next, Method::Get),
            ["restore", "next"] => (Self::RestoreNext, Method::Get),
            ["invocation", id, "response"] => (Self::Response(id.to_owned()), Method::Post),
            ["invocation", id, "error"] => (Self::InvocationError(id.to_owned()), Method::Post),
            ["init", "error"] => (Self::InitError, Method::Post),
            ["restore", "error"] => (Self::RestoreError, Method::Post),
            _ => return Err(Refusal::NotFound),
        };
        if method == allowed {
            Ok(route)
        } else {
            Err(Refusal::MethodNotAllowed)
        }
    }

    /// What the call means to the state machine.
    #[must_use]
    pub fn event(&self) -> Event {
        match self {
            Self::Next => Event::Next,
            Self::RestoreNext => Event::RestoreNext,
            Self::Response(_) | Self::InvocationError(_) => Event::Answer,
            Self::InitError => Event::InitError,
            Self::RestoreError => Event::RestoreError,
        }
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
            let _ = Route::of(Method::Post, &format!("{PREFIX}{target}"));
        }
    }
}
