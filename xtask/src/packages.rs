//! Debian packages: which ones the host needs, how they get there, and how a package
//! is unpacked into the cache without being installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process;
use crate::progress::Step;

/// A package the host needs, and a file that is there when it is installed.
struct Needed {
    package: &'static str,
    probe: Probe,
}

/// How to see that a package is there, however it came.
enum Probe {
    Program(&'static str),
    File(&'static str),
}

/// Everything that the box, the guest kernel and the root file systems need. A Node.js that is not
/// Debian's brings its own npm: there the program is found, and the package not wanted.
const NEEDED: &[Needed] = &[
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("busybox-static", "busybox"),
    program("kmod", "depmod"),
    program("erofs-utils", "mkfs.erofs"),
    program("flex", "flex"),
    program("bison", "bison"),
    program("bc", "bc"),
    program("xz-utils", "xz"),
    program("make", "make"),
    program("gcc", "gcc"),
    program("g++", "g++"),
    program("cmake", "cmake"),
    program("autoconf", "autoconf"),
    program("automake", "automake"),
    program("libtool", "libtoolize"),
    program("npm", "npm"),
    program("binutils", "strip"),
    program("util-linux", "setpriv"),
    program("python3", "python3"),
    program("python3-pip", "pip3"),
    file("libc6-dev", "/usr/include/stdlib.h"),
    file("libelf-dev", "/usr/include/libelf.h"),
    file("libssl-dev", "/usr/include/openssl/ssl.h"),
    file("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

const fn program(package: &'static str, name: &'static str) -> Needed {
    Needed {
        package,
        probe: Probe::Program(name),
    }
}

const fn file(package: &'static str, path: &'static str) -> Needed {
    Needed {
        package,
        probe: Probe::File(path),
    }
}

impl Probe {
    fn found(&self) -> bool {
        match self {
            Self::Program(name) => find_program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// Makes sure that the needed packages are there: installs the missing ones as root,
/// else fails with the one command that does.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|needed| !needed.probe.found())
        .map(|needed| needed.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "these Debian packages, or what they contain, are missing: {names}; \
             this host has no apt-get, so install their equivalents by hand"
        );
    }
    if !is_root() {
        bail!(
            "Debian packages are missing. Install them with\n\n    \
             sudo apt-get update && sudo apt-get install -y --no-install-recommends {names}\n"
        );
    }
    update_lists()?;
    let step = Step::start(format!("install {names}"));
    process::quiet(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    step.done();
    Ok(())
}

/// The newest package whose name `choose` accepts and orders, from the archive's names
/// that match `pattern`. Refreshes the package lists when they know none.
pub fn newest(pattern: &str, choose: impl Fn(&str) -> Option<String>) -> Result<String> {
    let search = || -> Result<Option<String>> {
        let listing =
            process::capture(Command::new("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(choose(&listing))
    };
    if let Some(name) = search()? {
        return Ok(name);
    }
    refresh_or_explain()?;
    search()?.with_context(|| {
        format!(
            "the Debian archive has no package that matches {pattern}: \
             add bookworm-security (or a newer release) to apt's sources"
        )
    })
}

/// The version that `apt-get download` would take for `package`.
pub fn candidate(package: &str) -> Result<String> {
    let policy = || -> Result<Option<String>> {
        let text = process::capture(Command::new("apt-cache").args(["policy", package]))?;
        Ok(parse_candidate(&text))
    };
    if let Some(version) = policy()? {
        return Ok(version);
    }
    refresh_or_explain()?;
    policy()?.with_context(|| {
        format!(
            "the Debian archive has no package {package}: \
             add bookworm-security (or a newer release) to apt's sources"
        )
    })
}

/// `packages` and all they depend on, except `without`, each as
/// `name=version`, sorted.
pub fn closure(packages: &[String], without: &[String]) -> Result<Vec<String>> {
    let simulate = || {
        process::capture(
            Command::new("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                // As if nothing was installed: the host's packages must not matter.
                .args(["-o", "Dir::State::status=/dev/null"])
                .args(packages)
                .env("LC_ALL", "C"),
        )
    };
    let plan = match simulate() {
        Ok(plan) => plan,
        Err(_) => {
            refresh_or_explain()?;
            simulate()?
        }
    };
    let mut closure = parse_plan(&plan);
    closure.retain(|(name, _)| !without.contains(name));
    closure.sort();
    Ok(closure
        .into_iter()
        .map(|(name, version)| format!("{name}={version}"))
        .collect())
}

/// The names and versions in the output of `apt-get install --simulate`.
fn parse_plan(plan: &str) -> Vec<(String, String)> {
    plan.lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|rest| {
            let (name, rest) = rest.split_once(' ')?;
            let version = rest.strip_prefix('(')?.split_whitespace().next()?;
            Some((name.to_owned(), version.to_owned()))
        })
        .collect()
}

/// Downloads `packages` (each `name` or `name=version`) into `dir` and returns the
/// archives' paths.
pub fn download(packages: &[String], dir: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let attempt = || {
        process::quiet(
            Command::new("apt-get")
                .args(["download", "-q"])
                .args(packages)
                .current_dir(dir),
        )
    };
    if attempt().is_err() {
        // Most likely stale lists that name a version the archive no longer has.
        refresh_or_explain()?;
        attempt()?;
    }
    let mut archives = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("cannot list {}", dir.display()))?
            .path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            archives.push(path);
        }
    }
    archives.sort();
    Ok(archives)
}

/// Unpacks a package's files below `dir`; runs none of its scripts. Where `dir` has a link to
/// a directory (such as `/lib` to `usr/lib`), the link stays.
pub fn unpack(archive: &Path, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let failed = || format!("cannot unpack {} into {}", archive.display(), dir.display());
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(archive)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(failed)?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--keep-directory-symlink", "-C"]).arg(dir);
    if let Some(stdout) = reader.stdout.take() {
        tar.stdin(stdout);
    }
    let unpacked = tar.status().with_context(failed)?;
    let read = reader.wait().with_context(failed)?;
    if !unpacked.success() || !read.success() {
        bail!("{}: dpkg-deb says {read}, tar says {unpacked}", failed());
    }
    Ok(())
}

/// The path of a program in `PATH`, or in the folders for administrators' programs that
/// an ordinary user's `PATH` may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()])
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command for an administrator's program such as `depmod`.
pub fn tool(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| name.into()))
}

fn refresh_or_explain() -> Result<()> {
    if !is_root() {
        bail!(
            "the package lists are missing or out of date. Refresh them with\n\n    sudo apt-get update\n"
        );
    }
    update_lists()
}

fn update_lists() -> Result<()> {
    let step = Step::start("refresh the package lists");
    process::quiet(Command::new("apt-get").args(["update", "-q"]))?;
    step.done();
    Ok(())
}

fn is_root() -> bool {
    process::capture(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

fn parse_candidate(policy: &str) -> Option<String> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_read_from_policy() {
        let text = "linux-source-6.12:\n  Installed: (none)\n  Candidate: 6.12.117-1~deb12u1\n";
        assert_eq!(parse_candidate(text).as_deref(), Some("6.12.117-1~deb12u1"));
        assert_eq!(parse_candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn plan_gives_names_and_versions() {
        let plan = "Reading lists...\n\
            Inst libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64]) []\n\
            Inst zlib1g (1:1.2.13.dfsg-1 Debian:12.15/oldstable [amd64])\n\
            Conf libc6 (2.36-9+deb12u14 Debian:12.15/oldstable [amd64])\n";
        assert_eq!(
            parse_plan(plan),
            [
                ("libc6".into(), "2.36-9+deb12u14".into()),
                ("zlib1g".into(), "1:1.2.13.dfsg-1".into())
            ]
        );
    }

    #[test]
    fn programs_are_found_or_not() {
        assert!(find_program("sh").is_some());
        assert!(find_program("surely-no-such-program").is_none());
    }
}
