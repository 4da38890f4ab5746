//! A guest's serial output, for the test's own output and for the test.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a guest wrote to its serial line so far.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// A console and the end of it that goes to the VMM.
    pub fn new() -> (Self, OwnedFd) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let console = Self::default();
        let text = Arc::clone(&console.0);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                let _ = std::io::stderr().write_all(&bytes[..count]);
                text.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        (console, writer.into())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// Waits until `wanted` was written; panics after a bounded time.
    pub fn wait_for(&self, wanted: &str) {
        for _ in 0..300 {
            if self.text().contains(wanted) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("no {wanted:?} in {:?}", self.text());
    }
}
