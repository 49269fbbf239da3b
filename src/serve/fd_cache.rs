//! Small files stay open for a while after they were sent: one that is asked for again costs one look at its name.
//!
//! An open file keeps its inode, so whatever name leads to that inode on that device leads to this file; and as long as
//! its size and times are the same, so is its entity tag. No clock is trusted, and nothing is sent from memory: the
//! content is read anew. Each thread keeps its own, so that none waits for another.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, statat};

use super::open_beneath::{FileIdentity, OpenFile};

/// How many files each thread keeps.
const MAX_OPEN: usize = 16;
/// The largest of them, in bytes: a file that was removed takes its room on the disk for as long as it is kept.
const SMALL: u64 = 64 << 10;

thread_local! {
    /// The one that was used last is the last.
    static FILES: RefCell<Vec<OpenFile>> = const { RefCell::new(Vec::new()) };
}

fn is_direct(name: &str) -> bool {
    !name.contains('/')
}

/// The file `name` directly in `folder`, if it is kept. A name on whose way there could be a link is not looked for.
pub(super) fn find(folder: BorrowedFd<'_>, name: &str) -> Option<OpenFile> {
    if !is_direct(name) || FILES.with_borrow(Vec::is_empty) {
        return None;
    }
    let now = FileIdentity::of(&statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?);
    FILES.with_borrow_mut(|files| {
        let found = files.iter().rposition(|file| file.identity == now)?;
        files[found..].rotate_left(1);
        files.last().cloned()
    })
}

/// Keeps `file`, which was found by `name`, and closes the one that was not used for longest if there are too many.
pub(super) fn keep(file: &OpenFile, name: &str) {
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
