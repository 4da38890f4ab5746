//! Packages as people bring them, and what they are told when one is wrong.

use std::fs;

use serde_json::json;
use snapback_tests::harness::cli::Run;

use crate::layout;
use crate::shared::{SHARED, example, with};

/// `snapback function create` of code that a test writes; it must not succeed.
fn refused(name: &str, file: &str, content: &[u8], more: &[&str]) -> Run {
    let folder = SHARED.agent.place().folder().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(file), content).unwrap();
    let code = if file.ends_with(".zip") || file.ends_with(".tar") {
        folder.join(file)
    } else {
        folder
    };
    let mut words = vec!["function", "create", name, "--code", code.to_str().unwrap()];
    words.extend(more);
    let run = SHARED.agent.cli(&words);
    assert!(!run.success, "{run:?}");
    run
}

#[test]
fn a_container_image_runs_its_entrypoint_with_its_own_root() {
    let shared = with("rust-container");
    let answer = shared
        .agent
        .call("rust-container", &json!({"text": "one two two"}));
    assert_eq!(answer["words"], 3);
    assert_eq!(answer["counts"], json!({"one": 1, "two": 2}));
    assert_eq!(answer["function"], "rust-container");
}

#[test]
fn a_container_image_needs_the_provided_runtime_and_has_no_layers() {
    let image = layout::image(&example("rust-words").join("package/bootstrap"));
    let python = ["--runtime", "python3.11", "--handler", "app.handler"];
    refused("of-python", "image.tar", &image, &python).refuses("must be `provided.al2023`");
    let layer = example("thumbnailer").join("src");
    let layered = ["--runtime", "provided", "--layer", layer.to_str().unwrap()];
    refused("layered", "image.tar", &image, &layered).refuses("has no layers");
}

#[test]
fn a_function_without_a_bootstrap_is_told_where_one_is_looked_for() {
    let provided = ["--runtime", "provided.al2023"];
    let run = refused("no-bootstrap", "app.py", b"", &provided);
    for place in [
        "/var/task/bootstrap",
        "/opt/bootstrap",
        "/var/runtime/bootstrap",
    ] {
        run.refuses(place);
    }
}

#[test]
fn a_package_that_is_none_is_refused_with_the_reason() {
    let provided = ["--runtime", "provided.al2023"];
    refused("text", "code.zip", b"text", &provided).refuses("the code archive is refused");
    refused("cut", "code.zip", b"PK\x03\x04", &provided).refuses("was it cut off?");
    refused("gzip", "code.tar", b"\x1f\x8b\x08", &provided).refuses("send the tar archive itself");
    refused(
        "missing",
        "app.py",
        b"",
        &["--runtime", "nodejs18.x", "--handler", "index.handler"],
    )
    .refuses("Cannot find module");
    refused("cobol", "app.cob", b"", &["--runtime", "cobol"]).refuses("there is: nodejs18.x");
}
