//! Names of models: `hf:ORG/NAME[:FILE-or-QUANT][@REVISION]`, a URL, or a path.
//!
//! Names come from the command line and from untrusted server listings. Names that lead outside of their
//! folder are refused here.

use crate::Failure;
use std::path::Path;

/// The name of a remote model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Hub(HubName),
    /// One GGUF file, or one file of a split model, on any server.
    Url(String),
}

/// A repository on the hub, and the selection in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`.
    pub repo: String,
    /// A file or a quantization; `None` selects the best model.
    pub want: Option<String>,
    /// A branch, tag or commit.
    pub revision: String,
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(want) = &self.want {
            write!(f, ":{want}")?;
        }
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl Name {
    /// Parses a name; `None` for a path. URLs of the hub's pages and files count as hub names.
    ///
    /// # Errors
    /// If a name that begins with `hf:` is malformed.
    pub fn parse(model: &Path, endpoint: &str) -> Result<Option<Name>, Failure> {
        let Some(text) = model.to_str() else { return Ok(None) };
        if let Some(rest) = text.strip_prefix("hf:") {
            return hub(text, rest).map(|name| Some(Name::Hub(name)));
        }
        if !(text.starts_with("https://") || text.starts_with("http://")) {
            return Ok(None);
        }
        for hub in [endpoint, "https://huggingface.co"] {
            if let Some(name) = text.strip_prefix(hub).and_then(|rest| rest.strip_prefix('/')) {
                return of_hub_url(text, name).map(|name| Some(Name::Hub(name)));
            }
        }
        Ok(Some(Name::Url(text.to_owned())))
    }
}

/// Parses `ORG/NAME[:WANT][@REVISION]`.
fn hub(whole: &str, text: &str) -> Result<HubName, Failure> {
    let (text, revision) = text.rsplit_once('@').unwrap_or((text, "main"));
    let (repo, want) = match text.split_once(':') {
        Some((repo, want)) => (repo, Some(want.to_owned())),
        None => (text, None),
    };
    checked(whole, repo, want, revision)
}

/// Parses the path of a hub URL: `ORG/NAME`, optionally with `resolve`, `blob` or `tree`, a revision and a
/// file.
fn of_hub_url(whole: &str, rest: &str) -> Result<HubName, Failure> {
    let rest = rest.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    let mut parts = rest.splitn(5, '/');
    let (org, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let repo = format!("{org}/{name}");
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => checked(whole, &repo, None, "main"),
        (Some("resolve" | "blob"), Some(revision), Some(file)) => {
            checked(whole, &repo, Some(decoded(file)), &decoded(revision))
        }
        (Some("tree"), Some(revision), None) => checked(whole, &repo, None, &decoded(revision)),
        _ => {
            Err(format!("{whole}: this page is no model; name it as hf:{repo} or by the URL of a file")
                .into())
        }
    }
}

fn checked(whole: &str, repo: &str, want: Option<String>, revision: &str) -> Result<HubName, Failure> {
    let wrong = |what: &str| {
        Failure(format!(
            "{whole}: {what}; names are hf:ORG/NAME, hf:ORG/NAME:Q4_K_M, hf:ORG/NAME:FILE.gguf@REVISION"
        ))
    };
    let word = |s: &str| {
        !s.is_empty()
            && s.len() <= 96
            && !s.contains("--")
            && !s.contains("..")
            && !s.starts_with('.')
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match repo.split_once('/') {
        Some((org, name)) if word(org) && word(name) => {}
        _ => return Err(wrong(&format!("`{repo}` is no repository of the form ORG/NAME"))),
    }
    if want.as_deref().is_some_and(|want| !is_inside(want)) {
        return Err(wrong("the file is none of a repository: it is empty or climbs out of it"));
    }
    if !is_inside(revision) {
        return Err(wrong("the revision is no branch, tag or commit"));
    }
    Ok(HubName { repo: repo.to_owned(), want, revision: revision.to_owned() })
}

/// Whether a relative path with `/` stays inside its folder, on every operating system.
pub fn is_inside(path: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p != "."
            && p != ".."
            && !p.ends_with(['.', ' '])
            && !p.contains(['\\', ':', '*', '?', '"', '<', '>', '|'])
            && !p.chars().any(char::is_control)
    };
    path.len() <= 1024 && path.split('/').all(part)
}

/// Percent-encodes a path for a URL.
pub fn encoded(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Percent-decodes a part of a URL.
pub fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match hex.filter(|_| byte == b'%') {
            Some(byte) => (out.push(byte), rest = &tail[2..]).1,
            None => (out.push(byte), rest = tail).1,
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Name>, Failure> {
        Name::parse(Path::new(text), "http://mirror.test")
    }

    #[test]
    fn names_of_the_hub() {
        for (text, repo, want, revision) in [
            ("hf:a/b", "a/b", None, "main"),
            ("hf:a/b:Q4_K_M", "a/b", Some("Q4_K_M"), "main"),
            ("hf:a/b:sub/x y-é.gguf@refs/pr/1", "a/b", Some("sub/x y-é.gguf"), "refs/pr/1"),
            ("hf:a-1/b.c_2@v1", "a-1/b.c_2", None, "v1"),
            ("https://huggingface.co/a/b", "a/b", None, "main"),
            ("http://mirror.test/a/b/resolve/main/x%20y.gguf?download=true", "a/b", Some("x y.gguf"), "main"),
            ("https://huggingface.co/a/b/blob/v2/sub/x.gguf", "a/b", Some("sub/x.gguf"), "v2"),
        ] {
            let want = want.map(str::to_owned);
            let name = HubName { repo: repo.into(), want, revision: revision.into() };
            assert_eq!(parse(text).unwrap(), Some(Name::Hub(name)), "{text}");
        }
        for path in ["model.gguf", "./hf:a/b", "C:\\m.gguf", "ftp://x/y", "hf/a"] {
            assert_eq!(parse(path).unwrap(), None, "{path}");
        }
        let url = "http://other.test/m.gguf";
        assert_eq!(parse(url).unwrap(), Some(Name::Url(url.into())));
    }

    #[test]
    fn names_that_are_none_or_climb_out_are_refused() {
        for text in [
            "hf:",
            "hf:a",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/b--c",
            "hf:a/b:",
            "hf:a/b:../x.gguf",
            "hf:a/b:/etc/passwd",
            "hf:a/b:x\\y",
            "hf:a/b:x//y",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a b/c",
            "https://huggingface.co/docs/hub/x/y",
            "https://huggingface.co/a/b/resolve/main/%2e%2e/x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
