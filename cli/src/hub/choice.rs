//! Chooses which files of a repository make the model. This is a pure function of the listing, the name and
//! the free disk space.

use super::listing::{Entry, Listing};
use crate::output::bytes;
use serde::Serialize;
use std::collections::BTreeMap;

/// The small files of a Hugging Face folder that we read.
const FOLDER: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    // Downloaded so that the library can refuse the model: we do not apply adapters.
    "adapter_config.json",
];
pub const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The label of a safetensors folder, in place of a quantization.
pub const SAFETENSORS: &str = "safetensors";

/// Quantizations, best first. A conversion keeps the codes of 8, 5 and 4 bits in even groups. Q8_0 has half
/// the size of BF16 and still provides every level.
const BEST: [&str; 22] = [
    "Q8_0", "BF16", "F16", "F32", "Q8_K_XL", "Q6_K", "Q5_K_XL", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "MXFP4",
    "Q4_K_XL", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_XL", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
];

/// A model in a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Its quantization, `safetensors`, or its file name.
    pub label: String,
    /// Total size of its files.
    pub bytes: u64,
    /// Its first file; empty for a folder.
    pub file: String,
    #[serde(skip)]
    pub files: Vec<Entry>,
}

/// The chosen model, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub candidate: Candidate,
    /// Empty if the user's name for the model already decides.
    pub why: String,
}

/// The models of a repository: GGUF files, split ones counted as one, and the safetensors folder.
pub fn candidates(listing: &Listing) -> Vec<Candidate> {
    let mut groups: BTreeMap<String, Vec<(usize, usize, &Entry)>> = BTreeMap::new();
    for entry in &listing.files {
        let lower = entry.path.to_ascii_lowercase();
        let base = lower.rsplit('/').next().unwrap_or_default();
        let other = base.starts_with("mmproj") || base.contains("imatrix") || base.contains("-vocab");
        if let Some(stem) = lower.strip_suffix(".gguf").filter(|_| !other) {
            let (stem, no, of) = shard(stem).unwrap_or((stem, 1, 1));
            groups.entry(format!("{stem} {of}")).or_default().push((no, of, entry));
        }
    }
    let mut all = Vec::new();
    for mut group in groups.into_values() {
        group.sort_by_key(|(no, ..)| *no);
        // Skip a split model with a missing file.
        if group.iter().enumerate().all(|(i, (no, of, _))| *no == i + 1 && *of == group.len()) {
            let files: Vec<Entry> = group.into_iter().map(|(.., entry)| entry.clone()).collect();
            all.push(candidate(quantization(&files[0].path), files));
        }
    }
    let has = |name: &str| listing.files.iter().find(|f| f.path == name);
    let weights: Vec<&Entry> = match (has(INDEX), has(SINGLE)) {
        (Some(index), _) => {
            let shard = |f: &&Entry| {
                !f.path.contains('/') && f.path.ends_with(".safetensors") && f.path.contains("-of-")
            };
            std::iter::once(index).chain(listing.files.iter().filter(shard)).collect()
        }
        (None, single) => single.into_iter().collect(),
    };
    if has("config.json").is_some() && !weights.is_empty() {
        let small = FOLDER.iter().filter_map(|name| has(name));
        let files = small.chain(weights).cloned().collect();
        all.push(Candidate { file: String::new(), ..candidate(SAFETENSORS.into(), files) });
    }
    all
}

fn candidate(label: String, files: Vec<Entry>) -> Candidate {
    let file = files.first().map_or_else(String::new, |f| f.path.clone());
    Candidate { label, bytes: files.iter().map(|f| f.len).sum(), file, files }
}

/// The files that stand for a model of which only the label or the first file is known.
pub fn files_of(what: &str) -> Vec<String> {
    let split = || {
        let (stem, _, of) = shard(what.strip_suffix(".gguf")?)?;
        Some((1..=of).map(|i| format!("{stem}-{i:05}-of-{of:05}.gguf")).collect())
    };
    match what {
        SAFETENSORS => vec!["config.json".into(), SINGLE.into()],
        file => split().unwrap_or_else(|| vec![file.to_owned()]),
    }
}

/// The stem, number and count in the name of a split file.
fn shard(stem: &str) -> Option<(&str, usize, usize)> {
    let digits = |s: &str| (s.len() == 5).then(|| s.parse::<usize>().ok()).flatten();
    let (rest, of) = stem.rsplit_once("-of-")?;
    let (rest, no) = rest.rsplit_once('-')?;
    Some((rest, digits(no)?, digits(of)?)).filter(|(_, no, of)| (1..=*of).contains(no))
}

/// The label of a model of which only the label or the first file is known.
pub fn label(what: &str) -> String {
    if what == SAFETENSORS { what.to_owned() } else { quantization(what) }
}

/// The quantization in a file's name, or the name itself.
fn quantization(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    let upper = base.to_ascii_uppercase();
    let stem = upper.strip_suffix(".GGUF").unwrap_or(&upper);
    if stem.ends_with(".DOLLOP") {
        return "dollop".into();
    }
    let mut parts: Vec<&str> = stem.split(['-', '.']).collect();
    if shard(&stem.to_ascii_lowercase()).is_some() {
        parts.truncate(parts.len().saturating_sub(3));
    }
    let is = |part: &&str| {
        let digit = |p: &str| p.starts_with(|c: char| c.is_ascii_digit());
        let of = |prefix: &str| part.strip_prefix(prefix).is_some_and(digit);
        ["F16", "BF16", "F32", "FP16"].contains(part)
            || of("Q")
            || of("IQ")
            || of("TQ")
            || part.starts_with("MXFP4")
    };
    let Some(at) = parts.iter().rposition(is) else { return base.to_owned() };
    match at.checked_sub(1).map(|before| parts[before]) {
        Some("UD") => format!("UD-{}", parts[at]),
        _ => parts[at].to_owned(),
    }
}

/// The rank in order of preference; lower is better.
fn rank(label: &str) -> usize {
    let plain = label.strip_prefix("UD-").unwrap_or(label);
    let of =
        |known: &str| plain.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    match label {
        "dollop" => 0,
        // After Q8_0 and BF16, because a single file is preferred.
        SAFETENSORS => 5,
        _ => BEST.iter().position(|known| of(known)).map_or(200, |i| 2 * i + 2 + usize::from(plain != label)),
    }
}

/// The model that `want` names. Otherwise the best one that fits on the disk twice: as downloaded, and
/// converted.
///
/// # Errors
/// What is available instead.
pub fn choose(listing: &Listing, want: Option<&str>, free_bytes: u64) -> Result<Choice, String> {
    let mut all = candidates(listing);
    if all.is_empty() {
        return Err(
            "the repository holds no model that is read: neither GGUF files nor config.json with safetensors"
                .into(),
        );
    }
    all.sort_by_key(|c| (rank(&c.label), c.bytes));
    let Some(want) = want else {
        return best(all, free_bytes);
    };
    let file = want.to_ascii_lowercase();
    let of_file = |c: &&Candidate| {
        !c.file.is_empty()
            && c.files.iter().any(|f| {
                let path = f.path.to_ascii_lowercase();
                path == file || path.ends_with(&format!("/{file}"))
            })
    };
    let of_label = |c: &&Candidate| c.label.eq_ignore_ascii_case(want);
    let of_variant =
        |c: &&Candidate| c.label.strip_prefix("UD-").is_some_and(|l| l.eq_ignore_ascii_case(want));
    for filter in [&of_file as &dyn Fn(&&Candidate) -> bool, &of_label, &of_variant] {
        let found: Vec<&Candidate> = all.iter().filter(filter).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(Choice { candidate: one.clone(), why: String::new() }),
            _ => return Err(format!("`{want}` is several models; name a file: {}", listed(&found, true))),
        }
    }
    Err(format!("there is no `{want}`; there are {}", listed(&all.iter().collect::<Vec<_>>(), false)))
}

fn best(all: Vec<Candidate>, free_bytes: u64) -> Result<Choice, String> {
    let needs = |c: &Candidate| if c.label == "dollop" { c.bytes } else { c.bytes.saturating_mul(2) };
    let fits = |c: &&Candidate| needs(c) <= free_bytes;
    // If none fits, the download reports how much space it needs.
    let taken = all.iter().find(fits).unwrap_or(&all[0]);
    let same: Vec<&Candidate> = all.iter().filter(|c| c.label == taken.label).collect();
    if same.len() > 1 {
        return Err(format!("there are several models; name a file: {}", listed(&same, true)));
    }
    let why = match taken.label.as_str() {
        "dollop" => "it runs as it is".to_owned(),
        "Q8_0" => "its codes are kept, and it gives every level".to_owned(),
        _ if all.len() == 1 => "it is the only one".to_owned(),
        _ => "it is the best of those here".to_owned(),
    };
    let why = match &all[0] {
        first if first.label == taken.label => why,
        first => format!(
            "{} needs {} with its conversion, and {} are free",
            first.label,
            bytes(needs(first)),
            bytes(free_bytes)
        ),
    };
    Ok(Choice { candidate: taken.clone(), why })
}

fn listed(all: &[&Candidate], files: bool) -> String {
    let name = |c: &&Candidate| match files {
        true => c.file.clone(),
        false => format!("{} ({})", c.label, bytes(c.bytes)),
    };
    all.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &[(&str, u64)]) -> Listing {
        let entry = |&(path, len): &(&str, u64)| Entry {
            path: path.into(),
            len,
            blob: String::new(),
            has_sha256: true,
        };
        Listing { commit: "c".into(), files: files.iter().map(entry).collect() }
    }

    fn chosen(files: &[(&str, u64)], want: Option<&str>, free: u64) -> Result<(String, usize), String> {
        choose(&listing(files), want, free).map(|c| (c.candidate.label, c.candidate.files.len()))
    }

    #[test]
    fn quantizations_are_read_from_names() {
        for (path, label) in [
            ("OLMoE-1B-7B-0924-Instruct-Q4_K_M.gguf", "Q4_K_M"),
            ("sub/Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
            ("x.IQ3_XXS.gguf", "IQ3_XXS"),
            ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
            ("BF16/m-BF16-00001-of-00002.gguf", "BF16"),
            ("m.q8_0.GGUF", "Q8_0"),
            ("Qwen3-30B.dollop.gguf", "dollop"),
            ("stories.gguf", "stories.gguf"),
        ] {
            assert_eq!(quantization(path), label, "{path}");
        }
    }

    #[test]
    fn the_best_that_fits_is_taken() {
        let files = [
            ("m-Q4_K_M.gguf", 40),
            ("m-Q8_0.gguf", 80),
            ("m-IQ2_XS.gguf", 10),
            ("mmproj-F16.gguf", 5),
            ("BF16/m-BF16-00002-of-00002.gguf", 80),
            ("BF16/m-BF16-00001-of-00002.gguf", 80),
            ("m-imatrix.gguf", 1),
            ("README.md", 1),
        ];
        assert_eq!(chosen(&files, None, 1000), Ok(("Q8_0".into(), 1)));
        assert_eq!(chosen(&files, None, 100), Ok(("Q4_K_M".into(), 1)));
        let why = choose(&listing(&files), None, 100).unwrap().why;
        assert_eq!(why, "Q8_0 needs 160 B with its conversion, and 100 B are free");
        assert_eq!(chosen(&files, Some("bf16"), 0), Ok(("BF16".into(), 2)));
        assert_eq!(chosen(&files, Some("m-BF16-00002-of-00002.gguf"), 0), Ok(("BF16".into(), 2)));
        let error = chosen(&files, Some("Q5_0"), 0).unwrap_err();
        assert!(error.contains("there are Q8_0 (80 B), BF16 (160 B), Q4_K_M (40 B), IQ2_XS"), "{error}");
        assert!(chosen(&files[6..], None, 0).unwrap_err().contains("holds no model"));
    }

    #[test]
    fn folders_split_files_and_several_models() {
        let folder = [
            ("config.json", 1),
            ("tokenizer.json", 5),
            (INDEX, 1),
            ("model-00001-of-00002.safetensors", 50),
            ("model-00002-of-00002.safetensors", 50),
            ("original/consolidated.safetensors", 99),
            ("README.md", 1),
        ];
        assert_eq!(chosen(&folder, None, 1000), Ok(("safetensors".into(), 5)));
        assert_eq!(chosen(&folder[..3], None, 1000).map(|c| c.1), Ok(3), "the index says what is missing");
        assert_eq!(files_of("x/m-00001-of-00002.gguf")[1], "x/m-00002-of-00002.gguf");
        assert_eq!(files_of(SAFETENSORS).len(), 2);
        assert_eq!(files_of("m-Q8_0.gguf"), ["m-Q8_0.gguf"]);
        // A split model with a missing file is not a candidate.
        assert!(chosen(&[("m-Q8_0-00001-of-00002.gguf", 1)], None, 9).is_err());
        let two = [("a-Q8_0.gguf", 1), ("b-Q8_0.gguf", 2), ("a-UD-Q4_K_XL.gguf", 1)];
        assert!(chosen(&two, None, 9).unwrap_err().contains("a-Q8_0.gguf, b-Q8_0.gguf"));
        assert!(chosen(&two, Some("Q8_0"), 9).is_err());
        assert_eq!(chosen(&two, Some("b-q8_0.gguf"), 9), Ok(("Q8_0".into(), 1)));
        assert_eq!(chosen(&two, Some("Q4_K_XL"), 9), Ok(("UD-Q4_K_XL".into(), 1)));
    }
}
