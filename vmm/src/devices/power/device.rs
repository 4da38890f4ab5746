//! What the three registers do.

use crate::bus::GuestEnd;

/// The sleep control register.
pub const SLEEP_CONTROL: u8 = 0;
/// The sleep status register.
pub const SLEEP_STATUS: u8 = 1;
/// The reset register.
pub const RESET: u8 = 2;

/// What the DSDT's `_S5` names as the type of S5: the value of `SLP_TYPx`.
pub const S5_TYPE: u8 = 5;
/// What a guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;

/// Sleep control: the bits of `SLP_TYPx`.
const TYPE_SHIFT: u8 = 2;
const TYPE_MASK: u8 = 0b111;
/// Sleep control: `SLP_EN`, enter the state.
const ENABLE: u8 = 1 << 5;

/// A read of a register: nobody ever woke up, and nothing is pending.
#[must_use]
pub const fn read(_register: u8) -> u8 {
    0
}

/// A write of a register. Sleep states that the tables do not name do not exist.
#[must_use]
pub const fn write(register: u8, byte: u8) -> Option<GuestEnd> {
    let sleep_type = byte >> TYPE_SHIFT & TYPE_MASK;
    match register {
        SLEEP_CONTROL if byte & ENABLE != 0 && sleep_type == S5_TYPE => Some(GuestEnd::PoweredOff),
        RESET if byte == RESET_VALUE => Some(GuestEnd::Rebooted),
        _ => None,
    }
}
