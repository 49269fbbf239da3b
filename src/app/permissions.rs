//! Permissions of the files that the server depends on: the rule for each path, and the paths that break it.
//!
//! One function decides, so that `check` and the start of the server agree. It checks the mode, in which an ACL shows
//! as the group's bits. It accepts any owner.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::state_entries::{EntryKind, STATE_ENTRIES, StateEntry};
use super::{LOCAL_DEVICE_CA, LOCAL_SERVER_CA};
use crate::config::{CertificateSource, Config};
use crate::constituency::{PHONES_FILE, POLICY_FILE};

/// The folders of CAs in the state directory. Their certificates are public.
const CAS: [&str; 3] = ["ca", LOCAL_DEVICE_CA, LOCAL_SERVER_CA];
/// The sticky bit of a folder: only the owner of an entry may remove or replace it.
const STICKY: u32 = 0o1000;
/// How many paths are logged.
const MAX_LOGGED: usize = 20;

/// The permitted access, apart from the owner's.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// A secret of the operator. Its group may read it.
    Secret,
    /// provost's own file. Only the owner has access.
    Private,
    /// All users may read it, and its group may write it.
    Public,
}

impl Rule {
    /// The mode bits that break the rule.
    fn forbidden(self) -> u32 {
        match self {
            Self::Secret => 0o027,
            Self::Private => 0o077,
            Self::Public => 0o002,
        }
    }
}

/// A path that too many users may read or write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoosePermission {
    pub path: PathBuf,
    /// Who has which access.
    pub message: String,
    pub remedy: String,
}

impl fmt::Display for LoosePermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path.display(), self.message, self.remedy)
    }
}

/// Logs the paths of `config` that break their rule.
pub(super) fn warn_of_loose_permissions(config: &Config) {
    let found = loose_permissions(config);
    found.iter().take(MAX_LOGGED).for_each(|loose| tracing::warn!("{loose}"));
    if let Some(more @ 1..) = found.len().checked_sub(MAX_LOGGED) {
        tracing::warn!("{more} more paths with permissions that are too open; see provost check");
    }
}

/// The paths of `config` that break their rule, without duplicates, sorted.
#[must_use]
pub fn loose_permissions(config: &Config) -> Vec<LoosePermission> {
    let mut found = BTreeMap::new();
    let rules = rules(config);
    let ruled: BTreeSet<PathBuf> = rules.iter().filter_map(|(path, ..)| path.canonicalize().ok()).collect();
    for (path, rule, what) in rules {
        let Ok(metadata) = metadata(&path) else { continue };
        let excess = metadata.mode() & rule.forbidden();
        if excess != 0 {
            let remedy = format!("chmod {:04o} {}", metadata.mode() & 0o7777 & !rule.forbidden(), path.display());
            let message = format!("{} {what} (mode {:04o})", who(excess), metadata.mode() & 0o7777);
            found.entry(path.clone()).or_insert(LoosePermission { path: path.clone(), message, remedy });
        }
        for folder in replaceable(&path).into_iter().filter(|folder| !ruled.contains(&folder.path)) {
            found.entry(folder.path.clone()).or_insert(folder);
        }
    }
    found.into_values().collect()
}

/// Each path, its rule, and its description.
fn rules(config: &Config) -> Vec<(PathBuf, Rule, &'static str)> {
    let mut rules = Vec::new();
    rules.extend(config.file.iter().map(|file| (file.clone(), Rule::Public, "the configuration")));
    match &config.certificate {
        CertificateSource::Files(pairs) => rules.extend(pairs.iter().flat_map(|pair| {
            [(pair.chain.clone(), Rule::Public, "the certificate"), (pair.key.clone(), Rule::Secret, "the private key")]
        })),
        CertificateSource::Acme(settings) => {
            rules.extend(settings.dns.key_file().map(|file| (file.to_owned(), Rule::Secret, "the TSIG key")));
            for directory in settings.directories() {
                rules.extend(directory.directory_root.map(|file| (file, Rule::Public, "the CA's root certificate")));
                let account = directory.external_account.map(|account| account.hmac_key_file);
                rules.extend(account.map(|file| (file, Rule::Secret, "the key of the account at the CA")));
            }
        }
        CertificateSource::LocalCa(_) => {}
    }
    let bundles = config.trust.values().flat_map(|bundle| &bundle.files);
    rules.extend(bundles.map(|file| (file.clone(), Rule::Public, "the trust bundle")));
    let token = config.status.iter().filter_map(|status| status.token_file.clone());
    rules.extend(token.map(|file| (file, Rule::Secret, "the operators' token")));
    // A file that the configuration names has its own rule, also if it is in the state directory.
    let named: BTreeSet<PathBuf> = rules.iter().map(|(path, ..)| path.clone()).collect();
    rules.extend(state_rules(&config.state).into_iter().filter(|(path, ..)| !named.contains(path)));
    rules.extend(constituency_rules(&config.constituencies));
    rules
}

/// The rules for the state directory `state`, for each of its entries and for what is in its folders.
fn state_rules(state: &Path) -> Vec<(PathBuf, Rule, &'static str)> {
    let mut rules = vec![(state.to_owned(), Rule::Private, "the state directory")];
    for StateEntry { name, what, kind, .. } in &STATE_ENTRIES {
        let path = state.join(name);
        let is_ca = CAS.contains(name);
        // Uploads can be many, so only their folder has a rule.
        if let EntryKind::Folder(_, what_in_it) = kind {
            rules.extend(beneath(&path).into_iter().map(|path| match path.extension().and_then(OsStr::to_str) {
                Some("pem") if is_ca => (path, Rule::Public, "the CA's certificate"),
                Some("key") if is_ca => (path, Rule::Private, "the CA's private key"),
                _ => (path, Rule::Private, *what_in_it),
            }));
        }
        rules.push((path, Rule::Private, *what));
    }
    rules
}

/// The rules for the folder `constituencies` and each constituency.
fn constituency_rules(constituencies: &Path) -> Vec<(PathBuf, Rule, &'static str)> {
    let folders = folders(constituencies).into_iter().flat_map(|folder| {
        let (policy, list) = (folder.join(POLICY_FILE), folder.join(PHONES_FILE));
        [
            (folder, Rule::Public, "the constituency"),
            (policy, Rule::Public, "the policy"),
            (list, Rule::Public, "the phone list"),
        ]
    });
    [(constituencies.to_owned(), Rule::Public, "the constituencies")].into_iter().chain(folders).collect()
}

/// The parent folders of `path` in which every user may replace entries.
fn replaceable(path: &Path) -> Vec<LoosePermission> {
    let real = path.canonicalize().unwrap_or_default();
    let above = real.ancestors().skip(1).filter_map(|folder| Some((folder, metadata(folder).ok()?.mode())));
    let open = above.filter(|(_, mode)| mode & 0o002 != 0 && mode & STICKY == 0);
    open.map(|(folder, mode)| LoosePermission {
        path: folder.to_owned(),
        message: format!("all users of this machine may replace files in this folder (mode {:04o})", mode & 0o7777),
        remedy: format!("chmod o-w {}", folder.display()),
    })
    .collect()
}

/// Describes the access that the mode `bits` grant.
fn who(bits: u32) -> String {
    let (group, others) = (bits >> 3 & 0o7, bits & 0o7);
    let may = |bits: u32| {
        let words = [(0o4, "read"), (0o2, "change"), (0o1, "enter")].into_iter().filter(|(bit, _)| bits & bit != 0);
        let words: Vec<&str> = words.map(|(_, word)| word).take(2).collect();
        words.join(" and ")
    };
    if others == 0 {
        format!("its group may {}", may(group))
    } else {
        format!("all users of this machine may {}", may(others))
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    entries(path).into_iter().filter(|entry| entry.symlink_metadata().is_ok_and(|it| it.is_dir())).collect()
}

/// Everything beneath `folder` but links, which have no mode of their own.
fn beneath(folder: &Path) -> Vec<PathBuf> {
    let is_folder = |path: &Path| path.symlink_metadata().is_ok_and(|it| it.is_dir());
    let entries = if is_folder(folder) { entries(folder) } else { Vec::new() };
    let own = entries.into_iter().filter(|path| !path.is_symlink());
    own.flat_map(|path| [beneath(&path), vec![path]].concat()).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
