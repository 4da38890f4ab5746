//! What `register` and `event/next` answer, in Lambda's JSON.

use serde::Serialize;
use snapback_proto::guest::{Init, Invoke};

/// The answer to `register`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Registered<'a> {
    function_name: &'a str,
    function_version: &'a str,
    handler: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InvokeEvent<'a> {
    event_type: &'static str,
    deadline_ms: u64,
    request_id: &'a str,
    invoked_function_arn: &'a str,
    tracing: Tracing<'a>,
}

#[derive(Debug, Serialize)]
struct Tracing<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    value: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShutdownEvent {
    event_type: &'static str,
    shutdown_reason: &'static str,
    deadline_ms: u64,
}

/// Why an environment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its request is over.
    Spindown,
    /// Its runtime or an extension failed.
    Failure,
}

/// The answer to `register`.
#[must_use]
pub fn registered(init: &Init) -> Vec<u8> {
    json(&Registered {
        function_name: &init.function,
        function_version: &init.version,
        handler: &init.handler,
    })
}

/// An `INVOKE` event.
#[must_use]
pub fn invoke(invoke: &Invoke) -> Vec<u8> {
    json(&InvokeEvent {
        event_type: "INVOKE",
        deadline_ms: invoke.deadline_ms,
        request_id: invoke.request.as_str(),
        invoked_function_arn: &invoke.function_arn,
        tracing: Tracing {
            kind: "X-Amzn-Trace-Id",
            value: invoke.trace_id.as_deref().unwrap_or_default(),
        },
    })
}

/// A `SHUTDOWN` event.
#[must_use]
pub fn shutdown(reason: Reason, deadline_ms: u64) -> Vec<u8> {
    json(&ShutdownEvent {
        event_type: "SHUTDOWN",
        shutdown_reason: match reason {
            Reason::Spindown => "spindown",
            Reason::Failure => "failure",
        },
        deadline_ms,
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Strings and numbers always have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}
