//! The guests' kernels: Linux 6.12 from Debian's source package with the configurations of
//! `kernel-configs/`, each as a stripped ELF `vmlinux`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::packages;
use crate::process;
use crate::progress::Step;
use crate::workspace;

/// The source package.
const SOURCE: &str = "linux-source-6.12";

/// The kind of the cache's entries, and the name of the resolution.
const KIND: &str = "guest-kernel";

/// Part of the key: to be raised when this module builds something else from the same input.
const RECIPE: &str = "2";

/// About how many files the build compiles or links; only the progress bar cares.
const BUILD_STEPS: u64 = 1450;

/// What the build never reads: most of the source by size. Writing it to disk and removing it
/// again would take longer than compiling the rest.
const UNUSED: [&str; 15] = [
    "*/Documentation/*/*",
    "*/arch/[!x]*/*.[chS]",
    "*/arch/*/boot/dts/*",
    "*/drivers/gpu/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/net/ethernet/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/scsi/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/drivers/usb/*.[ch]",
    "*/samples/*.[ch]",
    "*/sound/*.[ch]",
    "*/tools/perf/*",
    "*/tools/testing/*",
];

/// What is changed in the source before it is built: in which file, what, and what it
/// becomes.
///
/// Pages of files come from blocks of their own, those of reclaimable pages, and not from those
/// of anonymous memory; the kernel's reclaimable objects come from the blocks of its others.
/// Most pages of files are only read. So in a snapshot there are whole blocks in which no
/// request writes, and those are one mapping each (decision 0035).
///
/// What lies behind the kernel's constants up to the next place of 2 MiB is not given away: the
/// constants' place would be written to otherwise. The host has no memory under it.
///
/// [`ADDED`] is built with the rest of its folder.
const CHANGES: [(&str, &str, &str); 4] = [
    (
        "fs/inode.c",
        "mapping_set_gfp_mask(mapping, GFP_HIGHUSER_MOVABLE);",
        "mapping_set_gfp_mask(mapping, GFP_HIGHUSER | __GFP_RECLAIMABLE);",
    ),
    ("mm/slub.c", "s->allocflags |= __GFP_RECLAIMABLE;", ";"),
    (
        "arch/x86/mm/init_64.c",
        "\tfree_kernel_image_pages(\"unused kernel image (rodata/data gap)\",\n\
         \t\t\t\t(void *)rodata_end, (void *)_sdata);\n",
        "",
    ),
    (
        "mm/Makefile",
        "obj-$(CONFIG_MIGRATION) += migrate.o",
        "obj-$(CONFIG_MIGRATION) += migrate.o gather.o",
    ),
];

/// What is added to the source before it is built: the file in `kernel-configs/`, and where it
/// goes (decision 0036).
const ADDED: (&str, &str) = ("gather.c", "mm/gather.c");

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// That of Snapback's guests.
    Guest,
    /// The same, with virtio devices on a PCI bus: for a peer that has no others.
    Pci,
}

impl Kernel {
    /// The files of its configuration; the last line about a symbol counts.
    fn configuration(self) -> Vec<PathBuf> {
        let names: &[&str] = match self {
            Self::Guest => &["guest-x86_64.config"],
            Self::Pci => &["guest-x86_64.config", "peer-pci-x86_64.config"],
        };
        let folder = workspace::root().join("kernel-configs");
        names.iter().map(|name| folder.join(name)).collect()
    }

    /// What it is made of, besides the version of the source.
    fn key(self) -> Result<Key> {
        let mut files = self.configuration();
        files.push(added());
        let start = CHANGES.iter().fold(
            Key::new().with("recipe", RECIPE),
            |key, (file, from, to)| key.with(file, format!("{from}\0{to}")),
        );
        files
            .iter()
            .try_fold(start, |key, file| key.with_file(file))
    }
}

/// The kernel's `vmlinux`, built if the cache lacks it. All kernels are of one version.
pub fn make(cache: &Cache, kernel: Kernel) -> Result<PathBuf> {
    let guest = Kernel::Guest.key()?;
    let version = cache.resolve(
        KIND,
        |version| cache.has(KIND, &guest.clone().with("version", version)),
        || packages::candidate(SOURCE),
    )?;
    let key = kernel.key()?.with("version", &version);
    let entry = cache.entry(KIND, &key, |dir, scratch| {
        let source = unpack(&version, scratch)?;
        CHANGES.iter().try_for_each(|one| change(&source, one))?;
        add(&source)?;
        configure(&source, &kernel.configuration(), scratch)?;
        compile(&source)?;
        let copy = |from: &str, to: &str| {
            fs::copy(source.join(from), dir.join(to))
                .with_context(|| format!("the kernel build left no {from}"))
        };
        copy(".config", "config")?;
        copy("vmlinux", "vmlinux")?;
        process::quiet(Command::new("strip").arg(dir.join("vmlinux")))
    })?;
    Ok(entry.join("vmlinux"))
}

/// Downloads and unpacks the source; the result is its top directory.
fn unpack(version: &str, scratch: &Path) -> Result<PathBuf> {
    let step = Step::start(format!(
        "guest kernel {version}: download and unpack the source"
    ));
    let package = scratch.join("package");
    for archive in packages::download(&[format!("{SOURCE}={version}")], scratch)? {
        packages::unpack(&archive, &package)?;
    }
    let tarball = package.join("usr/src").join(format!("{SOURCE}.tar.xz"));
    let source = scratch.join("source");
    fs::create_dir(&source).with_context(|| format!("cannot create {}", source.display()))?;
    process::quiet(
        Command::new("tar")
            .args(["--strip-components=1", "-C"])
            .arg(&source)
            .args(UNUSED.map(|pattern| format!("--exclude={pattern}")))
            .arg("-xf")
            .arg(&tarball),
    )?;
    step.done();
    Ok(source)
}

/// The file of ours that [`ADDED`] names.
fn added() -> PathBuf {
    workspace::root().join("kernel-configs").join(ADDED.0)
}

/// Adds [`ADDED`].
fn add(source: &Path) -> Result<()> {
    let place = source.join(ADDED.1);
    fs::copy(added(), &place)
        .map(drop)
        .with_context(|| format!("cannot write {}", place.display()))
}

/// Makes one of [`CHANGES`].
fn change(source: &Path, (file, from, to): &(&str, &str, &str)) -> Result<()> {
    let path = source.join(file);
    let name = || path.display().to_string();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", name()))?;
    let places = text.matches(from).count();
    if places != 1 {
        bail!("{file} of the kernel has {from:?} {places} times, not once: look at CHANGES anew");
    }
    fs::write(&path, text.replacen(from, to, 1)).with_context(|| format!("cannot write {}", name()))
}

/// Configures the source and checks that Kconfig took every line of the configuration.
fn configure(source: &Path, files: &[PathBuf], scratch: &Path) -> Result<()> {
    let step = Step::start("guest kernel: configure");
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let texts: Result<Vec<String>> = files.iter().map(|file| read(file)).collect();
    let wanted = texts?.concat();
    let all = scratch.join("wanted.config");
    fs::write(&all, &wanted).with_context(|| format!("cannot write {}", all.display()))?;
    let mut setting = std::ffi::OsString::from("KCONFIG_ALLCONFIG=");
    setting.push(&all);
    process::quiet(make_command(source).arg(setting).arg("allnoconfig"))?;
    let refused = refused(&wanted, &read(&source.join(".config"))?);
    if !refused.is_empty() {
        let names: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
        bail!(
            "the kernel does not take these lines of {} (a dependency is missing, or the symbol \
             is gone): {}",
            names.join(" and "),
            refused.join(", ")
        );
    }
    step.done();
    Ok(())
}

fn compile(source: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let step = Step::start_counted("guest kernel: compile", BUILD_STEPS);
    process::each_line(
        make_command(source).args([&format!("-j{jobs}"), "vmlinux"]),
        |line| {
            step.advance(line.split_whitespace().last().unwrap_or_default());
            Ok(())
        },
    )?;
    step.done();
    Ok(())
}

/// `make` at low priority, in a clean and reproducible environment.
fn make_command(source: &Path) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "10", "make", "-C"])
        .arg(source)
        .env_remove("MAKEFLAGS")
        .env("LC_ALL", "C")
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_USER", "snapback")
        .env("KBUILD_BUILD_HOST", "snapback");
    command
}

/// The lines of `fragment` that `config` does not fulfil, with what it has instead.
fn refused(fragment: &str, config: &str) -> Vec<String> {
    let set = symbols(config);
    symbols(fragment)
        .into_iter()
        .filter_map(|(symbol, wanted)| {
            let got = set.get(symbol).copied().unwrap_or("n");
            (got != wanted).then(|| format!("{symbol}={wanted} (is {got})"))
        })
        .collect()
}

fn symbols(config: &str) -> BTreeMap<&str, &str> {
    config
        .lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter_map(|line| line.trim().split_once('='))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_kconfig_dropped_are_named() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=8\nCONFIG_D=y\nCONFIG_E=n\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=4\nCONFIG_E=y\n";
        assert_eq!(
            refused(fragment, config),
            [
                "CONFIG_C=8 (is 4)",
                "CONFIG_D=y (is n)",
                "CONFIG_E=n (is y)"
            ]
        );
    }

    #[test]
    fn the_last_line_about_a_symbol_counts() {
        let fragments = "CONFIG_A=n\nCONFIG_B=y\nCONFIG_A=y\n";
        let none: [String; 0] = [];
        assert_eq!(refused(fragments, "CONFIG_A=y\nCONFIG_B=y\n"), none);
    }
}
