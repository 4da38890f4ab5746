//! What Snapback needs of the host besides KVM: kernel, memory, cgroups, tools.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Check, Need, check};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// Memory that must be free, in MiB.
const MIN_FREE_MIB: u64 = 512;
/// Oldest kernel: the first with `/dev/userfaultfd`.
const MIN_KERNEL: (u32, u32) = (6, 1);

/// Every check of this module.
pub(super) fn checks() -> [Check; 6] {
    [
        check(
            "kernel",
            Need::Required,
            fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_err(|error| format!("the kernel's release cannot be read ({error})"))
                .and_then(|release| kernel(release.trim())),
            "boot a kernel of 6.1 or newer (Debian's 6.12 is the tested one)",
        ),
        check(
            "memory",
            Need::Required,
            fs::read_to_string("/proc/meminfo")
                .map_err(|error| format!("/proc/meminfo cannot be read ({error})"))
                .and_then(|text| memory(&text)),
            "free at least 512 MiB of memory",
        ),
        check(
            "cgroup",
            Need::Required,
            cgroup(),
            "boot with systemd.unified_cgroup_hierarchy=1, so that /sys/fs/cgroup is cgroup v2 with \
             the controllers memory and pids",
        ),
        check(
            "tun",
            Need::Optional,
            tun(),
            "load the kernel module tun: without it, functions have no network",
        ),
        check(
            "branch-barrier",
            Need::Optional,
            branch_barrier(),
            "let the kernel mitigate Spectre v2 (no mitigations=off, no spectre_v2_user=off) on a \
             processor with IBPB: without it, requests of different tenants never share a microVM",
        ),
        check(
            "mkfs.erofs",
            Need::Required,
            mkfs(),
            "install the Debian package erofs-utils: functions are packed with it",
        ),
    ]
}

fn kernel(release: &str) -> Result<String, String> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!(
            "the kernel's release {release:?} is not understood"
        ));
    };
    if (major, minor) >= MIN_KERNEL {
        Ok(format!("the kernel is {release}"))
    } else {
        Err(format!("the kernel is {release}, which is older than 6.1"))
    }
}

fn memory(meminfo: &str) -> Result<String, String> {
    let kib: Option<u64> = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
    let mib = kib.ok_or("/proc/meminfo has no MemAvailable")? / 1024;
    if mib >= MIN_FREE_MIB {
        Ok(format!("{mib} MiB are free"))
    } else {
        Err(format!("only {mib} MiB are free"))
    }
}

fn cgroup() -> Result<String, String> {
    let stat = rustix::fs::statfs(CGROUP_ROOT)
        .map_err(|errno| format!("{CGROUP_ROOT} cannot be examined ({errno})"))?;
    if u64::try_from(stat.f_type) != Ok(CGROUP2_MAGIC) {
        return Err(format!("{CGROUP_ROOT} is not a cgroup v2 file system"));
    }
    let path = Path::new(CGROUP_ROOT).join("cgroup.controllers");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("{} cannot be read ({error})", path.display()))?;
    controllers(&text)
}

fn controllers(text: &str) -> Result<String, String> {
    let missing: Vec<_> = CONTROLLERS
        .into_iter()
        .filter(|name| !text.split_whitespace().any(|found| found == *name))
        .collect();
    if missing.is_empty() {
        Ok(format!(
            "{CGROUP_ROOT} is cgroup v2 with the controllers {}",
            text.trim()
        ))
    } else {
        Err(format!(
            "{CGROUP_ROOT} is cgroup v2 without the controllers {}",
            missing.join(", ")
        ))
    }
}

fn tun() -> Result<String, String> {
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok("/dev/net/tun opens".to_owned()),
        Err(error) => Err(format!("/dev/net/tun does not open ({error})")),
    }
}

/// Whether this host's kernel has a processor forget its indirect branch predictions when
/// another vCPU is loaded on it: what was found, or why not.
///
/// KVM asks for it each time (`indirect_branch_prediction_barrier`, in the functions that
/// load a VMCB or VMCS); the kernel does it when the processor has IBPB and its
/// mitigation for user space is on, which `spectre_v2` tells (the kernel's
/// Documentation/admin-guide/hw-vuln/spectre.rst).
///
/// # Errors
/// Why it does not, or that it does not say, in words.
pub fn branch_barrier() -> Result<String, String> {
    let file = "/sys/devices/system/cpu/vulnerabilities/spectre_v2";
    let text =
        fs::read_to_string(file).map_err(|error| format!("{file} cannot be read ({error})"))?;
    barrier_in(text.trim())
}

fn barrier_in(text: &str) -> Result<String, String> {
    if text == "Not affected" {
        return Ok("the processor keeps no branch predictions between guests".to_owned());
    }
    let mut parts = text.split([';', ',']).map(str::trim);
    match parts.find_map(|part| part.strip_prefix("IBPB: ")) {
        Some(mode @ ("conditional" | "always-on")) => Ok(format!(
            "between guests, the kernel has the processor forget its branch predictions \
             (IBPB: {mode})"
        )),
        _ => Err(format!(
            "the kernel does not say that it issues IBPB between guests ({text})"
        )),
    }
}

fn mkfs() -> Result<String, String> {
    let path = find("mkfs.erofs").ok_or("mkfs.erofs is not installed")?;
    let runs = Command::new(&path)
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match runs {
        Ok(_) => Ok(format!("{} runs", path.display())),
        Err(error) => Err(format!("{} does not run ({error})", path.display())),
    }
}

/// Looks for a program where a shell of root would.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for good in ["6.1.0-18-amd64", "6.12.43+deb13", "7.0", "10.0.1"] {
            assert!(kernel(good).is_ok(), "{good}");
        }
        for bad in ["6.0.9", "5.10.0-28-amd64", "", "six.one"] {
            assert!(kernel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_kernel_that_says_so_issues_barriers() {
        for good in [
            "Not affected",
            "Mitigation: Retpolines; IBPB: conditional; IBRS_FW; STIBP: always-on; RSB filling",
            "Mitigation: Enhanced / Automatic IBRS; IBPB: always-on; PBRSB-eIBRS: Not affected",
            "Mitigation: Full generic retpoline, IBPB: conditional, IBRS_FW",
        ] {
            assert!(barrier_in(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "Vulnerable",
            "Vulnerable; STIBP: disabled; PBRSB-eIBRS: Not affected; BHI: Not affected",
            "Mitigation: Retpolines; IBPB: disabled; STIBP: disabled",
            "Mitigation: Retpolines; STIBP: disabled; RSB filling",
        ] {
            assert!(barrier_in(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn free_memory_is_read_in_mib() {
        let meminfo = |kib: u64| format!("MemTotal: 9 kB\nMemAvailable:   {kib} kB\n");
        assert_eq!(memory(&meminfo(524_288)).unwrap(), "512 MiB are free");
        assert_eq!(
            memory(&meminfo(524_287)).unwrap_err(),
            "only 511 MiB are free"
        );
        assert!(memory("MemTotal: 9 kB\n").is_err());
    }

    #[test]
    fn a_missing_controller_is_named() {
        assert!(controllers("cpuset cpu io memory pids\n").is_ok());
        assert!(
            controllers("cpu memory\n")
                .unwrap_err()
                .ends_with("controllers pids")
        );
    }
}
