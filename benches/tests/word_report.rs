//! The example function on this host, in one Python process: its answers are right,
//! and its search for traces finds every trace that it leaves.
//!
//! In a microVM that is reset the search must find nothing. Here, where two requests
//! share a process, it must find everything: without this test, finding nothing would
//! prove nothing.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure in a test's helper is the test's failure"
)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use snapback_bench::demo::answer::{Answer, REQUIRED};
use snapback_bench::demo::documents::{self, Document};

/// Folders of the stand-in for "/" that the function writes to.
const FOLDERS: [&str; 5] = ["tmp", "var/tmp", "var/task", "dev/shm", "opt/other"];

/// Calls the handler once per document, all in one process.
fn answers(documents: &[Document]) -> Vec<Answer> {
    let root = tempfile::tempdir().unwrap();
    for folder in FOLDERS {
        std::fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    // A port that is free now, and names that no other test has.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let tag = format!("trace-test-{}-{port}", std::process::id());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new("timeout")
        .args(["-k", "5", "120", "python3", "-B"])
        .arg(here.join("tests/call_handler.py"))
        .arg(here.join("../examples/word-report"))
        .env("TRACE_ROOT", root.path())
        .env("TRACE_TAG", tag)
        .env("TRACE_PORT", port.to_string())
        .env("HOME", "/home/nobody")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is needed");
    std::fs::create_dir_all(root.path().join("home/nobody")).unwrap();
    let events: Vec<Value> = documents
        .iter()
        .map(|d| json!({"title": d.title, "text": d.text}))
        .collect();
    let events = serde_json::to_vec(&events).unwrap();
    python.stdin.take().unwrap().write_all(&events).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn document(text: impl Into<String>) -> Document {
    Document {
        title: "a title, ünd \"more\"".to_owned(),
        text: text.into(),
    }
}

#[test]
fn a_second_request_in_the_same_process_finds_every_trace() {
    let text = document("Some words. And some more.");
    let [first, second] = &answers(&[text.clone(), text])[..] else {
        panic!("two events must have two answers");
    };
    assert_eq!(first.traces_found, [""; 0]);
    assert_eq!(first.not_left(), [""; 0]);
    let set = |names: &[String]| names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(set(&second.traces_found), set(&first.traces_left));
    // Everything that can be left can be left on a host, bar what its kernel lacks.
    for name in REQUIRED
        .iter()
        .chain(&["task_file", "other_files", "home_file"])
    {
        assert!(
            second.traces_found.iter().any(|found| found == name),
            "{name}"
        );
    }
    let refused = &first.traces_refused;
    assert!(
        !refused.values().any(|why| why == "UNDETECTED"),
        "{refused:?}"
    );
}

#[test]
fn both_implementations_agree() {
    let mut documents = documents::find(&[documents::LICENCES.into()]).unwrap();
    let edges = [
        "",
        "\u{feff}  \n\n  ",
        "a",
        "One. Two! Three? \"Four.\" (Five.) [six]",
        "Wait... what?!\" she'd asked.No space.\n\nA heading\n\t \nIt's 3.14, e.g. rock'n'roll''s",
        "Line\r\nends\rof\n\rall kinds.\r\n\r\nEnd\u{b}.\u{c}End.\u{a0}No.\u{2028}",
        "\u{212a}elvin \u{130}stanbul na\u{ef}ve caf\u{e9}s \u{ff21} don\u{2019}t \u{1f600}!",
        "table tables handled places churches boxes added started the free walked les es ed e",
        "bbb aaa ccc aaa bbb ccc ddd B A D",
    ];
    documents.extend(edges.map(document));
    // Texts without sense reach corners that sense does not.
    let alphabet = [
        "a", "E", "ed", "es", "le", "l", "t", "y", "'", ".", "!", "\"", ")", " ", "\n", "\t", "\r",
        "é", "1",
    ];
    let mut state = 1_u32;
    for _ in 0..200 {
        let mut text = String::new();
        for _ in 0..120 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let index = usize::try_from(state >> 16).unwrap() % alphabet.len();
            text.push_str(alphabet[index]);
        }
        documents.push(document(text));
    }
    let answers = answers(&documents);
    assert_eq!(answers.len(), documents.len());
    for (answer, document) in answers.iter().zip(&documents) {
        let mistakes = answer.mistakes(document);
        assert!(mistakes.is_empty(), "{:?}: {mistakes:?}", document.text);
    }
}
