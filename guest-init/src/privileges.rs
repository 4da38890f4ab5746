//! What no process of the guest can get back: capabilities, resources, priority.

use std::io;

use rustix::process::{Resource, Rlimit, getpriority_process, setpriority_process, setrlimit};
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_no_new_privs,
};

/// Lambda's limits: open files, and processes and threads of the function's user.
const LIMITS: [(Resource, u64); 3] = [
    (Resource::Nofile, 1024),
    (Resource::Nproc, 1024),
    (Resource::Core, 0),
];

/// guest-init's own priority: a function that starts processes without end must not
/// keep it from noticing.
const FIRST: i32 = -20;

/// A privilege could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct PrivilegeError {
    doing: &'static str,
    source: io::Error,
}

/// Empties the bounding set, forbids gains by executing files, and sets the
/// limits: for every process started from now on. This one keeps the capabilities
/// that it has (to set the clock, feed the generator and restart), because it
/// executes nothing.
///
/// # Errors
/// When the kernel refuses.
pub fn confine_children() -> Result<(), PrivilegeError> {
    let failed = |doing| {
        move |errno: rustix::io::Errno| PrivilegeError {
            doing,
            source: errno.into(),
        }
    };
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know cannot be had either.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(failed("drop a capability")(errno)),
        }
    }
    clear_ambient_capability_set().map_err(failed("drop the ambient capabilities"))?;
    set_no_new_privs(true).map_err(failed("forbid new privileges"))?;
    setpriority_process(None, FIRST).map_err(failed("raise its own priority"))?;
    for (resource, limit) in LIMITS {
        let both = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        setrlimit(resource, both).map_err(failed("limit resources"))?;
    }
    Ok(())
}

/// Runs `spawn` with the priority that every process begins with, so that what it
/// starts inherits that.
///
/// # Errors
/// When the priority cannot be changed.
pub fn with_ordinary_priority<T>(spawn: impl FnOnce() -> T) -> io::Result<T> {
    let own = getpriority_process(None)?;
    setpriority_process(None, own.max(0))?;
    let spawned = spawn();
    setpriority_process(None, own)?;
    Ok(spawned)
}
