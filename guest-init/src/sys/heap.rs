//! Memory that the allocator holds and nobody needs.

/// Gives freed heap memory back to the kernel. Done once, right before the
/// snapshot: what is returned here is neither stored nor restored.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions; it takes the allocator's own locks
    // and gives back only memory that is not allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}
