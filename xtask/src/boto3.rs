//! The AWS SDK for Python, unmodified: a client that knows nothing of us, for the tests.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::packages;
use crate::pip;
use crate::process;
use crate::progress::Step;
use crate::workspace;

/// The SDK, and the interpreter that it was installed for.
pub struct Boto3 {
    /// The interpreter's program itself.
    pub python: String,
    /// A folder for `PYTHONPATH`.
    pub packages: PathBuf,
}

/// Installs it into the cache if need be.
pub fn make(cache: &Cache) -> Result<Boto3> {
    let requirements = workspace::root().join("tests/python/requirements.txt");
    let question = "import sys; print(sys.executable); print(sys.version)";
    let answer = process::capture(packages::tool("python3").args(["-c", question]))?;
    let (python, version) = answer
        .split_once('\n')
        .context("python3 does not say where it is")?;
    let key = Key::new()
        .with("python", version)
        .with_file(&requirements)?;
    let packages = cache.entry("boto3", &key, |dir, _| {
        let step = Step::start("boto3: install".to_owned());
        pip::install(&requirements, dir, None)?;
        step.done();
        Ok(())
    })?;
    Ok(Boto3 {
        python: python.to_owned(),
        packages,
    })
}
