//! The state of one vCPU, read and set as a whole.
//!
//! The order of setting matters: the APIC's base before its registers, its
//! registers before the MSRs of its timer, and pending events after everything
//! that could raise one (as QEMU's `kvm_arch_put_registers` has it).

use std::borrow::Cow;
use std::io;

use kvm_bindings::{kvm_lapic_state, kvm_mp_state, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use snapback_proto::cpu::CpuTemplate;

use super::clock::{self, HostInstant, VcpuTimeV1};
use super::cpuid::CpuidEntryV1;
use super::msrs;
use super::registers::{DebugRegsV1, EventsV1, RegsV1, SregsV1};
use super::template;
use crate::sys::kvm::{XSAVE_MIN, get_xsave, lapic_bytes, lapic_from_bytes, set_xsave};

/// Registers of a local APIC, in bytes.
pub const LAPIC_LEN: usize = 1024;
const _: () = assert!(size_of::<kvm_lapic_state>() == LAPIC_LEN);

/// Everything of a vCPU that a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What the state of every vCPU of a VM has in common.
#[derive(Debug, Clone)]
pub struct Shape {
    /// What `KVM_CAP_XSAVE2` answers, in bytes; 0 where it is missing.
    pub xsave_len: usize,
    /// How much of that belongs to what the guest sees, in bytes; the rest is
    /// zero and not kept.
    pub xsave_kept: usize,
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
        }
    }

    /// The area as KVM takes it.
    ///
    /// # Errors
    /// `InvalidData` when it is of another length than this machine's guests have.
    fn xsave<'a>(&self, kept: &'a [u8]) -> io::Result<Cow<'a, [u8]>> {
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

fn failed<E: Into<io::Error>>(
    verb: &'static str,
    part: &'static str,
) -> impl FnOnce(E) -> ProcessorError {
    move |source| ProcessorError {
        verb,
        part,
        source: source.into(),
    }
}

/// Reads the state of a stopped vCPU, with the MSRs named by `indices` and its time
/// as it was `at` an instant.
///
/// # Errors
/// When KVM refuses a part.
pub fn read(
    vcpu: &VcpuFd,
    shape: &Shape,
    indices: &[u32],
    at: HostInstant,
) -> Result<ProcessorV1, ProcessorError> {
    const GET: &str = "read";
    let mp_state = vcpu.get_mp_state().map_err(failed(GET, "run state"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(failed(GET, "pending events"))?;
    let xcrs = vcpu
        .get_xcrs()
        .map_err(failed(GET, "extended control registers"))?;
    let count = usize::try_from(xcrs.nr_xcrs)
        .unwrap_or(0)
        .min(xcrs.xcrs.len());
    let lapic = vcpu.get_lapic().map_err(failed(GET, "local APIC"))?;
    let mut xsave = get_xsave(vcpu, shape.xsave_len).map_err(failed(GET, "extended state"))?;
    xsave.truncate(shape.xsave_kept);
    Ok(ProcessorV1 {
        regs: (&vcpu.get_regs().map_err(failed(GET, "general registers"))?).into(),
        sregs: (&vcpu.get_sregs().map_err(failed(GET, "system registers"))?).into(),
        xsave,
        xcrs: xcrs.xcrs[..count]
            .iter()
            .map(|xcr| (xcr.xcr, xcr.value))
            .collect(),
        debug: (&vcpu
            .get_debug_regs()
            .map_err(failed(GET, "debug registers"))?)
            .into(),
        lapic: lapic_bytes(&lapic).to_vec(),
        msrs: msrs::read(vcpu, indices).map_err(failed(GET, "model-specific registers"))?,
        events: (&events).into(),
        mp_state: mp_state.mp_state,
        time: clock::read_vcpu(vcpu, at).map_err(failed(GET, "time"))?,
    })
}

/// Sets the state of a stopped vCPU, all but its time, which
/// [`clock::start_vcpu`] sets when it runs.
///
/// # Errors
/// When KVM refuses a part.
pub fn write(vcpu: &VcpuFd, shape: &Shape, state: &ProcessorV1) -> Result<(), ProcessorError> {
    const SET: &str = "set";
    let xsave = shape
        .xsave(&state.xsave)
        .map_err(failed(SET, "extended state"))?;
    set_xsave(vcpu, shape.xsave_len, &xsave).map_err(failed(SET, "extended state"))?;
    let xcrs = xcrs_of(state).map_err(failed(SET, "extended control registers"))?;
    vcpu.set_xcrs(&xcrs)
        .map_err(failed(SET, "extended control registers"))?;
    vcpu.set_regs(&(&state.regs).into())
        .map_err(failed(SET, "general registers"))?;
    vcpu.set_sregs(&(&state.sregs).into())
        .map_err(failed(SET, "system registers"))?;
    let lapic = lapic_from_bytes(&state.lapic).map_err(failed(SET, "local APIC"))?;
    // Twice: KVM computes the priority register before it counts the interrupts
    // that the new state has in service, so from those of the state before
    // (`kvm_apic_set_state` in `arch/x86/kvm/lapic.c`). A vCPU that was stopped in
    // an interrupt handler would keep that handler's priority.
    for _ in 0..2 {
        vcpu.set_lapic(&lapic).map_err(failed(SET, "local APIC"))?;
    }
    msrs::write(vcpu, &state.msrs).map_err(failed(SET, "model-specific registers"))?;
    // A timer of the past must not fire before the guest's time is set.
    msrs::write(vcpu, &[(msrs::TSC_DEADLINE, 0)]).map_err(failed(SET, "timer"))?;
    vcpu.set_debug_regs(&(&state.debug).into())
        .map_err(failed(SET, "debug registers"))?;
    vcpu.set_vcpu_events(&(&state.events).into())
        .map_err(failed(SET, "pending events"))?;
    let mp_state = kvm_mp_state {
        mp_state: state.mp_state,
    };
    vcpu.set_mp_state(mp_state)
        .map_err(failed(SET, "run state"))
}

fn xcrs_of(state: &ProcessorV1) -> io::Result<kvm_xcrs> {
    let mut xcrs = kvm_xcrs::default();
    if state.xcrs.len() > xcrs.xcrs.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    for (slot, &(xcr, value)) in xcrs.xcrs.iter_mut().zip(&state.xcrs) {
        *slot = kvm_xcr {
            xcr,
            value,
            ..Default::default()
        };
    }
    xcrs.nr_xcrs = u32::try_from(state.xcrs.len()).map_err(io::Error::other)?;
    Ok(xcrs)
}
