//! Opens an engine from a file or another source of tensors. Makes a plan first, then loads what it says on
//! the processor of the options, or on the CPU if that is not available.

use super::prepare::prepare;
use super::{Engine, Inner, Served};
use crate::convert::source::Source;
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::dollop;
use crate::model::file::NestedFile;
use crate::model::{Model, Tensors};
use crate::quant::Matrix;
use crate::session::failover::Computing;
use crate::session::options::EngineOptions;
use crate::session::parts::Parts;
use crate::session::plan::{MemoryPlan, RefinementPlan};
use crate::session::processor::{self, Adapter};
use crate::session::streaming;
use crate::session::tensors::Reference;
use crate::store::{self, Place};
use crate::telemetry::Progress;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

impl Engine {
    /// Opens a model: a Dollop file, a GGUF file (any part of a split one) or a Hugging Face folder. The
    /// latter two are converted once, into the folder [`EngineOptions::cache`].
    ///
    /// If everything fits the budget, or there is none, weights are used from the file's mapping and nothing
    /// is loaded. Otherwise, the always-used weights are loaded and the experts are streamed. On a CPU, an
    /// embedding that is not also the output head is then read row by row.
    ///
    /// # Errors
    /// `Malformed`, `Unsupported` or `Io`, naming the file; `Budget` for a budget that is too small;
    /// `Invalid` for options that contradict each other; `Device` if the options require a GPU and none can
    /// be used. `Unsupported` for a foreign model if no cache folder is named.
    pub fn open(path: impl AsRef<Path>, options: &EngineOptions) -> Result<Engine> {
        Engine::open_with(path, options, &mut |_| ControlFlow::Continue(()))
    }

    /// [`Engine::open`] with progress, because a conversion may take minutes. It calls `progress` on this
    /// thread, which may end it with [`ControlFlow::Break`].
    ///
    /// # Errors
    /// As [`Engine::open`], and `Cancelled`.
    pub fn open_with(
        path: impl AsRef<Path>,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Engine> {
        Engine::open_place(&Place::Named(prepare(path.as_ref(), options, progress)?), options)
    }

    /// [`Engine::open`] for part of an open file: `len` bytes from `offset`, a multiple of 64. For systems
    /// that pass open files instead of names, such as Android for documents and assets. Uses direct reads if
    /// the system can open the file again.
    ///
    /// # Errors
    /// As [`Engine::open`], and `Invalid` if the file has no such part.
    pub fn open_file(file: File, offset: u64, len: u64, options: &EngineOptions) -> Result<Engine> {
        Engine::open_place(&Place::part(file, offset, len)?, options)
    }

    fn open_place(place: &Place, options: &EngineOptions) -> Result<Engine> {
        let file = map(place)?;
        let open = |adapter| {
            let mut parts = Parts::new(&file, options)?;
            parts.read_inputs(place, &file, options)?;
            let tables = streaming::tables(&file, parts.layers())?;
            let plan = parts.plan(options, adapter, &tables)?;
            if plan.streaming {
                let streams = streaming::open(place, &file, tables, &parts, &plan, options)?;
                let inner = parts.streamed(&file, options, adapter, plan, streams)?;
                if adapter.is_some() {
                    upload(&inner.processors.first)?;
                }
                Ok(inner)
            } else {
                let refine = |all, refinements: RefinementPlan, level| {
                    let granule = streaming::granule(&file);
                    streaming::refiner(place, granule, tables, all, refinements, level, options)
                };
                let inner = parts.resident(&file, options, adapter, plan, refine)?;
                let first = &inner.processors.first;
                first.processor.warm_up(&first.model)?;
                if adapter.is_some() {
                    release(&first.model);
                }
                if let Served::Refined(refiner) = &inner.served {
                    refiner.start(&mut |refinement| first.processor.refine(refinement))?;
                }
                Ok(inner)
            }
        };
        let inner = |adapter| {
            let mut inner = open(adapter)?;
            inner.file = Some(file.identity()?);
            Ok(inner)
        };
        Engine::on(options, inner).map(|e| e.log_opened(place.name())).map_err(|e| e.at(place.name()))
    }

    /// Plans the memory that [`Engine::open`] would use. Loads nothing, but converts a foreign model as that
    /// does.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn plan(path: impl AsRef<Path>, options: &EngineOptions) -> Result<MemoryPlan> {
        Engine::plan_with(path, options, &mut |_| ControlFlow::Continue(()))
    }

    /// [`Engine::plan`] with progress, as [`Engine::open_with`].
    ///
    /// # Errors
    /// As [`Engine::open_with`].
    pub fn plan_with(
        path: impl AsRef<Path>,
        options: &EngineOptions,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<MemoryPlan> {
        Engine::plan_place(&Place::Named(prepare(path.as_ref(), options, progress)?), options)
    }

    /// [`Engine::plan`] for what [`Engine::open_file`] opens.
    ///
    /// # Errors
    /// As [`Engine::open_file`].
    pub fn plan_file(file: File, offset: u64, len: u64, options: &EngineOptions) -> Result<MemoryPlan> {
        Engine::plan_place(&Place::part(file, offset, len)?, options)
    }

    fn plan_place(place: &Place, options: &EngineOptions) -> Result<MemoryPlan> {
        let file = map(place)?;
        let plan = |adapter| {
            let mut parts = Parts::new(&file, options)?;
            parts.read_inputs(place, &file, options)?;
            parts.plan(options, adapter, &streaming::tables(&file, parts.layers())?)
        };
        Ok(processor::choose(options.backend, plan).map_err(|e| e.at(place.name()))?.0)
    }

    /// Opens a foreign model unquantized, in f32, as a reference for measurements. It takes four bytes per
    /// weight.
    ///
    /// # Errors
    /// As [`Engine::open`].
    #[doc(hidden)]
    pub fn open_reference(path: &Path, options: &EngineOptions) -> Result<Engine> {
        let source = Source::open(path)?;
        if dollop::is_dollop(source.metadata()) {
            let what = "the reference is computed from unquantized weights; name the source model, not its Dollop file";
            return Err(Error::unsupported(what).at(path));
        }
        Engine::of_tensors(&Reference(source), path, options)
    }

    /// Opens an engine on any source of tensors, with all of them in memory.
    pub(in crate::session) fn of_tensors(
        tensors: &dyn Tensors,
        path: &Path,
        options: &EngineOptions,
    ) -> Result<Engine> {
        let options = EngineOptions { memory: None, ..options.clone() };
        let open = |adapter| {
            let parts = Parts::new(tensors, &options)?;
            let plan = parts.plan(&options, adapter, &[])?;
            let refine = |_, _, _| unreachable!("without a budget nothing is lowered");
            let inner = parts.resident(tensors, &options, adapter, plan, refine)?;
            let first = &inner.processors.first;
            first.processor.warm_up(&first.model)?;
            Ok(inner)
        };
        Engine::on(&options, open).map(|e| e.log_opened(path)).map_err(|e| e.at(path))
    }

    /// Opens an engine on the processor that the options select.
    fn on(options: &EngineOptions, open: impl Fn(Option<Adapter>) -> Result<Inner>) -> Result<Engine> {
        let (mut inner, note) = processor::choose(options.backend, open)?;
        inner.note = note;
        Ok(Engine(Arc::new(inner)))
    }

    /// Logs the model, its processor and its memory plan.
    fn log_opened(self, name: &Path) -> Engine {
        let info = self.info();
        log::info!(
            "{}: {} ({}, {} layers, {} experts) on {}, {}",
            name.display(),
            info.name,
            info.architecture,
            info.layers,
            info.experts,
            info.backend,
            info.mode
        );
        log::debug!("memory: {}", self.now().plan);
        self
    }
}

/// Uploads the always-used weights to a device, and releases each page of the mapping afterwards. With
/// streamed experts, there is no memory to hold anything twice. We do not run a token for this, because it
/// would read experts.
fn upload(first: &Computing) -> Result<()> {
    for together in first.model.weights.matrices() {
        if let Some(gpu) = first.processor.accelerator() {
            gpu.bring_matrices(&together)?;
        }
        together.into_iter().for_each(release_matrix);
    }
    Ok(())
}

/// Releases the mapping's pages once a device has a copy. With unified memory, they would take the space
/// twice.
fn release(model: &Model) {
    release_experts(model);
    model.weights.matrices().into_iter().flatten().for_each(release_matrix);
}

/// Releases the pages of mapped experts, and returns their bytes.
pub(in crate::session) fn release_experts(model: &Model) -> u64 {
    let mut bytes = 0;
    for layer in 0..model.spec.layers.len() {
        let experts = model.experts.all(layer).unwrap_or_default();
        for matrix in experts.iter().flat_map(Expert::matrices) {
            release_matrix(matrix);
            bytes += if matches!(matrix, Matrix::Nested(_)) { matrix.bytes() as u64 } else { 0 };
        }
    }
    bytes
}

fn release_matrix(m: &Matrix) {
    if let Matrix::Nested(n) = m {
        n.planes().iter().for_each(|plane| store::release(plane));
    }
}

fn map(place: &Place) -> Result<NestedFile> {
    NestedFile::new(place.map()?).map_err(|e| e.at(place.name()))
}
