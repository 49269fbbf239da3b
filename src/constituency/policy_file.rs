//! A policy's file, followed as it changes: a broken new one leaves the last good one in force.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Policy;
use super::absence::Absence;
use super::policy::POLICY_FILE;
use crate::settings::SettingsError;
use crate::state::{self, FolderHandle};

/// The largest policy that is read, in bytes: room for some 200 000 phones.
const MAX_POLICY_BYTES: u64 = 16 << 20;
/// Messages quote a policy. A root process must not show another user's file for the owner of the folder.
const PRIVATE_HARD_LINK: &str = "it is a hard link to a private file of another user; put a copy in its place";

/// How long a file must have lain still before its times prove that it did not change.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Where a policy comes from and what came of it.
#[derive(Debug, Default)]
pub(super) struct PolicySource {
    seen: Option<PolicyStamp>,
    good: Option<Arc<Policy>>,
    /// Whether somebody wrote the policy in force, and it is not what holds where there is no file.
    is_written: bool,
    error: Option<SettingsError>,
    is_unread: bool,
    /// Whether the file was there when that was last certain.
    is_there: bool,
    absence: Absence,
}

/// Identity, size and times of a file, to tell whether it changed.
#[derive(Debug, Clone)]
pub(super) struct PolicyStamp {
    facts: [i128; 7],
    is_settled: bool,
}

impl PolicyStamp {
    pub(super) fn of(stat: &Stat, now: SystemTime) -> Self {
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_ctime).unwrap_or(0));
        let facts = [
            stat.st_dev.into(),
            stat.st_ino.into(),
            stat.st_size.into(),
            stat.st_mtime.into(),
            stat.st_mtime_nsec.into(),
            stat.st_ctime.into(),
            stat.st_ctime_nsec.into(),
        ];
        Self { facts, is_settled: now.duration_since(changed).is_ok_and(|age| age > SETTLED_AFTER) }
    }

    /// Whether what was read under this stamp is still what is there now.
    pub(super) fn still_holds(&self, now: &Self) -> bool {
        self.is_settled && self.facts == now.facts
    }
}

impl PolicySource {
    /// The policy in force, if there ever was a good one.
    pub(super) fn policy(&self) -> Option<&Arc<Policy>> {
        self.good.as_ref()
    }

    /// What is wrong with the file as it is now.
    pub(super) fn error(&self) -> Option<&SettingsError> {
        self.error.as_ref()
    }

    /// Whether the file is there but the system did not let us read it, this time.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether the file is missing, perhaps for a moment only, so that the policy stays in force until the next look.
    pub(super) fn is_away(&self) -> bool {
        self.absence.is_pending()
    }

    /// Notes whether the file is missing at `now`. Where there was none before, no absence is waited out.
    fn note_presence(&mut self, is_missing: bool, now: SystemTime) {
        if is_missing && self.is_there && !self.absence.note_missing(now) {
            return;
        }
        self.absence.note_present();
        self.is_there = !is_missing;
    }

    /// Reads the file again at the next look, though it may be the same.
    pub(super) fn doubt(&mut self) {
        self.seen = None;
    }

    /// Reads the policy in `folder` again if its file changed, and says what came of it. `file` is its name for error
    /// messages.
    pub(super) fn refresh(&mut self, folder: &OwnedFd, file: &Path, bundles: &[&str], now: SystemTime) -> SeenPolicy {
        let reading = read(folder.as_fd(), POLICY_FILE.as_ref(), self.seen.as_ref(), now);
        self.is_unread = matches!(reading, Err(UnreadablePolicy::Io(_)));
        let was_there = self.is_there;
        self.note_presence(matches!(reading, Ok(ReadingState::Absent)), now);
        match reading {
            Ok(ReadingState::Unchanged) => SeenPolicy::Same,
            Ok(ReadingState::Absent) if self.is_away() => SeenPolicy::Same,
            Ok(ReadingState::Absent) => {
                self.seen = None;
                let removed = self.good.clone().filter(|_| was_there);
                self.take(Ok(Policy::default()), false);
                if was_there { SeenPolicy::Removed(removed) } else { SeenPolicy::Absent }
            }
            Ok(ReadingState::Text(text, stamp)) => {
                self.seen = Some(stamp);
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

    /// Puts `policy` in force, which was before the start, in place of the broken one that is there.
    pub(super) fn fall_back_to(&mut self, policy: Policy) {
        self.good = Some(Arc::new(policy));
        self.is_written = true;
    }

    fn take(&mut self, result: Result<Policy, SettingsError>, is_written: bool) {
        match result {
            Ok(policy) => {
                // The same policy stays the same value, so that nothing downstream looks changed.
                if self.good.as_deref() != Some(&policy) {
                    self.good = Some(Arc::new(policy));
                }
                self.is_written = is_written;
                self.error = None;
            }
            Err(error) => {
                // Whoever writes a first policy wants something else than what held without one.
                if !self.is_written {
                    self.good = None;
                }
                self.error = Some(error);
            }
        }
    }
}

/// What was found of a policy's file.
pub(super) enum SeenPolicy {
    /// What was there before.
    Same,
    /// There is none, and was none.
    Absent,
    /// There is none any more; this was in force, if anything was.
    Removed(Option<Arc<Policy>>),
    /// This text, whose policy is in force now.
    Good(String),
    /// Something that is no policy.
    Broken,
}

pub(super) enum ReadingState {
    Absent,
    Unchanged,
    Text(String, PolicyStamp),
}

#[derive(Debug)]
pub(super) enum UnreadablePolicy {
    NotRegular,
    TooLarge,
    NotText,
    Io(std::io::Error),
}

impl fmt::Display for UnreadablePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRegular => f.write_str("is no regular file (links, folders and pipes are not read)"),
            Self::TooLarge => write!(f, "is larger than {} MiB", MAX_POLICY_BYTES >> 20),
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

/// Reads the file `name` in `folder`, a policy, unless it is the one that was `seen`.
pub(super) fn read_in(
    folder: &FolderHandle,
    name: &OsStr,
    seen: Option<&PolicyStamp>,
    now: SystemTime,
) -> Result<ReadingState, UnreadablePolicy> {
    folder.act(|folder| Ok(read(folder, name, seen, now))).map_err(UnreadablePolicy::Io)?
}

fn read(
    folder: BorrowedFd<'_>,
    name: &OsStr,
    seen: Option<&PolicyStamp>,
    now: SystemTime,
) -> Result<ReadingState, UnreadablePolicy> {
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let handle = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(ReadingState::Absent),
        Err(errno) => return Err(errno.into()),
    };
    let stat = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(UnreadablePolicy::NotRegular);
    }
    if state::is_private_hard_link(&stat, folder).map_err(UnreadablePolicy::Io)? {
        return Err(UnreadablePolicy::Io(std::io::Error::other(PRIVATE_HARD_LINK)));
    }
    let stamp = PolicyStamp::of(&stat, now);
    if seen.is_some_and(|seen| seen.still_holds(&stamp)) {
        return Ok(ReadingState::Unchanged);
    }
    let mut bytes = Vec::new();
    let bounded = std::fs::File::from(handle).take(MAX_POLICY_BYTES + 1).read_to_end(&mut bytes);
    bounded.map_err(UnreadablePolicy::Io)?;
    if bytes.len() as u64 > MAX_POLICY_BYTES {
        return Err(UnreadablePolicy::TooLarge);
    }
    let text = String::from_utf8(bytes).map_err(|_| UnreadablePolicy::NotText)?;
    Ok(ReadingState::Text(text, stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_away_for_a_moment_stays_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(POLICY_FILE);
        let handle: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut source = PolicySource::default();
        let mut look = |milliseconds| {
            source.refresh(&handle, &path, &[], start + Duration::from_millis(milliseconds));
            (source.policy().unwrap().aliases.len(), source.is_away())
        };
        assert_eq!(look(0), (0, false), "where there never was one, nobody waits for it");
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
