//! Large events and answers, and much output.

use serde_json::json;

use crate::harness::{TOUR, shared};

const MAX_BODY: usize = 6 * 1024 * 1024;

/// A JSON string of so many bytes, quotes included, without a pattern that a page or a packet
/// could hide in.
fn json_string(length: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = vec![b'"'];
    text.extend(
        std::iter::repeat_with(|| {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            LETTERS[usize::try_from(state >> 58).unwrap()]
        })
        .take(length - 2),
    );
    text.push(b'"');
    text
}

#[test]
fn an_event_of_six_mebibytes_comes_back_byte_for_byte() {
    let agent = shared();
    let payload = json_string(MAX_BODY);
    let response = agent.try_invoke(TOUR, &payload).unwrap();
    assert_eq!(
        response.status,
        200,
        "{}",
        String::from_utf8_lossy(&response.body[..200.min(response.body.len())])
    );
    assert_eq!(response.body.len(), MAX_BODY);
    assert!(
        response.body == payload,
        "the answer differs from the event"
    );
    assert!(agent.record(&response)["dirty_pages"].as_u64().unwrap() > 1536);
    // Nothing of it is left.
    assert_eq!(agent.call(TOUR, &json!("small")), "small");
}

#[test]
fn an_answer_over_six_mebibytes_is_lambdas_error() {
    let agent = shared();
    let response = agent.invoke(TOUR, &json!({"do": "large", "bytes": MAX_BODY + 1024}));
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-amz-function-error"), "Unhandled");
    let error = response.json();
    assert_eq!(
        error["errorType"], "Function.ResponseSizeTooLarge",
        "{error}"
    );
    assert_eq!(agent.call(TOUR, &json!(1)), 1);
}

#[test]
fn much_output_and_a_large_event_pass_each_other() {
    let agent = shared();
    let ballast = 5 * 1024 * 1024;
    let event = json!({"do": "chat", "lines": 3000, "ballast": "x".repeat(ballast)});
    assert_eq!(agent.call(TOUR, &event), ballast);
}
