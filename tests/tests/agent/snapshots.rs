//! A damaged snapshot is refused by the name of its section, every time it is asked for, and
//! nothing else suffers.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::agent::Agent;
use crate::harness::{OTHER, TOUR, own_place};

/// Length of a state file's header and of a section's head, in bytes: `docs/snapshot-format.md`.
const HEADER: usize = 14;
const HEAD: usize = 44;

/// A section of a state file: its name, and where its head begins and its body ends.
struct Section {
    name: &'static str,
    start: usize,
    end: usize,
}

fn sections(state: &[u8]) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut start = HEADER;
    while start < state.len() {
        let number =
            |at: usize| u32::from_le_bytes(state[start + at..start + at + 4].try_into().unwrap());
        let name = match number(0) {
            1 => "machine",
            2 => "processor",
            3 => "interrupts",
            4 => "clock",
            5 => "devices",
            0x00d5_0e4d => "end",
            other => panic!("kind {other}"),
        };
        let end = start + HEAD + usize::try_from(number(8)).unwrap();
        sections.push(Section { name, start, end });
        start = end;
    }
    sections
}

/// A file of a snapshot that can be damaged and made whole again.
struct Victim {
    path: PathBuf,
    whole: Vec<u8>,
}

impl Victim {
    fn new(agent: &Agent, function: &str, file: &str) -> Self {
        let path = snapshot_folder(agent, function).join(file);
        let whole = fs::read(&path).unwrap();
        Self { path, whole }
    }

    /// Checks that the function is refused while `damage` is done to the file, for a reason
    /// with these words.
    fn refused(&self, agent: &Agent, words: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.whole.clone();
        damage(&mut bytes);
        fs::write(&self.path, bytes).unwrap();
        refused(agent, words);
        fs::write(&self.path, &self.whole).unwrap();
    }
}

fn snapshot_folder(agent: &Agent, function: &str) -> PathBuf {
    let id = agent.function(function)["snapshot"]
        .as_str()
        .unwrap()
        .to_owned();
    agent.place().state().join("snapshots").join(id)
}

fn refused(agent: &Agent, words: &str) {
    let response = agent.invoke(TOUR, &json!({"do": "find"}));
    assert_eq!(response.status, 500, "{words}: {response:?}");
    assert_eq!(response.header("x-amzn-errortype"), "ServiceException");
    let message = response.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(words), "{words:?} is not in {message:?}");
}

fn works(agent: &Agent, function: &str) {
    assert_eq!(
        agent.call(function, &json!({"do": "find"})),
        json!([]),
        "{function}"
    );
}

#[test]
fn a_damaged_state_is_refused_by_the_name_of_its_section() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let state = Victim::new(&agent, TOUR, "state");
    let all = sections(&state.whole);
    let names: Vec<_> = all.iter().map(|section| section.name).collect();
    assert_eq!(
        names,
        [
            "machine",
            "processor",
            "interrupts",
            "clock",
            "devices",
            "end"
        ]
    );
    for Section { name, start, end } in &all {
        let words = format!("section `state: {name}`");
        // A bit of its content, a bit of its hash.
        state.refused(&agent, &words, |bytes| bytes[(start + HEAD + end) / 2] ^= 1);
        state.refused(&agent, &words, |bytes| bytes[start + HEAD - 1] ^= 0x80);
        // Cut within its content and within its head.
        state.refused(&agent, &words, |bytes| bytes.truncate(end - 1));
        state.refused(&agent, &words, |bytes| bytes[start + 6] ^= 1);
    }
    let header = "section `state: header`";
    state.refused(&agent, header, |bytes| bytes[0] ^= 1);
    state.refused(&agent, header, |bytes| bytes[12] ^= 1);
    state.refused(&agent, header, |bytes| bytes.truncate(HEADER - 1));
    state.refused(&agent, header, |bytes| bytes.clear());
    state.refused(&agent, "section `state: end`", |bytes| bytes.push(0));
    state.refused(&agent, "section `state: unknown`", |bytes| {
        bytes[HEADER] ^= 0x40
    });
    // Sections left out, and changed places.
    let (machine, clock) = (&all[0], &all[3]);
    state.refused(&agent, "section `state: ", |bytes| {
        drop(bytes.drain(clock.start..clock.end))
    });
    state.refused(&agent, "section `state: ", |bytes| {
        let moved: Vec<_> = bytes.drain(machine.start..machine.end).collect();
        bytes.splice(bytes.len()..bytes.len(), moved);
    });
    // The other function's state is valid, and still not this one's.
    let other = fs::read(snapshot_folder(&agent, OTHER).join("state")).unwrap();
    state.refused(&agent, "section `state: file`", |bytes| *bytes = other);

    works(&agent, OTHER);
    // Undamaged it is as good as ever: nothing was remembered against it.
    works(&agent, TOUR);
}

#[test]
fn a_damaged_memory_or_manifest_is_refused_by_name() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let manifest = Victim::new(&agent, TOUR, "snapshot.json");
    let json = "section `snapshot.json`";
    manifest.refused(&agent, json, |bytes| bytes.truncate(bytes.len() / 2));
    manifest.refused(&agent, json, |bytes| bytes.clear());
    manifest.refused(&agent, json, |bytes| *bytes = b"{}".to_vec());
    manifest.refused(&agent, json, |bytes| bytes[0] ^= 0x80);
    manifest.refused(&agent, json, |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let other = text.replacen(
            "\"format_version\"",
            "\"surprise\": 1, \"format_version\"",
            1,
        );
        *bytes = other.into_bytes();
    });
    let other = fs::read(snapshot_folder(&agent, OTHER).join("snapshot.json")).unwrap();
    manifest.refused(&agent, "section `snapshot.json` names snapshot", |bytes| {
        *bytes = other
    });

    // The memory is large and sparse: it is damaged in place.
    let path = snapshot_folder(&agent, TOUR).join("memory");
    let memory = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let length = memory.metadata().unwrap().len();
    let words = "section `memory`";
    for offset in [first_data(&path), length / 2, length - 1] {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, offset).unwrap();
        memory.write_all_at(&[byte[0] ^ 1], offset).unwrap();
        refused(&agent, words);
        memory.write_all_at(&byte, offset).unwrap();
    }
    memory.set_len(length + 4096).unwrap();
    refused(&agent, words);
    memory.set_len(length).unwrap();
    works(&agent, OTHER);
    works(&agent, TOUR);
}

#[test]
fn a_snapshot_cut_short_or_gone_is_refused_after_a_restart_and_the_others_go_on() {
    let (place, _turn) = own_place();
    let agent = place.start("");
    let folder = snapshot_folder(&agent, TOUR);
    let image = format!(
        "images/{}.erofs",
        agent.function(TOUR)["code"].as_str().unwrap()
    );
    let place = agent.terminate();
    // A disk that was full, a copy that broke off.
    let memory = fs::File::options()
        .write(true)
        .open(folder.join("memory"))
        .unwrap();
    memory
        .set_len(memory.metadata().unwrap().len() / 2)
        .unwrap();
    drop(memory);
    let agent = place.start("");
    refused(&agent, "section `memory`");
    fs::remove_file(folder.join("memory")).unwrap();
    refused(&agent, "memory");
    fs::remove_file(folder.join("state")).unwrap();
    refused(&agent, "state");
    works(&agent, OTHER);
    // A function that cannot run can still be told and deleted.
    assert!(agent.function_names().contains(&TOUR.to_owned()));
    assert_eq!(
        agent
            .http("DELETE", &format!("/v1/functions/{TOUR}"), &[], b"")
            .status,
        204
    );
    assert!(!folder.exists());
    works(&agent, OTHER);

    // Both functions had the same code: its image is still needed, and checked.
    let place = agent.terminate();
    let path = place.state().join(image);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let agent = place.start("");
    let response = agent.invoke(OTHER, &json!({}));
    assert_eq!(response.status, 500, "{response:?}");
    let message = response.json()["message"].to_string();
    assert!(message.contains("was made with another code"), "{message}");
}

/// Where the first page that is no hole begins.
fn first_data(path: &Path) -> u64 {
    let file = fs::File::open(path).unwrap();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap()
}
