//! What must outlive a restart besides certificates: failures, the CA's demands, budgets. One file, replaced whole.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::lineage::Lineage;
use super::rate_limit::{Limit, RateLimit};
use super::schedule::{ChosenWindow, Deadline};
use crate::constituency::ConstituencyName;
use crate::state::{self, FolderHandle};

/// Everything, as it is on the disk.
#[derive(Debug)]
pub(super) struct PersistentState {
    path: PathBuf,
    pub(super) kept: StoredState,
    nothing: (OrderAttempts, AccountState),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StoredState {
    /// By what was attempted: another configuration gets a first attempt at once.
    pub(super) fingerprint: String,
    pub(super) certificates: BTreeMap<Lineage, OrderAttempts>,
    pub(super) directories: BTreeMap<String, AccountState>,
}

/// How it went for one certificate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OrderAttempts {
    /// In a row.
    pub(super) failures: u32,
    /// When the first of them was.
    pub(super) failing_since: Option<i64>,
    pub(super) last_failure: Option<i64>,
    pub(super) last_error: Option<String>,
    pub(super) needs_human: bool,
    pub(super) last_success: Option<i64>,
    /// The certificate in use was revoked; it is due whatever its dates say.
    pub(super) revoked: bool,
    /// An attempt was begun and has not ended.
    pub(super) under_way: bool,
    /// How often in a row an attempt was cut off by the end of the process.
    pub(super) cut_off: u32,
    /// Before this, nothing is tried.
    pub(super) pause: Option<Deadline>,
    /// By how much this certificate is renewed early.
    pub(super) early: f64,
    pub(super) window: Option<ChosenWindow>,
    /// When to ask for the window again.
    pub(super) recheck: Option<Deadline>,
    /// Our own budgets, and limits of a CA's that hold for this certificate alone, by directory.
    pub(super) waits: BTreeMap<String, Deadline>,
    /// The exact names of the last attempt: others get a first attempt at once.
    pub(super) names: Vec<String>,
}

/// What a CA demands, and what may still be asked of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AccountState {
    pub(super) retry_after: Option<Deadline>,
    pub(super) budget: RateLimit,
    /// Of what a CA limits by name, each constituency with exact names has its own.
    pub(super) exact: BTreeMap<ConstituencyName, RateLimit>,
}

impl AccountState {
    /// The budget that `limit` is paid from for `lineage`.
    pub(super) fn budget(&self, lineage: &Lineage, limit: Limit) -> Option<&RateLimit> {
        match lineage.constituency().filter(|_| limit.is_by_name()) {
            Some(constituency) => self.exact.get(constituency),
            None => Some(&self.budget),
        }
    }

    /// The same, to be changed.
    pub(super) fn budget_mut(&mut self, lineage: &Lineage, limit: Limit) -> &mut RateLimit {
        match lineage.constituency().filter(|_| limit.is_by_name()) {
            Some(constituency) => self.exact.entry(constituency.clone()).or_default(),
            None => &mut self.budget,
        }
    }
}

impl PersistentState {
    /// Reads the memory. One that cannot be understood is put aside, and that is the second thing returned.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, Option<String>)> {
        let (kept, damage) = read_json(&path)?;
        Ok((Self { path, kept, nothing: Default::default() }, damage))
    }

    /// What is on the disk, as far as it can be understood; nothing is changed.
    pub(super) fn peek(path: &Path) -> io::Result<StoredState> {
        match state::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StoredState::default()),
            read => Ok(serde_json::from_slice(&read?).unwrap_or_default()),
        }
    }

    /// Puts it on the disk.
    pub(super) fn keep(&self) -> io::Result<()> {
        write_json(&self.path, &self.kept)
    }

    pub(super) fn of(&self, lineage: &Lineage) -> &OrderAttempts {
        self.kept.certificates.get(lineage).unwrap_or(&self.nothing.0)
    }

    pub(super) fn of_mut(&mut self, lineage: &Lineage) -> &mut OrderAttempts {
        self.kept.certificates.entry(lineage.clone()).or_default()
    }

    pub(super) fn at(&self, directory: &str) -> &AccountState {
        self.kept.directories.get(directory).unwrap_or(&self.nothing.1)
    }

    pub(super) fn at_mut(&mut self, directory: &str) -> &mut AccountState {
        self.kept.directories.entry(directory.to_owned()).or_default()
    }
}

/// Reads JSON that we wrote; absent is empty. A file that is damaged is put aside: work goes on without it.
pub(super) fn read_json<T: DeserializeOwned + Default>(path: &Path) -> io::Result<(T, Option<String>)> {
    let bytes = match state::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((T::default(), None)),
        read => read?,
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok((value, None)),
        Err(error) => {
            let aside = path.with_extension("damaged");
            let (folder, name) = FolderHandle::of_file(path)?;
            folder.rename(name, aside.file_name().unwrap_or_default())?;
            let damage = format!("{} is damaged ({error}); put aside as {}", path.display(), aside.display());
            Ok((T::default(), Some(damage)))
        }
    }
}

/// Stores JSON, whole or not at all.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    state::write_private(path, &serde_json::to_vec_pretty(value)?)
}
