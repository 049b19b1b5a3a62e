//! ^C: cancels the running operation; ends the program if there is none.

use dollop::CancelToken;
use std::sync::{Mutex, Once, PoisonError};

static RUNNING: Mutex<Option<CancelToken>> = Mutex::new(None);
static INSTALL: Once = Once::new();

/// While this exists, ^C cancels its token instead of ending the program. A second ^C ends it.
pub struct Guard(());

/// A token that ^C cancels.
pub fn cancellable() -> (CancelToken, Guard) {
    INSTALL.call_once(|| {
        // Without a handler, ^C ends the program at once, which is acceptable.
        let _ = ctrlc::set_handler(|| match RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(token) => token.cancel(),
            None => std::process::exit(130),
        });
    });
    let token = CancelToken::new();
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = Some(token.clone());
    (token, Guard(()))
}

impl Drop for Guard {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
