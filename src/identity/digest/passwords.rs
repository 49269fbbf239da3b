//! The stored passwords of phones: one file for each constituency in the state directory, mode 0600.
//!
//! They are not in `constituency.json`: policies are shared and readable by many, and an HA1 is equivalent to its
//! password.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::algorithm::Ha1;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::files::FileStamp;
use crate::settings;
use crate::state::{self, FolderHandle};
use crate::wording::counted;

/// The folder of the passwords in the state directory.
pub const FOLDER: &str = "digest";
const ENDING: &str = "json";
/// Digits that are not easily confused (Crockford's Base32).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Why passwords cannot be read or stored.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}", path = .path.display())]
pub struct PasswordsError {
    path: PathBuf,
    reason: String,
}

/// The passwords of one constituency.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConstituencyPasswords {
    /// The realm that they were made for.
    pub realm: String,
    /// The HA1 of each phone.
    pub phones: BTreeMap<MacAddress, Ha1>,
}

impl ConstituencyPasswords {
    /// Rejects another `realm` if there are passwords: one file holds passwords for one realm.
    fn check_realm(&self, realm: &str) -> Result<(), String> {
        let count = self.phones.len();
        if count == 0 || self.realm == realm {
            return Ok(());
        }
        let phones = counted(count, "phone");
        Err(format!(
            "holds the passwords of {phones} for {}, which are invalid for {realm}. If the old name is right, change \
             \"domain\" back, or name the configuration that belongs to this state (--config). If the new name is \
             right, remove this file and give each phone a new password (provost allow MAC --digest)",
            self.realm
        ))
    }
}

/// All passwords, as last read.
#[derive(Debug)]
pub struct Passwords {
    folder: PathBuf,
    all: ArcSwap<BTreeMap<ConstituencyName, Arc<ConstituencyPasswords>>>,
    seen: Mutex<StampedPasswords>,
}

/// The state of the files at the last refresh.
///
/// Not [`WatchedFiles`](crate::files::WatchedFiles), whose debounce is for files that are written in place. These are
/// always replaced whole, and a replacement may have the inode number of an earlier file. The debounce would take it for
/// a change in place, and a removed password would be valid for one more check.
#[derive(Debug, Default)]
struct StampedPasswords {
    stamps: BTreeMap<ConstituencyName, FileStamp>,
    /// The errors of unreadable files. Each refresh tries to read them again.
    unread: BTreeMap<ConstituencyName, String>,
    /// The error of listing the folder.
    unseen: Option<String>,
}

impl Passwords {
    /// The passwords in the state directory `state`, not yet read.
    #[must_use]
    pub fn of_state(state: &Path) -> Self {
        Self { folder: state.join(FOLDER), all: ArcSwap::default(), seen: Mutex::default() }
    }

    /// The passwords of `constituency`.
    #[must_use]
    pub fn of(&self, constituency: &ConstituencyName) -> Option<Arc<ConstituencyPasswords>> {
        self.all.load().get(constituency).cloned()
    }

    /// Reads the files that changed. If a file cannot be read, its last passwords stay in force, and each refresh
    /// retries. Returns only new errors.
    pub fn refresh(&self) -> Vec<PasswordsError> {
        self.refresh_by(read)
    }

    fn refresh_by(
        &self,
        read: impl Fn(&Path, &ConstituencyName) -> Result<ConstituencyPasswords, PasswordsError>,
    ) -> Vec<PasswordsError> {
        let mut seen = self.seen.lock();
        let now = match files(&self.folder) {
            Ok(now) => now,
            // The passwords that were read last stay in force.
            Err(error) => {
                let error = failed(&self.folder)(error);
                let before = seen.unseen.replace(error.to_string());
                return if before == seen.unseen { Vec::new() } else { vec![error] };
            }
        };
        seen.unseen = None;
        let mut errors = Vec::new();
        if now == seen.stamps && seen.unread.is_empty() {
            return errors;
        }
        let mut all = BTreeMap::clone(&self.all.load());
        all.retain(|name, _| now.contains_key(name));
        for (name, stamp) in &now {
            let has_changed = seen.stamps.get(name) != Some(stamp);
            let unread = seen.unread.remove(name);
            if !has_changed && unread.is_none() {
                continue;
            }
            match read(&self.folder, name) {
                Ok(read) => {
                    all.insert(name.clone(), Arc::new(read));
                }
                Err(error) => {
                    let reason = error.to_string();
                    if has_changed || unread.as_ref() != Some(&reason) {
                        errors.push(error);
                    }
                    seen.unread.insert(name.clone(), reason);
                }
            }
        }
        seen.unread.retain(|name, _| now.contains_key(name));
        seen.stamps = now;
        self.all.store(Arc::new(all));
        errors
    }
}

/// Generates a password: 128 random bits as 26 characters.
///
/// # Errors
/// If the system's random number generator fails.
pub fn generate() -> Result<String, Unspecified> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)?;
    let number = u128::from_be_bytes(bytes);
    let digit = |place: u32| ALPHABET.get(usize::try_from(number >> (5 * place) & 31).unwrap_or(0)).copied();
    Ok((0..26).rev().filter_map(digit).map(char::from).collect())
}

/// Checks that a password for `realm` can be stored.
///
/// # Errors
/// If the stored passwords are for another realm, or cannot be read.
pub fn check_realm(state: &Path, constituency: &ConstituencyName, realm: &str) -> Result<(), PasswordsError> {
    let stored = stored(state, constituency)?;
    let path = path(&state.join(FOLDER), constituency);
    stored.check_realm(realm).map_err(|reason| PasswordsError { path, reason })
}

/// Stores the HA1 of a phone's password; returns whether it replaced another. If the lock is held by another command,
/// `notify` gets a message, here and below.
///
/// # Errors
/// If this fails, for example because the stored passwords are for another `realm`. Then nothing is changed.
pub fn set(
    state: &Path,
    constituency: &ConstituencyName,
    realm: &str,
    mac: MacAddress,
    ha1: Ha1,
    notify: &dyn Fn(&str),
) -> Result<bool, PasswordsError> {
    let folder = state.join(FOLDER);
    state::private_folder(&folder).map_err(failed(&folder))?;
    change(&folder, constituency, notify, |all| {
        all.check_realm(realm)?;
        realm.clone_into(&mut all.realm);
        Ok(all.phones.insert(mac, ha1).is_some())
    })
}

/// Removes the passwords of phones by one write; returns the phones that had one.
///
/// # Errors
/// If this fails. Then the passwords are still valid.
pub fn remove(
    state: &Path,
    constituency: &ConstituencyName,
    macs: &[MacAddress],
    notify: &dyn Fn(&str),
) -> Result<Vec<MacAddress>, PasswordsError> {
    let folder = state.join(FOLDER);
    if !exists(&path(&folder, constituency))? {
        return Ok(Vec::new());
    }
    change(&folder, constituency, notify, |all| {
        Ok(macs.iter().filter(|mac| all.phones.remove(mac).is_some()).copied().collect())
    })
}

/// Removes phones' passwords for all constituencies, including removed ones. Returns the phones that had one there, and the
/// errors of those constituencies where they may still have one.
pub fn remove_everywhere(
    state: &Path,
    macs: &[MacAddress],
    notify: &dyn Fn(&str),
) -> (Vec<(ConstituencyName, Vec<MacAddress>)>, Vec<PasswordsError>) {
    let folder = state.join(FOLDER);
    let names = match files(&folder) {
        Ok(files) => files.into_keys(),
        Err(error) => return (Vec::new(), vec![failed(&folder)(error)]),
    };
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for name in names {
        // Do not rewrite a file that contains none of the phones.
        let may_hold_one = read(&folder, &name).map_or(true, |all| macs.iter().any(|mac| all.phones.contains_key(mac)));
        match if may_hold_one { remove(state, &name, macs, notify) } else { Ok(Vec::new()) } {
            Ok(of) if of.is_empty() => {}
            Ok(of) => removed.push((name, of)),
            Err(error) => errors.push(error),
        }
    }
    (removed, errors)
}

/// The stored passwords of `constituency`.
///
/// # Errors
/// If they cannot be read.
pub fn stored(state: &Path, constituency: &ConstituencyName) -> Result<ConstituencyPasswords, PasswordsError> {
    let folder = state.join(FOLDER);
    let path = path(&folder, constituency);
    if !exists(&path)? {
        return Ok(ConstituencyPasswords::default());
    }
    read(&folder, constituency)
}

fn change<T>(
    folder: &Path,
    constituency: &ConstituencyName,
    notify: &dyn Fn(&str),
    change: impl FnOnce(&mut ConstituencyPasswords) -> Result<T, String>,
) -> Result<T, PasswordsError> {
    // Serializes with other commands that change passwords.
    let opened = FolderHandle::open(folder).map_err(failed(folder))?;
    let _lock = opened.lock(folder, notify).map_err(|error| failed(folder)(io::Error::other(error)))?;
    let path = path(folder, constituency);
    let mut all = if exists(&path)? { read(folder, constituency)? } else { ConstituencyPasswords::default() };
    let changed = change(&mut all).map_err(|reason| PasswordsError { path: path.clone(), reason })?;
    let text = serde_json::to_vec_pretty(&all).map_err(|error| failed(&path)(error.into()))?;
    state::write_private(&path, &text).map_err(failed(&path))?;
    Ok(changed)
}

fn read(folder: &Path, constituency: &ConstituencyName) -> Result<ConstituencyPasswords, PasswordsError> {
    let path = path(folder, constituency);
    let bytes = state::read(&path).map_err(failed(&path))?;
    let wrong = |reason| PasswordsError { path: path.clone(), reason };
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("the file is not UTF-8 text".to_owned()))?;
    settings::read(&path, text).map_err(|error| wrong(error.without_file_name()))
}

fn exists(path: &Path) -> Result<bool, PasswordsError> {
    state::exists(path).map_err(failed(path))
}

fn path(folder: &Path, constituency: &ConstituencyName) -> PathBuf {
    folder.join(constituency.as_str()).with_extension(ENDING)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> PasswordsError {
    let path = path.to_owned();
    move |error| PasswordsError { path: path.clone(), reason: error.to_string() }
}

/// The constituencies with stored passwords, and the stamps of their files.
fn files(folder: &Path) -> io::Result<BTreeMap<ConstituencyName, FileStamp>> {
    let entries = match FolderHandle::open(folder).and_then(|folder| folder.entries()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    let name = |path: &Path| -> Option<ConstituencyName> {
        path.extension().filter(|ending| *ending == ENDING)?;
        path.file_stem()?.to_str()?.parse().ok()
    };
    let paths = entries.into_iter().map(|entry| folder.join(entry.name));
    Ok(paths.filter_map(|path| Some((name(&path)?, FileStamp::of(&path)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn name(text: &str) -> ConstituencyName {
        text.parse().unwrap()
    }

    #[test]
    fn password_has_128_bits_in_unambiguous_letters() {
        let all: Vec<String> = (0..200).map(|_| generate().unwrap()).collect();
        assert!(all.iter().all(|one| one.len() == 26 && one.bytes().all(|byte| ALPHABET.contains(&byte))));
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 200);
        // 26 digits hold 130 bits, so the first digit has only three.
        assert!(all.iter().all(|one| matches!(one.as_bytes()[0], b'0'..=b'7')));
        assert!(all.iter().any(|one| one.as_bytes()[0] != b'0'));
    }

    #[test]
    fn passwords_are_stored_replaced_and_removed_privately() {
        let state = tempfile::tempdir().unwrap();
        let (ote, mac): (_, MacAddress) = (name("ote"), "00005e00530c".parse().unwrap());
        let passwords = Passwords::of_state(state.path());
        assert!(passwords.refresh().is_empty() && passwords.of(&ote).is_none());
        let ha1 = |password: &str| Ha1::of("00005e00530c", "ote.example", password);
        assert!(!set(state.path(), &ote, "ote.example", mac, ha1("one"), &|_| ()).unwrap());
        assert!(set(state.path(), &ote, "ote.example", mac, ha1("two"), &|_| ()).unwrap());
        let file = state.path().join("digest/ote.json");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(passwords.refresh().is_empty());
        assert_eq!(passwords.of(&ote).unwrap().phones[&mac], ha1("two"));
        assert!(passwords.of(&name("other")).is_none());

        // Setting a password for another realm does not lose the existing ones.
        let kept = std::fs::read(&file).unwrap();
        let refused = set(state.path(), &ote, "ote.other", "00005e0053aa".parse().unwrap(), ha1("three"), &|_| ());
        assert!(refused.unwrap_err().to_string().contains("the passwords of 1 phone for ote.example"));
        assert!(check_realm(state.path(), &ote, "ote.other").is_err());
        assert!(check_realm(state.path(), &ote, "ote.example").is_ok());
        assert_eq!(std::fs::read(&file).unwrap(), kept);

        // If a file becomes invalid, its last passwords stay in force, and the error is returned once.
        let good = std::fs::read(&file).unwrap();
        state::write_private(&file, b"{").unwrap();
        assert_eq!((passwords.refresh().len(), passwords.refresh().len()), (1, 0));
        assert!(passwords.of(&ote).is_some());
        state::write_private(&file, &good).unwrap();
        assert!(
            remove(state.path(), &ote, &[mac], &|_| ()).unwrap() == [mac]
                && remove(state.path(), &ote, &[mac], &|_| ()).unwrap().is_empty()
        );
        assert!(passwords.refresh().is_empty());
        assert!(passwords.of(&ote).unwrap().phones.is_empty());
        assert!(!set(state.path(), &ote, "ote.other", mac, ha1("one"), &|_| ()).unwrap(), "no password is lost");
        std::fs::remove_file(&file).unwrap();
        assert!(passwords.refresh().is_empty() && passwords.of(&ote).is_none());
    }

    #[test]
    fn unreadable_folder_is_reported_once_and_keeps_passwords() {
        let state = tempfile::tempdir().unwrap();
        let (ote, mac): (_, MacAddress) = (name("ote"), "00005e00530c".parse().unwrap());
        set(state.path(), &ote, "ote.example", mac, Ha1::of("00005e00530c", "ote.example", "one"), &|_| ()).unwrap();
        let passwords = Passwords::of_state(state.path());
        assert!(passwords.refresh().is_empty());
        let (folder, aside) = (state.path().join(FOLDER), state.path().join("aside"));
        for _ in 0..2 {
            std::fs::rename(&folder, &aside).unwrap();
            state::write_private(&folder, b"no folder").unwrap();
            let errors = passwords.refresh();
            assert!(matches!(&errors[..], [one] if one.to_string().contains("digest")), "{errors:?}");
            assert!(passwords.refresh().is_empty() && passwords.of(&ote).is_some());
            std::fs::remove_file(&folder).unwrap();
            std::fs::rename(&aside, &folder).unwrap();
            assert!(passwords.refresh().is_empty() && passwords.of(&ote).is_some());
        }
    }

    #[test]
    fn unreadable_file_is_retried_and_reported_once() {
        let state = tempfile::tempdir().unwrap();
        let (ote, mac): (_, MacAddress) = (name("ote"), "00005e00530c".parse().unwrap());
        let passwords = Passwords::of_state(state.path());
        let ha1 = |password: &str| Ha1::of("00005e00530c", "ote.example", password);
        set(state.path(), &ote, "ote.example", mac, ha1("one"), &|_| ()).unwrap();
        assert!(passwords.refresh().is_empty());
        remove(state.path(), &ote, &[mac], &|_| ()).unwrap();
        // A disk error, which a test cannot cause.
        let failing = |reason: &'static str| {
            move |folder: &Path, _: &ConstituencyName| Err(failed(folder)(io::Error::other(reason)))
        };
        assert_eq!(passwords.refresh_by(failing("one")).len(), 1);
        assert_eq!(passwords.refresh_by(failing("one")).len(), 0);
        assert_eq!(passwords.refresh_by(failing("other")).len(), 1);
        assert_eq!(passwords.of(&ote).unwrap().phones.len(), 1);
        assert!(passwords.refresh().is_empty());
        assert!(passwords.of(&ote).unwrap().phones.is_empty());
        assert!(passwords.refresh_by(failing("not asked for")).is_empty());
    }

    #[test]
    fn removal_everywhere_spares_other_phones() {
        let state = tempfile::tempdir().unwrap();
        let [mac, other]: [MacAddress; 2] = ["00005e00530c", "00005e0053c7"].map(|mac| mac.parse().unwrap());
        let (none, failed) = remove_everywhere(state.path(), &[mac], &|_| ());
        assert!(none.is_empty() && failed.is_empty());
        let ha1 = || Ha1::of("x", "y", "z");
        for (constituency, mac) in [("a", mac), ("a", other), ("b", other), ("gone", mac)] {
            set(state.path(), &name(constituency), "y", mac, ha1(), &|_| ()).unwrap();
        }
        let untouched = FileStamp::of(&state.path().join("digest/b.json"));
        state::write_private(&state.path().join("digest/broken.json"), b"{").unwrap();
        let (removed, failed) = remove_everywhere(state.path(), &[mac], &|_| ());
        assert_eq!(removed, [(name("a"), vec![mac]), (name("gone"), vec![mac])]);
        assert!(matches!(&failed[..], [one] if one.to_string().contains("broken.json")), "{failed:?}");
        let has = |constituency, mac| stored(state.path(), &name(constituency)).unwrap().phones.contains_key(&mac);
        assert!(has("a", other) && has("b", other) && !has("a", mac) && !has("gone", mac));
        assert_eq!(FileStamp::of(&state.path().join("digest/b.json")), untouched);
    }
}
