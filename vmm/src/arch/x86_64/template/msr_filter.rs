//! Which MSRs a guest can reach, and which of them it may write.

use std::io;

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use snapback_proto::cpu::CpuTemplate;

use crate::arch::x86_64::msrs;

/// The registers that a guest of a named template may touch, each range with its
/// first and last number; the local APIC's own are always allowed. They are the ones
/// that its features need, and those that KVM answers with a constant of its own and
/// Linux reads unasked. Names: Intel SDM volume 4, AMD APM volume 2, appendix A.
const REACHABLE: [(u32, u32); 19] = [
    (0x10, 0x10),               // time stamp counter
    (0x11, 0x12),               // KVM's clock, old numbers
    (0x17, 0x17),               // platform id: 0
    (0x1b, 0x1b),               // APIC base
    (0x8b, 0x8b),               // microcode revision: KVM's own
    (0xfe, 0xfe),               // MTRRs
    (0x174, 0x176),             // SYSENTER
    (0x179, 0x17b),             // machine check
    (0x1a0, 0x1a0),             // MISC_ENABLE
    (0x1d9, 0x1d9),             // DEBUGCTL
    (0x200, 0x2ff),             // MTRRs, PAT
    (0x400, 0x47f),             // machine check banks
    (0x6e0, 0x6e0),             // deadline of the timer
    (0x4b56_4d00, 0x4b56_4d01), // KVM's clock
    (0xc000_0080, 0xc000_0084), // EFER, SYSCALL
    (0xc000_0100, 0xc000_0102), // FS, GS
    (0xc001_0010, 0xc001_0015), // SYSCFG, HWCR
    (0xc001_001f, 0xc001_001f), // NB_CFG
    (0xc001_1029, 0xc001_1029), // DE_CFG
];

/// Whether a guest of `template` can reach MSR `index`.
#[must_use]
pub fn reaches(template: CpuTemplate, index: u32) -> bool {
    let listed = REACHABLE
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&index));
    template == CpuTemplate::Host || listed
}

/// Stretches of numbers that hold all of [`REACHABLE`]: first number and length,
/// a multiple of 8. KVM takes at most 16.
const WINDOWS: [(u32, u32); 7] = [
    (0, 0x300),
    (0x400, 0x80),
    (0x6e0, 8),
    (0x4b56_4d00, 8),
    (0xc000_0080, 0x88),
    (0xc001_0000, 0x20),
    (0xc001_1028, 8),
];

/// Stretches of numbers in which a guest of the host's own processor may only write
/// what is restored; KVM has no register outside that keeps anything.
const WATCHED: [(u32, u32); 3] = [(0, 0x2000), (0xc000_0000, 0x2000), (0xc001_0000, 0x2000)];

/// What a guest may write although no snapshot lists it: time, and what the system
/// registers of a vCPU hold (APIC base, EFER, bases of FS and GS); and commands, which
/// leave nothing behind (microcode, IBPB, flush of the L1 cache).
const UNLISTED: [u32; 10] = [
    0x10,
    0x1b,
    0x49,
    0x79,
    0x8b,
    0x10b,
    msrs::TSC_DEADLINE,
    0xc000_0080,
    0xc000_0100,
    0xc000_0101,
];

/// Whether a guest of `template` may write MSR `index`, when snapshots have `listed`.
/// What it could write and a reset would not put back, the next request could read:
/// KVM does not list MTRRs and the banks of machine checks, for one.
#[must_use]
pub fn may_write(template: CpuTemplate, listed: &[u32], index: u32) -> bool {
    let kept = listed.contains(&index) || UNLISTED.contains(&index);
    kept && reaches(template, index)
}

/// Refuses the guests of `vm` every MSR that is not reachable, and every write of one
/// that is not put back: the guest gets a general protection fault, as for a register
/// that does not exist.
///
/// # Errors
/// What KVM reports.
pub fn confine(vm: &VmFd, template: CpuTemplate, listed: &[u32]) -> io::Result<()> {
    let (action, windows): (_, &[_]) = match template {
        CpuTemplate::Host => (MsrFilterDefaultAction::ALLOW, &WATCHED),
        _ => (MsrFilterDefaultAction::DENY, &WINDOWS),
    };
    let writable = |index| may_write(template, listed, index);
    let readable = |index| reaches(template, index);
    let bitmaps: Vec<_> = windows
        .iter()
        .map(|(base, count)| {
            (
                bitmap(*base, *count, readable),
                bitmap(*base, *count, writable),
            )
        })
        .collect();
    let mut ranges = Vec::new();
    for (&(base, msr_count), (read, write)) in windows.iter().zip(&bitmaps) {
        for (flags, bitmap) in [
            (MsrFilterRangeFlags::READ, read),
            (MsrFilterRangeFlags::WRITE, write),
        ] {
            ranges.push(MsrFilterRange {
                flags,
                base,
                msr_count,
                bitmap,
            });
        }
    }
    vm.set_msr_filter(action, &ranges).map_err(io::Error::from)
}

/// A bit for each MSR from `base` up, set for those that are allowed.
fn bitmap(base: u32, count: u32, allowed: impl Fn(u32) -> bool) -> Vec<u8> {
    let byte = |first: u32| {
        (0..8)
            .filter(|bit| allowed(base + first + bit))
            .fold(0_u8, |byte, bit| byte | 1 << bit)
    };
    (0..count).step_by(8).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reachable_register_is_in_a_window_of_the_filter() {
        for (first, last) in REACHABLE {
            for index in first..=last {
                let window = WINDOWS
                    .iter()
                    .find(|(base, count)| (*base..base + count).contains(&index));
                let (base, count) = *window.unwrap();
                let at = index - base;
                let bits = bitmap(base, count, |index| reaches(CpuTemplate::V2, index));
                assert_ne!(bits[usize::try_from(at / 8).unwrap()] & 1 << (at % 8), 0);
            }
        }
        let hidden = [0x48, 0x10a, 0xce, 0x122, 0x186, 0xc000_0103, 0xc001_0004];
        for index in hidden {
            assert!(!reaches(CpuTemplate::V4, index), "{index:#x}");
            assert!(reaches(CpuTemplate::Host, index));
        }
    }
    #[test]
    fn a_register_that_is_not_put_back_cannot_be_written() {
        let listed = [0x174, 0xc000_0081];
        // An MTRR, the address of a machine check; a register that is listed, EFER.
        for (index, allowed) in [
            (0x200, false),
            (0x402, false),
            (0x174, true),
            (0xc000_0080, true),
        ] {
            for template in [CpuTemplate::Host, CpuTemplate::V2] {
                assert_eq!(may_write(template, &listed, index), allowed, "{index:#x}");
            }
        }
    }
}
