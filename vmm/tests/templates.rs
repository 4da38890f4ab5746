//! CPU templates, seen from inside a real guest, after its restore and after a reset;
//! and what a host without a feature says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests count as code outside tests"
)]

mod harness;
mod tiny;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

use harness::{
    Cache, Shape, Vmm, boot_and_snapshot, restore_command, restored, restored_from, snapshot,
};
use snapback_proto::CONTROL_VERSION;
use snapback_proto::control::{Command, Event, Failure, Machine, Reply, StopReason, VmmMessage};
use snapback_proto::cpu::CpuTemplate;
use snapback_vmm::arch::x86_64::{cpuid, features};
use snapback_vmm::supervisor::Saved;
use tiny::Tiny;

/// The processor's features and name, as the guest's kernel sees them.
const CPUINFO: &str = r#"(lambda info: [
    info["vendor_id"], info["model name"], info["cpu family"], info["model"], info["stepping"],
    info["address sizes"], info["flags"],
])({key.strip(): value.strip() for key, value in (
    line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line
)})"#;

/// Asks the processor itself: leaf 1 ECX, leaf 7 EBX, leaf 0xd EAX, EBX and ECX, how many
/// leaves there are, and XCR0 when the kernel uses XSAVE. The code is `push rbx; mov
/// eax, edi; mov ecx, esi; mov r8, rdx; cpuid; mov [r8], eax; mov [r8+4], ebx; mov
/// [r8+8], ecx; mov [r8+12], edx; pop rbx; ret` and `xor ecx, ecx; xgetbv; shl rdx, 32;
/// or rax, rdx; ret`.
const ASK: &str = r#"(lambda mmap, ctypes: [
    page := mmap.mmap(-1, 4096, prot=7),
    page.write(bytes.fromhex("5389f889f14989d00fa241890041895804418948084189500c5bc3")),
    page.seek(64), page.write(bytes.fromhex("31c90f01d048c1e2204809d0c3")),
    start := ctypes.addressof(ctypes.c_char.from_buffer(page)),
    out := (ctypes.c_uint32 * 4)(),
    asked := ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(start),
    leaf := lambda *at: [asked(*at, ctypes.addressof(out)), list(out)][1],
    features := leaf(1, 0)[2],
    [features, leaf(7, 0)[1], leaf(0xd, 0)[:3], leaf(0, 0)[0], leaf(0x80000000, 0)[0],
     ctypes.CFUNCTYPE(ctypes.c_uint64)(start + 64)() if features >> 27 & 1 else None],
][-1])(__import__("mmap"), __import__("ctypes"))"#;

/// Whether a guest with the host's own processor does without XSAVE although the host
/// has it: an emulated host may not tell KVM when a guest sets XCR0 (QEMU 7.2 does not
/// intercept XSETBV). KVM then never adapts leaf 0xd to it, and Linux takes the
/// processor for one that contradicts itself. No template can do better.
fn xsave_is_refused() -> bool {
    let has = |flags: &str| flags.split([' ', '\'']).any(|flag| flag == "xsave");
    let host = features::names(&cpuid::of_this_host(1).unwrap());
    host.iter().any(|name| name == "xsave") && !has(&restored(Cache::Warm).look(CPUINFO))
}

/// What goes with XSAVE.
const WITH_XSAVE: [&str; 4] = ["xsave", "avx", "avx2", "fma"];

const OSXSAVE: u32 = 1 << 27;

fn failure(reply: Reply) -> Failure {
    match reply {
        Reply::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_of_a_level_sees_that_level_and_nothing_else() {
    let refused = xsave_is_refused();
    for (template, xcr0) in [(CpuTemplate::V2, None), (CpuTemplate::V3, Some(7))] {
        let snapshot = boot_and_snapshot(Shape {
            template,
            ..Shape::SMALL
        });
        let saved = Saved::load(&snapshot.state).unwrap();
        assert_eq!(saved.machine.template, template);
        let xsave = saved.processors[0].xsave.len();
        assert_eq!(xsave, if xcr0.is_some() { 832 } else { 576 });
        let mut machine = restored_from(&snapshot, Cache::Warm);
        for _ in 0..2 {
            assert_eq!(machine.differences(), Vec::<String>::new(), "{template}");
            let info = machine.look(CPUINFO);
            machine.reset();
            check_cpuinfo(&info, template, &saved, refused);
            check_asked(&machine.look(ASK), &saved, xcr0.filter(|_| !refused));
            machine.reset();
        }
    }
}

fn check_cpuinfo(text: &str, template: CpuTemplate, saved: &Saved, refused: bool) {
    let info: Vec<String> = python_list(text);
    let [vendor, model_name, family, model, stepping, sizes, flags] = &info[..] else {
        panic!("{text}");
    };
    assert_eq!(model_name, &format!("Snapback {template}"));
    let expected = match vendor.as_str() {
        "AuthenticAMD" => ["23", "1", "0"],
        "GenuineIntel" => ["6", "63", "0"],
        other => panic!("{other}"),
    };
    assert_eq!([family, model, stepping], expected);
    assert_eq!(sizes, "36 bits physical, 48 bits virtual");
    let seen: BTreeSet<&str> = flags.split(' ').collect();
    let shown = features::names(&saved.cpuid);
    let shown: BTreeSet<&str> = shown.iter().map(String::as_str).collect();
    // What the host could show and the template does not name is not there. (Linux adds
    // flags of its own, which no CPUID bit stands for.)
    let host = features::names(&cpuid::of_this_host(1).unwrap());
    for name in host.iter().filter(|name| !shown.contains(name.as_str())) {
        assert!(!seen.contains(name.as_str()), "{template} has {name}");
    }
    let without = |name: &str| refused && WITH_XSAVE.contains(&name);
    for name in shown.iter().filter(|name| !name.starts_with("cpuid:")) {
        assert!(
            without(name) || seen.contains(name),
            "{template} lacks {name}: {flags}"
        );
    }
    let avx = template == CpuTemplate::V3;
    for name in ["avx", "avx2", "bmi2", "fma", "xsave"] {
        let expected = avx && !without(name);
        assert_eq!(seen.contains(name), expected, "{template}, {name}");
    }
    for name in ["aes", "rdrand", "xsaveopt", "rdtscp", "fsgsbase"] {
        assert!(!seen.contains(name), "{template}, {name}");
    }
}

fn check_asked(text: &str, saved: &Saved, xcr0: Option<u32>) {
    let leaf = |function, index| {
        let found = saved
            .cpuid
            .iter()
            .find(|leaf| (leaf.function, leaf.index) == (function, index));
        found.copied().unwrap_or_default()
    };
    let osxsave = if xcr0.is_some() { OSXSAVE } else { 0 };
    let area = leaf(0xd, 0);
    // KVM adapts this one to XCR0.
    let in_use = match xcr0 {
        None if area.eax != 0 => 576,
        _ => area.ebx,
    };
    let xcr0 = xcr0.map_or("None".to_owned(), |value| value.to_string());
    let expected = format!(
        "[{}, {}, [{}, {}, {}], 13, {}, {xcr0}]",
        leaf(1, 0).ecx | osxsave,
        leaf(7, 0).ebx,
        area.eax,
        in_use,
        area.ecx,
        0x8000_0008_u32,
    );
    assert_eq!(text, expected);
}

/// A Python list of strings without quotes in them.
fn python_list(text: &str) -> Vec<String> {
    text.split('\'')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_level_that_this_host_does_not_have_is_refused_with_the_names_of_what_it_lacks() {
    let host = features::names(&cpuid::of_this_host(1).unwrap());
    let needed = ["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"];
    let missing: Vec<_> = needed
        .iter()
        .filter(|name| !host.contains(&(**name).to_owned()))
        .collect();
    let vmm = Vmm::start();
    let (reply, _) = vmm.ask(
        &Command::Prepare(Machine {
            control_version: CONTROL_VERSION,
            memory_mib: 128,
            vcpus: 1,
            template: CpuTemplate::V4,
            disks: 0,
            net: false,
        }),
        &[],
    );
    if missing.is_empty() {
        assert!(matches!(reply, Reply::Prepared { .. }), "{reply:?}");
        return;
    }
    let reason = failure(reply).reason;
    for name in missing {
        assert!(reason.contains(name), "{name} is not in {reason}");
    }
}

/// Restores the small machine's snapshot with a changed state.
fn restore_changed(change: impl FnOnce(&mut Saved)) -> Failure {
    let snapshot = snapshot();
    let mut saved = Saved::load(&snapshot.state).unwrap();
    change(&mut saved);
    let state: File = tempfile::tempfile().unwrap();
    saved.store(&state).unwrap();
    let vmm = Vmm::start();
    let _memory = vmm.prepare(Shape {
        template: saved.machine.template,
        ..snapshot.shape
    });
    failure(restore_command(&vmm, snapshot, &snapshot.memory, &state).0)
}

#[test]
fn a_state_that_needs_what_this_host_lacks_is_refused_by_the_vmm_itself() {
    let failed = restore_changed(|saved| {
        let mut table = saved.cpuid.to_vec();
        let leaf = table.iter_mut().find(|leaf| leaf.function == 7).unwrap();
        // avx512_4vnniw and avx512_4fmaps: of a processor that is no longer made.
        leaf.edx |= 1 << 2 | 1 << 3;
        saved.cpuid = table.into();
    });
    assert_eq!(failed.section.as_deref(), Some("processor"));
    let reason = failed.reason;
    assert!(
        reason.ends_with("this host's processor lacks: avx512_4vnniw, avx512_4fmaps"),
        "{reason}"
    );
}

#[test]
fn a_state_that_contradicts_its_template_or_kvm_is_refused() {
    let named = restore_changed(|saved| saved.machine.template = CpuTemplate::V2);
    assert_eq!(named.section.as_deref(), Some("processor"));
    let foreign = restore_changed(|saved| {
        let processor = Arc::make_mut(&mut saved.processors[0]);
        processor.msrs.push((0x1234_5678, 1));
    });
    assert_eq!(foreign.section.as_deref(), Some("processor"));
    assert!(foreign.reason.contains("MSR 0x12345678"), "{foreign:?}");
}

#[test]
fn a_register_out_of_the_templates_reach_faults_and_others_do_not() {
    // IA32_PLATFORM_INFO, which KVM answers without asking CPUID; MISC_ENABLE.
    for (template, msr, readable) in [
        (CpuTemplate::Host, 0xce, true),
        (CpuTemplate::V2, 0xce, false),
        (CpuTemplate::V2, 0x1a0, true),
    ] {
        let guest = Tiny {
            shape: Shape {
                template,
                memory_mib: 64,
                vcpus: 1,
            },
            counter: 0,
            msr: Some(msr),
        };
        let mut running = guest.boot();
        if readable {
            assert_eq!(running.read_until(b'r'), "r", "{template}, {msr:#x}");
        } else {
            // There is nobody to handle the fault.
            let (message, _) = running.vmm.message();
            let expected = VmmMessage::Event(Event::Stopped(StopReason::Rebooted));
            assert_eq!(message, expected, "{template}, {msr:#x}");
        }
    }
}
