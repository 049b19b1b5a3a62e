//! Gate 104: a calibrated conversion that was interrupted anywhere resumes there, and gives the same bytes.
//! Files of another command are not used.

use dollop::convert::{ConvertOptions, Journal, Size, convert};
use dollop::{CalibrateOptions, CancelToken, Error, Progress};
use dollop_tests::set;
use dollop_tests::uneven::uneven;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const OPTIONS: &str = "these";

/// Counts until the end, or until the `end`th progress report: parts done before, and reports of each stage.
#[derive(Debug, Default)]
struct Run {
    before: usize,
    stale: bool,
    heard: Vec<&'static str>,
}

impl Run {
    fn heard(&self, stage: &str) -> usize {
        self.heard.iter().filter(|s| **s == stage).count()
    }
}

fn run(source: &Path, out: &Path, size: Option<Size>, options: &str, end: usize) -> Result<Run, Run> {
    let (cancel, mut run) = (CancelToken::new(), Run::default());
    let journal = Journal::open(out, source, options).unwrap();
    (run.before, run.stale) = (journal.done(), journal.was_stale());
    let mut progress = |p: Progress| {
        run.heard.push(p.stage);
        if run.heard.len() == end {
            cancel.cancel();
        }
    };
    // One thread, for the same reports each time.
    let how = CalibrateOptions::default().with_tokens(700).with_threads(1);
    let how = set!(CalibrateOptions { resume: Some(journal.clone()), ..how });
    let result = dollop::calibrate_by_itself(source, &how, &cancel, &mut progress).and_then(|calibration| {
        let options = set!(ConvertOptions {
            calibration: Some(Arc::new(calibration)),
            resume: Some(journal),
            size,
            ..ConvertOptions::default().with_threads(1)
        });
        convert(source, out, &options, &cancel, &mut progress)
    });
    match result {
        Ok(_) => Ok(run),
        Err(Error::Cancelled) => Err(run),
        Err(e) => panic!("{e}"),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_conversion_ended_anywhere_goes_on_to_the_same_bytes() {
    let source = tempfile::tempdir().unwrap();
    uneven(source.path(), 3.0);
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("m.gguf");
    for size in [None, Some(Size::Bits(3.2))] {
        let whole = run(source.path(), &out, size, OPTIONS, usize::MAX).unwrap();
        let want = fs::read(&out).unwrap();
        assert!(files(place.path()) == std::slice::from_ref(&out), "something is left");
        let total = whole.heard.len();
        let written = whole.heard("writing text");
        assert!(
            written > 20 && whole.heard("calibrating") > 4 && whole.heard("converting") > 10,
            "{whole:?}"
        );
        let (mut went_on, mut spared) = (0, 0);
        // Within each stage, and shortly before the end.
        let ends =
            if size.is_none() { vec![1, 12, written + 2, total / 2, total - 1] } else { vec![20, total - 1] };
        for end in ends {
            fs::remove_file(&out).unwrap();
            let first = run(source.path(), &out, size, OPTIONS, end).unwrap_err();
            assert!(!out.exists() && first.before == 0, "{end} of {total}");
            let second = run(source.path(), &out, size, OPTIONS, usize::MAX).unwrap();
            assert!(fs::read(&out).unwrap() == want, "ended at {end} of {total}: other bytes");
            assert!(files(place.path()) == std::slice::from_ref(&out), "{end} of {total}: something is left");
            went_on += usize::from(second.before > 0);
            spared += written - second.heard("writing text").min(written);
        }
        println!("{went_on} went on, and spared {spared} of {written} steps of writing each");
        assert!(went_on > 1 && spared > written && spared % written > 0, "{spared} of {written}");
    }
}

#[test]
fn a_journal_that_is_cut_damaged_or_of_something_else_is_used_as_far_as_it_is_whole() {
    let source = tempfile::tempdir().unwrap();
    uneven(source.path(), 3.0);
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("m.gguf");
    let whole = run(source.path(), &out, None, OPTIONS, usize::MAX).unwrap();
    let want = fs::read(&out).unwrap();
    fs::remove_file(&out).unwrap();
    let (journal, inputs, file) = ("m.gguf.resume", "m.gguf.resume-inputs", "m.gguf.resume-file");
    run(source.path(), &out, None, OPTIONS, whole.heard.len() - 3).unwrap_err();
    let left = [journal, inputs, file].map(|name| fs::read(place.path().join(name)).unwrap());
    let restore = || {
        for (name, bytes) in [journal, inputs, file].iter().zip(&left) {
            fs::write(place.path().join(name), bytes).unwrap();
        }
    };
    let again = |what: &str| {
        let done = run(source.path(), &out, None, OPTIONS, usize::MAX).unwrap();
        assert!(fs::read(&out).unwrap() == want, "{what}: other bytes");
        fs::remove_file(&out).unwrap();
        done
    };
    let all = again("whole").before;
    assert!(all > 10, "{all}");
    // The file as after a power failure during a write.
    let mut befores = Vec::new();
    for share in [1, 5, 9] {
        restore();
        fs::write(place.path().join(journal), &left[0][..left[0].len() * share / 10]).unwrap();
        befores.push(again("cut").before);
    }
    assert!(befores.windows(2).all(|w| w[0] <= w[1]) && befores[2] > 0 && befores[2] < all, "{befores:?}");
    for missing in [inputs, file] {
        restore();
        fs::remove_file(place.path().join(missing)).unwrap();
        let done = again(missing);
        assert_eq!((done.heard("calibrating") > 0, done.heard("writing text")), (missing == inputs, 0));
    }
    restore();
    let other = run(source.path(), &out, None, "others", usize::MAX).unwrap();
    assert!(other.stale && other.before == 0 && other.heard("writing text") > 0, "{other:?}");
    fs::remove_file(&out).unwrap();
    // The source has changed.
    restore();
    let mut config = fs::read(source.path().join("config.json")).unwrap();
    config.push(b'\n');
    fs::write(source.path().join("config.json"), config).unwrap();
    let changed = again("another source");
    assert!(changed.stale && changed.before == 0, "{changed:?}");
}
