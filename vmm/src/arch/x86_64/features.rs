//! The names of processor features, as `/proc/cpuinfo` has them, and what one
//! processor lacks of another.
//!
//! Bits: Intel SDM volume 2, `CPUID`; AMD APM volume 3, appendix E. Names: the
//! comments of Linux 6.12's `arch/x86/include/asm/cpufeatures.h`. A bit for which
//! Linux has no name is called by its place, for example `cpuid:7.0:edx:26`.

use super::cpuid::CpuidEntryV1;

/// A register of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A register whose bits are features: leaf, subleaf, register, and the bits'
/// names from bit 0 up; `-` where Linux has none.
struct Word(u32, u32, Register, &'static str);

use Register::{Eax, Ebx, Ecx, Edx};

const WORDS: [Word; 17] = [
    Word(
        0x1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - \
         dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    Word(
        0x1,
        0,
        Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - \
         pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c \
         rdrand hypervisor",
    ),
    Word(0x6, 0, Eax, "dtherm ida arat"),
    Word(
        0x7,
        0,
        Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a \
         avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er \
         avx512cd sha_ni avx512bw avx512vl",
    ),
    Word(
        0x7,
        0,
        Ecx,
        "- avx512vbmi umip pku - waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - \
         movdiri movdir64b enqcmd sgx_lc",
    ),
    Word(
        0x7,
        0,
        Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - \
         serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 - - \
         flush_l1d arch_capabilities",
    ),
    Word(
        0x7,
        1,
        Eax,
        "- - - - avx_vnni avx512_bf16 - - - - - - - - - - - - lkgs - - amx_fp16 - avx_ifma - - lam",
    ),
    Word(0x7, 1, Edx, ""),
    Word(0x7, 2, Edx, ""),
    Word(0xd, 0, Eax, ""),
    Word(0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves"),
    Word(0x4000_0001, 0, Eax, ""),
    Word(
        0x8000_0001,
        0,
        Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs \
         xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext \
         ptsc perfctr_llc mwaitx",
    ),
    // What AMD repeats of leaf 1 has the same names.
    Word(
        0x8000_0001,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - \
         mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    Word(0x8000_0007, 0, Edx, "- - - - - - - - nonstop_tsc"),
    Word(
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd",
    ),
    Word(
        0x8000_000a,
        0,
        Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - \
         pausefilter - pfthreshold avic - v_vmsave_vmload vgif - x2avic - v_spec_ctrl - - - - \
         vnmi - - svme_addr_chk",
    ),
];

/// Features that tell how many processors there are, not what one can do.
const OF_TOPOLOGY: [&str; 2] = ["ht", "cmp_legacy"];

/// The names of all features in `table`, in the order of the leaves, each once.
#[must_use]
pub fn names(table: &[CpuidEntryV1]) -> Vec<String> {
    collect(|word| word.of(table))
}

/// The names of the features that `needed` has and `offered` has not.
#[must_use]
pub fn missing(needed: &[CpuidEntryV1], offered: &[CpuidEntryV1]) -> Vec<String> {
    collect(|word| word.of(needed) & !word.of(offered))
}

fn collect(bits: impl Fn(&Word) -> u32) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for word in &WORDS {
        let bits = bits(word);
        for bit in (0..32).filter(|bit| bits & 1 << bit != 0) {
            let name = word.name(bit);
            if !OF_TOPOLOGY.contains(&name.as_str()) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

impl Word {
    fn of(&self, table: &[CpuidEntryV1]) -> u32 {
        let &Self(function, index, register, _) = self;
        let leaf = table
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index));
        leaf.map_or(0, |leaf| match register {
            Eax => leaf.eax,
            Ebx => leaf.ebx,
            Ecx => leaf.ecx,
            Edx => leaf.edx,
        })
    }

    fn name(&self, bit: usize) -> String {
        let &Self(function, index, register, names) = self;
        match names.split_whitespace().nth(bit) {
            None | Some("-") => {
                let register = match register {
                    Eax => "eax",
                    Ebx => "ebx",
                    Ecx => "ecx",
                    Edx => "edx",
                };
                format!("cpuid:{function:x}.{index}:{register}:{bit}")
            }
            Some(name) => name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32, edx: u32) -> CpuidEntryV1 {
        CpuidEntryV1 {
            function,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn bits_have_linux_names_and_others_their_place() {
        let table = [
            leaf(1, 1 << 19 | 1 << 28 | 1 << 27, 1 << 25 | 1 << 28),
            leaf(7, 0, 1 << 26),
            leaf(
                0x8000_0001,
                1 | 1 << 1 | 1 << 5,
                1 << 20 | 1 << 25 | 1 << 29,
            ),
        ];
        assert_eq!(
            names(&table),
            [
                "sse",
                "sse4_1",
                "cpuid:1.0:ecx:27",
                "avx",
                "cpuid:7.0:edx:26",
                "lahf_lm",
                "abm",
                "nx",
                "fxsr_opt",
                "lm"
            ]
        );
    }

    #[test]
    fn no_name_is_longer_than_a_manifest_takes_or_stands_for_two_bits() {
        let mut seen = std::collections::HashMap::new();
        for (at, word) in WORDS.iter().enumerate() {
            for bit in 0..32 {
                let name = word.name(bit);
                assert!(name.len() <= 32, "{name}");
                // AMD repeats leaf 1's.
                let same = seen.insert(name.clone(), at);
                assert!(same.is_none() || word.0 == 0x8000_0001, "{name}");
            }
            assert!(word.3.split_whitespace().count() <= 32);
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let needed = [leaf(1, 1 << 19 | 1 << 28, 1)];
        let offered = [leaf(1, 1 << 19, 3)];
        assert_eq!(missing(&needed, &offered), ["avx"]);
        assert_eq!(missing(&needed, &[]), ["fpu", "sse4_1", "avx"]);
        assert_eq!(missing(&[], &needed), Vec::<String>::new());
    }
}
