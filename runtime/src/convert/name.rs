//! Derives a model's name from the path of its file or folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The name of the model at `source`; `None` for the root folder.
///
/// A folder's name is kept whole, dots included. A file's name loses `.gguf` and the number of a shard. `.`
/// and `..` are resolved to the folders that they stand for. A snapshot in the Hugging Face cache
/// (`models--ORG--NAME/snapshots/COMMIT`) has the name of its repository.
#[doc(hidden)]
pub fn model_name(source: &Path) -> Option<OsString> {
    let folder = source.file_name().is_some_and(|n| n == "config.json").then(|| match source.parent() {
        Some(up) if !up.as_os_str().is_empty() => up,
        _ => Path::new("."),
    });
    let place = folder.unwrap_or(source);
    let name = match place.file_name() {
        Some(name) => name.to_os_string(),
        None => place.canonicalize().ok()?.file_name()?.to_os_string(),
    };
    if folder.is_some() || source.is_dir() {
        return Some(repository(place).unwrap_or(name));
    }
    let Some(text) = name.to_str() else { return Some(name) };
    let stem = match text.len().checked_sub(".gguf".len()).and_then(|at| text.split_at_checked(at)) {
        Some((stem, end)) if end.eq_ignore_ascii_case(".gguf") => stem,
        _ => text,
    };
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let whole = stem
        .rsplit_once("-of-")
        .filter(|(_, of)| digits(of))
        .and_then(|(rest, _)| rest.rsplit_once('-'))
        .filter(|(_, no)| digits(no))
        .map_or(stem, |(rest, _)| rest);
    Some(if whole.is_empty() { name } else { whole.into() })
}

/// The name of the repository that a folder is a snapshot of.
fn repository(snapshot: &Path) -> Option<OsString> {
    let snapshots = snapshot.parent().filter(|up| up.file_name().is_some_and(|n| n == "snapshots"))?;
    let repo = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(repo.rsplit_once("--").map_or(repo, |(_, name)| name).into())
}

/// Resolves `.`, `..` and links in the folders of a path. If the file itself is a link, it stays one. In the
/// Hugging Face cache the link has the model's name, and the other files of a split model lie beside it.
///
/// # Errors
/// Errors of the file system.
pub(super) fn absolute(source: &Path) -> std::io::Result<PathBuf> {
    match (source.parent(), source.file_name()) {
        (Some(folder), Some(name)) if !source.is_dir() => {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            Ok(folder.canonicalize()?.join(name))
        }
        _ => source.canonicalize(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("tiny-0.5B");
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        let dots = format!("{}/sub/..", inside.display());
        for (path, want) in [
            (inside.to_str().unwrap(), "tiny-0.5B"),
            (&format!("{}/", inside.display()), "tiny-0.5B"),
            (&dots, "tiny-0.5B"),
            (&format!("{}/config.json", inside.display()), "tiny-0.5B"),
            ("a/Qwen3-0.6B.Q4_K_M.gguf", "Qwen3-0.6B.Q4_K_M"),
            ("Qwen3-30B-00001-of-00003.GGUF", "Qwen3-30B"),
            ("x-1-of-3.gguf", "x-1-of-3"),
            ("model.v1", "model.v1"),
            (".gguf", ".gguf"),
            ("é.gguf", "é"),
        ] {
            assert_eq!(model_name(Path::new(path)).unwrap(), want, "{path}");
        }
        assert_eq!(model_name(Path::new("/")), None);
        let snapshot = folder.path().join("models--org--tiny-0.5B/snapshots/0123");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(model_name(&snapshot).unwrap(), "tiny-0.5B");
        assert_eq!(model_name(&snapshot.join("config.json")).unwrap(), "tiny-0.5B");
        assert_eq!(model_name(&snapshot.join("x-Q8_0.gguf")).unwrap(), "x-Q8_0");
    }
}
