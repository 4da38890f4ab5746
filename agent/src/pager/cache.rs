//! A snapshot's memory on this host: one memfd that all its microVMs map.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use snapback_vmm::sys::memfd::{self, HUGE_PAGE};

use super::PAGE;
use super::bitmap::Bitmap;
use super::source::PageSource;

/// Pages of a huge page.
pub(super) const PAGES_PER_HUGE: u64 = HUGE_PAGE as u64 / PAGE;

/// Windows that may be filled at the same time.
const STRIPES: usize = 64;

/// The lazily filled memory of one snapshot.
#[derive(Debug)]
pub struct MemoryCache {
    memfd: OwnedFd,
    /// The same file, not writable: what VMM processes get.
    read_only: OwnedFd,
    len: u64,
    source: Box<dyn PageSource>,
    /// Pages that are in the memfd. Each is written at most once.
    filled: Bitmap,
    window: u64,
    stripes: [Mutex<()>; STRIPES],
    faults: AtomicU64,
    complete: AtomicBool,
}

/// What a cache has done so far.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
pub struct CacheStats {
    /// Pages of the snapshot.
    pub pages: u64,
    /// Pages that are in host memory.
    pub filled: u64,
    /// Faults that reached the pager.
    pub faults: u64,
}

impl MemoryCache {
    /// An empty cache of `len` bytes. `window` bytes are filled at once around a
    /// missing page (a power of two, at least a page).
    ///
    /// # Errors
    /// When the memfd cannot be made.
    pub fn cold(len: u64, source: Box<dyn PageSource>, window: u64) -> io::Result<Self> {
        Self::new(memfd::create("snapback-cache", len)?, len, source, window)
    }

    /// A cache of the memory that a guest was booted in; `source` has the pages
    /// that the guest never touched.
    ///
    /// # Errors
    /// When the memfd's pages cannot be told from its holes.
    pub fn warm(
        memfd: OwnedFd,
        len: u64,
        source: Box<dyn PageSource>,
        window: u64,
    ) -> io::Result<Self> {
        let cache = Self::new(memfd, len, source, window)?;
        let mut at = 0;
        while let Some(data) = memfd::data_after(&cache.memfd, at, len)? {
            (data.start / PAGE..data.end.div_ceil(PAGE)).for_each(|page| cache.filled.set(page));
            at = data.end;
        }
        Ok(cache)
    }

    fn new(memfd: OwnedFd, len: u64, source: Box<dyn PageSource>, window: u64) -> io::Result<Self> {
        Ok(Self {
            read_only: memfd::read_only(&memfd)?,
            memfd,
            len,
            source,
            filled: Bitmap::new(len.div_ceil(PAGE)),
            window: window.max(PAGE),
            stripes: [const { Mutex::new(()) }; STRIPES],
            faults: AtomicU64::new(0),
            complete: AtomicBool::new(false),
        })
    }

    /// What a VMM process maps: the memfd, not writable.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.read_only.as_fd()
    }

    /// Length of the memory, in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no memory at all.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Figures about the cache.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            pages: self.filled.len(),
            filled: self.filled.count(),
            faults: self.faults.load(Ordering::Relaxed),
        }
    }

    /// Makes sure that the page at `offset` (bytes) is in the memfd, with those
    /// around it. Returns the range of bytes that now is.
    ///
    /// # Errors
    /// When a page cannot be had; `InvalidInput` beyond the end.
    pub fn fill(&self, offset: u64) -> io::Result<Range<u64>> {
        if offset >= self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.faults.fetch_add(1, Ordering::Relaxed);
        let start = offset - offset % self.window;
        let end = (start + self.window).min(self.len);
        self.fill_window(start / PAGE..end.div_ceil(PAGE))?;
        Ok(start..end)
    }

    /// Makes sure that pages are in the memfd, and no others.
    ///
    /// # Errors
    /// As [`Self::fill`], after all others were brought that can be had.
    pub fn bring(&self, pages: Range<u64>) -> io::Result<()> {
        if pages.end > self.filled.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let window = self.window / PAGE;
        let (mut at, mut result) = (pages.start, Ok(()));
        while at < pages.end {
            let end = (at - at % window + window).min(pages.end);
            result = result.and(self.fill_window(at..end));
            at = end;
        }
        result
    }

    /// Whether a page is in the memfd.
    #[must_use]
    pub fn has(&self, page: u64) -> bool {
        self.filled.get(page)
    }

    /// Whether no page of the snapshot is missing: holes of the memfd are zero in the
    /// snapshot, too.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Every page was looked at and is there, or is zero.
    pub(super) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Makes one huge page of the pages in the place of huge page `number`, if most of
    /// them hold something or it is worth it anyway: its holes take up memory then. False
    /// when there is no such place any more.
    pub(super) fn join(&self, number: u64, worth_it: bool) -> bool {
        let first = number * PAGES_PER_HUGE;
        let pages = first..first + PAGES_PER_HUGE;
        if pages.end * PAGE > self.len {
            return false;
        }
        let held = pages.filter(|page| self.has(*page)).count();
        let is_full = u64::try_from(held).unwrap_or(0) * 2 >= PAGES_PER_HUGE;
        if (is_full || worth_it)
            && let Err(error) = memfd::collapse(&self.memfd, first * PAGE)
        {
            // There are none, or memory is short now, or too scattered.
            tracing::debug!(%error, "pages cannot be put together");
        }
        true
    }

    pub(super) fn source(&self) -> &dyn PageSource {
        &*self.source
    }

    /// Reads from the memory; what is not in the memfd is brought there.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let len = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let end = end.ok_or(io::ErrorKind::InvalidInput)?;
        let start = offset - offset % self.window;
        let end = end.next_multiple_of(self.window).min(self.len);
        self.bring(start / PAGE..end.div_ceil(PAGE))?;
        let mut read = 0;
        while read < bytes.len() {
            let at = offset + u64::try_from(read).unwrap_or(0);
            match rustix::io::pread(&self.memfd, &mut bytes[read..], at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
        }
        Ok(())
    }

    /// A copy of the memory, which must be complete, in a file of its own. Takes a while: not
    /// for a task.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        let copy = memfd::create("snapback-memory", self.len)?;
        let mut bytes = vec![0; HUGE_PAGE];
        let mut at = 0;
        while let Some(data) = memfd::data_after(&self.memfd, at, self.len)? {
            at = data.start;
            while at < data.end {
                let left = usize::try_from(data.end - at).unwrap_or(usize::MAX);
                let piece = &mut bytes[..left.min(HUGE_PAGE)];
                let count = rustix::io::pread(&self.memfd, piece, at)?;
                let written = rustix::io::pwrite(&copy, &bytes[..count], at)?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                at += u64::try_from(written).map_err(io::Error::other)?;
            }
        }
        Ok(copy)
    }

    /// Fills what is missing of some pages of one window.
    fn fill_window(&self, pages: Range<u64>) -> io::Result<()> {
        if pages.clone().all(|page| self.filled.get(page)) {
            return Ok(());
        }
        let stripe =
            usize::try_from(pages.start / (self.window / PAGE) % STRIPES as u64).unwrap_or(0);
        // A thread that died while it held the lock left whole pages at most.
        let _one_writer = self.stripes[stripe]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut page = pages.start;
        while page < pages.end {
            let run_end = (page..pages.end)
                .find(|&p| self.filled.get(p))
                .unwrap_or(pages.end);
            if run_end > page {
                self.fill_run(page..run_end)?;
            }
            page = run_end + 1;
        }
        Ok(())
    }

    fn fill_run(&self, pages: Range<u64>) -> io::Result<()> {
        let (start, end) = (pages.start * PAGE, (pages.end * PAGE).min(self.len));
        let len = usize::try_from(end - start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut bytes = vec![0; len];
        self.source.read_at(start, &mut bytes)?;
        let mut written = 0;
        while written < len {
            let at = start + u64::try_from(written).unwrap_or(0);
            written += rustix::io::pwrite(&self.memfd, &bytes[written..], at)?;
        }
        pages.for_each(|page| self.filled.set(page));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Page `n` is full of byte `n`; counts its reads.
    #[derive(Debug, Default)]
    struct Numbers {
        bytes_read: Arc<AtomicU64>,
        broken: bool,
    }

    impl PageSource for Numbers {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            if self.broken {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.bytes_read
                .fetch_add(u64::try_from(bytes.len()).unwrap(), Ordering::Relaxed);
            for (page, chunk) in (offset / PAGE..).zip(bytes.chunks_mut(4096)) {
                chunk.fill(u8::try_from(page % 256).unwrap());
            }
            Ok(())
        }

        fn data_after(&self, offset: u64) -> io::Result<u64> {
            Ok(offset)
        }
    }

    fn byte_at(cache: &MemoryCache, offset: u64) -> u8 {
        let mut byte = [0];
        rustix::io::pread(cache.descriptor(), &mut byte, offset).unwrap();
        byte[0]
    }

    #[test]
    fn a_page_is_read_from_the_source_once() {
        let source = Numbers::default();
        let read = Arc::clone(&source.bytes_read);
        let cache = MemoryCache::cold(40 * PAGE, Box::new(source), 16 * PAGE).unwrap();
        assert_eq!(cache.fill(17 * PAGE + 5).unwrap(), 16 * PAGE..32 * PAGE);
        assert_eq!(cache.fill(31 * PAGE).unwrap(), 16 * PAGE..32 * PAGE);
        assert_eq!(cache.fill(39 * PAGE).unwrap(), 32 * PAGE..40 * PAGE);
        assert_eq!(read.load(Ordering::Relaxed), 24 * PAGE);
        assert_eq!(byte_at(&cache, 17 * PAGE), 17);
        assert_eq!(
            cache.stats(),
            CacheStats {
                pages: 40,
                filled: 24,
                faults: 3
            }
        );
        assert!(cache.fill(40 * PAGE).is_err());
    }

    #[test]
    fn pages_that_a_booted_guest_wrote_are_never_written_again() {
        let memfd = memfd::create("test", 32 * PAGE).unwrap();
        rustix::io::pwrite(&memfd, &[0xee; 4096], 3 * PAGE).unwrap();
        let cache =
            MemoryCache::warm(memfd, 32 * PAGE, Box::new(Numbers::default()), 16 * PAGE).unwrap();
        assert_eq!(cache.stats().filled, 1);
        cache.fill(0).unwrap();
        assert_eq!(
            (byte_at(&cache, 3 * PAGE), byte_at(&cache, 4 * PAGE)),
            (0xee, 4)
        );
    }

    #[test]
    fn a_copy_has_the_same_pages_and_the_same_holes() {
        let source = Box::new(Numbers::default());
        let cache = MemoryCache::cold(2048 * PAGE, source, PAGE).unwrap();
        for page in [3, 4, 700, 2047] {
            cache.bring(page..page + 1).unwrap();
        }
        let copy = cache.copy().unwrap();
        let again = MemoryCache::warm(copy, 2048 * PAGE, Box::new(Numbers::default()), PAGE);
        let again = again.unwrap();
        assert_eq!(again.stats().filled, 4);
        for page in [3, 4, 700, 2047] {
            assert_eq!(byte_at(&again, page * PAGE), byte_at(&cache, page * PAGE));
        }
        rustix::io::pwrite(&again.memfd, b"x", 3 * PAGE).unwrap();
        assert_eq!(
            byte_at(&cache, 3 * PAGE),
            3,
            "the copy is a file of its own"
        );
    }

    #[test]
    fn a_source_that_fails_fills_nothing() {
        let source = Numbers {
            broken: true,
            ..Numbers::default()
        };
        let cache = MemoryCache::cold(16 * PAGE, Box::new(source), PAGE).unwrap();
        assert!(cache.fill(0).is_err());
        assert_eq!(cache.stats().filled, 0);
    }

    #[test]
    fn threads_that_need_the_same_pages_read_them_once() {
        let source = Numbers::default();
        let read = Arc::clone(&source.bytes_read);
        let cache = MemoryCache::cold(256 * PAGE, Box::new(source), 16 * PAGE).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..256).for_each(|page| {
                        cache.fill(page * PAGE).unwrap();
                    })
                });
            }
        });
        assert_eq!(read.load(Ordering::Relaxed), 256 * PAGE);
        assert!((0..256).all(|page| u64::from(byte_at(&cache, page * PAGE)) == page));
    }
}
