//! Packages from PyPI: wheels whose hashes are in a requirements file. Nothing is compiled.

use std::path::Path;

use anyhow::{Context, Result};

use crate::packages;
use crate::process;

/// The interpreter that wheels are for, when it is another one than the host's.
pub struct Target<'a> {
    /// The language version.
    pub version: &'a str,
    /// The platforms whose wheels fit.
    pub platforms: &'a [String],
}

/// Installs what `requirements` lists, and nothing else, into `to`.
pub fn install(requirements: &Path, to: &Path, target: Option<&Target<'_>>) -> Result<()> {
    let mut pip = packages::tool("python3");
    pip.args(["-m", "pip", "install", "--quiet"])
        .args([
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
        ])
        .args(["--only-binary=:all:", "--no-compile"]);
    if let Some(target) = target {
        pip.args(["--implementation", "cp", "--python-version", target.version]);
        for platform in target.platforms {
            pip.args(["--platform", platform]);
        }
    }
    pip.arg("--target")
        .arg(to)
        .arg("--requirement")
        .arg(requirements)
        .env("PIP_ROOT_USER_ACTION", "ignore");
    process::quiet(&mut pip).with_context(|| {
        format!(
            "cannot install the packages of {} (they come from PyPI: is it reachable?)",
            requirements.display()
        )
    })
}
