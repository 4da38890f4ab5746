//! A guest of a few instructions, in flat 32-bit mode without paging: it leaves for
//! its host over and over, or touches one page after the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use snapback_vmm::sys::kvm::set_memory_slot;
use snapback_vmm::sys::mapping::{Reservation, Sharing};
use snapback_vmm::sys::memfd;
use snapback_vmm::sys::uffd::{Fault, Uffd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::error::{FloorError, step};
use crate::report::{Row, Samples};

const PAGE: u64 = 4096;
/// Pages that one run touches.
const PAGES: u32 = 512;
/// Where they begin: two pages above the code.
const FIRST: u32 = 0x3000;
const CODE: u64 = 0x1000;
const MEMORY: usize = 4 << 20;
/// Exits of one sample.
const EXITS: u32 = 256;
/// Samples of each row.
const ROUNDS: usize = 8;
/// The port that means the end.
const PORT: u16 = 0x5b;
/// How long the pager sleeps at most while nothing is missing, in nanoseconds.
const NAP_NS: i64 = 10_000_000;

/// `out PORT, al` for ever.
const EXIT_LOOP: [u8; 4] = [0xe6, 0x5b, 0xeb, 0xfc];
/// `mov al, [esi]` (or `mov [esi], al`) · `add esi, 4096` · `dec ecx` · `jnz` to the
/// start · `out PORT, al`.
const fn touch(access: u8) -> [u8; 13] {
    [
        access, 0x06, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0x49, 0x75, 0xf5, 0xe6, 0x5b,
    ]
}
const READ: u8 = 0x8a;
const WRITE: u8 = 0x88;

/// Exit, first read and first write of a page that is in the memfd, and first read
/// of one that is not. All in nanoseconds, for each exit or page.
///
/// # Errors
/// When the host's KVM or userfaultfd cannot be used.
pub fn guest() -> Result<Vec<Row>, FloorError> {
    let kvm = Kvm::new().map_err(step("opening /dev/kvm"))?;
    let rows = [
        exits(&kvm)?.row("floor/exit", []),
        touches(&kvm, READ, Backing::Full)?.row("floor/fault_read", []),
        touches(&kvm, WRITE, Backing::Full)?.row("floor/fault_write", []),
        touches(&kvm, READ, Backing::Lazy)?.row("floor/userfault", []),
    ];
    Ok(rows.into_iter().flatten().collect())
}

fn exits(kvm: &Kvm) -> Result<Samples, FloorError> {
    let mut samples = Samples::new("ns");
    let mut machine = Machine::new(kvm, &EXIT_LOOP, Backing::Full)?;
    machine.until_exit()?;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..EXITS {
            machine.until_exit()?;
        }
        samples.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(EXITS));
    }
    Ok(samples)
}

fn touches(kvm: &Kvm, access: u8, backing: Backing) -> Result<Samples, FloorError> {
    let mut samples = Samples::new("ns");
    for _ in 0..ROUNDS {
        let mut machine = Machine::new(kvm, &touch(access), backing)?;
        let begin = Instant::now();
        machine.until_exit()?;
        samples.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(PAGES));
    }
    Ok(samples)
}

/// What lies in the memfd before the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    /// Every page.
    Full,
    /// The code; the rest is filled in when it is touched.
    Lazy,
}

struct Machine {
    vcpu: VcpuFd,
    /// Kept open for as long as the vCPU runs.
    _vm: VmFd,
    pager: Option<Pager>,
}

impl Machine {
    fn new(kvm: &Kvm, code: &[u8], backing: Backing) -> Result<Self, FloorError> {
        let vm = kvm.create_vm().map_err(step("making a virtual machine"))?;
        let memory = Reservation::new(MEMORY).map_err(step("reserving memory"))?;
        let (address, length) = memory.range().map_err(step("reserving memory"))?;
        let file = memfd::create("floor", length).map_err(step("making a memfd"))?;
        if backing == Backing::Full {
            let all = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, all, 0, length).map_err(step("filling a memfd"))?;
        }
        rustix::io::pwrite(&file, code, CODE).map_err(step("writing a memfd"))?;
        memory
            .map(file.as_fd(), 0, Sharing::Private)
            .map_err(step("mapping a memfd"))?;
        prepare(&memory)?;
        set_memory_slot(&vm, 0, 0, &memory, false).map_err(step("setting memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(step("making a vCPU"))?;
        enter(kvm, &vcpu)?;
        let pager = match backing {
            Backing::Full => None,
            Backing::Lazy => Some(Pager::start(file, address, length)?),
        };
        Ok(Self {
            vcpu,
            _vm: vm,
            pager,
        })
    }

    fn until_exit(&mut self) -> Result<(), FloorError> {
        match self.vcpu.run().map_err(step("running a guest"))? {
            VcpuExit::IoOut(PORT, _) => Ok(()),
            other => Err(FloorError::Guest {
                exit: format!("{other:?}"),
            }),
        }
    }
}

/// Takes the host's fault of the page of code.
fn prepare(memory: &Reservation) -> Result<(), FloorError> {
    let region = memory
        .region(GuestAddress(0))
        .map_err(step("mapping a memfd"))?;
    let ram = GuestMemoryMmap::from_regions(vec![region])
        .map_err(|error| step("mapping a memfd")(io::Error::other(error)))?;
    ram.read_obj::<u8>(GuestAddress(CODE))
        .map(drop)
        .map_err(|error| step("reading a memfd")(io::Error::other(error)))
}

fn enter(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), FloorError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(step("asking for the processor's features"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(step("setting the processor's features"))?;
    let mut sregs = vcpu.get_sregs().map_err(step("reading registers"))?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 0x08,
        type_: 11,
        ..data
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    // Protection without paging (Intel SDM volume 3, 2.5).
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)
        .map_err(step("entering protected mode"))?;
    let regs = kvm_regs {
        rip: CODE,
        rsi: u64::from(FIRST),
        rcx: u64::from(PAGES),
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(step("setting registers"))
}

/// Fills pages in as the agent's pager does: into the memfd, then a wake.
struct Pager {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pager {
    fn start(file: OwnedFd, address: u64, length: u64) -> Result<Self, FloorError> {
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd")
            .map_err(step("opening /dev/userfaultfd"))?;
        let uffd = Uffd::from_device(device.as_fd()).map_err(step("making a userfaultfd"))?;
        uffd.register_missing(address, length)
            .map_err(step("registering memory"))?;
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        let thread = thread::Builder::new()
            .name("floor-pager".to_owned())
            .spawn(move || {
                while !flag.load(Ordering::Relaxed) {
                    // A failure shows as a guest that does not come to its end.
                    if fill(&uffd, &file, address).is_err() {
                        return;
                    }
                }
            })
            .map_err(step("starting a thread"))?;
        Ok(Self {
            done,
            thread: Some(thread),
        })
    }
}

fn fill(uffd: &Uffd, file: &OwnedFd, address: u64) -> io::Result<()> {
    let nap = Timespec {
        tv_sec: 0,
        tv_nsec: NAP_NS,
    };
    poll(&mut [PollFd::new(uffd, PollFlags::IN)], Some(&nap))?;
    let mut faults = [Fault::default(); 16];
    let count = uffd.read_events(&mut faults)?;
    for fault in faults.iter().take(count) {
        let page = fault.address & !(PAGE - 1);
        rustix::io::pwrite(file, &[1; 4096], page - address)?;
        uffd.wake(page, PAGE)?;
    }
    Ok(())
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only ends: there is nothing that it could report.
            let _ = thread.join();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Before the mapping that it serves.
        self.pager = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_goes_back_to_its_first_instruction() {
        let code = touch(READ);
        let jump = i32::from(i8::from_le_bytes([code[10]]));
        assert_eq!(code[9], 0x75);
        assert_eq!(11 + jump, 0);
        let stride = u32::from_le_bytes([code[4], code[5], code[6], code[7]]);
        assert_eq!(u64::from(stride), PAGE);
    }

    #[test]
    fn the_touched_pages_are_memory_and_not_code() {
        assert!(u64::from(FIRST) > CODE + PAGE);
        let end = u64::from(FIRST) + u64::from(PAGES) * PAGE;
        assert!(usize::try_from(end).unwrap() <= MEMORY);
    }
}
