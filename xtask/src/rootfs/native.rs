//! The part of a recipe that is compiled: npm packages with native code, by a script beside the
//! recipe and against Debian's own headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha512};

use super::recipe::{Build, NpmPackage};
use crate::packages;
use crate::process;

/// The newest versions of the SDK's packages, as `name=version`.
pub fn resolve_sdk(build: Option<&Build>) -> Result<Vec<String>> {
    let names = build.map_or(&[][..], |build| &build.sdk);
    names
        .iter()
        .map(|name| Ok(format!("{name}={}", packages::candidate(name)?)))
        .collect()
}

/// Fetches what the script needs, and runs it.
pub fn run(build: &Build, directory: &Path, sdk: &[PathBuf], staging: &Path) -> Result<()> {
    let scratch = tempfile::tempdir_in(staging.parent().unwrap_or(staging))
        .context("cannot create a directory for building")?;
    let (npm, headers) = (scratch.path().join("npm"), scratch.path().join("sdk"));
    for package in &build.npm {
        fetch(package, scratch.path(), &npm)?;
    }
    for archive in sdk {
        packages::unpack(archive, &headers)?;
    }
    let script = directory.join(&build.script);
    process::quiet(
        Command::new("sh")
            .arg(&script)
            .args([&npm, &headers])
            .arg(staging),
    )
    .with_context(|| format!("{} failed", script.display()))
}

/// Downloads a package, checks its hash and unpacks it to `npm/NAME`.
fn fetch(package: &NpmPackage, scratch: &Path, npm: &Path) -> Result<()> {
    let NpmPackage {
        name,
        version,
        sha512,
    } = package;
    let download = scratch.join("download");
    fs::create_dir_all(&download)
        .with_context(|| format!("cannot create {}", download.display()))?;
    process::quiet(
        packages::tool("npm")
            .args(["pack", "--silent", "--ignore-scripts"])
            .arg(format!("{name}@{version}"))
            .arg("--pack-destination")
            .arg(&download)
            .current_dir(scratch),
    )
    .with_context(|| format!("cannot download {name} (it comes from npm: is it reachable?)"))?;
    let archive = download.join(format!("{name}-{version}.tgz"));
    let bytes = fs::read(&archive).with_context(|| format!("npm left no {}", archive.display()))?;
    let found = format!("{:x}", Sha512::digest(&bytes));
    if found != *sha512 {
        bail!("{name} {version} has the hash {found}, but the recipe wants {sha512}");
    }
    let place = npm.join(name);
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
    process::quiet(
        Command::new("tar")
            .args(["-xz", "--no-same-owner", "--strip-components=1", "-C"])
            .arg(&place)
            .arg("-f")
            .arg(&archive),
    )
}
