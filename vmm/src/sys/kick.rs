//! Making a vCPU thread leave `KVM_RUN`.
//!
//! `immediate_exit` in the vCPU's run page makes the next (or a just beginning)
//! `KVM_RUN` return at once; a signal makes a running one return. The flag is set
//! first, so no instant is left in which a kick can be lost.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// A second view of a vCPU's run page, for its `immediate_exit` flag alone.
#[derive(Debug)]
pub struct KickSwitch {
    flag: *const AtomicU8,
}

// SAFETY: the pointer leads to a byte of shared memory that is only accessed
// atomically here, and the mapping lives as long as the process.
unsafe impl Send for KickSwitch {}

impl KickSwitch {
    /// Maps the run page of `vcpu` once more.
    ///
    /// # Errors
    /// What `mmap(2)` reports.
    pub fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping of the vCPU's first page at an address of
        // the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                crate::memory::PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let run: *mut kvm_run = mapped.cast();
        // SAFETY: `immediate_exit` lies in the page that was just mapped; only
        // its address is taken.
        let flag = unsafe { &raw mut (*run).immediate_exit };
        Ok(Self {
            flag: flag.cast_const().cast(),
        })
    }

    /// Turns the flag on or off. It is off before the vCPU is told to run.
    pub fn set(&self, on: bool) {
        // SAFETY: the flag is one byte of a mapping that is never removed; an
        // AtomicU8 has the layout of a u8 and the kernel only reads it.
        unsafe { &*self.flag }.store(u8::from(on), Ordering::SeqCst);
    }
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Lets the kick's signal interrupt system calls instead of ending the process.
///
/// # Errors
/// What `sigaction(2)` reports.
pub fn install_handler() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), nothing).map_err(io::Error::from)
}

/// A thread whose system call can be interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Kickable {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl Kickable {
    /// The calling thread. It must not end before whoever kicks it: its number could
    /// then be another thread's of this process.
    #[must_use]
    pub fn this_thread() -> Self {
        // SAFETY: both calls take no argument and touch no memory.
        unsafe {
            Self {
                process: libc::getpid(),
                thread: libc::gettid(),
            }
        }
    }

    /// Interrupts the system call that the thread may be in. One system call; the C
    /// library's `pthread_kill(3)` makes four.
    ///
    /// # Errors
    /// What `tgkill(2)` reports: the thread is gone.
    pub fn kick(self) -> io::Result<()> {
        // SAFETY: the signal's handler does nothing, in whatever thread it runs.
        let done =
            unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, SIGRTMIN()) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
