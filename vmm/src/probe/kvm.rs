//! KVM: the device, what it says it can do, and whether a guest really runs.

use kvm_bindings::{KVM_API_VERSION, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use snapback_proto::words::chain;

use super::guest::Machine;
use super::{Check, Need, check};
use crate::sys::kvm;

const NEWER_KERNEL: &str = "run a newer kernel (Debian's 6.12 is the tested one)";
const OTHER_HOST: &str = "use a host with hardware virtualisation (bare metal, or nested \
    virtualisation switched on); this /dev/kvm cannot run a Linux guest";
const OTHERS_FIRST: &str = "put the checks of KVM before this one right first";

/// Every check of KVM, in the order in which they build on one another.
pub(super) fn checks() -> Vec<Check> {
    let kvm = open();
    let mut checks = vec![check(
        "kvm",
        Need::Required,
        kvm.as_ref()
            .map(|_| "/dev/kvm opens and speaks API version 12".to_owned())
            .map_err(Clone::clone),
        "load the kernel module kvm_amd or kvm_intel, switch virtualisation on in the firmware, and \
         run as root or as a member of the group kvm",
    )];
    let kvm = kvm.as_ref().ok();
    checks.extend(guest(kvm));
    let has = |cap: Cap, what: &str| match kvm {
        None => Err("there is no usable /dev/kvm to ask".to_owned()),
        Some(kvm) if kvm.check_extension(cap) => Ok(format!("KVM has {what}")),
        Some(_) => Err(format!("KVM lacks {what}")),
    };
    checks.push(check(
        "kvm-immediate-exit",
        Need::Required,
        has(Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        NEWER_KERNEL,
    ));
    checks.push(check(
        "kvm-xcrs",
        Need::Required,
        has(Cap::Xcrs, "KVM_CAP_XCRS"),
        OTHER_HOST,
    ));
    checks.push(check(
        "kvm-xsave2",
        Need::Optional,
        has(Cap::Xsave2, "KVM_CAP_XSAVE2"),
        "run a kernel of 5.17 or newer: without it, guests cannot use AMX",
    ));
    checks
}

fn open() -> Result<Kvm, String> {
    let kvm = Kvm::new().map_err(|error| format!("/dev/kvm does not open ({error})"))?;
    match u32::try_from(kvm.get_api_version()) {
        Ok(KVM_API_VERSION) => Ok(kvm),
        _ => Err(format!(
            "/dev/kvm speaks API version {}",
            kvm.get_api_version()
        )),
    }
}

/// The checks that need a machine.
fn guest(kvm: Option<&Kvm>) -> [Check; 3] {
    let built = kvm
        .ok_or_else(|| "there is no usable /dev/kvm to try".to_owned())
        .and_then(|kvm| {
            Machine::new(kvm).map_err(|error| format!("no test guest: {}", chain(&error)))
        });
    let tsc_offset = match &built {
        Ok(machine) => tsc_offset(machine.vcpu()),
        Err(why) => Err(why.clone()),
    };
    let outcome = built.and_then(|machine| {
        machine
            .run()
            .map_err(|error| format!("a test guest ran; {}", chain(&error)))
    });
    let ran = outcome.is_ok();
    let (syscall, ring) = match outcome {
        Ok(outcome) => {
            let detail = format!(
                "a test guest went from ring 0 to ring 3 and back by syscall in {} µs",
                outcome.took.as_micros()
            );
            (Ok(detail), outcome.dirty_log)
        }
        Err(why) => (Err(why), Err(ring_untried(kvm).to_owned())),
    };
    let ring = ring.map(|()| "KVM names the pages that a test guest wrote".to_owned());
    let remedy = |ready, remedy| if ready { remedy } else { OTHERS_FIRST };
    let there = kvm.is_some();
    [
        check(
            "kvm-guest",
            Need::Required,
            syscall,
            remedy(there, OTHER_HOST),
        ),
        check(
            "kvm-dirty-log",
            Need::Required,
            ring,
            remedy(ran, NEWER_KERNEL),
        ),
        check(
            "kvm-tsc-offset",
            Need::Required,
            tsc_offset,
            remedy(there, NEWER_KERNEL),
        ),
    ]
}

fn ring_untried(kvm: Option<&Kvm>) -> &'static str {
    let cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into();
    if kvm.is_some_and(|kvm| kvm.check_extension_raw(cap) > 0) {
        "KVM offers a dirty bitmap that is protected by hand, but no test guest ran to show that it works"
    } else {
        "KVM offers no dirty bitmap that is protected by hand"
    }
}

fn tsc_offset(vcpu: &VcpuFd) -> Result<String, String> {
    match kvm::set_tsc_offset(vcpu, 0) {
        Ok(()) => Ok("a guest's time stamp counter can be set exactly".to_owned()),
        Err(error) => Err(format!(
            "a guest's time stamp counter cannot be set exactly ({error})"
        )),
    }
}
