//! Gate 201: a model that is converted while it is downloaded has the same bytes as one that is downloaded and then converted;
//! the download never lies whole on the disk; whatever a server does ends in the right model or in an error, and nothing under a
//! final name. Gate 202: killed at any moment, it goes on to the same bytes, and does not fetch finished tensors again.

use super::server::{Fault, Hub};
use super::{PIECE, Place, failed, succeeded, walk};
use dollop_tests::full;
use dollop_tests::talker::Talker;
use dollop_tests::tiny::Tiny;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const FOREVER: usize = usize::MAX;
const NAME: &str = "hf:org/name";

/// A folder's model on the hub, and what `dollop convert` makes of it.
fn folder() -> (Place, Vec<u8>) {
    let place = Place::new(Hub::start());
    // Metadata has the folder's name.
    Talker::saying("Paris.", "{{ messages[-1].content }}{{ '\\n' }}").write(&place.path("name"));
    place.hub.put_folder(&place.path("name"));
    let want = converted(&place, "name");
    (place, want)
}

/// A GGUF file with experts on the hub, and what `dollop convert` makes of it.
fn file() -> (Place, Vec<u8>, Vec<u8>) {
    let place = Place::new(Hub::start());
    Tiny::load("olmoe").write_gguf(&place.path("m-F32.gguf"));
    let bytes = fs::read(place.path("m-F32.gguf")).unwrap();
    place.hub.put("m-F32.gguf", &bytes);
    let want = converted(&place, "m-F32.gguf");
    (place, bytes, want)
}

fn converted(place: &Place, source: &str) -> Vec<u8> {
    place.ok(&["convert", source, "want.gguf"]);
    let bytes = fs::read(place.path("want.gguf")).unwrap();
    fs::remove_file(place.path("want.gguf")).unwrap();
    place.hub.reset();
    bytes
}

/// Pulls; expects this conversion, and nothing else in the caches. Returns what was said.
fn right(place: &Place, name: &str, want: &[u8]) -> String {
    let (path, errors) = place.ok(&["pull", name]);
    assert!(fs::read(&path).unwrap() == want, "{path}: another conversion; {errors}");
    let mut left = Vec::new();
    walk(&place.path("cache"), &mut |path| left.push(path.to_path_buf()));
    let ends = |end: &str| left.iter().filter(|p| p.to_str().unwrap().ends_with(end)).count();
    assert_eq!((ends(".gguf"), ends(".source"), left.len()), (1, 1, 2), "{left:?}");
    assert!(!place.path("hf/hub/models--org--name/blobs").exists(), "the download is not kept");
    errors
}

/// Pulls; expects an error with these words, and no model.
fn wrong(place: &Place, name: &str, words: &[&str]) {
    place.fails(&["pull", name], words);
    let models = fs::read_dir(place.path("cache/dollop")).into_iter().flatten().flatten();
    assert!(models.into_iter().all(|f| !f.file_name().to_str().unwrap().ends_with(".gguf")));
}

/// Bytes on the disk of the files with holes.
fn on_disk(place: &Place) -> u64 {
    let mut bytes = 0;
    let mut add = |path: &Path| {
        if path.to_str().unwrap().contains(".resume-source") {
            bytes += fs::metadata(path).map_or(0, |m| m.blocks() * 512);
        }
    };
    let folder = place.path("cache/dollop");
    if folder.is_dir() {
        // Files may go while they are counted.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| walk(&folder, &mut add)));
    }
    bytes
}

#[test]
fn the_download_never_lies_whole_on_the_disk() {
    let (place, want) = folder();
    let whole = fs::metadata(place.path("name/model.safetensors")).unwrap().len();
    place.hub.rule("/bucket/", FOREVER, Fault::Slow(Duration::from_millis(1)));
    let mut child = place.start(&["pull", NAME]);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = most.max(on_disk(&place));
        std::thread::sleep(Duration::from_millis(2));
    }
    succeeded(&["pull"], child.wait_with_output().unwrap());
    let sent = place.hub.bytes_sent();
    right(&place, NAME, &want);
    assert!(most > 8 * PIECE && most < whole / 2, "{most} bytes of {whole} lay on the disk");
    // The header is fetched in front, with up to 1 MiB.
    assert!(sent >= whole && sent < whole * 9 / 8 + (1 << 20), "{sent} bytes were sent of {whole}");
}

#[test]
fn a_conversion_stands_where_its_model_does() {
    let (place, want) = folder();
    right(&place, NAME, &want);
    place.hub.reset();
    let run =
        ["run", NAME, "-p", "What is the capital of France?", "--backend", "cpu", "-t", "1", "--temp", "0"];
    assert_eq!(place.ok(&run).0, "Paris.");
    assert_eq!(
        place.ok(&["run", "hf:org/name:safetensors", "-p", "x", "--backend", "cpu", "-t", "1"]).0,
        "Paris."
    );
    place.ok(&["inspect", NAME, "--verify"]);
    assert!(place.hub.reset().is_empty(), "what is here needs no request");
    let (list, _) = place.ok(&["list"]);
    assert!(
        list.contains("hf:org/name:safetensors") && list.contains("converted while it was fetched"),
        "{list}"
    );
    assert!(place.ok(&["prune"]).0.starts_with("       0 B"), "it is no leftover");
    // A conversion of one's own is made of a download of its own, named after the model.
    place.ok(&["convert", NAME, "--max-level", "4"]);
    place.ok(&["convert", "name", "four.gguf", "--max-level", "4"]);
    assert!(fs::read(place.path("name.dollop.gguf")).unwrap() == fs::read(place.path("four.gguf")).unwrap());
    // The download is used where it is.
    place.ok(&["pull", NAME, "--keep-source"]);
    place.hub.reset();
    place.ok(&["convert", NAME, "again.gguf", "--max-level", "4"]);
    assert!(fs::read(place.path("again.gguf")).unwrap() == fs::read(place.path("four.gguf")).unwrap());
    assert!(place.hub.reset().is_empty());
    let (gone, _) = place.ok(&["rm", NAME]);
    assert!(gone.matches("hf:org/name:safetensors").count() == 2, "{gone}");
    assert!(place.files(".source").is_empty());
}

#[test]
fn files_with_experts_split_files_and_urls() {
    let (place, bytes, want) = file();
    right(&place, NAME, &want);
    right(&place, "hf:org/name:m-F32.gguf", &want);
    place.ok(&["rm", NAME]);
    // It changes in the middle: parts of both versions are not mixed.
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    let url = place.hub.put_plain("m-F32.gguf", &other);
    place.hub.rule_after("/files/", 9, 1, Fault::Change(bytes));
    let (path, errors) = place.ok(&["pull", &url]);
    assert!(fs::read(&path).unwrap() == want && errors.contains("it is fetched anew"), "{errors}");
    assert_eq!(place.hub.left(), Vec::<String>::new());
    place.hub.reset();
    assert_eq!(place.ok(&["pull", &url]).0, path);
    assert!(place.hub.reset().is_empty());
    assert!(place.ok(&["rm", &url]).0.contains("m-F32.gguf"));
    // A Dollop file stays as it is.
    place.hub.put("name.dollop.gguf", &want);
    let (path, _) = place.ok(&["pull", "hf:org/name:dollop"]);
    assert!(path.contains("hf/hub") && fs::read(path).unwrap() == want);
}

#[test]
fn what_goes_wrong_on_the_way_ends_in_the_right_model() {
    let status = |code| Fault::Status(code, Vec::new());
    for (skip, times, fault, told) in [
        (8, 4, Fault::Drop(5000), ""),
        (2, 3, Fault::Drop(0), ""),
        (9, 2, status(503), ""),
        (9, 1, Fault::OtherPart, ""),
        (9, 1, status(403), ""),
        (9, 2, Fault::Late(Duration::from_millis(300)), ""),
        (9, 1, Fault::Garble, "it is fetched anew"),
        (9, 1, Fault::Total(99), "announced; it is fetched anew"),
    ] {
        let (place, want) = folder();
        place.hub.rule_after("/bucket/", skip, times, fault.clone());
        let errors = right(&place, NAME, &want);
        assert!(errors.contains(told), "{fault:?}: {errors}");
        assert_eq!(place.hub.left(), Vec::<String>::new(), "{fault:?} did not happen");
    }
    // A server without ranges: the model is downloaded first.
    let (place, _) = folder();
    place.hub.rule("/bucket/", FOREVER, Fault::Whole);
    let (path, _) = place.ok(&["pull", NAME]);
    assert!(path.contains("hf/hub/models--org--name/snapshots"), "{path}");
}

#[test]
fn what_stays_wrong_ends_in_an_error_and_goes_on_later() {
    for (fault, words) in [
        (Fault::Drop(0), &["ended", "early", "tries", "goes on where it was"][..]),
        (Fault::Status(500, vec![]), &["the server has a problem (500)", "tries"]),
        // The second try finds the small files or the header wrong.
        (Fault::Garble, &["tokenizer.json", "checksum"]),
        (Fault::Total(5), &["model.safetensors", "another length"]),
    ] {
        let (place, want) = folder();
        place.hub.rule_after("/bucket/", 60, FOREVER, fault.clone());
        wrong(&place, NAME, words);
        place.hub.reset();
        let errors = right(&place, NAME, &want);
        if matches!(fault, Fault::Drop(_) | Fault::Status(..)) {
            assert!(errors.contains("going on where it was interrupted"), "{fault:?}: {errors}");
        }
    }
    // A file where the folder would be: as root, modes forbid nothing.
    let (place, _) = folder();
    let _ = fs::remove_dir_all(place.path("cache"));
    fs::write(place.path("cache"), "x").unwrap();
    place.fails(&["pull", NAME], &["cache"]);
    // A model that is not supported is refused before its weights are fetched.
    let place = Place::new(Hub::start());
    place.hub.put("m-Q8_0.gguf", &super::noise(100_000, 1));
    wrong(&place, NAME, &["GGUF"]);
    assert!(place.files("").iter().all(|f| !f.to_str().unwrap().contains("resume")), "nothing is left");
}

#[test]
fn two_processes_convert_a_model_once() {
    let (place, want) = folder();
    place.hub.rule("/bucket/", FOREVER, Fault::Slow(Duration::from_millis(1)));
    let both = [place.start(&["pull", NAME]), place.start(&["pull", NAME])];
    let outs = both.map(|child| succeeded(&["pull"], child.wait_with_output().unwrap()));
    assert_eq!(outs[0].0, outs[1].0);
    assert!(outs.iter().any(|(_, errors)| errors.contains("waiting for that")), "{outs:?}");
    let whole = fs::metadata(place.path("name/model.safetensors")).unwrap().len();
    assert!(place.hub.bytes_sent() < whole * 3 / 2);
    right(&place, NAME, &want);
    // Into one file, the second is told so.
    let slow = |out: &str| place.start(&["convert", NAME, out]);
    place.ok(&["rm", NAME]);
    let mut first = slow("out.gguf");
    while !place.path("out.gguf.resume").exists() && first.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let second = slow("out.gguf").wait_with_output().unwrap();
    if first.try_wait().unwrap().is_none() {
        failed(&["convert"], second, &["another conversion is writing this file"]);
    }
    succeeded(&["convert"], first.wait_with_output().unwrap());
    assert!(fs::read(place.path("out.gguf")).unwrap() == want);
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let (place, want) = folder();
    let whole = fs::metadata(place.path("name/model.safetensors")).unwrap().len();
    let kills = if full() { 200 } else { 20 };
    let (mut resumed, mut done, mut seed) = (0, 0, 88_172_645_463_325_252u64);
    while done < kills {
        let _ = fs::remove_dir_all(place.path("cache"));
        place.hub.reset();
        place.hub.rule("/bucket/", FOREVER, Fault::Slow(Duration::from_millis(1)));
        // Of one conversion: killed up to four times, then let through.
        for _ in 0..4 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut child = place.start(&["pull", NAME]);
            let until = place.hub.bytes_sent() + seed % (whole / 3);
            while place.hub.bytes_sent() < until && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(seed % 9973));
            child.kill().unwrap();
            child.wait().unwrap();
            done += 1;
        }
        let errors = right(&place, NAME, &want);
        resumed += usize::from(errors.contains("going on where it was interrupted"));
        // Each kill costs the pieces on their way, and the headers of the first runs.
        let sent = place.hub.bytes_sent();
        assert!(sent < 2 * whole + (1 << 21), "{sent} bytes were sent of {whole}");
    }
    assert!(resumed >= kills / 8, "{resumed} of {} conversions went on", kills / 4);
}
