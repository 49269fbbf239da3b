//! Reads files whose paths the operator configured, and detects their changes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, stat};

use crate::state::kind_of;

/// The age of a file's last change after which an equal stamp proves that the file is unchanged.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Reads the whole regular file at `path`. Anything else is an error: reading a pipe could block without end.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    // Before it is opened: opening a device may start it, and a socket cannot be opened.
    check_regular(stat(path).map_err(unreadable)?.st_mode)?;
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(unreadable)?);
    check_regular(fstat(&file)?.st_mode)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same as text.
pub fn read_regular_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_regular(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not text in UTF-8"))
}

fn check_regular(mode: u32) -> io::Result<()> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(()),
        kind => {
            let kind = kind_of(kind);
            Err(io::Error::other(format!("is not a regular file but {kind}; put the file itself in its place")))
        }
    }
}

/// Adds the remedy to a lack of permissions.
fn unreadable(error: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(error);
    if error.kind() != io::ErrorKind::PermissionDenied {
        return error;
    }
    let remedy = "let the user that runs provost read it, and enter the folders above it";
    io::Error::new(error.kind(), format!("{error}; {remedy}"))
}

/// Device and inode.
pub type FileIdentity = (u64, u64);

/// Identity, size and times of a file, to detect changes. The times have nanoseconds: a file that is rewritten in place
/// twice within a second may keep its size, as certificates do, and must still count as changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    identity: FileIdentity,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

#[must_use]
pub fn identity(stat: &Stat) -> FileIdentity {
    (stat.st_dev, stat.st_ino)
}

impl FileStamp {
    /// The stamp of the file at `path`; `None` if there is no such file.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        rustix::fs::stat(path).ok().map(|stat| Self::of_stat(&stat))
    }

    #[must_use]
    pub fn of_stat(stat: &Stat) -> Self {
        Self {
            identity: identity(stat),
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether both stamps are of the same inode, whatever its content.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// The stamp, if an equal one will prove at any later time that the file is as it was at `now`. A stamp of a file that
    /// has just changed does not: a second change may leave the same times.
    #[must_use]
    pub fn settled(self, now: SystemTime) -> Option<Self> {
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        now.duration_since(changed).is_ok_and(|age| age > SETTLED_AFTER).then_some(self)
    }
}

/// Files that are read together, and again when one of them changes.
#[derive(Debug, Default)]
pub struct WatchedFiles {
    /// The stamps at the last read. `None` before the first.
    read: Option<Stamps>,
    /// The stamps at the last check.
    last: Stamps,
    /// Why the last read failed, if it is to be repeated.
    failure: Option<String>,
    /// Whether the failure is that of an earlier read of the same files.
    is_repeated: bool,
}

/// One for each file; `None` for a missing one.
type Stamps = Vec<Option<FileStamp>>;

impl WatchedFiles {
    /// Whether `files` are to be read now. A replaced file (by rename) is complete and due at once. A file written in place
    /// may be incomplete: it is due once it is unchanged since the previous check (debounce). Files that could not be read
    /// stay due.
    pub fn is_due(&mut self, files: &[PathBuf]) -> bool {
        let now: Stamps = files.iter().map(|file| FileStamp::of(file)).collect();
        let is_unchanged = self.read.as_ref() == Some(&now);
        let is_due = match &self.read {
            None => true,
            Some(_) if is_unchanged => self.failure.is_some(),
            Some(read) => self.last == now || is_replaced(read, &now),
        };
        self.last.clone_from(&now);
        if is_due {
            self.is_repeated = is_unchanged;
            self.read = Some(now);
        }
        is_due
    }

    /// Notes the result of the read for which the files were due. Returns whether it is news: a repeated read that fails
    /// in the same way is not.
    pub fn note_read(&mut self, failure: Option<String>) -> bool {
        let is_news = failure.is_none() || !self.is_repeated || failure != self.failure;
        self.failure = failure;
        is_news
    }
}

fn is_replaced(before: &Stamps, after: &Stamps) -> bool {
    let is_whole = |(before, after): (&Option<FileStamp>, &Option<FileStamp>)| match (before, after) {
        (Some(before), Some(after)) => before == after || !before.is_same_file(after),
        (None, _) | (_, None) => before == after,
    };
    before.len() == after.len() && before.iter().zip(after).all(is_whole)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "written in place, as an editor does")]
mod tests {
    use super::*;

    #[test]
    fn replaced_file_is_read_at_once_edited_file_after_debounce() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "one").unwrap();
        let mut watched = WatchedFiles::default();
        let files = [path.clone()];
        let mut is_due = || watched.is_due(&files) && watched.note_read(None);
        assert!(is_due() && !is_due());
        std::fs::write(folder.path().join("new"), "two").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(is_due() && !is_due());
        std::fs::write(&path, "half").unwrap();
        assert!(!is_due());
        std::fs::write(&path, "half and more").unwrap();
        assert!(!is_due());
        assert!(is_due() && !is_due());
        std::fs::remove_file(&path).unwrap();
        assert!(!is_due());
        assert!(is_due() && !is_due());
    }

    #[test]
    fn unreadable_file_is_read_again_until_it_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("ca.pem")];
        std::fs::write(&files[0], "one").unwrap();
        let mut watched = WatchedFiles::default();
        let failure = |text: &str| Some(text.to_owned());
        assert!(watched.is_due(&files) && watched.note_read(failure("denied")));
        assert!(watched.is_due(&files) && !watched.note_read(failure("denied")), "reported once");
        assert!(watched.is_due(&files) && watched.note_read(failure("too many open files")));
        assert!(watched.is_due(&files) && watched.note_read(None));
        assert!(!watched.is_due(&files));
    }
}
