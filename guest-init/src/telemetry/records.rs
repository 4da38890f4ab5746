//! Telemetry events as JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::environment::date;

/// One event.
#[must_use]
pub fn event(kind: &str, record: Value) -> String {
    json!({ "time": timestamp(), "type": kind, "record": record }).to_string()
}

/// A line of output: text, or, where lines are JSON, the object that it is.
#[must_use]
pub fn line(text: String, json: bool) -> Value {
    if json && let Ok(object @ Value::Object(_)) = serde_json::from_str(&text) {
        return object;
    }
    Value::String(text)
}

/// Milliseconds with two decimals, as Lambda has its durations.
#[must_use]
pub fn milliseconds(duration: Duration) -> Value {
    let micros = duration.as_micros();
    let text = format!("{}.{:02}", micros / 1000, micros % 1000 / 10);
    text.parse::<f64>().map_or(Value::Null, Value::from)
}

/// The wall clock in RFC 3339, to the millisecond.
fn timestamp() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_lambdas() {
        let event: Value =
            serde_json::from_str(&event("function", line("hi".into(), true))).unwrap();
        assert_eq!(event["type"], "function");
        assert_eq!(event["record"], "hi");
        let time = event["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z'));
        assert_eq!(line("{\"a\": 1}".into(), true), json!({"a": 1}));
        assert_eq!(line("{\"a\": 1}".into(), false), "{\"a\": 1}");
        assert_eq!(line("[1]".into(), true), "[1]");
        assert_eq!(milliseconds(Duration::from_micros(1239)), json!(1.23));
    }
}
