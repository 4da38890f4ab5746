//! Where things are.

use std::path::PathBuf;

use serde::Deserialize;

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// Functions, images and snapshots.
    pub state_dir: PathBuf,
    /// `vmlinux`, `guest-init.cpio`, `rootfs/<name>.erofs`.
    pub assets: PathBuf,
    /// The `snapback-vmm` program; when it is not set, the installed one or the
    /// one next to the agent's own program.
    pub vmm: Option<PathBuf>,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            socket: "/run/snapback/api.sock".into(),
            state_dir: "/var/lib/snapback".into(),
            assets: "/usr/lib/snapback".into(),
            vmm: None,
        }
    }
}
