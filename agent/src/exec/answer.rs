//! Lambda's words for requests that the function itself did not answer.

use std::time::Duration;

use serde::Serialize;
use snapback_proto::control::StopReason;
use snapback_proto::guest::ExitStatus;
use snapback_proto::ids::RequestId;

use crate::process::Cause;

/// Lambda's error JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody<'a> {
    error_type: &'a str,
    error_message: String,
}

fn body(error_type: &str, request: &RequestId, what: &str) -> Vec<u8> {
    plain(error_type, format!("RequestId: {request} Error: {what}"))
}

fn plain(error_type: &str, error_message: String) -> Vec<u8> {
    // Two strings always make valid JSON.
    serde_json::to_vec(&ErrorBody {
        error_type,
        error_message,
    })
    .unwrap_or_default()
}

/// The function ran past its timeout.
pub fn timed_out(request: &RequestId, timeout: Duration) -> Vec<u8> {
    let what = format!("Task timed out after {:.2} seconds", timeout.as_secs_f64());
    body("Sandbox.Timedout", request, &what)
}

/// Longest error type that is kept as it was given, in bytes.
const MAX_ERROR_TYPE: usize = 128;

/// The error type that a runtime gave. Lambda takes any text; here it goes into logs
/// and records, so it has to be short and printable.
pub fn error_type(given: String) -> String {
    let printable = given.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    if given.is_empty() || given.len() > MAX_ERROR_TYPE || !printable {
        return "Function.Unknown".to_owned();
    }
    given
}

/// The initialisation took longer than it may: its error type, and the JSON.
pub fn init_timed_out(limit: Duration) -> (String, Vec<u8>) {
    let error_type = "Sandbox.Timedout";
    let what = format!(
        "Error: Task timed out after {:.2} seconds",
        limit.as_secs_f64()
    );
    (error_type.to_owned(), plain(error_type, what))
}

/// A streamed answer has more than `limit` bytes: its error type, and the JSON.
pub fn too_large(limit: u64) -> (String, Vec<u8>) {
    let error_type = "Function.ResponseSizeTooLarge";
    let what =
        format!("Response payload size exceeded maximum allowed payload size ({limit} bytes).");
    (error_type.to_owned(), plain(error_type, what))
}

/// A streamed answer ended before its end, and the function did not say why.
pub fn stream_broke(error_type: &str) -> Vec<u8> {
    plain(error_type, "Response stream ended early".to_owned())
}

/// The runtime's process ended: its error type, and the JSON.
pub fn runtime_exited(
    request: &RequestId,
    status: ExitStatus,
    out_of_memory: bool,
) -> (String, Vec<u8>) {
    let what = match status {
        ExitStatus::Code(0) => "Runtime exited without providing a reason".to_owned(),
        ExitStatus::Code(code) => format!("Runtime exited with error: exit status {code}"),
        ExitStatus::Signal(signal) => match signal_name(signal) {
            Some(name) => format!("Runtime exited with error: signal: {name}"),
            None => format!("Runtime exited with error: signal: signal {signal}"),
        },
    };
    let error_type = match status {
        ExitStatus::Signal(SIGKILL) if out_of_memory => "Runtime.OutOfMemory",
        _ => "Runtime.ExitError",
    };
    (error_type.to_owned(), body(error_type, request, &what))
}

/// What the kernel's want of memory looks like to a process.
const SIGKILL: i32 = 9;

/// The microVM broke a rule while the request ran.
pub fn sandbox_failure(request: &RequestId, what: &str) -> Vec<u8> {
    body(SANDBOX_FAILURE, request, what)
}

/// The microVM ended while the request ran.
pub fn sandbox_ended(request: &RequestId, cause: &Cause) -> Vec<u8> {
    let what = format!("the microVM ended: {cause}");
    body(ended_type(cause), request, &what)
}

/// The error type of a microVM's failure that has no type of its own.
pub const SANDBOX_FAILURE: &str = "Sandbox.Failure";

/// The error type of a microVM's end. A guest's own end has one for each way: only
/// one that panicked is a fault of the guest's kernel.
pub const fn ended_type(cause: &Cause) -> &'static str {
    match cause {
        Cause::Stopped(StopReason::PoweredOff) => "Sandbox.PoweredOff",
        Cause::Stopped(StopReason::Rebooted) => "Sandbox.Rebooted",
        Cause::Stopped(StopReason::Panicked) => "Sandbox.KernelPanic",
        Cause::Stopped(StopReason::Broken(_))
        | Cause::Gone
        | Cause::Protocol(_)
        | Cause::Page(_)
        | Cause::Retired => SANDBOX_FAILURE,
    }
}

/// The names that Lambda's answers use (they are Go's).
const fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_type_that_is_no_word_becomes_one() {
        let kept = |given: &str| error_type(given.to_owned());
        assert_eq!(
            kept("Runtime.ImportModuleError"),
            "Runtime.ImportModuleError"
        );
        for bad in ["", "a\nb", "ü", &"x".repeat(MAX_ERROR_TYPE + 1)] {
            assert_eq!(kept(bad), "Function.Unknown");
        }
    }

    #[test]
    fn the_words_are_lambdas() {
        let request = RequestId::from_random([0; 16]);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let id = "00000000-0000-4000-8000-000000000000";
        assert_eq!(
            text(timed_out(&request, Duration::from_secs(3))),
            format!(
                "{{\"errorType\":\"Sandbox.Timedout\",\"errorMessage\":\
                 \"RequestId: {id} Error: Task timed out after 3.00 seconds\"}}"
            )
        );
        let exited = |status| text(runtime_exited(&request, status, true).1);
        let killed = |oom| runtime_exited(&request, ExitStatus::Signal(9), oom).0;
        assert_eq!(killed(true), "Runtime.OutOfMemory");
        assert_eq!(killed(false), "Runtime.ExitError");
        assert!(exited(ExitStatus::Code(1)).contains("Runtime exited with error: exit status 1\""));
        assert!(exited(ExitStatus::Signal(9)).contains("error: signal: killed\""));
        assert!(exited(ExitStatus::Signal(64)).contains("signal: signal 64\""));
    }

    #[test]
    fn every_end_of_a_guest_has_a_name() {
        let request = RequestId::from_random([0; 16]);
        for (reason, error_type, words) in [
            (
                StopReason::PoweredOff,
                "Sandbox.PoweredOff",
                "the guest powered off",
            ),
            (
                StopReason::Rebooted,
                "Sandbox.Rebooted",
                "the guest rebooted",
            ),
            (
                StopReason::Panicked,
                "Sandbox.KernelPanic",
                "the guest's kernel panicked",
            ),
            (
                StopReason::Broken("of glass".to_owned()),
                "Sandbox.Failure",
                "the guest cannot go on: of glass",
            ),
        ] {
            let bytes = sandbox_ended(&request, &Cause::Stopped(reason));
            let answer: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(answer["errorType"], error_type);
            let message = answer["errorMessage"].as_str().unwrap();
            let expected = format!("RequestId: {request} Error: the microVM ended: {words}");
            assert_eq!(message, expected);
        }
        assert_eq!(ended_type(&Cause::Gone), "Sandbox.Failure");
    }
}
