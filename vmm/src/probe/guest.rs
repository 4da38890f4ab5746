//! A guest of a few dozen instructions that does what every Linux guest must: it
//! enters ring 3, makes a system call, and arrives in ring 0.
//!
//! ```text
//!  ring 0 (CODE)      out 1 · iretq ──► ring 3 (USER)   esi = cs · edi = MARK · syscall
//!  ring 0 (ENTRY)     out cs · out edi · out esi · hlt ◄──────────────┘
//! ```
//!
//! A `/dev/kvm` can exist and be useless: one that emulates the guest's kernel mode in software
//! ends the system call in a triple fault. There is no interrupt table, so
//! every exception is a triple fault, which KVM reports as a shutdown.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::PAGE_SIZE;
use crate::sys::dirty_log::{self, PAGES_PER_WORD};
use crate::sys::kick::{self, KickSwitch, Kickable};
use crate::sys::mapping::{Reservation, Sharing};
use crate::sys::{kvm, memfd};

/// How long the guest may take; a usable host needs far less than a millisecond.
const LIMIT: Duration = Duration::from_secs(2);
/// How long a kicked vCPU may take to come back.
const KICK_LIMIT: Duration = Duration::from_secs(1);
/// Most exits; the guest makes five.
const MAX_EXITS: usize = 16;

const MEMORY_LEN: usize = 0x1_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const TSS: u64 = 0x6000;
const CODE: u64 = 0x7000;
const ENTRY: u64 = 0x7100;
const USER: u64 = 0x8000;
const KERNEL_STACK: u64 = 0xc000;

const KERNEL_CS: u16 = 0x08;
const KERNEL_SS: u16 = 0x10;
const USER_CS: u16 = 0x2b;
const TSS_SELECTOR: u16 = 0x30;

const PORT: u16 = 0x5b;
const MARK: u32 = 0x6b63_6170;

/// Present, writable, user.
const TABLE: u64 = 0x7;
/// The same, and a page of 2 MiB.
const LARGE_PAGE: u64 = 0x87;

const CR0_PE_MP_ET_NE_WP_PG: u64 = 0x8001_0033;
const CR4_PAE_OSFXSR: u64 = 0x220;
const EFER_SCE_LME_LMA: u64 = 0x501;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SFMASK: u32 = 0xc000_0084;

const CODE_BYTES: [u8; 22] = [
    0xb0, 0x01, // mov al, 1
    0xe6, 0x5b, // out PORT, al
    0x6a, 0x23, // push user SS
    0x68, 0x00, 0xa0, 0x00, 0x00, // push user RSP
    0x6a, 0x02, // push RFLAGS
    0x6a, 0x2b, // push USER_CS
    0x68, 0x00, 0x80, 0x00, 0x00, // push USER
    0x48, 0xcf, // iretq
];
const USER_BYTES: [u8; 11] = [
    0x8c, 0xce, // mov esi, cs
    0xbf, 0x70, 0x61, 0x63, 0x6b, // mov edi, MARK
    0x0f, 0x05, // syscall
    0x0f, 0x0b, // ud2
];
const ENTRY_BYTES: [u8; 15] = [
    0x8c, 0xc8, // mov eax, cs
    0x66, 0xe7, 0x5b, // out PORT, ax
    0x89, 0xf8, // mov eax, edi
    0xe7, 0x5b, // out PORT, eax
    0x89, 0xf0, // mov eax, esi
    0xe7, 0x5b, // out PORT, eax
    0xf4, // hlt
    0xf4, // hlt
];

/// Null; 64-bit code and data of ring 0; 32-bit code (unused), data and 64-bit
/// code of ring 3, as `sysret` wants them; then the TSS in two halves.
const GDT_ENTRIES: [u64; 8] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_6000_0067,
    0,
];

/// What the guest did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// From its first instruction to its last.
    pub took: Duration,
    /// Whether KVM's dirty bitmap named the guest's stack as written; the reason
    /// when it did not.
    pub dirty_log: Result<(), String>,
}

/// Why the guest did not get to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    /// KVM refused to build it.
    #[error("{what} failed")]
    Build {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// It ran and did something else.
    #[error("after {reached} it {ended}")]
    Derailed {
        reached: &'static str,
        ended: String,
    },
    /// It did not end in time.
    #[error("it was not through after {} s", LIMIT.as_secs())]
    Slow,
    /// It did not end even when told to.
    #[error("it was not through after {} s and could not be stopped", LIMIT.as_secs())]
    Stuck,
}

fn build<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> GuestError {
    move |error| GuestError::Build {
        what,
        source: error.into(),
    }
}

/// A virtual machine with the guest loaded.
pub(super) struct Machine {
    vcpu: VcpuFd,
    /// Kept open for as long as the vCPU may run.
    vm: VmFd,
    log_enabled: Result<(), String>,
}

impl Machine {
    /// Builds it.
    pub fn new(kvm: &Kvm) -> Result<Self, GuestError> {
        Self::with_code(kvm, &CODE_BYTES)
    }

    fn with_code(kvm: &Kvm, code: &[u8]) -> Result<Self, GuestError> {
        let vm = kvm.create_vm().map_err(build("making a virtual machine"))?;
        let log_enabled = dirty_log::enable(&vm).map_err(|error| error.to_string());
        let memory = Reservation::new(MEMORY_LEN).map_err(build("reserving memory"))?;
        load(&memory, code).map_err(build("loading the guest"))?;
        kvm::set_memory_slot(&vm, 0, 0, &memory, log_enabled.is_ok())
            .map_err(build("setting its memory"))?;
        let vcpu = vm
            .create_vcpu(0)
            .map_err(build("making a virtual processor"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(build("asking for the processor's features"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(build("setting the processor's features"))?;
        set_registers(&vcpu)?;
        Ok(Self {
            vcpu,
            vm,
            log_enabled,
        })
    }

    /// The vCPU, to ask what it can do.
    pub fn vcpu(&self) -> &VcpuFd {
        &self.vcpu
    }

    /// Runs the guest to its end, or for [`LIMIT`].
    pub fn run(mut self) -> Result<Outcome, GuestError> {
        kick::install_handler().map_err(build("catching a signal"))?;
        let switch = KickSwitch::new(&self.vcpu).map_err(build("mapping the run page"))?;
        let (sender, receiver) = mpsc::channel();
        let (name, named) = mpsc::channel();
        thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || {
                // Whoever started the thread waits for this.
                let _ = name.send(Kickable::this_thread());
                let start = Instant::now();
                let ended = trace(&mut self.vcpu);
                let took = start.elapsed();
                let dirty_log = self.log_enabled.and_then(|()| stack_is_dirty(&self.vm));
                // Nobody listens any more when it took too long.
                let _ = sender.send(ended.map(|()| Outcome { took, dirty_log }));
            })
            .map_err(build("starting a thread"))?;
        let Ok(thread) = named.recv_timeout(LIMIT) else {
            return Err(GuestError::Stuck);
        };
        match receiver.recv_timeout(LIMIT) {
            Ok(ended) => return ended,
            Err(RecvTimeoutError::Disconnected) => return Err(GuestError::Stuck),
            Err(RecvTimeoutError::Timeout) => {}
        }
        switch.set(true);
        thread
            .kick()
            .map_err(build("interrupting the virtual processor"))?;
        // A thread that does not come back is left behind; its memory stays mapped.
        match receiver.recv_timeout(KICK_LIMIT) {
            Ok(_) => Err(GuestError::Slow),
            Err(_) => Err(GuestError::Stuck),
        }
    }
}

/// Writes tables and code.
fn load(memory: &Reservation, code: &[u8]) -> io::Result<()> {
    let len = u64::try_from(memory.len()).map_err(io::Error::other)?;
    let file = memfd::create("probe-guest", len)?;
    memory.map(file.as_fd(), 0, Sharing::Private)?;
    let region = memory.region(GuestAddress(0))?;
    let ram = GuestMemoryMmap::from_regions(vec![region]).map_err(io::Error::other)?;
    let write = |bytes: &[u8], at| ram.write_slice(bytes, GuestAddress(at));
    let words = |words: &[u64]| {
        words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<_>>()
    };
    [
        (words(&[PDPT | TABLE]), PML4),
        (words(&[PD | TABLE]), PDPT),
        (words(&[LARGE_PAGE]), PD),
        (words(&GDT_ENTRIES), GDT),
        // The stack of ring 0 stands at offset 4 of the TSS.
        (words(&[KERNEL_STACK]), TSS + 4),
        (code.to_vec(), CODE),
        (ENTRY_BYTES.to_vec(), ENTRY),
        (USER_BYTES.to_vec(), USER),
    ]
    .iter()
    .try_for_each(|(bytes, at)| write(bytes, *at))
    .map_err(io::Error::other)
}

fn set_registers(vcpu: &VcpuFd) -> Result<(), GuestError> {
    let mut sregs = vcpu.get_sregs().map_err(build("reading registers"))?;
    enter_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs)
        .map_err(build("entering long mode"))?;
    let regs = kvm_regs {
        rip: CODE,
        rsp: KERNEL_STACK,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(build("setting registers"))?;
    // Selectors: system calls get KERNEL_CS and the next; sysret counts from 0x1b.
    let star = u64::from(KERNEL_CS) << 32 | 0x1b << 48;
    let entries =
        [(MSR_STAR, star), (MSR_LSTAR, ENTRY), (MSR_SFMASK, 0x200)].map(|(index, data)| {
            kvm_msr_entry {
                index,
                data,
                ..Default::default()
            }
        });
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| build("listing MSRs")(io::Error::from(io::ErrorKind::InvalidInput)))?;
    match vcpu
        .set_msrs(&msrs)
        .map_err(build("setting the system call's MSRs"))?
    {
        3 => Ok(()),
        _ => Err(build("setting the system call's MSRs")(io::Error::from(
            io::ErrorKind::InvalidData,
        ))),
    }
}

fn enter_long_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        limit: u32::MAX,
        selector: KERNEL_SS,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: KERNEL_CS,
        type_: 11,
        db: 0,
        l: 1,
        ..data
    };
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: TSS_SELECTOR,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 0x3f,
        ..Default::default()
    };
    sregs.idt = kvm_dtable::default();
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE_OSFXSR;
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
    sregs.efer = EFER_SCE_LME_LMA;
}

/// Follows the guest through its exits.
fn trace(vcpu: &mut VcpuFd) -> Result<(), GuestError> {
    let mark = MARK.to_le_bytes();
    let user_cs = u32::from(USER_CS).to_le_bytes();
    let kernel_cs = KERNEL_CS.to_le_bytes();
    let steps: [(&str, &[u8]); 4] = [
        ("its first instruction in ring 0", &[1]),
        ("the system call from ring 3 to ring 0", &kernel_cs),
        ("passing a register through the system call", &mark),
        ("proving that it was in ring 3", &user_cs),
    ];
    let mut steps = steps.into_iter().peekable();
    let mut reached = "its start";
    for _ in 0..MAX_EXITS {
        let ended = match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, data)) => match steps.next() {
                Some((name, expected)) if data == expected => {
                    reached = name;
                    continue;
                }
                Some((name, expected)) => {
                    format!("reported {data:x?} instead of {expected:x?} for {name}")
                }
                None => format!("reported {data:x?}, which nobody asked for"),
            },
            Ok(VcpuExit::Hlt) if steps.peek().is_none() => return Ok(()),
            Ok(VcpuExit::Hlt) => "halted too early".to_owned(),
            Ok(VcpuExit::Shutdown) => "ended in a triple fault".to_owned(),
            Ok(other) => format!("ended with {other:?}"),
            Err(error) => format!("could not go on ({error})"),
        };
        return Err(GuestError::Derailed { reached, ended });
    }
    Err(GuestError::Derailed {
        reached,
        ended: "did not stop reporting".to_owned(),
    })
}

/// Whether the bitmap names the page that `iretq`'s frame was pushed to.
fn stack_is_dirty(vm: &VmFd) -> Result<(), String> {
    const PAGES: usize = MEMORY_LEN / PAGE_SIZE;
    let stack = usize::try_from(KERNEL_STACK).unwrap_or(0) / PAGE_SIZE - 1;
    let mut words = [0; PAGES.div_ceil(PAGES_PER_WORD)];
    dirty_log::read(vm, 0, PAGES, &mut words).map_err(|error| error.to_string())?;
    let word = words.get(stack / PAGES_PER_WORD).copied().unwrap_or(0);
    if word >> (stack % PAGES_PER_WORD) & 1 == 1 {
        return Ok(());
    }
    Err("a page that the guest wrote is not in it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_agrees_with_the_layout() {
        let in_code = |value: u64| {
            let bytes = u32::try_from(value).unwrap().to_le_bytes();
            CODE_BYTES.windows(4).any(|window| window == bytes)
        };
        assert!(in_code(USER));
        assert!(CODE_BYTES.contains(&u8::try_from(USER_CS).unwrap()));
        assert!(CODE_BYTES.contains(&u8::try_from(PORT).unwrap()));
        assert!(
            USER_BYTES
                .windows(4)
                .any(|window| window == MARK.to_le_bytes())
        );
        assert_eq!(GDT_ENTRIES[6] >> 16 & 0xff_ffff, TSS);
        assert!(CODE + u64::try_from(CODE_BYTES.len()).unwrap() <= ENTRY);
    }

    /// `None` where there is no KVM at all; these tests then have nothing to show.
    fn run(code: &[u8]) -> Option<GuestError> {
        let kvm = Kvm::new().ok()?;
        Some(Machine::with_code(&kvm, code).unwrap().run().unwrap_err())
    }

    #[test]
    fn a_guest_that_loops_is_stopped_in_time() {
        let start = Instant::now();
        // jmp to itself
        if let Some(error) = run(&[0xeb, 0xfe]) {
            assert!(matches!(error, GuestError::Slow), "{error}");
        }
        assert!(start.elapsed() < LIMIT + KICK_LIMIT);
    }

    #[test]
    fn a_guest_that_leaves_the_path_is_told_where() {
        // mov al, 1 · out PORT, al · ud2
        if let Some(error) = run(&[0xb0, 0x01, 0xe6, 0x5b, 0x0f, 0x0b]) {
            let text = error.to_string();
            assert!(
                text.starts_with("after its first instruction in ring 0 it "),
                "{text}"
            );
        }
        // mov al, 2 · out PORT, al
        if let Some(error) = run(&[0xb0, 0x02, 0xe6, 0x5b]) {
            let text = error.to_string();
            assert!(text.contains("reported [2] instead of [1]"), "{text}");
        }
    }
}
