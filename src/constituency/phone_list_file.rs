//! Reads a constituency's `phones.csv` again when it changes. If the new text is invalid, the last good list stays in force.
//!
//! The first half of a list is a valid list, without the phones of the second half. So a changed file is read only after it
//! has stayed the same for [`WRITTEN_AFTER`]: git, scp and many editors write files in place.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::absence::Absence;
use super::phone_list::{ListError, MAX_LIST_BYTES, PHONES_FILE, PhoneList, too_large};
use super::policy_file::{self, OpenPolicy, UnreadablePolicy};
use crate::files::FileStamp;
use crate::settings::SettingsError;

/// How long a changed file must stay the same before it is read.
const WRITTEN_AFTER: Duration = Duration::from_millis(200);

/// The phone list of a constituency, and the state of the file that it was read from.
#[derive(Debug, Default)]
pub(super) struct PhoneListSource {
    list: Arc<PhoneList>,
    /// Whether `list` was read from a file.
    is_read: bool,
    /// The stamp under which the file was last read, and whether it was settled.
    seen: Option<(FileStamp, bool)>,
    /// The stamp of a file that may be incomplete, and since when it has it.
    changing: Option<(FileStamp, SystemTime)>,
    error: Option<SettingsError>,
    is_unread: bool,
    /// Whether the file existed at the last definite observation, which a pending absence is not.
    is_there: bool,
    absence: Absence,
}

/// The result of a refresh.
pub(super) enum SeenList {
    /// The list in force is the same.
    Same,
    /// The file was removed.
    Removed,
    /// The file has this list, which is in force now.
    Good(Arc<PhoneList>),
    /// The file is invalid or cannot be read.
    Broken,
}

impl PhoneListSource {
    /// The list in force; empty without a file.
    pub(super) fn list(&self) -> &Arc<PhoneList> {
        &self.list
    }

    /// The error in the current file.
    pub(super) fn error(&self) -> Option<&SettingsError> {
        self.error.as_ref()
    }

    /// Whether the list in force was read from a file.
    pub(super) fn is_read(&self) -> bool {
        self.is_read
    }

    /// Whether the last attempt to read the file failed with an I/O error.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether there was a file at the last refresh, or one may come back.
    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Whether the file is perhaps being written or replaced, so that another look is due.
    pub(super) fn is_pending(&self) -> bool {
        self.changing.is_some() || self.absence.is_pending()
    }

    /// Reads the list in `folder` again if its file changed. `file` is the path for error messages. The first refresh
    /// after the start does not wait until the file stays the same.
    pub(super) fn refresh(&mut self, folder: &OwnedFd, file: &Path, now: SystemTime, is_first: bool) -> SeenList {
        self.is_unread = false;
        let opened = match open(folder.as_fd()) {
            Ok(Some(opened)) => opened,
            Ok(None) => return self.note_missing(now),
            Err(error) => {
                (self.seen, self.changing) = (None, None);
                // A change of permissions is an event; other errors are tried again.
                self.is_unread =
                    matches!(&error, UnreadablePolicy::Io(error) if error.kind() != ErrorKind::PermissionDenied);
                return self.fail(SettingsError::of_file(file, error));
            }
        };
        self.absence.note_present();
        self.is_there = true;
        let stamp = opened.stamp;
        let settled = self.seen.filter(|(seen, _)| *seen == stamp).map(|(_, is_settled)| is_settled);
        if settled.is_none() && !is_first && !self.is_written(stamp, now) {
            return SeenList::Same;
        }
        self.changing = None;
        if settled == Some(true) {
            return SeenList::Same;
        }
        match read(&opened) {
            // It changed while it was read.
            Ok((_, after)) if after != stamp && !is_first => {
                self.changing = Some((after, now));
                SeenList::Same
            }
            Ok((Ok(list), _)) => {
                self.seen = Some((stamp, stamp.settled(now).is_some()));
                self.error = None;
                let is_new = !std::mem::replace(&mut self.is_read, true);
                if !is_new && *self.list == list {
                    return SeenList::Same;
                }
                self.list = Arc::new(list);
                SeenList::Good(Arc::clone(&self.list))
            }
            Ok((Err(error), _)) | Err(error) => {
                self.is_unread = matches!(error, ListError::Unreadable(_));
                self.seen = (!self.is_unread).then_some((stamp, stamp.settled(now).is_some()));
                self.fail(error.in_file(file))
            }
        }
    }

    /// Puts `list` in force in place of an invalid file. `list` was in force before the start.
    pub(super) fn fall_back_to(&mut self, list: PhoneList) {
        self.list = Arc::new(list);
        self.is_read = true;
    }

    /// Whether a file with the `stamp` has stayed the same long enough.
    fn is_written(&mut self, stamp: FileStamp, now: SystemTime) -> bool {
        match self.changing {
            Some((changing, since)) if changing == stamp => {
                // If the clock was set back, the duration is unknown.
                !now.duration_since(since).is_ok_and(|age| age < WRITTEN_AFTER)
            }
            _ => {
                self.changing = Some((stamp, now));
                false
            }
        }
    }

    /// Notes that there is no file at `now`. Without an earlier file, that takes effect at once.
    fn note_missing(&mut self, now: SystemTime) -> SeenList {
        self.changing = None;
        if self.is_there && !self.absence.note_missing(now) {
            return SeenList::Same;
        }
        let is_removed = self.is_there;
        // An unchanged list stays the same value, so that dependents see no change.
        let list = if self.list.is_empty() { Arc::clone(&self.list) } else { Arc::default() };
        *self = Self { list, ..Self::default() };
        if is_removed { SeenList::Removed } else { SeenList::Same }
    }

    fn fail(&mut self, error: SettingsError) -> SeenList {
        self.absence.note_present();
        self.is_there = true;
        self.error = Some(error);
        SeenList::Broken
    }
}

/// Opens the list in `folder`; `None` if there is none.
pub(super) fn open(folder: BorrowedFd<'_>) -> Result<Option<OpenPolicy>, UnreadablePolicy> {
    let opened = policy_file::open(folder, PHONES_FILE.as_ref())?;
    if opened.as_ref().is_some_and(|opened| opened.size > MAX_LIST_BYTES) {
        return Err(too_large());
    }
    Ok(opened)
}

/// The list of an open file, and the file's stamp after it was read.
fn read(opened: &OpenPolicy) -> Result<(Result<PhoneList, ListError>, FileStamp), ListError> {
    let list = PhoneList::read((&opened.file).take(MAX_LIST_BYTES));
    let after = FileStamp::of_stat(&rustix::fs::fstat(&opened.file).map_err(std::io::Error::from)?);
    Ok((list, after))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "written in place, as git does")]
mod tests {
    use super::*;

    /// A folder, and the source of its list.
    struct Scene {
        folder: tempfile::TempDir,
        handle: OwnedFd,
        source: PhoneListSource,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let handle = std::fs::File::open(folder.path()).unwrap().into();
            Self { folder, handle, source: PhoneListSource::default() }
        }

        fn write(&self, text: &str) {
            std::fs::write(self.folder.path().join(PHONES_FILE), text).unwrap();
        }

        /// The number of phones in force this many milliseconds after the first look, and whether another look is due.
        fn look(&mut self, milliseconds: u64) -> (usize, bool) {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + milliseconds);
            self.source.refresh(&self.handle, Path::new(PHONES_FILE), now, false);
            (self.source.list().len(), self.source.is_pending())
        }
    }

    #[test]
    fn file_written_in_place_is_read_once_it_stays_the_same() {
        let mut scene = Scene::new();
        assert_eq!(scene.look(0), (0, false));
        scene.write("mac\n00005e00530c\n");
        assert_eq!((scene.look(10), scene.look(200)), ((0, true), (0, true)), "too early");
        assert_eq!((scene.look(220), scene.look(230)), ((1, false), (1, false)));
        scene.write("mac\n00005e00530c\n00005e0053");
        assert_eq!(scene.look(300), (1, true));
        scene.write("mac\n00005e00530c\n00005e0053c7\n00005e0053aa\n");
        assert_eq!((scene.look(550), scene.look(800)), ((1, true), (3, false)), "changed between two looks");
        assert!(scene.source.error().is_none());
    }

    #[test]
    fn briefly_missing_list_stays_in_force() {
        let mut scene = Scene::new();
        scene.write("mac\n00005e00530c\n");
        assert_eq!((scene.look(0), scene.look(300)), ((0, true), (1, false)));
        std::fs::remove_file(scene.folder.path().join(PHONES_FILE)).unwrap();
        assert_eq!((scene.look(400), scene.look(599)), ((1, true), (1, true)));
        assert_eq!(scene.look(601), (0, false));
    }

    #[test]
    fn broken_list_keeps_the_last_good_one_and_names_the_line() {
        let mut scene = Scene::new();
        scene.write("mac\n00005e00530c\n");
        assert_eq!((scene.look(0), scene.look(300)), ((0, true), (1, false)));
        scene.write("mac\n00005e00530c\nkitchen\n");
        assert_eq!((scene.look(400), scene.look(700)), ((1, true), (1, false)));
        let error = scene.source.error().unwrap().to_string();
        assert!(error.starts_with("phones.csv:3: invalid MAC address \"kitchen\""), "{error}");
        scene.write("mac\n");
        assert_eq!((scene.look(800), scene.look(1100)), ((1, true), (0, false)), "an empty list is valid");
        assert!(scene.source.error().is_none());
    }

    #[test]
    fn list_that_is_no_regular_file_is_refused() {
        let mut scene = Scene::new();
        let path = scene.folder.path().join(PHONES_FILE);
        scene.write("mac\n00005e00530c\n");
        assert_eq!((scene.look(0), scene.look(300)), ((0, true), (1, false)));
        let kinds: [&dyn Fn(); 3] =
            [&|| std::os::unix::fs::symlink("other", &path).unwrap(), &|| std::fs::create_dir(&path).unwrap(), &|| {
                use rustix::fs::{CWD, FileType, Mode};
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            }];
        for (number, make) in kinds.iter().enumerate() {
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
            make();
            assert_eq!(scene.look(1000 + number as u64), (1, false));
            let error = scene.source.error().unwrap().to_string();
            assert!(error.contains("is not a regular file (links, folders and pipes are not read)"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_LIST_BYTES + 1).unwrap();
        assert_eq!(scene.look(2000), (1, false));
        let error = scene.source.error().unwrap().to_string();
        assert!(error.contains("is larger than 64 MiB; remove columns"), "{error}");
    }
}
