//! Memory that nobody uses goes back to the machine: this process stands on every node, and mostly waits.
//!
//! glibc's allocator keeps what was freed, and more of it the larger it was: reading the kernel's BTF at start and each
//! complete list of a large cluster would stay resident for ever. (musl gives back by itself.)

/// Call before the first thread starts: a program that mostly waits needs no heap per thread, and large blocks are to
/// go back as they are freed.
pub fn keep_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // glibc's own default, but fixed: otherwise it rises to the size of the largest block ever freed.
        const LARGE: libc::c_int = 128 << 10;
        // SAFETY: no other thread exists yet; the values are within what mallopt(3) allows.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 2);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}

/// After work that took much memory for a short time. Costs a millisecond or so.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: safe from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
