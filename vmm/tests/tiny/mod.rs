//! A guest of some two hundred bytes without a kernel. It marks memory, a general
//! register and an SSE register, says `r`, and waits for another generation id. Each
//! time it wakes it looks at its marks and says so in a line:
//!
//! ```text
//!  m  the mark in memory is there        r  the one in r12      x  the one in xmm5
//!  5  how often it woke: a counter in memory, with a start of its own
//!  A  the second vCPU, in real mode, woke too and has the mark in bx
//!  !  in the place of any of these: it is not so
//! ```
//!
//! The first vCPU starts the second with INIT and SIPI through its x2APIC. Addresses:
//! code at 1 MiB, the second vCPU's at 0x4000, what they tell each other at 0x5000, the
//! marks at 2 MiB.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use snapback_proto::control::{Command, Devices, Reply, Run};
use snapback_vmm::sys::memfd;

use crate::harness::{Shape, Vmm, stream_pair};

/// Nothing that it does takes longer, even where it is emulated.
const LIMIT: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};

pub const CODE: u64 = 0x10_0000;
const SECOND_CODE: u64 = 0x4000;

/// SSE on, then the marks.
const SETUP: [u8; 37] = [
    0x0f, 0x20, 0xe0, // mov rax, cr4
    0x0d, 0x00, 0x06, 0x00, 0x00, // or eax, OSFXSR | OSXMMEXCPT
    0x0f, 0x22, 0xe0, // mov cr4, rax
    0x49, 0xbc, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // mov r12, mark
    0x66, 0x49, 0x0f, 0x6e, 0xec, // movq xmm5, r12
    0xc7, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0xfe, 0xca, 0x0d, 0x60, // mov [2M], mark
];
const SET_COUNTER: [u8; 7] = [0xc6, 0x04, 0x25, 0x08, 0x00, 0x20, 0x00]; // mov byte [2M+8], …
const READ_MSR_OF: u8 = 0xb9; // mov ecx, …
const READ_MSR: [u8; 2] = [0x0f, 0x32]; // rdmsr
const SERIAL_PORT: [u8; 5] = [0xba, 0xf8, 0x03, 0x00, 0x00]; // mov edx, 0x3f8
const START_SECOND: [u8; 49] = [
    0xb9, 0x1b, 0x00, 0x00, 0x00, // mov ecx, APIC_BASE
    0x52, // push rdx
    0x0f, 0x32, // rdmsr
    0x0d, 0x00, 0x04, 0x00, 0x00, // or eax, x2APIC
    0x0f, 0x30, // wrmsr
    0xb9, 0x30, 0x08, 0x00, 0x00, // mov ecx, x2APIC's ICR
    0x31, 0xd2, // xor edx, edx
    0xb8, 0x00, 0x45, 0x0c, 0x00, // mov eax, INIT to all others
    0x0f, 0x30, // wrmsr
    0xb8, 0x04, 0x46, 0x0c, 0x00, // mov eax, SIPI to all others, at 0x4000
    0x0f, 0x30, // wrmsr
    0x5a, // pop rdx
    0xf3, 0x90, // wait: pause
    0x80, 0x3c, 0x25, 0x02, 0x50, 0x00, 0x00, 0x00, // cmp byte [0x5002], 0
    0x74, 0xf4, // je wait
];
const SAY_READY: [u8; 3] = [0xb0, b'r', 0xee]; // mov al, 'r' · out dx, al
const READ_ID: [u8; 8] = [0x48, 0x8b, 0x1c, 0x25, 0x00, 0x00, 0x0e, 0x00]; // mov rbx, [id]
const WAKE: [u8; 82] = [
    0xf3, 0x90, // spin: pause
    0x48, 0x3b, 0x1c, 0x25, 0x00, 0x00, 0x0e, 0x00, // cmp rbx, [id]
    0x74, 0xf4, // je spin
    0xfe, 0x04, 0x25, 0x08, 0x00, 0x20, 0x00, // inc byte [2M+8]
    0x81, 0x3c, 0x25, 0x00, 0x00, 0x20, 0x00, 0xfe, 0xca, 0x0d, 0x60, // cmp [2M], mark
    0xb0, b'm', 0x74, 0x02, 0xb0, b'!', 0xee, // mov al, 'm' or '!' · out dx, al
    0x48, 0xb9, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // mov rcx, mark
    0x4c, 0x39, 0xe1, // cmp rcx, r12
    0xb0, b'r', 0x74, 0x02, 0xb0, b'!', 0xee, // mov al, 'r' or '!' · out dx, al
    0x66, 0x48, 0x0f, 0x7e, 0xee, // movq rsi, xmm5
    0x48, 0x39, 0xf1, // cmp rcx, rsi
    0xb0, b'x', 0x74, 0x02, 0xb0, b'!', 0xee, // mov al, 'x' or '!' · out dx, al
    0x8a, 0x04, 0x25, 0x08, 0x00, 0x20, 0x00, // mov al, [2M+8]
    0x04, 0x30, // add al, '0'
    0xee, // out dx, al
];
const ASK_SECOND: [u8; 28] = [
    0xc6, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0x01, // mov byte [0x5000], 1
    0xf3, 0x90, // wait: pause
    0x80, 0x3c, 0x25, 0x01, 0x50, 0x00, 0x00, 0x00, // cmp byte [0x5001], 0
    0x74, 0xf4, // je wait
    0xc6, 0x04, 0x25, 0x01, 0x50, 0x00, 0x00, 0x00, // mov byte [0x5001], 0
];
const END_LINE: [u8; 3] = [0xb0, b'\n', 0xee]; // mov al, '\n' · out dx, al
const JUMP: u8 = 0xe9; // jmp …

/// In real mode.
const SECOND: [u8; 47] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xbb, 0xef, 0xbe, // mov bx, mark
    0xc6, 0x06, 0x02, 0x50, 0x01, // mov byte [0x5002], 1
    0xf3, 0x90, // spin: pause
    0x80, 0x3e, 0x00, 0x50, 0x00, // cmp byte [0x5000], 0
    0x74, 0xf7, // je spin
    0xc6, 0x06, 0x00, 0x50, 0x00, // mov byte [0x5000], 0
    0x81, 0xfb, 0xef, 0xbe, // cmp bx, mark
    0xb0, b'A', 0x74, 0x02, 0xb0, b'!', 0xee, // mov al, 'A' or '!' · out dx, al
    0xc6, 0x06, 0x01, 0x50, 0x01, // mov byte [0x5001], 1
    0xeb, 0xe0, // jmp spin
];

/// What a tiny guest does.
#[derive(Debug, Clone, Copy)]
pub struct Tiny {
    pub shape: Shape,
    /// Where its counter starts, below 9.
    pub counter: u8,
    /// An MSR that it reads before it is ready.
    pub msr: Option<u32>,
}

impl Tiny {
    fn code(self) -> Vec<u8> {
        let mut code = SETUP.to_vec();
        code.extend(SET_COUNTER);
        code.push(self.counter);
        if let Some(msr) = self.msr {
            code.push(READ_MSR_OF);
            code.extend(msr.to_le_bytes());
            code.extend(READ_MSR);
        }
        code.extend(SERIAL_PORT);
        let two = self.shape.vcpus == 2;
        if two {
            code.extend(START_SECOND);
        }
        // Before it is ready: whatever comes then is another one.
        code.extend(READ_ID);
        code.extend(SAY_READY);
        let again = code.len();
        code.extend(WAKE);
        if two {
            code.extend(ASK_SECOND);
        }
        code.extend(END_LINE);
        code.extend(READ_ID);
        code.push(JUMP);
        let distance = i32::try_from(code.len() + 4 - again).unwrap();
        code.extend((-distance).to_le_bytes());
        code
    }

    /// Boots it; without waiting for anything.
    pub fn boot(self) -> Running {
        let parts = [(CODE, self.code()), (SECOND_CODE, SECOND.to_vec())];
        Running::boot(self.shape, &parts)
    }

    /// Its memory and state once it waits.
    pub fn snapshot(self) -> (OwnedFd, File) {
        self.boot().snapshot()
    }

    /// What it says each time it wakes from the snapshot.
    pub fn line(self) -> String {
        let second = if self.shape.vcpus == 2 { "A" } else { "" };
        format!("mrx{}{second}\n", self.counter + 1)
    }
}

/// An ELF file of two parts that starts at [`CODE`] (System V gABI, chapters 4 and 5).
fn kernel(parts: &[(u64, Vec<u8>); 2]) -> File {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut half = |value: u16| file.extend(value.to_le_bytes());
    // Executable, x86-64, version 1.
    [2, 0x3e, 1, 0].into_iter().for_each(&mut half);
    for value in [CODE, HEADER, 0] {
        file.extend(value.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend([0; 4]);
    for value in [64_u16, 56, 2, 0, 0, 0] {
        file.extend(value.to_le_bytes()); // sizes and counts
    }
    let mut at = HEADER + 2 * PROGRAM_HEADER;
    for (address, bytes) in parts {
        let len = bytes.len() as u64;
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]); // to be loaded; rwx
        for value in [at, *address, *address, len, len, 1] {
            file.extend(value.to_le_bytes());
        }
        at += len;
    }
    parts.iter().for_each(|(_, bytes)| file.extend(bytes));
    content(&file)
}

/// A tiny guest that was booted or restored.
pub struct Running {
    pub vmm: Vmm,
    pub memory: OwnedFd,
    /// From its last `Run` to the reply.
    pub run_took: Duration,
    console: std::io::PipeReader,
}

impl Running {
    /// Boots code of two parts.
    pub fn boot(shape: Shape, parts: &[(u64, Vec<u8>); 2]) -> Self {
        let vmm = Vmm::start();
        vmm.prepare_for(shape, &Devices::default());
        let memory = memfd::create("tiny", shape.memory()).unwrap();
        let (_channel, theirs) = stream_pair();
        let (console, serial) = std::io::pipe().unwrap();
        let command = Command::Boot {
            command_line: String::new(),
            devices: Devices::default(),
            hub: false,
        };
        let (kernel, initramfs) = (kernel(parts), content(&[0]));
        let fds: [&dyn AsFd; 5] = [&memory, &kernel, &initramfs, &serial, &theirs];
        assert_eq!(vmm.ask(&command, &fds).0, Reply::Booted);
        drop(serial);
        Self {
            vmm,
            memory,
            run_took: Duration::ZERO,
            console,
        }
    }

    /// Its memory and state once it waits.
    pub fn snapshot(mut self) -> (OwnedFd, File) {
        assert_eq!(self.read_until(b'r'), "r");
        let state = tempfile::tempfile().unwrap();
        let (reply, _) = self.vmm.ask(&Command::Snapshot, &[&state]);
        assert!(matches!(reply, Reply::Snapshotted { .. }), "{reply:?}");
        (self.memory, state)
    }

    /// Restores it from a memory that is all there.
    pub fn restore(shape: Shape, memory: OwnedFd, state: &File) -> Self {
        Self::restore_in(Vmm::start(), shape, memory, state)
    }

    /// As [`Self::restore`], by a VMM that has just begun.
    pub fn restore_in(vmm: Vmm, shape: Shape, memory: OwnedFd, state: &File) -> Self {
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&memory, flags, 0, shape.memory()).unwrap();
        vmm.prepare_for(shape, &Devices::default());
        Self::restore_into(vmm, memory, state)
    }

    /// Restores it in a blank machine.
    pub fn restore_into(vmm: Vmm, memory: OwnedFd, state: &File) -> Self {
        let (console, serial) = std::io::pipe().unwrap();
        let fds: [&dyn AsFd; 3] = [&memory, state, &serial];
        let (reply, _) = vmm.ask(
            &Command::Restore {
                devices: Devices::default(),
                lazy: true,
                written: Vec::new(),
                whole: None,
                run: None,
            },
            &fds,
        );
        assert_eq!(reply, Reply::Restored);
        Self {
            vmm,
            memory,
            run_took: Duration::ZERO,
            console,
        }
    }

    /// Lets it run until it has said a line.
    pub fn wake(&mut self) -> String {
        self.wake_with(false)
    }

    /// As [`Self::wake`], behind a branch-predictor barrier or not.
    pub fn wake_with(&mut self, barrier: bool) -> String {
        let (_channel, theirs) = stream_pair();
        let run = Command::Run(Run {
            hub: false,
            barrier,
        });
        let begin = Instant::now();
        let (reply, _) = self.vmm.ask(&run, &[&theirs]);
        self.run_took = begin.elapsed();
        assert!(matches!(reply, Reply::Running { .. }), "{reply:?}");
        self.read_until(b'\n')
    }

    /// What it says, up to a byte.
    pub fn read_until(&mut self, end: u8) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        while text.last() != Some(&end) {
            let mut fds = [PollFd::new(&self.console, PollFlags::IN)];
            let came = rustix::event::poll(&mut fds, Some(&LIMIT)).unwrap();
            assert_ne!(came, 0, "it says no more than {text:?}");
            self.console.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }
}

/// A file with this content.
pub fn content(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}
