//! Gate 140: each thing that a server does ends in the right bytes in the hub's own layout, or in an error that says what to do and
//! nothing under a final name. Gate 141: a download that is killed at any moment goes on to the same bytes.

use super::server::{Fault, Hub, sha256};
use super::{PIECE, Place, failed, noise, succeeded};
use dollop_tests::full;
use dollop_tests::talker::Talker;
use std::fs;
use std::time::Duration;

const FOREVER: usize = usize::MAX;
const NAME: &str = "hf:org/name";

/// A hub with a model of 20 pieces.
fn one() -> (Place, Vec<u8>) {
    let bytes = noise(20 * PIECE as usize - 77, 1);
    (Place::new(Hub::with(&[("m-Q8_0.gguf", &bytes), ("README.md", b"hello")])), bytes)
}

/// Pulls; expects these bytes, in the cache's layout.
fn right(place: &Place, name: &str, bytes: &[u8]) -> String {
    let (path, errors) = place.ok(&["pull", "--keep-source", name]);
    assert!(fs::read(&path).unwrap() == bytes, "{path}: other bytes");
    let blob = place.path("hf/hub/models--org--name/blobs").join(sha256(bytes));
    assert_eq!(fs::canonicalize(&path).unwrap(), fs::canonicalize(blob).unwrap());
    assert!(place.files(".dollop-partial").is_empty() && place.files(".dollop-pieces").is_empty());
    errors
}

/// Pulls; expects an error with these words, and no file of the model.
fn wrong(place: &Place, name: &str, words: &[&str]) {
    place.fails(&["pull", "--keep-source", name], words);
    assert!(place.files(".gguf").is_empty());
    let blobs = fs::read_dir(place.path("hf/hub/models--org--name/blobs"));
    let names: Vec<_> =
        blobs.into_iter().flatten().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|n| n.contains(".dollop-") || n.len() == 40), "{names:?}");
}

#[test]
fn a_model_lies_where_other_programs_look_for_it() {
    let (place, bytes) = one();
    let errors = right(&place, NAME, &bytes);
    assert!(errors.contains("Q8_0 is taken") && errors.contains("codes are kept"), "{errors}");
    let repo = place.path("hf/hub/models--org--name");
    let commit = "a".repeat(40);
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), commit);
    let link = fs::read_link(repo.join("snapshots").join(&commit).join("m-Q8_0.gguf")).unwrap();
    assert_eq!(link.to_str().unwrap(), format!("../../blobs/{}", sha256(&bytes)));
    let seen = place.hub.reset();
    assert!(seen.iter().filter(|s| s.storage).count() >= 20, "pieces came one by one");
    assert!(seen.iter().all(|s| !s.path.contains("README")), "only what the model needs");
    // Redirects are asked for once, not for each piece.
    assert!(seen.iter().filter(|s| s.path.contains("/resolve/")).count() <= 6);
    // What is here is not fetched again.
    right(&place, "hf:org/name:q8_0", &bytes);
    right(&place, &format!("{}/org/name/blob/main/m-Q8_0.gguf", place.hub.endpoint), &bytes);
    assert!(place.hub.reset().iter().all(|s| !s.storage));
}

#[test]
fn split_models_folders_and_names_of_all_kinds() {
    let parts: Vec<Vec<u8>> = (1..=3).map(|i| noise(40_000, i)).collect();
    let odd = noise(1000, 9);
    let hub = Hub::with(&[
        ("BF16/m-BF16-00001-of-00003.gguf", &parts[0]),
        ("BF16/m-BF16-00002-of-00003.gguf", &parts[1]),
        ("BF16/m-BF16-00003-of-00003.gguf", &parts[2]),
        ("ein Modell é-Q4_0.gguf", &odd),
        ("leer-Q2_K.gguf", b""),
    ]);
    let place = Place::new(hub);
    let (path, _) = place.ok(&["pull", "--keep-source", "hf:org/name:bf16@v1"]);
    let folder = std::path::Path::new(&path).parent().unwrap();
    for (i, part) in parts.iter().enumerate() {
        assert!(fs::read(folder.join(format!("m-BF16-0000{}-of-00003.gguf", i + 1))).unwrap() == *part);
    }
    right(&place, "hf:org/name:Q4_0", &odd);
    right(&place, "hf:org/name:ein Modell é-Q4_0.gguf", &odd);
    right(&place, "hf:org/name:leer-Q2_K.gguf", b"");
    place.fails(&["pull", "hf:org/name:Q5_K_M"], &["there is no `Q5_K_M`", "BF16 (120.00 kB)", "Q4_0"]);
    place.fails(&["pull", "hf:org/name@v2"], &["no such revision"]);
    place.fails(&["pull", "model.gguf"], &["this is a path"]);
}

#[test]
fn a_name_stands_where_a_model_does_and_needs_no_network_twice() {
    let place = Place::new(Hub::start());
    Talker::saying("Paris.", "{{ messages[-1].content }}{{ '\\n' }}").write(&place.path("talker"));
    place.hub.put_folder(&place.path("talker"));
    let run = [
        "run",
        NAME,
        "--keep-source",
        "-p",
        "What is the capital of France?",
        "--backend",
        "cpu",
        "-t",
        "1",
        "--temp",
        "0",
    ];
    let (answer, errors) = place.ok(&run);
    assert_eq!(answer, "Paris.", "{errors}");
    assert!(!place.hub.reset().is_empty());
    let (answer, _) = place.ok(&run);
    assert_eq!(answer, "Paris.");
    assert!(place.hub.reset().is_empty(), "what is here needs no request");
    // A conversion of the name is written here, under the repository's name.
    place.ok(&["convert", NAME]);
    assert!(place.path("name.dollop.gguf").is_file());
    let (list, _) = place.ok(&["list"]);
    for words in ["hf:org/name:safetensors", "conversion, last used 2", "models--org--name/snapshots"] {
        assert!(list.contains(words), "{words}: {list}");
    }
    let mut offline = place.command(&run);
    let (answer, _) = succeeded(&run, offline.env("HF_HUB_OFFLINE", "1").output().unwrap());
    assert_eq!(answer, "Paris.");
    let other = ["run", "hf:org/other", "-p", "x"];
    let out = place.command(&other).env("HF_HUB_OFFLINE", "1").output().unwrap();
    failed(&other, out, &["HF_HUB_OFFLINE", "not in"]);
    assert!(place.hub.reset().is_empty(), "offline is offline");
    // With the model go its conversions; what was written elsewhere stays.
    let (gone, _) = place.ok(&["rm", NAME]);
    assert!(gone.contains("hf:org/name:safetensors") && gone.matches(".gguf").count() == 1, "{gone}");
    assert!(!place.path("hf/hub/models--org--name").exists() && place.path("name.dollop.gguf").is_file());
    place.fails(&["rm", NAME], &["nothing of it"]);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (place, bytes) = one();
    fs::create_dir_all(place.path("hf")).unwrap();
    fs::write(place.path("hf/token"), "hf_secret\n").unwrap();
    right(&place, NAME, &bytes);
    let seen = place.hub.reset();
    let (storage, hub): (Vec<_>, Vec<_>) = seen.iter().partition(|s| s.storage);
    assert!(!hub.is_empty() && hub.iter().all(|s| s.token.as_deref() == Some("Bearer hf_secret")), "{hub:?}");
    assert!(!storage.is_empty() && storage.iter().all(|s| s.token.is_none()));
    // The same machine by another name is another host.
    let url = place.hub.put_plain("x.gguf", &bytes);
    place.ok(&["pull", "--keep-source", &url]);
    assert!(place.hub.reset().iter().all(|s| s.token.is_none()));
}

#[test]
fn refusals_say_what_to_do() {
    let (place, _) = one();
    let gated = |status| {
        let header = |name, value: &str| (name, value.to_owned());
        Fault::Status(
            status,
            vec![header("X-Error-Code", "GatedRepo"), header("X-Error-Message", "Access restricted")],
        )
    };
    for (rule, fault, words) in [
        ("/resolve/", gated(401), &["gated (401)", "accept its terms", "HF_TOKEN", "Access restricted"][..]),
        ("/resolve/", gated(403), &["gated (403)", "accept its terms"]),
        ("/bucket/", Fault::Status(403, vec![]), &["access is refused (403)"]),
        ("/api/", Fault::Status(418, vec![]), &["status 418"]),
        ("/api/", Fault::Say("<html>".into()), &["no answer of a hub"]),
        ("/api/", Fault::Say(r#"{"sha":"../../x"}"#.into()), &["is no commit"]),
        ("/tree/", Fault::Say("[7]".into()), &["no listing"]),
        ("/tree/", Fault::Say(listing("../../m-Q8_0.gguf", 'b')), &["outside the repository", "refused"]),
        ("/tree/", Fault::Say(listing("C:\\\\m-Q8_0.gguf", 'b')), &["outside the repository"]),
        ("/tree/", Fault::Say(listing("m-Q8_0.gguf", '/')), &["checksum"]),
        ("/tree/", Fault::Status(302, vec![("Location", "ftp://x/y".into())]), &["redirect", "refused"]),
        ("/tree/", Fault::Status(302, vec![("Location", "/elsewhere".into())]), &["refused (401)"]),
        ("/tree/", Fault::Status(429, vec![("Retry-After", "9999".into())]), &["429", "wait 9999 s"]),
    ] {
        place.hub.reset();
        place.hub.rule(rule, FOREVER, fault.clone());
        wrong(&place, NAME, words);
    }
    place.hub.reset();
    wrong(&place, "hf:org/nowhere", &["no such repository", "private or gated", "HF_TOKEN"]);
    let mut unreachable = place.command(&["pull", "--keep-source", NAME]);
    let out = unreachable.env("HF_ENDPOINT", "http://127.0.0.1:9").output().unwrap();
    failed(&["pull"], out, &["127.0.0.1", "tries", "check the network"]);
    // An index that climbs out of its folder.
    place.hub.put("config.json", b"{}");
    place.hub.put("model.safetensors.index.json", br#"{"weight_map":{"a":"../../x.safetensors"}}"#);
    wrong(&place, "hf:org/name:safetensors", &["is no file name"]);
    place.hub.put("model.safetensors.index.json", br#"{"weight_map":{"a":"model-1.safetensors"}}"#);
    place.hub.commit('d');
    wrong(
        &place,
        "hf:org/name:safetensors",
        &["names `model-1.safetensors`, which the repository does not have"],
    );
}

fn listing(path: &str, digit: char) -> String {
    let sum = digit.to_string().repeat(64);
    format!(
        r#"[{{"type":"file","path":"{path}","size":9,"oid":"{}","lfs":{{"oid":"{sum}","size":9}}}}]"#,
        "b".repeat(40)
    )
}

#[test]
fn what_goes_wrong_on_the_way_ends_in_the_right_bytes() {
    let status = |code, wait: Option<&str>| {
        Fault::Status(code, wait.map(|w| ("Retry-After", w.to_owned())).into_iter().collect())
    };
    for (rule, skip, times, fault, told) in [
        ("/bucket/", 3, 4, Fault::Drop(5000), ""),
        ("/bucket/", 0, 3, Fault::Drop(0), ""),
        ("/bucket/", 2, 2, status(503, None), ""),
        ("/api/", 0, 1, status(429, Some("1")), "waiting 1 s"),
        ("/bucket/", 5, 1, status(429, Some("1")), "waiting 1 s"),
        ("/resolve/", 0, 1, status(502, None), ""),
        ("/bucket/", 4, 1, Fault::OtherPart, ""),
        // A signature that has run out: the hub gives another.
        ("/bucket/", 8, 1, status(403, None), ""),
        ("/bucket/", 6, 2, Fault::Slow(Duration::from_millis(20)), ""),
        ("/bucket/", 0, 2, Fault::Late(Duration::from_millis(300)), ""),
        // Other bytes are found out by the checksum, another length at once.
        ("/bucket/", 3, 1, Fault::Garble, "it is fetched anew"),
        ("/bucket/", 3, 1, Fault::Total(99), "announced; it is fetched anew"),
        ("/bucket/", 0, FOREVER, Fault::Whole, ""),
    ] {
        let (place, bytes) = one();
        place.hub.rule_after(rule, skip, times, fault.clone());
        let errors = right(&place, NAME, &bytes);
        assert!(errors.contains(told), "{fault:?}: {errors}");
        assert_eq!(place.hub.left(), Vec::<String>::new(), "{fault:?} did not happen");
    }
}

#[test]
fn what_stays_wrong_ends_in_an_error_and_goes_on_later() {
    for (fault, words) in [
        (Fault::Drop(0), &["ended", "early", "tries", "goes on where it was"][..]),
        (Fault::Status(500, vec![]), &["the server has a problem (500)", "tries"]),
        (Fault::Garble, &["checksum", "twice in a row"]),
        (Fault::Total(5), &["has 5 bytes", "twice in a row"]),
        (Fault::OtherPart, &["other bytes", "tries"]),
    ] {
        let (place, bytes) = one();
        place.hub.rule_after("/bucket/", 10, FOREVER, fault.clone());
        wrong(&place, NAME, words);
        place.hub.reset();
        right(&place, NAME, &bytes);
        if matches!(fault, Fault::Drop(_) | Fault::Status(..)) {
            let pieces = place.hub.reset().iter().filter(|s| s.storage).count();
            assert!(pieces <= 16, "{fault:?}: {pieces} of 20 pieces again");
        }
    }
}

#[test]
fn files_of_any_server_are_kept_by_their_urls() {
    let place = Place::new(Hub::start());
    let (old, new) = (noise(300_000, 3), noise(300_000, 4));
    let url = place.hub.put_plain("m.gguf", &old);
    // It changes in the middle: the parts of both are not mixed.
    place.hub.rule_after("/files/m.gguf", 9, 1, Fault::Change(new.clone()));
    let (path, errors) = place.ok(&["pull", "--keep-source", &url]);
    assert!(errors.contains("changed on the server") && fs::read(&path).unwrap() == new, "{errors}");
    place.hub.reset();
    assert_eq!(place.ok(&["pull", "--keep-source", &url]).0, path);
    assert!(place.hub.reset().is_empty(), "it is here");
    let parts = [noise(50_000, 5), noise(60_000, 6)];
    place.hub.put_plain("s-00001-of-00002.gguf", &parts[0]);
    let second = place.hub.put_plain("s-00002-of-00002.gguf", &parts[1]);
    let (first, _) = place.ok(&["pull", "--keep-source", &second]);
    assert!(first.ends_with("s-00001-of-00002.gguf") && fs::read(&first).unwrap() == parts[0]);
    assert!(fs::read(first.replace("00001-of", "00002-of")).unwrap() == parts[1]);
    let (gone, _) = place.ok(&["rm", &url]);
    assert!(gone.contains("m.gguf") && !std::path::Path::new(&path).exists());
    place.fails(&["pull", &format!("{}/x.bin", url)], &["ends in .gguf"]);
    place.fails(&["pull", &url.replace("m.gguf", "none.gguf")], &["no such file"]);
}

#[test]
fn a_new_commit_is_fetched_by_pull_alone() {
    let (place, bytes) = one();
    right(&place, NAME, &bytes);
    let other = noise(90_000, 7);
    place.hub.put("m-Q8_0.gguf", &other);
    place.hub.commit('c');
    place.hub.reset();
    place.fails(&["inspect", NAME], &["no GGUF file"]);
    assert!(place.hub.reset().is_empty(), "the one that is here is used");
    right(&place, NAME, &other);
    let (list, _) = place.ok(&["list"]);
    assert_eq!(list.matches("hf:org/name:Q8_0").count(), 2, "{list}");
    // The revision that is named goes, and the bytes of the other stay.
    place.ok(&["rm", &format!("hf:org/name:Q8_0@{}", "a".repeat(40))]);
    right(&place, NAME, &other);
    assert_eq!(place.files(&sha256(&bytes)).len(), 0);
}

#[test]
fn two_processes_fetch_a_model_once() {
    let (place, bytes) = one();
    place.hub.rule("/bucket/", FOREVER, Fault::Slow(Duration::from_millis(15)));
    let both = [place.start(&["pull", "--keep-source", NAME]), place.start(&["pull", "--keep-source", NAME])];
    let outs = both.map(|child| succeeded(&["pull"], child.wait_with_output().unwrap()));
    assert_eq!(outs[0].0, outs[1].0);
    assert!(outs.iter().any(|(_, errors)| errors.contains("waiting for that")), "{outs:?}");
    let pieces = place.hub.reset().iter().filter(|s| s.storage).count();
    assert!(pieces <= 22, "{pieces} pieces for one file of 20");
    right(&place, NAME, &bytes);
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let bytes = noise(24 * PIECE as usize + 5, 11);
    let place = Place::new(Hub::with(&[("m-Q8_0.gguf", &bytes)]));
    let kills = if full() { 200 } else { 20 };
    let (mut resumed, mut seed) = (0, 88_172_645_463_325_252u64);
    let mut done = 0;
    while done < kills {
        let _ = fs::remove_dir_all(place.path("hf"));
        place.hub.reset();
        place.hub.rule("/bucket/", FOREVER, Fault::Slow(Duration::from_millis(3)));
        // Of one download: killed up to four times, then let through.
        for _ in 0..4 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut child = place.start(&["pull", "--keep-source", NAME]);
            // At a random byte of what is still to come, and a moment later.
            let until = place.hub.bytes_sent() + seed % (bytes.len() as u64 / 4);
            while place.hub.bytes_sent() < until && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(seed % 9973));
            child.kill().unwrap();
            child.wait().unwrap();
            done += 1;
            let marks = place.files(".dollop-pieces").first().map(|f| fs::read(f).unwrap());
            resumed += usize::from(
                marks.is_some_and(|m| m.split(|b| *b == b'\n').nth(1).is_some_and(|m| m.contains(&b'1'))),
            );
        }
        right(&place, NAME, &bytes);
    }
    assert!(resumed >= kills / 4, "{resumed} of {kills} kills came between pieces");
}

#[test]
fn what_is_left_over_is_pruned() {
    let (place, bytes) = one();
    place.hub.rule_after("/bucket/", 10, FOREVER, Fault::Drop(0));
    wrong(&place, NAME, &["early"]);
    let (list, _) = place.ok(&["prune", "--dry-run"]);
    assert!(list.contains(&sha256(&bytes)) && list.contains("would be free"), "{list}");
    assert_eq!(place.files(".dollop-partial").len(), 1);
    place.ok(&["prune"]);
    assert!(place.files(".dollop-partial").is_empty() && place.files(".dollop-pieces").is_empty());
    // A conversion whose source is gone.
    Talker::saying("Yes.", "{{ messages[-1].content }}{{ '\\n' }}").write(&place.path("talker"));
    place.ok(&["run", "talker", "-p", "x", "--backend", "cpu", "-t", "1"]);
    let (kept, _) = place.ok(&["prune"]);
    assert_eq!(place.files(".gguf").len(), 1, "{kept}");
    fs::rename(place.path("talker"), place.path("elsewhere")).unwrap();
    let (list, _) = place.ok(&["list"]);
    assert!(list.contains("which is gone"), "{list}");
    place.ok(&["prune"]);
    assert!(place.files(".gguf").is_empty() && place.files(".source").is_empty());
}

#[cfg(unix)]
#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let (place, _) = one();
    // A file where the folder would be: as root, modes forbid nothing.
    fs::create_dir_all(place.path("hf")).unwrap();
    fs::write(place.path("hf/hub"), "x").unwrap();
    place.fails(&["pull", "--keep-source", NAME], &["hf/hub"]);
}
