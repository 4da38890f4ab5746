//! Where the pages of a snapshot come from.

use std::io;

/// Something that has every page of a snapshot's memory. A remote or compressed
/// one only has to implement this.
pub trait PageSource: std::fmt::Debug + Send + Sync {
    /// Fills all of `bytes` from `offset` (bytes) on.
    ///
    /// # Errors
    /// When the bytes cannot be had, or are not what they should be; a source that ends
    /// early is an error.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Where the next byte at or after `offset` is that may be other than zero;
    /// beyond the end when there is none.
    ///
    /// # Errors
    /// When the source cannot tell.
    fn data_after(&self, offset: u64) -> io::Result<u64>;
}
