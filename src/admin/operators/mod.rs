//! Authenticates operators, by a token or by a session cookie.
//!
//! There are named operators, each with a token that [`file`] stores hashed, and the token in `token_file`, which counts as
//! one more operator. A token is compared by its hash, in constant time, and never leaves memory. A browser gets a cookie
//! that names its operator, and is signed with a key made from this process, the name and the token. So a session ends with
//! the process, with the operator, and with its token.
//!
//! If the file of the named operators cannot be used, none of them is an operator, and requests still need a token.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use aws_lc_rs::{digest, hmac};

pub mod file;
pub mod token_file;

use file::{OperatorsFile, Reading, StoredOperators, TokenHash};
use token_file::TokenError;

use crate::constituency::ConstituencyName;

/// How long a browser stays signed in, in seconds.
pub const SESSION_S: i64 = 12 * 3600;
/// The name of the operator whose token is in `token_file`.
pub const TOKEN_FILE_NAME: &str = "token_file";

/// An authenticated operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub name: String,
    pub scope: Scope,
    /// Whether it may change nothing.
    pub is_read_only: bool,
}

/// What an operator sees and changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The whole server: the scope of an administrator.
    #[default]
    All,
    /// These constituencies and their phones.
    Constituencies(BTreeSet<ConstituencyName>),
}

impl Scope {
    /// Whether `name`, which is not always a valid name, is that of a constituency within the scope. Case counts.
    #[must_use]
    pub fn includes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Constituencies(names) => names.contains(name),
        }
    }

    /// The only constituencies that it includes; `None` if it includes all.
    #[must_use]
    pub fn constituencies(&self) -> Option<&BTreeSet<ConstituencyName>> {
        match self {
            Self::All => None,
            Self::Constituencies(names) => Some(names),
        }
    }

    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }
}

/// All operators, and the key of their sessions.
pub struct Operators {
    token_file: Option<PathBuf>,
    /// The token in `token_file`.
    administrator: ArcSwap<Option<Credential>>,
    named: ArcSwap<NamedOperators>,
    /// A new key for each process.
    process: hmac::Key,
}

/// The operators in the file, as last read.
#[derive(Default)]
struct NamedOperators {
    credentials: Vec<Credential>,
    /// Why the file cannot be used. Then there are no credentials.
    error: Option<String>,
}

/// What proves to be an operator.
#[derive(Clone)]
struct Credential {
    operator: Arc<Operator>,
    hash: TokenHash,
    /// Signs the sessions.
    sessions: hmac::Key,
}

/// The difference that a refresh found: names of operators.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OperatorChanges {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    /// Operators with a new token or other rights.
    pub changed: Vec<String>,
}

impl fmt::Debug for Operators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operators").field("token_file", &self.token_file).finish_non_exhaustive()
    }
}

impl Operators {
    /// Reads the token in `token_file`, and the operators in the state directory `state`, which the returned watcher reads
    /// again.
    ///
    /// # Errors
    /// If the token cannot be used.
    pub fn open(token_file: Option<&Path>, state: &Path, now: SystemTime) -> Result<OperatorsWatcher, TokenError> {
        let mut key = [0; digest::SHA256_OUTPUT_LEN];
        aws_lc_rs::rand::fill(&mut key)
            .map_err(|_| std::io::Error::other("the system's random number generator failed"))?;
        let operators = Self {
            token_file: token_file.map(Path::to_owned),
            administrator: ArcSwap::default(),
            named: ArcSwap::default(),
            process: hmac::Key::new(hmac::HMAC_SHA256, &key),
        };
        operators.reload_token_file()?;
        let mut watcher = OperatorsWatcher { file: OperatorsFile::of_state(state), operators: Arc::new(operators) };
        watcher.refresh(now);
        Ok(watcher)
    }

    /// Reads `token_file` again. Returns whether the token has changed. A new token ends the sessions of the old one.
    ///
    /// # Errors
    /// If the new token cannot be used. The old one stays in force.
    pub fn reload_token_file(&self) -> Result<bool, TokenError> {
        let Some(file) = &self.token_file else { return Ok(false) };
        let hash = TokenHash::of(&token_file::read(file)?);
        let is_new = self.administrator.load().as_ref().as_ref().is_none_or(|old| old.hash != hash);
        if is_new {
            let operator = Operator { name: TOKEN_FILE_NAME.to_owned(), scope: Scope::All, is_read_only: false };
            self.administrator.store(Arc::new(Some(self.credential(operator, hash))));
        }
        Ok(is_new)
    }

    /// Whether requests need a token: with `token_file`, with an operator, and if it is unknown whether there is one.
    #[must_use]
    pub fn are_required(&self) -> bool {
        let named = self.named.load();
        self.token_file.is_some() || !named.credentials.is_empty() || named.error.is_some()
    }

    /// Why the file of the named operators cannot be used, if it cannot.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.named.load().error.clone()
    }

    /// The operator whose token is `shown`.
    #[must_use]
    pub fn authenticate(&self, shown: &[u8]) -> Option<Arc<Operator>> {
        self.credential_of(shown).map(|credential| credential.operator)
    }

    /// The value of a session cookie for the operator whose token is `shown`. It begins at `now`, in Unix seconds, and is
    /// valid only within `scope`.
    #[must_use]
    pub fn begin_session(&self, scope: &str, shown: &[u8], now: i64) -> Option<String> {
        let credential = self.credential_of(shown)?;
        let (name, until) = (&credential.operator.name, (now + SESSION_S).to_string());
        let tag = hmac::sign(&credential.sessions, signed(scope, &until).as_bytes());
        Some(format!("{name}:{until}-{}", hex(tag.as_ref())))
    }

    /// The operator of the session `value`, if that is one within `scope` that has not expired at `now`.
    #[must_use]
    pub fn verify_session(&self, scope: &str, value: &str, now: i64) -> Option<Arc<Operator>> {
        let (name, rest) = value.split_once(':')?;
        let (until, tag) = rest.split_once('-')?;
        let tag = bytes(tag)?;
        let credential = self.find(|credential| credential.operator.name == name)?;
        hmac::verify(&credential.sessions, signed(scope, until).as_bytes(), &tag).ok()?;
        until.parse().is_ok_and(|until: i64| now < until).then_some(credential.operator)
    }

    /// Whether a client that was accepted before, as `operator` or without a token, would be accepted now, with the same
    /// rights.
    #[must_use]
    pub fn still_accept(&self, operator: Option<&Arc<Operator>>) -> bool {
        match operator {
            Some(operator) => self.find(|credential| Arc::ptr_eq(&credential.operator, operator)).is_some(),
            None => !self.are_required(),
        }
    }

    fn credential_of(&self, shown: &[u8]) -> Option<Credential> {
        let hash = TokenHash::of(shown);
        self.find(|credential| credential.hash.is_same(&hash))
    }

    fn find(&self, is_wanted: impl Fn(&Credential) -> bool) -> Option<Credential> {
        let administrator = self.administrator.load();
        let named = self.named.load();
        administrator.iter().chain(&named.credentials).find(|credential| is_wanted(credential)).cloned()
    }

    fn credential(&self, operator: Operator, hash: TokenHash) -> Credential {
        // Unambiguous, because a hash has a fixed length.
        let secret = hmac::sign(&self.process, &[hash.bytes(), operator.name.as_bytes()].concat());
        let sessions = hmac::Key::new(hmac::HMAC_SHA256, secret.as_ref());
        Credential { operator: Arc::new(operator), hash, sessions }
    }

    /// Puts `stored` in force. An unchanged operator keeps its `Arc`.
    fn publish(&self, stored: &StoredOperators) -> OperatorChanges {
        let before = self.named.load();
        let mut old: BTreeMap<&str, &Credential> =
            before.credentials.iter().map(|credential| (credential.operator.name.as_str(), credential)).collect();
        let mut changes = OperatorChanges::default();
        let mut credentials = Vec::new();
        for (name, stored) in &stored.0 {
            let scope = stored.constituencies.clone().map_or(Scope::All, Scope::Constituencies);
            let operator = Operator { name: name.to_string(), scope, is_read_only: stored.read_only };
            let credential = match old.remove(name.as_str()) {
                Some(old) if *old.operator == operator && old.hash == stored.token_sha256 => old.clone(),
                known => {
                    let list = if known.is_some() { &mut changes.changed } else { &mut changes.added };
                    list.push(name.to_string());
                    self.credential(operator, stored.token_sha256)
                }
            };
            credentials.push(credential);
        }
        changes.removed.extend(old.into_keys().map(str::to_owned));
        self.named.store(Arc::new(NamedOperators { credentials, error: None }));
        changes
    }
}

/// Reads the file of the named operators again when it changes.
#[derive(Debug)]
pub struct OperatorsWatcher {
    file: OperatorsFile,
    operators: Arc<Operators>,
}

impl OperatorsWatcher {
    /// The live operators.
    #[must_use]
    pub fn operators(&self) -> Arc<Operators> {
        Arc::clone(&self.operators)
    }

    /// Reads the file again if it changed. On an error, no named operator is left: a removed one must not stay.
    pub fn refresh(&mut self, now: SystemTime) -> OperatorChanges {
        match self.file.read(now) {
            Reading::Unchanged => OperatorChanges::default(),
            Reading::Operators(stored) => {
                let was_unusable = self.operators.error().is_some();
                let changes = self.operators.publish(&stored);
                // After an error, all of them are new, which says nothing.
                if was_unusable { OperatorChanges::default() } else { changes }
            }
            Reading::Failed(error) => {
                if self.operators.error().as_ref() != Some(&error) {
                    self.operators
                        .named
                        .store(Arc::new(NamedOperators { credentials: Vec::new(), error: Some(error) }));
                }
                OperatorChanges::default()
            }
        }
    }
}

/// The message under a session's tag: purpose, scope, expiry. It is unambiguous, because the expiry consists of digits.
fn signed(scope: &str, until: &str) -> String {
    format!("session\0{scope}\0{until}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let is_hex = hex.len().is_multiple_of(2) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| hex.as_bytes().chunks(2).map(pair).collect())?
}

#[cfg(test)]
mod tests;
