//! Answers that come in pieces: to those who ask for pieces, while they are produced; to
//! everybody else as one.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::{LIMIT, shared};

const STREAMS: &str = "streams";

fn create(agent: &Agent) {
    if agent.function_names().iter().any(|name| name == STREAMS) {
        return;
    }
    let code = crate::harness::code("streams");
    let created = agent.create(STREAMS, &code, &["--timeout", "60"]);
    assert!(created.success, "{created:?}");
}

/// A streamed answer, read event by event as any client would.
struct Events {
    stream: BufReader<UnixStream>,
    head: String,
    /// Left of the chunk that the stream is in.
    left: usize,
}

/// Headers and payload of an event.
type Event = (Vec<(String, String)>, Vec<u8>);

impl Events {
    fn of(agent: &Agent, event: &Value, headers: &str) -> Self {
        let mut stream = UnixStream::connect(agent.place().socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let body = event.to_string();
        let length = body.len();
        let request = format!(
            "POST /2021-11-15/functions/{STREAMS}/response-streaming-invocations HTTP/1.1\r\n\
             host: localhost\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
        }
        Self {
            stream,
            head: head.to_ascii_lowercase(),
            left: 0,
        }
    }

    /// Bytes of the body, out of their HTTP chunks.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            if self.left == 0 {
                let mut line = String::new();
                self.stream.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    line.clear();
                    self.stream.read_line(&mut line).unwrap();
                }
                self.left = usize::from_str_radix(line.trim(), 16).unwrap();
                assert!(self.left > 0, "the stream ended in an event");
            }
            let mut part = vec![0; self.left.min(count - bytes.len())];
            self.stream.read_exact(&mut part).unwrap();
            self.left -= part.len();
            bytes.extend(part);
        }
        bytes
    }

    /// The next event: total length, headers' length, a checksum; headers; payload; a checksum.
    fn next(&mut self) -> Event {
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()) as usize;
        let prelude = self.bytes(12);
        let (total, headers_len) = (number(&prelude[..4]), number(&prelude[4..8]));
        let rest = self.bytes(total - 12);
        let (mut headers, payload) = rest.split_at(headers_len);
        let mut found = Vec::new();
        while let Some((&name_len, after)) = headers.split_first() {
            let (name, after) = after.split_at(name_len.into());
            assert_eq!(after[0], 7, "a header that is no text");
            let length = u16::from_be_bytes([after[1], after[2]]);
            let (value, after) = after[3..].split_at(length.into());
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            found.push((text(name), text(value)));
            headers = after;
        }
        (found, payload[..payload.len() - 4].to_vec())
    }

    /// The rest: all bytes of the answer, and the last event.
    fn finish(mut self) -> (Vec<u8>, Value) {
        let mut answer = Vec::new();
        loop {
            let (headers, payload) = self.next();
            match kind(&headers) {
                "PayloadChunk" => answer.extend(payload),
                "InvokeComplete" => {
                    return (answer, serde_json::from_slice(&payload).unwrap());
                }
                other => panic!("{other}"),
            }
        }
    }
}

fn kind(headers: &[(String, String)]) -> &str {
    let header = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str()).unwrap()
    };
    assert_eq!(header(":message-type"), "event");
    header(":event-type")
}

#[test]
fn pieces_arrive_while_the_function_makes_them() {
    let agent = shared();
    create(&agent);
    let event = json!({"pieces": 4, "pause": 1.0, "type": "text/x-pieces"});
    let start = Instant::now();
    let mut events = Events::of(&agent, &event, "");
    assert!(events.head.starts_with("http/1.1 200"), "{}", events.head);
    for line in [
        "content-type: application/vnd.amazon.eventstream",
        "x-amzn-remapped-content-type: text/x-pieces",
        "x-amz-executed-version: $latest",
    ] {
        assert!(events.head.contains(line), "{}", events.head);
    }
    let (_, first) = events.next();
    assert_eq!(first, b"0:......");
    // The function still has to sleep before each of the others: it is running now.
    assert_eq!(agent.environments().busy, 1);
    let (rest, end) = events.finish();
    assert_eq!(rest, b"1:......2:......3:......");
    assert_eq!(end, json!({}));
    assert!(start.elapsed().as_secs() >= 4);
}

#[test]
fn a_plain_invoke_collects_the_pieces() {
    let agent = shared();
    create(&agent);
    let answer = agent.invoke(STREAMS, &json!({"pieces": 100, "size": 30_000}));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/plain");
    assert_eq!(answer.body.len(), 3_000_000);
    let too_much = agent.invoke(STREAMS, &json!({"pieces": 100, "size": 70_000}));
    assert_eq!(too_much.header("x-amz-function-error"), "Unhandled");
    assert_eq!(
        too_much.json()["errorType"],
        "Function.ResponseSizeTooLarge"
    );
    // That was in the middle of a request, and nothing of it is left.
    let answer = agent.invoke(STREAMS, &json!({"pieces": 1}));
    assert_eq!(answer.body, b"0:......");
}

#[test]
fn a_whole_answer_and_a_failure_come_as_events_too() {
    let agent = shared();
    create(&agent);
    let tail = "x-amz-log-type: Tail\r\n";
    let (answer, end) = Events::of(&agent, &json!({"a": 1}), tail).finish();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer, json!({"whole": {"a": 1}}));
    let log = end["LogResult"].as_str().unwrap();
    let log = base64::engine::general_purpose::STANDARD
        .decode(log)
        .unwrap();
    let log = String::from_utf8(log).unwrap();
    assert!(
        log.contains("START RequestId: ") && log.contains("REPORT RequestId: "),
        "{log}"
    );

    let error = json!({"errorType": "Mine", "errorMessage": "half way"});
    let event = json!({"pieces": 2, "error": error});
    let (answer, end) = Events::of(&agent, &event, "").finish();
    assert_eq!(answer, b"0:......1:......");
    assert_eq!(end["ErrorCode"], "Unhandled");
    let details: Value = serde_json::from_str(end["ErrorDetails"].as_str().unwrap()).unwrap();
    assert_eq!(details, error);

    // The process dies in the middle.
    let (answer, end) = Events::of(&agent, &json!({"pieces": 2, "break": true}), "").finish();
    assert_eq!(answer, b"0:......1:......");
    let details = end["ErrorDetails"].as_str().unwrap();
    assert!(details.contains("Runtime.TruncatedResponse"), "{details}");
}

#[test]
fn a_caller_who_reads_slowly_slows_the_function_and_one_who_leaves_does_not_stop_it() {
    let agent = shared();
    create(&agent);
    // More than everything on the way holds.
    let event = json!({"pieces": 300, "size": 65_536});
    let mut events = Events::of(&agent, &event, "");
    let (_, first) = events.next();
    assert!(first.starts_with(b"0:"));
    std::thread::sleep(std::time::Duration::from_secs(3));
    // It could have been done long ago, if anybody had taken it.
    assert_eq!(agent.environments().busy, 1);
    let (rest, end) = events.finish();
    assert_eq!(first.len() + rest.len(), 300 * 65_536);
    assert_eq!(end, json!({}));

    drop(Events::of(&agent, &json!({"pieces": 3, "pause": 0.5}), ""));
    let agent = {
        drop(agent);
        shared()
    };
    let answer = agent.invoke(STREAMS, &json!({"pieces": 1}));
    assert_eq!(answer.body, b"0:......");
}

#[test]
fn what_cannot_run_has_a_status_and_no_stream() {
    let agent = shared();
    let path = "/2021-11-15/functions/nobody/response-streaming-invocations";
    let missing = agent.http("POST", path, &[], b"{}");
    assert_eq!(missing.status, 404);
    assert_eq!(
        missing.header("x-amzn-errortype"),
        "ResourceNotFoundException"
    );
    let path = path.replace("nobody", crate::harness::TOUR);
    let kind = |kind| [("x-amz-invocation-type", kind)];
    assert_eq!(agent.http("POST", &path, &kind("Event"), b"{}").status, 400);
    assert_eq!(
        agent.http("POST", &path, &kind("DryRun"), b"{}").status,
        204
    );
}
