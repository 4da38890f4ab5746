//! A process that writes snapshots is killed at any moment: what it said was there is
//! there and whole, anything else is whole or not there, and the next start of an agent
//! cleans up.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests count as code outside tests"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use snapback::snapshots::{Catalogue, SnapshotFiles};

const ROUNDS: u32 = 16;

fn writer() -> PathBuf {
    // target/PROFILE/deps/killed_writer-HASH → target/PROFILE/examples/write_snapshots
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.join("examples/write_snapshots")
}

fn golden_state() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/v1-one-vcpu/state")
}

/// Runs a writer for as long as `until` says of each of its lines, then kills it; the
/// snapshots that it said were there.
fn killed(directory: &Path, mut until: impl FnMut(&str) -> Option<Duration>) -> Vec<String> {
    let mut child = Command::new(writer())
        .args([directory, &golden_state()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut done = Vec::new();
    let mut heard = |line: String| {
        done.extend(line.strip_prefix("done ").map(str::to_owned));
        line
    };
    for line in &mut lines {
        if let Some(wait) = until(&heard(line.unwrap())) {
            std::thread::sleep(wait);
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines {
        heard(line.unwrap());
    }
    done
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_writer_killed_at_any_moment_leaves_whole_snapshots_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("snapshots");
    // How long a snapshot and a diff take here.
    let start = Instant::now();
    killed(&directory, |line| {
        (line == "done s-1").then_some(Duration::ZERO)
    });
    let both = start.elapsed();
    let (mut halves, mut wholes) = (0, 0);
    for round in 0..ROUNDS {
        fs::remove_dir_all(&directory).unwrap();
        let wait = both * round / ROUNDS;
        let done = killed(&directory, |line| (line == "begin s-0").then_some(wait));
        halves += names(&directory)
            .iter()
            .filter(|name| name.starts_with(".draft-"))
            .count();
        // The next agent.
        Catalogue::open(directory.clone(), 4096).unwrap();
        let left = names(&directory);
        assert!(left.iter().all(|name| name.starts_with("s-")), "{left:?}");
        assert!(
            done.iter().all(|name| left.contains(name)),
            "{done:?}, {left:?}"
        );
        for name in &left {
            let files = SnapshotFiles::open(&directory.join(name)).unwrap();
            files.state().unwrap();
            files.check_memory().unwrap();
        }
        wholes += left.len();
    }
    println!("{halves} halves and {wholes} wholes in {ROUNDS} rounds of up to {both:?}");
    assert!(halves > 0, "none was killed in the middle");
    assert!(wholes > 0, "none was killed after one was whole");
}
