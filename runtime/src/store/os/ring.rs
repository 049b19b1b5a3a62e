//! Asynchronous reads with Linux's io_uring: no thread waits for them, and many are in flight.
//!
//! During a read the [`Ring`] owns the slab, until the kernel reports completion; dropping a ring waits for
//! that. On other systems no ring can be created.

#[cfg(target_os = "linux")]
pub use linux::Ring;
#[cfg(not(target_os = "linux"))]
pub use none::Ring;

#[cfg(target_os = "linux")]
mod linux {
    use crate::store::Slab;
    use io_uring::squeue::Flags;
    use io_uring::{IoUring, Probe, opcode, types};
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;

    /// Reads of one file, up to a fixed number in flight.
    pub struct Ring {
        ring: IoUring,
        file: File,
        /// The storage's offset in the file.
        base: u64,
        /// Indexed by slot: the slab that the kernel reads into.
        flying: Vec<Option<Slab>>,
        /// Free slots.
        free: Vec<usize>,
    }

    impl Ring {
        /// A ring for up to `depth` reads in flight, of a file from byte `base` on.
        ///
        /// # Errors
        /// If the kernel has no io_uring, or does not permit it.
        pub fn new(file: &File, base: u64, depth: usize) -> io::Result<Ring> {
            let depth = depth.clamp(1, 1024);
            // All prepared entries are submitted, even if one of them is invalid.
            let ring = match IoUring::builder().setup_submit_all().build(depth as u32) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => IoUring::new(depth as u32)?,
                other => other?,
            };
            let mut probe = Probe::new();
            ring.submitter().register_probe(&mut probe)?;
            if !probe.is_supported(opcode::Read::CODE) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            let flying = (0..depth).map(|_| None).collect();
            Ok(Ring { ring, file: file.try_clone()?, base, flying, free: (0..depth).rev().collect() })
        }

        /// The most reads that may be prepared or in flight.
        pub fn depth(&self) -> usize {
            self.flying.len()
        }

        /// The number of reads that are prepared or in flight.
        pub fn flying(&self) -> usize {
            self.flying.len() - self.free.len()
        }

        /// Prepares a read of the whole slab, which [`Ring::submit`] starts, and returns its slot. The slot
        /// is not reused before [`Ring::done`] has returned it. With `next`, the kernel starts the read
        /// prepared after this one only when this one completes.
        ///
        /// # Errors
        /// The slab, if all slots are in use.
        pub fn read(&mut self, offset: u64, mut slab: Slab, next: bool) -> Result<usize, Slab> {
            let Some(place) = self.free.pop() else { return Err(slab) };
            let len = u32::try_from(slab.len()).unwrap_or(u32::MAX);
            // If this read fails, the linked one still runs.
            let flags = if next { Flags::IO_HARDLINK } else { Flags::empty() };
            let read = opcode::Read::new(types::Fd(self.file.as_raw_fd()), slab.as_mut_ptr(), len)
                .offset(self.base.saturating_add(offset))
                .build()
                .flags(flags)
                .user_data(place as u64);
            // SAFETY: the entry refers to a file that lives as long as the ring, and to memory that the slab owns
            // exclusively. `flying` keeps the slab, untouched, until a completion has reported its slot. `drop` waits
            // for that, or leaks the slab. If the ring itself is leaked, so is the slab, which keeps its memory mapped.
            match unsafe { self.ring.submission().push(&read) } {
                Ok(()) => {
                    self.flying[place] = Some(slab);
                    Ok(place)
                }
                Err(_) => {
                    self.free.push(place);
                    Err(slab)
                }
            }
        }

        /// Submits the prepared reads. Entries that the kernel rejects now, for lack of memory, are submitted
        /// again at the next call.
        ///
        /// # Errors
        /// Errors that are not transient.
        pub fn submit(&mut self) -> io::Result<()> {
            passing(self.ring.submit())
        }

        /// Submits the prepared reads and waits until one completes. Call it only while a read is in flight.
        ///
        /// # Errors
        /// Errors that are not transient.
        pub fn wait(&mut self) -> io::Result<()> {
            passing(self.ring.submit_and_wait(1))
        }

        /// A completed read, if there is one: its slot, its slab, and the number of bytes read.
        pub fn done(&mut self) -> Option<(usize, Slab, io::Result<usize>)> {
            let done = self.ring.completion().next()?;
            let place = done.user_data() as usize;
            let slab = self.flying.get_mut(place)?.take()?;
            self.free.push(place);
            let read = match done.result() {
                n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
                n => Ok((n as usize).min(slab.len())),
            };
            Some((place, slab, read))
        }
    }

    /// Treats transient errors as success.
    fn passing(result: io::Result<usize>) -> io::Result<()> {
        use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
        match result {
            Err(e) if matches!(e.kind(), Interrupted | WouldBlock | ResourceBusy) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    impl Drop for Ring {
        fn drop(&mut self) {
            while self.flying() > 0 {
                if self.wait().is_err() {
                    // The kernel may still write to this memory, so no other slab may get it.
                    self.flying.drain(..).for_each(std::mem::forget);
                    return;
                }
                while self.done().is_some() {}
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod none {
    use crate::store::Slab;
    use std::fs::File;
    use std::io;

    /// Never constructed: this system has no io_uring.
    pub enum Ring {}

    #[allow(missing_docs, clippy::missing_errors_doc)]
    impl Ring {
        pub fn new(_: &File, _: u64, _: usize) -> io::Result<Ring> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub fn depth(&self) -> usize {
            match *self {}
        }

        pub fn flying(&self) -> usize {
            match *self {}
        }

        pub fn read(&mut self, _: u64, _: Slab, _: bool) -> Result<usize, Slab> {
            match *self {}
        }

        pub fn submit(&mut self) -> io::Result<()> {
            match *self {}
        }

        pub fn wait(&mut self) -> io::Result<()> {
            match *self {}
        }

        pub fn done(&mut self) -> Option<(usize, Slab, io::Result<usize>)> {
            match *self {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::Ring;
    use crate::store::{Arena, End};
    use std::fs::File;

    /// Where io_uring is not permitted, as in some containers, the test is skipped.
    fn ring(file: &File, depth: usize) -> Option<Ring> {
        Ring::new(file, 0, depth).ok()
    }

    #[test]
    fn what_is_read_is_what_is_there_and_every_slab_comes_back() {
        let path = std::env::temp_dir().join(format!("dollop-ring-{}", std::process::id()));
        let bytes: Vec<u8> = (0..100_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let arena = Arena::new(16 * 4096, 4096).unwrap();
        let slab = || arena.alloc(4096, End::Low).unwrap();
        let Some(mut r) = ring(&file, 3) else { return };
        let at = [0, 50_000, 97_000];
        let places: Vec<usize> =
            at.iter().map(|&at| r.read(at, slab(), at != 97_000).ok().unwrap()).collect();
        assert_eq!((r.depth(), r.flying()), (3, 3));
        assert!(r.read(0, slab(), false).is_err(), "a fourth");
        let mut seen = 0;
        while seen < 3 {
            r.wait().unwrap();
            while let Some((place, slab, read)) = r.done() {
                let at = at[places.iter().position(|&p| p == place).unwrap()] as usize;
                let want = &bytes[at..(at + 4096).min(bytes.len())];
                assert_eq!(read.unwrap(), want.len(), "short at the end of the file");
                assert!(slab[..want.len()] == *want);
                seen += 1;
            }
        }
        assert_eq!((r.flying(), arena.free_bytes()), (0, 16 * 4096));
        // In flight, or not even submitted, when the ring is dropped.
        for submit in [true, false] {
            for _ in 0..3 {
                assert!(r.read(4096, slab(), false).is_ok());
            }
            if submit {
                r.submit().unwrap();
            }
            drop(std::mem::replace(&mut r, ring(&file, 3).unwrap()));
            assert_eq!(arena.free_bytes(), 16 * 4096);
        }
        // A directory cannot be read.
        let mut r = ring(&File::open(std::env::temp_dir()).unwrap(), 1).unwrap();
        assert!(r.read(0, slab(), false).is_ok());
        r.wait().unwrap();
        assert!(r.done().unwrap().2.is_err());
    }
}
