//! Certificates on disk: `certs/LINEAGE/N/{chain.pem,key.pem,meta.json}`, and a symlink `current` to the newest good N.
//!
//! A generation is written to a temporary folder, synced to disk, and renamed to its number. The symlink is replaced by
//! a rename too. So a chain and its key are always of one generation, and a crash at any point leaves the old `current`
//! or the new one. The last three generations are kept.
//!
//! Beside them are `order.json` and `order.key`: the pending order. Its key is on disk before the order is placed.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use super::check::{Checked, check};
use super::lineage::Lineage;
use super::persistent_state::{read_json, write_json};
use super::schedule::Deadline;
use crate::constituency::ConstituencyName;
use crate::state::{self, FolderHandle};

const KEPT: usize = 3;
const CURRENT: &str = "current";
const NEW: &str = ".new";
const EXACT: &str = "exact";

/// The folder of certificates.
#[derive(Debug, Clone)]
pub(super) struct CertificateStore {
    root: PathBuf,
}

/// The metadata of a stored certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredMeta {
    /// The directory of the CA that issued it.
    pub(super) directory: String,
    /// When it was stored, Unix time.
    pub(super) stored: i64,
    /// No renewal that only a window (ARI) makes due before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ari_floor: Option<Deadline>,
}

/// A certificate that was stored.
#[derive(Debug, Clone)]
pub(super) struct StoredLineage {
    pub(super) checked: Checked,
    pub(super) meta: StoredMeta,
}

/// A pending order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PendingOrder {
    pub(super) directory: String,
    pub(super) url: String,
    pub(super) names: Vec<String>,
    /// Whether the CA asked for it, so that it is exempt from limits.
    pub(super) wanted: bool,
    /// What was charged to rate limits for it.
    pub(super) spent_validations: i64,
    pub(super) spent_certificate: bool,
}

impl CertificateStore {
    /// Creates no folder until there is something to store.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn folder(&self, lineage: &Lineage) -> PathBuf {
        self.root.join(lineage.to_string())
    }

    /// The current certificate, or the newest usable one; and what is wrong with those that were skipped.
    pub(super) fn load(&self, lineage: &Lineage) -> (Option<StoredLineage>, Vec<String>) {
        let folder = self.folder(lineage);
        let current = || FolderHandle::open(&folder)?.link_target(CURRENT);
        let current = current().ok().and_then(|target| number(target.as_os_str()));
        let mut numbers = generations(&folder);
        // `current` comes before newer generations, which were never put in use.
        numbers.sort_by_key(|number| (Some(*number) == current, *number));
        let mut problems = Vec::new();
        for number in numbers.into_iter().rev() {
            match read_generation(&folder.join(number.to_string())) {
                Ok(stored) => return (Some(stored), problems),
                Err(problem) => problems.push(format!("{}: {problem}", folder.join(number.to_string()).display())),
            }
        }
        (None, problems)
    }

    /// Stores a new generation and makes it the current one.
    pub(super) fn save(&self, lineage: &Lineage, chain: &str, key: &str, meta: &StoredMeta) -> io::Result<()> {
        let path = self.folder(lineage);
        let folder = FolderHandle::open_or_make(&path)?;
        folder.remove_all(NEW)?;
        folder.make_folder(NEW)?;
        let new = path.join(NEW);
        state::write_private(&new.join("chain.pem"), chain.as_bytes())?;
        state::write_private(&new.join("key.pem"), key.as_bytes())?;
        write_json(&new.join("meta.json"), meta)?;
        let number = generations(&path).into_iter().max().unwrap_or(0) + 1;
        folder.rename(NEW, number.to_string())?;
        folder.sync()?;
        folder.put_link(number.to_string(), CURRENT)?;
        folder.sync()?;
        path.ancestors().skip(1).take_while(|above| above.starts_with(&self.root)).try_for_each(state::sync_folder)?;
        let mut old: Vec<u64> = generations(&path);
        old.sort_unstable_by(|a, b| b.cmp(a));
        old.iter().skip(KEPT).try_for_each(|number| folder.remove_all(number.to_string()))
    }

    /// The pending order, with its key.
    pub(super) fn pending(&self, lineage: &Lineage) -> Option<(PendingOrder, KeyPair)> {
        let folder = self.folder(lineage);
        let (order, _) = read_json::<Option<PendingOrder>>(&folder.join("order.json")).ok()?;
        let key = KeyPair::from_pem(&state::read_text(&folder.join("order.key")).ok()?).ok()?;
        Some((order?, key))
    }

    /// Stores the key of an order that is about to be placed.
    pub(super) fn keep_key(&self, lineage: &Lineage, key: &KeyPair) -> io::Result<()> {
        state::private_folder(&self.folder(lineage))?;
        state::write_private(&self.folder(lineage).join("order.key"), key.serialize_pem().as_bytes())
    }

    /// Stores the pending order.
    pub(super) fn keep_order(&self, lineage: &Lineage, order: &PendingOrder) -> io::Result<()> {
        write_json(&self.folder(lineage).join("order.json"), order)
    }

    /// Removes the pending order and its key.
    pub(super) fn forget_order(&self, lineage: &Lineage) -> io::Result<()> {
        match FolderHandle::open(&self.folder(lineage)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            folder => {
                let folder = folder?;
                folder.remove_all("order.json")?;
                folder.remove_all("order.key")?;
                folder.sync()
            }
        }
    }
}

impl CertificateStore {
    /// The constituencies with stored data for exact names.
    pub(super) fn exact(&self) -> Vec<ConstituencyName> {
        let entries =
            FolderHandle::open(&self.root.join(EXACT)).and_then(|folder| folder.entries()).unwrap_or_default();
        entries.iter().filter_map(|entry| entry.name.to_str()?.parse().ok()).collect()
    }

    /// Removes everything of a lineage.
    pub(super) fn forget(&self, lineage: &Lineage) -> io::Result<()> {
        state::remove_all(&self.folder(lineage))
    }

    /// Removes a store, with all that is in it.
    pub(super) fn remove(root: &Path) -> io::Result<()> {
        state::remove_all(root)
    }
}

fn read_generation(folder: &Path) -> Result<StoredLineage, String> {
    let read = |name: &str| state::read_text(&folder.join(name)).map_err(|error| format!("{name}: {error}"));
    let meta = serde_json::from_str(&read("meta.json")?).map_err(|error| format!("meta.json: {error}"))?;
    let checked = check(&read("chain.pem")?, &read("key.pem")?).map_err(|error| error.to_string())?;
    Ok(StoredLineage { checked, meta })
}

fn number(name: &OsStr) -> Option<u64> {
    name.to_str()?.parse().ok()
}

fn generations(folder: &Path) -> Vec<u64> {
    let entries = FolderHandle::open(folder).and_then(|folder| folder.entries()).unwrap_or_default();
    entries.iter().filter_map(|entry| number(&entry.name)).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rcgen::CertificateParams;

    use super::*;
    use crate::ca::KeyKind;

    const LINEAGE: Lineage = Lineage::Wildcard(KeyKind::EcdsaP256);

    fn pair(serial: u64) -> (String, String) {
        let key = KeyKind::EcdsaP256.generate().unwrap();
        let mut params = CertificateParams::new(vec!["*.a.example".to_owned(), "a.example".to_owned()]).unwrap();
        params.serial_number = Some(serial.into());
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn save(store: &CertificateStore, number: u64) {
        let (chain, key) = pair(number);
        let meta = StoredMeta { directory: "d".to_owned(), stored: i64::try_from(number).unwrap(), ari_floor: None };
        store.save(&LINEAGE, &chain, &key, &meta).unwrap();
    }

    fn loaded(store: &CertificateStore) -> Option<i64> {
        store.load(&LINEAGE).0.map(|stored| stored.meta.stored)
    }

    #[test]
    fn three_generations_are_kept_with_owner_only_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(folder.path().join("certs"));
        assert_eq!(loaded(&store), None);
        (1..=5).for_each(|number| save(&store, number));
        assert_eq!(loaded(&store), Some(5));
        let kind = folder.path().join("certs/ecdsa-p256");
        let mut kept = generations(&kind);
        kept.sort_unstable();
        assert_eq!(kept, [3, 4, 5]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&kind), mode(&kind.join("5"))), (0o700, 0o700));
        for name in ["chain.pem", "key.pem", "meta.json"] {
            assert_eq!(mode(&kind.join("current").join(name)), 0o600);
        }
    }

    #[test]
    fn crash_at_any_step_leaves_a_usable_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(folder.path().join("certs"));
        let kind = folder.path().join("certs/ecdsa-p256");
        save(&store, 1);
        save(&store, 2);
        // A half-written generation, with its symlink not yet in place.
        fs::create_dir(kind.join(".new")).unwrap();
        state::write_private(&kind.join(".new/chain.pem"), b"half").unwrap();
        symlink("7", kind.join(".current")).unwrap();
        assert_eq!(loaded(&store), Some(2));
        // Numbered but not yet current.
        fs::rename(kind.join(".new"), kind.join("3")).unwrap();
        assert_eq!(loaded(&store), Some(2));
        // The current one is damaged, or gone.
        state::write_private(&kind.join("2/key.pem"), b"").unwrap();
        let (stored, problems) = store.load(&LINEAGE);
        assert_eq!((stored.unwrap().meta.stored, problems.len()), (1, 2));
        fs::remove_file(kind.join("current")).unwrap();
        assert_eq!(loaded(&store), Some(1));
        save(&store, 4);
        assert_eq!(loaded(&store), Some(4));
    }

    #[test]
    fn pending_order_is_loaded_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(folder.path().join("certs"));
        let kind = &LINEAGE;
        store.forget_order(kind).unwrap();
        let key = kind.key().generate().unwrap();
        store.keep_key(kind, &key).unwrap();
        assert!(store.pending(kind).is_none());
        let order = PendingOrder {
            directory: "d".to_owned(),
            url: "u".to_owned(),
            names: vec!["a.example".to_owned()],
            wanted: true,
            spent_validations: 2,
            spent_certificate: false,
        };
        store.keep_order(kind, &order).unwrap();
        let (found, found_key) = store.pending(kind).unwrap();
        assert_eq!((found, found_key.serialize_pem()), (order, key.serialize_pem()));
        store.forget_order(kind).unwrap();
        assert!(store.pending(kind).is_none());
    }

    #[test]
    fn constituency_named_like_a_key_kind_has_its_own_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(folder.path().join("certs"));
        assert!(store.exact().is_empty());
        save(&store, 1);
        let name: ConstituencyName = "ecdsa-p256".parse().unwrap();
        let exact = Lineage::Exact(name.clone());
        let (chain, key) = pair(2);
        store
            .save(&exact, &chain, &key, &StoredMeta { directory: "d".to_owned(), stored: 2, ari_floor: None })
            .unwrap();
        assert_eq!((loaded(&store), store.load(&exact).0.unwrap().meta.stored), (Some(1), 2));
        assert_eq!(store.exact(), [name]);
        store.forget(&exact).unwrap();
        store.forget(&exact).unwrap();
        assert_eq!((loaded(&store), store.load(&exact).0.is_some(), store.exact().len()), (Some(1), false, 0));
    }
}
