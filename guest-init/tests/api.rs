//! The Runtime API as a runtime sees it, a well-behaved one and the others.

#![allow(missing_docs, reason = "the names of tests are sentences")]

mod support;

use std::io::Write as _;
use std::net::TcpStream;

use snapback_proto::frame::{MAX_BODY, MAX_PAYLOAD};
use snapback_proto::guest::{GuestMessage, ReadyPoint};
use snapback_proto::ids::RequestId;
use support::{Client, Environment};

/// A guest whose runtime has a request.
fn running(event: &[u8]) -> (Environment, Client, RequestId) {
    let (mut env, mut client) = Environment::parked();
    env.resume(1);
    let request = env.invoke(1, event);
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.as_slice()), (200, event));
    (env, client, request)
}

#[test]
fn an_invocation_has_lambdas_headers() {
    let (mut env, mut client) = Environment::parked();
    env.resume(1);
    let request = env.invoke(1, b"[1]");
    let answer = client.answer();
    let header = |name| answer.header(name);
    assert_eq!(
        header("Lambda-Runtime-Aws-Request-Id"),
        Some(request.as_str())
    );
    assert_eq!(header("Lambda-Runtime-Deadline-Ms"), Some("1700000000123"));
    let arn = header("Lambda-Runtime-Invoked-Function-Arn");
    assert_eq!(arn, Some("arn:aws:lambda:local:0:function:report"));
    assert_eq!(header("Lambda-Runtime-Trace-Id"), Some("Root=1-2-3"));
    assert_eq!(header("Lambda-Runtime-Aws-Tenant-Id"), Some("acme"));
    assert_eq!(header("Lambda-Runtime-Client-Context"), None);
    assert_eq!(header("Content-Type"), Some("application/json"));
    assert_eq!(answer.body, b"[1]");
}

#[test]
fn the_largest_bodies_pass_both_ways_byte_for_byte() {
    let event: Vec<u8> = (0..=250).cycle().take(MAX_BODY).collect();
    let (mut env, mut client, request) = running(&event);
    let reply: Vec<u8> = (0..=240).cycle().take(MAX_PAYLOAD).collect();
    // The channel is read meanwhile, as by an agent.
    let poster = std::thread::spawn(move || {
        let call = format!("invocation/{request}/response");
        let answer = client.post(&call, "Content-Type: image/png\r\n", &reply);
        assert_eq!(answer.status, 202);
        reply
    });
    let (message, payload) = env.message();
    assert!(
        matches!(message, GuestMessage::Response { content_type, .. } if content_type == "image/png")
    );
    assert!(payload == poster.join().unwrap());
}

#[test]
fn an_answer_one_byte_over_the_limit_is_refused_and_the_caller_is_told() {
    let (mut env, mut client, request) = running(b"{}");
    let answer = client.respond(&request, &vec![b'x'; MAX_PAYLOAD + 1]);
    assert_eq!(
        (answer.status, answer.error_type().as_str()),
        (413, "RequestEntityTooLarge")
    );
    let (message, json) = env.message();
    let error_type = Some("Function.ResponseSizeTooLarge".to_owned());
    assert_eq!(
        message,
        GuestMessage::Failed {
            request,
            error_type,
            more: false
        }
    );
    assert!(String::from_utf8(json).unwrap().contains("6291556 bytes"));
    // The connection has survived it.
    client.get("invocation/next");
    env.resume(2);
    env.invoke(2, b"again");
    assert_eq!(client.answer().body, b"again");
}

#[test]
fn a_chunked_answer_is_an_answer() {
    let (mut env, mut client, request) = running(b"{}");
    let head = format!(
        "POST /2018-06-01/runtime/invocation/{request}/response HTTP/1.1\r\n\
         Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    );
    client.send(head.as_bytes());
    assert_eq!(client.answer().status, 100);
    for piece in [
        "5\r\nhello\r\n",
        "1;",
        "x\r\n!\r",
        "\n0\r\nTrailer: x\r\n\r\n",
    ] {
        client.send(piece.as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(client.answer().status, 202);
    assert_eq!(env.message().1, b"hello!");
}

#[test]
fn an_error_reaches_the_caller_as_it_was_posted() {
    let (mut env, mut client, request) = running(b"{}");
    let call = format!("invocation/{request}/error");
    let type_header = "Lambda-Runtime-Function-Error-Type: ValueError\r\n";
    assert_eq!(
        client
            .post(&call, type_header, b"{\"errorType\":\"ValueError\"}")
            .status,
        202
    );
    let (message, json) = env.message();
    let error_type = Some("ValueError".to_owned());
    assert_eq!(
        message,
        GuestMessage::Failed {
            request,
            error_type,
            more: false
        }
    );
    assert_eq!(json, b"{\"errorType\":\"ValueError\"}");
}

#[test]
fn a_wrong_id_is_400_and_a_wrong_state_is_403() {
    let mut env = Environment::driven();
    let mut client = env.client();
    let stranger = RequestId::from_random([99; 16]);
    let outcome = |answer: support::Answer| (answer.status, answer.error_type());
    let invalid_id = (400, "InvalidRequestID".to_owned());
    let invalid_state = (403, "InvalidStateTransition".to_owned());

    assert_eq!(outcome(client.respond(&stranger, b"x")), invalid_id);
    assert_eq!(
        outcome(client.post("restore/error", "", b"x")),
        invalid_state
    );
    let mut parked = env.client();
    parked.get("invocation/next");
    env.expect_ready(ReadyPoint::Next);
    assert_eq!(outcome(client.post("init/error", "", b"x")), invalid_state);
    client.get("invocation/next");
    assert_eq!(outcome(client.answer()), invalid_state);

    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert_eq!(parked.answer().status, 200);
    assert_eq!(outcome(client.respond(&stranger, b"x")), invalid_id);
    assert_eq!(client.respond(&request, b"x").status, 202);
    assert_eq!(outcome(client.respond(&request, b"twice")), invalid_state);
    assert_eq!(env.message().1, b"x");
    env.expect_silence();
}

#[test]
fn what_is_not_the_api_is_refused_politely() {
    let env = Environment::driven();
    let mut client = env.client();
    assert_eq!(client.post("nothing", "", b"body").status, 404);
    assert_eq!(client.post("invocation/next", "", b"").status, 405);
    client.send(b"\x16\x03\x01 this is TLS\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    assert!(client.is_closed());
}

#[test]
fn an_initialisation_error_is_reported_once() {
    let mut env = Environment::started(&format!(
        "{} post init/error '{{\"errorType\":\"X\"}}'; exit 1",
        support::SHELL_CLIENT
    ));
    let (message, json) = env.message();
    let error_type = "Runtime.Unknown".to_owned();
    assert_eq!(message, GuestMessage::InitFailed { error_type });
    assert_eq!(json, b"{\"errorType\":\"X\"}");
    env.expect_silence();
}

#[test]
fn a_runtime_with_hooks_is_released_by_the_resume_and_its_request_waits_for_it() {
    let mut env = Environment::driven();
    let mut client = env.client();
    client.get("restore/next");
    env.expect_ready(ReadyPoint::RestoreNext);
    env.resume(3);
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let request = env.invoke(1, b"event");
    let of = |request: &RequestId| request.clone();
    let holding = GuestMessage::Holding {
        request: of(&request),
    };
    assert_eq!(env.message().0, holding);
    env.expect_silence();
    client.get("invocation/next");
    let answer = client.answer();
    assert_eq!(answer.body, b"event");
    // Its time begins after the hooks.
    let deadline = answer.header("Lambda-Runtime-Deadline-Ms").unwrap();
    assert!(deadline.parse::<u64>().unwrap() > 1_700_000_000_123 + 100);
    let delivered = GuestMessage::Delivered {
        request: of(&request),
    };
    assert_eq!(env.message().0, delivered);
    client.respond(&request, b"ok");
    assert_eq!(env.message().1, b"ok");
}

#[test]
fn failed_hooks_fail_the_request_whichever_comes_first() {
    for hooks_fail_first in [true, false] {
        let mut env = Environment::driven();
        let mut client = env.client();
        client.get("restore/next");
        env.expect_ready(ReadyPoint::RestoreNext);
        env.resume(3);
        client.answer();
        let fail = |client: &mut Client| {
            let header = "Lambda-Runtime-Function-Error-Type: Runtime.AfterRestore\r\n";
            assert_eq!(client.post("restore/error", header, b"{}").status, 202);
        };
        if hooks_fail_first {
            fail(&mut client);
        }
        let request = env.invoke(1, b"event");
        if !hooks_fail_first {
            let message = env.message().0;
            assert!(
                matches!(message, GuestMessage::Holding { .. }),
                "{message:?}"
            );
            fail(&mut client);
        }
        let error_type = Some("Runtime.AfterRestore".to_owned());
        assert_eq!(
            env.message().0,
            GuestMessage::RestoreFailed {
                request,
                error_type
            }
        );
    }
}

#[test]
fn asking_again_gives_the_same_invocation_again() {
    let (mut env, mut client, request) = running(b"event");
    let mut other = env.client();
    other.get("invocation/next");
    let again = other.answer();
    assert_eq!(again.body, b"event");
    assert_eq!(
        again.header("Lambda-Runtime-Aws-Request-Id"),
        Some(request.as_str())
    );
    client.respond(&request, b"once");
    assert_eq!(env.message().1, b"once");
}

#[test]
fn a_lost_connection_does_not_lose_the_invocation() {
    let (mut env, client) = Environment::parked();
    drop(client);
    env.resume(1);
    env.invoke(1, b"event");
    let mut client = env.client();
    client.get("invocation/next");
    assert_eq!(client.answer().body, b"event");
}

#[test]
fn a_function_that_floods_the_api_takes_nothing_from_its_runtime() {
    let (mut env, mut client) = Environment::parked();
    let mut flood = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(env.api).unwrap();
        // The server may have taken an earlier one's place away: that is the point.
        let _ = stream.write_all(b"POST /2018-06-01/runtime/init/error HTTP/1.1\r\nContent-Le");
        flood.push(stream);
    }
    env.resume(1);
    let request = env.invoke(1, b"event");
    assert_eq!(client.answer().body, b"event");
    assert_eq!(client.respond(&request, b"ok").status, 202);
    assert_eq!(env.message().1, b"ok");
}

#[test]
fn a_client_that_talks_on_while_it_waits_is_cut_off() {
    let (mut env, client) = Environment::parked();
    drop(client);
    let mut stream = TcpStream::connect(env.api).unwrap();
    stream
        .write_all(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n")
        .unwrap();
    let megabyte = vec![b'x'; 1024 * 1024];
    let cut_off = (0..64).any(|_| stream.write_all(&megabyte).is_err());
    assert!(cut_off);
    env.resume(1);
}

#[test]
fn pipelined_calls_are_answered_in_order() {
    let (mut env, mut client, request) = running(b"{}");
    client.send(
        format!(
            "POST /2018-06-01/runtime/invocation/{request}/response HTTP/1.1\r\n\
             Content-Length: 2\r\n\r\nokGET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n"
        )
        .as_bytes(),
    );
    assert_eq!(client.answer().status, 202);
    assert_eq!(env.message().1, b"ok");
    env.resume(2);
    env.invoke(2, b"second");
    assert_eq!(client.answer().body, b"second");
}
