use super::*;
use crate::arch::x86_64::interrupts::InterruptsV1;
use crate::arch::x86_64::processor::ProcessorV1;
use crate::bus::BusV1;
use crate::devices::i8042::I8042V1;
use crate::devices::serial::SerialV1;
use crate::virtio::block::BlockV1;
use crate::virtio::net::NetV1;
use crate::virtio::rng::RngV1;
use crate::virtio::transport::{TransportV1, VirtioV1};
use crate::virtio::vsock::VsockV1;

/// No `..` anywhere: a field that is added does not compile until a line of the table is
/// named for it here.
#[test]
fn every_field_of_the_saved_state_belongs_to_a_line() {
    let mut named = Vec::new();
    let mut belongs = |part: Part, _fields: &dyn std::any::Any| named.push(part);
    let ProcessorV1 {
        regs,
        sregs,
        xsave,
        xcrs,
        debug,
        lapic,
        msrs,
        events,
        mp_state,
        time,
    } = ProcessorV1::default();
    belongs(Part::ExtendedState, &xsave);
    belongs(Part::ExtendedControl, &xcrs);
    belongs(Part::GeneralRegisters, &regs);
    belongs(Part::SystemRegisters, &sregs);
    belongs(Part::LocalApic, &lapic);
    belongs(Part::Msrs, &msrs);
    belongs(Part::Timer, &time);
    belongs(Part::DebugRegisters, &debug);
    belongs(Part::Events, &events);
    belongs(Part::RunState, &mp_state);
    let InterruptsV1 {
        pic_master,
        pic_slave,
        ioapic,
    } = InterruptsV1::default();
    belongs(Part::FirstPic, &pic_master);
    belongs(Part::SecondPic, &pic_slave);
    belongs(Part::IoApic, &ioapic);
    let BusV1 {
        serial,
        i8042,
        vsock,
        net,
        disks,
        rng,
    } = BusV1::default();
    belongs(Part::SerialLine, &serial);
    belongs(Part::Keyboard, &i8042);
    belongs(Part::Vsock, &vsock);
    belongs(Part::Net, &net);
    belongs(Part::Disks, &disks);
    belongs(Part::Entropy, &rng);
    named.sort_unstable();
    let kept = INVENTORY
        .iter()
        .filter(|entry| matches!(entry.how, How::Device(_) | How::Chip(_) | How::Vcpu(_)));
    assert_eq!(named, kept.map(|entry| entry.part).collect::<Vec<_>>());
}

/// A field that is added to a device's state does not compile until it stands here: the
/// hostile guest of `tests/inventory.rs` then has one thing more to change.
#[test]
fn the_fields_of_each_devices_state_are_these() {
    let VirtioV1 { transport, device } = VirtioV1::<RngV1>::default();
    let TransportV1 {
        device_id: _,
        driver_features: _,
        device_features_sel: _,
        driver_features_sel: _,
        queue_sel: _,
        status: _,
        interrupt_status: _,
        config_generation: _,
        queues,
    } = transport;
    assert!(queues.is_empty());
    let RngV1 {} = device;
    let VsockV1 { channel, resets } = VsockV1::default();
    assert!(channel.is_none() && resets.is_empty());
    let BlockV1 {
        capacity,
        own_clusters,
    } = BlockV1::default();
    assert_eq!((capacity, own_clusters), (0, 0));
    let NetV1 { mac } = NetV1::default();
    assert_eq!(mac, [0; 6]);
    let I8042V1 {
        config,
        output,
        config_follows,
    } = I8042V1::default();
    assert_eq!((config, output, config_follows), (0, None, false));
    let SerialV1 {
        baud_divisor_low: _,
        baud_divisor_high: _,
        interrupt_enable: _,
        interrupt_identification: _,
        line_control: _,
        line_status: _,
        modem_control: _,
        modem_status: _,
        scratch: _,
        in_buffer,
    } = SerialV1::default();
    assert!(in_buffer.is_empty());
}

#[test]
fn every_part_stands_in_the_table_once_and_in_order() {
    let parts: Vec<Part> = INVENTORY.iter().map(|entry| entry.part).collect();
    assert_eq!(parts, Part::ALL);
}

/// Which stage a line belongs to.
fn stage(how: How) -> u8 {
    match how {
        How::Host(_) => 0,
        How::Device(_) => 1,
        How::Chip(_) => 2,
        How::Vcpu(_) => 3,
        How::Memory => 4,
        How::Start(_) => 5,
    }
}

#[test]
fn the_stages_of_a_reset_follow_each_other() {
    let stages: Vec<u8> = INVENTORY.iter().map(|entry| stage(entry.how)).collect();
    assert!(stages.is_sorted(), "{stages:?}");
}

#[test]
fn each_line_has_a_name_of_its_own_and_a_reason() {
    for (at, entry) in INVENTORY.iter().enumerate() {
        let before = &INVENTORY[..at];
        assert!(
            before.iter().all(|other| other.name != entry.name),
            "{entry:?}"
        );
        assert!(
            entry.why.len() > 40 && entry.why.ends_with('.'),
            "{entry:?}"
        );
    }
}

#[test]
fn a_set_of_parts_lacks_exactly_what_was_taken_out() {
    for part in Part::ALL {
        let without = Parts::ALL.without(part);
        for other in Part::ALL {
            assert!(Parts::ALL.has(other));
            assert_eq!(without.has(other), other != part);
        }
    }
}
