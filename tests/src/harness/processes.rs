//! What an observer with the host's root rights sees of VMM processes and their cgroups.

use std::fs;
use std::path::{Path, PathBuf};

/// Where cgroup v2 is mounted.
pub fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| path.into())
    });
    mount.expect("cgroup v2 is mounted")
}

/// A running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(pub u32);

impl Process {
    /// A file or folder of it in /proc.
    pub fn path(self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.0)).join(name)
    }

    pub fn read(self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A field of `status`, of it or of one of its threads.
    pub fn status(self, file: &str, field: &str) -> String {
        let status = self.read(file);
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .unwrap_or_else(|| panic!("{field} is not in {status}"));
        line.trim().to_owned()
    }

    /// Whether it still runs: a process that has ended has no program.
    pub fn runs(self) -> bool {
        fs::read_link(self.path("exe")).is_ok()
    }
}

/// The VMM processes of the whole host.
fn machines() -> Vec<Process> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Process))
        .filter(|process| {
            let program = fs::read_link(process.path("exe"));
            program.is_ok_and(|program| program.ends_with("snapback-vmm"))
        })
        .collect()
}

/// The VMM processes below an agent's cgroup.
pub fn machines_in(cgroup: &Path) -> Vec<Process> {
    let name = cgroup.file_name().unwrap().to_str().unwrap();
    let mut found = machines();
    found.retain(|process| {
        let file = fs::read_to_string(process.path("cgroup")).unwrap_or_default();
        file.contains(&format!("/{name}/"))
    });
    found
}

/// The VMM processes below no agent's cgroup at all; one that was just started is moved a
/// moment later.
pub fn stray_machines() -> Vec<Process> {
    let mut found = machines();
    found.retain(|process| {
        let file = fs::read_to_string(process.path("cgroup")).unwrap_or_default();
        !file.contains("/env-")
    });
    found
}

/// The cgroups of environments below an agent's.
pub fn environments_in(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("env-"))
        .map(|entry| entry.path())
        .collect()
}
