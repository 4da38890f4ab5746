//! The system calls a VMM process may make, each with its reason.
//!
//! This is the whole policy: `seccomp` turns it into filters without adding to it.
//! What is missing ends the process with `SIGSYS`; the host's audit log then has a line
//! `type=1326 … syscall=N`, and the number belongs here or the call does not belong
//! into the VMM. Absent on purpose: everything that takes a path, starts a program,
//! makes a socket, signals another process, or maps code.

use libc::c_long;

/// A system call that is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its number.
    pub number: c_long,
    /// Its name.
    pub name: &'static str,
    /// Under which condition.
    pub when: When,
    /// Which threads need it.
    pub threads: Threads,
    /// Why.
    pub why: &'static str,
}

/// A condition on a call's arguments, which count from 0.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// None.
    Always,
    /// The argument is one of these numbers.
    OneOf {
        /// Which.
        argument: u8,
        /// The numbers.
        values: &'static [u64],
    },
    /// The argument has none of these bits.
    Without {
        /// Which.
        argument: u8,
        /// The bits.
        bits: u64,
    },
    /// The argument is a null pointer.
    Null {
        /// Which.
        argument: u8,
    },
    /// The argument is this process's id.
    OwnProcess {
        /// Which.
        argument: u8,
    },
    /// The request is one of [`IOCTLS`].
    Ioctl,
    /// The command is one of [`FCNTLS`], or makes a descriptor non-blocking: `F_SETFL`
    /// with `O_NONBLOCK`. The agent waits on descriptors that it shares with this
    /// process (the userfaultfd), and must never block in a call on them.
    Fcntl,
}

/// Which threads may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All, the ones of vCPUs included.
    All,
    /// All but the ones of vCPUs.
    Supervisor,
}

/// A request of `ioctl(2)` that is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Ioctl {
    /// Its number, as `_IO…` composes it.
    pub number: u32,
    /// Its name in the kernel's headers.
    pub name: &'static str,
}

const fn call(
    number: c_long,
    name: &'static str,
    when: When,
    threads: Threads,
    why: &'static str,
) -> Call {
    Call {
        number,
        name,
        when,
        threads,
        why,
    }
}

use Threads::{All, Supervisor};
use When::{Always, Null, OneOf, OwnProcess, Without};

/// `PROT_EXEC`.
const EXECUTABLE: u64 = 4;
/// The flags with which the C library starts a thread, and no others: VM, FS, FILES,
/// SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID.
const THREAD_FLAGS: u64 = 0x003d_0f00;
/// `F_GETFD`, `F_SETFD`, `F_GETFL`, `F_DUPFD_CLOEXEC`, `F_SETPIPE_SZ`,
/// `F_GETPIPE_SZ`, `F_GET_SEALS`; for `F_SETFL` see [`When::Fcntl`].
pub const FCNTLS: &[u64] = &[1, 2, 3, 1030, 1031, 1032, 1034];
/// `FALLOC_FL_KEEP_SIZE`, `FALLOC_FL_PUNCH_HOLE`.
const HOLE: u64 = 3;
/// `PR_SET_NAME`, `PR_SET_NO_NEW_PRIVS`.
const PRCTLS: &[u64] = &[15, 38];

/// Every call that is allowed.
#[rustfmt::skip]
pub const CALLS: &[Call] = &[
    // Running the guest.
    call(libc::SYS_ioctl, "ioctl", When::Ioctl, All, "KVM and userfaultfd; see IOCTLS"),
    // Data: descriptors that the agent passed.
    call(libc::SYS_read, "read", Always, All, "eventfds, timers, streams"),
    call(libc::SYS_write, "write", Always, All, "eventfds, serial output, log"),
    call(libc::SYS_readv, "readv", Always, All, "streams into guest memory"),
    call(libc::SYS_writev, "writev", Always, All, "guest memory to streams; log"),
    call(libc::SYS_pread64, "pread64", Always, All, "state file, disks"),
    call(libc::SYS_pwrite64, "pwrite64", Always, All, "state file, scratch disks"),
    call(libc::SYS_preadv, "preadv", Always, All, "disks into guest memory"),
    call(libc::SYS_pwritev, "pwritev", Always, All, "guest memory to scratch disks"),
    call(libc::SYS_recvmsg, "recvmsg", Always, All, "control packets with descriptors; streams"),
    call(libc::SYS_sendmsg, "sendmsg", Always, All, "control packets; guest memory to streams"),
    call(libc::SYS_recvfrom, "recvfrom", Always, All, "recv on streams"),
    call(libc::SYS_sendto, "sendto", Null { argument: 4 }, All, "send on connected streams"),
    call(libc::SYS_shutdown, "shutdown", Always, All, "half-closing a guest's stream"),
    call(libc::SYS_fallocate, "fallocate", OneOf { argument: 1, values: &[HOLE] }, All,
        "scratch disks give space back; nothing is allocated ahead"),
    call(libc::SYS_fdatasync, "fdatasync", Always, All, "a guest flushes its scratch disk"),
    call(libc::SYS_lseek, "lseek", Always, All, "holes of a snapshot's memory, of scratch disks"),
    call(libc::SYS_fstat, "fstat", Always, All, "length and kind of a passed file"),
    call(libc::SYS_fcntl, "fcntl", When::Fcntl, All, "duplicates; flags, but none that blocks"),
    call(libc::SYS_close, "close", Always, All, "descriptors end with their owner"),
    call(libc::SYS_dup, "dup", Always, Supervisor, "a second owner of a descriptor"),
    // Waiting.
    call(libc::SYS_poll, "poll", Always, All, "waiting for a descriptor"),
    call(libc::SYS_ppoll, "ppoll", Always, All, "waiting for a descriptor"),
    call(libc::SYS_epoll_create1, "epoll_create1", Always, Supervisor,
        "one instance for the host's ends of a machine's devices"),
    call(libc::SYS_epoll_ctl, "epoll_ctl", Always, All,
        "a device says what it waits for; its driver may reset it from a vCPU's thread"),
    call(libc::SYS_epoll_pwait, "epoll_pwait", Always, Supervisor, "which host ends are ready"),
    call(libc::SYS_eventfd2, "eventfd2", Always, Supervisor, "interrupts and notifications"),
    call(libc::SYS_timerfd_create, "timerfd_create", Always, Supervisor, "a device's deadline"),
    call(libc::SYS_timerfd_settime, "timerfd_settime", Always, All, "a device's deadline"),
    call(libc::SYS_timerfd_gettime, "timerfd_gettime", Always, All, "a device's deadline"),
    call(libc::SYS_clock_nanosleep, "clock_nanosleep", Always, All, "sleeping"),
    call(libc::SYS_nanosleep, "nanosleep", Always, All, "sleeping"),
    call(libc::SYS_clock_gettime, "clock_gettime", Always, All, "where the vDSO cannot answer"),
    call(libc::SYS_futex, "futex", Always, All, "locks, channels, joining threads"),
    call(libc::SYS_sched_yield, "sched_yield", Always, All, "spinning locks"),
    call(libc::SYS_restart_syscall, "restart_syscall", Always, All, "the kernel resumes a sleep"),
    // Memory, never executable.
    call(libc::SYS_mmap, "mmap", Without { argument: 2, bits: EXECUTABLE }, All,
        "guest memory, rings, stacks, heap"),
    call(libc::SYS_mprotect, "mprotect", Without { argument: 2, bits: EXECUTABLE }, All,
        "guard pages of stacks, heap"),
    call(libc::SYS_munmap, "munmap", Always, All, "heap, stacks of ended threads, a spare huge page"),
    call(libc::SYS_mremap, "mremap", Always, All,
        "the heap grows a large block; a spare huge page takes its place in guest memory"),
    call(libc::SYS_madvise, "madvise", Always, All,
        "populating and dropping guest pages; making a spare huge page; stacks"),
    call(libc::SYS_mincore, "mincore", Always, Supervisor,
        "which pages of a hole in the snapshot a machine has all the same"),
    call(libc::SYS_brk, "brk", Always, All, "heap"),
    // Threads of this process.
    call(libc::SYS_clone, "clone", OneOf { argument: 0, values: &[THREAD_FLAGS] }, Supervisor,
        "starting a vCPU's thread; no processes, no namespaces"),
    call(libc::SYS_clone3, "clone3", Always, Supervisor,
        "answered with ENOSYS, see NOT_IMPLEMENTED; the C library then uses clone"),
    call(libc::SYS_set_robust_list, "set_robust_list", Always, Supervisor, "a thread begins"),
    call(libc::SYS_rseq, "rseq", Always, Supervisor, "a thread begins"),
    call(libc::SYS_sched_getaffinity, "sched_getaffinity", Always, All,
        "a thread begins; where a vCPU's thread may be again after a barrier"),
    call(libc::SYS_getcpu, "getcpu", Always, All, "where the C library does not know it"),
    call(libc::SYS_sched_setaffinity, "sched_setaffinity", Null { argument: 0 }, All,
        "the calling thread stays where it passed the branch-predictor barrier"),
    call(libc::SYS_prctl, "prctl", OneOf { argument: 0, values: PRCTLS }, Supervisor,
        "a thread gets its name or a filter"),
    call(libc::SYS_seccomp, "seccomp", Always, Supervisor,
        "a vCPU's thread narrows itself; filters can only be added"),
    call(libc::SYS_gettid, "gettid", Always, All, "addressing a thread"),
    call(libc::SYS_getpid, "getpid", Always, All, "addressing a thread"),
    call(libc::SYS_tgkill, "tgkill", OwnProcess { argument: 0 }, All, "kicking a vCPU; abort"),
    call(libc::SYS_sigaltstack, "sigaltstack", Always, All, "a thread begins and ends"),
    call(libc::SYS_rt_sigaction, "rt_sigaction", Always, All, "the kick's handler; abort"),
    call(libc::SYS_rt_sigprocmask, "rt_sigprocmask", Always, All, "a thread begins; abort"),
    call(libc::SYS_rt_sigreturn, "rt_sigreturn", Always, All, "the kick's handler ends"),
    call(libc::SYS_rt_sigtimedwait, "rt_sigtimedwait", Always, All, "taking a kick off the queue"),
    call(libc::SYS_exit, "exit", Always, All, "a thread ends"),
    call(libc::SYS_exit_group, "exit_group", Always, All, "the process ends"),
    // Chance.
    call(libc::SYS_getrandom, "getrandom", Always, All, "virtio-rng, VMGenID, hash maps"),
    // Asked by Rust's library before it falls back.
    call(libc::SYS_statx, "statx", Always, Supervisor,
        "answered with ENOSYS, see NOT_IMPLEMENTED; Rust's library then uses fstat"),
];

/// Calls whose arguments lie in memory or name a path, so that no filter can check
/// them. They are answered with `ENOSYS`, and what replaces them can be checked.
pub const NOT_IMPLEMENTED: &[(c_long, &str)] = &[
    (
        libc::SYS_clone3,
        "the flags lie in memory; replaced by clone",
    ),
    (libc::SYS_statx, "takes a path; replaced by fstat"),
];

const KVM: u32 = 0xae;
const UFFD: u32 = 0xaa;
const TUN: u32 = 0x54;

const fn io(kind: u32, number: u32, name: &'static str) -> Ioctl {
    Ioctl {
        number: kind << 8 | number,
        name,
    }
}

const fn iow(kind: u32, number: u32, len: u32, name: &'static str) -> Ioctl {
    Ioctl {
        number: 1 << 30 | len << 16 | kind << 8 | number,
        name,
    }
}

const fn ior(kind: u32, number: u32, len: u32, name: &'static str) -> Ioctl {
    Ioctl {
        number: 2 << 30 | len << 16 | kind << 8 | number,
        name,
    }
}

const fn iowr(kind: u32, number: u32, len: u32, name: &'static str) -> Ioctl {
    Ioctl {
        number: 3 << 30 | len << 16 | kind << 8 | number,
        name,
    }
}

/// Every request that is allowed, the most frequent first: a filter goes through
/// them in this order. The lengths are those of the kernel's structs.
pub const IOCTLS: &[Ioctl] = &[
    // Running a vCPU, and what a reset does each time.
    io(KVM, 0x80, "KVM_RUN"),
    iow(KVM, 0x61, 8, "KVM_IRQ_LINE"),
    iowr(KVM, 0x88, 8, "KVM_GET_MSRS"),
    iow(KVM, 0x89, 8, "KVM_SET_MSRS"),
    ior(KVM, 0x63, 520, "KVM_SET_IRQCHIP"),
    ior(KVM, 0x8e, 1024, "KVM_GET_LAPIC"),
    iow(KVM, 0x42, 16, "KVM_GET_DIRTY_LOG"),
    iowr(KVM, 0xc0, 24, "KVM_CLEAR_DIRTY_LOG"),
    iow(KVM, 0x82, 144, "KVM_SET_REGS"),
    iow(KVM, 0x84, 312, "KVM_SET_SREGS"),
    iow(KVM, 0xa5, 4096, "KVM_SET_XSAVE"),
    iow(KVM, 0xa7, 392, "KVM_SET_XCRS"),
    iow(KVM, 0xa2, 128, "KVM_SET_DEBUGREGS"),
    iow(KVM, 0xa0, 64, "KVM_SET_VCPU_EVENTS"),
    iow(KVM, 0x8f, 1024, "KVM_SET_LAPIC"),
    iow(KVM, 0x99, 4, "KVM_SET_MP_STATE"),
    iow(KVM, 0xe1, 24, "KVM_SET_DEVICE_ATTR"),
    iow(KVM, 0xa0, 112, "KVM_SET_PIT2"),
    iow(KVM, 0x7b, 48, "KVM_SET_CLOCK"),
    // What a restore does for each run of pages.
    iowr(UFFD, 0x03, 40, "UFFDIO_COPY"),
    // Reading a vCPU and its machine: snapshot and verify.
    ior(KVM, 0x81, 144, "KVM_GET_REGS"),
    ior(KVM, 0x83, 312, "KVM_GET_SREGS"),
    ior(KVM, 0xa4, 4096, "KVM_GET_XSAVE"),
    ior(KVM, 0xcf, 4096, "KVM_GET_XSAVE2"),
    ior(KVM, 0xa6, 392, "KVM_GET_XCRS"),
    ior(KVM, 0xa1, 128, "KVM_GET_DEBUGREGS"),
    ior(KVM, 0x9f, 64, "KVM_GET_VCPU_EVENTS"),
    ior(KVM, 0x98, 4, "KVM_GET_MP_STATE"),
    iow(KVM, 0xe2, 24, "KVM_GET_DEVICE_ATTR"),
    iow(KVM, 0xe3, 24, "KVM_HAS_DEVICE_ATTR"),
    io(KVM, 0xa3, "KVM_GET_TSC_KHZ"),
    iowr(KVM, 0x91, 8, "KVM_GET_CPUID2"),
    iowr(KVM, 0x62, 520, "KVM_GET_IRQCHIP"),
    ior(KVM, 0x9f, 112, "KVM_GET_PIT2"),
    ior(KVM, 0x7c, 48, "KVM_GET_CLOCK"),
    // Building a machine.
    io(KVM, 0x00, "KVM_GET_API_VERSION"),
    io(KVM, 0x01, "KVM_CREATE_VM"),
    iowr(KVM, 0x02, 4, "KVM_GET_MSR_INDEX_LIST"),
    iowr(KVM, 0x0a, 4, "KVM_GET_MSR_FEATURE_INDEX_LIST"),
    io(KVM, 0x03, "KVM_CHECK_EXTENSION"),
    io(KVM, 0x04, "KVM_GET_VCPU_MMAP_SIZE"),
    iowr(KVM, 0x05, 8, "KVM_GET_SUPPORTED_CPUID"),
    io(KVM, 0x41, "KVM_CREATE_VCPU"),
    iow(KVM, 0x46, 32, "KVM_SET_USER_MEMORY_REGION"),
    io(KVM, 0x47, "KVM_SET_TSS_ADDR"),
    iow(KVM, 0x48, 8, "KVM_SET_IDENTITY_MAP_ADDR"),
    io(KVM, 0x60, "KVM_CREATE_IRQCHIP"),
    iow(KVM, 0x77, 64, "KVM_CREATE_PIT2"),
    iow(KVM, 0x6a, 8, "KVM_SET_GSI_ROUTING"),
    iow(KVM, 0x76, 32, "KVM_IRQFD"),
    iow(KVM, 0x79, 64, "KVM_IOEVENTFD"),
    iow(KVM, 0xa3, 104, "KVM_ENABLE_CAP"),
    iow(KVM, 0xc6, 392, "KVM_X86_SET_MSR_FILTER"),
    iow(KVM, 0x90, 8, "KVM_SET_CPUID2"),
    io(KVM, 0xa2, "KVM_SET_TSC_KHZ"),
    io(KVM, 0xad, "KVM_KVMCLOCK_CTRL"),
    // Lazily paged memory.
    io(UFFD, 0x00, "USERFAULTFD_IOC_NEW"),
    iowr(UFFD, 0x3f, 24, "UFFDIO_API"),
    iowr(UFFD, 0x00, 32, "UFFDIO_REGISTER"),
    ior(UFFD, 0x01, 16, "UFFDIO_UNREGISTER"),
    ior(UFFD, 0x02, 16, "UFFDIO_WAKE"),
    // A tap that was handed over: what it is, and what its guest takes over.
    iow(TUN, 0xd0, 4, "TUNSETOFFLOAD"),
    iow(TUN, 0xd8, 4, "TUNSETVNETHDRSZ"),
    ior(TUN, 0xd2, 4, "TUNGETIFF"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_stands_twice_and_everything_has_a_reason() {
        let numbers: BTreeSet<_> = CALLS.iter().map(|call| call.number).collect();
        assert_eq!(numbers.len(), CALLS.len());
        let numbers: BTreeSet<_> = IOCTLS.iter().map(|ioctl| ioctl.number).collect();
        assert_eq!(numbers.len(), IOCTLS.len());
        assert!(
            CALLS
                .iter()
                .all(|call| !call.why.is_empty() && !call.name.is_empty())
        );
    }

    #[test]
    fn what_takes_a_path_or_leaves_the_process_is_absent() {
        let absent = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_creat,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_accept4,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_memfd_create,
            libc::SYS_userfaultfd,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_pidfd_getfd,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
        ];
        for number in absent {
            assert!(CALLS.iter().all(|call| call.number != number), "{number}");
        }
        for (number, _) in NOT_IMPLEMENTED {
            assert!(CALLS.iter().any(|call| call.number == *number), "{number}");
        }
    }

    #[test]
    fn lengths_are_those_of_the_kernels_structs() {
        use kvm_bindings::*;

        let lengths = [
            ("KVM_SET_REGS", size_of::<kvm_regs>()),
            ("KVM_SET_SREGS", size_of::<kvm_sregs>()),
            ("KVM_SET_MSRS", size_of::<kvm_msrs>()),
            ("KVM_SET_XSAVE", size_of::<kvm_xsave>()),
            ("KVM_SET_XCRS", size_of::<kvm_xcrs>()),
            ("KVM_SET_DEBUGREGS", size_of::<kvm_debugregs>()),
            ("KVM_SET_VCPU_EVENTS", size_of::<kvm_vcpu_events>()),
            ("KVM_SET_LAPIC", size_of::<kvm_lapic_state>()),
            ("KVM_SET_MP_STATE", size_of::<kvm_mp_state>()),
            ("KVM_SET_DEVICE_ATTR", size_of::<kvm_device_attr>()),
            ("KVM_SET_IRQCHIP", size_of::<kvm_irqchip>()),
            ("KVM_SET_PIT2", size_of::<kvm_pit_state2>()),
            ("KVM_SET_CLOCK", size_of::<kvm_clock_data>()),
            ("KVM_IRQ_LINE", size_of::<kvm_irq_level>()),
            ("KVM_GET_DIRTY_LOG", size_of::<kvm_dirty_log>()),
            ("KVM_CLEAR_DIRTY_LOG", size_of::<kvm_clear_dirty_log>()),
            (
                "KVM_SET_USER_MEMORY_REGION",
                size_of::<kvm_userspace_memory_region>(),
            ),
            ("KVM_CREATE_PIT2", size_of::<kvm_pit_config>()),
            ("KVM_SET_GSI_ROUTING", size_of::<kvm_irq_routing>()),
            ("KVM_IRQFD", size_of::<kvm_irqfd>()),
            ("KVM_IOEVENTFD", size_of::<kvm_ioeventfd>()),
            ("KVM_ENABLE_CAP", size_of::<kvm_enable_cap>()),
            ("KVM_X86_SET_MSR_FILTER", size_of::<kvm_msr_filter>()),
            ("KVM_SET_CPUID2", size_of::<kvm_cpuid2>()),
            ("KVM_GET_MSR_INDEX_LIST", size_of::<kvm_msr_list>()),
        ];
        for (name, len) in lengths {
            let ioctl = IOCTLS.iter().find(|ioctl| ioctl.name == name).unwrap();
            assert_eq!(
                ioctl.number >> 16 & 0x3fff,
                u32::try_from(len).unwrap(),
                "{name}"
            );
        }
    }
}
