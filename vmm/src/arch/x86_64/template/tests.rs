//! Tests of what a named template shows, and of what it asks of a host.

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
