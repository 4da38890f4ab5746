//! The VMM with a reset that leaves one part of the inventory out: what `tests/inventory.rs`
//! shows to be caught. It takes the part's place in the table as its argument; the
//! product's program has no such choice.

use std::sync::Arc;

use anyhow::Context as _;
use snapback_proto::control::{CONTROL_FD, KVM_FD, USERFAULTFD_FD};
use snapback_vmm::control::ControlSocket;
use snapback_vmm::jail::{self, JailConfig};
use snapback_vmm::memory::Pagemap;
use snapback_vmm::reset::inventory::{Part, Parts};
use snapback_vmm::supervisor::{HostDevices, serve};
use snapback_vmm::sys::fds::take_inherited;
use snapback_vmm::sys::kvm;

fn main() -> anyhow::Result<()> {
    let place = std::env::args().nth(1).context("which part?")?;
    let part = Part::ALL.get(place.parse::<usize>()?);
    let parts = Parts::ALL.without(*part.context("there is no such part")?);
    let [control, kvm_fd, userfaultfd] = [CONTROL_FD, KVM_FD, USERFAULTFD_FD].map(take_inherited);
    let pagemap = Arc::new(Pagemap::open()?);
    let host = HostDevices {
        kvm: kvm::from_fd(kvm_fd?),
        userfaultfd: userfaultfd?,
        pagemap,
        jailed: jail::enter(&JailConfig::full())?,
    };
    serve(ControlSocket::new(control?), host, parts)?;
    Ok(())
}
