//! Answers that come in pieces.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

mod support;

use snapback_proto::guest::{GuestMessage, LogStream, MAX_STREAM_CHUNK};
use snapback_proto::ids::RequestId;
use support::{Client, Environment, SHELL_CLIENT};

/// A guest whose runtime has a request and has begun to stream.
fn streaming() -> (Environment, Client, RequestId) {
    let (mut env, mut client) = Environment::parked();
    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert_eq!(client.answer().status, 200);
    client.send(&begin(&request));
    let message = env.message().0;
    let started = GuestMessage::StreamStarted {
        request: request.clone(),
        content_type: "text/plain".to_owned(),
    };
    assert_eq!(message, started);
    (env, client, request)
}

/// A guest whose runtime is a shell, has a request, has begun to stream and goes on with
/// `rest`: descriptor 3 is its connection.
fn streaming_shell(rest: &str) -> (Environment, RequestId) {
    let mut env = Environment::started(&format!(
        "{SHELL_CLIENT} next
        printf 'POST %s/invocation/%s/response HTTP/1.1\\r\\nTransfer-Encoding: chunked\\r\\n\
Lambda-Runtime-Function-Response-Mode: streaming\\r\\n\\r\\n' $base $id >&3
        {rest}"
    ));
    env.expect_ready(snapback_proto::guest::ReadyPoint::Next);
    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert!(matches!(
        env.message().0,
        GuestMessage::StreamStarted { .. }
    ));
    (env, request)
}

fn begin(request: &RequestId) -> Vec<u8> {
    format!(
        "POST /2018-06-01/runtime/invocation/{request}/response HTTP/1.1\r\n\
         Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\
         Lambda-Runtime-Function-Response-Mode: streaming\r\n\
         Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\r\n"
    )
    .into_bytes()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn ended(request: &RequestId, error_type: Option<&str>) -> GuestMessage {
    GuestMessage::StreamEnded {
        request: request.clone(),
        error_type: error_type.map(str::to_owned),
        more: false,
    }
}

#[test]
fn a_piece_leaves_before_the_next_one_is_made() {
    let (mut env, mut client, request) = streaming();
    for number in 0..50 {
        let piece = format!("piece {number}");
        client.send(&chunk(piece.as_bytes()));
        // The next is only sent when this one has arrived.
        let (message, payload) = env.message();
        assert_eq!(message, GuestMessage::StreamChunk);
        assert_eq!(payload, piece.as_bytes());
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.answer().status, 202);
    assert_eq!(env.message(), (ended(&request, None), Vec::new()));
    client.get("invocation/next");
    env.expect_silence();
}

#[test]
fn an_error_in_the_trailers_arrives_after_what_was_said_before() {
    let (mut env, mut client, request) = streaming();
    client.send(&chunk(b"half"));
    client.send(
        b"0\r\nLambda-Runtime-Function-Error-Type: Function.Broken\r\n\
          Lambda-Runtime-Function-Error-Body: e30=\r\n\r\n",
    );
    assert_eq!(client.answer().status, 202);
    assert_eq!(env.message(), (GuestMessage::StreamChunk, b"half".to_vec()));
    let end = ended(&request, Some("Function.Broken"));
    assert_eq!(env.message(), (end, b"e30=".to_vec()));
}

#[test]
fn a_stream_that_breaks_off_is_reported() {
    for garbage in [false, true] {
        let (mut env, mut client, request) = streaming();
        client.send(&chunk(b"half"));
        assert_eq!(env.message().1, b"half");
        if garbage {
            client.send(b"this is no chunk\r\n");
            assert_eq!(client.answer().status, 400);
        }
        drop(client);
        let end = ended(&request, Some("Runtime.TruncatedResponse"));
        assert_eq!(env.message().0, end);
        env.expect_silence();
    }
}

#[test]
fn while_an_answer_streams_no_other_is_taken() {
    let (mut env, mut client, request) = streaming();
    let mut other = env.client();
    for call in ["response", "error"] {
        let call = format!("invocation/{request}/{call}");
        let answer = other.post(&call, "", b"me too");
        assert_eq!(
            (answer.status, answer.error_type().as_str()),
            (403, "InvalidStateTransition")
        );
    }
    other.send(&begin(&request));
    other.send(&[chunk(b"mine"), b"0\r\n\r\n".to_vec()].concat());
    assert_eq!(other.answer().status, 403);
    client.send(&[chunk(b"only"), b"0\r\n\r\n".to_vec()].concat());
    assert_eq!(client.answer().status, 202);
    assert_eq!(env.message().1, b"only");
    assert_eq!(env.message().0, ended(&request, None));
    env.expect_silence();
}

#[test]
fn an_agent_that_does_not_read_stops_the_function_and_loses_nothing() {
    const PIECES: usize = 400;
    let (mut env, mut client, request) = streaming();
    let (progress, written) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        for number in 0..PIECES {
            let byte = u8::try_from(number % 251).unwrap();
            client.send(&chunk(&vec![byte; MAX_STREAM_CHUNK]));
            progress.send(number).unwrap();
        }
        client.send(b"0\r\n\r\n");
        client.answer().status
    });
    // Nobody reads the channel: after a while the writer stands still.
    let patience = std::time::Duration::from_millis(500);
    let mut last = 0;
    while let Ok(number) = written.recv_timeout(patience) {
        last = number;
    }
    assert!(last < PIECES / 2, "{last} pieces went nowhere");
    let mut received = Vec::new();
    loop {
        match env.message() {
            (GuestMessage::StreamChunk, piece) => {
                assert!(piece.len() <= MAX_STREAM_CHUNK);
                received.extend(piece);
            }
            (end, _) => {
                assert_eq!(end, ended(&request, None));
                break;
            }
        }
    }
    assert_eq!(writer.join().unwrap(), 202);
    assert_eq!(received.len(), PIECES * MAX_STREAM_CHUNK);
    for (number, piece) in received.chunks(MAX_STREAM_CHUNK).enumerate() {
        let byte = u8::try_from(number % 251).unwrap();
        assert!(piece.iter().all(|&b| b == byte), "piece {number}");
    }
}

#[test]
fn a_runtime_that_streams_its_answer_and_exits_has_answered() {
    // More than the channel takes at once, so that the end comes while it is full.
    let (mut env, request) = streaming_shell(
        "printf '200000\\r\\n' >&3; head -c 2097152 /dev/zero >&3; printf '\\r\\n0\\r\\n\\r\\n' >&3; exit 1",
    );
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut length = 0;
    let end = loop {
        match env.message() {
            (GuestMessage::StreamChunk, piece) => length += piece.len(),
            (end, _) => break end,
        }
    };
    assert_eq!((length, end), (2_097_152, ended(&request, None)));
    env.expect_silence();
}

#[test]
fn a_child_that_keeps_its_parents_broken_stream_does_not_keep_it_from_ending() {
    let (mut env, request) = streaming_shell("printf '5\\r\\nhello\\r\\n' >&3; sleep 10 & exit 1");
    assert_eq!(
        env.message(),
        (GuestMessage::StreamChunk, b"hello".to_vec())
    );
    let truncated = ended(&request, Some("Runtime.TruncatedResponse"));
    assert_eq!(env.message().0, truncated);
}

#[test]
fn output_written_before_the_end_comes_before_it() {
    let (mut env, request) =
        streaming_shell("echo in between; printf '2\\r\\nok\\r\\n0\\r\\n\\r\\n' >&3; answer; next");
    assert_eq!(env.message().1, b"ok");
    assert_eq!(env.message().0, ended(&request, None));
    assert_eq!(env.output_of(LogStream::Stdout), "in between\n");
}
