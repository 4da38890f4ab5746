//! A guest's serial output.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{MachineError, prepare};

/// Most bytes that are kept; what a guest writes beyond is read and dropped.
const MOST: usize = 1 << 20;

/// What a guest wrote to its serial line so far.
#[derive(Debug, Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// A console, and the end of it that goes to the VMM.
    pub(super) fn new() -> Result<(Self, OwnedFd), MachineError> {
        let (mut reader, writer) = std::io::pipe().map_err(prepare("make a pipe"))?;
        let console = Self::default();
        let text = Arc::clone(&console.0);
        let read = move || {
            let mut bytes = [0; 4096];
            // It ends with the machine.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
                let room = MOST - text.len().min(MOST);
                text.extend(bytes.iter().take(count.min(room)));
            }
        };
        std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(read)
            .map_err(prepare("start a thread"))?;
        Ok((console, writer.into()))
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).into_owned()
    }
}
