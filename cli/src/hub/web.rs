//! Downloads a model by the URL of a file on any server, into a cache folder named after the URL.

use super::conversion::{self, Done, Order, Remote, Weights};
use super::fetch::{self, Job};
use super::http::{Client, Fault};
use super::name::is_inside;
use super::room_for;
use crate::Failure;
use crate::output::{Bar, Unit};
use std::path::{Path, PathBuf};

const SHARDS: usize = 1024;
/// How often a file may change on the server during its download.
const CHANGES: usize = 3;

/// The folder for a URL's files.
pub fn folder(cache: &Path, url: &str) -> PathBuf {
    let place = url.rsplit_once('/').map_or(url, |(folder, _)| folder);
    cache.join("downloads").join(format!("{:08x}", crc32fast::hash(place.as_bytes())))
}

/// The file name in a URL.
pub fn file_name(url: &str) -> Result<String, Failure> {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = super::name::decoded(path.rsplit('/').next().unwrap_or_default());
    let gguf = name.to_ascii_lowercase().ends_with(".gguf") && !name.contains('/') && is_inside(&name);
    gguf.then(|| name.clone()).ok_or_else(|| {
        format!("{url}: a URL names a GGUF file, whose name ends in .gguf; a repository of the hub is named as hf:ORG/NAME").into()
    })
}

/// Downloads the file of a URL, and the other files of a split model. With an order, converts it meanwhile.
///
/// # Errors
/// What the user can do about it.
pub fn get(client: &Client, url: &str, cache: &Path, order: Option<&Order>) -> Result<Done, Failure> {
    let name = file_name(url)?;
    let folder = folder(cache, url);
    let mut urls = vec![(name.clone(), url.to_owned())];
    if let Some((no, of)) = shard(&name) {
        let other =
            |text: &str, i: usize| text.replacen(&format!("-{no:05}-of-"), &format!("-{i:05}-of-"), 1);
        urls = (1..=of).map(|i| (other(&name, i), other(url, i))).collect();
    }
    let path = folder.join(&urls[0].0);
    if let Some(order) = order.filter(|_| !urls.iter().all(|(name, _)| folder.join(name).is_file()))
        && let Some(done) =
            converted(client, &urls, order).map_err(|Failure(why)| Failure(format!("{url}: {why}")))?
    {
        return Ok(done);
    }
    for (name, url) in urls {
        one(client, &name, &url, &folder).map_err(|Failure(why)| Failure(format!("{url}: {why}")))?;
    }
    Ok(Done { path, report: None })
}

/// Converts the file of a URL while it is downloaded; `None` if it must be downloaded first.
fn converted(client: &Client, urls: &[(String, String)], order: &Order) -> Result<Option<Done>, Failure> {
    let (name, url) = &urls[0];
    let stem = dollop::convert::model_name(Path::new(name)).unwrap_or_else(|| "model".into());
    let path = conversion::cached_file(&stem, url)?;
    if order.is_cached() && conversion::is_there(&path) {
        return Ok(Some(Done { path, report: None }));
    }
    if client.settings.offline {
        return Ok(None);
    }
    // Without an ETag, parts of two versions could not be told apart.
    for (_, url) in urls {
        if probe(client, url)?.1.is_none() {
            return Ok(None);
        }
    }
    let mut files = |_: &Path| -> Result<Vec<Weights>, Failure> {
        let weights = |(name, url): &(String, String)| {
            let (len, etag) = probe(client, url)?;
            let state = etag.unwrap_or_default();
            Ok(Weights { name: name.clone(), url: url.clone(), len, sha256: None, state, check_etag: true })
        };
        urls.iter().map(weights).collect()
    };
    let remote =
        Remote { id: url.clone(), stem, folder: PathBuf::new(), opens: name.clone(), files: &mut files };
    conversion::convert(client, remote, order)
}

fn shard(name: &str) -> Option<(usize, usize)> {
    let (rest, of) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (_, no) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() == 5).then(|| s.parse::<usize>().ok()).flatten();
    Some((number(no)?, number(of)?)).filter(|&(no, of)| (1..=of).contains(&no) && of <= SHARDS)
}

fn one(client: &Client, name: &str, url: &str, folder: &Path) -> Result<(), Failure> {
    let to = folder.join(name);
    if to.is_file() {
        return Ok(());
    }
    if client.settings.offline {
        return Err(
            "it is not in the cache, and HF_HUB_OFFLINE forbids the network; unset that to fetch it".into()
        );
    }
    for _ in 0..CHANGES {
        let (len, etag) = probe(client, url)?;
        let job = Job {
            shown: name,
            url: url.to_owned(),
            len,
            sha256: None,
            state: etag.as_deref().unwrap_or("no ETag"),
            check_etag: etag.is_some(),
            lock: folder.join(format!("{name}.lock")),
            to: to.clone(),
            in_place: false,
        };
        room_for(job.missing(client.settings.piece_bytes), folder)?;
        let mut bar = Bar::new(Unit::Bytes);
        if fetch::fetch(client, &job, &mut |stage, done| bar.show(stage, done, len))? {
            return Ok(());
        }
    }
    Err("the file changed on the server again and again; try again later".into())
}

/// The length of a file, and its ETag.
fn probe(client: &Client, url: &str) -> Result<(u64, Option<String>), Failure> {
    client.patiently(&mut |_| {
        let reply = match client.open(url, Some(0..1)) {
            Err(Fault::NoRanges) => client.open(url, None),
            reply => reply,
        }?;
        let len =
            reply.total.ok_or_else(|| Fault::Stop("the server does not say how long the file is".into()))?;
        Ok((len, reply.etag))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_names_of_their_urls() {
        assert_eq!(file_name("https://a.test/x/m%20é.gguf?x=/y").unwrap(), "m é.gguf");
        for url in [
            "https://a.test/",
            "https://a.test/m.bin",
            "https://a.test/%2e%2e%2fm.gguf",
            "https://a.test/a%5cm.gguf",
        ] {
            assert!(file_name(url).is_err(), "{url}");
        }
        assert_eq!(shard("m-00002-of-00003.gguf"), Some((2, 3)));
        assert_eq!(shard("m-00004-of-00003.gguf"), None);
    }
}
