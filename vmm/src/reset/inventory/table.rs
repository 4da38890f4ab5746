//! The table. Its order is the order in which a machine is put back.

use super::{Entry, How, Part, chips, host, start, vcpu};
use crate::bus;

const fn entry(part: Part, name: &'static str, how: How, why: &'static str) -> Entry {
    Entry {
        part,
        name,
        why,
        how,
    }
}

use Part::{
    Clock, Counters, DebugRegisters, Disks, Entropy, Events, ExtendedControl, ExtendedState,
    FirstPic, Frames, GeneralRegisters, GenerationId, IoApic, Keyboard, LocalApic, Msrs, Net,
    Notifications, PagesOfDevices, PagesOfVcpus, RunState, SecondPic, SerialLine, SystemRegisters,
    Timer, Vsock,
};

/// Everything that a request can change, in the order in which it is put back.
#[rustfmt::skip]
pub const INVENTORY: [Entry; Part::ALL.len()] = [
    entry(Notifications, "notifications", How::Host(host::NOTIFICATIONS),
        "The guest rings doorbells, and devices leave work to the supervisor, up to the \
        moment it stops; nobody serves them then. First, so that what was asked for in \
        the last life is forgotten before there is another queue to look into."),

    entry(SerialLine, "serial line", How::Device(bus::parts::SERIAL),
        "The guest writes all of its registers; in loop-back mode also its receive buffer."),
    entry(Keyboard, "keyboard controller", How::Device(bus::parts::I8042),
        "The guest writes its configuration byte and may leave half a command or an \
        unread answer."),
    entry(Vsock, "vsock", How::Device(bus::parts::VSOCK),
        "Registers, queue indices, connections, credit, half-sent packets. Its host ends \
        are closed: they are the ones of a lease that is over."),
    entry(Net, "net device", How::Device(bus::parts::NET),
        "Registers and queue indices, if there is one. Frames are nobody's state, see the \
        start."),
    entry(Disks, "disks", How::Device(bus::parts::DISKS),
        "Registers, queue indices, requests in flight, and what a scratch disk's overlay \
        holds: its map is emptied, so that the base shows again."),
    entry(Entropy, "entropy device", How::Device(bus::parts::RNG),
        "Registers and queue indices. It gave random bytes away and keeps none."),

    entry(FirstPic, "first PIC", How::Chip(chips::FIRST_PIC),
        "Ports 0x20 and 0x4d0. Before the vCPUs: it can make a processor's interrupt \
        line pending, and their own state has the last word."),
    entry(SecondPic, "second PIC", How::Chip(chips::SECOND_PIC),
        "Ports 0xa0 and 0x4d1. After the first, whose input it is."),
    entry(IoApic, "I/O APIC", How::Chip(chips::IO_APIC),
        "The guest writes its redirection table. Before the vCPUs: it hands an interrupt \
        that is pending in it to a local APIC, whose own state has the last word."),

    entry(ExtendedState, "extended state", How::Vcpu(vcpu::EXTENDED_STATE),
        "x87, SSE, AVX and later registers: the whole XSAVE area that KVM has for the VM."),
    entry(ExtendedControl, "extended control registers", How::Vcpu(vcpu::EXTENDED_CONTROL),
        "XSETBV, from ring 0. After the extended state, which KVM takes with any XCR0."),
    entry(GeneralRegisters, "general registers", How::Vcpu(vcpu::GENERAL_REGISTERS),
        "Every instruction. KVM forgets a pending exception with them: before the events."),
    entry(SystemRegisters, "system registers", How::Vcpu(vcpu::SYSTEM_REGISTERS),
        "Segments, tables, control registers, EFER, and the base of the local APIC, which \
        says in which mode its registers are: before those. With them goes an external \
        interrupt on its way into the processor."),
    entry(LocalApic, "local APIC", How::Vcpu(vcpu::LOCAL_APIC),
        "Vectors, priorities, pending and served interrupts, the timer's mode, count and \
        divisor. Stops a timer that runs. Before the MSRs, of which some are its own."),
    entry(Msrs, "MSRs", How::Vcpu(vcpu::MSRS),
        "What KVM lists as state and lets one set. One that KVM answers from the local \
        APIC or the clock needs those set before. Some make KVM write guest memory: \
        before the pages."),
    entry(Timer, "deadline of the timer", How::Vcpu(vcpu::TIMER),
        "The guest arms it all the time. Disarmed here and armed by the start, so that it \
        neither fires while the machine waits nor leaves an expiry behind. After the local \
        APIC, whose mode decides whether there is a deadline."),
    entry(DebugRegisters, "debug registers", How::Vcpu(vcpu::DEBUG_REGISTERS),
        "DR0 to DR7, from ring 0. They depend on nothing, and nothing depends on them."),
    entry(Events, "pending events", How::Vcpu(vcpu::EVENTS),
        "Exceptions, interrupts and NMIs on their way, the interrupt shadow, system \
        management mode, an INIT that waits. After everything that could raise one."),
    entry(RunState, "run state", How::Vcpu(vcpu::RUN_STATE),
        "HLT, INIT and SIPI. Last of a vCPU: setting it makes nothing else happen."),

    entry(PagesOfVcpus, "memory, written by vCPUs", How::Memory,
        "Every page in KVM's dirty bitmap: by the guest's own instructions, and by KVM on a \
        vCPU's behalf (accessed bits, clock pages, instructions that it emulates). After \
        the vCPUs, because setting their MSRs writes some."),
    entry(PagesOfDevices, "memory, written by devices", How::Memory,
        "Every page in the devices' bitmap: buffers and used rings, and the generation id. \
        After the devices, none of which writes when it is put back."),

    entry(Frames, "frames of an earlier life", How::Start(start::FRAMES),
        "The tap's queue on the host: whoever has sent meant another life."),
    entry(GenerationId, "VM generation id", How::Start(start::GENERATION_ID),
        "Not put back but made new: no two lives may have the same. Its interrupt is the \
        first thing that the guest sees."),
    entry(Clock, "KVM's clock", How::Start(start::CLOCK),
        "It goes on while a machine waits, so it is set when the guest runs, to the \
        snapshot's value."),
    entry(Counters, "time stamp counters", How::Start(start::COUNTERS),
        "The guest can set them; the host's goes on. Each counter and the deadline that \
        goes by it, from the instant at which KVM's clock was set, because a guest \
        compares them. No vCPU runs before all are set."),
];
