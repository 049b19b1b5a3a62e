//! Gate 82: faults that only Rust can cause: panics of callbacks and of the library, races for a handle, structs of
//! other versions. `ffi/tests` covers what C can cause.

use crate::arguments::{Struct, init};
use crate::boundary::{Failure, dollop_last_error, run};
use crate::chat::{dollop_chat_free, dollop_chat_new, dollop_chat_send};
use crate::devices::field;
use crate::engine::{dollop_engine_free, dollop_engine_open};
use crate::generate::{dollop_event, dollop_generate_options};
use crate::handles::{self, Exclusive, dollop_plan, dollop_session};
use crate::log::{DOLLOP_LOG_DEBUG, DOLLOP_LOG_INFO, DOLLOP_LOG_TRACE, dollop_set_log};
use crate::options::{dollop_engine_options, dollop_progress};
use crate::outputs::OutStruct;
use crate::plan::dollop_plan_new;
use crate::status::{ALL, dollop_status, dollop_status_name};
use dollop_tests::default_model;
use dollop_tests::talker::Talker;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

fn last_error() -> String {
    // SAFETY: never NULL, and no call on this thread fails meanwhile.
    unsafe { CStr::from_ptr(dollop_last_error()) }.to_str().unwrap().to_owned()
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Counts its calls in `user_data`, and panics.
unsafe extern "C-unwind" fn panics(_: *const dollop_event, user_data: *mut c_void) -> i32 {
    // SAFETY: the test passes a counter that outlives the call.
    unsafe { &*user_data.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
    panic!("on purpose");
}

unsafe extern "C-unwind" fn progress_panics(_: *const dollop_progress, _: *mut c_void) -> i32 {
    panic!("on purpose");
}

#[test]
fn a_panic_of_a_callback_ends_the_generation_and_nothing_else() {
    let path = c_path(&default_model());
    let (mut engine, mut chat, calls) = (null_mut(), null_mut(), AtomicUsize::new(0));
    let mut options = dollop_generate_options { max_tokens: 4, ..Default::default() };
    options.on_event = Some(panics);
    options.user_data = (&raw const calls).cast_mut().cast();
    // SAFETY: all pointers are NULL or point to values of this function.
    unsafe {
        assert_eq!(dollop_engine_open(path.as_ptr(), null(), &mut engine), dollop_status::DOLLOP_OK);
        assert_eq!(dollop_chat_new(engine, null(), &mut chat), dollop_status::DOLLOP_OK);
        let mut text = null_mut();
        let hello = c"Hello".as_ptr();
        let status = dollop_chat_send(chat, hello, &options, &mut text, null_mut());
        assert_eq!(status, dollop_status::DOLLOP_CALLBACK_PANIC);
        assert!(last_error().contains("callback panicked") && text.is_null());
        assert_eq!(calls.load(Ordering::Relaxed), 1, "it is not called again");
        options.on_event = None;
        let status = dollop_chat_send(chat, hello, &options, null_mut(), null_mut());
        assert_eq!(status, dollop_status::DOLLOP_OK);
        assert_eq!(dollop_chat_free(chat), dollop_status::DOLLOP_OK);
        assert_eq!(dollop_engine_free(engine), dollop_status::DOLLOP_OK);
    }
}

/// Appends each message to the list in `user_data`; panics at the first.
unsafe extern "C-unwind" fn on_log(
    level: u32,
    target: *const c_char,
    message: *const c_char,
    user_data: *mut c_void,
) {
    // SAFETY: the test passes a list that outlives the sink, and a callback's texts are valid while it runs.
    let (received, target, message) =
        unsafe { (&*user_data.cast::<Received>(), CStr::from_ptr(target), CStr::from_ptr(message)) };
    let text = |t: &CStr| t.to_str().unwrap().to_owned();
    let mut received = received.lock().unwrap();
    received.push((level, text(target), text(message)));
    let first = received.len() == 1;
    drop(received);
    // SAFETY: there are no pointers.
    assert_eq!(unsafe { dollop_set_log(None, null_mut(), 0) }, dollop_status::DOLLOP_BUSY);
    assert!(!first, "on purpose");
}

type Received = Mutex<Vec<(u32, String, String)>>;

/// Gate 91, its C part. The only test here that sets the log. Meanwhile, other tests write to it.
#[test]
fn the_log_reaches_its_callback_until_it_is_removed() {
    let (path, received) = (c_path(&default_model()), Received::default());
    let user_data = (&raw const received).cast_mut().cast();
    let open = || {
        let mut engine = null_mut();
        // SAFETY: all pointers are NULL or point to values of this function.
        unsafe {
            assert_eq!(dollop_engine_open(path.as_ptr(), null(), &mut engine), dollop_status::DOLLOP_OK);
            assert_eq!(dollop_engine_free(engine), dollop_status::DOLLOP_OK);
        }
        std::mem::take(&mut *received.lock().unwrap())
    };
    // SAFETY: the list outlives the sink, which is removed below.
    let set = |callback, level| unsafe { dollop_set_log(callback, user_data, level) };
    assert_eq!(set(Some(on_log), 6), dollop_status::DOLLOP_INVALID);
    assert_eq!(set(Some(on_log), DOLLOP_LOG_INFO), dollop_status::DOLLOP_OK);
    let all = open();
    let opened = |(level, target, message): &&(u32, String, String)| {
        *level == DOLLOP_LOG_INFO && target.starts_with("dollop::") && message.contains("smollm2-moe.gguf")
    };
    assert!(all.iter().any(|m| opened(&m)) && all.iter().all(|m| m.0 <= DOLLOP_LOG_INFO), "{all:?}");
    assert_eq!(set(Some(on_log), DOLLOP_LOG_DEBUG), dollop_status::DOLLOP_OK);
    let all = open();
    assert!(all.iter().any(|m| m.0 == DOLLOP_LOG_DEBUG && m.2.starts_with("memory: ")), "{all:?}");
    assert_eq!(set(None, DOLLOP_LOG_TRACE), dollop_status::DOLLOP_OK);
    assert_eq!(open(), [], "after it was removed");
}

#[test]
fn a_panic_of_a_progress_callback_ends_the_conversion() {
    let folder = tempfile::tempdir().unwrap();
    Talker::new(b"ok", "{{ messages[-1].content }}").write(&folder.path().join("model"));
    let (model, cache) = (c_path(&folder.path().join("model")), c_path(&folder.path().join("cache")));
    let mut plan = null_mut();
    let options = dollop_engine_options {
        cache_folder: cache.as_ptr(),
        on_progress: Some(progress_panics),
        ..Default::default()
    };
    // SAFETY: all pointers point to values of this function.
    let status = unsafe { dollop_plan_new(model.as_ptr(), &options, &mut plan) };
    assert_eq!((status, plan.is_null()), (dollop_status::DOLLOP_CALLBACK_PANIC, true));
    let left = std::fs::read_dir(folder.path().join("cache")).unwrap().flatten();
    let left: Vec<_> =
        left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().ends_with(".gguf")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_panic_of_the_library_is_a_status_and_closes_only_its_handle() {
    assert_eq!(run(|| panic!("on purpose")), dollop_status::DOLLOP_PANIC);
    assert_eq!(last_error(), "a bug in Dollop: on purpose");
    let shared = Exclusive::new(1);
    let status = run(|| {
        let _value = shared.take()?;
        panic!("while it was held")
    });
    assert_eq!(status, dollop_status::DOLLOP_PANIC);
    let again = shared.take().map(|_| ()).unwrap_err();
    assert_eq!(again.status, dollop_status::DOLLOP_PANIC);
    assert!(again.text.contains("free the handle"));
    shared.cancel();
    // A NUL in an error text becomes a space.
    assert_eq!(run(|| Err(Failure::invalid("a\0b"))), dollop_status::DOLLOP_INVALID);
    assert_eq!(last_error(), "a b");
}

#[test]
fn of_many_threads_that_close_a_handle_one_does() {
    let path = c_path(&default_model());
    let (mut closed, mut late) = (0, 0);
    for _ in 0..200 {
        let mut plan = null_mut();
        // SAFETY: all pointers are NULL or point to values of this function.
        let status = unsafe { dollop_plan_new(path.as_ptr(), null(), &mut plan) };
        assert_eq!(status, dollop_status::DOLLOP_OK);
        let (number, barrier) = (plan.addr(), Arc::new(Barrier::new(4)));
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let barrier = barrier.clone();
                std::thread::spawn(move || {
                    let plan: *mut dollop_plan = std::ptr::without_provenance_mut(number);
                    barrier.wait();
                    if i == 0 {
                        // The clone keeps the value alive, even after the handle is closed.
                        return handles::get(plan.cast_const()).map(|p| p.total_bytes() > 0).unwrap_or(true);
                    }
                    handles::close(plan).is_ok()
                })
            })
            .collect();
        let results: Vec<bool> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert!(results[0]);
        closed += results[1..].iter().filter(|ok| **ok).count();
        late += results[1..].iter().filter(|ok| !**ok).count();
        // Numbers are not reused.
        let wrong = handles::get::<dollop_session>(std::ptr::without_provenance(number)).map(|_| ());
        assert_eq!(wrong.unwrap_err().status, dollop_status::DOLLOP_CLOSED);
    }
    assert_eq!((closed, late), (200, 400));
}

/// A struct that has gained one field since its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grown {
    struct_size: usize,
    old: u64,
    new: u64,
}

impl Default for Grown {
    fn default() -> Self {
        Grown { struct_size: size_of::<Self>(), old: 1, new: 2 }
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for Grown {
    const NAME: &'static str = "grown";
    const FIRST: usize = 16;
}

#[test]
fn a_program_with_an_older_header_keeps_its_bytes_and_gets_defaults() {
    let guard = 0xdead_beef_u64;
    let mut old = [16u64, 7, guard];
    let place = old.as_mut_ptr().cast::<Grown>();
    // SAFETY: the struct has 16 bytes, and its size field says 16 or is rejected.
    unsafe {
        let read = Grown::read(place).unwrap_or_else(|e| panic!("{}", e.text));
        assert_eq!(read, Grown { struct_size: 16, old: 7, new: 2 });
        let out = OutStruct::new(place).unwrap_or_else(|e| panic!("{}", e.text));
        out.set(Grown { struct_size: 24, old: 8, new: 9 });
        assert_eq!(old, [16, 8, guard]);
        let place = old.as_mut_ptr().cast::<Grown>();
        init(place, 16, |g| g.struct_size = 16).unwrap_or_else(|e| panic!("{}", e.text));
        assert_eq!(old, [16, 1, guard]);
        for size in [0, 15, 25] {
            old[0] = size;
            let failed = Grown::read(old.as_ptr().cast()).unwrap_err();
            assert_eq!(failed.status, dollop_status::DOLLOP_STRUCT_SIZE);
        }
    }
}

#[test]
fn statuses_have_one_number_and_their_own_name() {
    for (i, (status, name)) in ALL.iter().enumerate() {
        assert_eq!(name.to_str().unwrap(), format!("{status:?}"));
        assert!(ALL[..i].iter().all(|(other, _)| *other as i32 != *status as i32));
        // SAFETY: the names are never freed.
        assert_eq!(unsafe { CStr::from_ptr(dollop_status_name(*status as i32)) }, *name);
    }
}

/// Every error of the library has its own number; `DOLLOP_OTHER` is for errors of later libraries.
#[test]
fn every_error_of_the_library_has_a_status() {
    use dollop_status::*;
    use runtime::Error::*;
    let text = String::new;
    let (budget, smallest, needed, limit) = (1, 2, 3, 4);
    let all = [
        (runtime::Error::io("a", std::io::ErrorKind::NotFound.into()), DOLLOP_IO),
        (runtime::Error::malformed("a", "b"), DOLLOP_MALFORMED),
        (runtime::Error::unsupported("a"), DOLLOP_UNSUPPORTED),
        (Invalid(text()), DOLLOP_INVALID),
        (Template(text()), DOLLOP_TEMPLATE),
        (ContextFull { needed, limit }, DOLLOP_CONTEXT_FULL),
        (Budget { budget, smallest, hint: text() }, DOLLOP_BUDGET),
        (NotFinite { place: text() }, DOLLOP_NOT_FINITE),
        (Cancelled, DOLLOP_CANCELLED),
        (Device(text()), DOLLOP_DEVICE),
    ];
    for (error, status) in all {
        assert_eq!(run(|| Err(error.into())), status);
    }
    assert_eq!(run(|| Err(Failure::new(DOLLOP_OTHER, "new"))), DOLLOP_OTHER);
    assert_eq!(last_error(), "new");
}

#[test]
fn a_field_cuts_at_a_character() {
    assert_eq!(field::<4>("aé🙂").map(|c| c as u8), [b'a', 0xc3, 0xa9, 0]);
    assert_eq!(field::<4>("ab🙂").map(|c| c as u8), [b'a', b'b', 0, 0]);
    assert_eq!(field::<2>("a\0b").map(|c| c as u8), [b'a', 0]);
}
