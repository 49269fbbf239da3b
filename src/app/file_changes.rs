//! Decides when a changed trust bundle may be read again. Pure.

use std::collections::BTreeMap;

use crate::files::FileStamp;

/// The stamps of the files of each bundle.
pub(super) type FileStamps = BTreeMap<String, Vec<Option<FileStamp>>>;

/// The stamps when each bundle was last read, and those of the previous check.
#[derive(Debug)]
pub(super) struct FileChanges {
    read: FileStamps,
    last: FileStamps,
}

impl FileChanges {
    /// The state after the first check, before any bundle is read.
    pub(super) fn first(now: FileStamps) -> Self {
        Self { read: FileStamps::new(), last: now }
    }

    /// The names of the bundles to read, given the stamps of `now`. A replaced file (by rename) is complete and due at
    /// once. A file written in place may be incomplete: it is due once it is unchanged since the previous check
    /// (debounce).
    pub(super) fn due(&mut self, now: &FileStamps) -> Vec<String> {
        let is_whole = |(before, after): (&Option<FileStamp>, &Option<FileStamp>)| match (before, after) {
            (Some(before), Some(after)) => before == after || !before.is_same_file(after),
            (None, _) | (_, None) => before == after,
        };
        let mut due = Vec::new();
        for (name, files) in now {
            let read = self.read.get(name);
            if read == Some(files) {
                continue;
            }
            let is_replaced =
                read.is_some_and(|read| read.len() == files.len() && read.iter().zip(files).all(is_whole));
            if is_replaced || self.last.get(name) == Some(files) {
                due.push(name.clone());
            }
        }
        self.last.clone_from(now);
        due
    }

    /// Notes that the bundle `name` was read when it had the stamps `then`. An unreadable bundle stays due.
    pub(super) fn note_read(&mut self, name: &str, then: &FileStamps) {
        if let Some(files) = then.get(name) {
            self.read.insert(name.to_owned(), files.clone());
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "written in place, as an editor does")]
mod tests {
    use super::*;
    use std::path::Path;

    fn stamps(path: &Path) -> FileStamps {
        FileStamps::from([("own".to_owned(), vec![FileStamp::of(path)])])
    }

    #[test]
    fn replaced_file_is_read_at_once_edited_file_after_debounce() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "one").unwrap();
        let mut changes = FileChanges::first(stamps(&path));
        let nothing: [String; 0] = [];
        let mut due_and_read = || {
            let now = stamps(&path);
            let due = changes.due(&now);
            for name in &due {
                changes.note_read(name, &now);
            }
            due
        };
        assert_eq!(due_and_read(), ["own"]);
        assert_eq!(due_and_read(), nothing);
        std::fs::write(folder.path().join("new"), "two").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(due_and_read(), ["own"]);
        assert_eq!(due_and_read(), nothing);
        std::fs::write(&path, "half").unwrap();
        assert_eq!(due_and_read(), nothing);
        std::fs::write(&path, "half and more").unwrap();
        assert_eq!(due_and_read(), nothing);
        assert_eq!(due_and_read(), ["own"]);
        assert_eq!(due_and_read(), nothing);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(due_and_read(), nothing);
        assert_eq!(due_and_read(), ["own"]);
    }

    #[test]
    fn unreadable_file_is_read_again_until_it_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "one").unwrap();
        let now = stamps(&path);
        let mut changes = FileChanges::first(now.clone());
        assert_eq!((changes.due(&now), changes.due(&now)), (vec!["own".to_owned()], vec!["own".to_owned()]));
        changes.note_read("own", &now);
        assert!(changes.due(&now).is_empty());
    }
}
