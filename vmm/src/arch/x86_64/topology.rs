//! How a guest's processors stand to each other: one package, a core for each
//! vCPU, one thread for each core, APIC ids from 0 up. What the host's leaves say
//! of its own packages, cores and shared caches is replaced, so that nothing of it
//! shows and a guest's scheduler is not misled.
//!
//! Intel: SDM volume 3, 9.9 (leaves 1, 4, 0xb, 0x1f). AMD: APM volume 3, appendix E
//! (leaves 0x8000_0001, 8, 1d and 1e).

use super::cpuid::CpuidEntryV1;

const VENDOR: u32 = 0x0;
const FEATURES: u32 = 0x1;
const INTEL_CACHES: u32 = 0x4;
const EXTENDED_TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1, EDX: there is more than one logical processor in the package.
const EDX_HTT: u32 = 1 << 28;
/// Leaf `0x8000_0001`, ECX: and they are cores, not threads.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: a leaf with subleaves.
const SIGNIFICANT_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// ECX of leaf 0, the end of the vendor's name.
const ECX_AMD: u32 = u32::from_le_bytes(*b"cAMD");
const ECX_HYGON: u32 = u32::from_le_bytes(*b"uine");

/// Writes the topology of a machine with `vcpus` processors into `table`.
pub fn apply(table: &mut Vec<CpuidEntryV1>, vcpus: u8) {
    let amd = table
        .iter()
        .any(|leaf| leaf.function == VENDOR && [ECX_AMD, ECX_HYGON].contains(&leaf.ecx));
    for leaf in table.iter_mut() {
        one_package(leaf, vcpus.max(1), amd);
    }
    for function in EXTENDED_TOPOLOGY {
        let known = table.len();
        table.retain(|leaf| leaf.function != function);
        // A processor without the leaf does not get it.
        if table.len() < known {
            table.extend(levels(function, vcpus.max(1)));
        }
    }
}

fn one_package(leaf: &mut CpuidEntryV1, vcpus: u8, amd: bool) {
    let cores = u32::from(vcpus);
    let ids = cores.next_power_of_two();
    let more = vcpus > 1;
    match leaf.function {
        FEATURES => {
            // Intel counts ids, AMD processors.
            let count = if amd { cores } else { ids };
            leaf.ebx = (leaf.ebx & 0xff00_ffff) | count << 16;
            set(&mut leaf.edx, EDX_HTT, more);
        }
        INTEL_CACHES if leaf.eax & 0x1f != 0 => {
            let sharing = sharing(leaf.eax, ids);
            leaf.eax = (leaf.eax & 0x3fff) | sharing << 14 | (ids - 1) << 26;
        }
        AMD_FEATURES if amd => set(&mut leaf.ecx, ECX_CMP_LEGACY, more),
        AMD_SIZES if amd => {
            leaf.ecx = (leaf.ecx & !0xf0ff) | (cores - 1) | ids.trailing_zeros() << 12;
        }
        AMD_CACHES if leaf.eax & 0x1f != 0 => {
            leaf.eax = (leaf.eax & !(0xfff << 14)) | sharing(leaf.eax, cores) << 14;
        }
        // Threads for each core, and nodes, less one; the ids are each vCPU's own.
        AMD_TOPOLOGY => (leaf.eax, leaf.ebx, leaf.ecx) = (0, 0, 0),
        _ => {}
    }
}

/// How many others share a cache: the third level is everybody's.
fn sharing(eax: u32, all: u32) -> u32 {
    if eax >> 5 & 7 >= 3 { all - 1 } else { 0 }
}

/// The levels of a package: threads, cores, and the end of the list.
fn levels(function: u32, vcpus: u8) -> [CpuidEntryV1; 3] {
    let cores = u32::from(vcpus);
    let level = |index, shift, count, kind: u32| CpuidEntryV1 {
        function,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: 0,
    };
    [
        level(0, 0, 1, 1),
        level(1, cores.next_power_of_two().trailing_zeros(), cores, 2),
        level(2, 0, 0, 0),
    ]
}

/// Writes the APIC id of processor `id` wherever a leaf has one.
pub fn own(leaf: &mut CpuidEntryV1, id: u8) {
    let id = u32::from(id);
    match leaf.function {
        FEATURES => leaf.ebx = (leaf.ebx & 0x00ff_ffff) | id << 24,
        function if EXTENDED_TOPOLOGY.contains(&function) => leaf.edx = id,
        AMD_TOPOLOGY => {
            leaf.eax = id;
            leaf.ebx = (leaf.ebx & !0xff) | id;
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntryV1 {
        let [eax, ebx, ecx, edx] = registers;
        CpuidEntryV1 {
            function,
            index,
            flags: 0,
            eax,
            ebx,
            ecx,
            edx,
        }
    }

    /// A host of another shape: every field of topology is set.
    fn host(vendor_end: u32) -> Vec<CpuidEntryV1> {
        vec![
            leaf(0, 0, [0x1f, 0, vendor_end, 0]),
            leaf(1, 0, [0, 0x7f40_0800, 0, EDX_HTT | 1]),
            leaf(4, 0, [0xfc00_4121, 0, 0, 0]),
            leaf(4, 1, [0xfc1f_c163, 0, 0, 0]),
            leaf(4, 2, [0, 0, 0, 0]),
            leaf(0xb, 0, [1, 2, 0x100, 77]),
            leaf(0xb, 1, [7, 128, 0x201, 77]),
            leaf(0x8000_0001, 0, [0, 0, ECX_CMP_LEGACY | 1, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x0001_707f, 0]),
            leaf(0x8000_001d, 3, [0x0001_c163, 0, 0, 0]),
            leaf(0x8000_001e, 0, [77, 0x0000_0126, 0x0000_0703, 0]),
        ]
    }

    fn find(table: &[CpuidEntryV1], function: u32, index: u32) -> CpuidEntryV1 {
        let found = table
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index));
        *found.unwrap()
    }

    #[test]
    fn a_guest_sees_one_package_with_a_core_for_each_vcpu() {
        let mut table = host(ECX_AMD);
        apply(&mut table, 3);
        assert_eq!(find(&table, 1, 0).ebx, 0x7f03_0800);
        assert_eq!(find(&table, 1, 0).edx, EDX_HTT | 1);
        assert_eq!(find(&table, 4, 0).eax, 3 << 26 | 0x0121, "a core's own");
        assert_eq!(find(&table, 4, 1).eax, 3 << 26 | 3 << 14 | 0x0163);
        assert_eq!(find(&table, 4, 2).eax, 0, "the end of the list");
        let (threads, cores) = (find(&table, 0xb, 0), find(&table, 0xb, 1));
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
        assert_eq!(find(&table, 0xb, 2).ebx, 0);
        assert_eq!(find(&table, 0x8000_0001, 0).ecx, ECX_CMP_LEGACY | 1);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0x0001_2002);
        assert_eq!(find(&table, 0x8000_001d, 3).eax, 2 << 14 | 0x0163);
        let last = find(&table, 0x8000_001e, 0);
        assert_eq!((last.eax, last.ebx, last.ecx), (0, 0, 0));
        assert!(
            table.iter().all(|leaf| leaf.function != 0x1f),
            "not made up"
        );
    }

    #[test]
    fn a_single_vcpu_is_alone() {
        let mut table = host(ECX_AMD);
        apply(&mut table, 1);
        let first = find(&table, 1, 0);
        assert_eq!((first.ebx, first.edx), (0x7f01_0800, 1));
        assert_eq!(find(&table, 0x8000_0001, 0).ecx, 1);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0x0001_0000);
        assert_eq!(find(&table, 0xb, 1).ebx, 1);
    }

    #[test]
    fn leaves_of_amd_mean_something_else_elsewhere() {
        let mut table = host(u32::from_le_bytes(*b"ntel"));
        apply(&mut table, 3);
        assert_eq!(find(&table, 1, 0).ebx, 0x7f04_0800, "ids, not processors");
        assert_eq!(find(&table, 0x8000_0001, 0).ecx, ECX_CMP_LEGACY | 1);
        assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0x0001_707f);
    }

    #[test]
    fn applying_it_twice_changes_nothing() {
        let mut once = host(ECX_HYGON);
        apply(&mut once, 4);
        let mut twice = once.clone();
        apply(&mut twice, 4);
        assert_eq!(once, twice);
    }

    #[test]
    fn each_vcpu_sees_its_own_apic_id() {
        let mut table = host(ECX_AMD);
        apply(&mut table, 8);
        table.iter_mut().for_each(|leaf| own(leaf, 5));
        assert_eq!(find(&table, 1, 0).ebx >> 24, 5);
        assert_eq!(find(&table, 0xb, 0).edx, 5);
        assert_eq!(find(&table, 0xb, 1).edx, 5);
        let last = find(&table, 0x8000_001e, 0);
        assert_eq!((last.eax, last.ebx), (5, 5));
    }
}
