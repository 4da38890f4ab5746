//! `application/vnd.amazon.eventstream`: the events of a streamed answer.

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use axum::body::Bytes;
use serde::Serialize;

/// The encoding's media type.
pub const MEDIA_TYPE: &str = "application/vnd.amazon.eventstream";

/// The last event of every stream.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InvokeComplete {
    /// Set when the function failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Its error JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_details: Option<String>,
    /// The end of its output in base64, when the caller asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_result: Option<String>,
}

/// A piece of the answer.
///
/// # Errors
/// When it is longer than an event can be.
pub fn payload_chunk(bytes: Vec<u8>) -> std::io::Result<Bytes> {
    encode("PayloadChunk", "application/octet-stream", bytes)
}

/// The end of the answer.
///
/// # Errors
/// When it is longer than an event can be.
pub fn invoke_complete(end: &InvokeComplete) -> std::io::Result<Bytes> {
    encode(
        "InvokeComplete",
        "application/json",
        serde_json::to_vec(end)?,
    )
}

fn encode(
    event: &'static str,
    media_type: &'static str,
    payload: Vec<u8>,
) -> std::io::Result<Bytes> {
    let header = |name: &'static str, value: &'static str| {
        Header::new(name, HeaderValue::String(value.into()))
    };
    let headers = vec![
        header(":event-type", event),
        header(":content-type", media_type),
        header(":message-type", "event"),
    ];
    let message = Message::new_from_parts(headers, Bytes::from(payload));
    let mut encoded = Vec::new();
    write_message_to(&message, &mut encoded).map_err(std::io::Error::other)?;
    Ok(encoded.into())
}

#[cfg(test)]
mod tests {
    use aws_smithy_eventstream::frame::read_message_from;

    use super::*;

    #[test]
    fn an_event_can_be_read_back() {
        let chunk = payload_chunk(b"\0binary".to_vec()).unwrap();
        let message = read_message_from(&mut &chunk[..]).unwrap();
        assert_eq!(&message.payload()[..], b"\0binary");
        let event = message
            .headers()
            .iter()
            .find(|h| h.name().as_str() == ":event-type");
        let event = event.unwrap().value().as_string().unwrap();
        assert_eq!(event.as_str(), "PayloadChunk");
    }

    #[test]
    fn an_end_without_a_failure_says_nothing() {
        let end = invoke_complete(&InvokeComplete::default()).unwrap();
        let message = read_message_from(&mut &end[..]).unwrap();
        assert_eq!(&message.payload()[..], b"{}");
    }
}
