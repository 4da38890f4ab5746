//! Extensions and telemetry in a microVM: an external extension from a layer, an internal one, and
//! what each is told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::agent::Agent;
use crate::harness::{code, said, shared, wait_for};

const OBSERVED: &str = "observed";

fn create(agent: &Agent) {
    if agent.function_names().iter().any(|name| name == OBSERVED) {
        return;
    }
    let (code, layer) = (code("observed/src"), code("observed/layer"));
    let layer = layer.to_str().unwrap();
    let more = ["--timeout", "60", "--layer", layer];
    let created = agent.create(OBSERVED, &code, &more);
    assert!(created.success, "{created:?}");
}

/// The objects that lines of a stream have after a word.
fn objects(said: &[(String, String)], stream: &str, word: &str) -> Vec<Value> {
    said.iter()
        .filter(|(from, _)| from == stream)
        .filter_map(|(_, text)| text.strip_prefix(word)?.strip_prefix(' '))
        .map(|json| serde_json::from_str(json).unwrap())
        .collect()
}

#[test]
fn extensions_hear_of_each_request_and_of_its_end_and_telemetry_tells_them_all_of_it() {
    let agent = shared();
    create(&agent);
    for word in ["one", "two"] {
        let answer = agent.invoke(OBSERVED, &json!({"word": word}));
        assert_eq!(answer.json(), word);
        // Known only when the reset is over: everything has been said by then.
        let record = agent.record(&answer);
        assert!(record["reset"].is_object(), "{record}");
        let id = answer.request_id();
        let said = said(&agent, id);

        let events = objects(&said, "extension", "EVENT");
        let kinds: Vec<_> = events.iter().map(|event| &event["eventType"]).collect();
        assert_eq!(kinds, ["INVOKE", "SHUTDOWN"], "{said:?}");
        let inner = objects(&said, "stdout", "INNER");
        assert_eq!(inner.len(), 1, "{said:?}");
        for event in [&events[0], &inner[0]] {
            assert_eq!(event["eventType"], "INVOKE");
            assert_eq!(event["requestId"], id);
            let arn = event["invokedFunctionArn"].as_str().unwrap();
            assert!(arn.ends_with(":function:observed"), "{arn}");
        }
        assert_eq!(events[1]["shutdownReason"], "spindown");

        let told = objects(&said, "extension", "TELEMETRY");
        let of = |kind: &str| -> Vec<&Value> {
            let of = told.iter().filter(|event| event["type"] == kind);
            of.map(|event| &event["record"]).collect()
        };
        for kind in ["platform.start", "platform.runtimeDone", "platform.report"] {
            let records = of(kind);
            assert_eq!(records.len(), 1, "{kind}: {told:?}");
            assert_eq!(records[0]["requestId"], id, "{kind}");
        }
        assert_eq!(of("platform.runtimeDone")[0]["status"], "success");
        let lines = of("function");
        assert!(
            lines.contains(&&json!(format!("handling {word}"))),
            "{lines:?}"
        );
        // Nothing of the initialisation, and nothing of another request.
        assert!(!lines.contains(&&json!("initialised")), "{lines:?}");
        let handled = |line: &&&Value| line.as_str().unwrap().starts_with("handling");
        assert_eq!(lines.iter().filter(handled).count(), 1, "{lines:?}");
    }
    // Subscribers were told of the initialisation before the snapshot.
    let told = objects(&said(&agent, "init observed"), "extension", "TELEMETRY");
    let kinds: Vec<_> = told
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect();
    let place = |kind: &str| kinds.iter().position(|of| *of == kind).unwrap();
    assert!(
        place("platform.initStart") < place("platform.initRuntimeDone"),
        "{kinds:?}"
    );
    assert!(
        place("platform.initRuntimeDone") < place("platform.initReport"),
        "{kinds:?}"
    );
    assert!(
        told.iter().any(|event| event["record"] == "initialised"),
        "{told:?}"
    );
}

#[test]
fn an_extension_that_crashes_or_gives_up_in_a_request_fails_it_in_lambdas_words() {
    let agent = shared();
    create(&agent);
    for (wish, error_type, words) in [
        ("crash", "Extension.Crash", "exit status 3"),
        ("fail", "Extension.ExitError", "Observer.Broken"),
    ] {
        let failed = agent.invoke(OBSERVED, &json!({"word": wish, "wish": wish}));
        assert_eq!(
            failed.header("x-amz-function-error"),
            "Unhandled",
            "{failed:?}"
        );
        let error = failed.json();
        assert_eq!(error["errorType"], error_type, "{error}");
        let message = format!("RequestId: {} Error: {words}", failed.request_id());
        assert_eq!(error["errorMessage"], message);
        // And the next one finds both extensions again.
        wait_for("the next request's answer", || {
            let answer = agent.invoke(OBSERVED, &json!({"word": "again"}));
            (answer.json() == "again").then_some(())
        });
    }
}

#[test]
fn an_extension_that_fails_in_the_initialisation_fails_the_creation_in_lambdas_words() {
    let agent = shared();
    let layer = code("observed/layer");
    for (does, error_type, words) in [
        ("fail", "Extension.InitError", "Observer.ConfigInvalid"),
        ("crash", "Extension.Crash", "exit status 7"),
    ] {
        let does = format!("EXTENSION_DOES={does}");
        let more = ["--layer", layer.to_str().unwrap(), "--env", &does];
        let refused = agent.create("fails", &code("observed/src"), &more);
        refused.refuses(error_type);
        refused.refuses(words);
    }
    assert!(!agent.function_names().iter().any(|name| name == "fails"));
}

/// A layer with so many extensions that do nothing.
fn layer_of(agent: &Agent, count: usize) -> PathBuf {
    let layer = agent.place().folder().join(format!("layer-of-{count}"));
    let folder = layer.join("extensions");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..count {
        let file = folder.join(format!("extension-{number:02}"));
        fs::copy(code("waiting-extension"), &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    layer
}

#[test]
fn ten_extensions_are_started_and_invoked_and_an_eleventh_is_refused() {
    let agent = shared();
    let app = "def handler(event, context):\n    return 'answered'\n";
    let app = agent.place().write_code("many", app);
    let create = |count: usize| {
        let layer = layer_of(&agent, count);
        let more = ["--memory", "256", "--timeout", "60", "--layer"];
        agent.create(
            "many",
            &app,
            &[&more[..], &[layer.to_str().unwrap()]].concat(),
        )
    };
    let refused = create(11);
    refused.refuses("Extension.LaunchError");
    refused.refuses("there are more than 10 extensions");

    let created = create(10);
    assert!(created.success, "{created:?}");
    let answer = agent.invoke("many", &json!({}));
    assert_eq!(answer.json(), "answered");
    assert!(agent.record(&answer)["reset"].is_object());
    let mut told: Vec<_> = said(&agent, answer.request_id())
        .into_iter()
        .filter(|(stream, _)| stream == "extension")
        .map(|(_, text)| text)
        .collect();
    told.sort();
    let expected = |n: usize| format!("extension-{n:02} {{\"eventType\":\"INVOKE\"");
    assert_eq!(told, (0..10).map(expected).collect::<Vec<_>>());
}
