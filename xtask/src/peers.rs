//! Programs of other VMMs that whoever measures may have: named by environment variables.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::kernel::{self, Kernel};

/// Firecracker's program.
const FIRECRACKER: &str = "FIRECRACKER_BIN";
/// Cloud Hypervisor's.
const CLOUD_HYPERVISOR: &str = "CLOUD_HYPERVISOR_BIN";

/// What the benchmark is told of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Arguments.
    pub words: Vec<String>,
    /// Directories that have to be visible where it runs.
    pub visible: Vec<PathBuf>,
}

/// Looks for the programs that the environment names, and makes the kernel that one of
/// them needs.
pub fn find(cache: &Cache) -> Result<Peers> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let mut peers = Peers::default();
    if let Some(path) = named(FIRECRACKER) {
        peers.add("--firecracker", &program(FIRECRACKER, path.as_ref())?);
    }
    if let Some(path) = named(CLOUD_HYPERVISOR) {
        let path = program(CLOUD_HYPERVISOR, path.as_ref())?;
        peers.add("--cloud-hypervisor", &path);
        peers.add("--pci-kernel", &kernel::make(cache, Kernel::Pci)?);
    }
    Ok(peers)
}

impl Peers {
    fn add(&mut self, option: &str, path: &Path) {
        self.words
            .extend([option.to_owned(), path.to_string_lossy().into_owned()]);
        self.visible.extend(path.parent().map(Path::to_owned));
    }
}

/// The whole path of a program that can be executed.
fn program(variable: &str, path: &Path) -> Result<PathBuf> {
    let found = path
        .canonicalize()
        .with_context(|| format!("{variable} is {}, which is not there", path.display()))?;
    let metadata = fs::metadata(&found)
        .with_context(|| format!("{variable} is {}, which cannot be read", path.display()))?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        bail!("{variable} is {}, which is no program", path.display());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_by_its_whole_path_or_refused_by_its_variable() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("vmm"), dir.path().join("link"));
        let refused = |path: &Path| program("X_BIN", path).unwrap_err().to_string();
        assert!(
            refused(&file).starts_with("X_BIN is /"),
            "{}",
            refused(&file)
        );
        assert!(refused(&file).ends_with("which is not there"));
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refused(&file).ends_with("which is no program"));
        assert!(refused(dir.path()).ends_with("which is no program"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let whole = file.canonicalize().unwrap();
        assert_eq!(program("X_BIN", &link).unwrap(), whole);
    }

    #[test]
    fn a_program_comes_with_its_directory() {
        let mut peers = Peers::default();
        peers.add("--firecracker", Path::new("/opt/fc/firecracker"));
        assert_eq!(peers.words, ["--firecracker", "/opt/fc/firecracker"]);
        assert_eq!(peers.visible, [Path::new("/opt/fc")]);
    }
}
