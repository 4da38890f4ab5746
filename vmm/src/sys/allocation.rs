//! The unit tests' allocator: the system's, which knows how much a thread has at once.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most it ever had.
    static LIVE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn add(size: usize) {
    // A thread that ends has no counter any more.
    let _ = LIVE.try_with(|live| {
        let (now, most) = live.get();
        let now = now.saturating_add(size);
        live.set((now, most.max(now)));
    });
}

fn subtract(size: usize) {
    let _ = LIVE.try_with(|live| {
        let (now, most) = live.get();
        live.set((now.saturating_sub(size), most));
    });
}

// SAFETY: every request goes to the system's allocator as it came, and its answer back;
// the counters are plain cells, which allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        subtract(layout.size());
        // SAFETY: the pointer came from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist while the content moves.
        add(size);
        subtract(layout.size());
        // SAFETY: the pointer came from `System`, with this layout.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Does `work` and tells how many bytes it had on this thread at most, beyond what was
/// there before.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.with(|live| {
        let (now, _) = live.get();
        live.set((now, now));
        now
    });
    let done = work();
    let (_, most) = LIVE.with(Cell::get);
    (done, most - before)
}

#[test]
fn what_is_taken_at_once_is_measured() {
    let ((), most) = measured(|| {
        for _ in 0..10 {
            drop(std::hint::black_box(vec![0_u8; 1000]));
        }
    });
    assert!((1000..2000).contains(&most), "{most}");
}
