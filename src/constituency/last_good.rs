//! The policies in force, kept for the next start: a typo in the evening and a reboot at night must not take a
//! constituency down.
//!
//! `STATE/last-good/NAME.json` holds the text in force. It counts when the server starts and `constituency.json` is there
//! and invalid, and never if it admits phones that nobody listed. Once the constituency or its policy file is removed, it
//! is removed too. A removed policy that denied phones stays as `NAME.removed`, where it counts for nothing: it tells which
//! denials went with it.
//!
//! A thread of its own writes. A disk that is slow, full or read-only costs the scan nothing, and the next start a policy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::policy_file::{self, ReadingState, UnreadablePolicy};
use super::{ClientAuth, ConstituencyName, MacAddress, Phones, Policy};
use crate::settings::SettingsError;
use crate::state::{self, Entry, FolderHandle};

/// The folder of the kept policies in the state directory.
pub const FOLDER: &str = "last-good";
/// How the name of a file ends that holds the policy in force.
const IN_FORCE: &str = ".json";
/// How the name of a file ends whose policy was removed with its denials.
const REMOVED: &str = ".removed";
/// How soon to write again what could not be written.
const RETRY_AFTER: Duration = Duration::from_mins(1);

/// The kept policies of a state directory.
#[derive(Debug)]
pub struct LastGood {
    folder: PathBuf,
    /// Where changes go; a command changes nothing.
    changes: Option<Sender<LastGoodChange>>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct LastGoodWriter {
    /// Gives nothing, and ends with the thread.
    ended: Receiver<()>,
}

#[derive(Debug)]
enum LastGoodChange {
    /// One constituency's.
    Of(ConstituencyName, StoredPolicy),
    /// Nothing is kept of constituencies other than these.
    Only(BTreeSet<ConstituencyName>),
}

/// What is to be kept of a constituency.
#[derive(Debug)]
enum StoredPolicy {
    /// This text is in force.
    InForce(String),
    /// The policy file was removed, and it denied phones.
    Removed,
    Nothing,
}

/// Why a kept policy does not count.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotKept {
    #[error("none is kept from before the start")]
    Absent,
    #[error("{path} {1}", path = .0.display())]
    Unreadable(PathBuf, UnreadablePolicy),
    #[error("the last good one, kept from before the start, is invalid today: {0}")]
    Invalid(SettingsError),
    #[error("the last good one admits phones that are on no list, and such a one does not outlive a restart")]
    Open,
}

impl LastGood {
    /// Those in the state directory `state`, for a command, which changes none of them.
    #[must_use]
    pub fn of_state(state: &Path) -> Self {
        Self { folder: state.join(FOLDER), changes: None }
    }

    /// Those in the state directory `state`, and the thread that follows their changes until this is dropped.
    ///
    /// # Errors
    /// If the system has no thread to spare.
    pub fn start(state: &Path) -> io::Result<(Self, LastGoodWriter)> {
        let (changes, wanted) = channel();
        let (ending, ended) = channel();
        let folder = state.join(FOLDER);
        let mut writing = Writing { folder: folder.clone(), pending: BTreeMap::new(), failure: None };
        std::thread::Builder::new().name("last-good".to_owned()).spawn(move || {
            writing.follow(&wanted);
            drop::<Sender<()>>(ending);
        })?;
        Ok((Self { folder, changes: Some(changes) }, LastGoodWriter { ended }))
    }

    /// The policy that was in force before the start, as it is under `bundles`. `file` is its name in error messages.
    pub(super) fn recall(&self, name: &ConstituencyName, file: &Path, bundles: &[&str]) -> Result<Policy, NotKept> {
        let path = path(&self.folder, name, IN_FORCE);
        let text = match read(&path) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(NotKept::Absent),
            Err(error) => return Err(NotKept::Unreadable(path, error)),
        };
        let policy = Policy::parse(file, &text, bundles).map_err(NotKept::Invalid)?;
        let is_open = policy.tls.client_auth == ClientAuth::None || policy.phones == Phones::Any;
        if is_open { Err(NotKept::Open) } else { Ok(policy) }
    }

    /// The phones that the removed policy of `name` denied, as far as that is known.
    pub(super) fn lost_denials(&self, name: &ConstituencyName) -> BTreeSet<MacAddress> {
        let mut texts =
            [IN_FORCE, REMOVED].into_iter().filter_map(|ending| read(&path(&self.folder, name, ending)).ok()?);
        texts.next().map(|text| denied_in(&text)).unwrap_or_default()
    }

    /// Keeps `text`, which is in force now.
    pub(super) fn keep(&self, name: &ConstituencyName, text: String) {
        self.change(LastGoodChange::Of(name.clone(), StoredPolicy::InForce(text)));
    }

    /// Keeps nothing that counts of `name`, whose policy file was removed; `denied` says whether it denied phones.
    pub(super) fn note_removed(&self, name: &ConstituencyName, denied: bool) {
        self.change(LastGoodChange::Of(
            name.clone(),
            if denied { StoredPolicy::Removed } else { StoredPolicy::Nothing },
        ));
    }

    /// Keeps nothing of `name`, which was removed.
    pub(super) fn forget(&self, name: &ConstituencyName) {
        self.change(LastGoodChange::Of(name.clone(), StoredPolicy::Nothing));
    }

    /// Keeps nothing of constituencies that are not among `names`.
    pub(super) fn keep_only(&self, names: &BTreeSet<ConstituencyName>) {
        self.change(LastGoodChange::Only(names.clone()));
    }

    fn change(&self, change: LastGoodChange) {
        if let Some(changes) = &self.changes {
            // The thread lives as long as this.
            let _ = changes.send(change);
        }
    }
}

impl LastGoodWriter {
    /// Waits until everything is written, but no longer than `patience`. The [`LastGood`] must have been dropped.
    pub fn finish(self, patience: Duration) {
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(patience) {
            tracing::warn!("the last good policies are not all written: the state directory's disk does not answer");
        }
    }
}

/// What the thread works on.
struct Writing {
    folder: PathBuf,
    /// What is not on the disk yet.
    pending: BTreeMap<ConstituencyName, StoredPolicy>,
    /// Why, if that was said.
    failure: Option<String>,
}

impl Writing {
    /// Writes until nobody can want anything any more.
    fn follow(&mut self, wanted: &Receiver<LastGoodChange>) {
        loop {
            let change = if self.pending.is_empty() {
                wanted.recv().map_err(RecvTimeoutError::from)
            } else {
                wanted.recv_timeout(RETRY_AFTER)
            };
            match change {
                Ok(change) => self.note(change),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // A deploy changes many at once, and the last change of each counts.
            while let Ok(change) = wanted.try_recv() {
                self.note(change);
            }
            self.write_pending();
        }
    }

    fn note(&mut self, change: LastGoodChange) {
        match change {
            LastGoodChange::Of(name, kept) => {
                self.pending.insert(name, kept);
            }
            LastGoodChange::Only(names) => {
                let others = kept_names(&self.folder).into_iter().filter(|name| !names.contains(name));
                self.pending.extend(others.map(|name| (name, StoredPolicy::Nothing)));
            }
        }
    }

    /// Writes what is pending. What cannot be written stays, and is said once.
    fn write_pending(&mut self) {
        let mut failure = None;
        self.pending.retain(|name, kept| match kept.write(&self.folder, name) {
            Ok(()) => false,
            Err(error) => {
                failure = Some(error.to_string());
                true
            }
        });
        match (self.failure.is_some(), &failure) {
            (false, Some(error)) => tracing::warn!(
                "the last good policies cannot be kept in {}: {error}; after a restart, a constituency whose \
                 constituency.json is broken would not be served. It is tried again every minute",
                self.folder.display()
            ),
            (true, None) => tracing::info!("the last good policies are kept again"),
            _ => {}
        }
        self.failure = failure;
    }
}

impl StoredPolicy {
    fn write(&self, folder: &Path, name: &ConstituencyName) -> io::Result<()> {
        let [in_force, removed] = [IN_FORCE, REMOVED].map(|ending| path(folder, name, ending));
        match self {
            Self::InForce(text) => {
                let is_kept = read(&in_force).is_ok_and(|kept| kept.as_ref() == Some(text));
                if !is_kept {
                    state::private_folder(folder)?;
                    // An older one must not count in its place: what it admits may have been denied since.
                    state::write_private(&in_force, text.as_bytes()).inspect_err(|_| drop(remove(&in_force)))?;
                }
                remove(&removed)
            }
            Self::Removed => match opened(&in_force)? {
                Some((folder, file)) => match folder.rename(file, file_name(&removed)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    renamed => renamed.and_then(|()| folder.sync()),
                },
                None => Ok(()),
            },
            Self::Nothing => remove(&in_force).and_then(|()| remove(&removed)),
        }
    }
}

fn path(folder: &Path, name: &ConstituencyName, ending: &str) -> PathBuf {
    folder.join(format!("{name}{ending}"))
}

fn file_name(path: &Path) -> std::ffi::OsString {
    path.file_name().unwrap_or_default().to_owned()
}

/// The folder of `path`, opened, and the file's name in it; `None` if the folder is not there.
fn opened(path: &Path) -> io::Result<Option<(FolderHandle, std::ffi::OsString)>> {
    match state::folder_of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        folder => Ok(Some((folder?, file_name(path)))),
    }
}

/// The text of the file at `path`, if it is there.
fn read(path: &Path) -> Result<Option<String>, UnreadablePolicy> {
    let Some((folder, name)) = opened(path).map_err(UnreadablePolicy::Io)? else { return Ok(None) };
    // Nobody asks whether it changed.
    match policy_file::read_in(&folder, &name, None, SystemTime::UNIX_EPOCH)? {
        ReadingState::Text(text, _) => Ok(Some(text)),
        ReadingState::Absent | ReadingState::Unchanged => Ok(None),
    }
}

/// Removes the file at `path`, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let Some((folder, name)) = opened(path)? else { return Ok(()) };
    match folder.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| folder.sync()),
    }
}

/// The constituencies of which something is kept in `folder`.
fn kept_names(folder: &Path) -> BTreeSet<ConstituencyName> {
    let Ok(Some((folder, _))) = opened(&folder.join(IN_FORCE)) else { return BTreeSet::new() };
    let name = |entry: Entry| {
        let name = entry.name.to_str()?;
        name.strip_suffix(IN_FORCE).or_else(|| name.strip_suffix(REMOVED))?.parse().ok()
    };
    folder.entries().unwrap_or_default().into_iter().filter_map(name).collect()
}

/// The phones that the policy `text` denies, whatever else is in it: it was good once.
fn denied_in(text: &str) -> BTreeSet<MacAddress> {
    #[derive(Deserialize)]
    struct Denied {
        #[serde(default)]
        denied: Vec<MacAddress>,
    }
    serde_json::from_str::<Denied>(text).map(|policy| policy.denied.into_iter().collect()).unwrap_or_default()
}
