//! Giving memory back to the system while its mapping stays.

/// Gives the whole pages within `len` bytes at `start` back to the system. Later reads see zeros in newly
/// provided memory. Returns `false` if the system cannot do it; the memory then stays as it is.
///
/// # Safety
/// The bytes lie in one private, anonymous, writable mapping, and the caller owns them: during the call, they
/// are neither read nor written through any pointer.
pub(super) unsafe fn give_back(start: *mut u8, len: usize) -> bool {
    #[cfg(unix)]
    {
        use rustix::mm;
        let page = rustix::param::page_size();
        // Only whole pages can be given back; a neighbour may use a partial page at either end.
        let first = start.align_offset(page);
        let pages = len.saturating_sub(first) / page * page;
        if pages == 0 {
            return true;
        }
        // SAFETY: `first + pages <= len`, so the pointer stays within the caller's bytes.
        let at = unsafe { start.add(first) }.cast();
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            // A neighbour's large page must not extend into these bytes, because the budget uses them
            // elsewhere now. Advice for a part splits the mapping, and large pages do not cross the split.
            // SAFETY: the pages lie in the caller's mapping; the advice changes how memory is provided, not its contents.
            let _ = unsafe { mm::madvise(at, pages, mm::Advice::LinuxNoHugepage) };
            // SAFETY: the mapping is private and anonymous, so the pages are zero afterwards, and nothing
            // else refers to them, as the caller guarantees.
            unsafe { mm::madvise(at, pages, mm::Advice::LinuxDontNeed) }.is_ok()
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            // Other systems treat such advice as a hint for later. Replacing the mapping by a new one is exact.
            use mm::{MapFlags, ProtFlags};
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
            // SAFETY: the pages lie in the caller's mapping, which is private, anonymous and writable, like the new
            // one. Nothing else refers to them, as the caller guarantees. If the system refuses, the old pages stay.
            unsafe { mm::mmap_anonymous(at, pages, prot, flags) }.is_ok()
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (start, len);
        false
    }
}

/// Declares that these bytes, which may have been given back before, are in use again. Requests large pages,
/// with which kernels have fewer TLB misses; a system without them is only slower.
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
            // SAFETY: the pages lie within the caller's bytes; the advice changes how memory is provided, not its contents.
            let _ = unsafe {
                rustix::mm::madvise(start.add(first).cast(), pages, rustix::mm::Advice::LinuxHugepage)
            };
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (start, len);
}
