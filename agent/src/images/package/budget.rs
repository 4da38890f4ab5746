//! What one archive may make of itself.

use super::refused::UnpackError;

/// Most files, folders and links.
pub const MAX_ENTRIES: usize = 100_000;
/// Most content for each byte of a compressed archive. Code compresses five times, a file of
/// zeroes a thousand times.
pub const MAX_RATIO: u64 = 200;
/// As much content is never taken for a bomb.
const ALWAYS_FINE: u64 = 32 * 1024 * 1024;

/// What is left of the limits while an archive is read.
#[derive(Debug)]
pub struct Budget {
    max_bytes: u64,
    /// What the ratio allows.
    bomb: u64,
    bytes: u64,
    entries: usize,
}

impl Budget {
    /// For an archive of `archive_bytes`.
    pub fn new(max_bytes: u64, archive_bytes: u64) -> Self {
        Self {
            max_bytes,
            bomb: archive_bytes.saturating_mul(MAX_RATIO).max(ALWAYS_FINE),
            bytes: 0,
            entries: 0,
        }
    }

    /// The same limits for another archive that belongs to it: what has been taken counts on.
    pub fn next_archive(&mut self, archive_bytes: u64) {
        let allowed = archive_bytes.saturating_mul(MAX_RATIO).max(ALWAYS_FINE);
        self.bomb = self.bytes.saturating_add(allowed);
    }

    /// The longest tar archive that can be within the limits, in bytes: all content, and for
    /// each entry its header and what fills it up.
    pub fn longest_tar(&self) -> u64 {
        let headers = u64::try_from(MAX_ENTRIES).unwrap_or(u64::MAX);
        self.max_bytes.saturating_add(headers.saturating_mul(1024))
    }

    /// One more entry.
    pub fn entry(&mut self) -> Result<(), UnpackError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        Ok(())
    }

    /// So many bytes more.
    pub fn take(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.max_bytes {
            return Err(UnpackError::TooLarge {
                max_bytes: self.max_bytes,
            });
        }
        if self.bytes > self.bomb {
            return Err(UnpackError::Bomb);
        }
        Ok(())
    }
}
