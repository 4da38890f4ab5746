//! The kernel that the box runs: Debian's newest 6.12 image package, unpacked into the cache
//! and not installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, Key};
use crate::packages;
use crate::process;
use crate::progress::Step;

/// The kind of the cache's entries, and the name of the resolution.
const KIND: &str = "box-kernel";

/// An unpacked kernel package.
pub struct KernelImage {
    tree: PathBuf,
    release: String,
}

impl KernelImage {
    /// Finds the newest kernel package, or the one that was found before, and unpacks it
    /// if the cache lacks it.
    pub fn fetch(cache: &Cache) -> Result<Self> {
        let key = |package: &str| Key::new().with("package", package);
        let package = cache.resolve(
            KIND,
            |package| cache.has(KIND, &key(package)),
            || packages::newest("^linux-image-6.12", newest_image),
        )?;
        let release = release_of(&package)
            .with_context(|| format!("the kernel package {package} has an unexpected name"))?
            .to_owned();
        let tree = cache.entry(KIND, &key(&package), |dir, scratch| {
            let step = Step::start(format!("box kernel {release}: download and unpack"));
            for archive in packages::download(std::slice::from_ref(&package), scratch)? {
                packages::unpack(&archive, dir)?;
            }
            process::quiet(packages::tool("depmod").arg("-b").arg(dir).arg(&release))?;
            step.done();
            Ok(())
        })?;
        Ok(Self { tree, release })
    }

    /// The kernel's release, as `uname -r` says it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The unpacked package: `boot/` and `lib/modules/` are below it.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The kernel's modules.
    pub fn modules(&self) -> PathBuf {
        self.tree.join("lib/modules").join(&self.release)
    }

    /// The compressed kernel.
    pub fn vmlinuz(&self) -> PathBuf {
        self.tree
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }
}

/// The newest general-purpose image in the output of `apt-cache search`: not the cloud
/// flavour (it lacks drivers), not the real-time one.
fn newest_image(listing: &str) -> Option<String> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| Some((version_of(name)?, name)))
        .max()
        .map(|(_, name)| name.to_owned())
}

/// The numbers of `linux-image-6.12.NN+debNN[~…]-amd64-unsigned`.
fn version_of(package: &str) -> Option<Vec<u32>> {
    let version = release_of(package)?.strip_suffix("-amd64")?;
    if version.contains("cloud") || version.contains("rt") {
        return None;
    }
    let numbers: Vec<u32> = version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect();
    numbers.starts_with(&[6, 12]).then_some(numbers)
}

/// The kernel release of an unsigned image package.
fn release_of(package: &str) -> Option<&str> {
    package
        .strip_prefix("linux-image-")?
        .strip_suffix("-unsigned")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_is_by_number_and_not_cloud_or_real_time() {
        let listing = "\
linux-image-6.12-amd64 - Linux for 64-bit PCs (meta-package)
linux-image-6.12.9+deb12-amd64-unsigned - Linux 6.12 for 64-bit PCs
linux-image-6.12.117+deb12-amd64-dbg - Debug symbols
linux-image-6.12.117+deb12-amd64-unsigned - Linux 6.12 for 64-bit PCs
linux-image-6.12.118+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.119+deb12-rt-amd64-unsigned - Linux 6.12 for 64-bit PCs, PREEMPT_RT
linux-image-6.12.120+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.1.0-40-amd64-unsigned - Linux 6.1 for 64-bit PCs
linux-image-6.12.57+deb13-amd64-unsigned - Linux 6.12 for 64-bit PCs
";
        assert_eq!(
            newest_image(listing).as_deref(),
            Some("linux-image-6.12.117+deb12-amd64-unsigned")
        );
        assert_eq!(newest_image(""), None);
    }
}
