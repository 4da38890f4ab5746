//! Tests of the keyboard controller.

use super::*;
use crate::bus::testing::assert_restores;

#[test]
fn the_reset_command_asks_for_a_reset() {
    let mut i8042 = I8042::default();
    assert_eq!(
        i8042.read_status() & 2,
        0,
        "Linux waits for an empty input buffer first"
    );
    assert!(i8042.write_command(0xfe));
    for command in (0..=0xff).filter(|command| *command != 0xfe) {
        assert!(!i8042.write_command(command));
    }
}

#[test]
fn the_configuration_can_be_written_and_read() {
    let mut i8042 = I8042::default();
    i8042.write_command(0x60);
    i8042.write_data(0x47);
    i8042.write_data(0x99);
    assert_eq!(i8042.read_status(), 0);
    i8042.write_command(0x20);
    assert_eq!(i8042.read_status(), 1);
    assert_eq!(i8042.read_data(), 0x47);
    assert_eq!(i8042.read_status(), 0);
    i8042.write_command(0xaa);
    assert_eq!(i8042.read_data(), 0x55);
}

#[test]
fn state_restores() {
    assert_restores(
        &mut I8042::default(),
        I8042::save,
        |i8042| {
            i8042.write_command(0x60);
            i8042.write_data(0x47);
            i8042.write_command(0x20);
            i8042.write_command(0x60);
        },
        I8042::restore,
    );
}
