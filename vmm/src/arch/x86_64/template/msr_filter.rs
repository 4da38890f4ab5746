//! Which MSRs the guests of a named template can reach.

use std::io;

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use snapback_proto::cpu::CpuTemplate;

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

/// Refuses every MSR that is not reachable to the guests of `vm`: one that tries
/// gets a general protection fault, as for a register that does not exist.
///
/// # Errors
/// What KVM reports.
pub fn confine(vm: &VmFd, template: CpuTemplate) -> io::Result<()> {
    if template == CpuTemplate::Host {
        return Ok(());
    }
    let bitmaps = WINDOWS.map(|(base, count)| bitmap(template, base, count));
    let ranges: Vec<_> = WINDOWS
        .iter()
        .zip(&bitmaps)
        .map(|(&(base, msr_count), bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
        .map_err(io::Error::from)
}

/// A bit for each MSR from `base` up, set for those that can be reached.
fn bitmap(template: CpuTemplate, base: u32, count: u32) -> Vec<u8> {
    let byte = |first: u32| {
        (0..8)
            .filter(|bit| reaches(template, base + first + bit))
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
                let bits = bitmap(CpuTemplate::V2, base, count);
                assert_ne!(bits[usize::try_from(at / 8).unwrap()] & 1 << (at % 8), 0);
            }
        }
        let hidden = [0x48, 0x10a, 0xce, 0x122, 0x186, 0xc000_0103, 0xc001_0004];
        for index in hidden {
            assert!(!reaches(CpuTemplate::V4, index), "{index:#x}");
            assert!(reaches(CpuTemplate::Host, index));
        }
    }
}
