//! The state of one vCPU, and what reading and setting its parts takes. Which parts
//! there are and in which order they are set is the inventory's
//! ([`crate::reset::inventory`]).

use std::borrow::Cow;
use std::io;

use kvm_bindings::{kvm_lapic_state, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use snapback_proto::cpu::CpuTemplate;

use super::clock::VcpuTimeV1;
use super::cpuid::CpuidEntryV1;
use super::registers::{DebugRegsV1, EventsV1, RegsV1, SregsV1};
use super::{run_page, template};
use crate::sys::kvm::{XSAVE_MIN, get_xsave, lapic_bytes, lapic_from_bytes, set_xsave};

/// Registers of a local APIC, in bytes.
pub const LAPIC_LEN: usize = 1024;
const _: () = assert!(size_of::<kvm_lapic_state>() == LAPIC_LEN);

/// Everything of a vCPU that a snapshot holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorV1 {
    /// General registers.
    pub regs: RegsV1,
    /// Segment, table and control registers.
    pub sregs: SregsV1,
    /// x87, SSE, AVX and later state: the XSAVE area as the processor lays it out.
    #[serde(with = "serde_bytes")]
    pub xsave: Vec<u8>,
    /// Extended control registers, by number.
    pub xcrs: Vec<(u32, u64)>,
    /// Debug registers.
    pub debug: DebugRegsV1,
    /// The local APIC's registers; always [`LAPIC_LEN`] long.
    #[serde(with = "serde_bytes")]
    pub lapic: Vec<u8>,
    /// Model-specific registers, by number.
    pub msrs: Vec<(u32, u64)>,
    /// Pending exceptions and interrupts.
    pub events: EventsV1,
    /// Running, halted or waiting to be started (`KVM_GET_MP_STATE`).
    pub mp_state: u32,
    /// Counter and timer.
    pub time: VcpuTimeV1,
}

/// A part of a vCPU's state could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("KVM cannot {verb} the vCPU's {part}")]
pub struct ProcessorError {
    verb: &'static str,
    part: &'static str,
    #[source]
    source: io::Error,
}

impl ProcessorError {
    /// A part could not be read.
    pub fn reading(part: &'static str) -> impl FnOnce(io::Error) -> Self {
        let verb = "read";
        move |source| Self { verb, part, source }
    }

    /// A part could not be set.
    pub fn setting(part: &'static str) -> impl FnOnce(io::Error) -> Self {
        let verb = "set";
        move |source| Self { verb, part, source }
    }
}

/// What the state of every vCPU of a VM has in common.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What `KVM_CAP_XSAVE2` answers, in bytes; 0 where it is missing.
    pub xsave_len: usize,
    /// How much of that belongs to what the guest sees, in bytes; the rest is
    /// zero and not kept.
    pub xsave_kept: usize,
    /// Whether registers can be left in the run page.
    pub has_run_page: bool,
}

impl Shape {
    /// Asks the VM, whose guest sees `cpuid`. With the host's own processor the whole
    /// area is kept.
    #[must_use]
    pub fn of(vm: &VmFd, template: CpuTemplate, cpuid: &[CpuidEntryV1]) -> Self {
        let xsave_len = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let area = xsave_len.max(XSAVE_MIN);
        Self {
            xsave_len,
            xsave_kept: match template {
                CpuTemplate::Host => area,
                _ => template::xsave_len(cpuid).min(area),
            },
            has_run_page: run_page::is_offered(vm),
        }
    }

    /// The extended state of a vCPU, as much of it as is kept.
    ///
    /// # Errors
    /// What KVM reports.
    pub fn read_xsave(&self, vcpu: &VcpuFd) -> io::Result<Vec<u8>> {
        let mut area = get_xsave(vcpu, self.xsave_len)?;
        area.truncate(self.xsave_kept);
        Ok(area)
    }

    /// Sets the extended state of a vCPU to what was kept.
    ///
    /// # Errors
    /// What KVM reports; `InvalidData` when it is of another length than this
    /// machine's guests have.
    pub fn write_xsave(&self, vcpu: &VcpuFd, kept: &[u8]) -> io::Result<()> {
        set_xsave(vcpu, self.xsave_len, &self.whole_xsave(kept)?)
    }

    /// The area as KVM takes it.
    fn whole_xsave<'a>(&self, kept: &'a [u8]) -> io::Result<Cow<'a, [u8]>> {
        let area = self.xsave_len.max(XSAVE_MIN);
        if kept.len() != self.xsave_kept {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if kept.len() == area {
            return Ok(Cow::Borrowed(kept));
        }
        let mut whole = kept.to_vec();
        whole.resize(area, 0);
        Ok(Cow::Owned(whole))
    }
}

/// Extended control registers, by number.
///
/// # Errors
/// What KVM reports.
pub fn read_xcrs(vcpu: &VcpuFd) -> io::Result<Vec<(u32, u64)>> {
    let xcrs = vcpu.get_xcrs()?;
    let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(0);
    let listed = xcrs.xcrs.iter().take(count);
    Ok(listed.map(|xcr| (xcr.xcr, xcr.value)).collect())
}

/// Sets the extended control registers.
///
/// # Errors
/// What KVM reports; `InvalidData` for more than it has.
pub fn write_xcrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> io::Result<()> {
    let mut xcrs = kvm_xcrs::default();
    if values.len() > xcrs.xcrs.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    for (slot, &(xcr, value)) in xcrs.xcrs.iter_mut().zip(values) {
        *slot = kvm_xcr {
            xcr,
            value,
            ..Default::default()
        };
    }
    xcrs.nr_xcrs = u32::try_from(values.len()).map_err(io::Error::other)?;
    Ok(vcpu.set_xcrs(&xcrs)?)
}

/// The local APIC's registers; always [`LAPIC_LEN`] bytes.
///
/// # Errors
/// What KVM reports.
pub fn read_lapic(vcpu: &VcpuFd) -> io::Result<Vec<u8>> {
    Ok(lapic_bytes(&vcpu.get_lapic()?).to_vec())
}

/// Sets the local APIC's registers, `alone` in its machine or not. Reading them costs
/// KVM half of setting them, and tells what is needed.
///
/// # Errors
/// What KVM reports; `InvalidInput` for another length.
pub fn write_lapic(vcpu: &VcpuFd, registers: &[u8], alone: bool) -> io::Result<()> {
    let now = vcpu.get_lapic()?;
    // Setting also forgets which of several equal vCPUs took an interrupt last, and stops
    // a timer that counts: with one that goes by a deadline that is the deadline's part.
    let same = lapic_bytes(&now) == *registers;
    if same && alone && has_deadline(registers) {
        return Ok(());
    }
    let lapic = lapic_from_bytes(registers)?;
    vcpu.set_lapic(&lapic)?;
    // KVM computes the priority register before it counts the interrupts that the new
    // state has in service, so from those of the state before (`kvm_apic_set_state` in
    // `arch/x86/kvm/lapic.c`). A vCPU that was stopped in an interrupt handler would keep
    // that handler's priority.
    if serves(&lapic_bytes(&now)) || serves(registers) {
        vcpu.set_lapic(&lapic)?;
    }
    Ok(())
}

/// Whether the timer goes by a deadline (Intel SDM volume 3, 11.5.1 and 11.5.4.1).
fn has_deadline(lapic: &[u8]) -> bool {
    const TIMER_MODE: usize = 0x322;
    lapic.get(TIMER_MODE).is_some_and(|byte| byte >> 1 & 3 == 2)
}

/// Whether an interrupt is in service (Intel SDM volume 3, 11.8.4).
fn serves(lapic: &[u8]) -> bool {
    const IN_SERVICE: std::ops::Range<usize> = 0x100..0x180;
    let registers = lapic.get(IN_SERVICE).unwrap_or_default();
    registers.iter().any(|byte| *byte != 0)
}
