//! The VMM process: takes its inherited descriptors, becomes the user that its agent
//! names (`--user UID:GID`), gives up everything else, and serves the agent until the
//! control socket ends.

use std::sync::Arc;

use anyhow::Context as _;
use snapback_proto::control::{CONTROL_FD, KVM_FD, USERFAULTFD_FD};
use snapback_vmm::control::ControlSocket;
use snapback_vmm::jail::{self, Identity, JailConfig};
use snapback_vmm::memory::Pagemap;
use snapback_vmm::reset::inventory::Parts;
use snapback_vmm::supervisor::{HostDevices, serve};
use snapback_vmm::sys::fds::take_inherited;
use snapback_vmm::sys::kvm;

fn main() -> anyhow::Result<()> {
    let identity = Identity::from_arguments(std::env::args().skip(1))?;
    let control = take_inherited(CONTROL_FD).context("descriptor 3 is not the control socket")?;
    let kvm_fd = take_inherited(KVM_FD).context("descriptor 4 is not /dev/kvm")?;
    let userfaultfd =
        take_inherited(USERFAULTFD_FD).context("descriptor 5 is not /dev/userfaultfd")?;
    let pagemap = Pagemap::open().context("/proc/self/pagemap cannot be opened")?;
    let jail = match identity {
        Some(identity) => JailConfig::full().with_identity(identity),
        None => JailConfig::full(),
    };
    let jailed = jail::enter(&jail).context("the process cannot enter its jail")?;
    let host = HostDevices {
        kvm: kvm::from_fd(kvm_fd),
        userfaultfd,
        pagemap: Arc::new(pagemap),
        jailed,
    };
    serve(ControlSocket::new(control), host, Parts::ALL)?;
    Ok(())
}
