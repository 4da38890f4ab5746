//! The devices' lines of the inventory ([`crate::reset::inventory`]): how each is
//! captured, put back and compared.

use super::Bus;
use super::state::{BusV1, NotQuiet, RestoreError};
use crate::memory::GuestRam;
use crate::reset::inventory::{Parts, difference, of_devices};
use crate::virtio::transport::Transport;

/// How one device is captured, put back and compared.
#[derive(Debug, Clone, Copy)]
pub struct DevicePart {
    /// Captures its field.
    pub capture: fn(&Bus, &mut BusV1),
    /// Puts it back. Guest memory is only asked for its size.
    pub restore: fn(&mut Bus, &BusV1, &GuestRam) -> Result<(), RestoreError>,
    /// Says what differs: what is there, what the snapshot says.
    pub compare: fn(&BusV1, &BusV1) -> Vec<String>,
}

/// The serial line.
pub const SERIAL: DevicePart = DevicePart {
    capture: |bus, into| into.serial = bus.serial.save(),
    restore: |bus, from, _| {
        let restored = bus.serial.restore(&from.serial);
        restored.map_err(RestoreError::Serial)
    },
    compare: |now, then| difference(&now.serial, &then.serial),
};

/// The keyboard controller.
pub const I8042: DevicePart = DevicePart {
    capture: |bus, into| into.i8042 = bus.i8042.save(),
    restore: |bus, from, _| {
        bus.i8042.restore(&from.i8042);
        Ok(())
    },
    compare: |now, then| difference(&now.i8042, &then.i8042),
};

/// The vsock.
pub const VSOCK: DevicePart = DevicePart {
    capture: |bus, into| into.vsock = bus.vsock.save(),
    restore: |bus, from, ram| {
        let restored = bus.vsock.restore(&from.vsock, ram);
        restored.map_err(RestoreError::Vsock)
    },
    compare: |now, then| difference(&now.vsock, &then.vsock),
};

/// The net device.
pub const NET: DevicePart = DevicePart {
    capture: |bus, into| into.net = bus.net.as_ref().map(Transport::save),
    restore: |bus, from, ram| match (&mut bus.net, &from.net) {
        (Some(net), Some(state)) => net.restore(state, ram).map_err(RestoreError::Net),
        (None, None) => Ok(()),
        (_, snapshot) => Err(RestoreError::NetPresence {
            snapshot: snapshot.is_some(),
        }),
    },
    compare: |now, then| difference(&now.net, &then.net),
};

/// The disks.
pub const DISKS: DevicePart = DevicePart {
    capture: |bus, into| into.disks = bus.disks.iter().map(Transport::save).collect(),
    restore: |bus, from, ram| {
        if from.disks.len() != bus.disks.len() {
            return Err(RestoreError::Disks {
                snapshot: from.disks.len(),
                machine: bus.disks.len(),
            });
        }
        for (index, (disk, state)) in bus.disks.iter_mut().zip(&from.disks).enumerate() {
            disk.restore(state, ram)
                .map_err(|source| RestoreError::Disk { index, source })?;
        }
        Ok(())
    },
    compare: |now, then| difference(&now.disks, &then.disks),
};

/// The entropy device.
pub const RNG: DevicePart = DevicePart {
    capture: |bus, into| into.rng = bus.rng.save(),
    restore: |bus, from, ram| bus.rng.restore(&from.rng, ram).map_err(RestoreError::Rng),
    compare: |now, then| difference(&now.rng, &then.rng),
};

impl Bus {
    /// Every device's state.
    ///
    /// # Errors
    /// [`NotQuiet`] while a device has work in flight.
    pub fn save(&self) -> Result<BusV1, NotQuiet> {
        if let Some(device) = self.devices().position(|device| !device.is_quiet()) {
            return Err(NotQuiet { device });
        }
        let mut state = BusV1::default();
        for (_, device) in of_devices(Parts::ALL) {
            (device.capture)(self, &mut state);
        }
        Ok(state)
    }

    /// Puts the devices that are in `parts` into `state`, which may come from a hostile
    /// file. Guest memory is only asked for its size, never read. All host sockets of
    /// vsock are closed; [`Bus::attach_hosts`] brings new ones.
    ///
    /// # Errors
    /// [`RestoreError`] names the device; the bus must not be used afterwards.
    pub fn restore(
        &mut self,
        state: &BusV1,
        ram: &GuestRam,
        parts: Parts,
    ) -> Result<(), RestoreError> {
        of_devices(parts).try_for_each(|(_, device)| (device.restore)(self, state, ram))
    }
}
