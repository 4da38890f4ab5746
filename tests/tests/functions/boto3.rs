//! The AWS SDK for Python, unmodified, with nothing told but where we are.
//!
//! One process of Python goes through all cases: to import the SDK takes longer than most of
//! them. Each case is a test here, and reports what the process found.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use snapback_tests::harness::given;

use crate::shared::{SHARED, example, with};

/// What the cases invoke.
const FUNCTIONS: [&str; 9] = [
    "tour",
    "node-tour",
    "node-stream",
    "thumbnailer",
    "pagerank",
    "compute",
    "node-report",
    "rust-words",
    "rust-container",
];

/// Each case's failure, if it is one.
static FOUND: LazyLock<BTreeMap<String, Option<String>>> = LazyLock::new(|| {
    for name in FUNCTIONS {
        with(name);
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("python/invoke.py");
    let examples = example("");
    let mut command = Command::new("timeout");
    command
        .args(["-k", "5", "900"])
        .arg(given("SNAPBACK_PYTHON"))
        .arg("-B")
        .arg(script)
        .arg(examples)
        .env_clear()
        .env("PYTHONPATH", given("SNAPBACK_BOTO3"))
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env(
            "AWS_ENDPOINT_URL_LAMBDA",
            format!("http://{}", SHARED.address),
        )
        .env("AWS_DEFAULT_REGION", "local")
        .env("AWS_ACCESS_KEY_ID", "nobody")
        .env("AWS_SECRET_ACCESS_KEY", "nothing")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let found: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|line| {
            let case = line["case"].as_str().unwrap().to_owned();
            (case, line["failure"].as_str().map(str::to_owned))
        })
        .collect();
    let log = SHARED.agent.place().log();
    assert!(output.status.success(), "{output:?}\n{log}");
    found
});

macro_rules! cases {
    ($($case:ident,)*) => {
        $(
            #[test]
            fn $case() {
                match FOUND.get(stringify!($case)) {
                    Some(None) => {}
                    Some(Some(failure)) => panic!("{failure}"),
                    None => panic!("the script has no such case"),
                }
            }
        )*

        #[test]
        fn every_case_of_the_script_is_a_test() {
            let known = [$(stringify!($case)),*];
            let unknown: Vec<_> = FOUND.keys().filter(|case| !known.contains(&case.as_str())).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    };
}

cases! {
    every_example_answers_through_the_sdk,
    a_function_error_is_told_as_lambda_tells_it,
    an_event_is_accepted_and_runs,
    a_dry_run_runs_nothing,
    the_log_tail_comes_when_it_is_asked_for,
    a_busy_node_throttles,
    tenant_and_client_context_reach_the_function,
    payloads_of_every_size_come_back_byte_for_byte,
    an_unknown_function_and_a_payload_too_large_are_the_sdks_own_exceptions,
    nodejs_handlers_of_every_style_work,
    an_answer_in_pieces_arrives_while_it_is_produced,
}
