//! The box's initramfs: a static busybox, the kernel modules in load order, and the init
//! script.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernel_image::KernelImage;
use crate::cache::{Cache, Key};
use crate::cpio::Archive;
use crate::packages;
use crate::process;

/// PID 1.
const INIT: &str = include_str!("init.sh");

/// The modules a job needs at once. Everything else the kernel has is loaded on demand by
/// `modprobe` from the host's tree.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "qemu_fw_cfg",
    "9p",
    "9pnet_virtio",
    "overlay",
    "kvm_amd",
    "tun",
    "veth",
    "vsock_loopback",
];

/// The busybox applets that the init script calls.
const APPLETS: &[&str] = &[
    "cat", "chroot", "echo", "hostname", "insmod", "ip", "ln", "mkdir", "mkfifo", "mount", "sh",
    "sleep", "sync", "usleep",
];

/// The initramfs for `kernel`, made if the cache lacks it.
pub fn make(cache: &Cache, kernel: &KernelImage) -> Result<PathBuf> {
    let busybox = packages::find_program("busybox")
        .context("busybox is missing although the packages were checked: install busybox-static")?;
    let key = Key::new()
        .with("release", kernel.release())
        .with("init", INIT)
        .with("modules", MODULES.join(" "))
        .with("applets", APPLETS.join(" "))
        .with_file(&busybox)?;
    let entry = cache.entry("box-initramfs", &key, |dir, scratch| {
        let archive = build(kernel, &busybox, scratch)?;
        let path = dir.join("initramfs.cpio");
        fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))
    })?;
    Ok(entry.join("initramfs.cpio"))
}

fn build(kernel: &KernelImage, busybox: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for name in [
        "bin", "dev", "lower", "modules", "new", "proc", "sys", "upper",
    ] {
        archive.directory(name, 0o755);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    for applet in APPLETS {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.file("init", 0o755, INIT.as_bytes());

    let mut order = String::new();
    let mut added = BTreeSet::new();
    for module in MODULES {
        for path in dependencies(kernel, module)? {
            let content = plain_module(&path, scratch)?;
            let name = module_file_name(&path)?;
            if added.insert(name.clone()) {
                order.push_str(&name);
                order.push('\n');
                archive.file(&format!("modules/{name}"), 0o644, &content);
            }
        }
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// The files to load for `module`, in order; none when it is built into the kernel.
fn dependencies(kernel: &KernelImage, module: &str) -> Result<Vec<PathBuf>> {
    let listing = process::capture(
        packages::tool("modprobe")
            .arg("-d")
            .arg(kernel.tree())
            .args(["-S", kernel.release(), "--show-depends", module]),
    )?;
    Ok(parse_show_depends(&listing))
}

fn parse_show_depends(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

/// A module's bytes without compression and debugging symbols: under emulation, both cost
/// noticeable time at each start of the box.
fn plain_module(path: &Path, dir: &Path) -> Result<Vec<u8>> {
    let scratch = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("cannot create a scratch file in {}", dir.display()))?;
    let unpacked = if path.extension().is_some_and(|extension| extension == "xz") {
        let output = Command::new("xz")
            .args(["-dc"])
            .arg(path)
            .output()
            .with_context(|| format!("cannot run xz on {}", path.display()))?;
        anyhow::ensure!(
            output.status.success(),
            "xz cannot unpack {}: remove the box-kernel entries from the cache and try again",
            path.display()
        );
        output.stdout
    } else {
        read(path)?
    };
    fs::write(scratch.path(), unpacked)
        .with_context(|| format!("cannot write {}", scratch.path().display()))?;
    process::quiet(
        Command::new("strip")
            .arg("--strip-debug")
            .arg(scratch.path()),
    )?;
    read(scratch.path())
}

/// The module's file name without the compression's suffix.
fn module_file_name(path: &Path) -> Result<String> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("the module path {} has no usable name", path.display()))?;
    Ok(name.strip_suffix(".xz").unwrap_or(name).to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_modules_need_no_file() {
        let listing = "builtin virtio_pci\ninsmod /x/kernel/net/9p/9pnet.ko.xz \ninsmod /x/9p.ko.xz cache=1\n";
        assert_eq!(
            parse_show_depends(listing),
            [
                PathBuf::from("/x/kernel/net/9p/9pnet.ko.xz"),
                PathBuf::from("/x/9p.ko.xz")
            ]
        );
    }

    #[test]
    fn module_names_lose_the_compression_suffix() {
        assert_eq!(module_file_name(Path::new("/a/b.ko.xz")).unwrap(), "b.ko");
        assert_eq!(module_file_name(Path::new("/a/b.ko")).unwrap(), "b.ko");
    }
}
