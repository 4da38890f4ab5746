//! What a function sees of its environment, and what it says to the agent's log.

use serde_json::json;

use crate::harness::{TOUR, said, shared};

#[test]
fn a_function_sees_the_variables_that_lambda_sets_and_no_credentials() {
    let agent = shared();
    let facts = agent.call(TOUR, &json!({"do": "facts"}));
    let seen = facts["environment"].as_object().unwrap();
    for (name, value) in [
        ("_HANDLER", "app.handler"),
        ("AWS_DEFAULT_REGION", "local"),
        ("AWS_EXECUTION_ENV", "AWS_Lambda_python3.11"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_FUNCTION_NAME", TOUR),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start"),
        ("AWS_LAMBDA_LOG_FORMAT", "Text"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/tour"),
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"),
        ("AWS_REGION", "local"),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("LANG", "en_US.UTF-8"),
        ("TZ", ":UTC"),
    ] {
        assert_eq!(seen[name], value, "{name}");
    }
    let stream = seen["AWS_LAMBDA_LOG_STREAM_NAME"].as_str().unwrap();
    assert!(stream.contains("/[$LATEST]"), "{stream}");
    let trace = seen["_X_AMZN_TRACE_ID"].as_str().unwrap();
    assert!(trace.contains("Root="), "{trace}");
    // Whatever is set wins over the credentials that SDKs look for at run time.
    for name in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ] {
        assert!(!seen.contains_key(name), "{name}");
    }
}

#[test]
fn output_reaches_the_log_in_order_with_its_requests_id_and_a_note_of_what_was_dropped() {
    let agent = shared();
    // Two streams of so many lines of a thousand bytes: more than a log keeps of one request.
    let lines = 2000;
    let answer = agent.invoke(TOUR, &json!({"do": "count", "lines": lines}));
    assert_eq!(answer.status, 200);
    agent.record(&answer);
    let said = said(&agent, answer.request_id());
    for stream in ["stdout", "stderr"] {
        let numbers: Vec<usize> = said
            .iter()
            .filter(|(from, _)| from == stream)
            .filter_map(|(_, text)| text.split(' ').next()?.parse().ok())
            .collect();
        assert!(
            numbers.len() > 100 && numbers.len() < lines,
            "{}",
            numbers.len()
        );
        // The last one may have been cut, in its middle or in its number.
        let whole = &numbers[..numbers.len() - 1];
        assert!(
            whole.iter().copied().eq(0..whole.len()),
            "{stream}: {whole:?}"
        );
    }
    let platform: Vec<_> = said.iter().filter(|(from, _)| from == "platform").collect();
    let begins = |line: &str| {
        platform
            .iter()
            .filter(|(_, text)| text.starts_with(line))
            .count()
    };
    assert_eq!(
        [begins("START"), begins("END"), begins("REPORT")],
        [1, 1, 1]
    );
    assert_eq!(said[0].0, "platform");
    let log = agent.place().log();
    let note = log.lines().find(|line| {
        line.contains("bytes of output were dropped") && line.contains(answer.request_id())
    });
    assert!(note.is_some());
    // Nothing of it goes on in the next one.
    assert_eq!(agent.call(TOUR, &json!(1)), 1);
}
