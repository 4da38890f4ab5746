//! What one of this host's two microVMs uses: memory of its process and of its guest, and what
//! KVM counted.
//!
//! There are two of them, so that what they share (the program's pages in the page cache) is
//! nobody's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PROGRAM: &str = "snapback-vmm";
const KVM_COUNTERS: &str = "/sys/kernel/debug/kvm";

/// It could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum FootprintError {
    /// A file of the kernel's cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is another number of microVMs.
    #[error("there are {found} processes of {PROGRAM}, not two")]
    NotTwo {
        /// How many.
        found: usize,
    },
}

/// What one microVM uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Memory that is the process's own, in KiB. A page of the snapshot is not, even while
    /// the other process does not have it mapped.
    pub private_kib: u64,
    /// Of this, pages of the guest that were copied for it to write, in KiB.
    pub copied_kib: u64,
    /// Exits of its vCPUs since its restore; `None` without debugfs.
    pub exits: Option<u64>,
}

/// The footprint of that one of the two microVMs which has more memory of its own.
///
/// # Errors
/// When there are not exactly two, or the kernel does not tell.
pub fn measure() -> Result<Footprint, FootprintError> {
    let [one, other] = both_processes()?.map(|pid| of_process(&pid));
    let (one, other) = (one?, other?);
    Ok(match one.private_kib >= other.private_kib {
        true => one,
        false => other,
    })
}

fn of_process(pid: &str) -> Result<Footprint, FootprintError> {
    let path = PathBuf::from(format!("/proc/{pid}/smaps"));
    let text = read(&path)?;
    Ok(Footprint {
        exits: exits(pid),
        ..from_smaps(&text)
    })
}

fn read(path: &Path) -> Result<String, FootprintError> {
    fs::read_to_string(path).map_err(|source| FootprintError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Huge pages that the host's memory files have; `None` where it does not say.
pub fn huge_pages() -> Option<u64> {
    /// KiB of a huge page.
    const HUGE_KIB: u64 = 2048;
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("ShmemHugePages:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / HUGE_KIB)
}

fn both_processes() -> Result<[String; 2], FootprintError> {
    let entries = fs::read_dir("/proc").map_err(|source| FootprintError::Read {
        path: "/proc".into(),
        source,
    })?;
    let name = |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm"));
    let found: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| name(pid).is_ok_and(|comm| comm.trim_end() == PROGRAM))
        .collect();
    found
        .try_into()
        .map_err(|found: Vec<_>| FootprintError::NotTwo { found: found.len() })
}

/// Sums `Private_*` of all mappings. Those of memfds are guest memory: what is its own
/// there is anonymous.
fn from_smaps(text: &str) -> Footprint {
    let mut footprint = Footprint::default();
    let mut guest = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        match first {
            "Private_Clean:" | "Private_Dirty:" if !guest => {
                footprint.private_kib += second.parse().unwrap_or(0);
            }
            "Anonymous:" if guest => {
                let kib = second.parse().unwrap_or(0);
                footprint.private_kib += kib;
                footprint.copied_kib += kib;
            }
            // The place that the guest writes most is a huge page of no file.
            "AnonHugePages:" if !guest => {
                footprint.copied_kib += second.parse().unwrap_or(0);
            }
            _ if !first.ends_with(':') => guest = line.contains("/memfd:"),
            _ => {}
        }
    }
    footprint
}

/// KVM's counter of the process's one machine (`Documentation/virt/kvm/api.rst`).
fn exits(pid: &str) -> Option<u64> {
    let machines = fs::read_dir(KVM_COUNTERS).ok()?;
    let own = format!("{pid}-");
    let machine = machines
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&own))?;
    let vcpus = fs::read_dir(machine.path()).ok()?;
    let counters = vcpus
        .filter_map(Result::ok)
        .filter_map(|entry| fs::read_to_string(entry.path().join("exits")).ok());
    let total: u64 = counters
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .sum();
    let of_machine = fs::read_to_string(machine.path().join("exits")).ok();
    of_machine
        .and_then(|text| text.trim().parse().ok())
        .or((total > 0).then_some(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_summed_and_the_guests_told_apart() {
        let text = "\
7f0000000000-7f0008000000 rw-p 00000000 00:01 7 /memfd:snapshot (deleted)
Size:             131072 kB
Private_Clean:         8 kB
Private_Dirty:       700 kB
Anonymous:           100 kB
VmFlags: rd wr mr
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
Private_Clean:         0 kB
Private_Dirty:        12 kB
Anonymous:            12 kB
";
        let expected = Footprint {
            private_kib: 112,
            copied_kib: 100,
            exits: None,
        };
        assert_eq!(from_smaps(text), expected);
    }
}
