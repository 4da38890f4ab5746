//! As much of an 8042 as a Linux guest touches: its reset line (`reboot=k`), and
//! answers to the probe of a kernel that looks for a keyboard, so that it finds
//! none quickly instead of waiting for time-outs.

use super::I8042V1;

/// Status bit: a byte waits in the data port.
const STATUS_OUTPUT_FULL: u8 = 0x01;

const CMD_READ_CONFIG: u8 = 0x20;
const CMD_WRITE_CONFIG: u8 = 0x60;
const CMD_SELF_TEST: u8 = 0xaa;
const CMD_RESET: u8 = 0xfe;

/// What a self test answers when all is well.
const SELF_TEST_PASSED: u8 = 0x55;

/// The keyboard controller.
#[derive(Debug)]
pub struct I8042 {
    state: I8042V1,
}

impl Default for I8042 {
    fn default() -> Self {
        Self {
            state: I8042V1 {
                config: 0,
                output: None,
                config_follows: false,
            },
        }
    }
}

impl I8042 {
    /// A read of the status port. The input buffer is always empty: commands are
    /// done when they are written.
    #[must_use]
    pub fn read_status(&self) -> u8 {
        if self.state.output.is_some() {
            STATUS_OUTPUT_FULL
        } else {
            0
        }
    }

    /// A read of the data port.
    pub fn read_data(&mut self) -> u8 {
        self.state.output.take().unwrap_or(0)
    }

    /// A write of the command port. Returns whether the machine shall be reset.
    pub fn write_command(&mut self, command: u8) -> bool {
        self.state.config_follows = false;
        match command {
            CMD_READ_CONFIG => self.state.output = Some(self.state.config),
            CMD_WRITE_CONFIG => self.state.config_follows = true,
            CMD_SELF_TEST => self.state.output = Some(SELF_TEST_PASSED),
            CMD_RESET => return true,
            _ => {}
        }
        false
    }

    /// A write of the data port. Bytes for a keyboard get no answer.
    pub fn write_data(&mut self, byte: u8) {
        if std::mem::take(&mut self.state.config_follows) {
            self.state.config = byte;
        }
    }

    /// The state for a snapshot.
    #[must_use]
    pub fn save(&self) -> I8042V1 {
        self.state
    }

    /// Puts the controller into `state`.
    pub fn restore(&mut self, state: &I8042V1) {
        self.state = *state;
    }
}
