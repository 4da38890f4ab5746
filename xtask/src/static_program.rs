//! Programs of this workspace that run in a guest: built for speed and without shared libraries.

use std::path::PathBuf;

use anyhow::Result;

use crate::process;
use crate::workspace;

/// The guest's platform, which is the host's. Named all the same: with a named target, cargo
/// keeps build scripts free of the flags for static linking.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program of the package `package`, which has the package's name. Cargo knows
/// whether anything changed, so this is not in the cache.
pub fn build(package: &str) -> Result<PathBuf> {
    let target_dir = workspace::target().join("guest");
    // RUSTFLAGS wins over every other place that flags can be set in, so it is set here.
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    process::visible(
        workspace::cargo()
            .args(["build", "--quiet", "--release", "--package", package])
            .args(["--target", TARGET, "--target-dir"])
            .arg(&target_dir)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env(
                "RUSTFLAGS",
                format!("{flags} -C target-feature=+crt-static -C strip=debuginfo"),
            ),
    )?;
    Ok(target_dir.join(TARGET).join("release").join(package))
}
