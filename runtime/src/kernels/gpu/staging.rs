//! Bytes on their way to the device: written to pieces of memory that the host has mapped, and copied from there by commands
//! that go before those of the next submission.
//!
//! wgpu's own way (`Queue::write_buffer`) makes memory for every write and holds it until the device is through, so whoever
//! bounds it has to wait for all that was submitted. Here a piece is used again as soon as the device has read it, and a
//! host that is ahead of the device waits for the oldest piece alone.

use super::device::{Device, Memory};
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Bytes of a piece.
const PIECE_BYTES: u64 = 2 << 20;

/// Pieces at most.
const PIECES: usize = 8;

/// Bytes of weights on their way at most.
pub(super) const STAGED_BYTES: usize = PIECES * PIECE_BYTES as usize;

/// Full pieces that wait for a submission at most. More go alone, so that the device copies one half of the ring while the
/// host fills the other; less would be a submission for every few bytes.
const FULL: usize = PIECES / 2;

/// A piece whose mapping was asked for: it comes when the device is through with it.
const ASKED: u8 = 0;
const MAPPED: u8 = 1;
const REFUSED: u8 = 2;

struct Piece {
    memory: Memory,
    /// How its mapping went. The driver says it whenever somebody asks for news, so it is not behind the ring's lock.
    mapping: Arc<AtomicU8>,
    used: u64,
    /// Which reads it; `None` for a new one.
    read_by: Option<wgpu::SubmissionIndex>,
}

impl Piece {
    fn new(gpu: &Device) -> Result<Piece> {
        use wgpu::BufferUsages as U;
        let memory = gpu.raw(PIECE_BYTES, U::MAP_WRITE | U::COPY_SRC, "bytes on their way")?;
        Ok(Piece { memory, mapping: Arc::default(), used: 0, read_by: None })
    }

    /// Asks for it to be mapped as soon as no command reads it.
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

/// A copy that the next submission begins with.
struct Copy {
    from: wgpu::Buffer,
    from_at: u64,
    to: wgpu::Buffer,
    to_at: u64,
    bytes: u64,
}

pub(super) struct Staging {
    /// Pieces that may be made: fewer where memory did not suffice for more.
    most: usize,
    /// Mapped, and nothing in them.
    free: Vec<Piece>,
    /// What `copies` read, all but the last of them full.
    filled: Vec<Piece>,
    copies: Vec<Copy>,
    /// Submitted, the oldest first, and asked to be mapped again.
    away: VecDeque<Piece>,
    waits: u64,
    /// As if the device were through with nothing before somebody waits: software is through with everything at once.
    #[cfg(test)]
    pub(super) slow: bool,
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

    /// A mapped piece with room for something.
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

    /// An empty piece: one that has come back, a new one, or the oldest of those that are away, waited for.
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
                // The device is short of memory, and goes on with the pieces that are there.
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

    /// Takes back what was mapped again.
    fn back(&mut self) -> Result<()> {
        if self.away.iter().any(|piece| piece.is(REFUSED)) {
            return Err(Error::Device("a piece cannot be mapped".into()));
        }
        let (free, away) = self.away.drain(..).partition::<Vec<_>, _>(|piece| piece.is(MAPPED));
        self.free.extend(free);
        self.away.extend(away);
        Ok(())
    }

    /// Submits the copies, and after them commands.
    fn submit(&mut self, gpu: &Device, commands: Option<wgpu::CommandBuffer>) -> wgpu::SubmissionIndex {
        let copies = (!self.copies.is_empty()).then(|| {
            // Nothing may be mapped that the device reads.
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

/// Asks the device what it is through with, and does not wait.
fn news(gpu: &Device) -> Result<()> {
    match gpu.device.poll(wgpu::PollType::Poll) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::Device(format!("asking the device: {e}"))),
    }
}

impl Device {
    pub(super) fn staging(&self) -> MutexGuard<'_, Staging> {
        // Whoever panicked left copies of which each is whole.
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies bytes (whole words) to memory, after what was submitted and before the commands of the next submission. What
    /// was staged first is written first. No more than [`STAGED_BYTES`] are held a second time.
    pub(super) fn stage(&self, to: &Memory, at: u64, bytes: &[u8]) {
        let staged = self.staging().stage(self, to, at, bytes);
        if let Err(e) = staged {
            self.fail(match e {
                Error::Device(what) => what,
                other => other.to_string(),
            });
        }
    }

    /// Submits what was staged, and commands after it.
    pub(super) fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        self.staging().submit(self, Some(commands))
    }

    /// Waits for a piece of the ring so far.
    pub(super) fn upload_waits(&self) -> u64 {
        self.staging().waits
    }

    /// Drops the ring and what is in it.
    pub(super) fn forget_staged(&self) {
        let mut staging = self.staging();
        *staging = Staging { waits: staging.waits, ..Staging::default() };
    }
}
