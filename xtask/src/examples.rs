//! `target/examples`: the functions of `examples/`, complete with what they need and the source
//! tree does not have.
//!
//! | in the example's folder | becomes |
//! |---|---|
//! | `layer-requirements.txt` | `layer/python/`: these packages from PyPI |
//! | `Cargo.toml` | `package/bootstrap`: the program of the crate, static |
//! | everything else | a copy |

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cache::{Cache, Key};
use crate::pip;
use crate::progress::Step;
use crate::static_program;
use crate::workspace;

const REQUIREMENTS: &str = "layer-requirements.txt";
const MANIFEST: &str = "Cargo.toml";
const DESCRIPTION: &str = "function.toml";

/// The interpreter of Python functions, as in `rootfs/python.toml`.
const PYTHON: &str = "3.11";
const PLATFORMS: [&str; 2] = ["manylinux_2_28_x86_64", "manylinux2014_x86_64"];

/// The start of a crate's manifest.
#[derive(Deserialize)]
struct Manifest {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    name: String,
}

/// Makes all examples; the result is the directory.
pub fn make(cache: &Cache) -> Result<PathBuf> {
    let to = workspace::target().join("examples");
    for from in folders()? {
        let name = from.file_name().unwrap_or_default();
        make_one(cache, &from, &to.join(name))
            .with_context(|| format!("cannot make the example {}", from.display()))?;
    }
    Ok(to)
}

/// The folders in `examples/` that describe a function.
fn folders() -> Result<Vec<PathBuf>> {
    let examples = workspace::root().join("examples");
    let context = || format!("cannot list {}", examples.display());
    let mut folders = Vec::new();
    for entry in fs::read_dir(&examples).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.join(DESCRIPTION).is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn make_one(cache: &Cache, from: &Path, to: &Path) -> Result<()> {
    // What was removed from an example must not stay.
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::create_dir_all(to)?;
    let manifest = from.join(MANIFEST);
    if manifest.is_file() {
        let text = fs::read_to_string(&manifest)?;
        let package = toml::from_str::<Manifest>(&text)?.package.name;
        let step = Step::start(format!("{package}: build"));
        let program = static_program::build(&package)?;
        step.done();
        fs::create_dir(to.join("package"))?;
        fs::copy(program, to.join("package/bootstrap"))?;
    }
    let requirements = from.join(REQUIREMENTS);
    if requirements.is_file() {
        copy(&layer(cache, &requirements)?, &to.join("layer"))?;
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let own = [MANIFEST, REQUIREMENTS].iter().any(|own| name == *own);
        // A crate's sources are no part of its function.
        let source = manifest.is_file() && name == "src";
        if !own && !source {
            copy(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

/// A layer with the packages of a requirements file, made if the cache lacks it.
fn layer(cache: &Cache, requirements: &Path) -> Result<PathBuf> {
    let key = Key::new()
        .with("python", PYTHON)
        .with("platforms", PLATFORMS.join(" "))
        .with_file(requirements)?;
    cache.entry("layer", &key, |dir, _| {
        let target = pip::Target {
            version: PYTHON,
            platforms: &PLATFORMS.map(str::to_owned),
        };
        pip::install(requirements, &dir.join("python"), Some(&target))
    })
}

/// Copies a file, or a folder with everything in it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    }
    fs::create_dir(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "__pycache__" {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_has_an_event_and_the_answer_to_it() {
        let folders = folders().unwrap();
        let shown = folders
            .iter()
            .filter(|folder| !folder.ends_with("word-report"));
        let mut count = 0;
        for folder in shown {
            for name in ["event.json", "expected.json"] {
                let text = fs::read_to_string(folder.join(name)).unwrap();
                let parsed = serde_json::from_str::<serde_json::Value>(&text);
                parsed.unwrap_or_else(|error| panic!("{} {name}: {error}", folder.display()));
            }
            count += 1;
        }
        assert!(count >= 5, "{folders:?}");
    }

    #[test]
    fn a_copy_has_everything_but_compiled_files() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::create_dir_all(from.join("src/__pycache__")).unwrap();
        fs::write(from.join("src/app.py"), "app").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("src/app.py")).unwrap(), "app");
        assert!(!to.join("src/__pycache__").exists());
    }
}
