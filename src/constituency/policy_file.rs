//! Reads a policy's file again when it changes. If the new text is invalid, the last good policy stays in force.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Policy;
use super::absence::Absence;
use super::policy::POLICY_FILE;
use crate::files::FileStamp;
use crate::settings::SettingsError;
use crate::state::{self, FolderHandle};

/// The largest policy that is read, in bytes: enough for about 400,000 phones.
const MAX_POLICY_BYTES: u64 = 16 << 20;
/// Error messages quote the policy. So a root process must not read another user's private file on behalf of the
/// folder's owner.
const PRIVATE_HARD_LINK: &str = "it is a hard link to a private file of another user; put a copy in its place";

/// The policy of a constituency, and the state of the file that it was read from.
#[derive(Debug, Default)]
pub(super) struct PolicySource {
    /// The stamp under which the file was read, if it was settled.
    seen: Option<FileStamp>,
    good: Option<Arc<Policy>>,
    /// Whether the policy in force was read from a file. Without a file, the default policy is in force.
    is_written: bool,
    error: Option<SettingsError>,
    is_unread: bool,
    /// Whether the file existed at the last definite observation, which a pending absence is not.
    is_there: bool,
    absence: Absence,
}

impl PolicySource {
    /// The policy in force, if a valid one was ever read.
    pub(super) fn policy(&self) -> Option<&Arc<Policy>> {
        self.good.as_ref()
    }

    /// The error in the current file.
    pub(super) fn error(&self) -> Option<&SettingsError> {
        self.error.as_ref()
    }

    /// Whether the last attempt to read the file failed with an I/O error.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether the file is missing, but not long enough to count as removed. The policy stays in force until then.
    pub(super) fn is_missing(&self) -> bool {
        self.absence.is_pending()
    }

    /// Records whether the file is missing at `now`. Without an earlier file, an absence takes effect at once.
    fn note_presence(&mut self, is_missing: bool, now: SystemTime) {
        if is_missing && self.is_there && !self.absence.note_missing(now) {
            return;
        }
        self.absence.note_present();
        self.is_there = !is_missing;
    }

    /// Makes the next refresh read the file again, even if it is unchanged.
    pub(super) fn invalidate(&mut self) {
        self.seen = None;
    }

    /// Reads the policy in `folder` again if its file changed. `file` is the path for error messages.
    pub(super) fn refresh(&mut self, folder: &OwnedFd, file: &Path, bundles: &[&str], now: SystemTime) -> SeenPolicy {
        let reading = read(folder.as_fd(), POLICY_FILE.as_ref(), self.seen, now);
        self.is_unread = matches!(reading, Err(UnreadablePolicy::Io(_)));
        let was_there = self.is_there;
        self.note_presence(matches!(reading, Ok(ReadingState::Absent)), now);
        match reading {
            Ok(ReadingState::Unchanged) => SeenPolicy::Same,
            Ok(ReadingState::Absent) if self.is_missing() => SeenPolicy::Same,
            Ok(ReadingState::Absent) => {
                self.seen = None;
                let removed = self.good.clone().filter(|_| was_there);
                self.take(Ok(Policy::default()), false);
                if was_there { SeenPolicy::Removed(removed) } else { SeenPolicy::Absent }
            }
            Ok(ReadingState::Text(text, stamp)) => {
                self.seen = stamp;
                let parsed = Policy::parse(file, &text, bundles);
                let seen = if parsed.is_ok() { SeenPolicy::Good(text) } else { SeenPolicy::Broken };
                self.take(parsed, true);
                seen
            }
            Err(error) => {
                self.seen = None;
                self.take(Err(SettingsError::of_file(file, error)), true);
                SeenPolicy::Broken
            }
        }
    }

    /// Puts `policy` in force in place of an invalid file. `policy` was in force before the start.
    pub(super) fn fall_back_to(&mut self, policy: Policy) {
        self.good = Some(Arc::new(policy));
        self.is_written = true;
    }

    fn take(&mut self, result: Result<Policy, SettingsError>, is_written: bool) {
        match result {
            Ok(policy) => {
                // An equal policy keeps its `Arc`, so that dependents see no change.
                if self.good.as_deref() != Some(&policy) {
                    self.good = Some(Arc::new(policy));
                }
                self.is_written = is_written;
                self.error = None;
            }
            Err(error) => {
                // A first policy file, even an invalid one, ends the default policy, because its author intends another one.
                // So the constituency is not served until the file is valid.
                if !self.is_written {
                    self.good = None;
                }
                self.error = Some(error);
            }
        }
    }
}

/// The result of a refresh.
pub(super) enum SeenPolicy {
    /// The file is unchanged, or its absence is too short to count as a removal.
    Same,
    /// There is no file, and there was none.
    Absent,
    /// The file was removed. This policy was in force, if there was one.
    Removed(Option<Arc<Policy>>),
    /// The file has this text, and its policy is in force now.
    Good(String),
    /// The file is invalid or cannot be read.
    Broken,
}

pub(super) enum ReadingState {
    Absent,
    Unchanged,
    /// The text, and the settled stamp of the file.
    Text(String, Option<FileStamp>),
}

#[derive(Debug)]
pub(super) enum UnreadablePolicy {
    NotRegular,
    /// Larger than `limit`, in bytes.
    TooLarge {
        limit: u64,
        remedy: &'static str,
    },
    NotText,
    Io(std::io::Error),
}

impl fmt::Display for UnreadablePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegular => f.write_str("is not a regular file (links, folders and pipes are not read)"),
            Self::TooLarge { limit, remedy } => write!(f, "is larger than {} MiB; {remedy}", limit >> 20),
            Self::NotText => f.write_str("is not UTF-8 text"),
            Self::Io(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl From<Errno> for UnreadablePolicy {
    fn from(errno: Errno) -> Self {
        if errno == Errno::LOOP { Self::NotRegular } else { Self::Io(errno.into()) }
    }
}

/// Reads the policy file `name` in `folder`, unless it is unchanged since `seen`.
pub(super) fn read_in(
    folder: &FolderHandle,
    name: &OsStr,
    seen: Option<FileStamp>,
    now: SystemTime,
) -> Result<ReadingState, UnreadablePolicy> {
    folder.act(|folder| Ok(read(folder, name, seen, now))).map_err(UnreadablePolicy::Io)?
}

/// An open file of a policy.
pub(super) struct OpenPolicy {
    pub(super) file: File,
    pub(super) stamp: FileStamp,
    /// Its size in bytes.
    pub(super) size: u64,
}

fn read(
    folder: BorrowedFd<'_>,
    name: &OsStr,
    seen: Option<FileStamp>,
    now: SystemTime,
) -> Result<ReadingState, UnreadablePolicy> {
    let Some(OpenPolicy { file, stamp, .. }) = open(folder, name)? else { return Ok(ReadingState::Absent) };
    if seen == Some(stamp) {
        return Ok(ReadingState::Unchanged);
    }
    let mut bytes = Vec::new();
    file.take(MAX_POLICY_BYTES + 1).read_to_end(&mut bytes).map_err(UnreadablePolicy::Io)?;
    if bytes.len() as u64 > MAX_POLICY_BYTES {
        return Err(too_large());
    }
    let text = String::from_utf8(bytes).map_err(|_| UnreadablePolicy::NotText)?;
    Ok(ReadingState::Text(text, stamp.settled(now)))
}

fn too_large() -> UnreadablePolicy {
    let remedy = "phones.csv beside it may list a million phones";
    UnreadablePolicy::TooLarge { limit: MAX_POLICY_BYTES, remedy }
}

/// Checks that a file of `text` would be read.
pub(super) fn check_size(text: &[u8]) -> Result<(), UnreadablePolicy> {
    if text.len() as u64 > MAX_POLICY_BYTES { Err(too_large()) } else { Ok(()) }
}

/// Opens the policy file `name` in `folder`; `None` if there is none.
pub(super) fn open(folder: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OpenPolicy>, UnreadablePolicy> {
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let handle = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(UnreadablePolicy::NotRegular);
    }
    if state::is_private_hard_link(&stat, folder).map_err(UnreadablePolicy::Io)? {
        return Err(UnreadablePolicy::Io(std::io::Error::other(PRIVATE_HARD_LINK)));
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(Some(OpenPolicy { file: File::from(handle), stamp: FileStamp::of_stat(&stat), size }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn too_large_policy_names_phones_csv() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(POLICY_FILE);
        let handle: OwnedFd = File::open(folder.path()).unwrap().into();
        let mut source = PolicySource::default();
        for (bytes, is_too_large) in [(MAX_POLICY_BYTES, false), (MAX_POLICY_BYTES + 1, true)] {
            File::create(&path).unwrap().set_len(bytes).unwrap();
            source.refresh(&handle, Path::new(POLICY_FILE), &[], SystemTime::UNIX_EPOCH);
            let error = source.error().unwrap().to_string();
            let expected = "constituency.json: is larger than 16 MiB; phones.csv beside it may list a million phones";
            assert_eq!(error == expected, is_too_large, "{error}");
        }
    }

    #[test]
    fn briefly_missing_policy_stays_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(POLICY_FILE);
        let handle: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut source = PolicySource::default();
        let mut look = |milliseconds| {
            source.refresh(&handle, &path, &[], start + Duration::from_millis(milliseconds));
            (source.policy().unwrap().aliases.len(), source.is_missing())
        };
        assert_eq!(look(0), (0, false), "a policy that never existed is not waited for");
        crate::state::write_private(&path, br#"{ "aliases": ["second"] }"#).unwrap();
        assert_eq!(look(0), (1, false));
        let away = folder.path().join("away");
        for _ in 0..2 {
            std::fs::rename(&path, &away).unwrap();
            assert_eq!(look(1000), (1, true));
            assert_eq!(look(1010), (1, true), "two looks at once are one");
            std::fs::rename(&away, &path).unwrap();
            assert_eq!(look(1500), (1, false));
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(look(2000), (1, true));
        assert_eq!(look(2300), (0, false));
    }
}
