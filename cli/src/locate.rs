//! Finds and opens the model that the command line names.

use crate::args::EngineArgs;
use crate::note;
use crate::output::{Bar, Unit};
use crate::streaming::Watch;
use crate::{Failure, interrupt, inventory};
use dollop::convert::{Outline, Purpose, outline};
use dollop::{Chat, Engine, EngineOptions, Error, Overflow, Progress, Session};
use std::env;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The file name of the model that comes with Dollop.
const DEFAULT_MODEL: &str = "smollm2-moe.gguf";

/// Opens a model; a foreign one is converted first. The returned `Watch` writes the requested files at the
/// end.
pub fn open(model: Option<&Path>, args: &EngineArgs, purpose: Purpose) -> Result<(Engine, Watch), Failure> {
    open_with(model, args, args.options(), purpose)
}

/// [`open`] with options that differ from the command line's.
pub fn open_with(
    model: Option<&Path>,
    args: &EngineArgs,
    mut options: EngineOptions,
    purpose: Purpose,
) -> Result<(Engine, Watch), Failure> {
    // Without a cache folder, kernels are compiled every time.
    options.pipelines = cache_folder().ok();
    let engine = converting(model, &mut options, purpose, &mut |path, options| Engine::open(path, options))?;
    if let Some(note) = engine.note() {
        note!("{note}");
    }
    #[cfg(debug_assertions)]
    if let Some(submissions) = args.lose_gpu {
        engine.lose_gpu(submissions, dollop::internal::GpuFault::Lost);
    }
    let watch = args.stream.watch(&engine, &options)?;
    Ok((engine, watch))
}

/// Makes plans for a model without converting it. `work` gets a file that can be planned: the model itself, or, for
/// a foreign model, an outline of its conversion.
pub fn plan<T>(
    model: Option<&Path>,
    mut options: EngineOptions,
    work: &mut dyn FnMut(&Path, &EngineOptions) -> dollop::Result<T>,
) -> Result<(T, Option<Outline>), Failure> {
    let path = model.map_or_else(default_model, |path| Ok(path.to_path_buf()))?;
    if !path.exists() {
        return Err(format!("{}: there is no such file or folder", path.display()).into());
    }
    if is_dollop(&path) {
        return Ok((work(&path, &options)?, None));
    }
    let folder = cache_folder()?.join("headers");
    let out = folder.join(format!("outline-{}.gguf", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    options.cache = None;
    let plan = outline(&path, &out).and_then(|outline| Ok((work(&out, &options)?, Some(outline))));
    let _ = std::fs::remove_file(&out);
    Ok(plan?)
}

/// The Dollop file of the model on the command line; converts a foreign model.
pub fn dollop_file(model: Option<&Path>, purpose: Purpose) -> Result<PathBuf, Failure> {
    converting(model, &mut EngineOptions::default(), purpose, &mut |path, _| Ok(path.to_path_buf()))
}

/// Runs `work` on the Dollop file of a model, after converting the model if needed. Shows a progress bar; ^C
/// cancels.
fn converting<T>(
    model: Option<&Path>,
    options: &mut EngineOptions,
    purpose: Purpose,
    work: &mut dyn FnMut(&Path, &EngineOptions) -> dollop::Result<T>,
) -> Result<T, Failure> {
    let path = model.map_or_else(default_model, |path| Ok(path.to_path_buf()))?;
    if !path.exists() {
        return Err(format!("{}: there is no such file or folder", path.display()).into());
    }
    let folder = cache_folder();
    (options.cache, options.purpose) = (folder.as_ref().ok().cloned(), purpose);
    let (cancel, _guard) = interrupt::cancellable();
    let mut bar = None;
    let mut hear = |p: Progress| {
        let bar = bar.get_or_insert_with(|| {
            let folder = folder.as_deref().unwrap_or(Path::new("")).display();
            note!("converting {} once, into {folder}", path.display());
            Bar::new(Unit::Bytes)
        });
        bar.show(p.stage, p.done, p.total);
        if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let file = Engine::prepare(&path, options, &mut hear);
    if let Some(file) = file.as_ref().ok().filter(|file| **file != path) {
        inventory::remember(file, &path);
    }
    file.and_then(|file| work(&file, options)).map_err(|e| match (&e, &folder) {
        // Here the only possible error is that there is no folder for the converted model.
        (Error::Unsupported { .. }, Err(Failure(why))) if !is_dollop(&path) => why.as_str().into(),
        _ => template_fault(e, model),
    })
}

fn is_dollop(path: &Path) -> bool {
    dollop::inspect::kind(path).is_ok_and(|kind| kind == dollop::inspect::Kind::Dollop)
}

/// Begins a conversation. If the template does not parse, the error names the model, whose fault it is.
pub fn converse(
    session: Session,
    system: Option<String>,
    overflow: Overflow,
    model: Option<&Path>,
) -> Result<Chat, Failure> {
    let mut chat = Chat::new(session, system, overflow).map_err(|e| template_fault(e, model))?;
    // Set once per conversation: if the date changed, the whole prompt would have to be computed again.
    chat.set_now(crate::clock::now());
    Ok(chat)
}

fn template_fault(e: Error, model: Option<&Path>) -> Failure {
    match (e, model) {
        (e @ Error::Template(_), Some(model)) => Failure(format!(
            "{}: {e}; mend the model's template, or continue plain text with `dollop run --raw`",
            model.display()
        )),
        (e, _) => e.into(),
    }
}

fn default_model() -> Result<PathBuf, Failure> {
    let mut places = Vec::new();
    if let Some(path) = env::var_os("DOLLOP_MODEL") {
        places.push(PathBuf::from(path));
    }
    // A clone: the working directory or the build folder lies somewhere below its root.
    let program = env::current_exe().and_then(|p| p.canonicalize()).unwrap_or_default();
    let here = env::current_dir().unwrap_or_default();
    for start in [&here, &program] {
        places.extend(start.ancestors().map(|up| up.join("models").join(DEFAULT_MODEL)));
    }
    // An installation: beside the program, or in the data folders.
    if let Some(folder) = program.parent() {
        places.push(folder.join(DEFAULT_MODEL));
        places.push(folder.join("../share/dollop").join(DEFAULT_MODEL));
    }
    places.extend(home_folder("XDG_DATA_HOME", ".local/share").map(|p| p.join("dollop").join(DEFAULT_MODEL)));
    // The folder where this program was built, in case the build was moved out of its clone.
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(DEFAULT_MODEL));
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        Failure(format!(
            "the model that comes with Dollop ({DEFAULT_MODEL}) was not found in a `models` folder above {} or beside {}; name a model, or set DOLLOP_MODEL to its path",
            here.display(),
            program.display()
        ))
    })
}

/// A folder of the XDG base directory specification.
pub fn home_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |v: std::ffi::OsString| Some(PathBuf::from(v)).filter(|p| p.is_absolute());
    env::var_os(variable)
        .and_then(absolute)
        .or_else(|| env::var_os("HOME").and_then(absolute).map(|h| h.join(below_home)))
}

/// The folder of conversions and downloads.
pub fn cache_folder() -> Result<PathBuf, Failure> {
    home_folder("XDG_CACHE_HOME", ".cache")
        .map(|p| p.join("dollop"))
        .ok_or_else(|| "there is no folder for converted models: set HOME or XDG_CACHE_HOME, or convert with `dollop convert` first".into())
}
