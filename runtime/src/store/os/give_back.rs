//! Giving memory back to the system while its mapping stays.

/// Gives the whole pages within `len` bytes at `start` back. Later reads see zeros in newly provided memory. `false` if
/// the system cannot: the memory then stays as it is.
///
/// # Safety
/// The bytes lie in one private, anonymous, writable mapping, and are owned by the caller: while this runs, they are neither
/// read nor written through anything.
pub(super) unsafe fn give_back(start: *mut u8, len: usize) -> bool {
    #[cfg(unix)]
    {
        use rustix::mm;
        let page = rustix::param::page_size();
        // Only whole pages may be named; a partial page at either end may be in use by a neighbour.
        let first = start.align_offset(page);
        let pages = len.saturating_sub(first) / page * page;
        if pages == 0 {
            return true;
        }
        // SAFETY: `first + pages <= len`, so the pointer stays within the caller's bytes.
        let at = unsafe { start.add(first) }.cast();
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            // A large page that is made for a neighbour must not reach in here: the budget counts these bytes elsewhere now. The
            // advice of one part divides the mapping, and large pages do not cross that.
            // SAFETY: the pages lie in the caller's mapping; the advice changes how memory is provided, not what is in it.
            let _ = unsafe { mm::madvise(at, pages, mm::Advice::LinuxNoHugepage) };
            // SAFETY: the mapping is private and anonymous, so the pages are zero afterwards, and nobody else has a view of
            // them, as the caller promises.
            unsafe { mm::madvise(at, pages, mm::Advice::LinuxDontNeed) }.is_ok()
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            // Other systems take advice of this kind as a hint for later. A new mapping in the place of the old one is exact.
            use mm::{MapFlags, ProtFlags};
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
            // SAFETY: the pages lie in the caller's mapping, which is private, anonymous and writable as the new one is; nobody
            // has a view of them, as the caller promises. Where the system refuses, the old pages stay.
            unsafe { mm::mmap_anonymous(at, pages, prot, flags) }.is_ok()
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (start, len);
        false
    }
}

/// Tells the system that these bytes, which may have been given back before, are in use again. Large pages mean fewer
/// TLB misses in the kernels' loops; a system without them is merely slower.
///
/// # Safety
/// The bytes lie in one private, anonymous, writable mapping.
pub(super) unsafe fn take_again(start: *mut u8, len: usize) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let page = rustix::param::page_size();
        let first = start.align_offset(page);
        let pages = len.saturating_sub(first) / page * page;
        if pages > 0 {
            // SAFETY: the pages lie within the caller's bytes; the advice changes how memory is provided, not what is in it.
            let _ = unsafe {
                rustix::mm::madvise(start.add(first).cast(), pages, rustix::mm::Advice::LinuxHugepage)
            };
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (start, len);
}
