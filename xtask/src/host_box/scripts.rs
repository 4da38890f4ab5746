//! The two shell scripts that the box's init reads: which host directories to bring in, and the
//! command with its directory and environment.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::job::Job;
use crate::shell;

/// Directories that the box covers with a tmpfs of its own.
const COVERED: [&str; 2] = ["/tmp", "/run"];

/// Environment variables that a job inherits by name, and by the start of their name.
const INHERITED: [&str; 7] = ["PATH", "HOME", "LANG", "TERM", "USER", "SHELL", "TZ"];
const INHERITED_PREFIXES: [&str; 4] = ["CARGO_", "SNAPBACK_", "RUST_", "RUSTUP_"];

/// The script that runs inside the host's tree. It becomes the command.
pub fn run(job: &Job) -> Result<String> {
    let mut script = String::new();
    let inherited = std::env::vars_os().filter_map(inherited_variable);
    for (name, value) in inherited.chain(job.environment.iter().cloned()) {
        script.push_str(&format!("export {name}={}\n", shell::quote(&value)));
    }
    let words: Vec<String> = job.command.iter().map(|word| shell::quote(word)).collect();
    script.push_str(&format!(
        "cd {} || exit 125\nexec {}\n",
        shell::quote(utf8(&job.directory)?),
        words.join(" ")
    ));
    Ok(script)
}

/// The script that brings host directories into the box; runs before the change of root.
pub fn mounts(job: &Job, kernel_modules: &Path, release: &str) -> Result<String> {
    let mut script = String::new();
    let mut bind = |from: &Path, to: &Path| -> Result<()> {
        let from = shell::quote(&format!("/lower{}", utf8(from)?));
        let to = shell::quote(&format!("/new{}", utf8(to)?));
        script.push_str(&format!("mkdir -p {to} && mount --bind {from} {to}\n"));
        Ok(())
    };
    let modules = Path::new("/lib/modules").join(release);
    bind(kernel_modules, &modules)?;
    for path in &job.visible {
        if COVERED.iter().any(|covered| path.starts_with(covered)) {
            bind(path, path)?;
        }
    }
    for (index, share) in job.shares.iter().enumerate() {
        let to = shell::quote(&format!("/new{}", utf8(share)?));
        script.push_str(&format!(
            "mkdir -p {to} && mount -t 9p -o \
             trans=virtio,version=9p2000.L,msize=512000,cache=mmap,rw {} {to} \
             || fail \"cannot mount a shared directory\"\n",
            share_tag(index)
        ));
    }
    Ok(script)
}

/// The 9p mount tag of a shared directory.
pub fn share_tag(index: usize) -> String {
    format!("share{index}")
}

fn inherited_variable((name, value): (OsString, OsString)) -> Option<(String, String)> {
    let name = name.into_string().ok()?;
    let value = value.into_string().ok()?;
    let wanted = INHERITED.contains(&name.as_str())
        || INHERITED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix));
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (wanted && is_name).then_some((name, value))
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| {
        format!(
            "the path {} is not UTF-8, which the box cannot pass on: rename it",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(command: &[&str]) -> Job {
        Job {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec![("SNAPBACK_X".into(), "a b".into())],
            directory: "/work dir".into(),
            shares: vec!["/tmp/out".into()],
            visible: vec!["/tmp/build".into(), "/home/me".into()],
        }
    }

    #[test]
    fn script_keeps_words_apart() {
        let script = run(&job(&["echo", "two words", "it's"])).unwrap();
        assert!(script.contains("export SNAPBACK_X='a b'\n"));
        assert!(
            script.ends_with("cd '/work dir' || exit 125\nexec 'echo' 'two words' 'it'\\''s'\n")
        );
    }

    #[test]
    fn only_covered_directories_are_bound() {
        let mounts = mounts(&job(&["true"]), Path::new("/cache/modules"), "6.12").unwrap();
        assert!(mounts.contains("'/lower/tmp/build' '/new/tmp/build'"));
        assert!(!mounts.contains("/home/me"));
        assert!(mounts.contains("share0 '/new/tmp/out'"));
        assert!(mounts.contains("'/lower/cache/modules' '/new/lib/modules/6.12'"));
    }

    #[test]
    fn environment_is_inherited_by_name() {
        let pick = |name: &str| inherited_variable((name.into(), "v".into())).is_some();
        assert!(pick("PATH"));
        assert!(pick("CARGO_TARGET_DIR"));
        assert!(!pick("SECRET_TOKEN"));
        assert!(!pick("CARGO_ODD.NAME"));
    }
}
