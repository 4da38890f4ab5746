//! Tests of the serial line.

use std::io::Read;

use super::*;
use crate::bus::testing::assert_restores;

const DATA: u8 = 0;
const INTERRUPTS: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const SCRATCH: u8 = 7;

fn line() -> (Serial, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Serial::new(writer.into()).unwrap(), reader)
}

#[test]
fn output_reaches_the_pipe() {
    let (mut serial, mut reader) = line();
    for byte in b"hello" {
        assert!(!serial.write(DATA, *byte));
    }
    let mut got = [0; 5];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    assert_eq!(serial.dropped(), 0);
    assert_eq!(
        serial.read(LINE_STATUS) & 0x60,
        0x60,
        "the transmitter is always empty"
    );
}

#[test]
fn a_full_pipe_drops_and_counts() {
    let (mut serial, reader) = line();
    rustix::pipe::fcntl_setpipe_size(&reader, 4096).unwrap();
    for _ in 0..5000 {
        let _ = serial.write(DATA, b'x');
    }
    assert_eq!(serial.dropped(), 5000 - 4096);
}

#[test]
fn a_closed_reader_is_no_error() {
    let (mut serial, reader) = line();
    drop(reader);
    let _ = serial.write(DATA, b'x');
    assert_eq!(serial.dropped(), 1);
    let mut mute = Serial::mute();
    let _ = mute.write(DATA, b'x');
    assert_eq!(mute.dropped(), 0);
}

#[test]
fn an_empty_transmitter_interrupts_when_asked_to() {
    let mut serial = Serial::mute();
    assert!(serial.write(INTERRUPTS, 2));
    assert_eq!(serial.read(2) & 0x0f, 2);
    assert!(serial.write(DATA, b'x'));
}

#[test]
fn state_restores() {
    let (mut serial, mut reader) = line();
    let _ = serial.write(LINE_CONTROL, 0x13);
    assert_restores(
        &mut serial,
        Serial::save,
        |serial| {
            let _ = serial.write(SCRATCH, 0x5a);
            let _ = serial.write(INTERRUPTS, 3);
            let _ = serial.write(MODEM_CONTROL, 0x10);
            let _ = serial.write(DATA, 7);
            let _ = serial.write(LINE_CONTROL, 0x80);
            let _ = serial.write(DATA, 1);
        },
        |serial, state| serial.restore(state).unwrap(),
    );
    // The output is still connected, and no old interrupt comes out.
    assert!(!serial.write(DATA, b'y'));
    let mut got = [0; 1];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"y");
}

#[test]
fn an_overfull_fifo_is_refused() {
    let mut serial = Serial::mute();
    let state = SerialV1 {
        in_buffer: vec![0; 65],
        ..serial.save()
    };
    assert_eq!(
        serial.restore(&state),
        Err(SerialRestoreError::Fifo { bytes: 65 })
    );
}
