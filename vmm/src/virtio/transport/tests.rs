//! Register-level tests of the transport, as a driver sees it.

#![allow(
    clippy::cast_possible_truncation,
    unused_must_use,
    reason = "tests choose their own numbers, and look at effects where they matter"
)]

use proptest::prelude::*;

use super::*;
use crate::virtio::queue::{QueueError, QueueRestoreError, VirtQueue};
use crate::virtio::testing::{BUFFERS, Driver, RAM_SIZE, readable};
use crate::virtio::{
    COMMON_FEATURES, DeviceError, DeviceRestoreError, F_EVENT_IDX, F_VERSION_1, Progress,
    VirtioDevice,
};

/// A device that uses what it gets, one chain per call.
#[derive(Debug, Default)]
struct Sink {
    activated: Option<u64>,
    broken: bool,
}

impl VirtioDevice for Sink {
    type State = ();

    const QUEUE_SIZES: &'static [u16] = &[16, 4];

    fn device_id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | 1
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::virtio::read_config_bytes(&[1, 2, 3, 4, 5], offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.activated = Some(features);
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn process(
        &mut self,
        index: usize,
        queues: &mut [VirtQueue],
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        let broken = |source| DeviceError::Queue {
            queue: index,
            source,
        };
        if self.broken {
            return Err(broken(QueueError::Buffer));
        }
        let queue = queues
            .get_mut(index)
            .ok_or(DeviceError::Missing { queue: index })?;
        let Some(chain) = queue.pop(ram).map_err(broken)? else {
            return Ok(Progress::Done);
        };
        queue.push_used(ram, chain.head, 0).map_err(broken)?;
        Ok(Progress::More)
    }

    fn is_quiet(&self) -> bool {
        true
    }

    fn save(&self) {}

    fn restore(&mut self, _state: &()) -> Result<(), DeviceRestoreError> {
        Ok(())
    }
}

#[test]
fn a_driver_can_identify_the_device() {
    let mut driver = Driver::cold(Sink::default());
    assert_eq!(driver.read(0x00), 0x7472_6976);
    assert_eq!((driver.read(0x04), driver.read(0x08)), (2, 42));
    assert_eq!(driver.read(0x10), COMMON_FEATURES as u32 | 1);
    driver.write(0x14, 1);
    assert_eq!(driver.read(0x10), 1, "VERSION_1");
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
    assert_eq!(driver.read(0x34), 16);
    driver.write(0x30, 1);
    assert_eq!(driver.read(0x34), 4);
    driver.write(0x30, u32::MAX);
    assert_eq!((driver.read(0x34), driver.read(0x44)), (0, 0));
    assert_eq!((driver.read(0xb0), driver.read(0xbc)), (u32::MAX, u32::MAX));
    assert_eq!(
        (driver.read(0xfc), driver.read(0x100), driver.read(0x104)),
        (0, 0x0403_0201, 5)
    );
    assert_eq!(driver.read(0xffc), 0);
}

#[test]
fn only_whole_registers_can_be_accessed() {
    let mut driver = Driver::cold(Sink::default());
    for len in [1, 2, 8] {
        let mut data = vec![0xff; len];
        driver.transport.read(0, &mut data);
        assert!(data.iter().all(|byte| *byte == 0));
        let _ = driver.transport.write(0x70, &vec![1; len], &driver.ram);
        assert_eq!(driver.read(0x70), 0);
    }
    let mut byte = [0];
    driver.transport.read(0x101, &mut byte);
    assert_eq!(byte, [2], "the configuration space is made of bytes");
}

/// Every pair of status and write, against the order of section 3.1.1.
#[test]
fn status_takes_one_step_at_a_time() {
    const PATH: [u32; 5] = [0, 1, 3, 11, 15];
    for (at, status) in PATH.iter().enumerate() {
        for value in 0..=255 {
            let mut driver = Driver::cold(Sink::default());
            for step in PATH.iter().take(at + 1).skip(1) {
                if *step == 11 {
                    driver.choose_features(F_VERSION_1);
                }
                driver.write(0x70, *step);
            }
            assert_eq!(driver.read(0x70), *status);
            if *status == 3 {
                driver.choose_features(F_VERSION_1);
            }
            driver.write(0x70, value);
            let added = value & !64 & !status & 0xcf;
            let expected = if value == 0 {
                0
            } else if added & 128 != 0 {
                status | 128
            } else if *status == 0 && added == 3 {
                3
            } else if PATH.get(at + 1).is_some_and(|next| next & !status == added) {
                status | added
            } else {
                *status
            };
            assert_eq!(driver.read(0x70), expected, "{status:#x} <- {value:#x}");
        }
    }
}

#[test]
fn features_are_checked_once() {
    for bad in [0, 1, F_VERSION_1 | 2, F_VERSION_1 | 1 << 63] {
        let mut driver = Driver::cold(Sink::default());
        driver.write(0x70, 1);
        driver.write(0x70, 3);
        driver.choose_features(bad);
        driver.write(0x70, 11);
        assert_eq!(driver.read(0x70), 3, "{bad:#x}");
    }
    let mut driver = Driver::live_with(Sink::default(), F_VERSION_1 | 1);
    assert_eq!(driver.transport.device().activated, Some(F_VERSION_1 | 1));
    driver.choose_features(0);
    assert_eq!(
        driver.transport.save().transport.driver_features,
        F_VERSION_1 | 1
    );
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok() {
    let mut driver = Driver::cold(Sink::default());
    driver.set_queue_up(0);
    assert_eq!(driver.read(0x44), 0, "too early");
    driver.initialise(F_VERSION_1);
    assert_eq!(driver.read(0x44), 1);
    let before = driver.transport.save();
    driver.write(0x38, 2);
    driver.write(0x80, 0xdead_0000);
    assert_eq!(driver.transport.save(), before, "too late");
    driver.write(0x44, 0);
    assert_eq!(driver.read(0x44), 0);
    assert_eq!(driver.notify(1), Signals::default());
}

#[test]
fn an_unusable_queue_needs_a_reset() {
    let mut driver = Driver::cold(Sink::default());
    driver.write(0x70, 1);
    driver.write(0x70, 3);
    driver.choose_features(F_VERSION_1);
    driver.write(0x70, 11);
    driver.rings[0].desc = RAM_SIZE;
    driver.set_queue_up(0);
    assert_eq!((driver.read(0x44), driver.read(0x70)), (0, 11 | 64));
    assert_eq!(driver.read(0x60), 0, "nobody listens yet");
    driver.rings[0].desc = 0x10000;
    driver.initialise(F_VERSION_1);
}

#[test]
fn work_interrupts_until_acknowledged() {
    let mut driver = Driver::live(Sink::default());
    assert_eq!(driver.notify(0), Signals::default(), "nothing offered");
    driver.offer(0, &[readable(BUFFERS, 1)]);
    let signals = driver.write(0x50, 0);
    assert!(signals.interrupt && signals.more_work);
    assert_eq!(driver.read(0x60), 1);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 0);
    assert_eq!(driver.take_used(0).len(), 1);
    assert!(!driver.transport.is_quiet());
    assert_eq!(
        driver.transport.continue_work(&driver.ram),
        Signals::default()
    );
    assert!(driver.transport.is_quiet());
    for unknown in [2, 77, u32::MAX] {
        assert_eq!(driver.write(0x50, unknown), Signals::default());
    }
}

#[test]
fn what_is_left_over_goes_on() {
    let mut driver = Driver::live(Sink::default());
    for _ in 0..3 {
        driver.offer(1, &[readable(BUFFERS, 1)]);
    }
    let mut signals = driver.notify(1);
    let mut calls = 1;
    while signals.more_work {
        signals = driver.transport.continue_work(&driver.ram);
        calls += 1;
    }
    assert_eq!((driver.take_used(1).len(), calls), (3, 4));
}

#[test]
fn a_broken_driver_is_told_and_then_ignored_until_reset() {
    let mut driver = Driver::live(Sink::default());
    driver.transport.device_mut().broken = true;
    let signals = driver.notify(0);
    assert!(signals.interrupt && !signals.more_work);
    assert_eq!((driver.read(0x70), driver.read(0x60)), (15 | 64, 2));
    driver.transport.device_mut().broken = false;
    driver.offer(0, &[readable(BUFFERS, 1)]);
    assert_eq!(driver.notify(0), Signals::default());
    driver.write(0x70, 15);
    assert!(driver.needs_reset(), "only a reset clears it");
    driver.write(0x70, 0);
    assert_eq!(
        (driver.read(0x70), driver.read(0x60), driver.read(0x44)),
        (0, 0, 0)
    );
    assert_eq!(
        driver.transport.save(),
        Transport::new(Sink::default()).save()
    );
}

#[test]
fn state_restores() {
    let mut driver = Driver::live_with(Sink::default(), F_VERSION_1 | F_EVENT_IDX);
    let ram = driver.ram.clone();
    driver.offer(0, &[readable(BUFFERS, 1)]);
    crate::bus::testing::assert_restores(
        &mut driver.transport,
        |transport| transport.save().transport,
        |transport| {
            let _ = transport.notify(0, &ram);
            let _ = transport.write(0x14, &[7, 0, 0, 0], &ram);
            let _ = transport.write(0x30, &[9, 0, 0, 0], &ram);
        },
        |transport, state| {
            let state = VirtioV1 {
                transport: state.clone(),
                device: (),
            };
            transport.restore(&state, &ram).unwrap();
        },
    );
    let live = driver.transport.save();
    let mut fresh = Transport::new(Sink::default());
    fresh.restore(&live, &ram).unwrap();
    assert_eq!(fresh.save(), live);
    assert_eq!(fresh.device().activated, Some(F_VERSION_1 | F_EVENT_IDX));
    // And back to a device that nobody has touched.
    let cold = Transport::new(Sink::default()).save();
    driver.transport.restore(&cold, &ram).unwrap();
    assert_eq!(driver.transport.save(), cold);
}

#[test]
fn impossible_states_are_refused() {
    let driver = Driver::live(Sink::default());
    let good = driver.transport.save();
    let refusal = |spoil: fn(&mut TransportV1)| {
        let mut state = good.clone();
        spoil(&mut state.transport);
        Transport::new(Sink::default())
            .restore(&state, &driver.ram)
            .unwrap_err()
    };
    use VirtioRestoreError as E;
    assert_eq!(
        refusal(|s| s.device_id = 1),
        E::DeviceId {
            snapshot: 1,
            machine: 42
        }
    );
    assert_eq!(refusal(|s| s.status = 4), E::Status(4));
    assert_eq!(refusal(|s| s.status = 0x1_0000), E::Status(0x1_0000));
    assert!(matches!(
        refusal(|s| s.driver_features = 0),
        E::Features { snapshot: 0, .. }
    ));
    assert!(matches!(
        refusal(|s| s.driver_features |= 2),
        E::Features { .. }
    ));
    assert_eq!(refusal(|s| s.interrupt_status = 4), E::InterruptStatus(4));
    assert_eq!(
        refusal(|s| s.queues.clear()),
        E::QueueCount {
            snapshot: 0,
            machine: 2
        }
    );
    let source = QueueRestoreError::Unusable;
    assert_eq!(
        refusal(|s| s.queues[1].size = 3),
        E::Queue { queue: 1, source }
    );
    assert_eq!(
        refusal(|s| s.queues[0].desc_table = RAM_SIZE),
        E::Queue { queue: 0, source }
    );
}

proptest! {
    #[test]
    fn arbitrary_accesses_never_panic(
        accesses in proptest::collection::vec((0_u64..0x140, any::<u32>(), any::<bool>()), 0..200),
        live in any::<bool>(),
    ) {
        let mut driver = Driver::cold(Sink::default());
        if live {
            driver.initialise(F_VERSION_1);
        }
        for (register, value, small) in accesses {
            let value = if small { value % 16 } else { value };
            driver.write(register & !3, value);
            driver.read(register);
        }
        // Whatever came of it can be saved and restored.
        let saved = driver.transport.save();
        let mut fresh = Transport::new(Sink::default());
        prop_assert_eq!(fresh.restore(&saved, &driver.ram), Ok(()));
        prop_assert_eq!(fresh.save(), saved);
    }
}
