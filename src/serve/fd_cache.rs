//! Caches the file descriptors of small files after they were sent: the next request for one takes a single `stat` of
//! its name. Without the cache a keep-alive request costs 15 to 21 % more CPU time.
//!
//! An open file keeps its inode, so any name with the same device and inode refers to this file; while size and times
//! are unchanged, so is the entity tag. The cache depends on no clock and holds no content, which is read again for
//! each response. Each thread has its own cache, so that no thread waits for another.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, statat};

use super::open_beneath::OpenFile;
use crate::files::FileStamp;

/// How many files each thread caches.
const MAX_OPEN: usize = 16;
/// The largest cached file, in bytes: a removed file occupies disk space while it is cached.
const SMALL: u64 = 64 << 10;

thread_local! {
    /// In the order of use, the most recent last.
    static FILES: RefCell<Vec<OpenFile>> = const { RefCell::new(Vec::new()) };
}

fn is_direct(name: &str) -> bool {
    !name.contains('/')
}

/// The file `name` directly in `folder`, if it is cached. Ignores names with folders, which could be symlinks.
pub(super) fn find(folder: BorrowedFd<'_>, name: &str) -> Option<OpenFile> {
    if !is_direct(name) || FILES.with_borrow(Vec::is_empty) {
        return None;
    }
    let now = FileStamp::of_stat(&statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?);
    FILES.with_borrow_mut(|files| {
        let found = files.iter().rposition(|file| file.stamp == now)?;
        files[found..].rotate_left(1);
        files.last().cloned()
    })
}

/// Caches `file`, found under `name`. Evicts the least recently used file if there are too many.
pub(super) fn insert(file: &OpenFile, name: &str) {
    if file.size > SMALL || !is_direct(name) {
        return;
    }
    FILES.with_borrow_mut(|files| {
        if files.len() >= MAX_OPEN {
            files.remove(0);
        }
        files.push(file.clone());
    });
}
