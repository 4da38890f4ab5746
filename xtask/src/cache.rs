//! The cache of everything that is slow to make: unpacked packages, kernels, images.
//!
//! An entry is a directory named by the BLAKE3 hash of what it was made from. It is
//! made in a scratch directory and renamed into place, so an entry that exists is
//! complete; a lock per entry keeps two runs from making the same one twice.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;

use crate::progress::Step;

/// Scratch directories older than this were left by a run that was killed.
const STALE_SCRATCH: Duration = Duration::from_secs(24 * 3600);

/// The cache's place on disk.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens (and creates if need be) the cache: `$SNAPBACK_CACHE`, else
    /// `$XDG_CACHE_HOME/snapback`, else `~/.cache/snapback`.
    pub fn open() -> Result<Self> {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = variable("SNAPBACK_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("snapback")))
            .or_else(|| variable("HOME").map(|dir| dir.join(".cache/snapback")))
            .ok_or_else(|| {
                anyhow!("no place for the cache: set SNAPBACK_CACHE to a directory, or set HOME")
            })?;
        Self::at(&root)
    }

    /// Opens the cache at `root`.
    pub fn at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root.join("tmp"))
            .with_context(|| format!("cannot create the cache directory {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot resolve the cache directory {}", root.display()))?;
        let cache = Self { root };
        cache.sweep();
        Ok(cache)
    }

    /// Where the cache is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A scratch directory on the cache's file system, removed when dropped.
    fn scratch(&self) -> Result<TempDir> {
        let parent = self.root.join("tmp");
        TempDir::new_in(&parent)
            .with_context(|| format!("cannot create a scratch directory in {}", parent.display()))
    }

    /// The directory of the entry `kind`/`key`; if it is missing, calls `make` with an
    /// empty directory to fill and a scratch directory. The scratch directory is removed
    /// after the entry is in place, so that nobody waits for that.
    pub fn entry(
        &self,
        kind: &str,
        key: &Key,
        make: impl FnOnce(&Path, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.root.join(kind).join(key.hex());
        if place.is_dir() {
            return Ok(place);
        }
        let parent = self.root.join(kind);
        fs::create_dir_all(&parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let lock_path = place.with_extension("lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot create the lock {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            let step = Step::start(format!("{kind}: wait for another run that makes it"));
            lock.lock()
                .with_context(|| format!("cannot take the lock {}", lock_path.display()))?;
            step.done();
        }
        if place.is_dir() {
            return Ok(place);
        }
        let scratch = self.scratch()?;
        let filled = self.scratch()?;
        make(filled.path(), scratch.path())?;
        let made = filled.keep();
        fs::rename(&made, &place).with_context(|| {
            format!(
                "cannot move the finished entry {} to {}",
                made.display(),
                place.display()
            )
        })?;
        drop(lock);
        Ok(place)
    }

    /// Whether the entry `kind`/`key` is there.
    pub fn has(&self, kind: &str, key: &Key) -> bool {
        self.root.join(kind).join(key.hex()).is_dir()
    }

    /// What `name` stands for at present (a package version, say): what it was resolved to
    /// before, as long as `still_good` says so, else what `find` finds.
    ///
    /// A resolution is kept so that an update of the package archive does not rebuild
    /// kernels and images behind the developer's back, and so that a second run needs no
    /// archive at all.
    pub fn resolve(
        &self,
        name: &str,
        still_good: impl FnOnce(&str) -> bool,
        find: impl FnOnce() -> Result<String>,
    ) -> Result<String> {
        if let Some(pinned) = self.pinned(name)
            && still_good(&pinned)
        {
            return Ok(pinned);
        }
        let found = find()?;
        self.pin(name, &found)?;
        Ok(found)
    }

    /// Forgets every resolution: the next run takes the newest packages there are.
    pub fn forget_resolutions(&self) -> Result<()> {
        let pins = self.root.join("pins");
        match fs::remove_dir_all(&pins) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", pins.display()))
            }
            _ => Ok(()),
        }
    }

    fn pinned(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.pin_path(name))
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
    }

    fn pin(&self, name: &str, value: &str) -> Result<()> {
        let path = self.pin_path(name);
        let scratch = self.scratch()?;
        let temporary = scratch.path().join("pin");
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(self.root.join("pins"))?;
            fs::write(&temporary, value)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    fn pin_path(&self, name: &str) -> PathBuf {
        self.root.join("pins").join(name)
    }

    /// Removes scratch directories that a killed run left. Best effort: one that
    /// cannot be removed harms nothing but disk space.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else {
            return;
        };
        for entry in entries.flatten() {
            // The status change, not the modification: unpacking a package gives a
            // directory the time that the package says.
            let age = entry.metadata().ok().and_then(|metadata| {
                let changed = Duration::from_secs(u64::try_from(metadata.ctime()).ok()?);
                SystemTime::now().duration_since(UNIX_EPOCH + changed).ok()
            });
            if age.is_some_and(|age| age > STALE_SCRATCH) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The hash of an entry's inputs, built one named input after the other.
#[derive(Clone)]
pub struct Key(blake3::Hasher);

impl Key {
    /// A key without inputs.
    pub fn new() -> Self {
        Self(blake3::Hasher::new())
    }

    /// Adds the input `name` with its content. Lengths are hashed too, so that no two
    /// lists of inputs look the same.
    pub fn with(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update(&part.len().to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds the content of a file.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let content =
            fs::read(path).with_context(|| format!("cannot read the input {}", path.display()))?;
        Ok(self.with("file", content))
    }

    /// The entry's name.
    pub fn hex(&self) -> String {
        self.0.finalize().to_hex().chars().take(24).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_made_once_and_only_when_it_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let key = Key::new().with("a", "1");
        assert!(
            cache
                .entry("thing", &key, |_, _| anyhow::bail!("broken"))
                .is_err()
        );
        let place = cache
            .entry("thing", &key, |dir, _| Ok(fs::write(dir.join("f"), "x")?))
            .unwrap();
        assert_eq!(fs::read_to_string(place.join("f")).unwrap(), "x");
        let again = cache
            .entry("thing", &key, |_, _| anyhow::bail!("made twice"))
            .unwrap();
        assert_eq!(place, again);
    }

    #[test]
    fn an_entry_that_is_being_made_survives_the_next_run_whatever_its_files_times_say() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let key = Key::new().with("a", "1");
        let make = |filled: &Path, _: &Path| {
            fs::write(filled.join("f"), "x")?;
            File::open(filled)?.set_modified(SystemTime::now() - 2 * STALE_SCRATCH)?;
            Cache::at(dir.path())?;
            Ok(())
        };
        let place = cache.entry("thing", &key, make).unwrap();
        assert_eq!(fs::read_to_string(place.join("f")).unwrap(), "x");
    }

    #[test]
    fn keys_differ_by_name_content_and_boundary() {
        let hex = |parts: &[(&str, &str)]| {
            parts
                .iter()
                .fold(Key::new(), |key, (name, content)| key.with(name, content))
                .hex()
        };
        let all = [
            hex(&[("a", "bc")]),
            hex(&[("ab", "c")]),
            hex(&[("a", "b"), ("c", "")]),
            hex(&[("a", "bd")]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one));
        }
        assert_eq!(hex(&[("a", "bc")]), all[0]);
    }

    #[test]
    fn resolutions_are_kept_while_good_and_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let resolve = |good: bool, found: &str| {
            cache
                .resolve("kernel", |_| good, || Ok(found.to_owned()))
                .unwrap()
        };
        assert_eq!(resolve(true, "1"), "1");
        assert_eq!(resolve(true, "2"), "1");
        assert_eq!(resolve(false, "3"), "3");
        assert_eq!(resolve(true, "4"), "3");
        cache.forget_resolutions().unwrap();
        cache.forget_resolutions().unwrap();
        assert_eq!(resolve(true, "5"), "5");
    }
}
