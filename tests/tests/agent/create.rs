//! Functions come, are told, and go; what cannot become one is refused and leaves nothing.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{TOUR, own_place, shared, tour_code};

const ECHO: &str = "def handler(event, context):\n    return [\"mine\", event]\n";

#[test]
fn a_function_is_created_told_invoked_and_deleted_over_http() {
    let agent = shared();
    let code = agent.upload(&agent.place().write_code("over-http", ECHO));
    let created = agent.create_over_http("over-http", &code);
    assert_eq!(created.status, 201, "{created:?}");
    let function = agent.function("over-http");
    assert_eq!(created.json()["snapshot"], function["snapshot"]);
    assert_eq!(function["code"], code);
    // Lambda's defaults.
    assert_eq!(
        (&function["memory_mb"], &function["timeout_s"]),
        (&json!(128), &json!(3))
    );
    for step in ["boot_ns", "init_ns", "snapshot_ns"] {
        assert!(function["build"][step].as_u64().unwrap() > 0, "{function}");
    }
    assert!(agent.function_names().contains(&"over-http".to_owned()));
    assert_eq!(
        agent.call("over-http", &json!({"a": 1})),
        json!(["mine", {"a": 1}])
    );

    // A name is given once.
    let again = agent.create_over_http("over-http", &code);
    assert_eq!(again.status, 409);
    assert_eq!(
        again.header("x-amzn-errortype"),
        "ResourceConflictException"
    );

    let snapshot = function["snapshot"].as_str().unwrap().to_owned();
    let image = format!("{}.erofs", code.as_str().unwrap());
    assert!(agent.place().entries("snapshots").contains(&snapshot));
    assert!(agent.place().entries("images").contains(&image));
    let delete = || {
        agent
            .http("DELETE", "/v1/functions/over-http", &[], b"")
            .status
    };
    assert_eq!(delete(), 204);
    assert_eq!(agent.get("/v1/functions/over-http").status, 404);
    assert_eq!(agent.invoke("over-http", &json!({})).status, 404);
    assert_eq!(delete(), 404);
    assert!(!agent.place().entries("snapshots").contains(&snapshot));
    assert!(!agent.place().entries("images").contains(&image));
}

#[test]
fn the_command_line_creates_lists_invokes_and_deletes() {
    let agent = shared();
    let code =
        "import os\n\ndef handler(event, context):\n    return [os.environ[\"GREETING\"], event]\n";
    let code = agent.place().write_code("by-hand", code);
    let more = [
        "--env",
        "GREETING=dobrý den",
        "--memory",
        "96",
        "--timeout",
        "7",
    ];
    let created = agent.create("by-hand", &code, &more);
    assert!(created.success, "{created:?}");
    assert!(
        created.stdout.starts_with("by-hand is ready (boot "),
        "{created:?}"
    );

    let listed = agent.cli(&["function", "list"]);
    let line = listed
        .stdout
        .lines()
        .find(|line| line.starts_with("by-hand "))
        .unwrap();
    for word in ["python3.11", "app.handler", "96 MiB", "7 s"] {
        assert!(line.contains(word), "{line}");
    }
    let all = agent.cli(&["function", "list", "--json"]).json();
    let functions = all["functions"].as_array().unwrap();
    let own = functions
        .iter()
        .find(|function| function["name"] == "by-hand")
        .unwrap();
    assert_eq!(own["environment"], json!({"GREETING": "dobrý den"}));

    let event = agent.place().folder().join("event.json");
    let record = agent.place().folder().join("record.json");
    fs::write(&event, r#"{"číslo": 1}"#).unwrap();
    let run = agent.cli(&[
        "invoke",
        "by-hand",
        "--payload",
        event.to_str().unwrap(),
        "--record",
        record.to_str().unwrap(),
    ]);
    assert!(run.success, "{run:?}");
    assert_eq!(run.json(), json!(["dobrý den", {"číslo": 1}]));
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["function"], "by-hand");
    assert!(record["reset"]["pages"].as_u64().unwrap() > 0, "{record}");

    agent
        .create("by-hand", &code, &[])
        .refuses("ResourceConflictException");
    assert!(agent.cli(&["function", "delete", "by-hand"]).success);
    agent
        .cli(&["function", "delete", "by-hand"])
        .refuses("ResourceNotFoundException");
    agent
        .cli_invoke("by-hand", b"{}")
        .refuses("ResourceNotFoundException");
}

#[test]
fn a_function_that_fails_to_initialise_is_not_registered_and_says_why_in_lambdas_words() {
    let agent = shared();
    let place = agent.place();
    let before = (place.entries("snapshots"), agent.function_names());
    let missing = "import a_module_that_is_not_there\n\ndef handler(event, context):\n    pass\n";
    let code = agent.upload(&place.write_code("missing", missing));
    let refused = agent.create_over_http("f", &code);
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.header("x-amz-function-error"), "Unhandled");
    assert_eq!(
        refused.header("x-amzn-errortype"),
        "Runtime.ImportModuleError"
    );
    let error = refused.json();
    assert_eq!(error["errorType"], "Runtime.ImportModuleError");
    let message = "Unable to import module 'app': No module named 'a_module_that_is_not_there'";
    assert_eq!(error["errorMessage"], message);

    let code = place.write_code("exits", "import os\n\nos._exit(7)\n");
    agent
        .create("f", &code, &[])
        .refuses("Runtime exited with error: exit status 7");

    assert_eq!((place.entries("snapshots"), agent.function_names()), before);
    assert_eq!(agent.invoke("f", &json!({})).status, 404);
    place.wait_for_no_draft();
}

#[test]
fn a_function_that_never_gets_ready_fails_to_initialise() {
    let (place, _turn) = own_place();
    let code = place.write_code("sleeper", "import time\n\ntime.sleep(600)\n");
    let agent = place.start("[timeouts]\ninit_ms = 2000\n");
    let code = agent.upload(&code);
    let refused = agent.create_over_http("f", &code);
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(refused.header("x-amzn-errortype"), "Sandbox.Timedout");
    // The function's own timeout is three seconds, and longer.
    let message = "Error: Task timed out after 3.00 seconds";
    assert_eq!(refused.json()["errorMessage"], message);
    agent.place().wait_for_no_draft();
}

#[test]
fn code_that_is_not_there_or_has_no_files_is_refused() {
    let agent = shared();
    let empty = agent.place().folder().join("empty");
    fs::create_dir(&empty).unwrap();
    agent.create("f", &empty, &[]).refuses("it has no files");
    agent
        .create("f", &empty.join("missing"), &[])
        .refuses("there is nothing at");
    let file = empty.join("app.py");
    fs::write(&file, ECHO).unwrap();
    agent
        .create("f", &file, &[])
        .refuses("it is neither a zip nor a tar archive");
    let garbage = agent.http("POST", "/v1/code", &[], b"this is no tar archive at all");
    assert_eq!(garbage.status, 400, "{garbage:?}");
    let unknown = agent.create_over_http("f", &json!("0".repeat(64)));
    assert_eq!(unknown.status, 400);
    assert!(
        unknown.json()["message"]
            .as_str()
            .unwrap()
            .contains("upload the code first")
    );
    agent.place().wait_for_no_draft();
}

#[test]
fn a_description_that_cannot_work_is_refused_before_anything_boots() {
    let agent = shared();
    let code = agent.function(TOUR)["code"].clone();
    let create = |change: &dyn Fn(&mut Value)| {
        let mut description = json!({
            "name": "f", "runtime": "python3.11", "handler": "app.handler", "code": code,
        });
        change(&mut description);
        let body = description.to_string();
        let response = agent.http("POST", "/v1/functions", &[], body.as_bytes());
        assert_eq!(response.status, 400, "{body}: {response:?}");
        assert_eq!(
            response.header("x-amzn-errortype"),
            "InvalidParameterValueException"
        );
    };
    create(&|f| f["runtime"] = json!("cobol"));
    create(&|f| f["name"] = json!("../f"));
    create(&|f| f["handler"] = json!(""));
    create(&|f| f["memory_mb"] = json!(1));
    create(&|f| f["timeout_s"] = json!(901));
    create(&|f| f["environment"] = json!({"AWS_LAMBDA_RUNTIME_API": "elsewhere"}));
    create(&|f| f["surprise"] = json!(1));
    create(&|f| *f = json!([]));
    assert!(!agent.function_names().contains(&"f".to_owned()));
}

#[test]
fn the_same_code_is_stored_once() {
    let agent = shared();
    let code = agent.upload(&tour_code());
    assert_eq!(code, agent.function(TOUR)["code"]);
    let image = format!("{}.erofs", code.as_str().unwrap());
    let images = agent.place().entries("images");
    assert_eq!(images.iter().filter(|name| **name == image).count(), 1);
}
