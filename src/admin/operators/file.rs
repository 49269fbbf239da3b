//! The named operators in `STATE/operators.json`: names, rights, and hashes of tokens.
//!
//! The file is changed as a whole, under the lock of the state directory. An invalid file is never ignored, in part or as
//! a whole: no operator that it names can sign in until it is repaired.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use aws_lc_rs::{constant_time, digest};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::TOKEN_FILE_NAME;
use crate::constituency::ConstituencyName;
use crate::files::FileStamp;
use crate::identity::digest::passwords;
use crate::settings::{self, SettingsError};
use crate::state::lock::LockError;
use crate::state::{self, FolderHandle};

/// The name of the file in the state directory.
pub const FILE: &str = "operators.json";
/// The longest name of an operator.
const MAX_NAME: usize = 32;

/// The name of an operator: 1 to 32 of `a-z`, `0-9`, `.`, `_` and `-`, of which the first is a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperatorName(String);

/// Why a text is not a valid name of an operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOperatorName {
    /// Its length, or a character.
    #[error(
        "invalid operator name {0:?}: use 1 to {MAX_NAME} of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit"
    )]
    Character(String),
    /// The name of the token in `token_file`.
    #[error(
        "invalid operator name {TOKEN_FILE_NAME:?}: logs and denials call the token in \"token_file\" so; use another name"
    )]
    Reserved,
}

impl OperatorName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OperatorName {
    type Err = InvalidOperatorName;

    fn from_str(text: &str) -> Result<Self, InvalidOperatorName> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_good = text.len() <= MAX_NAME
            && text.bytes().next().is_some_and(is_plain)
            && text.bytes().all(|byte| is_plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
        match text {
            TOKEN_FILE_NAME => Err(InvalidOperatorName::Reserved),
            _ if is_good => Ok(Self(text.to_owned())),
            _ => Err(InvalidOperatorName::Character(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for OperatorName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for OperatorName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// SHA-256 of a token. A fast hash suffices: a token has 128 random bits, so no attacker can try all. A slow hash, as for
/// passwords that people choose, would only let a flood of wrong tokens use up the processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenHash([u8; digest::SHA256_OUTPUT_LEN]);

impl TokenHash {
    #[must_use]
    pub(super) fn of(token: &[u8]) -> Self {
        let mut hash = [0; digest::SHA256_OUTPUT_LEN];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token).as_ref());
        Self(hash)
    }

    /// Compares in constant time.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let hash = super::bytes(&text).and_then(|bytes| bytes.try_into().ok());
        hash.map(Self).ok_or_else(|| D::Error::custom("must be the SHA-256 of a token: 64 hexadecimal digits"))
    }
}

/// An operator in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredOperator {
    pub token_sha256: TokenHash,
    /// The constituencies that the operator sees and changes. Missing: the whole server.
    #[serde(default, deserialize_with = "constituencies", skip_serializing_if = "Option::is_none")]
    pub constituencies: Option<BTreeSet<ConstituencyName>>,
    /// Whether the operator may only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// When it was added, in Unix seconds.
    #[serde(with = "settings::rfc3339", default, skip_serializing_if = "Option::is_none")]
    pub created: Option<i64>,
    /// When its token was last replaced, in Unix seconds.
    #[serde(with = "settings::rfc3339", default, skip_serializing_if = "Option::is_none")]
    pub rotated: Option<i64>,
}

/// Reads a list of constituencies. Null or an empty list is an error: neither may be taken for the whole server.
fn constituencies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeSet<ConstituencyName>>, D::Error> {
    let names = BTreeSet::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(D::Error::custom("is empty; name a constituency, or remove the key for the whole server"));
    }
    Ok(Some(names))
}

/// The rights of a new operator.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// The constituencies that it sees and changes. `None`: the whole server.
    pub constituencies: Option<BTreeSet<ConstituencyName>>,
    pub read_only: bool,
}

/// All operators in the file. No name and no token occurs twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct StoredOperators(pub BTreeMap<OperatorName, StoredOperator>);

impl<'de> Deserialize<'de> for StoredOperators {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Operators;
        impl<'de> Visitor<'de> for Operators {
            type Value = StoredOperators;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of operators")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StoredOperators, A::Error> {
                let mut all: BTreeMap<OperatorName, StoredOperator> = BTreeMap::new();
                while let Some(name) = map.next_key::<OperatorName>()? {
                    // Of two entries, a JSON parser keeps the last: a removed operator could hide behind another entry.
                    if all.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("operator \"{name}\" occurs twice")));
                    }
                    let operator: StoredOperator = map.next_value()?;
                    let same = all.iter().find(|(_, other)| other.token_sha256 == operator.token_sha256);
                    if let Some((other, _)) = same {
                        let reason = format_args!("operators \"{other}\" and \"{name}\" have the same token");
                        return Err(A::Error::custom(reason));
                    }
                    all.insert(name, operator);
                }
                Ok(StoredOperators(all))
            }
        }
        deserializer.deserialize_map(Operators)
    }
}

/// Why operators cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorsError {
    /// The state directory cannot be opened, so it is unknown whether there are operators.
    #[error("the operators cannot be read: {path} cannot be opened: {source}; run this as the user that serves, or as root", path = .path.display())]
    Folder {
        /// The state directory.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file exists and cannot be read, or is invalid.
    #[error("{0}; repair the file, or remove it and add the operators again")]
    File(SettingsError),
    /// Another process holds the lock.
    #[error("{0}; nothing was changed")]
    Locked(LockError),
    /// The file cannot be written.
    #[error("{path} cannot be changed: {source}; run this as the user that serves, or as root", path = .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    #[error("operator {0} exists; for a new token, run provost operator rotate {0}")]
    Exists(OperatorName),
    #[error("operator {0} not found; provost operator list shows all")]
    NotFound(OperatorName),
    #[error("the system's random number generator failed; nothing was changed")]
    Random,
}

/// Adds the operator `name` with a new token, and returns the token. If the lock is held by another command, `notify` gets
/// a message, here and below.
///
/// # Errors
/// If this fails. Then nothing is changed.
pub fn add(
    state: &Path,
    name: &OperatorName,
    rights: &Rights,
    now: i64,
    notify: &dyn Fn(&str),
) -> Result<String, OperatorsError> {
    state::private_folder(state).map_err(|source| OperatorsError::Folder { path: state.to_owned(), source })?;
    let token = new_token()?;
    change(state, notify, |all| {
        if all.contains_key(name) {
            return Err(OperatorsError::Exists(name.clone()));
        }
        let operator = StoredOperator {
            token_sha256: TokenHash::of(token.as_bytes()),
            constituencies: rights.constituencies.clone(),
            read_only: rights.read_only,
            created: Some(now),
            rotated: None,
        };
        all.insert(name.clone(), operator);
        Ok(())
    })?;
    Ok(token)
}

/// Replaces the token of the operator `name`, and returns the new one.
///
/// # Errors
/// If this fails. Then nothing is changed.
pub fn rotate(state: &Path, name: &OperatorName, now: i64, notify: &dyn Fn(&str)) -> Result<String, OperatorsError> {
    check_exists(state, name)?;
    let token = new_token()?;
    change(state, notify, |all| {
        let operator = all.get_mut(name).ok_or_else(|| OperatorsError::NotFound(name.clone()))?;
        operator.token_sha256 = TokenHash::of(token.as_bytes());
        operator.rotated = Some(now);
        Ok(())
    })?;
    Ok(token)
}

/// Removes the operator `name`. Returns how many are left.
///
/// # Errors
/// If this fails. Then nothing is changed.
pub fn remove(state: &Path, name: &OperatorName, notify: &dyn Fn(&str)) -> Result<usize, OperatorsError> {
    check_exists(state, name)?;
    let mut left = 0;
    change(state, notify, |all| {
        all.remove(name).ok_or_else(|| OperatorsError::NotFound(name.clone()))?;
        left = all.len();
        Ok(())
    })?;
    Ok(left)
}

/// The operators in the state directory `state`.
///
/// # Errors
/// If the file exists and cannot be read, or is invalid.
pub fn read(state: &Path) -> Result<StoredOperators, OperatorsError> {
    match folder_of(state) {
        Err(OperatorsError::Folder { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(StoredOperators::default())
        }
        folder => Ok(read_in(&folder?, &state.join(FILE))?.unwrap_or_default()),
    }
}

/// Fails if there is no operator `name`, also if there is no state directory.
fn check_exists(state: &Path, name: &OperatorName) -> Result<(), OperatorsError> {
    if read(state)?.0.contains_key(name) { Ok(()) } else { Err(OperatorsError::NotFound(name.clone())) }
}

fn new_token() -> Result<String, OperatorsError> {
    passwords::generate().map_err(|_| OperatorsError::Random)
}

fn change(
    state: &Path,
    notify: &dyn Fn(&str),
    change: impl FnOnce(&mut BTreeMap<OperatorName, StoredOperator>) -> Result<(), OperatorsError>,
) -> Result<(), OperatorsError> {
    let folder = folder_of(state)?;
    let path = state.join(FILE);
    // Lock the state directory, not the file, which each change replaces.
    let _lock = folder.lock(&path, notify).map_err(OperatorsError::Locked)?;
    let mut operators = read_in(&folder, &path)?.unwrap_or_default();
    change(&mut operators.0)?;
    let unwritable = |source| OperatorsError::Unwritable { path: path.clone(), source };
    let mut text = serde_json::to_vec_pretty(&operators).map_err(|error| unwritable(error.into()))?;
    text.push(b'\n');
    state::write_private(&path, &text).map_err(unwritable)
}

fn folder_of(state: &Path) -> Result<FolderHandle, OperatorsError> {
    state::folder_of(&state.join(FILE)).map_err(|source| OperatorsError::Folder { path: state.to_owned(), source })
}

/// The operators in `folder`; `None` if the file does not exist. `path` is the file's path for messages.
fn read_in(folder: &FolderHandle, path: &Path) -> Result<Option<StoredOperators>, OperatorsError> {
    let unusable = |error: &dyn fmt::Display| OperatorsError::File(SettingsError::of_file(path, error));
    let bytes = match folder.read(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|error| unusable(&format_args!("cannot be read: {error}")))?,
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| unusable(&"is not UTF-8 text"))?;
    settings::read(path, text).map(Some).map_err(OperatorsError::File)
}

/// The file of a running server, which is read again when it changes.
#[derive(Debug)]
pub(super) struct OperatorsFile {
    state: PathBuf,
    /// The stamp under which the file was read, if it proves that the file is unchanged.
    seen: Option<FileStamp>,
    /// Whether the file was there at any time since the start.
    was_there: bool,
}

/// What the file holds.
#[derive(Debug)]
pub(super) enum Reading {
    Unchanged,
    Operators(StoredOperators),
    /// Why it cannot be used.
    Failed(String),
}

impl OperatorsFile {
    pub(super) fn of_state(state: &Path) -> Self {
        Self { state: state.to_owned(), seen: None, was_there: false }
    }

    /// Reads the file, unless it is unchanged.
    pub(super) fn read(&mut self, now: SystemTime) -> Reading {
        let reading = folder_of(&self.state).and_then(|folder| {
            // Before the content, so that a change meanwhile is read next time.
            let stamp = folder.stat(FILE).ok().map(|stat| FileStamp::of_stat(&stat));
            if stamp.is_some() && stamp == self.seen {
                return Ok(None);
            }
            self.seen = stamp.and_then(|stamp| stamp.settled(now));
            Ok(Some(read_in(&folder, &self.state.join(FILE))?))
        });
        match reading {
            Ok(None) => Reading::Unchanged,
            Ok(Some(Some(operators))) => {
                self.was_there = true;
                Reading::Operators(operators)
            }
            Ok(Some(None)) if !self.was_there => Reading::Operators(StoredOperators::default()),
            // Its removal must not open the listener to this machine, as if there had never been an operator.
            Ok(Some(None)) => Reading::Failed(format!(
                "{} was removed while provost runs; put it back, add operators with provost operator add, or restart provost \
                 to do without",
                self.state.join(FILE).display()
            )),
            Err(error) => {
                self.seen = None;
                self.was_there = true;
                Reading::Failed(error.to_string())
            }
        }
    }
}
