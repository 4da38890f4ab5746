//! What the kernel has to say, from its log.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, read};

/// Longest record, in bytes: what the kernel itself gives out at most.
const MAX_RECORD: usize = 8192;

/// Most records looked at in one go: more than the kernel keeps.
const MAX_RECORDS: usize = 8192;

/// The kernel's log, from some time on.
#[derive(Debug)]
pub struct KernelLog {
    device: OwnedFd,
}

impl KernelLog {
    /// The log from now on.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn from_now() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = open("/dev/kmsg", flags, Mode::empty())?;
        seek(&device, SeekFrom::End(0))?;
        Ok(Self { device })
    }

    /// Whether there is a message of this kind among those that nobody has looked at.
    /// All are looked at then.
    pub fn any(&mut self, is: impl Fn(&str) -> bool) -> bool {
        let mut found = false;
        let mut record = vec![0_u8; MAX_RECORD];
        for _ in 0..MAX_RECORDS {
            match read(&self.device, &mut record) {
                Ok(length) => found |= is(message(&record[..length])),
                // Some were lost: the next one is there.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        found
    }
}

/// The text of a record: `priority,sequence,time,flags;text`, then a line for each
/// property.
fn message(record: &[u8]) -> &str {
    let end = record
        .iter()
        .position(|&b| b == b'\n')
        .unwrap_or(record.len());
    let text = str::from_utf8(&record[..end]).unwrap_or_default();
    text.split_once(';').map_or("", |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_text_is_between_its_prefix_and_its_properties() {
        let record = b"3,339,5140900,-;Out of memory: Killed process 30\n SUBSYSTEM=x\n";
        assert_eq!(message(record), "Out of memory: Killed process 30");
        assert_eq!(message(b"no record"), "");
        assert_eq!(message(b"\xff;x\n"), "");
    }
}
