//! The VMM process: takes its inherited descriptors, gives up everything else,
//! and serves the agent until the control socket ends.

use anyhow::Context as _;
use snapback_proto::control::{CONTROL_FD, KVM_FD, USERFAULTFD_FD};
use snapback_vmm::control::ControlSocket;
use snapback_vmm::jail::{self, JailConfig};
use snapback_vmm::reset::inventory::Parts;
use snapback_vmm::supervisor::{HostDevices, serve};
use snapback_vmm::sys::fds::take_inherited;
use snapback_vmm::sys::kvm;

fn main() -> anyhow::Result<()> {
    let control = take_inherited(CONTROL_FD).context("descriptor 3 is not the control socket")?;
    let kvm_fd = take_inherited(KVM_FD).context("descriptor 4 is not /dev/kvm")?;
    let userfaultfd =
        take_inherited(USERFAULTFD_FD).context("descriptor 5 is not /dev/userfaultfd")?;
    let jailed = jail::enter(&JailConfig::full()).context("the process cannot enter its jail")?;
    let host = HostDevices {
        kvm: kvm::from_fd(kvm_fd),
        userfaultfd,
        jailed,
    };
    serve(ControlSocket::new(control), host, Parts::ALL)?;
    Ok(())
}
