//! Who the process is and what it may do: uid, gid, user namespace, capabilities.
//!
//! The order matters: dropping capabilities from the bounding set and changing the uid
//! need capabilities themselves, and a new user namespace hands out a full set of
//! its own, so that the last thing is always to drop all of them.

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::{Identity, JailConfig, JailError};
use crate::sys::jail as sys;

/// More capabilities than any kernel has; the loop ends at the first unknown one.
const MAX_CAPABILITIES: u32 = 64;

pub(super) fn give_up(config: &JailConfig) -> Result<(), JailError> {
    if let Some(identity) = config.identity {
        become_user(identity)?;
    }
    if config.user_namespace {
        sys::unshare(UnshareFlags::NEWUSER).map_err(JailError::step("making a user namespace"))?;
    }
    if config.capabilities {
        drop_capabilities()
    } else {
        Ok(())
    }
}

/// Changes user and group. The permitted capabilities survive for the steps that
/// follow, and are effective again.
fn become_user(identity: Identity) -> Result<(), JailError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_keep_capabilities(true).map_err(JailError::step(
        "keeping capabilities over the change of user",
    ))?;
    // The process has one thread, so changing it changes the process.
    rustix::thread::set_thread_groups(&[])
        .map_err(JailError::step("leaving supplementary groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(JailError::step("changing the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(JailError::step("changing the user"))?;
    let sets = capabilities()?;
    set_capabilities(CapabilitySets {
        effective: sets.permitted,
        ..sets
    })
}

/// Drops all capabilities from all five sets.
fn drop_capabilities() -> Result<(), JailError> {
    rustix::thread::clear_ambient_capability_set()
        .map_err(JailError::step("dropping ambient capabilities"))?;
    // A process without the capability to do so keeps its bounding set. That gives
    // it nothing: no_new_privs keeps it from gaining what is not permitted.
    if capabilities()?.effective.contains(CapabilitySet::SETPCAP) {
        drop_bounding_set()?;
    }
    let nothing = CapabilitySet::empty();
    set_capabilities(CapabilitySets {
        effective: nothing,
        permitted: nothing,
        inheritable: nothing,
    })
}

fn drop_bounding_set() -> Result<(), JailError> {
    for number in 0..MAX_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(JailError::step("dropping bounding capabilities")(errno)),
        }
    }
    Ok(())
}

fn capabilities() -> Result<CapabilitySets, JailError> {
    rustix::thread::capabilities(None)
        .map_err(JailError::step("reading the process's capabilities"))
}

fn set_capabilities(sets: CapabilitySets) -> Result<(), JailError> {
    rustix::thread::set_capabilities(None, sets)
        .map_err(JailError::step("setting the process's capabilities"))
}
