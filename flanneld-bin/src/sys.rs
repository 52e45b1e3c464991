//! What only the C library offers, each as a safe function: the settings of its allocator.
//!
//! By default its allocator suits a daemon badly that does nearly all of its work when it starts. A start on a large
//! network uses several times the memory that stays in use: pages of records, lists of writes. glibc keeps what is freed,
//! and takes ever larger buffers from the heap, where small objects that stay pin them; so the daemon would stay as large
//! as it ever was. Other C libraries give memory back by themselves.
#![allow(unsafe_code, reason = "the only module of the daemon that speaks to the C library")]

/// Lets large buffers go back to the kernel when they are freed, and all threads share one heap: only the file in which
/// the network is remembered is written on another one. To be called before memory is used.
pub(crate) fn keep_no_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers are passed and no memory (mallopt(3)). A setting that the library does not know is ignored.
    unsafe {
        // A fixed threshold; otherwise it grows with the largest buffer that was ever freed.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back to the kernel what is free within the heap.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a number is passed and no memory; only what is free is given back (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
