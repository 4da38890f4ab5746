//! Extensions and their telemetry: external ones as processes, and the tests
//! themselves as what those processes would say.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]
#![allow(missing_docs, reason = "the names of tests are sentences")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use snapback_proto::guest::{GuestMessage, LogStream, ReadyPoint};
use snapback_proto::ids::RequestId;
use support::{Answer, Client, Environment, SHELL_CLIENT};

const WAITS: &str = "exec sleep 30";
const BOTH: &str = r#"{"events": ["INVOKE", "SHUTDOWN"]}"#;
const INVOKE: &str = r#"{"events": ["INVOKE"]}"#;

/// An extension, spoken for by the test.
struct Extension {
    client: Client,
    id: String,
}

impl Extension {
    fn register(env: &Environment, name: &str, events: &str) -> Self {
        let mut client = env.client();
        let answer = register(&mut client, name, events);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["functionName"], "report");
        assert_eq!(answer.json()["handler"], "app.handler");
        let id = answer
            .header("Lambda-Extension-Identifier")
            .unwrap()
            .to_owned();
        Self { client, id }
    }

    fn header(&self) -> String {
        format!("Lambda-Extension-Identifier: {}\r\n", self.id)
    }

    fn next(&mut self) {
        let header = self.header();
        self.client
            .ask("GET /2020-01-01/extension/event/next", &header, "");
    }

    fn event(&mut self) -> Value {
        let answer = self.client.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.header("Lambda-Extension-Event-Identifier").is_some());
        answer.json()
    }

    fn fails(&mut self, call: &str) -> Answer {
        let header = self.header() + "Lambda-Extension-Function-Error-Type: Ext.Broken\r\n";
        let call = format!("POST /2020-01-01/extension/{call}/error");
        self.client.call(&call, &header, "{}")
    }

    fn subscribe(&mut self, subscription: &Value) -> Answer {
        let header = self.header();
        let body = subscription.to_string();
        self.client
            .call("PUT /2022-07-01/telemetry", &header, &body)
    }
}

fn register(client: &mut Client, name: &str, events: &str) -> Answer {
    let header = format!("Lambda-Extension-Name: {name}\r\n");
    client.call("POST /2020-01-01/extension/register", &header, events)
}

/// An environment with external extensions of these names, and the runtime that the
/// test speaks for.
fn with(names: &[&str]) -> Environment {
    let scripts: Vec<_> = names.iter().map(|name| (*name, WAITS)).collect();
    let bootstrap = format!("#!/bin/bash\necho runtime >&2; {WAITS}\n");
    let mut env = Environment::with_extensions(Some(&bootstrap), &scripts);
    env.init();
    env
}

fn finished(request: &RequestId) -> GuestMessage {
    GuestMessage::Finished {
        request: request.clone(),
    }
}

#[test]
fn the_runtime_starts_when_all_extensions_have_registered_and_all_wait_before_ready() {
    let mut env = with(&["one", "two"]);
    let mut one = Extension::register(&env, "one", BOTH);
    env.expect_silence();
    let mut two = Extension::register(&env, "two", INVOKE);
    env.next_output();
    assert_eq!(env.output_of(LogStream::Stderr), "runtime\n");
    let mut runtime = env.client();
    one.next();
    runtime.get("invocation/next");
    env.expect_silence();
    two.next();
    env.expect_ready(ReadyPoint::Next);
}

#[test]
fn a_request_is_over_when_all_have_asked_for_the_next_and_shutdown_comes_after_it() {
    let mut env = with(&["ext"]);
    let mut ext = Extension::register(&env, "ext", BOTH);
    let mut internal = Extension::register(&env, "inner", INVOKE);
    let mut runtime = env.client();
    ext.next();
    internal.next();
    runtime.get("invocation/next");
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert_eq!(runtime.answer().status, 200);
    for event in [ext.event(), internal.event()] {
        assert_eq!(event["eventType"], "INVOKE");
        assert_eq!(event["requestId"], request.as_str());
        assert_eq!(event["deadlineMs"], 1_700_000_000_123_u64);
        let arn = "arn:aws:lambda:local:0:function:report";
        assert_eq!(event["invokedFunctionArn"], arn);
        assert_eq!(event["tracing"]["value"], "Root=1-2-3");
    }
    // The caller has the answer while the extensions still work.
    runtime.respond(&request, b"answer");
    let (message, payload) = env.message();
    assert!(matches!(message, GuestMessage::Response { more: true, .. }));
    assert_eq!(payload, b"answer");
    internal.next();
    runtime.get("invocation/next");
    env.expect_silence();
    ext.next();
    let event = ext.event();
    assert_eq!(event["eventType"], "SHUTDOWN");
    assert_eq!(event["shutdownReason"], "spindown");
    env.expect_silence();
    // Its last word.
    ext.next();
    assert_eq!(env.message().0, finished(&request));
}

#[test]
fn an_extension_that_does_not_end_holds_nothing_up_for_long() {
    let mut env = with(&["ext"]);
    let mut ext = Extension::register(&env, "ext", BOTH);
    let mut runtime = env.client();
    ext.next();
    runtime.get("invocation/next");
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    let request = env.invoke(1, b"{}");
    runtime.answer();
    ext.event();
    runtime.respond(&request, b"answer");
    env.message();
    runtime.get("invocation/next");
    ext.next();
    assert_eq!(ext.event()["eventType"], "SHUTDOWN");
    assert_eq!(env.message().0, finished(&request));
}

#[test]
fn a_real_extension_process_lives_through_a_request() {
    let extension = format!(
        r#"{SHELL_CLIENT}
        ask() {{ printf '%s HTTP/1.1\r\nLambda-Extension-Name: real.sh\r\n%sContent-Length: %d\r\n\r\n%s' "$1" "$2" "${{#3}}" "$3" >&3; }}
        ask 'POST /2020-01-01/extension/register' '' '{BOTH}'
        length=0; while IFS= read -r line <&3 && [ -n "${{line%$'\r'}}" ]; do line=${{line%$'\r'}}
          case "$line" in Content-Length:*) length=${{line#*: }};; Lambda-Extension-Identifier:*) id=${{line#*: }};; esac
        done; IFS= read -r -N "$length" body <&3
        while :; do
          ask 'GET /2020-01-01/extension/event/next' "Lambda-Extension-Identifier: $id"$'\r\n' ''
          own=$id; answer; id=$own
          echo "got ${{body:0:22}}"
          case "$body" in *SHUTDOWN*) echo bye; exit 0;; esac
        done"#
    );
    let mut env = Environment::with_extensions(
        Some(&format!(
            "#!/bin/bash\n{SHELL_CLIENT} next; post \"invocation/$id/response\" ok; next\n"
        )),
        &[("real.sh", &extension)],
    );
    env.init();
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert!(matches!(
        env.message().0,
        GuestMessage::Response { more: true, .. }
    ));
    assert_eq!(env.message().0, finished(&request));
    let output = env.output_of(LogStream::Extension);
    let said: Vec<_> = output.lines().collect();
    assert_eq!(
        said,
        [
            "got {\"eventType\":\"INVOKE\",",
            "got {\"eventType\":\"SHUTDOWN",
            "bye"
        ]
    );
}

#[test]
fn an_extension_that_fails_during_the_initialisation_fails_it() {
    for (case, error_type) in [
        ("init", "Extension.InitError"),
        ("exit", "Extension.ExitError"),
    ] {
        let mut env = with(&["ext"]);
        let mut ext = Extension::register(&env, "ext", BOTH);
        assert_eq!(ext.fails(case).status, 202);
        let (message, json) = env.message();
        let error_type = error_type.to_owned();
        assert_eq!(message, GuestMessage::InitFailed { error_type });
        assert!(String::from_utf8(json).unwrap().contains("Ext.Broken"));
    }
    for script in ["exit 3", "kill -9 $$"] {
        let mut env = Environment::with_extensions(Some("#!/bin/bash\n"), &[("ext", script)]);
        env.init();
        let error_type = "Extension.Crash".to_owned();
        assert_eq!(env.message().0, GuestMessage::InitFailed { error_type });
    }
    let mut env = Environment::with_extensions(Some("#!/bin/bash\n"), &[]);
    std::fs::write(env.extensions().join("no-program"), "neither").unwrap();
    make_executable(&env.extensions().join("no-program"));
    env.init();
    let error_type = "Extension.LaunchError".to_owned();
    assert_eq!(env.message().0, GuestMessage::InitFailed { error_type });
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_extension_that_crashes_during_a_request_fails_it() {
    let mut env = with(&["ext"]);
    let mut ext = Extension::register(&env, "ext", BOTH);
    let mut runtime = env.client();
    ext.next();
    runtime.get("invocation/next");
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    let request = env.invoke(1, b"{}");
    runtime.answer();
    ext.event();
    assert_eq!(ext.fails("exit").status, 202);
    let failed = env.message().0;
    let error_type = Some("Extension.ExitError".to_owned());
    assert!(
        matches!(&failed, GuestMessage::Failed { request: r, error_type: t, .. }
            if *r == request && *t == error_type),
        "{failed:?}"
    );
}

#[test]
fn strangers_latecomers_and_nonsense_are_refused() {
    let mut env = with(&["ext"]);
    let mut client = env.client();
    let outcome = |answer: Answer| (answer.status, answer.error_type());
    let next = "GET /2020-01-01/extension/event/next";
    let missing = (403, "Extension.MissingExtensionIdentifier".to_owned());
    assert_eq!(outcome(client.call(next, "", "")), missing);
    let unknown = (403, "Extension.UnknownExtensionIdentifier".to_owned());
    let header = "Lambda-Extension-Identifier: x\r\n";
    assert_eq!(outcome(client.call(next, header, "")), unknown);
    let invalid = (400, "InvalidRequestFormat".to_owned());
    assert_eq!(outcome(register(&mut client, "ext", "{")), invalid);
    let event = (403, "Extension.InvalidEventType".to_owned());
    assert_eq!(
        outcome(register(&mut client, "ext", r#"{"events": ["X"]}"#)),
        event
    );
    let internal = (
        403,
        "ShutdownEventNotSupportedForInternalExtension".to_owned(),
    );
    assert_eq!(outcome(register(&mut client, "inner", BOTH)), internal);

    let mut ext = Extension::register(&env, "ext", BOTH);
    let again = (403, "Extension.InvalidExtensionState".to_owned());
    assert_eq!(outcome(register(&mut client, "ext", BOTH)), again);
    ext.next();
    let mut runtime = env.client();
    runtime.get("invocation/next");
    env.expect_ready(ReadyPoint::Next);
    let closed = (403, "Extension.RegistrationClosed".to_owned());
    assert_eq!(outcome(register(&mut client, "late", INVOKE)), closed);
    let logs = client.call("PUT /2020-08-15/logs", header, "{}");
    assert_eq!(outcome(logs), (202, "Logs.NotSupported".to_owned()));
}

/// An HTTP server that keeps the batches it is sent.
fn collector() -> (u16, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, batches) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.strip_prefix("Content-Length: ") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.get_mut().write_all(answer).unwrap();
            if sender.send(serde_json::from_slice(&body).unwrap()).is_err() {
                return;
            }
        }
    });
    (port, batches)
}

fn subscription(port: u16) -> Value {
    json!({
        "schemaVersion": "2022-12-13",
        "types": ["platform", "function", "extension"],
        "buffering": {"timeoutMs": 25, "maxBytes": 262_144, "maxItems": 1000},
        "destination": {"protocol": "HTTP", "URI": format!("http://sandbox.localdomain:{port}/t")},
    })
}

/// The types of events, in order, until the one that is asked for.
fn types_until(batches: &mpsc::Receiver<Value>, last: &str) -> Vec<(String, Value)> {
    let mut types = Vec::new();
    loop {
        let batch = batches.recv_timeout(Duration::from_secs(20)).unwrap();
        for event in batch.as_array().unwrap() {
            let kind = event["type"].as_str().unwrap().to_owned();
            types.push((kind, event["record"].clone()));
        }
        if types.iter().any(|(kind, _)| kind == last) {
            return types;
        }
    }
}

#[test]
fn telemetry_tells_what_happens_in_order_and_all_of_it_before_the_end() {
    let mut env = Environment::with_extensions(
        Some(&format!(
            "#!/bin/bash\n{SHELL_CLIENT} echo init line; next
            echo one; echo two >&2; post \"invocation/$id/response\" ok; next\n"
        )),
        &[("ext", WAITS)],
    );
    env.init();
    let mut ext = Extension::register(&env, "ext", BOTH);
    let (port, batches) = collector();
    assert_eq!(ext.subscribe(&subscription(port)).status, 200);
    ext.next();
    env.expect_ready(ReadyPoint::Next);
    let init = types_until(&batches, "platform.initReport");
    let kinds: Vec<_> = init.iter().map(|(kind, _)| kind.as_str()).collect();
    let starts = kinds.iter().position(|k| *k == "platform.initStart");
    let done = kinds.iter().position(|k| *k == "platform.initRuntimeDone");
    assert!(starts.is_some() && starts < done, "{kinds:?}");
    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert!(matches!(
        env.message().0,
        GuestMessage::Response { more: true, .. }
    ));
    assert_eq!(ext.event()["eventType"], "INVOKE");
    ext.next();
    assert_eq!(ext.event()["eventType"], "SHUTDOWN");
    // The report has arrived before the extension is told to go.
    let told = types_until(&batches, "platform.report");
    ext.next();
    assert_eq!(env.message().0, finished(&request));
    let all: Vec<_> = init.iter().chain(&told).collect();
    let lines: Vec<_> = all.iter().filter(|(kind, _)| kind == "function").collect();
    for line in ["init line", "one", "two"] {
        assert!(
            lines.iter().any(|(_, record)| record == line),
            "{line}: {all:?}"
        );
    }
    let order: Vec<_> = told
        .iter()
        .map(|(kind, _)| kind.as_str())
        .filter(|kind| kind.starts_with("platform."))
        .collect();
    assert_eq!(
        order,
        ["platform.start", "platform.runtimeDone", "platform.report"]
    );
    let (_, report) = told.last().unwrap();
    assert_eq!(report["requestId"], request.as_str());
    assert_eq!(report["status"], "success");
    assert!(report["metrics"]["durationMs"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_subscriber_that_takes_nothing_is_told_what_it_missed() {
    let mut env = with(&["ext"]);
    let mut ext = Extension::register(&env, "ext", BOTH);
    // It listens and never accepts until later.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    assert_eq!(ext.subscribe(&subscription(port)).status, 200);
    let mut runtime = env.client();
    ext.next();
    runtime.get("invocation/next");
    // Nobody listens: that delays the ready point, and no more.
    env.expect_ready(ReadyPoint::Next);
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    env.resume(1);
    let request = env.invoke(1, b"{}");
    runtime.answer();
    ext.event();
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("platform.logsDropped"), "{text}");
    drop(listener);
    runtime.respond(&request, b"x");
    env.message();
}

#[test]
fn subscriptions_outside_the_rules_are_refused() {
    let env = with(&["ext"]);
    let mut ext = Extension::register(&env, "ext", BOTH);
    let mut wrong = subscription(8080);
    wrong["buffering"]["maxItems"] = 1.into();
    let answer = ext.subscribe(&wrong);
    assert_eq!(
        (answer.status, answer.error_type().as_str()),
        (400, "ValidationError")
    );
    let own = subscription(env.api.port());
    assert_eq!(ext.subscribe(&own).status, 400);
    let mut client = env.client();
    assert_eq!(
        client.call("PUT /2022-07-01/telemetry", "", "{}").status,
        403
    );
}
