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

mod msr_filter;
#[cfg(test)]
mod tests;

pub use msr_filter::{confine, reaches};
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
