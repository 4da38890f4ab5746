//! A guest without a kernel that changes, in ring 0, whatever it can of its processor,
//! its interrupt controllers and its devices' registers, then says `h` from an NMI's
//! handler, in which it halts for good.
//!
//! An instruction that the processor refuses is skipped: the handlers of #UD and #GP
//! add r15, its length, to the return address.

use super::tiny::CODE;

/// Handlers, then the IDT.
const TABLES: u64 = 0x12_0000;
const IDT: u64 = TABLES + 0x1000;

/// add \[rsp], r15 · iretq
const ON_UNDEFINED: [u8; 6] = [0x4c, 0x01, 0x3c, 0x24, 0x48, 0xcf];
/// add \[rsp+8], r15 · add rsp, 8 · iretq
const ON_PROTECTION: [u8; 11] = [
    0x4c, 0x01, 0x7c, 0x24, 0x08, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf,
];
/// mov dx, 0x3f8 · 'h' · line feed · hlt · jmp to the hlt
const ON_NMI: [u8; 13] = [
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'\n', 0xee, 0xf4, 0xeb, 0xfd,
];

const VIRTIO: u32 = 0xd000_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Offset of a virtio-mmio device's `QueueSel`.
const QUEUE_SEL: u32 = 0x30;
/// The boot's second-level page table, and a place for one of this guest's own.
const PDPT: u32 = 0xa000;
const DIRECTORY: u32 = 0x20_3000;
/// Where it keeps the sum of the hidden MSRs.
const SUM: u32 = 0x20_0000;

pub struct Hostile {
    /// MSRs that it tries to change.
    pub msrs: Vec<u32>,
    /// MSRs that are not in a snapshot: it tries to change them too, and says `k` at the
    /// begin of a life that finds in them what there was before the snapshot.
    pub hidden: Vec<u32>,
    /// Whether it turns its local APIC off; its last word comes without an NMI then.
    pub apic_off: bool,
}

#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    fn with(&mut self, opcode: &[u8], value: u32) {
        self.put(opcode);
        self.put(&value.to_le_bytes());
    }

    /// Length of the instruction that may be refused: mov r15d, …
    fn length(&mut self, bytes: u32) {
        self.with(&[0x41, 0xbf], bytes);
    }

    fn write_msr(&mut self, index: u32, high: u32, low: u32) {
        self.length(2);
        self.with(&[0xb9], index);
        self.with(&[0xba], high);
        self.with(&[0xb8], low);
        self.put(&[0x0f, 0x30]);
    }

    /// rdmsr · xor eax, mask · wrmsr
    fn flip_msr(&mut self, index: u32, mask: u32) {
        self.length(2);
        self.with(&[0xb9], index);
        self.put(&[0x0f, 0x32]);
        self.with(&[0x35], mask);
        self.put(&[0x0f, 0x30]);
    }

    /// mov edi, address · mov dword \[rdi], value
    fn store(&mut self, address: u32, value: u32) {
        self.with(&[0xbf], address);
        self.with(&[0xc7, 0x07], value);
    }

    /// r14d = sum of these MSRs' low halves; 0 for one that cannot be read.
    fn sum_of(&mut self, msrs: &[u32]) {
        self.length(2);
        self.put(&[0x45, 0x31, 0xf6]); // xor r14d, r14d
        for index in msrs {
            self.with(&[0xb8], 0);
            self.with(&[0xb9], *index);
            self.put(&[0x0f, 0x32, 0x41, 0x01, 0xc6]); // rdmsr · add r14d, eax
        }
    }

    fn out(&mut self, port: u16, value: u8) {
        self.put(&[0x66, 0xba]);
        self.put(&port.to_le_bytes());
        self.put(&[0xb0, value, 0xee]);
    }
}

impl Hostile {
    /// What is loaded where.
    pub fn parts(&self) -> [(u64, Vec<u8>); 2] {
        let mut code = Code::default();
        prepare(&mut code);
        code.sum_of(&self.hidden);
        code.with(&[0x44, 0x89, 0x34, 0x25], SUM); // mov [SUM], r14d
        wait_for_life(&mut code);
        code.sum_of(&self.hidden);
        code.with(&[0x44, 0x3b, 0x34, 0x25], SUM); // cmp r14d, [SUM]
        code.put(&[0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
        code.put(&[0xb0, b'k', 0x74, 0x02, 0xb0, b'!', 0xee]); // 'k' if equal, else '!'
        self.attack(&mut code);
        [(CODE, code.0), (TABLES, tables())]
    }

    fn attack(&self, code: &mut Code) {
        devices(code);
        for index in self.msrs.iter().chain(&self.hidden) {
            for mask in [1, 0x10, 0x1000] {
                code.flip_msr(*index, mask);
            }
        }
        // Spurious vector, priority, divisor; then a deadline in a far future.
        code.write_msr(0x80f, 0, 0x133);
        code.write_msr(0x808, 0, 0x20);
        code.write_msr(0x83e, 0, 0xb);
        code.write_msr(0x6e0, 0x7fff_ffff, 0);
        registers(code);
        if self.apic_off {
            code.write_msr(0x1b, 0, 0xfee0_0000);
            code.put(&[0xcd, 2]); // int 2
        }
        // An NMI to itself.
        code.write_msr(0x830, 0, 0x4400);
        code.put(&[0xf3, 0x90, 0xeb, 0xfc]); // pause · jmp to it
    }
}

/// SSE on, handlers of exceptions, and the local APIC.
fn prepare(code: &mut Code) {
    code.put(&[0x0f, 0x20, 0xe0]); // mov rax, cr4
    code.with(&[0x0d], 0x600); // or eax, OSFXSR | OSXMMEXCPT
    code.put(&[0x0f, 0x22, 0xe0]); // mov cr4, rax
    // sub rsp, 16 · mov word [rsp], limit · mov rax, IDT · mov [rsp+2], rax · lidt [rsp]
    code.put(&[0x48, 0x83, 0xec, 0x10, 0x66, 0xc7, 0x04, 0x24, 0xff, 0x0f]);
    code.put(&[0x48, 0xb8]);
    code.put(&IDT.to_le_bytes());
    code.put(&[0x48, 0x89, 0x44, 0x24, 0x02, 0x0f, 0x01, 0x1c, 0x24]);
    // Switched to x2APIC, which is on, with a masked timer in deadline mode: what is
    // set back later is then only what was changed.
    code.with(&[0xb9], 0x1b);
    code.put(&[0x0f, 0x32]);
    code.with(&[0x0d], 0x400);
    code.put(&[0x0f, 0x30]);
    code.write_msr(0x80f, 0, 0x1ff);
    code.write_msr(0x832, 0, 0x5_0020);
}

/// Says that it is ready, and waits for another generation id.
fn wait_for_life(code: &mut Code) {
    code.put(&[0x48, 0x8b, 0x1c, 0x25, 0x00, 0x00, 0x0e, 0x00]); // mov rbx, [id]
    code.out(0x3f8, b'r');
    code.put(&[
        0xf3, 0x90, // spin: pause
        0x48, 0x3b, 0x1c, 0x25, 0x00, 0x00, 0x0e, 0x00, // cmp rbx, [id]
        0x74, 0xf4, // je spin
    ]);
}

/// Page tables that reach the devices; then their registers.
fn devices(code: &mut Code) {
    const LARGE: u32 = 0x83;
    code.store(PDPT + 3 * 8, DIRECTORY | 3);
    for address in [VIRTIO, IO_APIC] {
        let entry = DIRECTORY + ((address - 0xc000_0000) >> 21) * 8;
        code.store(entry, address | LARGE);
    }
    code.put(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]); // mov rax, cr3 · mov cr3, rax
    use_entropy(code);
    for device in 0..2 {
        code.store(VIRTIO + device * 0x1000 + QUEUE_SEL, 1);
    }
    code.store(IO_APIC, 0x10 + 2 * 9);
    code.store(IO_APIC + 0x10, 0x1_0055);
    for (port, value) in [(0x21, 0x5a), (0xa1, 0x33), (0x3ff, 0x77), (0x64, 0x60)] {
        code.out(port, value);
    }
}

/// Drives the entropy device, the second one (virtio 1.2, chapters 3.1.1 and 4.2.2), and
/// waits until it has filled a page that no processor ever touches.
fn use_entropy(code: &mut Code) {
    const DEVICE: u32 = VIRTIO + 0x1000;
    const FILLED: u32 = 0x30_0000;
    const DESCRIPTORS: u32 = 0x30_1000;
    const AVAILABLE: u32 = 0x30_2000;
    const USED: u32 = 0x30_3000;
    code.store(DESCRIPTORS, FILLED);
    code.store(DESCRIPTORS + 8, 64);
    code.store(DESCRIPTORS + 12, 2); // the device writes
    code.store(AVAILABLE, 1 << 16); // one entry, the first descriptor
    let registers = [
        (0x70, 0x3), // acknowledged, with a driver
        (0x24, 1),
        (0x20, 1), // VERSION_1
        (0x70, 0xb),
        (QUEUE_SEL, 0),
        (0x38, 8),
        (0x80, DESCRIPTORS),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
        (0x70, 0xf),
        (0x50, 0), // look into the queue
    ];
    for (register, value) in registers {
        code.store(DEVICE + register, value);
    }
    code.with(&[0xbf], USED + 2);
    code.put(&[0x66, 0x83, 0x3f, 0x00, 0x74, 0xfa]); // wait: cmp word [rdi], 0 · je wait
}

/// Debug registers, CR2, SSE registers, XCR0, and the general ones at last.
fn registers(code: &mut Code) {
    code.with(&[0xb8], 0x1234);
    for register in [0xc0, 0xc8, 0xd0, 0xd8] {
        code.put(&[0x0f, 0x23, register]); // mov dr0 to dr3, rax
    }
    code.put(&[0x0f, 0x22, 0xd0]); // mov cr2, rax
    for register in 0..8 {
        let both = 0xc0 | register << 3 | register;
        code.put(&[0x66, 0x0f, 0x76, both]); // pcmpeqd xmm0 to xmm7
        code.put(&[0x66, 0x45, 0x0f, 0x76, both]); // xmm8 to xmm15
    }
    code.length(3);
    code.put(&[0x0f, 0x20, 0xe0]); // mov rax, cr4
    code.with(&[0x0d], 1 << 18); // or eax, OSXSAVE
    code.put(&[0x0f, 0x22, 0xe0]); // mov cr4, rax
    code.with(&[0xb9], 0);
    code.with(&[0xba], 0);
    code.with(&[0xb8], 3);
    code.put(&[0x0f, 0x01, 0xd1]); // xsetbv
    code.put(&[0x49, 0xf7, 0xd4]); // not r12
}

fn tables() -> Vec<u8> {
    let mut bytes = vec![0; 0x2000];
    let handlers: [(usize, &[u8]); 3] = [(6, &ON_UNDEFINED), (13, &ON_PROTECTION), (2, &ON_NMI)];
    for (vector, handler) in handlers {
        let at = vector * 0x20;
        bytes[at..at + handler.len()].copy_from_slice(handler);
        let address = TABLES + at as u64;
        // An interrupt gate of the boot's code segment (Intel SDM volume 3, 6.14.1).
        let gate = (address & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (address >> 16) << 48;
        let place = 0x1000 + vector * 16;
        bytes[place..place + 8].copy_from_slice(&gate.to_le_bytes());
    }
    bytes
}
