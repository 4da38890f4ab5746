//! The VMM processes: one per environment, started, spoken to and reaped here.
//!
//! ```text
//!  Launcher::spawn ─► VmmProcess ── control ──► ControlClient (commands, one at a time)
//!                        │ drop                     │ events, end of file
//!                        ▼                          ▼
//!                      reaper task ◄───────────── Fate  (why the VM ended: the first cause wins)
//!                        └─► kill, wait, remove the cgroup, give the user back
//! ```

mod cgroup;
mod control;
mod fate;
mod reaper;
mod spawn;
mod users;

pub use cgroup::{Cgroup, CgroupError, CgroupRoot};
pub use control::{Answer, CommandError, ControlClient};
pub use fate::{Cause, Fate};
pub use spawn::{Launcher, SpawnError, VmmProcess};
pub use users::NoUserLeft;
