//! A guest's PID 1: a package of ours, built as a static program and packed as the initramfs
//! that the guest's kernel boots.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::static_program;

/// Builds `package`, whose program has its name, and writes its initramfs to `image`. Cargo
/// knows whether anything changed, so this is not in the cache.
pub fn make(package: &str, image: &Path) -> Result<()> {
    let binary = static_program::build(package)?;
    let program =
        fs::read(&binary).with_context(|| format!("the build left no {}", binary.display()))?;
    let packed = pack(&program);
    if fs::read(image).is_ok_and(|present| present == packed) {
        return Ok(());
    }
    let temporary = image.with_extension("new");
    fs::write(&temporary, packed)
        .and_then(|()| fs::rename(&temporary, image))
        .with_context(|| format!("cannot write {}", image.display()))
}

/// The initramfs: the program as `/init`, and the places it mounts things on.
fn pack(program: &[u8]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in ["dev", "proc", "sys", "newroot"] {
        archive.directory(directory, 0o755);
    }
    // Without it, the kernel starts PID 1 without an open stderr.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, program);
    archive.finish()
}
