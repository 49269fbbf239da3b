//! An exclusive lock (flock) on a file or folder, with a timeout.
//!
//! Commands that change the same file serialize on it. A hanging command must not block the others silently.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, fstat, major, minor};
use rustix::io::Errno;

use crate::clock;

/// The wait after which the user is notified.
const NOTIFY_AFTER: Duration = Duration::from_secs(1);
/// The timeout of the wait.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The interval of attempts: flock(2) has no timeout.
const RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// Why the lock was not acquired.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is still locked by {holder} after {seconds} s; try again, or end that process if it hangs",
        path = .path.display(), seconds = .waited.as_secs())]
    Held {
        /// The locked file or folder.
        path: PathBuf,
        /// The process that holds it.
        holder: Holder,
        /// The time spent waiting.
        waited: Duration,
    },
    /// An I/O error.
    #[error("cannot lock {path}: {source}", path = .path.display())]
    Io {
        /// The file or folder to lock.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// The process that holds a lock, if `/proc` shows it: PID and command name.
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

/// Locks `handle`, the file or folder at `path`, until it is closed. If that takes more than a second, `notify` gets a
/// message.
///
/// # Errors
/// If another process holds the lock for 10 seconds.
pub fn exclusive(handle: impl AsFd, path: &Path, notify: &dyn Fn(&str)) -> Result<(), LockError> {
    exclusive_within(handle, path, NOTIFY_AFTER, TIMEOUT, notify)
}

fn exclusive_within(
    handle: impl AsFd,
    path: &Path,
    notify_after: Duration,
    timeout: Duration,
    notify: &dyn Fn(&str),
) -> Result<(), LockError> {
    let began = clock::monotonic();
    let mut is_notified = false;
    loop {
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(errno) => return Err(LockError::Io { path: path.to_owned(), source: errno.into() }),
        }
        let waited = clock::monotonic().duration_since(began);
        if waited >= timeout {
            return Err(LockError::Held { path: path.to_owned(), holder: holder_of(&handle), waited });
        }
        if waited >= notify_after && !std::mem::replace(&mut is_notified, true) {
            notify(&format!("waiting for the lock of {}, which {} holds", path.display(), holder_of(&handle)));
        }
        std::thread::sleep(RETRY_INTERVAL);
    }
}

/// The process that holds the lock on the file of `handle`.
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

/// Finds the process that holds the flock on `file` in the lines of `/proc/locks`, such as `1: FLOCK  ADVISORY  WRITE
/// 708 00:13:2115 0 EOF`. Lines of waiting processes have an arrow before FLOCK.
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
    fn lock_timeout_names_the_holder() {
        let folder = tempfile::tempdir().unwrap();
        let [held, wanted] = [(); 2].map(|()| File::open(folder.path()).unwrap());
        let messages = RefCell::new(Vec::new());
        let notify = |message: &str| messages.borrow_mut().push(message.to_owned());
        let timeout = Duration::from_millis(100);
        exclusive_within(&held, folder.path(), Duration::ZERO, timeout, &notify).unwrap();
        assert_eq!(messages.borrow().len(), 0);
        let error = exclusive_within(&wanted, folder.path(), Duration::ZERO, timeout, &notify).unwrap_err().to_string();
        let holder = format!("process {} (", std::process::id());
        assert!(error.starts_with(&format!("{} is still locked by {holder}", folder.path().display())), "{error}");
        let messages = messages.into_inner();
        assert!(
            matches!(&messages[..], [one] if one.starts_with("waiting for ") && one.contains(&holder)),
            "{messages:?}"
        );
        drop(held);
        exclusive(&wanted, folder.path(), &|message| panic!("{message}")).unwrap();
    }

    #[test]
    fn holder_is_the_process_with_the_flock_not_the_waiter() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 2 fe:00:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 3 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 4 fe:00:77 0 EOF\n";
        assert_eq!(holder_in(locks, "fe:00:77"), Some(4));
        assert_eq!(holder_in(locks, "fe:00:79"), None);
        assert_eq!(holder_in("nonsense\n\n", "fe:00:77"), None);
    }
}
