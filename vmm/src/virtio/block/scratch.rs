//! A disk that can be written and forgets: a base that nobody changes, and an overlay
//! with the clusters that this machine wrote, each at its own place.
//!
//! ```text
//!           write            discard, zero
//!   Base ──────────► Data ◄───────────────► Zero      (per cluster)
//!    ▲                 write                 │
//!    └──────────── forget (reset) ───────────┘
//! ```
//!
//! The overlay is a sparse file of the base's length. What it holds is only ever read
//! where the map says so.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use vm_memory::Permissions;

use super::map::{CLUSTER, Cluster, ClusterMap};
use super::request::Status;
use super::{OpenError, size};
use crate::memory::GuestRam;
use crate::sys::volatile_io;
use crate::virtio::queue::Buffers;

/// The largest disk, in bytes: it bounds the map.
const MAX_SIZE: u64 = 64 << 30;
/// Bytes that are copied or made zero at once.
const PIECE: usize = 64 << 10;
static ZEROES: [u8; PIECE] = [0; PIECE];

/// Base, overlay, and which of them has what.
#[derive(Debug)]
pub(super) struct Scratch {
    base: File,
    overlay: File,
    /// Bytes.
    size: u64,
    /// Most clusters that may take up space in the overlay.
    limit: u64,
    map: ClusterMap,
    /// Something was written to the overlay since it was empty.
    touched: bool,
}

impl Scratch {
    /// A disk that shows `base`, with an overlay of at most `limit` bytes.
    pub(super) fn open(base: File, overlay: File, limit: u64) -> Result<Self, OpenError> {
        let (bytes, found) = (size(&base)?, size(&overlay)?);
        if bytes > MAX_SIZE {
            return Err(OpenError::TooLarge { bytes });
        }
        if found != bytes {
            return Err(OpenError::Overlay { found, bytes });
        }
        Ok(Self {
            base,
            overlay,
            size: bytes,
            limit: limit / CLUSTER,
            map: ClusterMap::default(),
            touched: false,
        })
    }

    /// Clusters that differ from the base.
    pub(super) fn own_clusters(&self) -> u64 {
        self.map.own()
    }

    /// The pieces of `range` that lie in one file each, and that file.
    pub(super) fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = (&File, Range<u64>)> {
        let end = range.end.div_ceil(CLUSTER);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let cluster = at / CLUSTER;
            let from = at;
            (from < range.end).then(|| {
                at = range.end.min(self.map.end_of_run(cluster, end) * CLUSTER);
                let source = match self.map.get(cluster) {
                    Cluster::Base => &self.base,
                    Cluster::Zero | Cluster::Data => &self.overlay,
                };
                (source, from..at)
            })
        })
    }

    /// Writes what the guest gave, from its byte `skip` on.
    pub(super) fn write(
        &mut self,
        range: Range<u64>,
        from: &Buffers,
        skip: u64,
        ram: &GuestRam,
    ) -> Result<(), Status> {
        let (start, end) = (range.start, range.end);
        // Nothing is done for a buffer that is not there.
        from.slices(ram, skip, end - start, Permissions::Read)?;
        self.put(range, |overlay, at| {
            let slices = from
                .slices(ram, skip + (at - start), end - at, Permissions::Read)
                .map_err(io::Error::other)?;
            volatile_io::pwritev(overlay, &slices, at)
        })
    }

    /// Tells the host's file system to keep what was written: its errors come out.
    pub(super) fn flush(&self) -> Result<(), Status> {
        Ok(self.overlay.sync_data()?)
    }

    /// The guest no longer needs `range`. Whole clusters become zero and give up
    /// their space; a discard is a hint, so their pieces stay.
    pub(super) fn discard(&mut self, range: &Range<u64>) -> Result<(), Status> {
        match self.whole_clusters(range) {
            Some(clusters) => self.make_holes(clusters),
            None => Ok(()),
        }
    }

    /// Makes `range` zero; with `unmap`, without taking up space where possible.
    pub(super) fn zero(&mut self, range: Range<u64>, unmap: bool) -> Result<(), Status> {
        match self.whole_clusters(&range).filter(|_| unmap) {
            None => self.put_zeroes(range),
            Some(clusters) => {
                let (from, to) = (clusters.start * CLUSTER, clusters.end * CLUSTER);
                self.make_holes(clusters)?;
                self.put_zeroes(range.start..from)?;
                self.put_zeroes(to..range.end)
            }
        }
    }

    /// Shows the base again and gives all space back.
    pub(super) fn forget(&mut self) -> Result<(), Errno> {
        if self.touched {
            // Whole clusters: of a part, the kernel only makes the bytes zero.
            punch(&self.overlay, 0..self.size.next_multiple_of(CLUSTER))?;
            self.touched = false;
        }
        self.map.clear();
        Ok(())
    }

    /// Copies the whole content to `file`, an empty sparse file of the disk's
    /// length, which is the base from now on.
    pub(super) fn rebase(&mut self, file: File) -> io::Result<()> {
        if !size(&file).is_ok_and(|bytes| bytes == self.size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (source, range) in self.pieces(0..self.size) {
            copy_data(source, range, &file)?;
        }
        self.base = file;
        Ok(self.forget()?)
    }

    /// Has `write` write all of `range` to the overlay, piece by piece: it is told
    /// where the next one begins, and says how long it was. Nothing is written when
    /// the overlay would become too large.
    fn put(
        &mut self,
        range: Range<u64>,
        mut write: impl FnMut(BorrowedFd<'_>, u64) -> io::Result<usize>,
    ) -> Result<(), Status> {
        let clusters = range.start / CLUSTER..range.end.div_ceil(CLUSTER);
        if self.map.data() + self.map.without_data(clusters.clone()) > self.limit {
            return Err(Status::IoError);
        }
        self.touched = true;
        self.complete(range.start)?;
        self.complete(range.end)?;
        let mut at = range.start;
        while at < range.end {
            match write(self.overlay.as_fd(), at) {
                Ok(written @ 1..) => at += u64::try_from(written).unwrap_or(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.map.set(clusters.start..at / CLUSTER, true);
                    self.drop_half(at / CLUSTER);
                    return Err(Status::IoError);
                }
            }
        }
        self.map.set(clusters, true);
        Ok(())
    }

    fn put_zeroes(&mut self, range: Range<u64>) -> Result<(), Status> {
        let end = range.end;
        self.put(range, |overlay, at| {
            let len = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
            let zeroes = ZEROES.get(..len).unwrap_or_default();
            Ok(rustix::io::pwrite(overlay, zeroes, at)?)
        })
    }

    /// Before the cluster that `at` cuts in two is written in part: brings it from
    /// the base.
    fn complete(&mut self, at: u64) -> Result<(), Status> {
        let cluster = at / CLUSTER;
        if at.is_multiple_of(CLUSTER) || at == self.size || self.map.get(cluster) != Cluster::Base {
            return Ok(());
        }
        let range = cluster * CLUSTER..self.size.min((cluster + 1) * CLUSTER);
        let copied = copy(&self.base, range, &self.overlay);
        if copied.is_ok() {
            self.map.set(cluster..cluster + 1, true);
        } else {
            self.drop_half(cluster);
        }
        Ok(copied?)
    }

    /// After a failure: what was written of a cluster that is not the overlay's
    /// must not take up space nor show.
    fn drop_half(&self, cluster: u64) {
        if self.map.get(cluster) != Cluster::Data {
            // What fails here only takes up space until the reset, which fails too.
            let _ = punch(&self.overlay, cluster * CLUSTER..(cluster + 1) * CLUSTER);
        }
    }

    fn make_holes(&mut self, clusters: Range<u64>) -> Result<(), Status> {
        punch(
            &self.overlay,
            clusters.start * CLUSTER..clusters.end * CLUSTER,
        )?;
        self.map.set(clusters, false);
        Ok(())
    }

    /// The clusters that `range` covers as a whole; what is missing behind the end
    /// of the disk does not count.
    fn whole_clusters(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let end = if range.end == self.size {
            range.end.div_ceil(CLUSTER)
        } else {
            range.end / CLUSTER
        };
        let clusters = range.start.div_ceil(CLUSTER)..end;
        (!clusters.is_empty()).then_some(clusters)
    }
}

/// Gives back what `range` takes up.
fn punch(file: &File, range: Range<u64>) -> Result<(), Errno> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if range.is_empty() {
        return Ok(());
    }
    rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, flags, range.start, range.end - range.start)
    })
}

/// Copies what `from` has in `range`, without its holes. Only this uses a file's
/// position, and nobody relies on one.
fn copy_data(from: &File, range: Range<u64>, to: &File) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) if start < range.end => start,
            // A hole up to the end of the range, or of the file.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start))?.min(range.end);
        copy(from, start..end, to)?;
        at = end;
    }
    Ok(())
}

/// Copies `range` to the same place.
fn copy(from: &File, range: Range<u64>, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap_or(PIECE).min(PIECE);
        let piece = buffer.get_mut(..len).unwrap_or_default();
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, at)?;
        at += u64::try_from(len).unwrap_or(u64::MAX - at);
    }
    Ok(())
}
