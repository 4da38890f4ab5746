//! The serial line's state in a snapshot.

use serde::{Deserialize, Serialize};
use vm_superio::SerialState;

/// Bytes of the receive FIFO, as vm-superio has it.
pub(super) const FIFO_SIZE: usize = 0x40;

/// The registers of the 16550; names as in vm-superio's `SerialState`, which has
/// no stable encoding of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialV1 {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// What was received and not read; only loop-back mode fills it.
    pub in_buffer: Vec<u8>,
}

/// Why a serial line's state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SerialRestoreError {
    /// More received bytes than the FIFO holds.
    #[error("{bytes} bytes in the receive FIFO of {FIFO_SIZE}")]
    Fifo {
        /// Bytes in the state.
        bytes: usize,
    },
}

impl From<SerialState> for SerialV1 {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl From<&SerialV1> for SerialState {
    fn from(state: &SerialV1) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        }
    }
}
