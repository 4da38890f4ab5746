//! What the host's kernel does for the threads of a process: where it loads a vCPU, as a
//! probe in KVM sees it. Needs root and tracefs.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const MOUNT: &str = "/sys/kernel/tracing";
const GROUP: &str = "snapback";

/// Watches which vCPUs are loaded; ends when it is dropped.
pub struct Loads {
    name: String,
}

impl Loads {
    /// Begins to watch.
    pub fn watch() -> Self {
        let root = Path::new(MOUNT);
        if !root.join("kprobe_events").exists() {
            let mounted = Command::new("mount")
                .args(["-t", "tracefs", "none", MOUNT])
                .status();
            assert!(mounted.unwrap().success());
        }
        let functions = fs::read_to_string(root.join("available_filter_functions")).unwrap();
        let function = ["svm_vcpu_load", "vmx_vcpu_load"]
            .into_iter()
            .find(|name| {
                functions
                    .lines()
                    .any(|line| line.split(' ').next() == Some(name))
            })
            .expect("KVM loads vCPUs");
        let loads = Self {
            name: format!("vcpu_load_{}", std::process::id()),
        };
        // The first argument of both is the vCPU.
        append(
            &root.join("kprobe_events"),
            &format!("p:{GROUP}/{} {function} vcpu=%di", loads.name),
        );
        fs::write(root.join("trace"), "").unwrap();
        fs::write(loads.switch(), "1").unwrap();
        loads
    }

    /// The vCPUs that each thread has loaded since the last time, in order, without
    /// repetitions.
    pub fn take(&self) -> HashMap<u32, Vec<String>> {
        let root = Path::new(MOUNT);
        let trace = fs::read_to_string(root.join("trace")).unwrap();
        fs::write(root.join("trace"), "").unwrap();
        let mut found: HashMap<u32, Vec<String>> = HashMap::new();
        for line in trace.lines().filter(|line| line.contains(&self.name)) {
            // "   vcpu0-123   [000] d..1.  12.345678: NAME: (svm_vcpu_load+0x0/0x60) vcpu=0x…"
            let thread = line.split('[').next().unwrap().trim();
            let thread: u32 = thread.rsplit('-').next().unwrap().trim().parse().unwrap();
            let vcpu = line.rsplit("vcpu=").next().unwrap().trim().to_owned();
            let seen = found.entry(thread).or_default();
            if seen.last() != Some(&vcpu) {
                seen.push(vcpu);
            }
        }
        found
    }

    fn switch(&self) -> PathBuf {
        Path::new(MOUNT).join(format!("events/{GROUP}/{}/enable", self.name))
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        let _ = fs::write(self.switch(), "0");
        append(
            &Path::new(MOUNT).join("kprobe_events"),
            &format!("-:{GROUP}/{}", self.name),
        );
    }
}

fn append(file: &Path, line: &str) {
    let mut file = OpenOptions::new().append(true).open(file).unwrap();
    writeln!(file, "{line}").unwrap();
}
