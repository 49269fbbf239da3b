//! Writes an upload to its file, so that the file holds the old content or the new, never a part.
//!
//! A file is replaced atomically, through a temporary file. Only appends to files that phones do not read back, such as
//! logs, are written in place, because a prefix of them is valid; a denied append is rolled back.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::serve::access_control::Denial;
use crate::state;

/// The destination of a body.
#[derive(Debug)]
pub enum UploadSink {
    /// The end of the file itself.
    Append(Append),
    /// A temporary file that replaces the target when it is complete.
    Replace(TempReplace),
}

/// A file that grows in place.
#[derive(Debug)]
pub struct Append {
    file: File,
    root: PathBuf,
    path: PathBuf,
    old_size: Option<u64>,
}

/// A temporary file; dropping it removes it.
#[derive(Debug)]
pub struct TempReplace(NamedTempFile);

impl Append {
    /// Opens `target` below `root` for an append. Creates it if it does not exist.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn open(root: &Path, target: &Path, old_size: Option<u64>) -> Result<Self, Denial> {
        let folder = target.parent().unwrap_or(root);
        let open = || -> io::Result<File> {
            // An append to an existing file does not change its folder, so there is nothing to sync there.
            match File::options().append(true).open(target) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => return opened,
            }
            make_folders(root, folder)?;
            let file = File::options().create(true).append(true).mode(0o600).open(target)?;
            // A later append relies on a durable entry. So a file without one is removed.
            state::sync_folder(folder).inspect_err(|_| drop(fs::remove_file(target)))?;
            Ok(file)
        };
        let file = match open() {
            // Another upload failed and removed its empty folders. Retry.
            Err(error) if error.kind() == ErrorKind::NotFound => open(),
            opened => opened,
        };
        let file = file.map_err(|error| failed("the file", &error))?;
        Ok(Self { file, root: root.to_owned(), path: target.to_owned(), old_size })
    }

    fn roll_back(&self) {
        let result = match self.old_size {
            Some(size) => self.file.set_len(size).and_then(|()| self.file.sync_all()),
            None => fs::remove_file(&self.path).map(|()| remove_empty_folders(&self.root, &self.path)),
        };
        if let Err(error) = result {
            tracing::error!("{}: an append cannot be rolled back: {error}", self.path.display());
        }
    }
}

impl TempReplace {
    /// Creates a temporary file in `folder`, with the first `kept` bytes of `old`.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn create(folder: &Path, old: &Path, kept: u64) -> Result<Self, Denial> {
        let mut file = NamedTempFile::new_in(folder).map_err(|error| failed("a temporary file", &error))?;
        if kept > 0 {
            // Copies between files: if the file system supports it, the kernel shares the content and writes nothing.
            let copied = File::open(old).and_then(|old| io::copy(&mut old.take(kept), file.as_file_mut()));
            if copied.map_err(|error| failed("the first part of the file", &error))? < kept {
                return Err(Denial::Failed("the file shrank while it was copied".to_owned()));
            }
        }
        Ok(Self(file))
    }

    /// Creates the folder of `target` only here: it may have been removed during the upload, and is not needed earlier.
    fn replace(self, root: &Path, target: &Path) -> io::Result<()> {
        let folder = target.parent().unwrap_or(root);
        self.0.as_file().sync_all()?;
        make_folders(root, folder)?;
        match self.0.persist(target) {
            // Another upload failed and removed its empty folders. Retry.
            Err(failed) if failed.error.kind() == ErrorKind::NotFound => {
                make_folders(root, folder)?;
                failed.file.persist(target)?;
            }
            persisted => drop(persisted?),
        }
        state::sync_folder(folder)
    }
}

impl UploadSink {
    /// Writes a part of the body.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Denial> {
        let written = match self {
            Self::Append(append) => append.file.write_all(bytes),
            Self::Replace(beside) => beside.0.write_all(bytes),
        };
        written.map_err(|error| failed("the upload", &error))
    }

    /// Makes the written bytes durable, and visible as `target`.
    ///
    /// # Errors
    /// If the disk fails; the file is then unchanged.
    pub fn finish(self, root: &Path, target: &Path) -> Result<(), Denial> {
        let finished = match self {
            Self::Append(append) => append.file.sync_all().inspect_err(|_| append.roll_back()),
            Self::Replace(beside) => beside.replace(root, target),
        };
        finished.map_err(|error| match error.kind() {
            ErrorKind::CrossesDevices => Denial::Failed(format!(
                "{} is on another file system than {root}; link or mount {root} as a whole",
                target.display(),
                root = root.display()
            )),
            _ => failed("the upload", &error),
        })
    }

    /// Rolls back: leaves the file unchanged.
    pub fn roll_back(self) {
        if let Self::Append(append) = self {
            append.roll_back();
        }
    }

    /// Keeps the received part of an append; otherwise leaves the file unchanged.
    pub fn keep_prefix(self) {
        if let Self::Append(append) = self
            && let Err(error) = append.file.sync_all()
        {
            tracing::error!("{}: the received part cannot be synced to disk: {error}", append.path.display());
        }
    }
}

/// Creates `folder` and its missing ancestors below `root`, and syncs each parent folder.
fn make_folders(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root || folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(root);
    make_folders(root, above)?;
    state::private_folder(folder)?;
    state::sync_folder(above)
}

/// Removes the empty folders between `path` and `root`: no quota limits folders. If an upload stores into one at this
/// moment, that folder is not empty, or the upload creates it again.
fn remove_empty_folders(root: &Path, path: &Path) {
    for folder in path.ancestors().skip(1).take_while(|folder| *folder != root) {
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
}

/// The denial for a disk error.
pub(super) fn failed(what: &str, error: &io::Error) -> Denial {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Denial::DiskFull { reserve: 0 },
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => Denial::NameConflict,
        _ => Denial::Failed(format!("{what} cannot be stored: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::FOLDER_SYNCS;

    /// Appends `bytes` to `target`. Returns how many folders were synced.
    fn append(root: &Path, target: &Path, bytes: &[u8]) -> usize {
        let before = FOLDER_SYNCS.get();
        let old_size = fs::metadata(target).ok().map(|metadata| metadata.len());
        let mut sink = UploadSink::Append(Append::open(root, target, old_size).unwrap());
        sink.write(bytes).unwrap();
        sink.finish(root, target).unwrap();
        FOLDER_SYNCS.get() - before
    }

    #[test]
    fn append_to_an_existing_file_syncs_no_folder() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("ote/00005e00530c/00005e00530c-app.log");
        // The entries of `ote`, of the phone's folder, and of the file are new.
        assert_eq!(append(root.path(), &target, b"one "), 3);
        assert_eq!(append(root.path(), &target, b"two "), 0);
        assert_eq!(append(root.path(), &target, b"three"), 0);
        assert_eq!(fs::read(&target).unwrap(), b"one two three");
        // The file was removed meanwhile: its entry is new again.
        fs::remove_file(&target).unwrap();
        assert_eq!(append(root.path(), &target, b"four"), 1);
        assert_eq!(fs::read(&target).unwrap(), b"four");
    }
}
