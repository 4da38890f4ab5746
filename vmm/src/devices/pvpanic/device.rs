//! The events of the port.

use crate::bus::GuestEnd;

/// The kernel panicked and its host shall handle that. The other events of the
/// specification (a crash kernel was loaded, a shutdown begins) are not offered.
const PANICKED: u8 = 1 << 0;

/// A read: the events that can be told.
#[must_use]
pub const fn read() -> u8 {
    PANICKED
}

/// A write tells events.
#[must_use]
pub const fn write(events: u8) -> Option<GuestEnd> {
    if events & PANICKED != 0 {
        Some(GuestEnd::Panicked)
    } else {
        None
    }
}
