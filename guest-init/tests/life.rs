//! A function's life as the agent sees it: start, ready, resume, request, end.

#![allow(missing_docs, reason = "the names of tests are sentences")]

mod support;

use std::time::Duration;

use snapback_guest_init::channel::ChannelError;
use snapback_guest_init::guest::GuestError;
use snapback_guest_init::runtime_api::state::{Event, State};
use snapback_proto::guest::{ExitStatus, Gather, GuestMessage, HostMessage, LogStream, ReadyPoint};
use support::{Environment, SHELL_CLIENT};

#[test]
fn a_runtime_speaking_the_real_api_serves_a_request() {
    let mut env = Environment::started(&format!(
        "{SHELL_CLIENT} echo starting; next; post \"invocation/$id/response\" \"<$body>\"; next"
    ));
    env.expect_ready(ReadyPoint::Next);
    assert_eq!(env.output_of(LogStream::Stdout), "starting\n");
    env.resume(5);
    let request = env.invoke(1, b"{\"a\": 1}");
    let (message, payload) = env.message();
    let content_type = "application/octet-stream".to_owned();
    assert_eq!(
        message,
        GuestMessage::Response {
            request,
            content_type,
            more: false
        }
    );
    assert_eq!(payload, b"<{\"a\": 1}>");
    assert!(matches!(
        env.stopped(),
        GuestError::Channel(ChannelError::Closed)
    ));
}

#[test]
fn entropy_and_clock_are_renewed_before_the_confirmation() {
    let (mut env, _client) = Environment::parked();
    assert_eq!(*env.renewals.lock().unwrap(), ["clock 1", "tmp 64"]);
    env.resume(9);
    assert_eq!(
        *env.renewals.lock().unwrap(),
        ["clock 1", "tmp 64", "reseed 7", "name host-9", "clock 1009"]
    );
}

#[test]
fn a_parked_guest_moves_its_pages_and_serves_a_request_as_before() {
    let (mut env, mut client) = Environment::parked();
    let (written, read) = (vec![9, 4, 5], vec![700]);
    env.send(&HostMessage::Gather(Gather { written, read }), b"");
    assert_eq!(env.message().0, GuestMessage::Gathered { moved: 2 });
    let asked = env.renewals.lock().unwrap().pop();
    assert_eq!(asked.as_deref(), Some("gather [9, 4, 5] [700]"));
    env.resume(1);
    let request = env.invoke(1, b"{}");
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.respond(&request, b"ok").status, 202);
    assert!(matches!(env.message().0, GuestMessage::Response { .. }));
}

#[test]
fn pages_are_not_moved_in_a_guest_that_was_resumed() {
    let (mut env, _client) = Environment::parked();
    env.resume(1);
    env.send(&HostMessage::Gather(Gather::default()), b"");
    let (event, state) = (Event::Gather, State::Armed);
    assert!(matches!(
        env.stopped(),
        GuestError::Unexpected { event: e, state: s } if (e, s) == (event, state)
    ));
}

#[test]
fn an_invocation_without_a_resume_ends_the_guest() {
    let (mut env, _client) = Environment::parked();
    env.invoke(1, b"{}");
    let (event, state) = (Event::Invoke, State::Parked);
    assert!(matches!(
        env.stopped(),
        GuestError::Unexpected { event: e, state: s } if (e, s) == (event, state)
    ));
}

#[test]
fn a_second_invocation_needs_a_resume_of_its_own() {
    let (mut env, mut client) = Environment::parked();
    for number in 1..4 {
        env.resume(u64::from(number));
        let request = env.invoke(number, b"{}");
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.respond(&request, b"ok").status, 202);
        assert!(matches!(env.message().0, GuestMessage::Response { .. }));
        client.get("invocation/next");
    }
    env.invoke(9, b"{}");
    assert!(matches!(env.stopped(), GuestError::Unexpected { .. }));
}

#[test]
fn all_output_written_before_the_answer_comes_before_it() {
    let mut env = Environment::started(&format!(
        "{SHELL_CLIENT} next
        for i in {{1..3000}}; do echo \"out $i\"; echo \"err $i\" >&2; done
        post \"invocation/$id/response\" done; next"
    ));
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    env.invoke(1, b"{}");
    assert!(matches!(env.message().0, GuestMessage::Response { .. }));
    let lines = |word: &str| {
        (1..=3000)
            .map(|i| format!("{word} {i}\n"))
            .collect::<String>()
    };
    assert_eq!(env.output_of(LogStream::Stdout), lines("out"));
    assert_eq!(env.output_of(LogStream::Stderr), lines("err"));
}

#[test]
fn output_that_the_channel_had_no_room_for_still_comes_before_the_answer() {
    // dd fills everything there is: the socket, the queue, and then the pipe, which
    // is not read any more; it says how much it wrote.
    let mut env = Environment::started(&format!(
        "{SHELL_CLIENT} next
        for i in {{1..60}}; do
            head -c 65536 /dev/zero | dd bs=4096 oflag=nonblock; sleep 0.005
        done
        post \"invocation/$id/response\" done; next"
    ));
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    env.invoke(1, b"{}");
    // Nobody reads the channel meanwhile.
    std::thread::sleep(Duration::from_secs(2));
    assert!(matches!(env.message().0, GuestMessage::Response { .. }));
    let reports = env.output_of(LogStream::Stderr);
    let counts = reports.lines().filter(|line| line.contains(" bytes"));
    let counts = counts.map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap());
    let written: usize = counts.sum();
    assert!(written > 1024 * 1024, "{reports}");
    assert_eq!(env.output_of(LogStream::Stdout).len(), written);
}

#[test]
fn a_parked_function_says_nothing_until_it_is_resumed() {
    let mut env = Environment::started(&format!(
        "{SHELL_CLIENT} (sleep 0.1; echo from behind; head -c 300000 /dev/zero) & next; next"
    ));
    env.expect_ready(ReadyPoint::Next);
    env.expect_silence();
    env.expect_silence();
    env.resume(1);
    while env.output_of(LogStream::Stdout).len() < 300_012 {
        env.next_output();
    }
    assert!(
        env.output_of(LogStream::Stdout)
            .starts_with("from behind\n")
    );
}

#[test]
fn the_runtime_gets_lambdas_environment_and_nothing_else() {
    let mut env = Environment::started("env; pwd; ls /proc/self/fd; exit 0");
    assert!(matches!(env.message().0, GuestMessage::InitFailed { .. }));
    let output = env.output_of(LogStream::Stdout);
    let api = format!("AWS_LAMBDA_RUNTIME_API={}", env.api);
    for line in [
        api.as_str(),
        "_HANDLER=app.handler",
        "STAGE=test",
        "TZ=:UTC",
        "0",
        "1",
        "2",
    ] {
        assert!(
            output.lines().any(|l| l == line),
            "{line} is missing in {output}"
        );
    }
    assert!(
        !output.contains("CARGO") && !output.contains("HOME="),
        "{output}"
    );
    assert!(
        !output.lines().any(|l| l == "4"),
        "a descriptor leaked: {output}"
    );
}

#[test]
fn a_runtime_that_exits_before_it_is_ready_has_failed_to_start() {
    for (script, reason) in [
        ("echo oops >&2; exit 3", "exit status 3"),
        ("kill -9 $$", "signal: killed"),
        ("exit 0", "without providing a reason"),
    ] {
        let mut env = Environment::started(script);
        let (message, json) = env.message();
        let error_type = "Runtime.ExitError".to_owned();
        assert_eq!(message, GuestMessage::InitFailed { error_type });
        let json = String::from_utf8(json).unwrap();
        assert!(
            json.contains(reason) && json.contains("\"Runtime.ExitError\""),
            "{json}"
        );
        if script.starts_with("echo") {
            assert_eq!(env.output_of(LogStream::Stderr), "oops\n");
        }
    }
}

#[test]
fn a_function_without_a_bootstrap_has_an_invalid_entrypoint() {
    for (bootstrap, reason) in [
        (None, "/nonexistent/bootstrap"),
        (Some("#!/nonexistent/interpreter\n"), "No such file"),
        (Some("neither a script nor a program"), "Exec format error"),
    ] {
        let mut env = Environment::new(bootstrap);
        env.init();
        let (message, json) = env.message();
        let error_type = "Runtime.InvalidEntrypoint".to_owned();
        assert_eq!(message, GuestMessage::InitFailed { error_type });
        let json = String::from_utf8(json).unwrap();
        assert!(json.contains(reason), "{json}");
    }
}

#[test]
fn a_runtime_that_exits_with_a_request_fails_it() {
    let mut env = Environment::started(&format!("{SHELL_CLIENT} next; echo dying; exit 7"));
    env.expect_ready(ReadyPoint::Next);
    env.resume(1);
    let request = env.invoke(1, b"{}");
    let (message, json) = env.message();
    let status = ExitStatus::Code(7);
    let id = request.to_string();
    let ended = |request| GuestMessage::RuntimeExited {
        request,
        status,
        out_of_memory: false,
        more: false,
    };
    assert_eq!(message, ended(request));
    assert!(
        String::from_utf8(json)
            .unwrap()
            .contains(&format!("RequestId: {id} Error: "))
    );
    assert_eq!(env.output_of(LogStream::Stdout), "dying\n");
    // And the next one, at once.
    env.resume(2);
    let request = env.invoke(2, b"{}");
    assert_eq!(env.message().0, ended(request));
}

#[test]
fn a_runtime_that_answers_and_exits_has_answered() {
    for _ in 0..10 {
        let mut env = Environment::started(&format!(
            "{SHELL_CLIENT} next
            printf 'POST %s/invocation/%s/response HTTP/1.1\\r\\nContent-Length: 2\\r\\n\\r\\nok' \
                $base $id >&3; exit 1"
        ));
        env.expect_ready(ReadyPoint::Next);
        env.resume(1);
        env.invoke(1, b"{}");
        let (message, payload) = env.message();
        assert!(
            matches!(message, GuestMessage::Response { .. }),
            "{message:?}"
        );
        assert_eq!(payload, b"ok");
        env.expect_silence();
    }
}
