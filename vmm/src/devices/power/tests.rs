//! Tests of the power registers.

use super::*;
use crate::bus::GuestEnd;

#[test]
fn only_an_enabled_s5_powers_off() {
    for byte in 0..=u8::MAX {
        let asked = byte & 0b0011_1100 == 0b0011_0100;
        let expected = asked.then_some(GuestEnd::PoweredOff);
        assert_eq!(write(SLEEP_CONTROL, byte), expected, "{byte:#x}");
        assert_eq!(write(SLEEP_STATUS, byte), None);
    }
}

#[test]
fn only_its_value_resets() {
    for byte in 0..=u8::MAX {
        let expected = (byte == RESET_VALUE).then_some(GuestEnd::Rebooted);
        assert_eq!(write(RESET, byte), expected, "{byte:#x}");
    }
}

#[test]
fn reads_are_zero() {
    for register in [SLEEP_CONTROL, SLEEP_STATUS, RESET] {
        assert_eq!(read(register), 0);
    }
}
