//! `dollop pull`, `list`, `rm` and `prune`: downloading models by name, and managing the caches.

use crate::hub::name::Name;
use crate::hub::settings::Settings;
use crate::hub::{self, Keep};
use crate::inventory::{self, Item, Kind};
use crate::output::bytes;
use crate::{Failure, note, screen};
use clap::Args;
use dollop::convert::Purpose;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Downloads a model from the hub or a URL, and prints its path. Files that are already here are not
/// downloaded again.
///
/// A model that is not a Dollop file is converted while it is downloaded, into the cache folder. The download
/// itself is not kept, so the disk needs room for the result and a few hundred megabytes. If interrupted, the
/// same command continues. With --keep-source the download is kept, and converted at its first use. So it is
/// where the file system has no holes, and from servers that send no parts of files.
///
/// The name of a model is hf:ORG/NAME, optionally followed by :QUANT or :FILE, and by @REVISION. All commands
/// accept such names. Downloads are stored in the hub's cache ($HF_HOME/hub, by default
/// ~/.cache/huggingface/hub), where other programs find them. HF_TOKEN is the token for gated models,
/// HF_ENDPOINT selects another hub, HF_HUB_OFFLINE=1 forbids the network.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop pull hf:allenai/OLMoE-1B-7B-0924-Instruct-GGUF\n  dollop pull hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M\n  dollop pull hf:ORG/NAME:sub/model-Q8_0.gguf@v1.0\n  dollop pull https://example.org/model.gguf"
)]
pub struct PullArgs {
    /// hf:ORG/NAME[:QUANT or :FILE][@REVISION], or the URL of a GGUF file
    #[arg(value_name = "NAME")]
    pub name: PathBuf,
    /// Keep the download, and convert it at its first use
    #[arg(long)]
    pub keep_source: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Lists downloaded models and conversions: their size, source and last use.
#[derive(Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Removes a downloaded model with its conversions, or only the conversions of a model.
///
/// Models from the hub are shared with other programs that use its cache. If NAME is a path, only its
/// conversions are removed, never the path itself.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop rm hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M\n  dollop rm hf:Qwen/Qwen3-30B-A3B-GGUF     (all that was fetched of it)\n  dollop rm ./OLMoE-1B-7B-Q4_K_M.gguf      (its conversions)\n  dollop rm OLMoE-1B-7B-Q4_K_M-0ab1-99c2.gguf   (a conversion, as `dollop list` names it)"
)]
pub struct RmArgs {
    /// A name as in `dollop pull` or `dollop list`, or the path of a model
    #[arg(value_name = "NAME")]
    pub name: PathBuf,
    /// Only print what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// Removes what is no longer needed: conversions whose source is gone, and unfinished downloads.
#[derive(Args)]
pub struct PruneArgs {
    /// Only print what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

pub fn pull(args: &PullArgs) -> Result<(), Failure> {
    let settings = Settings::read()?;
    let name = Name::parse(&args.name, &settings.endpoint)?.ok_or_else(|| {
        format!("{}: this is a path; names are hf:ORG/NAME[:QUANT], or URLs", args.name.display())
    })?;
    let keep = if args.keep_source { Keep::Source } else { Keep::Conversion(Purpose::Weights) };
    let local = hub::get(&name, settings, true, keep)?;
    let mut out = screen::answers();
    if args.json {
        let json =
            serde_json::json!({ "path": local.path.to_string_lossy(), "bytes_fetched": local.fetched });
        writeln!(out, "{}", screen::json(&json, false)?)?;
    } else {
        writeln!(out, "{}", local.path.display())?;
        note!("{} were fetched", bytes(local.fetched));
    }
    Ok(())
}

pub fn list(args: &ListArgs) -> Result<(), Failure> {
    let items = inventory::all()?;
    let mut out = screen::stdout();
    if args.json {
        writeln!(out, "{}", screen::json(&items, true)?)?;
        return Ok(());
    }
    for item in &items {
        let of = match (&item.source, item.kind) {
            (Some(source), _) if item.source_is_gone => format!(", of {}, which is gone", source.display()),
            (Some(source), _) => format!(", of {}", source.display()),
            (None, Kind::Conversion) => ", of a source that is not known".to_owned(),
            _ => String::new(),
        };
        let kind = match item.kind {
            Kind::Model => "fetched",
            Kind::Download => "fetched by URL",
            Kind::Conversion => "conversion, last used",
            Kind::Streamed => "converted while it was fetched, last used",
            Kind::Leftover => "leftover",
        };
        let when = crate::clock::date(item.used);
        writeln!(
            out,
            "{:>10}  {}\n            {kind} {when}{of}",
            bytes(item.bytes),
            screen::one_line(&item.name)
        )?;
    }
    writeln!(out, "{:>10}  in all", bytes(items.iter().map(|i| i.bytes).sum()))?;
    Ok(())
}

pub fn rm(args: &RmArgs) -> Result<(), Failure> {
    let items = inventory::all()?;
    let mut chosen = named(&args.name, &items)?;
    let conversions: Vec<&Item> = items
        .iter()
        .filter(|i| {
            i.source
                .as_ref()
                .is_some_and(|s| chosen.iter().any(|c| c.kind != Kind::Conversion && made_of(c, s)))
        })
        .collect();
    chosen.extend(conversions);
    if chosen.is_empty() {
        return Err(format!(
            "{}: nothing of it is in the caches; `dollop list` shows what is",
            args.name.display()
        )
        .into());
    }
    all(&chosen, args.dry_run)
}

/// Whether a conversion was made from this item.
fn made_of(item: &Item, source: &Path) -> bool {
    item.files.iter().any(|f| f == source) || item.path.is_dir() && source == item.path
}

/// The items that a name refers to.
fn named<'a>(name: &Path, items: &'a [Item]) -> Result<Vec<&'a Item>, Failure> {
    let settings = Settings::read()?;
    let is = |item: &&Item| -> bool {
        let path = std::path::absolute(name).unwrap_or_default();
        item.kind == Kind::Conversion
            && (name.to_str() == Some(&item.name) || path == item.path || item.source.as_ref() == Some(&path))
    };
    Ok(match Name::parse(name, &settings.endpoint)? {
        None => items.iter().filter(is).collect(),
        Some(Name::Url(url)) => {
            let folder = hub::web_folder(&crate::locate::cache_folder()?, &url);
            let file = hub::web_file(&url)?;
            let is = |i: &&Item| {
                i.path.parent() == Some(&folder) && i.name.starts_with(&file)
                    || i.kind == Kind::Streamed && i.name == url
            };
            items.iter().filter(is).collect()
        }
        Some(Name::Hub(name)) => {
            let of = |item: &&Item| {
                let rest =
                    item.name.strip_prefix("hf:").and_then(|n| n.strip_prefix(&name.repo)?.strip_prefix(':'));
                let label = rest.map(|r| r.split_once('@').unwrap_or((r, "main")));
                label.is_some_and(|(label, revision)| {
                    let file = |want: &str| item.files.iter().any(|f| f.ends_with(want)) || label == want;
                    let wanted = name.want.as_ref().is_none_or(|w| w.eq_ignore_ascii_case(label) || file(w));
                    wanted && (name.want.is_none() && name.revision == "main" || name.revision == revision)
                })
            };
            items.iter().filter(|i| [Kind::Model, Kind::Streamed].contains(&i.kind)).filter(of).collect()
        }
    })
}

pub fn prune(args: &PruneArgs) -> Result<(), Failure> {
    let items = inventory::all()?;
    let useless = |i: &&Item| i.kind == Kind::Leftover || i.source_is_gone;
    all(&items.iter().filter(useless).collect::<Vec<_>>(), args.dry_run)
}

fn all(items: &[&Item], dry_run: bool) -> Result<(), Failure> {
    let mut out = screen::stdout();
    let mut freed = 0;
    for item in items {
        writeln!(out, "{:>10}  {}", bytes(item.bytes), screen::one_line(&item.name))?;
        freed += if dry_run { item.bytes } else { inventory::remove(item)? };
    }
    writeln!(out, "{:>10}  {}", bytes(freed), if dry_run { "would be free" } else { "are free now" })?;
    Ok(())
}
