//! Access to a constituency's folder.
//!
//! A constituency holds no file descriptor of its own: there may be more constituencies than a process may have open
//! files. All constituencies share the file descriptor of `constituencies`. The descriptor of a constituency's folder
//! is opened beneath it on demand and cached for the next requests, up to a limit ([`OpenFolders`]).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::files::{FileIdentity, identity};

/// The default limit of open folders.
const DEFAULT_LIMIT: usize = 64;

/// A constituency's folder, and `constituencies` above it, as of the scan.
#[derive(Debug)]
pub struct Folder {
    root: Arc<OwnedFd>,
    path: PathBuf,
    identity: FileIdentity,
    handle: ArcSwapOption<OwnedFd>,
    open: Arc<OpenFolders>,
}

/// A cache of open folders with a limit. When it is full, the folder that was opened first is closed.
#[derive(Debug)]
pub struct OpenFolders {
    limit: usize,
    folders: Mutex<VecDeque<Weak<Folder>>>,
}

impl Folder {
    /// The folder at `path`, directly beneath `root`, with this `identity`.
    pub(super) fn new(root: Arc<OwnedFd>, path: PathBuf, identity: FileIdentity, open: Arc<OpenFolders>) -> Self {
        Self { root, path, identity, handle: ArcSwapOption::empty(), open }
    }

    /// A file descriptor of the folder, to open files beneath it.
    ///
    /// # Errors
    /// If it cannot be opened. `STALE` if its name is gone or now belongs to another folder.
    pub fn handle(self: &Arc<Self>) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(handle) = self.handle.load_full() {
            return Ok(handle);
        }
        let name = self.path.file_name().ok_or(Errno::INVAL)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.root, name, flags, Mode::empty());
        let handle = opened.map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
            errno => errno,
        })?;
        if identity(&rustix::fs::fstat(&handle)?) != self.identity {
            return Err(Errno::STALE);
        }
        let handle = Arc::new(handle);
        self.handle.store(Some(Arc::clone(&handle)));
        self.open.note_opened(self);
        Ok(handle)
    }

    /// The folder `constituencies` that contains it.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Whether the path still leads to this folder. A deploy may have replaced and removed it. Then a file that is
    /// missing here may exist in the new folder.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|stat| identity(&stat) == self.identity)
    }

    /// Whether both are the same folder in the same `constituencies`.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root) && self.identity == other.identity
    }
}

impl OpenFolders {
    /// A cache of at most `limit` open folders.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, folders: Mutex::default() }
    }

    /// Adds `folder`, which is open now. Above the limit, closes the folder that was opened first.
    fn note_opened(&self, folder: &Arc<Folder>) {
        let mut folders = self.folders.lock();
        folders.push_back(Arc::downgrade(folder));
        if folders.len() > self.limit {
            folders.retain(|folder| folder.strong_count() > 0);
        }
        while folders.len() > self.limit {
            if let Some(first) = folders.pop_front().and_then(|folder| folder.upgrade()) {
                first.handle.store(None);
            }
        }
    }
}

impl Default for OpenFolders {
    fn default() -> Self {
        Self::new(DEFAULT_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(root: &Arc<OwnedFd>, path: PathBuf, open: &Arc<OpenFolders>) -> Arc<Folder> {
        let identity = identity(&rustix::fs::stat(&path).unwrap());
        Arc::new(Folder::new(Arc::clone(root), path, identity, Arc::clone(open)))
    }

    /// The number of these folders that are open.
    fn count(folders: &[Arc<Folder>]) -> usize {
        folders.iter().filter(|folder| folder.handle.load().is_some()).count()
    }

    #[test]
    fn open_folders_are_limited_and_reopened_on_demand() {
        let root = tempfile::tempdir().unwrap();
        let handle = Arc::new(std::fs::File::open(root.path()).unwrap().into());
        let open = Arc::new(OpenFolders::new(8));
        let folders: Vec<_> = (0..100)
            .map(|number| {
                let path = root.path().join(format!("c{number}"));
                std::fs::create_dir(&path).unwrap();
                folder(&handle, path, &open)
            })
            .collect();
        for _ in 0..3 {
            for folder in &folders {
                let handle = folder.handle().unwrap();
                assert_eq!(identity(&rustix::fs::fstat(&handle).unwrap()), folder.identity);
                assert!(Arc::ptr_eq(&handle, &folder.handle().unwrap()), "it is kept");
            }
            assert_eq!((count(&folders), count(&folders[92..])), (8, 8));
        }
        // Dropped folders do not count against the limit.
        let mut folders = folders;
        let last = folders.pop().unwrap();
        drop(folders);
        last.handle().unwrap();
        let others: Vec<_> =
            (0..7).map(|number| folder(&handle, root.path().join(format!("c{number}")), &open)).collect();
        assert!(others.iter().all(|folder| folder.handle().is_ok()));
        assert_eq!((count(&others), count(&[last])), (7, 1));
    }

    #[test]
    fn replaced_folder_is_not_mistaken_for_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let handle = Arc::new(std::fs::File::open(root.path()).unwrap().into());
        let path = root.path().join("ote");
        std::fs::create_dir(&path).unwrap();
        let open = Arc::default();
        let (kept, new) = (folder(&handle, path.clone(), &open), folder(&handle, path.clone(), &open));
        kept.handle().unwrap();
        std::fs::rename(&path, root.path().join("old")).unwrap();
        assert_eq!(new.handle().unwrap_err(), Errno::STALE, "there is none");
        std::os::unix::fs::symlink("old", &path).unwrap();
        assert_eq!(new.handle().unwrap_err(), Errno::STALE, "a link is none");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(new.handle().unwrap_err(), Errno::STALE, "it is another one");
        assert!(kept.handle().is_ok() && !kept.is_in_place(), "what is open stays what it is");
    }
}
