//! Memory that nobody uses goes back to the machine: this process stands on every node, and mostly waits.
//!
//! glibc's allocator keeps what was freed, and more of it the larger it was: reading the kernel's BTF at start and each
//! complete list of a large cluster would stay resident for ever. (musl gives back by itself.) And of the binary's code,
//! what ran once at start, or will once in a while, need not be mapped: it is in the page cache and comes back when it
//! runs.

use std::fs;

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

/// After work that took much memory, or ran much code, for a short time. Costs a millisecond or so.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: safe from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
    for Mapping { start, length } in code(&fs::read_to_string("/proc/self/maps").unwrap_or_default()) {
        // SAFETY: pages of a file that nobody can write to through this mapping: dropped, they are read again unchanged.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
}

/// The executable's code, in the form of /proc/PID/maps. Not its other read-only parts: the loader has written to some.
fn code(maps: &str) -> Vec<Mapping> {
    let this = std::env::current_exe().unwrap_or_default();
    let ours = maps.lines().filter(|line| line.contains(" r-xp ") && line.ends_with(&*this.to_string_lossy()));
    let range = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16));
        let (start, end) = (start.ok()?, end.ok()?);
        Some(Mapping { start, length: end.checked_sub(start)? })
    };
    ours.filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_executables_code_counts() {
        let this = std::env::current_exe().unwrap();
        let maps = format!(
            "1000-3000 r--p 00000000 fe:00 1 {0}\n3000-8000 r-xp 00002000 fe:00 1 {0}\n8000-9000 r--p 0 fe:00 1 {0}\n\
             a000-b000 r-xp 00000000 fe:00 2 /lib/libc.so.6\nc000-d000 r-xp 00000000 00:00 0 [vdso]\n",
            this.display()
        );
        assert_eq!(code(&maps), [Mapping { start: 0x3000, length: 0x5000 }]);
    }

    /// Kilobytes of the executable's code that are mapped.
    fn mapped() -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let this = std::env::current_exe().unwrap();
        let code = smaps.split("VmFlags").find(|it| it.contains(" r-xp ") && it.contains(&*this.to_string_lossy()));
        let rss = code.unwrap().lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_ran_is_let_go_and_runs_again() {
        let before = mapped();
        give_back();
        let after = mapped();
        assert!(after < before, "{after} kB instead of {before} kB");
        give_back();
    }
}
