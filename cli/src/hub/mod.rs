//! Downloads models by name, from the hub or a URL into the cache. All network code of the program is here,
//! and it runs only if a name requires it.
//!
//! `name` parses names, `listing` gets a repository's files, `choice` selects some, `fetch` downloads one;
//! `cache` and `web` define where files are stored. `conversion` converts a model while `stream` downloads it.
//! A model in the cache is used without a request; only `dollop pull` looks for a newer version.

pub mod cache;
pub mod choice;
pub mod conversion;
pub mod fetch;
mod holes;
pub mod http;
pub mod listing;
pub mod name;
mod peek;
pub mod settings;
mod stream;
mod sum;
mod web;

pub use web::{file_name as web_file, folder as web_folder};

use crate::locate::cache_folder;
use crate::output::{Bar, Unit, bytes};
use crate::{Failure, interrupt, note};
use cache::Repo;
use choice::{Candidate, INDEX, SAFETENSORS};
use conversion::{Done, Order};
use dollop::convert::Purpose;
use fetch::Job;
use http::Client;
use listing::{Entry, Listing};
use name::{HubName, Name, encoded};
use settings::Settings;
use std::path::{Path, PathBuf};

/// A model on this machine.
pub struct Local {
    /// The path that opens it.
    pub path: PathBuf,
    /// Bytes downloaded for it now.
    pub fetched: u64,
}

/// What of a remote model is kept on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The download, in the hub's cache.
    Source,
    /// Its conversion for this purpose, made while it is downloaded. A model whose download is here already
    /// stays as it is, and so does a Dollop file.
    Conversion(Purpose),
}

/// The path of the model `model`: unchanged if it is a path, downloaded if it is a name.
///
/// # Errors
/// What the user can do about it.
pub fn local(model: &Path, keep: Keep) -> Result<PathBuf, Failure> {
    match parsed(model)? {
        None => Ok(model.to_path_buf()),
        Some((name, settings)) => Ok(get(&name, settings?, false, keep)?.path),
    }
}

/// The name of a remote model; `None` for a path.
fn parsed(model: &Path) -> Result<Option<(Name, Result<Settings, Failure>)>, Failure> {
    let settings = Settings::read();
    let endpoint = settings.as_ref().map_or("https://huggingface.co", |s| s.endpoint.as_str());
    Ok(Name::parse(model, endpoint)?.map(|name| (name, settings)))
}

/// Downloads a model by name, and converts it meanwhile if its download is not to be kept. With `fresh`, also
/// if an older version is in the cache.
///
/// # Errors
/// What the user can do about it.
pub fn get(name: &Name, settings: Settings, fresh: bool, keep: Keep) -> Result<Local, Failure> {
    let (cancel, _guard) = interrupt::cancellable();
    let client = Client::new(settings, cancel);
    let order = match keep {
        Keep::Source => None,
        Keep::Conversion(purpose) => Some(Order::cached(purpose)),
    };
    let done = brought(&client, name, fresh, order.as_ref())?;
    Ok(Local { path: done.path, fetched: client.received() })
}

/// Converts the remote model `model` as `order` says while it is downloaded. `None` if `model` is a path;
/// without a report if the download is here, and is to be converted from there.
///
/// # Errors
/// What the user can do about it.
pub fn convert(model: &Path, order: &Order) -> Result<Option<Done>, Failure> {
    let Some((name, settings)) = parsed(model)? else { return Ok(None) };
    let (cancel, _guard) = interrupt::cancellable();
    let client = Client::new(settings?, cancel);
    brought(&client, &name, false, Some(order)).map(Some)
}

fn brought(client: &Client, name: &Name, fresh: bool, order: Option<&Order>) -> Result<Done, Failure> {
    match name {
        Name::Hub(name) => {
            from_hub(client, name, fresh, order).map_err(|Failure(why)| Failure(format!("{name}: {why}")))
        }
        Name::Url(url) => web::get(client, url, &cache_folder()?, order),
    }
}

fn from_hub(client: &Client, name: &HubName, fresh: bool, order: Option<&Order>) -> Result<Done, Failure> {
    let settings = &client.settings;
    let repo = Repo::new(&settings.hub, &name.repo);
    let here = |path| Ok(Done { path, report: None });
    let cached = order.filter(|order| order.is_cached());
    if !fresh || settings.offline {
        let converted = || cached.and_then(|_| conversion::here(name, &repo.commit(&name.revision)?));
        if let Some(path) = repo.here(name).map(|(_, path)| path).or_else(converted) {
            return here(path);
        }
    }
    let listing = online(client, name)?;
    let choice = choice::choose(&listing, name.want.as_deref(), free_bytes(&settings.hub))?;
    let mut candidate = choice.candidate;
    if !choice.why.is_empty() {
        note!("{name}: {} is taken ({}): {}", candidate.label, bytes(candidate.bytes), choice.why);
    }
    let kept = |e: std::io::Error| Failure(format!("{}: {e}", repo.folder.display()));
    let exact =
        HubName { revision: listing.commit.clone(), want: Some(candidate.label.clone()), ..name.clone() };
    if let Some(order) = order.filter(|_| candidate.label != "dollop" && repo.here(&exact).is_none())
        && let Some(done) = conversion::of_hub(client, name, &listing, &candidate, order)?
    {
        if order.is_cached() {
            repo.set_commit(&name.revision, &listing.commit).map_err(kept)?;
        }
        return Ok(done);
    }
    let get = Get { client, repo: &repo, name, commit: &listing.commit };
    if candidate.label == SAFETENSORS {
        narrow(&get, &listing, &mut candidate)?;
    }
    get.all(&candidate.files)?;
    repo.set_commit(&name.revision, &listing.commit).map_err(kept)?;
    here(repo.model(&listing.commit, &candidate))
}

/// Requests a repository's listing, unless offline.
///
/// # Errors
/// Network errors; an error if offline.
pub fn online(client: &Client, name: &HubName) -> Result<Listing, Failure> {
    if client.settings.offline {
        let hub = client.settings.hub.display();
        return Err(format!(
            "it is not in {hub}, and HF_HUB_OFFLINE forbids the network; unset that to fetch it"
        )
        .into());
    }
    listing::ask(client, name)
}

/// Downloads the index, and keeps only the weight files that it names.
fn narrow(get: &Get, listing: &Listing, candidate: &mut Candidate) -> Result<(), Failure> {
    let index = candidate.files.iter().find(|f| f.path == INDEX).cloned();
    index.map(|index| get.all(std::slice::from_ref(&index))).transpose()?;
    narrowed(&get.repo.snapshot(get.commit), &listing.files, candidate)
}

/// Keeps only the weight files that the index in `folder` names. The repository must have all of them.
fn narrowed(folder: &Path, files: &[Entry], candidate: &mut Candidate) -> Result<(), Failure> {
    if !candidate.files.iter().any(|f| f.path == INDEX) {
        return Ok(());
    }
    let text = std::fs::read_to_string(folder.join(INDEX)).map_err(|e| format!("{INDEX}: {e}"))?;
    let shards = dollop::internal::format::safetensors::shards(&text)?;
    candidate.files.retain(|f| !f.path.ends_with(".safetensors"));
    for shard in shards {
        let entry = files.iter().find(|f| f.path == shard);
        let entry =
            entry.ok_or_else(|| format!("{INDEX} names `{shard}`, which the repository does not have"))?;
        candidate.files.push(entry.clone());
    }
    candidate.bytes = candidate.files.iter().map(|f| f.len).sum();
    Ok(())
}

/// A remote model of which only headers were downloaded.
pub struct Ahead {
    /// The path that opens the copy without weights.
    pub path: PathBuf,
    pub candidate: Candidate,
    /// Why this model was chosen; empty if the name decides.
    pub why: String,
    /// All models of the repository.
    pub all: Vec<Candidate>,
    pub bytes_read: u64,
    pub free_bytes: u64,
}

impl Ahead {
    /// Removes the copy without weights.
    pub fn forget(&self) {
        let folder = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
        // `dollop prune` removes what remains.
        let _ = folder.map(std::fs::remove_dir_all);
    }
}

/// What `plan` can look at.
pub enum Seen {
    Here(PathBuf),
    Ahead(Box<Ahead>),
}

/// The model if it is here, or the headers of a model on the hub. A model with a URL is downloaded.
///
/// # Errors
/// What the user can do about it.
pub fn look(model: &Path) -> Result<Seen, Failure> {
    let (name, settings) = match parsed(model)? {
        None => return Ok(Seen::Here(model.to_path_buf())),
        Some((Name::Url(_), _)) => return local(model, Keep::Source).map(Seen::Here),
        Some((Name::Hub(name), settings)) => (name, settings),
    };
    let (cancel, _guard) = interrupt::cancellable();
    let client = Client::new(settings?, cancel);
    let repo = Repo::new(&client.settings.hub, &name.repo);
    let converted = || conversion::here(&name, &repo.commit(&name.revision)?);
    if let Some(path) = repo.here(&name).map(|(_, path)| path).or_else(converted) {
        return Ok(Seen::Here(path));
    }
    ahead(&client, &name).map_err(|Failure(why)| Failure(format!("{name}: {why}")))
}

fn ahead(client: &Client, name: &HubName) -> Result<Seen, Failure> {
    let listing = online(client, name)?;
    let free_bytes = free_bytes(&client.settings.hub);
    let choice = choice::choose(&listing, name.want.as_deref(), free_bytes)?;
    let mut candidate = choice.candidate;
    let folder = format!("{}-{}-{}", name.repo.replace('/', "--"), listing.commit, std::process::id());
    let folder = cache_folder()?.join("headers").join(folder);
    let path = peek::headers(client, &name.repo, &listing.commit, &mut candidate, &folder, &listing.files)?;
    let (all, bytes_read) = (choice::candidates(&listing), client.received());
    Ok(Seen::Ahead(Box::new(Ahead { path, candidate, why: choice.why, all, bytes_read, free_bytes })))
}

/// Free space on the file system of a folder that may not exist yet; no limit if the system does not report
/// it.
pub fn free_bytes(folder: &Path) -> u64 {
    folder.ancestors().find(|up| up.is_dir()).and_then(|up| fs4::available_space(up).ok()).unwrap_or(u64::MAX)
}

/// Downloads files of one commit.
struct Get<'a> {
    client: &'a Client,
    repo: &'a Repo,
    name: &'a HubName,
    commit: &'a str,
}

impl Get<'_> {
    fn job<'a>(&self, entry: &'a Entry) -> Job<'a> {
        let Settings { endpoint, hub, .. } = &self.client.settings;
        Job {
            shown: &entry.path,
            url: url(endpoint, &self.name.repo, self.commit, &entry.path),
            len: entry.len,
            sha256: entry.has_sha256.then_some(&entry.blob),
            state: &entry.blob,
            check_etag: false,
            to: self.repo.blob(entry),
            lock: self.repo.lock(hub, entry),
            in_place: false,
        }
    }

    fn all(&self, files: &[Entry]) -> Result<(), Failure> {
        let there = |f: &&Entry| {
            std::fs::metadata(self.repo.snapshot(self.commit).join(&f.path)).is_ok_and(|m| m.len() == f.len)
        };
        let files: Vec<&Entry> = files.iter().filter(|f| !there(f)).collect();
        let piece = self.client.settings.piece_bytes;
        let missing = files.iter().map(|f| self.job(f).missing(piece)).sum::<u64>();
        room_for(missing, &self.client.settings.hub)?;
        let total = files.iter().map(|f| f.len).sum();
        let (mut bar, mut before) = (Bar::new(Unit::Bytes), 0);
        for file in files {
            fetch::fetch(self.client, &self.job(file), &mut |stage, done| {
                let (done, total) =
                    if stage == "checking" { (done, file.len) } else { (before + done, total) };
                bar.show(stage, done, total);
            })?;
            self.repo.link(self.commit, file)?;
            before += file.len;
        }
        Ok(())
    }
}

/// The URL of a file at a commit.
pub fn url(endpoint: &str, repo: &str, commit: &str, path: &str) -> String {
    format!("{endpoint}/{repo}/resolve/{commit}/{}", encoded(path))
}

/// # Errors
/// If the disk does not have this much free space.
fn room_for(bytes_missing: u64, folder: &Path) -> Result<(), Failure> {
    let free = free_bytes(folder);
    if bytes_missing <= free {
        return Ok(());
    }
    Err(format!(
        "{} are to be fetched, and {} are free in {}; free some space, take a smaller file (`dollop plan` lists them), or set HF_HOME to a folder on another disk",
        bytes(bytes_missing),
        bytes(free),
        folder.display()
    )
    .into())
}
