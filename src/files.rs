//! Reads files whose paths the operator configured.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Reads the whole regular file at `path`. Anything else is an error: reading a pipe could block without end.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file (folders and pipes are not read)"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Identity, size and times of a file, to detect changes. The times have nanoseconds: a file that is rewritten in place
/// twice within a second may keep its size, as certificates do, and must still count as changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    identity: [i128; 2],
    content: [i128; 5],
}

impl FileStamp {
    /// The stamp of the file at `path`; `None` if there is no such file.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::stat(path).ok()?;
        Some(Self {
            identity: [stat.st_dev.into(), stat.st_ino.into()],
            content: [
                stat.st_size.into(),
                stat.st_mtime.into(),
                stat.st_mtime_nsec.into(),
                stat.st_ctime.into(),
                stat.st_ctime_nsec.into(),
            ],
        })
    }

    /// Whether both stamps are of the same inode, whatever its content.
    #[must_use]
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}
