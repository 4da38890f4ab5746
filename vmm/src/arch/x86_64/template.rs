//! CPU templates: the processor that a guest sees, independent of the host.
//!
//! A named template's CPUID table is a function of the template, the vendor, the
//! number of vCPUs and whether the host's time stamp counter is invariant. Nothing
//! else of the host is in it: no model, no caches, no topology, no frequencies, no
//! address width. It has the features of its level (x86-64 psABI, table 3.1), those
//! that a 64-bit kernel takes for granted, and those of being a KVM guest.
//!
//! | leaf | with a named template |
//! |---|---|
//! | 0, 0x8000_0000 | the host's vendor; highest leaves 0xd and 0x8000_0008 |
//! | 1 | one family, model and stepping for each vendor; the level's features |
//! | 2, 4; 0x8000_0005, 6 | the same made-up caches everywhere |
//! | 6 | ARAT |
//! | 7 | the level's features |
//! | 0xb | the machine's own topology ([`super::topology`]) |
//! | 0xd | the level's XSAVE components, without the compact forms; none for v2 |
//! | 0x4000_0000, 1 | KVM, and its clock |
//! | 0x8000_0002 to 4 | the template's name |
//! | 0x8000_0007, 8 | invariant time stamp counter; 36 and 48 address bits |
//! | every other | left out |

use std::io;

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use snapback_proto::cpu::CpuTemplate;

use super::cpuid::{CpuidEntryV1, ECX_HYPERVISOR, ECX_TSC_DEADLINE, KVM_FEATURE_MASK};
use super::{features, topology};

/// Features that a processor must have and has not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this host's processor lacks: {}", .0.join(", "))]
pub struct Lacks(
    /// Their names, as `/proc/cpuinfo` has them.
    pub Vec<String>,
);

/// A CPUID table cannot be shown to a guest on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Features are missing.
    #[error(transparent)]
    Lacks(#[from] Lacks),
    /// The processor is another vendor's.
    #[error("the CPUID table is of {found:?}, and this host's processor of {expected:?}")]
    Vendor {
        /// In the table.
        found: String,
        /// The host's.
        expected: String,
    },
    /// The table has something that its template has not.
    #[error("the CPUID table is not the one of template {0}")]
    Foreign(CpuTemplate),
    /// The XSAVE area is laid out in another way.
    #[error("the host lays out the XSAVE area in another way (component {0})")]
    XsaveLayout(u32),
}

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`.
const SUBLEAVES: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// What every 64-bit processor has (leaf 1, EDX), without `vme`, which is of no use
/// to it.
const BASE: u32 = 0x078b_fbfd;
/// Of these, what AMD repeats in leaf `0x8000_0001`.
const AMD_REPEATS: u32 = 0x0183_f3ff;
/// SYSCALL, NX and long mode (leaf `0x8000_0001`, EDX).
const LONG_MODE: u32 = 1 << 11 | 1 << 20 | 1 << 29;
/// `x2apic` (leaf 1, ECX): KVM emulates it everywhere.
const ECX_X2APIC: u32 = 1 << 21;
/// `lahf_lm` (leaf `0x8000_0001`, ECX).
const LAHF_LM: u32 = 1;
/// `nonstop_tsc` (leaf `0x8000_0007`, EDX).
const INVARIANT_TSC: u32 = 1 << 8;
/// `arat` (leaf 6, EAX): KVM's timer never stops.
const ARAT: u32 = 1 << 2;
/// 64 bytes of a cache line, in units of 8 (leaf 1, EBX).
const LINE: u32 = 8 << 8;
/// 36 physical and 48 linear address bits: what every 64-bit processor has, and
/// enough for the largest machine.
const ADDRESS_BITS: u32 = 48 << 8 | 36;

/// A level's features.
struct Level {
    /// Leaf 1, ECX.
    ecx1: u32,
    /// Leaf 7, EBX.
    ebx7: u32,
    /// Leaf `0x8000_0001`, ECX.
    ecx_extended: u32,
    /// XSAVE components (XCR0); 0 without XSAVE.
    xcr0: u32,
}

/// pni, ssse3, cx16, sse4_1, sse4_2, popcnt.
const V2: Level = Level {
    ecx1: 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23,
    ebx7: 0,
    ecx_extended: LAHF_LM,
    xcr0: 0,
};
/// And fma, movbe, xsave, avx, f16c; bmi1, avx2, bmi2; abm.
const V3: Level = Level {
    ecx1: V2.ecx1 | 1 << 12 | 1 << 22 | 1 << 26 | 1 << 28 | 1 << 29,
    ebx7: 1 << 3 | 1 << 5 | 1 << 8,
    ecx_extended: LAHF_LM | 1 << 5,
    xcr0: 0x7,
};
/// And avx512f, avx512dq, avx512cd, avx512bw, avx512vl.
const V4: Level = Level {
    ebx7: V3.ebx7 | 1 << 16 | 1 << 17 | 1 << 28 | 1 << 30 | 1 << 31,
    xcr0: 0xe7,
    ..V3
};

const fn level(template: CpuTemplate) -> Option<Level> {
    match template {
        CpuTemplate::Host => None,
        CpuTemplate::V2 => Some(V2),
        CpuTemplate::V3 => Some(V3),
        CpuTemplate::V4 => Some(V4),
    }
}

/// The table of `template` for a guest of `vcpus` processors on a host with the
/// table `host` ([`super::cpuid::for_host`]).
///
/// # Errors
/// Names what the host lacks.
pub fn of_host(
    template: CpuTemplate,
    host: &[CpuidEntryV1],
    vcpus: u8,
) -> Result<Vec<CpuidEntryV1>, Unfit> {
    let Some(level) = level(template) else {
        return Ok(host.to_vec());
    };
    let own = named(template, &level, host, vcpus);
    match features::missing(&own, host) {
        missing if missing.is_empty() => Ok(own),
        missing => Err(Lacks(missing).into()),
    }
}

/// Whether a guest that was shown `table`, of `template` and for `vcpus`
/// processors, can go on where the host's table is `host`.
///
/// # Errors
/// Says why not.
pub fn check(
    template: CpuTemplate,
    table: &[CpuidEntryV1],
    host: &[CpuidEntryV1],
    vcpus: u8,
) -> Result<(), Unfit> {
    let (found, expected) = (vendor(table), vendor(host));
    if found != expected {
        return Err(Unfit::Vendor { found, expected });
    }
    let missing = features::missing(table, host);
    if !missing.is_empty() {
        return Err(Lacks(missing).into());
    }
    // Where a component lies in the area of `KVM_GET_XSAVE` is the host's choice.
    let components = table
        .iter()
        .filter(|leaf| leaf.function == 0xd && leaf.index >= 2);
    for leaf in components {
        let theirs = find(host, 0xd, leaf.index);
        if theirs.is_none_or(|theirs| (theirs.eax, theirs.ebx) != (leaf.eax, leaf.ebx)) {
            return Err(Unfit::XsaveLayout(leaf.index));
        }
    }
    let Some(level) = level(template) else {
        return Ok(());
    };
    let mut own = named(template, &level, host, vcpus);
    let invariant = find(table, 0x8000_0007, 0).map_or(0, |leaf| leaf.edx & INVARIANT_TSC);
    if let Some(power) = own.iter_mut().find(|leaf| leaf.function == 0x8000_0007) {
        power.edx &= invariant;
    }
    if own == table {
        Ok(())
    } else {
        Err(Unfit::Foreign(template))
    }
}

/// CPUID's vendor string.
#[must_use]
pub fn vendor(table: &[CpuidEntryV1]) -> String {
    let words = find(table, 0, 0).map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    let bytes = words.into_iter().flat_map(u32::to_le_bytes);
    bytes.map(|byte| char::from(byte & 0x7f)).collect()
}

/// Length of the XSAVE area that `table` describes, in bytes.
#[must_use]
pub fn xsave_len(table: &[CpuidEntryV1]) -> usize {
    let longest = find(table, 0xd, 0).map_or(0, |leaf| leaf.ecx);
    usize::try_from(longest).unwrap_or(0).max(XSAVE_LEGACY)
}

/// The legacy area and the header of XSAVE, in bytes.
const XSAVE_LEGACY: usize = 576;

fn find(table: &[CpuidEntryV1], function: u32, index: u32) -> Option<&CpuidEntryV1> {
    table
        .iter()
        .find(|leaf| (leaf.function, leaf.index) == (function, index))
}

fn named(
    template: CpuTemplate,
    level: &Level,
    host: &[CpuidEntryV1],
    vcpus: u8,
) -> Vec<CpuidEntryV1> {
    let vendor = find(host, 0, 0).copied().unwrap_or_default();
    let maker = Maker::of(&vendor);
    let leaf = |function, eax, ebx, ecx, edx| CpuidEntryV1 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..CpuidEntryV1::default()
    };
    let ecx1 = level.ecx1 | ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
    let invariant = find(host, 0x8000_0007, 0).map_or(0, |leaf| leaf.edx & INVARIANT_TSC);
    let repeated = if maker == Maker::Intel {
        0
    } else {
        BASE & AMD_REPEATS
    };
    let hypervisor = find(host, 0x4000_0000, 0).copied().unwrap_or_default();
    let mut table = vec![
        CpuidEntryV1 { eax: 0xd, ..vendor },
        leaf(1, maker.signature(), LINE, ecx1, BASE),
        leaf(6, ARAT, 0, 0, 0),
        CpuidEntryV1 {
            flags: SUBLEAVES,
            ..leaf(7, 0, level.ebx7, 0, 0)
        },
        // Filled in by `topology`.
        leaf(0xb, 0, 0, 0, 0),
        CpuidEntryV1 {
            eax: 0x4000_0001,
            ..hypervisor
        },
        leaf(0x4000_0001, KVM_FEATURE_MASK, 0, 0, 0),
        CpuidEntryV1 {
            function: 0x8000_0000,
            eax: 0x8000_0008,
            ..vendor
        },
        leaf(
            0x8000_0001,
            if maker == Maker::Intel {
                0
            } else {
                maker.signature()
            },
            0,
            level.ecx_extended,
            repeated | LONG_MODE,
        ),
        leaf(0x8000_0007, 0, 0, 0, invariant),
        leaf(0x8000_0008, ADDRESS_BITS, 0, 0, 0),
    ];
    table.extend(brand(template));
    table.extend(maker.caches());
    table.extend(xsave(level.xcr0, host));
    topology::apply(&mut table, vcpus);
    table.sort_by_key(|leaf| (leaf.function, leaf.index));
    table
}

/// The template's name in the place of the processor's.
fn brand(template: CpuTemplate) -> [CpuidEntryV1; 3] {
    let mut text = [0; 48];
    let name = format!("Snapback {template}");
    for (byte, letter) in text.iter_mut().zip(name.bytes()) {
        *byte = letter;
    }
    let (words, _) = text.as_chunks::<4>();
    let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
    [0, 1, 2].map(|part: u8| {
        let at = usize::from(part) * 4;
        CpuidEntryV1 {
            function: 0x8000_0002 + u32::from(part),
            eax: word(at),
            ebx: word(at + 1),
            ecx: word(at + 2),
            edx: word(at + 3),
            ..Default::default()
        }
    })
}

/// Leaf 0xd for these components, each where the host has it.
fn xsave(xcr0: u32, host: &[CpuidEntryV1]) -> Vec<CpuidEntryV1> {
    let leaf = |index, eax, ebx, ecx| CpuidEntryV1 {
        function: 0xd,
        index,
        flags: SUBLEAVES,
        eax,
        ebx,
        ecx,
        edx: 0,
    };
    if xcr0 == 0 {
        return Vec::new();
    }
    let components: Vec<_> = (2..32)
        .filter(|index| xcr0 & 1 << index != 0)
        .filter_map(|index| find(host, 0xd, index))
        .map(|theirs| leaf(theirs.index, theirs.eax, theirs.ebx, 0))
        .collect();
    let end = components.iter().map(|leaf| leaf.eax + leaf.ebx).max();
    let len = end.unwrap_or(0).max(576);
    let mut leaves = vec![leaf(0, xcr0, len, len), leaf(1, 0, 0, 0)];
    leaves.extend(components);
    leaves
}

/// Who makes the processor: leaves 2 and 4 are Intel's, `0x8000_0005` and 6 AMD's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Maker {
    Intel,
    Amd,
    Hygon,
}

impl Maker {
    fn of(vendor: &CpuidEntryV1) -> Self {
        match &vendor.ecx.to_le_bytes() {
            b"cAMD" => Self::Amd,
            b"uine" => Self::Hygon,
            _ => Self::Intel,
        }
    }

    /// Family, model and stepping: the first of a line that has level 3.
    const fn signature(self) -> u32 {
        match self {
            // Family 6, model 63.
            Self::Intel => 0x0003_06f0,
            // Family 23, model 1.
            Self::Amd => 0x0080_0f10,
            // Family 24, model 0.
            Self::Hygon => 0x0090_0f00,
        }
    }

    /// 32 KiB for data and for instructions, 512 KiB, and 8 MiB for all; lines of
    /// 64 bytes.
    fn caches(self) -> Vec<CpuidEntryV1> {
        let leaf = |function, index, eax, ebx, ecx, edx| CpuidEntryV1 {
            function,
            index,
            flags: if function == 4 { SUBLEAVES } else { 0 },
            eax,
            ebx,
            ecx,
            edx,
        };
        // Type and level, self-initialising; ways and line size less one; sets less one.
        let cache = |index, kind: u32, level: u32, ways: u32, sets: u32| {
            let eax = kind | level << 5 | 1 << 8;
            leaf(4, index, eax, (ways - 1) << 22 | 63, sets - 1, 0)
        };
        if self == Self::Intel {
            return vec![
                // "Look at leaf 4."
                leaf(2, 0, 0x00ff_ff01, 0, 0, 0),
                cache(0, 1, 1, 8, 64),
                cache(1, 2, 1, 8, 64),
                cache(2, 3, 2, 8, 1024),
                cache(3, 3, 3, 16, 8192),
                leaf(4, 4, 0, 0, 0, 0),
            ];
        }
        vec![
            // Size in KiB, ways, lines for each tag, line size; data, then instructions.
            leaf(0x8000_0005, 0, 0, 0, 0x2008_0140, 0x2008_0140),
            // 512 KiB of 8 ways (code 6); 16 times 512 KiB of 16 ways (code 8).
            leaf(0x8000_0006, 0, 0, 0, 0x0200_6140, 16 << 18 | 0x8140),
        ]
    }
}

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

    /// A host that has everything.
    fn host(vendor: &[u8; 12], vcpus: u8) -> Vec<CpuidEntryV1> {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let leaf = |function, index, registers: [u32; 4]| CpuidEntryV1 {
            function,
            index,
            flags: 0,
            eax: registers[0],
            ebx: registers[1],
            ecx: registers[2],
            edx: registers[3],
        };
        const ALL: u32 = u32::MAX;
        let mut table = vec![
            leaf(0, 0, [0x20, word(0), word(8), word(4)]),
            leaf(1, 0, [0x00a2_0f12, 0x1234_5678, ALL, ALL]),
            leaf(4, 0, [0xfc00_4121, 0x02c0_003f, 77, 7]),
            leaf(6, 0, [ALL, 1, 1, 1]),
            leaf(7, 0, [2, ALL, ALL, ALL]),
            leaf(0xb, 0, [1, 2, 0x100, 77]),
            leaf(0xd, 0, [0x2e7, 2696, 2696, 0]),
            leaf(0xd, 1, [0xf, 2440, 0x1800, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0xd, 5, [64, 1088, 0, 0]),
            leaf(0xd, 6, [512, 1152, 0, 0]),
            leaf(0xd, 7, [1024, 1664, 0, 0]),
            leaf(0xd, 9, [8, 2688, 0, 0]),
            leaf(0x16, 0, [3400, 4900, 100, 0]),
            leaf(
                0x4000_0000,
                0,
                [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            ),
            leaf(0x4000_0001, 0, [KVM_FEATURE_MASK, 0, 0, 0]),
            leaf(0x8000_0000, 0, [0x8000_0021, word(0), word(8), word(4)]),
            leaf(0x8000_0001, 0, [0x00a2_0f12, 0x2000_0000, ALL, ALL]),
            leaf(0x8000_0002, 0, [0x2044_4d41; 4]),
            leaf(0x8000_0007, 0, [1, 2, 3, ALL]),
            leaf(0x8000_0008, 0, [0x3030, ALL, 0x7fff, 0]),
            leaf(0x8000_001e, 0, [77, 0x126, 0x703, 0]),
        ];
        topology::apply(&mut table, vcpus);
        table
    }

    const AMD: &[u8; 12] = b"AuthenticAMD";
    const INTEL: &[u8; 12] = b"GenuineIntel";

    /// As the psABI and this module's head say.
    const V2_NAMES: [&str; 7] = [
        "cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3",
    ];
    const V3_NAMES: [&str; 9] = [
        "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave",
    ];
    const V4_NAMES: [&str; 5] = ["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"];
    const BASE_NAMES: [&str; 26] = [
        "apic",
        "clflush",
        "cmov",
        "cx8",
        "de",
        "fpu",
        "fxsr",
        "lm",
        "mca",
        "mce",
        "mmx",
        "msr",
        "mtrr",
        "nx",
        "pae",
        "pat",
        "pge",
        "pse",
        "pse36",
        "sep",
        "sse",
        "sse2",
        "syscall",
        "tsc",
        "nonstop_tsc",
        "arat",
    ];
    const KVM_NAMES: [&str; 3] = ["hypervisor", "tsc_deadline_timer", "x2apic"];

    #[test]
    fn a_level_has_its_features_and_no_others() {
        let levels: [(CpuTemplate, &[&[&str]]); 3] = [
            (CpuTemplate::V2, &[&V2_NAMES]),
            (CpuTemplate::V3, &[&V2_NAMES, &V3_NAMES]),
            (CpuTemplate::V4, &[&V2_NAMES, &V3_NAMES, &V4_NAMES]),
        ];
        for (template, names) in levels {
            for vendor in [AMD, INTEL] {
                let table = of_host(template, &host(vendor, 2), 2).unwrap();
                // Those of KVM's leaf and the XSAVE components have no names.
                let mut shown = features::names(&table);
                shown.retain(|name| !name.starts_with("cpuid:"));
                shown.sort();
                let mut expected = names.concat();
                expected.extend(BASE_NAMES);
                expected.extend(KVM_NAMES);
                expected.sort_unstable();
                assert_eq!(shown, expected, "{template}");
            }
        }
    }

    #[test]
    fn nothing_of_the_host_shows() {
        let other = |vendor| {
            let mut other = host(vendor, 2);
            for leaf in &mut other {
                match leaf.function {
                    1 | 0x8000_0001 => leaf.eax ^= 0x30,
                    4 | 0x16 | 0x8000_0002 | 0x8000_001e => leaf.ebx ^= 0x55,
                    0x8000_0008 => leaf.eax = 0x392e,
                    _ => {}
                }
            }
            other
        };
        for vendor in [AMD, INTEL] {
            for template in [CpuTemplate::V2, CpuTemplate::V3, CpuTemplate::V4] {
                let one = of_host(template, &host(vendor, 2), 2).unwrap();
                assert_eq!(one, of_host(template, &other(vendor), 2).unwrap());
                assert_eq!(check(template, &one, &other(vendor), 2), Ok(()));
                let leaves: Vec<_> = one.iter().map(|leaf| leaf.function).collect();
                assert!(!leaves.contains(&0x16) && !leaves.contains(&0x8000_001e));
            }
        }
    }

    #[test]
    fn the_xsave_area_is_the_levels() {
        for (template, xcr0, len) in [
            (CpuTemplate::V2, 0, 576),
            (CpuTemplate::V3, 7, 832),
            (CpuTemplate::V4, 0xe7, 2688),
        ] {
            let table = of_host(template, &host(INTEL, 1), 1).unwrap();
            assert_eq!(find(&table, 0xd, 0).map_or(0, |leaf| leaf.eax), xcr0);
            assert_eq!(xsave_len(&table), len, "{template}");
            assert!(find(&table, 0xd, 9).is_none(), "keys of pages");
        }
    }

    #[test]
    fn what_a_host_lacks_is_named() {
        let mut weak = host(AMD, 1);
        for leaf in &mut weak {
            if leaf.function == 7 {
                leaf.ebx &= !V4.ebx7 | V3.ebx7;
            }
            if (leaf.function, leaf.index) == (0xd, 0) {
                leaf.eax = 7;
            }
        }
        assert!(of_host(CpuTemplate::V3, &weak, 1).is_ok());
        let error = of_host(CpuTemplate::V4, &weak, 1).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(
                "this host's processor lacks: avx512f, avx512dq, avx512cd, avx512bw, avx512vl"
            ),
            "{text}"
        );
        // The same for a snapshot that was made elsewhere.
        let strong = of_host(CpuTemplate::V4, &host(AMD, 1), 1).unwrap();
        assert_eq!(check(CpuTemplate::V4, &strong, &weak, 1), Err(error));
    }

    #[test]
    fn a_table_that_its_template_does_not_give_is_refused() {
        let host = host(INTEL, 2);
        for change in [
            |table: &mut Vec<CpuidEntryV1>| table[1].ecx |= 1 << 25,
            |table: &mut Vec<CpuidEntryV1>| table[1].ecx &= !1,
            |table: &mut Vec<CpuidEntryV1>| table.truncate(table.len() - 1),
            |table: &mut Vec<CpuidEntryV1>| table[1].eax += 1,
        ] {
            let mut table = of_host(CpuTemplate::V2, &host, 2).unwrap();
            change(&mut table);
            let refused = check(CpuTemplate::V2, &table, &host, 2);
            assert_eq!(refused, Err(Unfit::Foreign(CpuTemplate::V2)));
        }
        let amd = of_host(CpuTemplate::V2, &self::host(AMD, 2), 2).unwrap();
        let refused = check(CpuTemplate::V2, &amd, &host, 2).unwrap_err();
        assert!(matches!(refused, Unfit::Vendor { .. }), "{refused}");
    }

    #[test]
    fn another_layout_of_the_xsave_area_is_refused() {
        let table = of_host(CpuTemplate::V4, &host(INTEL, 1), 1).unwrap();
        let mut other = host(INTEL, 1);
        for leaf in &mut other {
            if (leaf.function, leaf.index) == (0xd, 5) {
                leaf.ebx = 832;
            }
        }
        let refused = check(CpuTemplate::V4, &table, &other, 1);
        assert_eq!(refused, Err(Unfit::XsaveLayout(5)));
    }

    #[test]
    fn a_guest_without_an_invariant_counter_moves_to_any_host_and_one_with_it_does_not() {
        let with = host(AMD, 1);
        let mut without = with.clone();
        without.retain(|leaf| leaf.function != 0x8000_0007);
        let shown = |host: &[CpuidEntryV1]| of_host(CpuTemplate::V2, host, 1).unwrap();
        assert_eq!(check(CpuTemplate::V2, &shown(&without), &with, 1), Ok(()));
        let refused = check(CpuTemplate::V2, &shown(&with), &without, 1);
        assert_eq!(
            refused,
            Err(Unfit::Lacks(Lacks(vec!["nonstop_tsc".to_owned()])))
        );
    }

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
