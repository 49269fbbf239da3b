//! Changes the files of a policy: plans the change, and applies it if nothing else has changed the files since.
//!
//! 1. [`plan`] reads `constituency.json` and, where there is one, `phones.csv`. A phone that the policy does not name is put
//!    on that list.
//! 2. [`PolicyEdit::apply`] replaces each changed file once, atomically, with its owner and mode.
//!
//! [`change`] does both under a lock, and plans anew if an editor saves a file meanwhile.

use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FileType;

use super::edit::{self, AllowedPhone, Edits, PhoneDiff, PhoneEffect, PolicyChange};
use super::excerpt::Excerpt;
use super::phone_list::{self, ListError, MAX_LIST_BYTES, PHONES_FILE, Splice};
use super::phone_list_file;
use super::policy::POLICY_FILE;
use super::policy_file::{self, ReadingState};
use super::{ClientAuth, ConstituencyName, MacAddress, Phones, Pins, Policy};
use crate::clock;
use crate::settings::SettingsError;
use crate::state::lock::LockError;
use crate::state::{Draft, FolderHandle};

/// The prefix of the temporary file that replaces the policy.
const DRAFT: &str = ".constituency-";

/// A planned change, and what the policy says after it.
#[derive(Debug)]
pub struct PolicyEdit {
    pub result: EditResult,
    /// The effect on each phone, sorted.
    pub phones: Vec<PhoneDiff>,
    pub client_auth: ClientAuth,
    /// All pinned certificates, before and after the change.
    pub pins_before: Pins,
    pub pins: Pins,
    /// The text of the policy, and the new one if it changes.
    before: Option<String>,
    after: Option<String>,
    /// The change of the list. `None` if the list has no part in it.
    list: Option<ListEdit>,
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditResult {
    /// The file was changed.
    Now,
    /// The policy already had this content.
    Already,
    /// The constituency does not authenticate clients, so it cannot deny a phone.
    NoClientAuth,
}

/// Why a policy was not changed. The file is untouched.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// There is no such folder.
    #[error("there is no constituency {name}: {path} is not a folder", path = .path.display())]
    Absent {
        /// The name.
        name: ConstituencyName,
        /// The path of the missing folder.
        path: PathBuf,
    },
    /// The policy is invalid before the change, or would be after it.
    #[error("{0}; nothing was changed")]
    Policy(#[from] SettingsError),
    /// Another process holds the lock on the folder.
    #[error("{0}; nothing was changed")]
    Locked(LockError),
    /// A file is not as it was when the change was planned.
    #[error("{path} has changed since it was read; nothing was changed; run this again", path = .0.display())]
    Changed(PathBuf),
    /// An I/O error.
    #[error("{path} cannot be changed: {source}; run this as its owner, or as root", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Changes the policy of the constituency `name` in the folder `constituencies`. `bundles` are the names of the trust
/// bundles. If the lock is held by another command, `notify` gets a message.
///
/// # Errors
/// If a file cannot be read or written, or is invalid before or after the change.
pub fn change(
    constituencies: &Path,
    name: &ConstituencyName,
    change: PolicyChange<'_>,
    bundles: &[&str],
    notify: &dyn Fn(&str),
) -> Result<PolicyEdit, EditError> {
    let files = Files::open(constituencies, name)?;
    let _lock = files.lock(notify)?;
    loop {
        let edit = files.plan(change, bundles)?;
        match edit.result {
            EditResult::Now => match files.write(&edit) {
                // An editor saved it meanwhile. Its change is kept.
                Err(EditError::Changed(_)) => {}
                written => return written.map(|()| edit),
            },
            EditResult::Already | EditResult::NoClientAuth => return Ok(edit),
        }
    }
}

/// Plans a change, as [`change`] would make it.
///
/// # Errors
/// If a file cannot be read, or is invalid before or after the change.
pub fn plan(
    constituencies: &Path,
    name: &ConstituencyName,
    change: PolicyChange<'_>,
    bundles: &[&str],
) -> Result<PolicyEdit, EditError> {
    Files::open(constituencies, name)?.plan(change, bundles)
}

impl PolicyEdit {
    /// Applies the change, which was planned for the same constituency.
    ///
    /// # Errors
    /// If a file was changed since, or cannot be written.
    pub fn apply(
        &self,
        constituencies: &Path,
        name: &ConstituencyName,
        notify: &dyn Fn(&str),
    ) -> Result<(), EditError> {
        // A deploy may have replaced the folder.
        let files = Files::open(constituencies, name)?;
        let _lock = files.lock(notify)?;
        files.write(self)
    }

    /// The phones that it changes.
    pub fn changed(&self) -> impl Iterator<Item = MacAddress> {
        self.phones.iter().filter(|phone| phone.effect != PhoneEffect::Unchanged).map(|phone| phone.mac)
    }

    /// The names of the files that it changes; if it changes none, of the one that has the phones.
    #[must_use]
    pub fn files(&self) -> Vec<&'static str> {
        let list = self.list.as_ref().map(|list| list.splices.is_empty());
        match (list, &self.after) {
            (Some(false), Some(_)) => vec![PHONES_FILE, POLICY_FILE],
            (Some(_), None) => vec![PHONES_FILE],
            (Some(true) | None, Some(_)) | (None, None) => vec![POLICY_FILE],
        }
    }
}

/// The files of a constituency's policy.
struct Files {
    folder: FolderHandle,
    path: PathBuf,
    policy: PathBuf,
    list: PathBuf,
}

impl Files {
    fn open(constituencies: &Path, name: &ConstituencyName) -> Result<Self, EditError> {
        let path = constituencies.join(name.as_str());
        let (policy, list) = (path.join(POLICY_FILE), path.join(PHONES_FILE));
        match FolderHandle::open_through_links(constituencies).and_then(|all| all.folder(name.as_str())) {
            Ok(folder) => Ok(Self { folder, path, policy, list }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(EditError::Absent { name: name.clone(), path })
            }
            Err(source) => Err(EditError::Io { path: policy, source }),
        }
    }

    /// Serializes with other commands that change this policy, and removes what a killed one left.
    fn lock(&self, notify: &dyn Fn(&str)) -> Result<OwnedFd, EditError> {
        let lock = self.folder.lock(&self.path, notify).map_err(EditError::Locked)?;
        self.folder.sweep(DRAFT, clock::now());
        Ok(lock)
    }

    fn plan(&self, change: PolicyChange<'_>, bundles: &[&str]) -> Result<PolicyEdit, EditError> {
        let before = self.read_policy()?;
        let text = before.as_deref().unwrap_or(edit::EMPTY_POLICY);
        let excerpt = Excerpt::of(text, &change.macs());
        // The whole text gives an error its line.
        let parse = |excerpt: &str, whole: &str| {
            Policy::parse(&self.policy, excerpt, bundles).or_else(|_| Policy::parse(&self.policy, whole, bundles))
        };
        let policy = parse(excerpt.as_str(), text)?;
        let invalid = |reason: String| SettingsError::of_file(&self.policy, reason);
        let mut edit = PolicyEdit {
            result: EditResult::Already,
            phones: Vec::new(),
            client_auth: policy.tls.client_auth,
            pins_before: policy.pins.clone(),
            pins: policy.pins.clone(),
            before: None,
            after: None,
            list: None,
        };
        if policy.tls.client_auth == ClientAuth::None && matches!(change, PolicyChange::Deny(_)) {
            return Ok(PolicyEdit { result: EditResult::NoClientAuth, ..edit });
        }
        let list = match change {
            PolicyChange::Allow(phones) if !phones.iter().all(|phone| is_named(&policy, phone.mac)) => {
                self.read_list().map_err(|error| error.in_file(&self.list))?.map(|text| (text, phones))
            }
            _ => None,
        };
        let edits;
        let named: Vec<AllowedPhone<'_>>;
        if let Some((text, phones)) = list {
            let others: Vec<_> = phones.iter().filter(|phone| !is_named(&policy, phone.mac)).copied().collect();
            named = phones.iter().filter(|phone| is_named(&policy, phone.mac)).copied().collect();
            let (mut in_policy, diffs) = Edits::plan(PolicyChange::Allow(&named), &policy).map_err(invalid)?;
            edit.phones = diffs;
            for AllowedPhone { mac, .. } in &others {
                let was_denied = in_policy.lift_denial(*mac, &policy).map_err(invalid)?;
                edit.phones.push(PhoneDiff { mac: *mac, effect: PhoneEffect::Unchanged, was_denied });
            }
            let list = ListEdit::of(text, &others).map_err(|error| error.in_file(&self.list))?;
            let of_others = edit.phones.iter_mut().skip(named.len());
            for (diff, effect) in of_others.zip(&list.effects) {
                diff.effect = effect.clone().or_lifted(diff.was_denied);
            }
            edit.phones.sort_by_key(|diff| diff.mac);
            edit.list = Some(list);
            edits = in_policy;
        } else {
            (edits, edit.phones) = Edits::plan(change, &policy).map_err(invalid)?;
        }
        if !edits.is_empty() {
            let short = edits.apply(excerpt.as_str()).map_err(invalid)?;
            let after = match excerpt.expand(&short) {
                Some(after) => after,
                None => edits.apply(text).map_err(invalid)?,
            };
            edit.pins = parse(&short, &after)?.pins;
            policy_file::check_size(after.as_bytes()).map_err(|error| invalid(format!("afterwards, it {error}")))?;
            edit.after = Some(after).filter(|after| after != text);
        }
        if edit.after.is_some() || edit.list.as_ref().is_some_and(|list| !list.splices.is_empty()) {
            edit.result = EditResult::Now;
        }
        edit.before = before;
        Ok(edit)
    }

    fn write(&self, edit: &PolicyEdit) -> Result<(), EditError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| EditError::Io { path, source }
        };
        let new_list =
            edit.list.as_ref().filter(|list| !list.splices.is_empty()).map(|list| list.prepare(&self.folder));
        let new_list = new_list.transpose().map_err(failed(&self.list))?;
        let new = edit.after.as_ref().map(|after| prepare(&self.folder, POLICY_FILE, [after.as_bytes()]));
        let new = new.transpose().map_err(failed(&self.policy))?;
        if let Some(list) = &edit.list
            && !matches!(self.read_list(), Ok(Some(now)) if now == list.text)
        {
            return Err(EditError::Changed(self.list.clone()));
        }
        if self.read_policy()? != edit.before {
            return Err(EditError::Changed(self.policy.clone()));
        }
        // The denial goes last: until then the phone is refused, as before.
        new_list.map(|new| new.put(PHONES_FILE)).transpose().map_err(failed(&self.list))?;
        new.map(|new| new.put(POLICY_FILE)).transpose().map_err(failed(&self.policy))?;
        Ok(())
    }

    fn read_policy(&self) -> Result<Option<String>, EditError> {
        // The time serves only to detect later changes, which this caller does not do.
        match policy_file::read_in(&self.folder, POLICY_FILE.as_ref(), None, SystemTime::UNIX_EPOCH) {
            Ok(ReadingState::Text(text, _)) => Ok(Some(text)),
            Ok(ReadingState::Absent | ReadingState::Unchanged) => Ok(None),
            Err(error) => Err(SettingsError::of_file(&self.policy, error).into()),
        }
    }

    /// The text of the list; `None` if there is none.
    fn read_list(&self) -> Result<Option<Vec<u8>>, ListError> {
        let opened = self.folder.act(|folder| Ok(phone_list_file::open(folder)))??;
        let Some(mut opened) = opened else { return Ok(None) };
        let mut text = Vec::with_capacity(usize::try_from(opened.size).unwrap_or(0));
        opened.file.read_to_end(&mut text)?;
        Ok(Some(text))
    }
}

/// Whether the policy itself names `mac`, or accepts phones without a list.
fn is_named(policy: &Policy, mac: MacAddress) -> bool {
    match &policy.phones {
        Phones::Any => true,
        Phones::Listed(listed) => listed.contains_key(&mac) || policy.tls.client_auth == ClientAuth::None,
    }
}

/// The text of `phones.csv`, and a change of it.
#[derive(Debug)]
struct ListEdit {
    text: Vec<u8>,
    /// By offset.
    splices: Vec<Splice>,
    effects: Vec<PhoneEffect>,
}

impl ListEdit {
    /// The change that allows `phones` in the list `text`.
    fn of(text: Vec<u8>, phones: &[AllowedPhone<'_>]) -> Result<Self, ListError> {
        let (splices, effects) = phone_list::allow(&text, phones)?;
        let edit = Self { text, splices, effects };
        let size: usize = edit.parts().map(<[u8]>::len).sum();
        if size as u64 > MAX_LIST_BYTES { Err(phone_list::too_large().into()) } else { Ok(edit) }
    }

    /// The new text.
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.splices.iter().map(|splice| splice.at.end));
        let ends = self.splices.iter().map(|splice| splice.at.start).chain([self.text.len()]);
        let kept = starts.zip(ends).map(|(start, end)| self.text.get(start..end).unwrap_or_default());
        let new = self.splices.iter().map(|splice| splice.with.as_slice()).chain([&[][..]]);
        kept.zip(new).flat_map(|(kept, new)| [kept, new])
    }

    /// Writes a temporary file with the changed list.
    fn prepare<'a>(&self, folder: &'a FolderHandle) -> io::Result<Draft<'a>> {
        prepare(folder, PHONES_FILE, self.parts())
    }
}

/// Writes a temporary file of these `parts` that can replace the file `name` in `folder`: with its owner and mode, or those
/// of the folder if the file is new.
fn prepare<'a, 'b>(
    folder: &'a FolderHandle,
    name: &str,
    parts: impl IntoIterator<Item = &'b [u8]>,
) -> io::Result<Draft<'a>> {
    let (like, mask) = match folder.stat(name) {
        Ok(old) if FileType::from_raw_mode(old.st_mode) == FileType::RegularFile => (old, 0o777),
        _ => (rustix::fs::fstat(folder)?, 0o666),
    };
    let new = Draft::new(folder, DRAFT)?;
    let mut writer = BufWriter::with_capacity(1 << 16, &new.file);
    parts.into_iter().try_for_each(|part| writer.write_all(part))?;
    writer.flush()?;
    drop(writer);
    let created = new.file.metadata()?;
    if (created.uid(), created.gid()) != (like.st_uid, like.st_gid) {
        fchown(&new.file, Some(like.st_uid), Some(like.st_gid))?;
    }
    new.file.set_permissions(std::fs::Permissions::from_mode(like.st_mode & mask))?;
    Ok(new)
}
