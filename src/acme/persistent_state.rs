//! The state that survives a restart besides certificates: failures, Retry-After, rate limits. One file, replaced
//! atomically.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::lineage::Lineage;
use super::rate_limit::{Limit, RateLimit};
use super::schedule::{ChosenWindow, Deadline};
use crate::constituency::ConstituencyName;
use crate::state;

/// The state, in memory as on disk.
#[derive(Debug)]
pub(super) struct PersistentState {
    path: PathBuf,
    pub(super) kept: StoredState,
    empty: (OrderAttempts, AccountState),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StoredState {
    /// The fingerprint of the last configuration. Another configuration is attempted at once.
    pub(super) fingerprint: String,
    pub(super) certificates: BTreeMap<Lineage, OrderAttempts>,
    pub(super) directories: BTreeMap<String, AccountState>,
}

/// The attempts for one certificate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OrderAttempts {
    /// Failures in a row.
    pub(super) failures: u32,
    /// When the first of these failures was, Unix time.
    pub(super) failing_since: Option<i64>,
    pub(super) last_failure: Option<i64>,
    pub(super) last_error: Option<String>,
    #[serde(rename = "needs_human")]
    pub(super) action_required: bool,
    pub(super) last_success: Option<i64>,
    /// The certificate in use was revoked, so it is due whatever its dates say.
    pub(super) revoked: bool,
    /// An attempt has begun and not ended.
    pub(super) under_way: bool,
    /// How many attempts in a row ended with a crash of the process.
    pub(super) cut_off: u32,
    /// No attempt before this.
    pub(super) pause: Option<Deadline>,
    /// A random number from 0 to 1: how much earlier than usual this certificate is renewed.
    pub(super) early: f64,
    pub(super) window: Option<ChosenWindow>,
    /// When to ask for the window again.
    pub(super) recheck: Option<Deadline>,
    /// By directory: how long our own rate limits, or limits of the CA for this certificate alone, block an attempt.
    pub(super) waits: BTreeMap<String, Deadline>,
    /// The exact names of the last attempt. Other names are attempted at once.
    pub(super) names: Vec<String>,
}

/// The Retry-After of a CA, and our rate limits there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AccountState {
    pub(super) retry_after: Option<Deadline>,
    /// Our account replaced a deactivated one, and has obtained no certificate yet.
    pub(super) replaced_account: bool,
    pub(super) budget: RateLimit,
    /// Of what a CA limits by name, each constituency with exact names has its own rate limit.
    pub(super) exact: BTreeMap<ConstituencyName, RateLimit>,
}

impl AccountState {
    /// The rate limit to which `limit` is charged for `lineage`; `None` if it is untouched.
    pub(super) fn budget(&self, lineage: &Lineage, limit: Limit) -> Option<&RateLimit> {
        match lineage.constituency().filter(|_| limit.is_by_name()) {
            Some(constituency) => self.exact.get(constituency),
            None => Some(&self.budget),
        }
    }

    /// The same, mutable; created if absent.
    pub(super) fn budget_mut(&mut self, lineage: &Lineage, limit: Limit) -> &mut RateLimit {
        match lineage.constituency().filter(|_| limit.is_by_name()) {
            Some(constituency) => self.exact.entry(constituency.clone()).or_default(),
            None => &mut self.budget,
        }
    }
}

impl PersistentState {
    /// Reads the state. A damaged file is renamed, and the second value says so.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, Option<String>)> {
        let (kept, damage) = read_json(&path)?;
        Ok((Self { path, kept, empty: Default::default() }, damage))
    }

    /// Reads the state without changing a file. A damaged file is read as empty.
    pub(super) fn peek(path: &Path) -> io::Result<StoredState> {
        match state::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StoredState::default()),
            read => Ok(serde_json::from_slice(&read?).unwrap_or_default()),
        }
    }

    /// Writes it to disk.
    pub(super) fn keep(&self) -> io::Result<()> {
        write_json(&self.path, &self.kept)
    }

    pub(super) fn of(&self, lineage: &Lineage) -> &OrderAttempts {
        self.kept.certificates.get(lineage).unwrap_or(&self.empty.0)
    }

    pub(super) fn of_mut(&mut self, lineage: &Lineage) -> &mut OrderAttempts {
        self.kept.certificates.entry(lineage.clone()).or_default()
    }

    pub(super) fn at(&self, directory: &str) -> &AccountState {
        self.kept.directories.get(directory).unwrap_or(&self.empty.1)
    }

    pub(super) fn at_mut(&mut self, directory: &str) -> &mut AccountState {
        self.kept.directories.entry(directory.to_owned()).or_default()
    }
}

/// Reads JSON that we wrote. An absent file gives the default. So does one that is damaged, not a regular file or not
/// readable for this user; it is renamed to `*.damaged`. The server must start all the same: it has certificates.
pub(super) fn read_json<T: DeserializeOwned + Default>(path: &Path) -> io::Result<(T, Option<String>)> {
    let reason = match state::read(path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => return Ok((value, None)),
            Err(error) => format!("is damaged ({error})"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((T::default(), None)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied || !state::is_regular_file(path) => {
            format!("cannot be read ({error})")
        }
        Err(error) => return Err(error),
    };
    let aside = state::put_aside(path, &path.with_extension("damaged"))?;
    Ok((T::default(), Some(format!("{} {reason}; put aside as {}", path.display(), aside.display()))))
}

/// Writes JSON atomically.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    state::write_private(path, &serde_json::to_vec_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn entry_of_wrong_file_type_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("renewal.json");
        let plants: [fn(&Path); 3] = [
            |path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
            |path| std::fs::create_dir(path).unwrap(),
            |path| symlink(path, path).unwrap(),
        ];
        for (plant, name) in plants.into_iter().zip(["renewal.damaged", "renewal.damaged.2", "renewal.damaged.3"]) {
            plant(&path);
            let (state, damage) = PersistentState::open(path.clone()).unwrap();
            let damage = damage.unwrap();
            assert!(damage.contains("cannot be read (") && damage.ends_with(name), "{damage}");
            assert!(folder.path().join(name).symlink_metadata().is_ok(), "{name}");
            state.keep().unwrap();
            assert_eq!(PersistentState::open(path.clone()).unwrap().1, None);
            state::remove_all(&path).unwrap();
        }
    }
}
