//! Builds the tree of a root file system in a staging directory.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::recipe::{Bundle, Loaded, Python};
use super::{native, staged};
use crate::packages;
use crate::pip;
use crate::process;

/// Top-level links of a merged `/usr`. They must be there before packages are unpacked: some
/// of Debian 12's packages still use the old places.
const MERGED: [(&str, &str); 4] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
];

/// Fills `staging` with what the recipe asks for. The SDK's packages are for the recipe's own build
/// only.
pub fn build(loaded: &Loaded, archives: &[PathBuf], sdk: &[PathBuf], staging: &Path) -> Result<()> {
    let recipe = &loaded.recipe;
    for (link, target) in MERGED {
        create_directory(&staging.join(target))?;
        link_to(target, &staging.join(link))?;
    }
    for archive in archives {
        packages::unpack(archive, staging)?;
    }
    if let Some(python) = &recipe.python {
        let target = pip::Target {
            version: &python.version,
            platforms: &python.platforms,
        };
        let requirements = loaded.directory.join(&python.requirements);
        pip::install(&requirements, &inside(staging, &python.site), Some(&target))?;
    }
    if let Some(build) = &recipe.build {
        native::run(build, &loaded.directory, sdk, staging)?;
    }
    for bundle in &recipe.bundles {
        concatenate(bundle, staging)?;
    }
    for path in &recipe.image.drop {
        remove(&inside(staging, path))?;
    }
    for (link, target) in &recipe.links {
        link_to(target, &inside(staging, link))?;
    }
    for applet in &recipe.busybox.applets {
        let place = staging.join("usr/bin").join(applet);
        if place.symlink_metadata().is_err() {
            link_to("busybox", &place)?;
        }
    }
    for file in &recipe.files {
        let path = inside(staging, &file.path);
        let content = file.content.strip_prefix('\n').unwrap_or(&file.content);
        write(&path, content.as_bytes())?;
        set_mode(&path, file.mode)?;
    }
    if let Some(python) = &recipe.python {
        compile(python, staging)?;
    }
    process::quiet(packages::tool("ldconfig").args(["-X", "-r"]).arg(staging))?;
    remove(&staging.join("var/cache"))?;
    for (path, mode) in &recipe.directories {
        let path = inside(staging, path);
        create_directory(&path)?;
        set_mode(&path, *mode)?;
    }
    Ok(())
}

/// Compiles all Python code ahead with the image's own interpreter. The compiled files carry
/// the source's hash and are never checked against it: the image does not change.
fn compile(python: &Python, staging: &Path) -> Result<()> {
    let mut command = staged(staging, &python.interpreter);
    command
        .args(["-I", "-S", "-m", "compileall", "-q", "-f"])
        .args(["--invalidation-mode", "unchecked-hash"])
        .arg("-s")
        .arg(staging)
        .args(["-p", "/"])
        .arg(inside(staging, &python.library))
        .arg(inside(staging, &python.site))
        .env_remove("PYTHONPATH")
        .env("PYTHONHOME", staging.join("usr"))
        .env("PYTHONHASHSEED", "0");
    process::quiet(&mut command)
}

fn concatenate(bundle: &Bundle, staging: &Path) -> Result<()> {
    let from = inside(staging, &bundle.from);
    let context = || format!("cannot read the bundle's directory {}", from.display());
    let mut parts = Vec::new();
    for entry in fs::read_dir(&from).with_context(context)? {
        parts.push(entry.with_context(context)?.path());
    }
    parts.sort();
    if parts.is_empty() {
        bail!("the bundle's directory {} is empty", from.display());
    }
    let mut content = Vec::new();
    for part in parts {
        content.extend(fs::read(&part).with_context(|| format!("cannot read {}", part.display()))?);
    }
    write(&inside(staging, &bundle.into), &content)
}

/// The place in `staging` of an absolute path of the image.
fn inside(staging: &Path, path: &str) -> PathBuf {
    staging.join(path.trim_start_matches('/'))
}

fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

fn link_to(target: &str, link: &Path) -> Result<()> {
    if let Some(parent) = link.parent() {
        create_directory(parent)?;
    }
    symlink(target, link)
        .with_context(|| format!("cannot make the link {} to {target}", link.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        create_directory(parent)?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    result.with_context(|| format!("cannot remove {}", path.display()))
}
