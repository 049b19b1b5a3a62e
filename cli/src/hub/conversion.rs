//! Converts a remote model while it is downloaded. The download never lies whole on the disk.
//!
//! Until the result is complete, its folder also has `RESULT.resume` (the journal), `RESULT.resume-file` (the
//! part that is written) and `RESULT.resume-source`: the model's files, with holes in place of what is not
//! fetched yet or no longer needed.

use super::choice::{Candidate, SAFETENSORS};
use super::fetch::{self, Job, Pieces, Round, Trouble};
use super::http::{Client, Fault};
use super::listing::{Entry, Listing};
use super::name::HubName;
use super::stream::Stream;
use super::{free_bytes, holes, narrowed, peek, sum, url};
use crate::locate::cache_folder;
use crate::output::{Bar, Unit, bytes};
use crate::{Failure, inventory, note};
use dollop::Progress;
use dollop::convert::{
    Calibration, ConvertOptions, Journal, Purpose, Report, check_for, convert_supplied, model_name, outline,
};
use dollop::inspect::{Kind, kind};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Suffix of the folder of files with holes.
pub const SOURCE: &str = ".resume-source";
/// The file that says of what the folder is.
const IDENTITY: &str = "identity";

/// How to convert.
pub struct Order {
    pub options: ConvertOptions,
    /// What the result depends on besides the model and the options that are not files.
    pub inputs: String,
    /// Measured inputs; `inputs` identifies them.
    pub calibration: Option<Arc<Calibration>>,
    pub purpose: Purpose,
    pub out: Output,
}

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Into the cache folder, where later commands find it.
    Cache,
    /// Into the current folder, named after the model.
    Current,
    File(PathBuf),
}

impl Order {
    /// The conversion that commands make before they run a model.
    pub fn cached(purpose: Purpose) -> Order {
        Order {
            options: ConvertOptions::default(),
            inputs: String::new(),
            calibration: None,
            purpose,
            out: Output::Cache,
        }
    }

    pub fn is_cached(&self) -> bool {
        self.out == Output::Cache
    }
}

/// A result.
pub struct Done {
    pub path: PathBuf,
    /// `None` if it was there already.
    pub report: Option<Report>,
}

/// A file of weights on a server.
pub struct Weights {
    /// Its name in the folder of files with holes.
    pub name: String,
    pub url: String,
    pub len: u64,
    pub sha256: Option<String>,
    /// Identifies its version: a checksum or an ETag.
    pub state: String,
    pub check_etag: bool,
}

/// A remote model.
pub struct Remote<'a> {
    /// Its name with the version: `hf:ORG/NAME:FILE@COMMIT`, or a URL.
    pub id: String,
    /// The name for its results.
    pub stem: OsString,
    /// Where its files would lie in a cache. Metadata of the result depends on it.
    pub folder: PathBuf,
    /// The file that opens it, in that folder; empty for the folder itself.
    pub opens: String,
    /// Puts the small files into a folder, and returns the files of weights.
    pub files: &'a mut dyn FnMut(&Path) -> Result<Vec<Weights>, Failure>,
}

enum Outcome {
    Done(Report),
    /// This model cannot be converted so: its server sends no ranges, or it is a Dollop file.
    Whole,
    Changed(String),
}

/// Where the parts of a conversion lie.
struct Place {
    out: PathBuf,
    /// The folder of files with holes.
    source: PathBuf,
    /// The folder in it that the library opens, or whose file it opens.
    folder: PathBuf,
}

/// Converts a model of the hub; `None` if it must be downloaded first.
///
/// # Errors
/// What the user can do about it. No file has a final name then; the same command goes on.
pub fn of_hub(
    client: &Client,
    name: &HubName,
    listing: &Listing,
    candidate: &Candidate,
    order: &Order,
) -> Result<Option<Done>, Failure> {
    let (commit, endpoint) = (&listing.commit, &client.settings.endpoint);
    let what = if candidate.file.is_empty() { SAFETENSORS } else { &candidate.file };
    let of = |entry: &Entry| url(endpoint, &name.repo, commit, &entry.path);
    let base = |entry: &Entry| entry.path.rsplit('/').next().unwrap_or_default().to_owned();
    let folder =
        Path::new(&format!("models--{}", name.repo.replace('/', "--"))).join("snapshots").join(commit);
    let opens = candidate.files.first().filter(|_| !candidate.file.is_empty()).map(base).unwrap_or_default();
    let mut files = |folder: &Path| -> Result<Vec<Weights>, Failure> {
        let mut candidate = candidate.clone();
        for entry in candidate.files.iter().filter(|f| !peek::is_weights(&f.path)) {
            small(client, &of(entry), entry, &folder.join(base(entry)))?;
        }
        if candidate.file.is_empty() {
            narrowed(folder, &listing.files, &mut candidate)?;
        }
        let weights = |entry: &Entry| Weights {
            name: base(entry),
            url: of(entry),
            len: entry.len,
            sha256: entry.has_sha256.then(|| entry.blob.clone()),
            state: entry.blob.clone(),
            check_etag: false,
        };
        Ok(candidate.files.iter().filter(|f| peek::is_weights(&f.path)).map(weights).collect())
    };
    let stem = model_name(&folder.join(&opens)).filter(|_| !opens.is_empty());
    let stem = stem.unwrap_or_else(|| name.repo.rsplit('/').next().unwrap_or_default().into());
    let id = format!("hf:{}:{what}@{commit}", name.repo);
    convert(client, Remote { id, stem, folder, opens, files: &mut files }, order)
}

/// Fetches a small file of a folder.
fn small(client: &Client, url: &str, entry: &Entry, to: &Path) -> Result<(), Failure> {
    if fs::metadata(to).is_ok_and(|m| m.len() == entry.len) {
        return Ok(());
    }
    let (text, _) = client.text(url, peek::MOST)?;
    let found = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    if entry.has_sha256 && sum::hex(found.as_ref()) != entry.blob {
        return Err(format!("{}: the bytes have another checksum than the hub says", entry.path).into());
    }
    // Renamed when it is whole: a later run looks at its length alone.
    let part = to.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, to))
        .map_err(|e| format!("{}: {e}", to.display()).into())
}

/// The file that a conversion into the cache folder writes.
///
/// # Errors
/// If there is no cache folder.
pub fn cached_file(stem: &OsString, id: &str) -> Result<PathBuf, Failure> {
    let (family, _) = id.rsplit_once('@').unwrap_or((id, ""));
    let mut name = stem.clone();
    let sum = |text: &str| crc32fast::hash(text.as_bytes());
    name.push(format!("-{:08x}-{:08x}.gguf", sum(family), sum(id)));
    Ok(cache_folder()?.join(name))
}

/// Whether a file is a complete result.
pub fn is_there(path: &Path) -> bool {
    path.is_file() && kind(path).is_ok_and(|kind| kind == Kind::Dollop)
}

/// Converts a remote model; `None` if it must be downloaded first.
///
/// # Errors
/// As [`of_hub`].
pub fn convert(client: &Client, remote: Remote, order: &Order) -> Result<Option<Done>, Failure> {
    let out = match &order.out {
        Output::File(out) => out.clone(),
        Output::Cache => cached_file(&remote.stem, &remote.id)?,
        Output::Current => {
            let mut name = remote.stem.clone();
            name.push(".dollop.gguf");
            name.into()
        }
    };
    if out.is_dir() {
        return Err(format!("{}: this is a folder; name the file to write", out.display()).into());
    }
    let near = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !holes::supported(near) {
        return Ok(None);
    }
    let mut source = out.clone().into_os_string();
    source.push(SOURCE);
    let source = PathBuf::from(source);
    let place = Place { folder: source.join(&remote.folder), source, out };
    // The command `convert` replaces its output; other commands share one.
    let _turn = order.is_cached().then(|| Turn::take(client, &place.out)).transpose()?;
    if order.is_cached() && is_there(&place.out) {
        return Ok(Some(Done { path: place.out, report: None }));
    }
    let mut changed = false;
    loop {
        match attempt(client, &remote.id, &remote.opens, &mut *remote.files, order, &place)? {
            Outcome::Whole => return Ok(None),
            Outcome::Changed(why) if changed => {
                return Err(format!("{why}, twice in a row; try again later").into());
            }
            Outcome::Changed(why) => {
                note!("{why}; it is fetched anew");
                changed = true;
            }
            Outcome::Done(report) => {
                wipe(&place.source)?;
                if order.is_cached() {
                    inventory::remember_remote(&place.out, &remote.id);
                }
                return Ok(Some(Done { path: place.out, report: Some(report) }));
            }
        }
    }
}

/// A lock for conversions into one file of the cache.
struct Turn(PathBuf);

impl Turn {
    fn take(client: &Client, out: &Path) -> Result<(Turn, Option<fs::File>), Failure> {
        let path = out.with_extension("lock");
        let waiting = format!("{}: another process converts it; waiting for that", out.display());
        let lock = fetch::lock(client, &path, &waiting, &mut || ()).map_err(|e| match e {
            Some(e) => Failure(format!("{}: {e}", path.display())),
            None => "stopped".into(),
        })?;
        Ok((Turn(path), lock))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Waiting processes get the lock of the removed file, and look for the result.
        let _ = fs::remove_file(&self.0);
    }
}

fn wipe(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {e}", folder.display()).into())
        }
        _ => Ok(()),
    }
}

/// Opens the journal, and makes the folder of files one of this version of the model.
fn prepare(
    id: &str,
    files: &mut dyn FnMut(&Path) -> Result<Vec<Weights>, Failure>,
    order: &Order,
    place: &Place,
) -> Result<(Vec<Weights>, Journal), Failure> {
    let failed = |e: std::io::Error| Failure(format!("{}: {e}", place.source.display()));
    let record = place.source.join(IDENTITY);
    let known = fs::read_to_string(&record).ok();
    if known.is_none() {
        wipe(&place.source)?;
    }
    fs::create_dir_all(&place.folder).map_err(failed)?;
    let mut weights = files(&place.folder)?;
    let versions: Vec<_> = weights.iter().map(|w| format!("{} {} {:?}", w.name, w.len, w.state)).collect();
    let options = format!("{:?} {}", order.options.clone().with_threads(0), order.inputs);
    let identity = format!("{id} {versions:?} {} {options}", env!("CARGO_PKG_VERSION"));
    let journal = Journal::named(&place.out, &identity, &options)?;
    if known.as_ref().is_some_and(|known| *known != identity) || journal.was_stale() {
        note!("what was done before is of another version of the model or of other options: begun anew");
        wipe(&place.source)?;
        fs::create_dir_all(&place.folder).map_err(failed)?;
        weights = files(&place.folder)?;
    }
    fs::write(&record, identity).map_err(failed)?;
    Ok((weights, journal))
}

fn attempt(
    client: &Client,
    id: &str,
    opens: &str,
    files: &mut dyn FnMut(&Path) -> Result<Vec<Weights>, Failure>,
    order: &Order,
    place: &Place,
) -> Result<Outcome, Failure> {
    let (weights, journal) = prepare(id, files, order, place)?;
    let jobs: Vec<Job> = weights.iter().map(|w| job(w, place)).collect();
    let clean = || -> Result<(), Failure> {
        journal.remove();
        wipe(&place.source)
    };
    // The checksum's blocks do not cross pieces.
    let piece = client.settings.piece_bytes.next_multiple_of(sum::BLOCK as u64);
    let model = place.folder.join(opens);
    let ranges = headers(client, &jobs, piece).or_else(|e| {
        // Nothing is lost, and a file that is no model leaves nothing.
        if journal.done() == 0 {
            clean()?;
        }
        Err(e)
    })?;
    if !ranges || !opens.is_empty() && kind(&model).is_ok_and(|kind| kind == Kind::Dollop) {
        clean()?;
        return Ok(Outcome::Whole);
    }
    if let Err(e) = check_for(&model, order.purpose) {
        clean()?;
        return Err(e.into());
    }
    match journal.done() {
        0 => room_for(&model, place)?,
        n => note!("going on where it was interrupted: {n} parts are done"),
    }
    let round = |job| -> Result<Round, Failure> {
        Ok(Round::new(client, job, Pieces::open(job, piece).map_err(|e| job.failed(&e))?, false))
    };
    let rounds = jobs.iter().map(round).collect::<Result<Vec<_>, _>>()?;
    let failed = |e: std::io::Error| Failure(format!("{}: {e}", place.source.display()));
    let stream = Stream::new(rounds, &place.source).map_err(failed)?;
    let options = dollop_options(order, journal.clone());
    let mut bar = Bar::new(Unit::Bytes);
    let result = stream.during(|| {
        let mut progress = |p: Progress| bar.show_item(p.stage, &stream.current(), p.done, p.total);
        convert_supplied(&model, &place.out, &options, &stream, &client.cancel, &mut progress)
    });
    match (result, stream.trouble()) {
        (Ok(report), _) => Ok(Outcome::Done(report)),
        (Err(_), Some(Trouble::Changed(why))) => {
            clean()?;
            Ok(Outcome::Changed(why))
        }
        (Err(_), Some(Trouble::NoRanges)) => {
            Err("the server sends other bytes than were asked for; try again with --keep-source".into())
        }
        (Err(_), Some(Trouble::Failed(failure))) => Err(failure),
        (Err(e), None) => Err(e.into()),
    }
}

fn dollop_options(order: &Order, journal: Journal) -> ConvertOptions {
    let mut options = order.options.clone();
    (options.resume, options.calibration) = (Some(journal), order.calibration.clone());
    options
}

fn job<'a>(weights: &'a Weights, place: &Place) -> Job<'a> {
    let to = place.folder.join(&weights.name);
    Job {
        shown: &weights.name,
        url: weights.url.clone(),
        len: weights.len,
        sha256: weights.sha256.as_deref(),
        state: &weights.state,
        check_etag: weights.check_etag,
        lock: PathBuf::new(),
        to,
        in_place: true,
    }
}

/// Fetches the headers that are not here. Returns `false` if the server sends no ranges.
fn headers(client: &Client, jobs: &[Job], piece: u64) -> Result<bool, Failure> {
    for (i, job) in jobs.iter().enumerate().filter(|(_, job)| Pieces::seen(job, piece).is_none()) {
        let ranges = client.patiently(&mut |_| match client.open(&job.url, Some(0..1)) {
            Err(Fault::NoRanges) => Ok(false),
            reply => reply.map(|_| true),
        })?;
        if !ranges {
            return Ok(false);
        }
        let first = if i == 0 { peek::FIRST } else { peek::OTHERS };
        let prefix = peek::prefix(client, &job.url, (job.shown, job.len), first)
            .map_err(|Failure(why)| format!("{}: {why}", job.shown))?;
        peek::with_holes(&job.to, &prefix, job.len).map_err(|e| job.failed(&e))?;
    }
    Ok(true)
}

/// # Errors
/// If the disk does not have room for the result.
fn room_for(model: &Path, place: &Place) -> Result<(), Failure> {
    let sketch = place.source.join("outline.gguf");
    let outline = outline(model, &sketch);
    let _ = fs::remove_file(&sketch);
    // A lower level may be asked for, so only the least size counts.
    let needed = outline?.sizes.iter().map(|(_, bytes)| *bytes).min().unwrap_or(0);
    let free = free_bytes(&place.source);
    if needed <= free {
        return Ok(());
    }
    let folder = place.out.parent().unwrap_or(Path::new(".")).display();
    Err(format!(
        "the conversion has at least {}, and {} are free in {folder}; free some space, or take a smaller file (`dollop plan` lists them)",
        bytes(needed),
        bytes(free)
    )
    .into())
}

/// The result in the cache folder of an earlier conversion of this name at this commit.
pub fn here(name: &HubName, commit: &str) -> Option<PathBuf> {
    let cache = cache_folder().ok()?;
    let (begin, end) = (format!("hf:{}:", name.repo), format!("@{commit}"));
    let mut all: Vec<(String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(cache).ok()?.flatten() {
        let note = entry.path();
        let of = note.extension().filter(|e| *e == "source").and_then(|_| fs::read_to_string(&note).ok());
        let what = of.as_deref().and_then(|id| id.strip_prefix(&begin)?.strip_suffix(&end));
        if let Some(what) = what.filter(|_| is_there(&note.with_extension("gguf"))) {
            all.push((what.to_owned(), note.with_extension("gguf")));
        }
    }
    let files = all.iter().flat_map(|(what, _)| super::choice::files_of(what)).map(|path| Entry {
        path,
        len: 1,
        blob: String::new(),
        has_sha256: false,
    });
    let listing = Listing { commit: commit.to_owned(), files: files.collect() };
    let file = super::choice::choose(&listing, name.want.as_deref(), u64::MAX).ok()?.candidate.file;
    let what = if file.is_empty() { SAFETENSORS } else { &file };
    all.iter().find(|(of, _)| of == what).map(|(_, path)| path.clone())
}
