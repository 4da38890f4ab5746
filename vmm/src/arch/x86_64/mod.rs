//! x86_64.
//!
//! * [`boot`], [`acpi`]: what a kernel finds in memory when it starts.
//! * [`cpuid`], [`template`], [`topology`]: which features and processors a guest
//!   sees; [`features`]: what they are called.
//! * [`registers`], [`msrs`], [`processor`]: the state of a vCPU; [`run_page`]: a way to
//!   set some of it.
//! * [`interrupts`], [`clock`]: the state that belongs to the VM.

pub mod acpi;
pub mod boot;
pub mod clock;
pub mod cpuid;
pub mod features;
pub mod interrupts;
pub mod msrs;
pub mod processor;
pub mod registers;
pub mod run_page;
pub mod template;
pub mod topology;

/// Where KVM keeps three pages of its own on processors that need them to run
/// real-mode code (kernel document `virt/kvm/api.rst`, `KVM_SET_TSS_ADDR`): below
/// the firmware's place, away from RAM and devices.
pub const TSS_ADDRESS: usize = 0xfffb_d000;

/// Address of the I/O APIC, as KVM has it.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;

/// Address of the local APIC after reset (Intel SDM volume 3, 11.4.1).
pub const LAPIC_ADDRESS: u32 = 0xfee0_0000;
