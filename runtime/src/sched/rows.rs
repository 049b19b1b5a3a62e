//! Reads rows of an embedding from the file when tokens need them, instead of holding it in memory.
//!
//! We use positioned reads, because a mapping of a file that is truncated would end the program. They go through the
//! page cache, which accepts hints for many short pieces: a row is spread over about six, all over the file. We read
//! the tile of 16 rows that contains the row, the smallest unit for kernels. Runs on the computing thread. Nothing is
//! cached, not even by the system, which gets a hint to drop the bytes: a token that occurs again is read again.

use crate::error::{Error, Result};
use crate::experts::{RowReads, Rows};
use crate::quant::{Nested, TILE_ROWS, Tile};
use crate::store::{Storage, read_again};
use crate::telemetry::{Trace, Track};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The most tokens whose rows are requested at once: enough to keep a disk busy with parallel reads, and at
/// most a few megabytes in the page cache.
const AT_ONCE: usize = 64;
const _: () = assert!(AT_ONCE <= 1 << u8::BITS);

/// The embedding in a file.
pub(crate) struct FileRows {
    path: PathBuf,
    storage: Arc<dyn Storage>,
    /// The offset of its planes.
    offset: u64,
    tile: Tile,
    room: Mutex<Room>,
    trace: Option<Arc<Trace>>,
    bytes: AtomicU64,
    wait_ns: AtomicU64,
    retries: AtomicU64,
}

/// Buffers for reads, so that decoding allocates nothing.
struct Room {
    /// A tile.
    tile: Vec<u8>,
    /// One row of the tile.
    row: Vec<f32>,
}

impl FileRows {
    /// Rows of `embed`, whose planes follow one another in `storage`, from `offset` on.
    pub(crate) fn new(
        path: &Path,
        storage: Arc<dyn Storage>,
        offset: u64,
        embed: &Nested,
        trace: Option<Arc<Trace>>,
    ) -> FileRows {
        let tile = Tile::of(embed);
        let room = Room { tile: vec![0; tile.bytes()], row: vec![0.0; tile.matrix().cols] };
        let (bytes, wait_ns, retries) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let (path, room) = (path.to_path_buf(), Mutex::new(room));
        FileRows { path, storage, offset, tile, room, trace, bytes, wait_ns, retries }
    }

    /// Bytes of memory for reading rows of `embed`.
    pub(crate) fn memory(embed: &Nested) -> usize {
        Tile::of(embed).bytes() + 4 * embed.shape().cols
    }

    fn read_tile(&self, index: usize, to: &mut [u8]) -> Result<()> {
        let start = Instant::now();
        let mut bytes = 0;
        for (from, piece) in self.tile.pieces(index) {
            bytes += piece.len() as u64;
            read_again(&*self.storage, self.offset + from as u64, &mut to[piece], None, &self.retries)
                .map_err(|e| Error::io(&self.path, e))?;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.wait_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Rows for FileRows {
    fn count(&self) -> usize {
        self.tile.matrix().rows
    }

    fn read(&self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let Room { tile: bytes, row } = &mut *room;
        let start = Instant::now();
        for (n, some) in tokens.chunks(AT_ONCE).enumerate() {
            // In file order, and every tile once.
            let mut order: [u8; AT_ONCE] = std::array::from_fn(|i| i as u8);
            let order = &mut order[..some.len()];
            order.sort_unstable_by_key(|&i| some[usize::from(i)]);
            let tile_of = |i: u8| some[usize::from(i)] as usize / TILE_ROWS;
            let same = |a: &u8, b: &u8| tile_of(*a) == tile_of(*b);
            for tile in order.chunk_by(same).map(|of| tile_of(of[0])) {
                for (from, piece) in self.tile.pieces(tile) {
                    self.storage.will_read(self.offset + from as u64, piece.len());
                }
            }
            for of in order.chunk_by(same) {
                self.read_tile(tile_of(of[0]), bytes)?;
                for &i in of {
                    let i = usize::from(i);
                    self.tile.dequantize_row(bytes, some[i] as usize, row);
                    each(n * AT_ONCE + i, row);
                }
            }
        }
        if let Some(trace) = &self.trace {
            trace.span(Track::Compute(0), start, || "reading the embedding".into());
        }
        Ok(())
    }

    fn reads(&self) -> RowReads {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RowReads { bytes: of(&self.bytes), wait_ns: of(&self.wait_ns), retries: of(&self.retries) }
    }
}
