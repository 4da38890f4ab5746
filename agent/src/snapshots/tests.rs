//! Whole snapshots on disk, without microVMs: the state is a golden's, the memory is
//! the test's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use snapback_proto::words::chain;
use snapback_vmm::snapshot::Digest;
use snapback_vmm::snapshot::layers::MAX_DIFFS;
use snapback_vmm::snapshot::manifest::{Machine, Manifest, SnapshotId};
use snapback_vmm::supervisor::Saved;
use snapback_vmm::sys::memfd;

use super::*;

const PAGE: u64 = 4096;

/// A catalogue with what its snapshots need beside it.
struct Place {
    folder: tempfile::TempDir,
    catalogue: Catalogue,
    parts: Parts,
}

fn golden_state() -> Vec<u8> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    fs::read(goldens.join("v1-one-vcpu/state")).unwrap()
}

fn id(name: &str) -> SnapshotId {
    name.parse().unwrap()
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            (path, Digest::of(name.as_bytes()))
        };
        let file = folder.path().join("golden");
        fs::write(&file, golden_state()).unwrap();
        let machine = Saved::load(&File::open(&file).unwrap()).unwrap().machine;
        Self {
            catalogue: Catalogue::open(folder.path().join("snapshots"), PAGE).unwrap(),
            parts: Parts {
                function: "f".parse().unwrap(),
                machine: Machine {
                    memory_mib: machine.memory_mib,
                    vcpus: machine.vcpus,
                    template: machine.template,
                },
                kernel: Digest::of(b"kernel"),
                guest_init: Digest::of(b"init"),
                disks: Disks {
                    root_fs: image("root"),
                    code: image("code"),
                },
                gathered: false,
            },
            folder,
        }
    }

    fn len(&self) -> u64 {
        u64::from(self.parts.machine.memory_mib) << 20
    }

    /// Makes a snapshot whose memory has these pages, each full of one byte.
    fn make(&self, name: &str, base: Option<&str>, pages: &[(u64, u8)]) -> Arc<Snapshot> {
        let base = base.map(id);
        let draft = self.catalogue.draft(id(name), base.as_ref()).unwrap();
        let state = draft.state_file().unwrap();
        state.write_all_at(&golden_state(), 0).unwrap();
        let memory = memfd::create("test", self.len()).unwrap();
        for (page, byte) in pages {
            rustix::io::pwrite(&memory, &[*byte; 4096], page * PAGE).unwrap();
        }
        draft.commit(memory, self.len(), &self.parts).unwrap()
    }

    fn directory(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("snapshots").join(name)
    }

    fn open(&self, name: &str) -> Result<SnapshotFiles, SnapshotError> {
        SnapshotFiles::open(&self.directory(name))
    }

    /// Everything that a load checks, but the host.
    fn check(&self, name: &str) -> Result<SnapshotFiles, SnapshotError> {
        let files = self.open(name)?;
        files.state()?;
        files.check_memory()?;
        Ok(files)
    }

    fn refused(&self, name: &str) -> String {
        chain(&self.check(name).unwrap_err())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("snapshots")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn byte_at(files: &SnapshotFiles, page: u64) -> u8 {
    let mut byte = [0xee];
    files.memory().read_at(page * PAGE, &mut byte).unwrap();
    byte[0]
}

#[test]
fn diffs_on_diffs_compose_and_are_checked_as_one() {
    let place = Place::new();
    place.make("whole", None, &[(0, 1), (1, 1), (2, 1)]);
    place.make("middle", Some("whole"), &[(0, 1), (1, 2), (9, 2)]);
    let loaded = place.make("top", Some("middle"), &[(0, 3), (1, 2), (9, 2)]);
    let files = place.check("top").unwrap();
    assert_eq!(files.bases(), [id("middle"), id("whole")]);
    assert_eq!(files.map().unwrap().pages(), 1);
    // Page 2 became zero in the middle.
    let pages = [0, 1, 2, 9].map(|page| byte_at(&files, page));
    assert_eq!(pages, [3, 2, 0, 2]);
    assert_eq!(place.check("middle").unwrap().map().unwrap().pages(), 3);
    // Its own process has it loaded with the guest's memory: those three. Page 2 is data in
    // a layer below, and zero here.
    assert_eq!(loaded.memory().stats().filled, 3);
    assert!(loaded.memory().is_complete());
}

#[test]
fn a_base_that_is_missing_another_or_damaged_is_refused_by_name() {
    let place = Place::new();
    place.make("whole", None, &[(0, 1), (5, 5)]);
    place.make("other", None, &[(0, 2)]);
    place.make("diff", Some("whole"), &[(0, 1), (5, 5), (6, 6)]);
    let (whole, hidden) = (place.directory("whole"), place.directory("hidden"));

    fs::rename(&whole, &hidden).unwrap();
    let text = place.refused("diff");
    assert!(
        text.contains("snapshot diff is a diff of snapshot whole, which is not at"),
        "{text}"
    );
    // Another snapshot in its place.
    fs::rename(place.directory("other"), &whole).unwrap();
    let text = place.refused("diff");
    assert!(text.contains("a diff of another snapshot whole"), "{text}");
    fs::rename(&whole, place.directory("other")).unwrap();
    fs::rename(&hidden, &whole).unwrap();
    place.check("diff").unwrap();

    // A byte of the base's memory: the hashes are of the composition.
    let memory = File::options()
        .write(true)
        .open(whole.join("memory"))
        .unwrap();
    memory.write_all_at(&[9], 5 * PAGE).unwrap();
    let text = place.refused("diff");
    assert!(
        text.contains("section `memory`: memory chunk 0 (offset 0x0)"),
        "{text}"
    );
    memory.write_all_at(&[5], 5 * PAGE).unwrap();

    // The map: a bit of it, and another valid one.
    let path = place.directory("diff").join("memory-map");
    let map = fs::read(&path).unwrap();
    let mut damaged = map.clone();
    damaged[14] ^= 1;
    fs::write(&path, damaged).unwrap();
    let text = place.refused("diff");
    assert!(text.contains("section `memory-map`"), "{text}");
    let empty = snapback_vmm::snapshot::page_map::PageMap::default();
    fs::write(&path, empty.to_bytes()).unwrap();
    let text = place.refused("diff");
    assert!(text.contains("`memory-map` is not the one"), "{text}");
    fs::write(&path, map).unwrap();
    place.check("diff").unwrap();
}

#[test]
fn a_base_in_use_is_not_removed_and_goes_with_its_last_diff() {
    let place = Place::new();
    let catalogue = &place.catalogue;
    let unused = |_: &SnapshotId| false;
    place.make("whole", None, &[(0, 1)]);
    place.make("one", Some("whole"), &[(0, 2)]);
    place.make("two", Some("whole"), &[(0, 3)]);
    let error = catalogue.remove(&id("whole"), unused).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("snapshot whole cannot be removed: it is the base of "),
        "{error}"
    );
    // A start of an agent keeps it, too.
    catalogue.keep_only(&[id("one"), id("two")]).unwrap();
    assert_eq!(place.names(), ["one", "two", "whole"]);
    catalogue.remove(&id("one"), unused).unwrap();
    assert_eq!(place.names(), ["two", "whole"]);
    // With a function of its own it would stay.
    catalogue
        .remove(&id("two"), |base| *base == id("whole"))
        .unwrap();
    assert_eq!(place.names(), ["whole"]);
    place.make("two", Some("whole"), &[(0, 3)]);
    catalogue.remove(&id("two"), unused).unwrap();
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_base_is_not_removed_while_a_diff_is_being_made_of_it() {
    let place = Place::new();
    place.make("whole", None, &[(0, 1)]);
    let draft = place
        .catalogue
        .draft(id("soon"), Some(&id("whole")))
        .unwrap();
    let error = place.catalogue.remove(&id("whole"), |_| false).unwrap_err();
    assert!(matches!(error, SnapshotError::InUse { .. }), "{error}");
    drop(draft);
    place.catalogue.remove(&id("whole"), |_| false).unwrap();
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn towers_and_circles_of_diffs_are_refused() {
    let place = Place::new();
    place.make("d0", None, &[(0, 1)]);
    for level in 1..=MAX_DIFFS {
        let (name, base) = (format!("d{level}"), format!("d{}", level - 1));
        let byte = u8::try_from(level).unwrap();
        place.make(&name, Some(&base), &[(0, 1), (1, byte)]);
    }
    let top = format!("d{MAX_DIFFS}");
    assert_eq!(place.check(&top).unwrap().bases().len(), MAX_DIFFS);
    let draft = place.catalogue.draft(id("above"), Some(&id(&top))).unwrap();
    let state = draft.state_file().unwrap();
    state.write_all_at(&golden_state(), 0).unwrap();
    let memory = memfd::create("test", place.len()).unwrap();
    let error = draft.commit(memory, place.len(), &place.parts).unwrap_err();
    assert!(chain(&error).contains("more than 4 diffs"), "{error}");

    // A circle cannot have right hashes, and is not followed for long.
    let path = place.directory("d1").join("snapshot.json");
    let mut manifest = Manifest::from_json(&fs::read(&path).unwrap()).unwrap();
    manifest.base.as_mut().unwrap().snapshot_id = id("d2");
    fs::write(&path, manifest.to_json().unwrap()).unwrap();
    let text = place.refused("d2");
    assert!(text.contains("more than 4 diffs below it"), "{text}");
}

#[test]
fn only_a_whole_snapshot_of_the_same_machine_and_images_becomes_a_base() {
    let place = Place::new();
    place.make("whole", None, &[(0, 1)]);
    place.make("diff", Some("whole"), &[(0, 2)]);
    let all = [id("gone"), id("diff"), id("whole")];
    let base = |parts: &Parts| place.catalogue.base_for(parts, &all);
    assert_eq!(base(&place.parts), Some(id("whole")));
    let mut other = place.parts.clone();
    other.kernel = Digest::of(b"another");
    assert_eq!(base(&other), None);
    let mut other = place.parts.clone();
    other.machine.memory_mib += 1;
    assert_eq!(base(&other), None);
}

#[test]
fn a_manifest_and_a_state_that_contradict_each_other_are_refused() {
    let place = Place::new();
    place.make("s", None, &[(0, 1)]);
    let path = place.directory("s").join("snapshot.json");
    let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
    for (from, to, field) in [
        ("\"vcpus\": 1", "\"vcpus\": 2", "machine.vcpus"),
        ("x86-64-v2", "x86-64-v3", "machine.template"),
        ("\"sse2\"", "\"sse3\"", "cpu.features"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let refused = place.refused("s");
        assert!(
            refused.contains(&format!("`{field}` is not what the state says")),
            "{refused}"
        );
    }
}

mod hostile {
    use proptest::prelude::*;

    use super::*;

    const FILES: [&str; 4] = ["snapshot.json", "state", "memory", "memory-map"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_snapshot_with_any_file_changed_is_whole_or_refused_by_section(
            which in 0_usize..4,
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            static PLACE: std::sync::LazyLock<Place> = std::sync::LazyLock::new(|| {
                let place = Place::new();
                place.make("base", None, &[(0, 1), (1, 1)]);
                place.make("victim", Some("base"), &[(0, 1), (1, 2)]);
                place
            });
            let path = PLACE.directory("victim").join(FILES[which]);
            let whole = fs::read(&path).unwrap();
            // The memory is mostly holes: its beginning is enough.
            let reach = whole.len().min(4 * 4096);
            let mut bad = whole.clone();
            for (at, byte) in &edits {
                bad[at.index(reach)] = *byte;
            }
            if let Some(cut) = cut {
                bad.truncate(cut.index(reach));
            }
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&bad[..bad.len().min(reach)], 0).unwrap();
            file.set_len(u64::try_from(bad.len()).unwrap()).unwrap();
            let checked = PLACE.check("victim");
            file.write_all_at(&whole[..reach], 0).unwrap();
            file.set_len(u64::try_from(whole.len()).unwrap()).unwrap();
            match checked {
                // Pages that the base has are not read from this file; and of a manifest
                // not everything is compared with something.
                Ok(_) => prop_assert!(bad == whole || which == 2 || which == 0),
                Err(error) => {
                    let text = chain(&error);
                    let named = ["section `", "is a diff of"].iter().any(|name| text.contains(name));
                    prop_assert!(named, "{}: {text}", FILES[which]);
                }
            }
        }
    }
}
