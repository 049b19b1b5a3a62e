//! Uploads: bytes are written to pieces of mapped host memory, and copied from there by commands that precede
//! those of the next submission.
//!
//! wgpu's own `Queue::write_buffer` allocates memory for every write, and frees it when the device is done.
//! To bound that memory, we would have to wait for all submissions. Here a piece is reused as soon as the
//! device has read it, and a host that is ahead of the device waits only for the oldest piece.

use super::{Device, Memory};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Bytes of a piece.
const PIECE_BYTES: u64 = 2 << 20;

/// The most pieces.
const PIECES: usize = 8;

/// The most bytes of weights in flight.
pub(in crate::kernels::gpu) const STAGED_BYTES: usize = PIECES * PIECE_BYTES as usize;

/// The most full pieces that wait for a submission. With more, they are submitted alone, so that the device
/// copies one half of the ring while the host fills the other. A lower limit would submit after every few bytes.
const FULL: usize = PIECES / 2;

/// A mapping was requested. It completes when the device is done with the piece.
const ASKED: u8 = 0;
const MAPPED: u8 = 1;
const REFUSED: u8 = 2;

struct Piece {
    memory: Memory,
    /// The state of its mapping. The driver sets it during any poll, so it is not behind the ring's lock.
    mapping: Arc<AtomicU8>,
    used: u64,
    /// The submission that reads it; `None` for a new piece.
    read_by: Option<wgpu::SubmissionIndex>,
}

impl Piece {
    fn new(gpu: &Device) -> Result<Piece> {
        use wgpu::BufferUsages as U;
        let memory = gpu.raw(PIECE_BYTES, U::MAP_WRITE | U::COPY_SRC, "bytes on their way")?;
        Ok(Piece { memory, mapping: Arc::default(), used: 0, read_by: None })
    }

    /// Requests a mapping, which completes when no command reads the piece.
    fn map(&mut self) {
        self.used = 0;
        self.mapping.store(ASKED, Ordering::Release);
        let mapping = self.mapping.clone();
        self.memory.buffer.map_async(wgpu::MapMode::Write, .., move |result| {
            mapping.store(if result.is_ok() { MAPPED } else { REFUSED }, Ordering::Release);
        });
    }

    fn is(&self, mapping: u8) -> bool {
        self.mapping.load(Ordering::Acquire) == mapping
    }
}

/// A copy at the beginning of the next submission.
struct Copy {
    from: wgpu::Buffer,
    from_at: u64,
    to: wgpu::Buffer,
    to_at: u64,
    bytes: u64,
}

pub(in crate::kernels::gpu) struct Staging {
    /// The most pieces to create: fewer after an allocation has failed.
    most: usize,
    /// Mapped and empty.
    free: Vec<Piece>,
    /// The pieces that `copies` read. All but the last are full.
    filled: Vec<Piece>,
    copies: Vec<Copy>,
    /// Submitted pieces, oldest first. Their new mapping is requested.
    away: VecDeque<Piece>,
    waits: u64,
    /// For tests: treats the device as busy until a wait, since a software device is done at once.
    #[cfg(test)]
    pub(in crate::kernels::gpu) slow: bool,
}

impl Default for Staging {
    fn default() -> Staging {
        Staging {
            most: PIECES,
            free: Vec::new(),
            filled: Vec::new(),
            copies: Vec::new(),
            away: VecDeque::new(),
            waits: 0,
            #[cfg(test)]
            slow: false,
        }
    }
}

impl Staging {
    fn stage(&mut self, gpu: &Device, to: &Memory, at: u64, bytes: &[u8]) -> Result<()> {
        gpu.check()?;
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let piece = self.piece(gpu)?;
            let left = (PIECE_BYTES - piece.used) as usize;
            let (now, later) = rest.split_at(left.min(rest.len()));
            let (from, len) = (piece.used, now.len() as u64);
            let view = piece.memory.buffer.get_mapped_range_mut(from..from + len);
            view.map_err(|e| Error::Device(format!("writing to a piece: {e}")))?.copy_from_slice(now);
            piece.used = (from + len).next_multiple_of(wgpu::MAP_ALIGNMENT);
            let source = piece.memory.buffer.clone();
            let copy = Copy { from: source, from_at: from, to: to.buffer.clone(), to_at: at, bytes: len };
            self.copies.push(copy);
            at += len;
            rest = later;
        }
        Ok(())
    }

    /// A mapped piece with free space.
    fn piece(&mut self, gpu: &Device) -> Result<&mut Piece> {
        if self.filled.last().is_none_or(|piece| piece.used == PIECE_BYTES) {
            if self.filled.len() >= FULL {
                self.submit(gpu, None);
            }
            let piece = self.free(gpu)?;
            self.filled.push(piece);
        }
        Ok(self.filled.last_mut().expect("has room or was just added"))
    }

    /// An empty piece: a returned one, a new one, or after a wait the oldest one in flight.
    fn free(&mut self, gpu: &Device) -> Result<Piece> {
        #[cfg(test)]
        let slow = self.slow;
        #[cfg(not(test))]
        let slow = false;
        if self.free.is_empty() && !self.away.is_empty() && !slow {
            news(gpu)?;
            self.back()?;
        }
        if let Some(piece) = self.free.pop() {
            return Ok(piece);
        }
        let made = self.filled.len() + self.away.len();
        if made < self.most {
            match Piece::new(gpu) {
                Ok(mut piece) => {
                    piece.map();
                    news(gpu)?;
                    if piece.is(MAPPED) {
                        return Ok(piece);
                    }
                    self.away.push_front(piece);
                }
                // Memory on the device is low: continue with the existing pieces.
                Err(_) if made > 0 && gpu.check().is_ok() => self.most = made,
                Err(e) => return Err(e),
            }
        }
        if !self.filled.is_empty() {
            self.submit(gpu, None);
        }
        self.waits += 1;
        gpu.wait(self.away.front().and_then(|oldest| oldest.read_by.clone()))?;
        self.back()?;
        self.free.pop().ok_or_else(|| Error::Device("a piece was not mapped again".into()))
    }

    /// Takes back the pieces that are mapped again.
    fn back(&mut self) -> Result<()> {
        if self.away.iter().any(|piece| piece.is(REFUSED)) {
            return Err(Error::Device("a piece cannot be mapped".into()));
        }
        let (free, away) = self.away.drain(..).partition::<Vec<_>, _>(|piece| piece.is(MAPPED));
        self.free.extend(free);
        self.away.extend(away);
        Ok(())
    }

    /// Submits the copies, followed by commands.
    fn submit(&mut self, gpu: &Device, commands: Option<wgpu::CommandBuffer>) -> wgpu::SubmissionIndex {
        let copies = (!self.copies.is_empty()).then(|| {
            // A buffer must not be mapped while the device reads it.
            self.filled.iter().for_each(|piece| piece.memory.buffer.unmap());
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            for Copy { from, from_at, to, to_at, bytes } in self.copies.drain(..) {
                encoder.copy_buffer_to_buffer(&from, from_at, &to, to_at, bytes);
            }
            encoder.finish()
        });
        let index = gpu.queue.submit(copies.into_iter().chain(commands));
        for mut piece in self.filled.drain(..) {
            piece.read_by = Some(index.clone());
            piece.map();
            self.away.push_back(piece);
        }
        index
    }
}

/// Polls the device without waiting.
fn news(gpu: &Device) -> Result<()> {
    match gpu.device.poll(wgpu::PollType::Poll) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::Device(format!("asking the device: {e}"))),
    }
}

impl Device {
    pub(in crate::kernels::gpu) fn staging(&self) -> MutexGuard<'_, Staging> {
        // If a panic poisoned the lock, the ring still contains only complete copies.
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies bytes (whole words) to memory, after earlier submissions and before the commands of the next
    /// one. Writes keep their order. At most [`STAGED_BYTES`] exist twice.
    pub(in crate::kernels::gpu) fn stage(&self, to: &Memory, at: u64, bytes: &[u8]) {
        let staged = self.staging().stage(self, to, at, bytes);
        if let Err(e) = staged {
            self.fail(match e {
                Error::Device(what) => what,
                other => other.to_string(),
            });
        }
    }

    /// Submits the staged writes, followed by commands.
    pub(in crate::kernels::gpu) fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        self.staging().submit(self, Some(commands))
    }

    /// The number of waits for a piece of the ring.
    pub(in crate::kernels::gpu) fn upload_waits(&self) -> u64 {
        self.staging().waits
    }

    /// Drops the ring with its contents.
    pub(in crate::kernels::gpu) fn forget_staged(&self) {
        let mut staging = self.staging();
        *staging = Staging { waits: staging.waits, ..Staging::default() };
    }
}
