//! An exclusive lock on a file or folder, waited for, but not for ever.
//!
//! Commands that change the same file take turns by it. One that hangs must not hang all others silently.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, fstat, major, minor};
use rustix::io::Errno;

use crate::clock;

/// How long to wait before that is told.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// How long to wait at most.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How soon to try again. flock(2) cannot wait for a limited time.
const RETRY_AFTER: Duration = Duration::from_millis(25);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is locked by {holder}, and was not free within {seconds} s; try again, or end that process if it hangs",
        path = .path.display(), seconds = .waited.as_secs())]
    Held {
        /// What is locked.
        path: PathBuf,
        /// By whom.
        holder: Holder,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// The system.
    #[error("{path} cannot be locked: {source}", path = .path.display())]
    Io {
        /// What was to be locked.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The process that holds a lock, as far as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(Option<(u32, String)>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some((pid, name)) => write!(f, "process {pid} ({name})"),
            None => f.write_str("another process"),
        }
    }
}

/// Locks `handle`, the file or folder at `path`, until it is closed. Gives `tell` a message if that takes a while.
///
/// # Errors
/// If another process does not let go of it in time.
pub fn exclusive(handle: impl AsFd, path: &Path, tell: &dyn Fn(&str)) -> Result<(), LockError> {
    exclusive_within(handle, path, (TELL_AFTER, LONGEST_WAIT), tell)
}

fn exclusive_within(
    handle: impl AsFd,
    path: &Path,
    (tell_after, longest): (Duration, Duration),
    tell: &dyn Fn(&str),
) -> Result<(), LockError> {
    let began = clock::monotonic();
    let mut is_told = false;
    loop {
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => return Err(LockError::Io { path: path.to_owned(), source: errno.into() }),
        }
        let waited = clock::monotonic().duration_since(began);
        if waited >= longest {
            return Err(LockError::Held { path: path.to_owned(), holder: holder_of(&handle), waited });
        }
        if waited >= tell_after && !std::mem::replace(&mut is_told, true) {
            tell(&format!("waiting for {}, which {} has locked", path.display(), holder_of(&handle)));
        }
        std::thread::sleep(RETRY_AFTER);
    }
}

/// Who has locked what `handle` is of.
fn holder_of(handle: impl AsFd) -> Holder {
    let holder = || {
        let stat = fstat(handle).ok()?;
        let file = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
        let pid = holder_in(&std::fs::read_to_string("/proc/locks").ok()?, &file)?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((pid, name.trim_end().replace(char::is_control, "\u{fffd}")))
    };
    Holder(holder())
}

/// The process that holds the flock on `file` by the lines of `/proc/locks`:
/// `1: FLOCK  ADVISORY  WRITE 708 00:13:2115 0 EOF`; what waits has an arrow before FLOCK.
fn holder_in(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let pid = fields.nth(2)?;
        (kind == "FLOCK" && fields.next()? == file).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::fs::File;

    #[test]
    fn a_lock_that_is_not_freed_is_told_and_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let [held, wanted] = [(); 2].map(|()| File::open(folder.path()).unwrap());
        let told = RefCell::new(Vec::new());
        let tell = |message: &str| told.borrow_mut().push(message.to_owned());
        let times = (Duration::ZERO, Duration::from_millis(100));
        exclusive_within(&held, folder.path(), times, &tell).unwrap();
        assert_eq!(told.borrow().len(), 0);
        let error = exclusive_within(&wanted, folder.path(), times, &tell).unwrap_err().to_string();
        let holder = format!("process {} (", std::process::id());
        assert!(error.starts_with(&format!("{} is locked by {holder}", folder.path().display())), "{error}");
        let told = told.into_inner();
        assert!(matches!(&told[..], [one] if one.starts_with("waiting for ") && one.contains(&holder)), "{told:?}");
        drop(held);
        exclusive(&wanted, folder.path(), &|message| panic!("{message}")).unwrap();
    }

    #[test]
    fn the_holder_is_who_has_the_flock_and_not_who_waits() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 2 fe:00:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 3 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 4 fe:00:77 0 EOF\n";
        assert_eq!(holder_in(locks, "fe:00:77"), Some(4));
        assert_eq!(holder_in(locks, "fe:00:79"), None);
        assert_eq!(holder_in("nonsense\n\n", "fe:00:77"), None);
    }
}
