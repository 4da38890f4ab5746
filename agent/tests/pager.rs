//! The pager on a real userfaultfd: the "microVM" is this process, which maps a
//! snapshot's memory privately and touches it from threads.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use snapback::pager::{
    MemoryCache, PAGE, PageSource, Pager, Recording, RegisterError, Registration,
    WORKING_SET_FILE_NAME, WorkingSet,
};
use snapback_proto::control::FaultRange;
use snapback_vmm::sys::uffd::Uffd;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

const PAGES: u64 = 512;
const LEN: u64 = PAGES * PAGE;
const WAIT: Duration = Duration::from_secs(20);

/// Page `n` is full of the byte `n % 251 + 1`; page 300 cannot be read.
#[derive(Debug)]
struct Pattern;

const BROKEN: u64 = 300;

fn expected(page: u64) -> u8 {
    u8::try_from(page % 251 + 1).unwrap()
}

impl PageSource for Pattern {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        for (page, chunk) in (offset / PAGE..).zip(bytes.chunks_mut(4096)) {
            if page == BROKEN {
                return Err(io::ErrorKind::InvalidData.into());
            }
            chunk.fill(expected(page));
        }
        Ok(())
    }

    fn data_after(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

struct Vm {
    memory: Arc<MmapRegion>,
    failures: Arc<Mutex<mpsc::Receiver<io::Error>>>,
    _registration: Registration,
    /// As the VMM keeps one, so that a missing page never turns into zeroes.
    uffd: Uffd,
}

fn device() -> OwnedFd {
    let mut options = File::options();
    options.read(true).write(true);
    options.open("/dev/userfaultfd").unwrap().into()
}

fn private_mapping(cache: &MemoryCache) -> MmapRegion {
    let file = File::from(cache.descriptor().try_clone_to_owned().unwrap());
    let (read, write, private) = (1, 2, 2);
    let len = usize::try_from(LEN).unwrap();
    MmapRegion::build(Some(FileOffset::new(file, 0)), len, read | write, private).unwrap()
}

fn start(device: &OwnedFd, pager: &Pager, cache: &Arc<MemoryCache>) -> Vm {
    let memory = private_mapping(cache);
    let address = u64::try_from(memory.as_ptr().addr()).unwrap();
    let uffd = Uffd::from_device(device.as_fd()).unwrap();
    uffd.register_missing(address, LEN).unwrap();
    let (sender, failures) = mpsc::channel();
    let registration = pager
        .register(
            uffd.as_fd().try_clone_to_owned().unwrap(),
            vec![FaultRange {
                address,
                length: LEN,
                offset: 0,
            }],
            Arc::clone(cache),
            move |error| sender.send(error).unwrap(),
        )
        .unwrap();
    Vm {
        memory: Arc::new(memory),
        failures: Arc::new(Mutex::new(failures)),
        _registration: registration,
        uffd,
    }
}

fn byte<B: BitmapSlice>(slice: &VolatileSlice<'_, B>, page: u64) -> u8 {
    let at = usize::try_from(page * PAGE + 17).unwrap();
    slice.read_obj(at).unwrap()
}

/// Runs `work` on a thread; fails instead of hanging with it.
fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    result
        .recv_timeout(WAIT)
        .expect("a page fault was never answered")
}

fn read_pages(vm: &Vm, pages: Vec<u64>) -> Vec<u8> {
    let memory = Arc::clone(&vm.memory);
    bounded(move || {
        let slice = memory.as_volatile_slice();
        pages.into_iter().map(|page| byte(&slice, page)).collect()
    })
}

#[test]
fn pages_arrive_when_they_are_touched_and_only_once_for_all() {
    let device = device();
    let pager = Pager::start(2).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), 16 * PAGE).unwrap());
    let first = start(&device, &pager, &cache);
    let pages: Vec<u64> = (0..PAGES)
        .step_by(7)
        .filter(|page| page / 16 != BROKEN / 16)
        .collect();
    let right: Vec<u8> = pages.iter().copied().map(expected).collect();
    assert_eq!(read_pages(&first, pages.clone()), right);
    let faults = cache.stats().faults;
    assert!(faults > 0);

    // What the first one writes is its own.
    let memory = Arc::clone(&first.memory);
    bounded(move || memory.as_volatile_slice().write_obj(0xaa_u8, 17).unwrap());
    // A second one finds every page in the cache: no fault reaches the pager.
    let second = start(&device, &pager, &cache);
    assert_eq!(read_pages(&second, pages), right);
    assert_eq!(cache.stats().faults, faults);
    assert_eq!(read_pages(&first, vec![0]), [0xaa]);
}

#[test]
fn a_first_access_that_writes_keeps_the_rest_of_the_page() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    let vm = start(&device, &pager, &cache);
    let memory = Arc::clone(&vm.memory);
    bounded(move || {
        memory
            .as_volatile_slice()
            .write_obj(0xaa_u8, 5 * 4096)
            .unwrap()
    });
    assert_eq!(read_pages(&vm, vec![5]), [expected(5)]);
    assert_eq!(cache.stats().filled, 1);
}

#[test]
fn many_threads_of_many_vms_touch_the_same_pages_at_once() {
    let device = device();
    let pager = Arc::new(Pager::start(2).unwrap());
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), 16 * PAGE).unwrap());
    let vms: Vec<_> = (0..4).map(|_| start(&device, &pager, &cache)).collect();
    let (sender, results) = mpsc::channel();
    for vm in &vms {
        for _ in 0..3 {
            let (memory, sender) = (Arc::clone(&vm.memory), sender.clone());
            std::thread::spawn(move || {
                let slice = memory.as_volatile_slice();
                let right = (0..BROKEN - 20).all(|page| byte(&slice, page) == expected(page));
                sender.send(right)
            });
        }
    }
    for _ in 0..12 {
        assert!(
            results
                .recv_timeout(WAIT)
                .expect("a page fault was never answered")
        );
    }
}

#[test]
fn a_page_that_cannot_be_had_ends_the_vm_and_is_never_zeroes() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    let vm = start(&device, &pager, &cache);
    let other = start(&device, &pager, &cache);
    let (sender, seen) = mpsc::channel();
    let memory = Arc::clone(&vm.memory);
    // This thread waits for its page until the test's process ends.
    std::thread::spawn(move || sender.send(byte(&memory.as_volatile_slice(), BROKEN)));
    let failures = Arc::clone(&vm.failures);
    let error = bounded(move || failures.lock().unwrap().recv().unwrap());
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    // Its neighbour goes on.
    assert_eq!(read_pages(&other, vec![1]), [expected(1)]);
    // The stuck thread's memory must stay mapped.
    std::mem::forget(vm);
}

/// As [`Pattern`], but the pager fails at page 300 instead of being told that it cannot be had.
#[derive(Debug)]
struct Panicking;

impl PageSource for Panicking {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let broken = BROKEN * PAGE;
        let end = offset + u64::try_from(bytes.len()).unwrap();
        assert!(
            !(offset..end).contains(&broken),
            "a bug in the source of pages"
        );
        Pattern.read_at(offset, bytes)
    }

    fn data_after(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
}

/// Touches a page on a thread that waits for it until the test's process ends.
fn touch_in_vain(vm: &Vm, page: u64) -> mpsc::Receiver<u8> {
    let (sender, seen) = mpsc::channel();
    let memory = Arc::clone(&vm.memory);
    std::thread::spawn(move || sender.send(byte(&memory.as_volatile_slice(), page)));
    seen
}

fn failure_of(vm: &Vm) -> io::Error {
    let failures = Arc::clone(&vm.failures);
    bounded(move || failures.lock().unwrap().recv().unwrap())
}

#[test]
fn a_bug_while_one_vm_is_served_ends_that_vm_and_no_other() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Panicking), PAGE).unwrap());
    let (vm, other) = (
        start(&device, &pager, &cache),
        start(&device, &pager, &cache),
    );
    let seen = touch_in_vain(&vm, BROKEN);
    assert_eq!(failure_of(&vm).to_string(), "the pager failed at it");
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(read_pages(&other, vec![1]), [expected(1)]);
    assert_eq!(pager.threads(), 1);
    std::mem::forget(vm);
}

#[test]
fn a_pager_thread_that_ends_ends_every_vm_in_its_care_and_takes_no_other() {
    let device = device();
    let pager = Pager::start(2).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Panicking), PAGE).unwrap());
    let vms = [(); 3].map(|()| start(&device, &pager, &cache));
    assert_eq!(read_pages(&vms[0], vec![1]), [expected(1)]);
    // One waits for a page that fails, the others for nothing: between two faults. What a
    // prefetch fails at is nobody's in particular.
    let broken = u32::try_from(BROKEN).unwrap();
    pager.prefetch(&cache, &WorkingSet::of([broken], PAGES));
    for vm in &vms {
        assert_eq!(failure_of(vm).to_string(), "the pager has ended");
    }
    assert_eq!(pager.threads(), 0);
    // A page that nobody brings any more is waited for, and never zeroes.
    let seen = touch_in_vain(&vms[1], 77);
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    let uffd = Uffd::from_device(device.as_fd()).unwrap();
    let refused = pager.register(
        uffd.as_fd().try_clone_to_owned().unwrap(),
        Vec::new(),
        Arc::clone(&cache),
        |_| {},
    );
    assert!(matches!(refused.unwrap_err(), RegisterError::Ended));
    std::mem::forget(vms);
}

#[test]
fn a_userfaultfd_that_its_vmm_made_blocking_stalls_nobody() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    let (vm, other) = (
        start(&device, &pager, &cache),
        start(&device, &pager, &cache),
    );
    let blocking = rustix::fs::OFlags::empty();
    rustix::fs::fcntl_setfl(&vm.uffd, blocking).unwrap();
    // The kernel does not wait for such a descriptor; whoever has one is ended.
    let seen = touch_in_vain(&vm, 5);
    assert_eq!(failure_of(&vm).kind(), io::ErrorKind::BrokenPipe);
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(read_pages(&other, vec![1]), [expected(1)]);
    std::mem::forget(vm);
}

#[test]
fn a_read_that_finds_no_fault_does_not_wait_for_one_whatever_the_descriptors_flags() {
    // The flag may change between the news of a fault and the read. Older kernels (before
    // 6.10) cannot read without waiting; there, the jail alone keeps the flag as it is.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(6), Some(10)) {
        return;
    }
    let uffd = Uffd::from_device(device().as_fd()).unwrap();
    rustix::fs::fcntl_setfl(&uffd, rustix::fs::OFlags::empty()).unwrap();
    let read = bounded(move || uffd.read_events(&mut [snapback_vmm::sys::uffd::Fault::default()]));
    assert_eq!(read.unwrap(), 0);
}

#[test]
fn holes_of_a_booted_guests_memory_are_filled_when_they_are_touched() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let memfd = snapback_vmm::sys::memfd::create("test", LEN).unwrap();
    rustix::io::pwrite(&memfd, &[0xee; 4096], 3 * PAGE).unwrap();
    let cache = MemoryCache::warm(memfd, LEN, Box::new(Pattern), PAGE).unwrap();
    let cache = Arc::new(cache);
    let vm = start(&device, &pager, &cache);
    assert_eq!(read_pages(&vm, vec![3, 4]), [0xee, expected(4)]);
    assert_eq!(cache.stats().faults, 1);
}

#[test]
fn what_a_vmm_process_reports_is_checked() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    let register = |fd: OwnedFd, ranges| {
        pager
            .register(fd, ranges, Arc::clone(&cache), |_| {})
            .map(|_| ())
            .unwrap_err()
    };
    let uffd = || {
        let uffd = Uffd::from_device(device.as_fd()).unwrap();
        uffd.as_fd().try_clone_to_owned().unwrap()
    };
    let range = |address, length, offset| {
        vec![FaultRange {
            address,
            length,
            offset,
        }]
    };
    for ranges in [
        range(0, LEN + PAGE, 0),
        range(0, PAGE, LEN),
        range(1, PAGE, 0),
        range(0, PAGE, u64::MAX - PAGE + 1),
        range(u64::MAX - PAGE + 1, 2 * PAGE, 0),
    ] {
        assert!(matches!(
            register(uffd(), ranges),
            RegisterError::Range { .. }
        ));
    }
    let (_, pipe) = std::io::pipe().unwrap();
    let error = register(pipe.into(), range(0, LEN, 0));
    assert!(matches!(error, RegisterError::NotAUserfaultfd));
}

/// Pages all over the memory, as a run touches them: none near the broken one.
fn scattered() -> Vec<u64> {
    let order = (0..PAGES).map(|n| n * 37 % PAGES);
    order
        .filter(|page| page % 5 == 0 && page / 16 != BROKEN / 16)
        .collect()
}

/// Waits until the pager threads brought `pages` into the memory.
fn until_there(cache: &MemoryCache, pages: &[u64]) {
    let begin = std::time::Instant::now();
    while !pages.iter().all(|page| cache.has(*page)) {
        assert!(begin.elapsed() < WAIT, "the pages were never brought");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The faults of one run over `pages` on an empty memory.
fn faults_of_a_run(pager: &Pager, pages: &[u64], prefetch: Option<&WorkingSet>) -> u64 {
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    if let Some(set) = prefetch {
        pager.prefetch(&cache, set);
        until_there(&cache, pages);
    }
    let vm = start(&device(), pager, &cache);
    let right: Vec<u8> = pages.iter().copied().map(expected).collect();
    assert_eq!(read_pages(&vm, pages.to_vec()), right);
    cache.stats().faults
}

#[test]
fn a_recorded_run_is_what_was_touched_in_order_whatever_the_cache_has_already() {
    let pager = Pager::start(1).unwrap();
    let touched: Vec<u64> = scattered();
    for warm in [false, true] {
        let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), 16 * PAGE).unwrap());
        if warm {
            for page in (0..PAGES).filter(|page| page / 16 != BROKEN / 16) {
                cache.fill(page * PAGE).unwrap();
            }
        }
        let (own, recording) = Recording::begin(&cache).unwrap();
        let vm = start(&device(), &pager, &own);
        let right: Vec<u8> = touched.iter().copied().map(expected).collect();
        assert_eq!(read_pages(&vm, touched.clone()), right);
        let narrow = touched.iter().map(|page| u32::try_from(*page).unwrap());
        assert_eq!(recording.finish(), WorkingSet::of(narrow, PAGES));
        // The snapshot's own memory has them, too.
        assert!(touched.iter().all(|page| cache.has(*page)));
    }
}

#[test]
fn a_cold_run_with_its_working_set_has_at_most_a_quarter_of_the_faults() {
    let pager = Pager::start(2).unwrap();
    let pages = scattered();
    let narrow = pages.iter().map(|page| u32::try_from(*page).unwrap());
    let set = WorkingSet::of(narrow, PAGES);
    let without = faults_of_a_run(&pager, &pages, None);
    let with = faults_of_a_run(&pager, &pages, Some(&set));
    assert!(without > 50, "{without}");
    assert!(4 * with <= without, "{with} faults instead of {without}");
}

#[test]
fn faults_are_answered_while_a_prefetch_goes_on() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let pages: Vec<u32> = (0..280).collect();
    let set = WorkingSet::of(pages, PAGES);
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    let vm = start(&device, &pager, &cache);
    pager.prefetch(&cache, &set);
    let last: Vec<u64> = (0..280).rev().collect();
    let right: Vec<u8> = last.iter().copied().map(expected).collect();
    assert_eq!(read_pages(&vm, last), right);
}

#[test]
fn a_page_that_cannot_be_prefetched_ends_only_the_vm_that_needs_it() {
    let device = device();
    let pager = Pager::start(1).unwrap();
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    let broken = u32::try_from(BROKEN).unwrap();
    let set = WorkingSet::of(broken - 10..broken + 10, PAGES);
    pager.prefetch(&cache, &set);
    until_there(&cache, &[BROKEN - 10]);
    let (vm, other) = (
        start(&device, &pager, &cache),
        start(&device, &pager, &cache),
    );
    assert_eq!(
        read_pages(&other, vec![BROKEN - 10]),
        [expected(BROKEN - 10)]
    );
    let (sender, seen) = mpsc::channel();
    let memory = Arc::clone(&vm.memory);
    // This thread waits for its page until the test's process ends.
    std::thread::spawn(move || sender.send(byte(&memory.as_volatile_slice(), BROKEN)));
    let failures = Arc::clone(&vm.failures);
    let error = bounded(move || failures.lock().unwrap().recv().unwrap());
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(seen.recv_timeout(Duration::from_millis(200)).is_err());
    assert_eq!(read_pages(&other, vec![BROKEN + 1]), [expected(BROKEN + 1)]);
    std::mem::forget(vm);
}

#[test]
fn a_hostile_working_set_costs_reads_and_nothing_else() {
    let pager = Pager::start(1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Made for a larger memory, and pointing to a page that cannot be read.
    let larger = WorkingSet::of((0..4000).rev(), 4000);
    let path = folder.path().join(WORKING_SET_FILE_NAME);
    larger.write(&path).unwrap();
    let set = WorkingSet::read(&path, PAGES).unwrap().unwrap();
    assert_eq!(u64::try_from(set.pages()).unwrap(), PAGES);
    let pages: Vec<u64> = scattered();
    assert!(faults_of_a_run(&pager, &pages, Some(&set)) <= 1);
    // One that is used as it is, although it does not fit.
    let cache = Arc::new(MemoryCache::cold(LEN, Box::new(Pattern), PAGE).unwrap());
    pager.prefetch(&cache, &larger);
    pager.prefetch(&cache, &WorkingSet::of([7], PAGES));
    until_there(&cache, &[7]);
    std::fs::write(&path, b"SNAPWS").unwrap();
    assert!(WorkingSet::read(&path, PAGES).is_err());
}
