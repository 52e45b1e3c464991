//! Settings of glibc's allocator, as safe functions.
//!
//! Starting on a large network needs several times the memory that stays in use: pages of records, lists of writes. By
//! default glibc keeps freed memory, and places ever larger buffers in the heap, where small objects pin them. Other C
//! libraries return memory to the kernel.
#![allow(unsafe_code, reason = "mallopt(3) and malloc_trim(3) are C functions")]

/// Makes the allocator return large buffers to the kernel and use one heap for all threads. Must be called before large
/// allocations.
pub(crate) fn configure_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers and ignores unknown settings.
    unsafe {
        // Otherwise the threshold grows with the largest freed buffer.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns the free parts of the heap to the kernel.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes an integer and releases only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
