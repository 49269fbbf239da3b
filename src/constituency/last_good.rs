//! Stores the policies in force for the next start, so that an invalid `constituency.json` does not take a
//! constituency down after a restart.
//!
//! `STATE/last-good/NAME.json` holds the text in force. The scanner uses it at the start of the server if
//! `constituency.json` exists and is invalid, unless the stored policy admits unlisted phones. When the constituency or
//! its policy file is removed, the stored policy is removed too. If the removed policy denied phones, it stays as
//! `NAME.removed`: it is never in force, and only shows which denials were lost.
//!
//! The same holds for `phones.csv`: `NAME.csv` has the phones and notes of the list in force.
//!
//! A thread of its own writes the files. A slow, full or read-only disk does not delay the scan; it costs only the
//! fallback at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::phone_list::PhoneList;
use super::policy_file::{self, OpenPolicy, ReadingState, UnreadablePolicy};
use super::{ClientAuth, ConstituencyName, MacAddress, Phones, Policy};
use crate::background::BackgroundThread;
use crate::settings::SettingsError;
use crate::state::{self, Entry, FolderHandle};

/// The folder of the stored policies in the state directory.
pub const FOLDER: &str = "last-good";
/// The extension of a policy in force.
const IN_FORCE: &str = ".json";
/// The extension of a policy that was removed with its denials.
const REMOVED: &str = ".removed";
/// The extension of a phone list in force.
const LIST: &str = ".csv";
/// The delay before failed writes are retried.
const RETRY_AFTER: Duration = Duration::from_mins(1);

/// The stored policies of a state directory.
#[derive(Debug)]
pub struct LastGood {
    folder: PathBuf,
    /// The queue of the writer thread; `None` for commands, which only read.
    changes: Option<Sender<LastGoodChange>>,
}

#[derive(Debug)]
enum LastGoodChange {
    /// Store this for one constituency.
    Set(ConstituencyName, StoredPolicy),
    /// Store this phone list for one constituency, or none.
    SetList(ConstituencyName, Option<Arc<PhoneList>>),
    /// Delete the stored policies of all constituencies but `folders`, and the phone lists of all but `with_list`.
    RetainOnly { folders: BTreeSet<ConstituencyName>, with_list: BTreeSet<ConstituencyName> },
}

/// The target state of a constituency's files.
#[derive(Debug)]
enum StoredPolicy {
    /// This text is in force.
    InForce(String),
    /// The policy file was removed, and it denied phones.
    Removed,
    Nothing,
}

/// Why a stored policy is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("no last good policy is stored")]
    Absent,
    #[error("{path} {1}", path = .0.display())]
    Unreadable(PathBuf, UnreadablePolicy),
    #[error("the stored last good policy is no longer valid: {0}")]
    Invalid(SettingsError),
    #[error("the last good policy accepts phones that are not listed, and such a policy is not used after a restart")]
    AcceptsUnlistedPhones,
}

impl LastGood {
    /// Opens the stored policies in the state directory `state` read-only, for a command.
    #[must_use]
    pub fn of_state(state: &Path) -> Self {
        Self { folder: state.join(FOLDER), changes: None }
    }

    /// Opens the stored policies in the state directory `state` and starts the thread that writes changes. The thread
    /// ends after this value is dropped.
    ///
    /// # Errors
    /// If the system cannot create a thread.
    pub fn start(state: &Path) -> io::Result<(Self, BackgroundThread)> {
        let (changes, receiver) = channel();
        let folder = state.join(FOLDER);
        let mut writer = Writer::new(folder.clone());
        let thread = BackgroundThread::start("last-good", move || writer.follow(&receiver))?;
        Ok((Self { folder, changes: Some(changes) }, thread))
    }

    /// The policy that was in force before the start, parsed with `bundles`. `file` is the path for error messages.
    pub(super) fn load(&self, name: &ConstituencyName, file: &Path, bundles: &[&str]) -> Result<Policy, LoadError> {
        let path = path(&self.folder, name, IN_FORCE);
        let text = match read(&path) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(LoadError::Absent),
            Err(error) => return Err(LoadError::Unreadable(path, error)),
        };
        let policy = Policy::parse(file, &text, bundles).map_err(LoadError::Invalid)?;
        let accepts_unlisted = policy.tls.client_auth == ClientAuth::None || policy.phones == Phones::Any;
        if accepts_unlisted { Err(LoadError::AcceptsUnlistedPhones) } else { Ok(policy) }
    }

    /// The phones that the removed policy of `name` denied, as far as its text is stored.
    pub(super) fn lost_denials(&self, name: &ConstituencyName) -> BTreeSet<MacAddress> {
        let mut texts =
            [IN_FORCE, REMOVED].into_iter().filter_map(|ending| read(&path(&self.folder, name, ending)).ok()?);
        texts.next().map(|text| denied_in(&text)).unwrap_or_default()
    }

    /// The phone list that was in force before the start, if it is stored and can be read.
    pub(super) fn load_list(&self, name: &ConstituencyName) -> Option<PhoneList> {
        let (folder, file) = open_parent(&path(&self.folder, name, LIST)).ok()??;
        let opened = folder.act(|folder| Ok(policy_file::open(folder, &file))).ok()?.ok()?;
        opened.and_then(|OpenPolicy { file, .. }| PhoneList::read(file).ok())
    }

    /// Stores the phone list that is in force now; `None` if there is none any more.
    pub(super) fn keep_list(&self, name: &ConstituencyName, list: Option<Arc<PhoneList>>) {
        self.change(LastGoodChange::SetList(name.clone(), list));
    }

    /// Stores `text`, which is in force now.
    pub(super) fn keep(&self, name: &ConstituencyName, text: String) {
        self.change(LastGoodChange::Set(name.clone(), StoredPolicy::InForce(text)));
    }

    /// Records that the policy file of `name` was removed. Keeps its text as `NAME.removed` if it `denied` phones.
    pub(super) fn note_removed(&self, name: &ConstituencyName, denied: bool) {
        self.change(LastGoodChange::Set(
            name.clone(),
            if denied { StoredPolicy::Removed } else { StoredPolicy::Nothing },
        ));
    }

    /// Deletes what is stored for `name`, because the constituency was removed.
    pub(super) fn forget(&self, name: &ConstituencyName) {
        self.keep_list(name, None);
        self.change(LastGoodChange::Set(name.clone(), StoredPolicy::Nothing));
    }

    /// Deletes what is stored for constituencies other than `folders`, and the phone lists of others than `with_list`.
    pub(super) fn keep_only(&self, folders: BTreeSet<ConstituencyName>, with_list: BTreeSet<ConstituencyName>) {
        self.change(LastGoodChange::RetainOnly { folders, with_list });
    }

    fn change(&self, change: LastGoodChange) {
        if let Some(changes) = &self.changes {
            // The send does not fail: the thread lives as long as this sender.
            let _ = changes.send(change);
        }
    }
}

/// The state of the writer thread.
struct Writer {
    folder: PathBuf,
    /// Changes that are not on the disk yet.
    pending: BTreeMap<ConstituencyName, StoredPolicy>,
    /// Phone lists that are not on the disk yet.
    pending_lists: BTreeMap<ConstituencyName, Option<Arc<PhoneList>>>,
    /// The last error, if it was logged.
    failure: Option<String>,
}

impl Writer {
    fn new(folder: PathBuf) -> Self {
        Self { folder, pending: BTreeMap::new(), pending_lists: BTreeMap::new(), failure: None }
    }

    /// Writes changes until the sender is dropped. What could not be written until then is tried a last time.
    fn follow(&mut self, receiver: &Receiver<LastGoodChange>) {
        loop {
            let change = if self.pending.is_empty() && self.pending_lists.is_empty() {
                receiver.recv().map_err(RecvTimeoutError::from)
            } else {
                receiver.recv_timeout(RETRY_AFTER)
            };
            match change {
                Ok(change) => self.note(change),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.write_last(),
            }
            // Coalesce: a deploy changes many policies at once, and only the last change of each matters.
            while let Ok(change) = receiver.try_recv() {
                self.note(change);
            }
            self.write_pending();
        }
    }

    fn write_last(&mut self) {
        self.write_pending();
        if let Some(failure) = &self.failure {
            let names: BTreeSet<&str> =
                self.pending.keys().chain(self.pending_lists.keys()).map(ConstituencyName::as_str).collect();
            let names: Vec<&str> = names.into_iter().collect();
            tracing::error!(
                "the last good policies of {} are not stored in {}: {failure}",
                names.join(", "),
                self.folder.display()
            );
        }
    }

    fn note(&mut self, change: LastGoodChange) {
        match change {
            LastGoodChange::Set(name, policy) => {
                self.pending.insert(name, policy);
            }
            LastGoodChange::SetList(name, list) => {
                self.pending_lists.insert(name, list);
            }
            LastGoodChange::RetainOnly { folders, with_list } => {
                let others = |kept: &BTreeSet<ConstituencyName>, endings: &[&str]| -> Vec<ConstituencyName> {
                    stored_names(&self.folder, endings).into_iter().filter(|name| !kept.contains(name)).collect()
                };
                let (policies, lists) = (others(&folders, &[IN_FORCE, REMOVED]), others(&with_list, &[LIST]));
                self.pending.extend(policies.into_iter().map(|name| (name, StoredPolicy::Nothing)));
                self.pending_lists.extend(lists.into_iter().map(|name| (name, None)));
            }
        }
    }

    /// Writes the pending changes. Failed ones stay pending, and the failure is logged once.
    fn write_pending(&mut self) {
        let mut failure = None;
        let mut is_left = |written: io::Result<()>| match written {
            Ok(()) => false,
            Err(error) => {
                failure = Some(error.to_string());
                true
            }
        };
        self.pending.retain(|name, policy| is_left(policy.write(&self.folder, name)));
        self.pending_lists.retain(|name, list| is_left(write_list(&self.folder, name, list.as_deref())));
        match (self.failure.is_some(), &failure) {
            (false, Some(error)) => tracing::warn!(
                "the last good policies cannot be stored in {}: {error}; after a restart, a constituency with an invalid \
                 constituency.json would not be served. provost retries every minute",
                self.folder.display()
            ),
            (true, None) => tracing::info!("the last good policies are stored again"),
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
                let is_stored = read(&in_force).is_ok_and(|stored| stored.as_ref() == Some(text));
                if !is_stored {
                    state::private_folder(folder)?;
                    // On an error, remove the older text: it may admit phones that were denied since.
                    state::write_private(&in_force, text.as_bytes()).inspect_err(|_| drop(remove(&in_force)))?;
                }
                remove(&removed)
            }
            Self::Removed => match open_parent(&in_force)? {
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

/// Stores `list` as the phone list of `name`, or removes it.
fn write_list(folder: &Path, name: &ConstituencyName, list: Option<&PhoneList>) -> io::Result<()> {
    let path = path(folder, name, LIST);
    let Some(list) = list else { return remove(&path) };
    let mut text = Vec::new();
    list.write(&mut text)?;
    let stored = match open_parent(&path)? {
        Some((folder, file)) if folder.has(&file)? => Some(folder.read(&file)?),
        _ => None,
    };
    if stored.as_ref() != Some(&text) {
        state::private_folder(folder)?;
        // On an error, remove the older list: it may have phones that were removed since.
        state::write_private(&path, &text).inspect_err(|_| drop(remove(&path)))?;
    }
    Ok(())
}

fn path(folder: &Path, name: &ConstituencyName, ending: &str) -> PathBuf {
    folder.join(format!("{name}{ending}"))
}

fn file_name(path: &Path) -> std::ffi::OsString {
    path.file_name().unwrap_or_default().to_owned()
}

/// Opens the parent folder of `path`; returns it and the file name, or `None` if the folder does not exist.
fn open_parent(path: &Path) -> io::Result<Option<(FolderHandle, std::ffi::OsString)>> {
    match state::folder_of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        folder => Ok(Some((folder?, file_name(path)))),
    }
}

/// The text of the file at `path`; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<String>, UnreadablePolicy> {
    let Some((folder, name)) = open_parent(path).map_err(UnreadablePolicy::Io)? else { return Ok(None) };
    // The time serves only to detect later changes, which this caller does not do.
    match policy_file::read_in(&folder, &name, None, SystemTime::UNIX_EPOCH)? {
        ReadingState::Text(text, _) => Ok(Some(text)),
        ReadingState::Absent | ReadingState::Unchanged => Ok(None),
    }
}

/// Removes the file at `path` if it exists.
fn remove(path: &Path) -> io::Result<()> {
    let Some((folder, name)) = open_parent(path)? else { return Ok(()) };
    match folder.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| folder.sync()),
    }
}

/// The constituencies that have files with one of these `endings` in `folder`.
fn stored_names(folder: &Path, endings: &[&str]) -> BTreeSet<ConstituencyName> {
    let Ok(Some((folder, _))) = open_parent(&folder.join(IN_FORCE)) else { return BTreeSet::new() };
    let name = |entry: Entry| {
        let name = entry.name.to_str()?;
        endings.iter().find_map(|ending| name.strip_suffix(ending))?.parse().ok()
    };
    folder.entries().unwrap_or_default().into_iter().filter_map(name).collect()
}

/// The phones that the policy `text` denies. Ignores everything else in it, because it was valid once.
fn denied_in(text: &str) -> BTreeSet<MacAddress> {
    #[derive(Deserialize)]
    struct Denied {
        #[serde(default)]
        denied: Vec<MacAddress>,
    }
    serde_json::from_str::<Denied>(text).map(|policy| policy.denied.into_iter().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwritten_policies_are_tried_again_at_the_end() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join(FOLDER);
        let name: ConstituencyName = "ote".parse().unwrap();
        state::write_private(&folder, b"a file in place of the folder").unwrap();
        let mut writer = Writer::new(folder.clone());
        writer.note(LastGoodChange::Set(name.clone(), StoredPolicy::InForce("{}".to_owned())));
        writer.write_pending();
        assert_eq!((writer.pending.len(), writer.failure.is_some()), (1, true));
        let (sender, receiver) = channel();
        drop(sender);
        writer.follow(&receiver);
        assert_eq!((writer.pending.len(), writer.failure.is_some()), (1, true), "it still fails");
        state::remove_all(&folder).unwrap();
        writer.follow(&receiver);
        assert_eq!(read(&path(&folder, &name, IN_FORCE)).unwrap().as_deref(), Some("{}"));
    }
}
