//! `target/assets`: the files that the agent needs beside its binaries, in one directory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::initramfs;
use crate::kernel::{self, Kernel};
use crate::progress::Step;
use crate::rootfs;
use crate::workspace;

/// The package of the guests' PID 1.
const GUEST_INIT: &str = "snapback-guest-init";

/// The root file systems that are made.
const ROOT_FILE_SYSTEMS: [&str; 3] = ["provided", "python", "nodejs"];

/// Makes what is missing or out of date; the result is the directory.
pub fn make(cache: &Cache) -> Result<PathBuf> {
    let directory = workspace::target().join("assets");
    let images = directory.join("rootfs");
    fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
    place(
        &kernel::make(cache, Kernel::Guest)?,
        &directory.join("vmlinux"),
    )?;
    for name in ROOT_FILE_SYSTEMS {
        let image = rootfs::make(cache, name)?;
        place(&image, &images.join(format!("{name}.erofs")))?;
    }
    let step = Step::start("guest-init: build");
    initramfs::make(GUEST_INIT, &directory.join("guest-init.cpio"))?;
    step.done();
    Ok(directory)
}

/// Puts a file of the cache at `place`: as a hard link, or where that cannot be, as a copy.
fn place(cached: &Path, place: &Path) -> Result<()> {
    let identity = |path: &Path| {
        let metadata = fs::metadata(path)?;
        std::io::Result::Ok((metadata.dev(), metadata.ino()))
    };
    if let (Ok(one), Ok(other)) = (identity(cached), identity(place))
        && one == other
    {
        return Ok(());
    }
    let temporary = place.with_extension("new");
    // Left by a run that was killed; a link does not replace what is there.
    let _ = fs::remove_file(&temporary);
    fs::hard_link(cached, &temporary)
        .or_else(|_| fs::copy(cached, &temporary).map(drop))
        .and_then(|()| fs::rename(&temporary, place))
        .with_context(|| format!("cannot put {} at {}", cached.display(), place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placed_file_follows_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("one"), "1").unwrap();
        fs::write(at("two"), "2").unwrap();
        for (cached, content) in [("one", "1"), ("one", "1"), ("two", "2")] {
            place(&at(cached), &at("placed")).unwrap();
            assert_eq!(fs::read_to_string(at("placed")).unwrap(), content);
        }
    }
}
