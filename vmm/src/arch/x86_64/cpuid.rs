//! Which processor features a guest sees: what KVM supports, less what would
//! make KVM write guest memory on its own account, keep state that no reset puts
//! back, or tie the guest to this host.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_HYPERV_ENFORCE_CPUID, kvm_cpuid_entry2,
    kvm_enable_cap,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use super::topology;

/// One leaf of the CPUID table (`struct kvm_cpuid_entry2`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub struct CpuidEntryV1 {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Most leaves that a table may have.
pub const MAX_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

const FEATURES: u32 = 0x1;
const KVM_FEATURES: u32 = 0x4000_0001;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
/// What AMD's virtualization can do (AMD APM volume 3, appendix E.4.9).
const SVM_FEATURES: u32 = 0x8000_000a;

/// Virtualization within the guest, by Intel (SDM volume 2, CPUID) and by AMD. A vCPU
/// in a guest of its own has state beyond this machine's (`KVM_GET_NESTED_STATE`).
const ECX_VMX: u32 = 1 << 5;
const ECX_SVM: u32 = 1 << 2;

pub(super) const ECX_TSC_DEADLINE: u32 = 1 << 24;
pub(super) const ECX_HYPERVISOR: u32 = 1 << 31;

/// `KVM_FEATURE_CLOCKSOURCE`, `…_NOP_IO_DELAY`, `…_CLOCKSOURCE2` and
/// `…_CLOCKSOURCE_STABLE_BIT` (kernel document `virt/kvm/x86/cpuid.rst`). Stolen
/// time, asynchronous page faults and paravirtual EOI are left out: state in
/// guest memory that only KVM knows of.
pub(super) const KVM_FEATURE_MASK: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 24;

/// Everything that KVM supports on this host, for a guest of `vcpus` processors.
///
/// # Errors
/// What KVM reports.
pub fn for_host(kvm: &Kvm, vcpus: u8) -> io::Result<Vec<CpuidEntryV1>> {
    let supported = kvm
        .get_supported_cpuid(MAX_ENTRIES)
        .map_err(io::Error::from)?;
    let leaves = supported.as_slice().iter();
    let mut table: Vec<_> = leaves.map(|kernel| adjusted(kernel.into())).collect();
    without_unusable_tiles(&mut table);
    topology::apply(&mut table, vcpus);
    Ok(table)
}

/// KVM names AMX wherever the processor has it, but its state (XSAVE components 17
/// and 18) only for a process that asked for it, which this one does not.
fn without_unusable_tiles(table: &mut [CpuidEntryV1]) {
    const TILES: u32 = 1 << 17 | 1 << 18;
    let components = table
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (0xd, 0))
        .map_or(0, |leaf| leaf.eax);
    if components & TILES == TILES {
        return;
    }
    for leaf in table.iter_mut().filter(|leaf| leaf.function == 0x7) {
        match leaf.index {
            // amx_bf16, amx_tile, amx_int8.
            0 => leaf.edx &= !(1 << 22 | 1 << 24 | 1 << 25),
            1 => {
                // amx_fp16; amx_complex.
                leaf.eax &= !(1 << 21);
                leaf.edx &= !(1 << 8);
            }
            _ => {}
        }
    }
}

/// As [`for_host`], for a process that has no `/dev/kvm` open.
///
/// # Errors
/// What opening it or KVM reports.
pub fn of_this_host(vcpus: u8) -> io::Result<Vec<CpuidEntryV1>> {
    for_host(&Kvm::new().map_err(io::Error::from)?, vcpus)
}

fn adjusted(mut leaf: CpuidEntryV1) -> CpuidEntryV1 {
    match leaf.function {
        // KVM emulates the deadline timer on every processor, but only names it
        // when asked for the capability.
        FEATURES => {
            leaf.ecx |= ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            leaf.ecx &= !ECX_VMX;
        }
        EXTENDED_FEATURES => leaf.ecx &= !ECX_SVM,
        SVM_FEATURES => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        KVM_FEATURES => leaf.eax &= KVM_FEATURE_MASK,
        _ => {}
    }
    leaf
}

/// Keeps a guest from using what its CPUID table does not name: paravirtual
/// features of KVM and all of Hyper-V's interface. Without this, KVM answers to
/// their MSRs and hypercalls anyway.
///
/// # Errors
/// What KVM reports.
pub fn enforce(vcpu: &VcpuFd) -> io::Result<()> {
    for cap in [
        KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        KVM_CAP_HYPERV_ENFORCE_CPUID,
    ] {
        let cap = kvm_enable_cap {
            cap,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        vcpu.enable_cap(&cap).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Shows the guest on vCPU `id` a `table` with its own APIC id in it; only before the
/// guest runs for the first time.
///
/// # Errors
/// When there are more leaves than KVM takes, or it refuses them.
pub fn show(vcpu: &VcpuFd, table: &[CpuidEntryV1], id: u8) -> io::Result<()> {
    let leaves: Vec<kvm_cpuid_entry2> = table
        .iter()
        .map(|leaf| {
            let mut leaf = *leaf;
            topology::own(&mut leaf, id);
            (&leaf).into()
        })
        .collect();
    let leaves = CpuId::from_entries(&leaves).map_err(io::Error::other)?;
    Ok(vcpu.set_cpuid2(&leaves)?)
}

impl From<&kvm_cpuid_entry2> for CpuidEntryV1 {
    fn from(kernel: &kvm_cpuid_entry2) -> Self {
        let &kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..
        } = kernel;
        Self {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
        }
    }
}

impl From<&CpuidEntryV1> for kvm_cpuid_entry2 {
    fn from(own: &CpuidEntryV1) -> Self {
        let &CpuidEntryV1 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
        } = own;
        Self {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_write_guest_memory_unseen_are_left_out() {
        let all = CpuidEntryV1 {
            function: KVM_FEATURES,
            eax: u32::MAX,
            ..Default::default()
        };
        let eax = adjusted(all).eax;
        for (name, bit) in [("async page fault", 4), ("stolen time", 5), ("pv eoi", 6)] {
            assert_eq!(eax & (1 << bit), 0, "{name}");
        }
        assert_ne!(eax & (1 << 3), 0, "the clock stays");
    }

    #[test]
    fn virtualization_within_a_guest_is_left_out() {
        let all = |function| {
            adjusted(CpuidEntryV1 {
                function,
                eax: u32::MAX,
                ebx: u32::MAX,
                ecx: u32::MAX,
                edx: u32::MAX,
                ..Default::default()
            })
        };
        assert_eq!(all(FEATURES).ecx, !ECX_VMX);
        assert_eq!(all(EXTENDED_FEATURES).ecx, !ECX_SVM);
        let svm = all(SVM_FEATURES);
        assert_eq!((svm.eax, svm.ebx, svm.ecx, svm.edx), (0, 0, 0, 0));
    }
}
