//! The agent of these tests, which can be reached by TCP, too.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use snapback_tests::harness::agent::Agent;
use snapback_tests::harness::place::Place;
use snapback_tests::harness::{code, given};

use crate::layout;

/// What two requests at once leave no place for.
const LIMITS: &str = "[limits]\nmax_concurrent_requests = 2\nmax_queued_requests = 0\n";

/// The agent, and where it listens.
pub struct Shared {
    pub agent: Agent,
    pub address: SocketAddr,
}

pub static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    // Free a moment ago, and nobody else is here.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = format!("{LIMITS}[api]\ntcp = '{address}'\n");
    let agent = Place::new().start(&config);
    Shared { agent, address }
});

/// The functions that exist.
static MADE: Mutex<Vec<&str>> = Mutex::new(Vec::new());

/// Makes sure that a function exists, and returns the agent that has it.
pub fn with(name: &'static str) -> &'static Shared {
    let shared: &Shared = &SHARED;
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if !made.contains(&name) {
        let words = arguments(name);
        let mut all = vec!["function", "create"];
        all.extend(words.iter().map(String::as_str));
        let created = shared.agent.cli(&all);
        let log = shared.agent.place().log();
        assert!(created.success, "{name}: {created:?}\n{log}");
        made.push(name);
    }
    shared
}

/// What creates a function: an example of that name, or one of the tests' own.
fn arguments(name: &str) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    match name {
        "tour" => {
            let code = path(&code("tour"));
            let base = [name, "--runtime", "python3.11", "--handler", "app.handler"];
            words(&[&base[..], &["--timeout", "300", "--code", &code]].concat())
        }
        "node-tour" | "node-stream" => {
            let code = path(&code("node"));
            let handler = if name == "node-tour" {
                "index.handler"
            } else {
                "index.stream"
            };
            let base = [name, "--runtime", "nodejs18.x", "--handler", handler];
            let more = ["--timeout", "300", "--memory", "256", "--code", &code];
            words(&[&base[..], &more].concat())
        }
        // The same program as in the example, in a container image.
        "rust-container" => {
            let bootstrap = example("rust-words").join("package/bootstrap");
            let image = layout::image(&bootstrap);
            let file = SHARED.agent.place().folder().join("image.tar");
            std::fs::write(&file, image).unwrap();
            let base = [
                name,
                "--runtime",
                "provided.al2023",
                "--timeout",
                "60",
                "--code",
            ];
            words(&[&base[..], &[&path(&file)]].concat())
        }
        // An example's code from a zip; the rest of its description holds.
        "node-report" => {
            let folder = example(name);
            let zip = SHARED.agent.place().folder().join("node-report.zip");
            make_zip(&folder.join("src"), &zip);
            let file = path(&folder.join("function.toml"));
            words(&["--file", &file, "--code", &path(&zip)])
        }
        name => words(&["--file", &path(&example(name).join("function.toml"))]),
    }
}

/// The folder of a complete example.
pub fn example(name: &str) -> PathBuf {
    given("SNAPBACK_EXAMPLES").join(name)
}

/// Packs what is in a folder, as people do.
fn make_zip(folder: &Path, zip: &Path) {
    let packed = Command::new(given("SNAPBACK_PYTHON"))
        .args(["-m", "zipfile", "-c"])
        .arg(zip)
        .args(
            std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path()),
        )
        .output()
        .unwrap();
    assert!(packed.status.success(), "{packed:?}");
}
