//! The rings that no driver makes by accident, for any device.

use super::{BUFFERS, Driver, RAM_SIZE, rings};
use crate::memory::GuestRam;
use crate::virtio::transport::MmioDevice;
use crate::virtio::{COMMON_FEATURES, F_EVENT_IDX, VirtioDevice};

/// There is a next descriptor.
const NEXT: u16 = 1;
/// The device may write to it.
const WRITE: u16 = 2;
/// It is a table of descriptors.
const INDIRECT: u16 = 4;
/// Calls in which a device has to come to an end, whatever is in its rings.
const CALLS: u32 = 1000;

/// A descriptor: address, length, flags and the next one.
type Raw = (u64, u32, u16, u16);

/// Descriptor tables whose chain from the first one on no device may serve.
fn chains(size: u16) -> Vec<(&'static str, Vec<Raw>)> {
    let at = BUFFERS;
    let endless = vec![(at, u32::MAX, NEXT, 1); usize::from(size)];
    let mut chains = Vec::new();
    for write in [0, WRITE] {
        let more = NEXT | write;
        chains.extend([
            ("a descriptor that follows itself", vec![(at, 16, more, 0)]),
            (
                "a loop of three",
                vec![(at, 16, more, 1), (at, 16, more, 2), (at, 16, more, 0)],
            ),
            ("a next one past the table", vec![(at, 16, more, size)]),
            (
                "memory that ends too early",
                vec![(RAM_SIZE - 8, 64, write, 0)],
            ),
            ("memory that is not there", vec![(1 << 40, 64, write, 0)]),
            ("memory past 2^64", vec![(u64::MAX - 8, 64, write, 0)]),
            (
                "a table of descriptors that is not there",
                vec![(1 << 40, 64, INDIRECT, 0)],
            ),
            ("a table of half a descriptor", vec![(at, 24, INDIRECT, 0)]),
        ]);
    }
    chains.push(("more bytes than a chain can have", endless));
    chains
}

/// Shows a device each of them in `queue`, which it serves when its driver notifies
/// it, and available indices that jump. It has to come to an end, to give the chain back as
/// an error or to ask for a reset, and to be as good as new after one.
pub(crate) fn assert_survives_hostile_rings<D: VirtioDevice>(queue: usize, device: impl Fn() -> D) {
    let size = Driver::cold(device()).rings[queue].size;
    for (what, table) in chains(size) {
        let mut driver = Driver::live(device());
        for (index, (addr, len, flags, next)) in (0..).zip(&table) {
            let ring = &driver.rings[queue];
            ring.write_desc(&driver.ram, index, *addr, *len, *flags, *next);
        }
        let ram = driver.ram.clone();
        driver.rings[queue].publish(&ram, 0);
        serve(&mut driver, queue, what);
        let given_back = driver.take_used(queue).len();
        assert!(driver.needs_reset() || given_back == 1, "{what}");
        is_as_good_as_new(&mut driver, queue, what);
    }
    for (what, head, index) in [
        ("a head past the table", size, 1),
        ("an index that jumps ahead", 0, size + 1),
        ("an index that goes back", 0, u16::MAX),
    ] {
        let mut driver = Driver::live(device());
        let ram = driver.ram.clone();
        driver.rings[queue].publish(&ram, head);
        driver.rings[queue].set_avail_idx(&ram, index);
        serve(&mut driver, queue, what);
        assert!(driver.needs_reset(), "{what}");
        assert_eq!(driver.take_used(queue), [], "{what}");
        is_as_good_as_new(&mut driver, queue, what);
    }
}

fn serve<D: VirtioDevice>(driver: &mut Driver<D>, queue: usize, what: &str) {
    let mut signals = driver.notify(queue);
    for _ in 0..CALLS {
        if !signals.more_work {
            return;
        }
        signals = driver.transport.continue_work(&driver.ram);
    }
    panic!("{what}: it does not come to an end");
}

/// A driver that begins again finds a device that is live and has nothing to do.
fn is_as_good_as_new<D: VirtioDevice>(driver: &mut Driver<D>, queue: usize, what: &str) {
    let ram: GuestRam = driver.ram.clone();
    let fresh = rings(D::QUEUE_SIZES);
    for ring in &fresh {
        ring.set_avail_idx(&ram, 0);
        driver.put(ring.used + 2, &[0; 2]);
    }
    driver.rings = fresh;
    driver.initialise(COMMON_FEATURES & !F_EVENT_IDX);
    serve(driver, queue, what);
    assert!(!driver.needs_reset(), "{what}");
    assert_eq!(driver.take_used(queue), [], "{what}");
}
