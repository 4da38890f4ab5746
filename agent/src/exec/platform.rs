//! The platform's own lines in a function's log, as Lambda writes them: text, or
//! the JSON of its Telemetry API's events.

use snapback_proto::guest::LogFormat;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::invoke::{Invocation, Outcome};
use crate::function::VERSION;

/// The line before everything that a request writes.
pub fn start(invocation: &Invocation) -> String {
    let id = &invocation.request;
    match invocation.log_format {
        LogFormat::Text => format!("START RequestId: {id} Version: {VERSION}"),
        LogFormat::Json => event(
            "platform.start",
            serde_json::json!({ "requestId": id.as_str(), "version": VERSION }),
        ),
    }
}

/// The lines after it. How much memory a guest's processes had in use is not known
/// out here, and is left out.
pub fn report(invocation: &Invocation, duration_ns: u64, outcome: &Outcome) -> Vec<String> {
    let id = &invocation.request;
    let billed_ms = duration_ns.div_ceil(1_000_000);
    let memory = invocation.memory_mib;
    let (whole, hundredths) = (duration_ns / 1_000_000, duration_ns / 10_000 % 100);
    let failed = match outcome {
        Outcome::Response { .. } => None,
        Outcome::FunctionError { error_type, .. } => {
            Some(error_type.as_deref().unwrap_or("Unhandled"))
        }
    };
    match invocation.log_format {
        LogFormat::Text => {
            let mut report = format!(
                "REPORT RequestId: {id}\tDuration: {whole}.{hundredths:02} ms\t\
                 Billed Duration: {billed_ms} ms\tMemory Size: {memory} MB"
            );
            if let Some(error_type) = failed {
                report.push_str("\tStatus: error\tError Type: ");
                report.push_str(error_type);
            }
            vec![format!("END RequestId: {id}"), report]
        }
        LogFormat::Json => {
            let status = match failed {
                None => "success",
                Some("Sandbox.Timedout") => "timeout",
                Some(_) => "error",
            };
            // Two decimals, as Lambda has it.
            let duration = format!("{whole}.{hundredths:02}");
            let duration_ms: f64 = duration.parse().unwrap_or(0.0);
            let mut record = serde_json::json!({
                "requestId": id.as_str(),
                "status": status,
                "metrics": {
                    "durationMs": duration_ms,
                    "billedDurationMs": billed_ms,
                    "memorySizeMB": memory,
                },
            });
            if let Some(error_type) = failed {
                record["errorType"] = error_type.into();
            }
            vec![event("platform.report", record)]
        }
    }
}

fn event(kind: &str, record: serde_json::Value) -> String {
    // The wall clock is within the years that the format knows.
    let time = OffsetDateTime::now_utc().format(&Rfc3339);
    serde_json::json!({ "time": time.unwrap_or_default(), "type": kind, "record": record })
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snapback_proto::ids::RequestId;

    use super::*;

    fn invocation(log_format: LogFormat) -> Invocation {
        Invocation {
            request: RequestId::from_random([0; 16]),
            function_arn: String::new(),
            trace_id: None,
            client_context: None,
            tenant_id: None,
            payload: Vec::new(),
            timeout: Duration::from_secs(3),
            memory_mib: 128,
            log_format,
        }
    }

    const ID: &str = "00000000-0000-4000-8000-000000000000";

    fn failure() -> Outcome {
        Outcome::FunctionError {
            error_type: Some("Runtime.ExitError".to_owned()),
            body: Vec::new(),
        }
    }

    #[test]
    fn text_lines_are_lambdas() {
        let invocation = invocation(LogFormat::Text);
        assert_eq!(
            start(&invocation),
            format!("START RequestId: {ID} Version: $LATEST")
        );
        let lines = report(&invocation, 2_345_678, &failure());
        assert_eq!(lines[0], format!("END RequestId: {ID}"));
        assert_eq!(
            lines[1],
            format!(
                "REPORT RequestId: {ID}\tDuration: 2.34 ms\tBilled Duration: 3 ms\t\
                 Memory Size: 128 MB\tStatus: error\tError Type: Runtime.ExitError"
            )
        );
    }

    #[test]
    fn json_lines_are_events() {
        let invocation = invocation(LogFormat::Json);
        let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let began = parse(&start(&invocation));
        assert_eq!(began["type"], "platform.start");
        assert_eq!(began["record"]["requestId"], ID);
        assert!(began["time"].as_str().unwrap().ends_with('Z'));
        let lines = report(&invocation, 2_345_678, &failure());
        let ended = parse(&lines[0]);
        assert_eq!(ended["type"], "platform.report");
        assert_eq!(ended["record"]["metrics"]["durationMs"], 2.34);
        assert_eq!(ended["record"]["status"], "error");
        assert_eq!(ended["record"]["errorType"], "Runtime.ExitError");
    }
}
