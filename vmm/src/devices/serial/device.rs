//! A 16550 (vm-superio's) whose output is bounded.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, SerialState, Trigger};

use super::output::Output;
use super::state::FIFO_SIZE;
use super::{SerialRestoreError, SerialV1};

/// Remembers that the line was pulsed, for the access's effects.
#[derive(Debug, Default)]
struct Line(Cell<bool>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The serial line.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<Line, NoEvents, Output>,
}

impl Serial {
    /// A serial line whose output goes into `pipe`. The pipe becomes non-blocking;
    /// what does not fit is dropped and counted. A closed reader must not raise
    /// `SIGPIPE` (Rust programs ignore it).
    ///
    /// # Errors
    /// When the pipe cannot be made non-blocking.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            uart: Uart::new(Line::default(), Output::to(pipe)?),
        })
    }

    /// A serial line that nobody listens to.
    #[must_use]
    pub fn mute() -> Self {
        Self {
            uart: Uart::new(Line::default(), Output::default()),
        }
    }

    /// A read of one of the eight registers.
    pub fn read(&mut self, register: u8) -> u8 {
        self.uart.read(register)
    }

    /// A write of one of the eight registers. Returns whether to pulse the line.
    #[must_use]
    pub fn write(&mut self, register: u8, byte: u8) -> bool {
        // The trigger cannot fail and the output swallows its errors: what is left
        // is a full loop-back FIFO, which loses the byte as real hardware does.
        let _ = self.uart.write(register, byte);
        self.uart.interrupt_evt().0.take()
    }

    /// Bytes of output that nobody took in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.uart.writer().dropped()
    }

    /// The state for a snapshot.
    #[must_use]
    pub fn save(&self) -> SerialV1 {
        self.uart.state().into()
    }

    /// Puts the line into `state`; its output stays where it is.
    ///
    /// # Errors
    /// When the state holds more received bytes than the FIFO.
    pub fn restore(&mut self, state: &SerialV1) -> Result<(), SerialRestoreError> {
        if state.in_buffer.len() > FIFO_SIZE {
            return Err(SerialRestoreError::Fifo {
                bytes: state.in_buffer.len(),
            });
        }
        // The library wants to own the output: a mute line takes this one's place.
        let old = std::mem::replace(self, Self::mute());
        let output = old.uart.into_writer();
        let uart = Uart::from_state(&SerialState::from(state), Line::default(), NoEvents, output)
            .map_err(|_| SerialRestoreError::Fifo {
            bytes: state.in_buffer.len(),
        })?;
        // An interrupt that was pending is in the interrupt controller's state.
        uart.interrupt_evt().0.set(false);
        self.uart = uart;
        Ok(())
    }
}
