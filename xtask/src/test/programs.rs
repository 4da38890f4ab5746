//! Builds all tests and learns from cargo which programs came out, and which of them need KVM.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;
use crate::workspace;

/// The packages whose test targets (not their unit tests) need a host with KVM,
/// userfaultfd and cgroups.
const HOST_PACKAGES: [&str; 3] = ["tests", "vmm", "agent"];

/// A program made of tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestProgram {
    /// Its package's folder and its target, for people.
    pub name: String,
    /// The executable.
    pub executable: PathBuf,
    /// The directory it has to run in: its package's.
    pub directory: PathBuf,
    /// Whether it has to run where KVM is.
    pub needs_kvm: bool,
}

/// A message of `cargo build --message-format=json`, as far as it matters.
#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds all tests of the workspace.
pub fn build() -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    process::each_line(
        workspace::cargo().args([
            "test",
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ]),
        |line| {
            programs.extend(parse_message(line)?);
            Ok(())
        },
    )?;
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(programs)
}

fn parse_message(line: &str) -> Result<Option<TestProgram>> {
    if !line.starts_with('{') {
        return Ok(None);
    }
    let message: Message = serde_json::from_str(line)
        .with_context(|| format!("cargo printed a message of unknown shape: {line}"))?;
    let (Some(manifest), Some(target), Some(profile), Some(executable)) = (
        message.manifest_path,
        message.target,
        message.profile,
        message.executable,
    ) else {
        return Ok(None);
    };
    if message.reason != "compiler-artifact" || !profile.test {
        return Ok(None);
    }
    let directory = manifest.parent().unwrap_or(Path::new("/")).to_owned();
    let package = directory
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let is_test_target = target.kind.iter().any(|kind| kind == "test");
    let needs_kvm = is_test_target && HOST_PACKAGES.contains(&package.as_str());
    let name = match target.kind.first() {
        Some(kind) => format!("{package}/{kind}/{}", target.name),
        None => format!("{package}/{}", target.name),
    };
    Ok(Some(TestProgram {
        name,
        executable,
        directory,
        needs_kvm,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(package: &str, kind: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"/w/{package}/Cargo.toml",
            "target":{{"kind":["{kind}"],"name":"boot","test":true}},"profile":{{"test":{test}}},
            "executable":"/t/boot-1"}}"#
        )
        .replace('\n', "")
    }

    #[test]
    fn integration_tests_need_kvm_and_unit_tests_do_not() {
        let needs = |package, kind| {
            parse_message(&message(package, kind, true))
                .unwrap()
                .unwrap()
                .needs_kvm
        };
        assert!(needs("tests", "test"));
        assert!(needs("vmm", "test"));
        assert!(!needs("vmm", "lib"));
        assert!(needs("agent", "test"));
        assert!(!needs("guest-init", "test"));
    }

    #[test]
    fn what_is_no_test_program_is_passed_over() {
        assert_eq!(parse_message(&message("vmm", "bin", false)).unwrap(), None);
        assert_eq!(
            parse_message(r#"{"reason":"build-finished","success":true}"#).unwrap(),
            None
        );
        assert_eq!(parse_message("noise").unwrap(), None);
        assert!(parse_message("{broken").is_err());
    }
}
