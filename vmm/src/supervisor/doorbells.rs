//! The queues' doorbells: a guest's write to `QueueNotify` makes an eventfd readable
//! instead of stopping its vCPU (`KVM_IOEVENTFD`). Connecting one makes KVM wait for
//! every reader of its list of devices, so it is done while a machine is blank.

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::layout::{MmioSlot, NOTIFY_OFFSET};
use crate::step::{StepError, kernel};

/// A queue's doorbell.
#[derive(Debug)]
pub struct Doorbell {
    /// Readable when the guest notified the queue.
    pub event: EventFd,
    /// The device's index on the bus.
    pub device: usize,
    /// The queue's index in the device.
    pub queue: usize,
}

/// Connects one for each queue of the devices at `slots`.
///
/// # Errors
/// What the kernel reports.
pub fn connect(vm: &VmFd, slots: &[MmioSlot]) -> Result<Vec<Doorbell>, StepError> {
    let queues = slots
        .iter()
        .flat_map(|slot| (0..slot.queues).map(move |queue| (slot, queue)));
    let connect = |(slot, queue): (&MmioSlot, usize)| {
        let event = EventFd::new(EFD_NONBLOCK).map_err(kernel("create an eventfd"))?;
        let address = IoEventAddress::Mmio(slot.base + NOTIFY_OFFSET);
        let value = u32::try_from(queue).unwrap_or(u32::MAX);
        vm.register_ioevent(&event, &address, value)
            .map_err(kernel("connect a queue's doorbell"))?;
        Ok(Doorbell {
            event,
            device: slot.device,
            queue,
        })
    };
    queues.map(connect).collect()
}
