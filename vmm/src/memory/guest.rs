//! The memory of one machine: reserved while blank, backed by a file once it
//! boots or is restored, and compared with or put back to that file by page.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_ioctls::VmFd;
use snapback_proto::control::{FaultRange, PageRun};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::ahead::Piece;
use super::compare;
use super::dirty::DirtyPages;
use super::layout::{InvalidSize, Stretch, stretches};
use super::pages::PageSet;
use super::{GuestRam, PAGE_SIZE, Pagemap};
use crate::sys::kvm::set_memory_slot;
use crate::sys::mapping::{BaseView, Reservation, Sharing};
use crate::sys::spare::Spare;
use crate::sys::uffd::Uffd;

/// Guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is out of range.
    #[error(transparent)]
    Size(#[from] InvalidSize),
    /// A step with the kernel failed.
    #[error("guest memory: cannot {step}")]
    Kernel {
        /// Which one.
        step: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// vm-memory does not take the geometry.
    #[error("guest memory: the regions do not fit together")]
    Regions(#[from] vm_memory::GuestRegionCollectionError),
    /// The file that is to lie under the memory is of another size.
    #[error("the memory file has {found} bytes, the machine {expected}")]
    FileSize {
        /// The file's length, in bytes.
        found: u64,
        /// The machine's memory, in bytes.
        expected: u64,
    },
}

fn kernel(step: &'static str) -> impl Fn(io::Error) -> MemoryError {
    move |source| MemoryError::Kernel { step, source }
}

/// The memory of one machine.
#[derive(Debug)]
pub struct GuestMemory {
    parts: Vec<Part>,
    ram: GuestRam,
    writes: Mutex<Writes>,
}

#[derive(Debug)]
struct Part {
    stretch: Stretch,
    reservation: Reservation,
    base: Option<Base>,
}

/// The snapshot's pages, mapped when they are needed first.
#[derive(Debug)]
struct Base {
    file: OwnedFd,
    view: OnceLock<BaseView>,
}

/// What is known of the guest's writes.
#[derive(Debug)]
enum Writes {
    /// In its first life: nothing but what the kernel knows of the mapping.
    Untracked(Arc<Pagemap>),
    /// From its first reset on, KVM notes them.
    Tracked(DirtyPages),
}

impl Part {
    fn length(&self) -> usize {
        self.reservation.len()
    }

    fn pages(&self) -> usize {
        self.length() / PAGE_SIZE
    }

    /// The part of a run of the file's pages that lies here, by its own page numbers, and
    /// how many pages of the run come before it.
    fn clip(&self, run: &PageRun) -> Option<(Range<usize>, usize)> {
        let first = usize::try_from(self.stretch.offset).ok()? / PAGE_SIZE;
        let (begin, pages) = (usize::try_from(run.first), usize::try_from(run.pages));
        let (begin, pages) = (begin.ok()?, pages.ok()?);
        let end = begin.checked_add(pages)?.min(first + self.pages());
        let start = begin.max(first);
        (start < end).then(|| (start - first..end - first, start - begin))
    }

    /// The snapshot's pages under this part.
    fn base(&self) -> io::Result<&BaseView> {
        let base = self.base.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if let Some(view) = base.view.get() {
            return Ok(view);
        }
        let view = BaseView::new(base.file.as_fd(), self.stretch.offset, self.length())?;
        // Two at once map it twice; one of the two stays.
        Ok(base.view.get_or_init(|| view))
    }
}

impl GuestMemory {
    /// Reserves `mib` MiB and points the VM's memory slots to it.
    ///
    /// # Errors
    /// When the size is out of range or the kernel refuses.
    pub fn reserve(vm: &VmFd, mib: u32, pagemap: Arc<Pagemap>) -> Result<Self, MemoryError> {
        let mut parts = Vec::new();
        let mut regions = Vec::new();
        for (slot, stretch) in (0_u16..).zip(stretches(mib)?) {
            let length = usize::try_from(stretch.length).map_err(|_| InvalidSize { mib })?;
            let reservation = Reservation::new(length).map_err(kernel("reserve addresses"))?;
            set_memory_slot(vm, slot, stretch.base, &reservation, false)
                .map_err(kernel("set a memory slot"))?;
            let region = reservation
                .region(GuestAddress(stretch.base))
                .map_err(kernel("describe a region"))?;
            regions.push(region);
            parts.push(Part {
                stretch,
                reservation,
                base: None,
            });
        }
        Ok(Self {
            writes: Mutex::new(Writes::Untracked(pagemap)),
            parts,
            ram: GuestMemoryMmap::from_regions(regions)?,
        })
    }

    /// The memory as devices see it.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Total size, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.stretch.length).sum()
    }

    /// Never: the smallest machine has [`super::layout::MIN_MIB`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where the pager finds this memory in the process.
    ///
    /// # Errors
    /// Never on a 64-bit host.
    pub fn fault_ranges(&self) -> Result<Vec<FaultRange>, MemoryError> {
        self.parts
            .iter()
            .map(|part| {
                let range = part.reservation.range();
                let (address, length) = range.map_err(kernel("name an address"))?;
                Ok(FaultRange {
                    address,
                    length,
                    offset: part.stretch.offset,
                })
            })
            .collect()
    }

    /// Backs the memory with `file` for a machine that boots: its writes go to
    /// the file.
    ///
    /// # Errors
    /// When the file is of another size or the kernel refuses.
    pub fn back_shared(&mut self, file: BorrowedFd<'_>) -> Result<(), MemoryError> {
        self.check_size(file)?;
        self.parts.iter().try_for_each(|part| {
            part.reservation
                .map(file, part.stretch.offset, Sharing::Shared)
                .map_err(kernel("map the memory file"))
        })
    }

    /// Backs the memory with a snapshot's `file`, privately. With a `uffd`, pages that
    /// the file lacks are faulted in through it; without, they are zero.
    ///
    /// # Errors
    /// When the file is of another size or the kernel refuses.
    pub fn back_private(
        &mut self,
        uffd: Option<&Uffd>,
        file: BorrowedFd<'_>,
    ) -> Result<(), MemoryError> {
        self.check_size(file)?;
        for part in &mut self.parts {
            let offset = part.stretch.offset;
            part.reservation
                .map(file, offset, Sharing::Private)
                .map_err(kernel("map the memory file"))?;
            let (address, length) = part
                .reservation
                .range()
                .map_err(kernel("name an address"))?;
            if let Some(uffd) = uffd {
                uffd.register_missing(address, length)
                    .map_err(kernel("register the memory with userfaultfd"))?;
            }
            let file = file.try_clone_to_owned();
            part.base = Some(Base {
                file: file.map_err(kernel("keep the memory file"))?,
                view: OnceLock::new(),
            });
        }
        Ok(())
    }

    /// Makes a whole place of a huge page the machine's own: `spare` takes it, with what the
    /// snapshot has there. It is the file's place `number`. No vCPU has run yet, and the file
    /// must not lack a page of the snapshot. Where there is no such place, `spare` comes back.
    ///
    /// # Errors
    /// What the kernel reports; the memory cannot be used then.
    pub fn own_whole(&mut self, number: u32, spare: Spare) -> Result<Option<Spare>, MemoryError> {
        for part in &self.parts {
            if let (Some(first), Some(_)) = (part.stretch.place(number), &part.base) {
                let taken = spare.take_place(&part.reservation, first);
                taken.map_err(kernel("put a huge page in its place"))?;
                return Ok(None);
            }
        }
        Ok(Some(spare))
    }

    fn check_size(&self, file: BorrowedFd<'_>) -> Result<(), MemoryError> {
        let stat = rustix::fs::fstat(file.as_fd())
            .map_err(|e| kernel("look at the memory file")(e.into()))?;
        let found = u64::try_from(stat.st_size).unwrap_or(0);
        if found != self.len() {
            return Err(MemoryError::FileSize {
                found,
                expected: self.len(),
            });
        }
        Ok(())
    }

    /// An empty set over this memory's pages.
    #[must_use]
    pub fn page_set(&self) -> PageSet {
        PageSet::new(self.parts.iter().map(Part::pages))
    }

    /// Adds the pages to `pages` that the guest, or KVM for it, wrote, and has further
    /// writes named again; see [`DirtyPages::collect`]. The first time, those are all
    /// pages that are the process's own, and KVM notes the writes from then on. The guest
    /// is stopped.
    ///
    /// # Errors
    /// What the kernel reports.
    pub fn take_guest_writes(&self, vm: &VmFd, pages: &mut PageSet) -> io::Result<()> {
        let mut writes = self.writes();
        let pagemap = match &mut *writes {
            Writes::Tracked(dirty) => return dirty.collect(vm, pages),
            Writes::Untracked(pagemap) => Arc::clone(pagemap),
        };
        for (slot, part) in (0_u16..).zip(&self.parts) {
            set_memory_slot(vm, slot, part.stretch.base, &part.reservation, true)?;
            let (address, _) = part.reservation.range()?;
            pagemap.own_pages(address, part.pages(), slot, pages)?;
        }
        let mut dirty = DirtyPages::new(self.parts.iter().map(Part::pages));
        dirty.remember(pages);
        *writes = Writes::Tracked(dirty);
        Ok(())
    }

    /// Pages that are named at every reset.
    #[must_use]
    pub fn hot_pages(&self) -> u64 {
        match &*self.writes() {
            Writes::Untracked(_) => 0,
            Writes::Tracked(dirty) => u64::try_from(dirty.hot()).unwrap_or(u64::MAX),
        }
    }

    fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes pages of the memory file the machine's own ahead, where it has not touched
    /// them: pages that its guest will write. `copies` holds the same as the file's
    /// pages. Numbers are of pages in the file; those that are not there are left out. The
    /// file must not lack a page of the snapshot.
    ///
    /// # Errors
    /// What the kernel reports; some of the pages may be the machine's own then.
    pub fn own_ahead(
        &self,
        uffd: &Uffd,
        copies: &BaseView,
        pieces: &[Piece],
    ) -> Result<(), MemoryError> {
        for part in &self.parts {
            let copied = part.reservation.with_missing(uffd, |missing| {
                pieces.iter().try_for_each(|piece| {
                    let Some((pages, skipped)) = part.clip(&piece.run) else {
                        return Ok(());
                    };
                    let place = usize::try_from(piece.place).map_err(io::Error::other)?;
                    copies.copy_missing(place.saturating_add(skipped), missing, pages)
                })
            });
            copied.map_err(kernel("make pages the machine's own"))?;
        }
        Ok(())
    }

    /// Moves the devices' dirty bits to `pages`. Returns how many there were.
    pub fn take_device_writes(&self, pages: &mut PageSet) -> u64 {
        let mut count = 0;
        for (slot, region) in (0_u16..).zip(self.ram.iter()) {
            region.get_mmap().bitmap().take(|index, word| {
                count += u64::from(word.count_ones());
                pages.insert_word(slot, index, word);
            });
        }
        count
    }

    /// Copies `pages` back from the snapshot; the guest is stopped.
    ///
    /// # Errors
    /// When the machine was not restored from a snapshot.
    pub fn put_back(&self, pages: &PageSet) -> Result<(), MemoryError> {
        let copied = pages.each_run(|slot, run| {
            let part = self.parts.get(usize::from(slot));
            let part = part.ok_or(io::ErrorKind::NotFound)?;
            part.base()?.copy_to(&part.reservation, run)
        });
        copied.map_err(kernel("copy pages back"))
    }

    /// Guest-physical addresses of pages that differ from the snapshot, at most
    /// `limit` of them; the guest is stopped.
    ///
    /// # Errors
    /// When the machine was not restored from a snapshot or the kernel refuses.
    pub fn differences(&self, limit: usize) -> Result<Vec<u64>, MemoryError> {
        let mut found = Vec::new();
        for part in &self.parts {
            let base = part.base().map_err(kernel("map the snapshot's pages"))?;
            let pages = compare::differing(&part.reservation, base, limit - found.len());
            for page in pages.map_err(kernel("compare a page"))? {
                found.push(part.stretch.base + u64::try_from(page * PAGE_SIZE).unwrap_or(0));
            }
        }
        Ok(found)
    }
}
