//! What the process can reach: namespaces, file system, paths, resources.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::{JailConfig, JailError, Limits};
use crate::sys::jail as sys;

/// Where the empty root is mounted before it becomes the root; every host has it.
const STAGE: &str = "/proc";

/// Leaves the host's namespaces and its file system. A process without privileges
/// does it from within a user namespace.
pub(super) fn namespaces(config: &JailConfig) -> Result<(), JailError> {
    if !config.namespaces {
        return Ok(());
    }
    let mut flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    let sets = rustix::thread::capabilities(None)
        .map_err(JailError::step("reading the process's capabilities"))?;
    if !sets.effective.contains(CapabilitySet::SYS_ADMIN) {
        flags |= UnshareFlags::NEWUSER;
    }
    sys::unshare(flags).map_err(JailError::step("leaving the host's namespaces"))?;
    empty_root()
}

/// Makes an empty, read-only file system the root, and unmounts everything else.
fn empty_root() -> Result<(), JailError> {
    sys::make_mounts_private().map_err(JailError::step("detaching the mounts from the host's"))?;
    sys::mount_tmpfs(STAGE).map_err(JailError::step("mounting an empty file system"))?;
    rustix::process::chdir(STAGE).map_err(JailError::step("entering the empty file system"))?;
    rustix::process::pivot_root(".", ".").map_err(JailError::step("changing the root"))?;
    sys::detach(".").map_err(JailError::step("unmounting the host's file system"))?;
    rustix::process::chdir("/").map_err(JailError::step("entering the empty file system"))?;
    sys::make_read_only("/").map_err(JailError::step("making the empty file system read-only"))
}

/// Forbids every access that the kernel's Landlock knows, and allows none.
pub(super) fn landlock() -> Result<(), JailError> {
    // The newest ABI; what the kernel does not know is left out, what it knows of
    // this is enforced.
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(JailError::Landlock)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(JailError::NoLandlock),
    }
}

/// Sets the limits, soft and hard alike.
pub(super) fn limits(limits: &Limits) -> Result<(), JailError> {
    let set = |resource, value| {
        let limit = Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        rustix::process::setrlimit(resource, limit)
            .map_err(JailError::step("limiting the process's resources"))
    };
    set(Resource::Core, 0)?;
    set(Resource::Nofile, limits.open_files)?;
    if let Some(len) = limits.file_len {
        set(Resource::Fsize, len)?;
    }
    if let Some(threads) = limits.threads {
        set(Resource::Nproc, threads)?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(JailError::step("forbidding core dumps"))
}
