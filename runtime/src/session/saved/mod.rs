//! Saves, loads and forks sessions: their tokens, and the memory that was computed from them.
//!
//! A saved session belongs to a model and to how it is computed ([`Identity`]), not to a budget, a backend or
//! a context: keys and values have the same order on disk for all. It is written under another name and then
//! renamed (R6). Reading trusts no byte (R5): lengths are checked against the file's before anything is
//! allocated, and every byte has a checksum.

mod chat;
mod flow;
mod header;
mod memory;

pub(super) use header::Identity;

use super::engine::Engine;
use super::timeline::{Session, SessionOptions};
use crate::convert::partial::Partial;
use crate::error::{Error, Result};
use flow::{In, Out};
use header::{FIXED, Header};
use memory::{Extent, Layer};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// Buffer size for files. Longer reads and writes bypass the buffer.
const BUFFER_BYTES: usize = 64 << 10;

/// Replaces a file's name in errors.
const UNNAMED: &str = "saved session";

impl Session {
    /// Saves the session to a file: its tokens, and the keys, values and states computed from them. An
    /// existing file is replaced only when the new one is complete. Returns the bytes written.
    ///
    /// [`Engine::load_session`] loads it. On the same backend and at exact precision, logits are then
    /// byte-identical to those of a session that never stopped.
    ///
    /// # Errors
    /// `Io`; `Unsupported` for a model that was not read from a Dollop file. The session is unchanged.
    pub fn save(&self, path: &Path) -> Result<u64> {
        self.save_with(path, &[])
    }

    /// [`Session::save`] to any writer. After an error, what was written is not a saved session.
    ///
    /// # Errors
    /// As [`Session::save`], and `Device` if a GPU is lost meanwhile. The caller may then try again.
    pub fn write_to(&self, to: &mut dyn Write) -> Result<u64> {
        self.write_with(to, Path::new(UNNAMED), &[])
    }

    fn save_with(&self, path: &Path, notes: &[u8]) -> Result<u64> {
        let write = || {
            let partial = Partial::new(path)?;
            let mut file = BufWriter::with_capacity(BUFFER_BYTES, partial.file()?);
            let bytes = self.write_with(&mut file, path, notes)?;
            // Sync before renaming. Otherwise, a power loss could destroy both the old session and this one.
            file.get_ref().sync_all().map_err(|e| Error::io(path, e))?;
            drop(file);
            partial.keep(path)?;
            log::debug!("{}: {} tokens saved, {bytes} bytes", path.display(), self.tokens().len());
            Ok(bytes)
        };
        match write() {
            // The GPU's memory is lost, but the tokens are not.
            Err(Error::Device(_)) if self.state.is_gpu() => write(),
            other => other,
        }
    }

    /// The part of the layers' memory that can be read, and the positions of recurrent states.
    fn readable(&self) -> (Extent, Vec<usize>) {
        let gone = self.state.is_gpu() && self.engine().lost().is_some();
        match if gone { 0 } else { self.held.min(self.tokens().len()) } {
            0 => (Extent { held: 0, earliest: 0, marks: 0 }, Vec::new()),
            held => {
                let marks = self.state.marks(held);
                (Extent { held, earliest: self.state.earliest(), marks: marks.len() }, marks)
            }
        }
    }

    fn header(&self, extent: Extent, notes: usize) -> Result<Header> {
        let on = self.engine().processors().of(self.state.is_gpu());
        Ok(Header {
            identity: self.engine().identity()?,
            layers: on.model.spec.layers.len(),
            number_bytes: on.model.weights.number_bytes(),
            tokens: self.tokens().len(),
            extent,
            notes,
        })
    }

    /// Bytes that [`Session::save`] would write.
    ///
    /// # Errors
    /// As [`Session::save`].
    #[doc(hidden)]
    pub fn saved_bytes(&self) -> Result<u64> {
        let spec = &self.engine().model().spec;
        Ok(self.header(self.readable().0, 0)?.file_bytes(spec).unwrap_or(u64::MAX))
    }

    fn write_with(&self, to: &mut dyn Write, name: &Path, notes: &[u8]) -> Result<u64> {
        let on = self.engine().processors().of(self.state.is_gpu());
        let (extent, marks) = self.readable();
        let header = self.header(extent, notes.len())?;
        let mut out = Out::new(to, name);
        out.raw(&header.bytes())?;
        out.put(bytemuck::cast_slice(self.tokens()))?;
        out.seal()?;
        out.put(notes)?;
        out.seal()?;
        let marks: Vec<u64> = marks.into_iter().map(|at| at as u64).collect();
        out.put(bytemuck::cast_slice(&marks))?;
        out.seal()?;
        let both = (&*self.state, &*self.state);
        let mut bytes = memory::buffer(on, both, extent);
        for layer in 0..header.layers {
            for piece in memory::pieces(on, both, layer, extent) {
                let bytes = &mut bytes[..piece.bytes()];
                self.noting_loss(Layer { layer, held: extent.held }.read(&*self.state, &piece, bytes))?;
                out.put(bytes)?;
            }
            out.seal()?;
        }
        let bytes = out.finish()?;
        debug_assert_eq!(header.file_bytes(&on.model.spec), Some(bytes));
        Ok(bytes)
    }

    /// Marks the device as lost if reading from it failed.
    fn noting_loss<T>(&self, read: Result<T>) -> Result<T> {
        if let (Err(Error::Device(why)), true) = (&read, self.state.is_gpu()) {
            self.engine().processors().lose(why);
        }
        read
    }

    /// Creates a second session with the same content, to continue one prefix in several ways. Computes
    /// nothing.
    ///
    /// # Errors
    /// `Invalid` if the budget has no room for another session; as [`Engine::session`].
    pub fn fork(&self) -> Result<Session> {
        let options = SessionOptions { context: Some(self.context()), chunk: Some(self.state.chunk()) };
        let mut fork = self.engine().session(options)?;
        match self.copy_to(&mut fork) {
            // The device was lost. The new session computes the tokens again.
            Err(Error::Device(_)) if self.state.is_gpu() => fork = self.engine().session(options)?,
            other => other?,
        }
        fork.tokens.extend_from_slice(self.tokens());
        Ok(fork)
    }

    /// Replaces the content of this session with a saved one, as [`Engine::load_session`] would load it.
    ///
    /// # Errors
    /// As [`Engine::load_session`]. The session is then unchanged or empty.
    #[doc(hidden)]
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let engine = self.engine.clone();
        let (mut file, len) = open_saved(path)?;
        let mut from = In::new(&mut file, path);
        let mut read = || {
            let header = engine.read_header(&mut from, Some(len))?;
            if header.tokens > self.context() {
                return Err(Error::ContextFull { needed: header.tokens, limit: self.context() });
            }
            let tokens = engine.read_tokens(&mut from, &header)?;
            from.take_long(header.notes)?;
            from.check("notes")?;
            self.rewind(0);
            self.read_memory(&mut from, &header)?;
            self.tokens.extend(tokens);
            Ok(())
        };
        read().map_err(|e: Error| {
            if self.tokens.is_empty() {
                self.rewind(0);
            }
            e.at(path)
        })
    }

    /// Reads the layers' memory, to the end of the file.
    fn read_memory(&mut self, from: &mut In, header: &Header) -> Result<()> {
        let (engine, extent) = (self.engine.clone(), header.extent);
        let marks = read_marks(from, extent)?;
        let on = engine.processors().of(self.state.is_gpu());
        let mut bytes = memory::buffer(on, (&*self.state, &*self.state), extent);
        for layer in 0..header.layers {
            for piece in memory::pieces(on, (&*self.state, &*self.state), layer, extent) {
                let bytes = &mut bytes[..piece.bytes()];
                from.take(bytes)?;
                Layer { layer, held: extent.held }.write(&mut *self.state, &piece, bytes)?;
            }
            from.check(&format!("memory of layer {layer}"))?;
        }
        from.end()?;
        self.restored(extent, &marks);
        Ok(())
    }

    /// Records that the layers' memory was filled.
    fn restored(&mut self, extent: Extent, marks: &[usize]) {
        self.state.restored(extent.held, extent.earliest, marks);
        self.held = extent.held;
    }

    fn copy_to(&self, fork: &mut Session) -> Result<()> {
        let processors = self.engine().processors();
        let from = processors.of(self.state.is_gpu());
        let (extent, marks) = self.readable();
        let mut bytes = memory::buffer(from, (&*self.state, &*fork.state), extent);
        for layer in 0..from.model.spec.layers.len() {
            for piece in memory::pieces(from, (&*self.state, &*fork.state), layer, extent) {
                let (layer, bytes) = (Layer { layer, held: extent.held }, &mut bytes[..piece.bytes()]);
                self.noting_loss(layer.read(&*self.state, &piece, bytes))?;
                layer.write(&mut *fork.state, &piece, bytes)?;
            }
        }
        fork.restored(extent, &marks);
        Ok(())
    }
}

impl Engine {
    /// Loads a session that [`Session::save`] or [`Chat::save`](super::Chat::save) wrote, perhaps in another
    /// process. The context comes from `options`, not from the saved session.
    ///
    /// A session may continue on another backend. Its next logits are then as accurate as if that backend had
    /// computed the session from the start. Keys and values that were lost with a GPU are computed again from
    /// the tokens.
    ///
    /// # Errors
    /// `Malformed` for a damaged file, `Unsupported` for another version, model or precision, each with the
    /// reason; `ContextFull` if its tokens do not fit; `Io`; as [`Engine::session`].
    pub fn load_session(&self, path: &Path, options: SessionOptions) -> Result<Session> {
        Ok(self.load_with(path, options)?.0)
    }

    /// [`Engine::load_session`] from any reader. Reads it to its end.
    ///
    /// # Errors
    /// As [`Engine::load_session`].
    pub fn read_session(&self, from: &mut dyn Read, options: SessionOptions) -> Result<Session> {
        Ok(self.read_with(from, Path::new(UNNAMED), None, options)?.0)
    }

    fn load_with(&self, path: &Path, options: SessionOptions) -> Result<(Session, Vec<u8>)> {
        let (mut file, len) = open_saved(path)?;
        self.read_with(&mut file, path, Some(len), options).map_err(|e| e.at(path))
    }

    /// The tokens of a saved session that this engine could load. Does not read the rest of the file.
    ///
    /// # Errors
    /// As [`Engine::load_session`].
    #[doc(hidden)]
    pub fn saved_tokens(&self, path: &Path) -> Result<Vec<u32>> {
        let (mut file, len) = open_saved(path)?;
        let mut from = In::new(&mut file, path);
        let read = |from: &mut In| {
            let header = self.read_header(from, Some(len))?;
            self.read_tokens(from, &header)
        };
        read(&mut from).map_err(|e| e.at(path))
    }

    /// Reads the session, and a conversation's notes. `len` is the file's length, if known.
    fn read_with(
        &self,
        from: &mut dyn Read,
        name: &Path,
        len: Option<u64>,
        options: SessionOptions,
    ) -> Result<(Session, Vec<u8>)> {
        let mut from = In::new(from, name);
        let header = self.read_header(&mut from, len)?;
        let context = options.context.unwrap_or(self.memory_plan().context);
        if header.tokens > context {
            return Err(Error::ContextFull { needed: header.tokens, limit: context });
        }
        let tokens = self.read_tokens(&mut from, &header)?;
        let notes = from.take_long(header.notes)?;
        from.check("notes")?;
        let mut session = self.session(options)?;
        session.read_memory(&mut from, &header)?;
        session.tokens.extend(tokens);
        log::debug!("{}: {} tokens restored, {} held", name.display(), session.tokens.len(), session.held);
        Ok((session, notes))
    }

    fn read_tokens(&self, from: &mut In, header: &Header) -> Result<Vec<u32>> {
        let bytes = from.take_long(4 * header.tokens)?;
        from.check("tokens")?;
        let vocab = self.model().weights.vocab();
        let tokens: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(bad) => {
                let what = format!("token {bad} is outside the vocabulary of {vocab}");
                Err(Error::malformed("tokens", what))
            }
            None => Ok(tokens),
        }
    }

    /// Reads the header. Checks that it fits this engine, and that it matches the file's length.
    fn read_header(&self, from: &mut In, len: Option<u64>) -> Result<Header> {
        let mut fixed = [0; FIXED];
        from.raw(&mut fixed)?;
        let mut rest = vec![0; Header::rest(&fixed)?];
        from.raw(&mut rest)?;
        let header = Header::parse(&fixed, &rest)?;
        let (is, own) = (&header.identity, self.identity()?);
        let foreign = |what: &str| Err(Error::unsupported(format!("this session {what}")));
        if is.model[0] != own.model[0] {
            return foreign("was saved with another model");
        }
        if is.model[1] != own.model[1] {
            return foreign(
                "was saved with other weights of this model: it was converted in another way since",
            );
        }
        if is.manner != own.manner {
            return foreign(&format!("was saved at {}, and this engine runs at {}", is.manner, own.manner));
        }
        let on = self.processors().now();
        let spec = &on.model.spec;
        if (header.layers, header.number_bytes) != (spec.layers.len(), on.model.weights.number_bytes()) {
            return foreign("has keys and values of another shape");
        }
        let states = spec.is_recurrent();
        let marks = header.extent.marks;
        if (marks > 0) != (states && header.extent.held > 0) || marks > spec.slots() {
            return Err(flow::damaged("header"));
        }
        match (header.file_bytes(spec), len) {
            (Some(bytes), Some(len)) if bytes != len => {
                let what = format!("it has {len} bytes and was saved with {bytes}: it was cut or damaged");
                Err(Error::malformed("file", what))
            }
            (None, _) => Err(flow::damaged("header")),
            _ => Ok(header),
        }
    }
}

/// Opens a file that may be a saved session, and returns its length.
fn open_saved(path: &Path) -> Result<(BufReader<File>, u64)> {
    let open = || {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        Ok((file, meta))
    };
    let (file, meta) = open().map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::malformed("file", "this is no saved session").at(path));
    }
    Ok((BufReader::with_capacity(BUFFER_BYTES, file), meta.len()))
}

/// Reads the positions of recurrent states. They are in order, and the last is the current position.
fn read_marks(from: &mut In, extent: Extent) -> Result<Vec<usize>> {
    let bytes = from.take_long(8 * extent.marks)?;
    from.check("marks")?;
    let at = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
    let marks: Vec<usize> =
        bytes.chunks_exact(8).map(|b| usize::try_from(at(b)).unwrap_or(usize::MAX)).collect();
    let ordered = marks.first() != Some(&0) && marks.is_sorted_by(|a, b| a < b);
    match marks.last() {
        Some(&last) if !ordered || last != extent.held => Err(flow::damaged("marks")),
        _ => Ok(marks),
    }
}
