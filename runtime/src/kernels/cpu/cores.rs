//! The cores on which threads run. Phones have big and small cores; a caller can pass a list.
//!
//! A thread is bound to the whole list, not to one core. So the system may move it within the list, and two
//! pools do not collide on one core.

use crate::error::{Error, Result};

/// Checks that this process may run on all of `cores`, and that the system can bind threads.
///
/// # Errors
/// `Invalid` for an empty list or a core that does not exist; `Unsupported` if the system cannot bind threads.
pub(super) fn check(cores: &[usize]) -> Result<()> {
    if cores.is_empty() {
        return Err(Error::Invalid("an empty list of cores".into()));
    }
    imp::check(cores)
}

/// Binds the calling thread. If the system refuses, only speed suffers, not results.
pub(super) fn bind(cores: &[usize]) {
    imp::bind(cores);
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod imp {
    use super::{Error, Result};
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn check(cores: &[usize]) -> Result<()> {
        let all = sched_getaffinity(None)
            .map_err(|e| Error::Invalid(format!("the system does not say which cores there are: {e}")))?;
        match cores.iter().find(|&&core| core >= CpuSet::MAX_CPU || !all.is_set(core)) {
            None => Ok(()),
            Some(core) => Err(Error::Invalid(format!(
                "core {core} is not among the {} that this process may use",
                all.count()
            ))),
        }
    }

    pub(super) fn bind(cores: &[usize]) {
        let mut set = CpuSet::new();
        cores.iter().for_each(|&core| set.set(core));
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod imp {
    use super::{Error, Result};

    pub(super) fn check(_: &[usize]) -> Result<()> {
        Err(Error::unsupported("threads cannot be bound to cores on this system"))
    }

    pub(super) fn bind(_: &[usize]) {}
}
