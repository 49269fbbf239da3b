//! From folders to a [`Registry`]: reads `constituencies`, and reads again only what has changed.
//!
//! 1. Open `constituencies` itself, which may be a link or have been renamed over.
//! 2. Each real folder whose name is a label is a constituency.
//! 3. Its policy is read if its file changed; a broken new one leaves the last good one in force.
//! 4. Its phones with a file of their own are listed if the folder changed.
//! 5. Aliases are given out; a folder's own name beats any alias.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::policy::POLICY_FILE;
use super::policy_file::{PolicySource, Stamp};
use super::registry::{Constituency, Fault, Folder, Registry, Severity};
use super::{ConstituencyName, MacAddress};

/// Reads the folder `constituencies` again and again, remembering what it saw.
#[derive(Debug)]
pub struct Scanner {
    path: PathBuf,
    bundles: Vec<String>,
    remembered: HashMap<ConstituencyName, Remembered>,
    next_generation: u64,
}

/// What the last scan knew of one folder.
#[derive(Debug)]
struct Remembered {
    identity: (u64, u64),
    root: Arc<OwnedFd>,
    source: PolicySource,
    listing: Option<Stamp>,
    current: Option<Arc<Constituency>>,
}

impl Scanner {
    /// A scanner of `path`. `bundles` are the names of the trust bundles that policies may use.
    #[must_use]
    pub fn new(path: PathBuf, bundles: Vec<String>) -> Self {
        Self { path, bundles, remembered: HashMap::new(), next_generation: 0 }
    }

    /// The folder that is scanned.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the folders as they are at `now` and gives the snapshot. Never fails: what cannot be read is a [`Fault`].
    pub fn scan(&mut self, now: SystemTime) -> Registry {
        let mut registry = Registry::default();
        match self.folders(&mut registry.faults) {
            Ok((root, folders)) => {
                self.remembered.retain(|name, _| folders.contains(name));
                for name in folders {
                    self.scan_folder(&root, &name, now, &mut registry);
                }
            }
            Err(error) => {
                self.remembered.clear();
                let message = format!("{} cannot be read: {error}; nothing is served", self.path.display());
                registry.faults.push(Fault {
                    subject: self.path.display().to_string(),
                    message,
                    severity: Severity::Error,
                });
            }
        }
        self.give_out_aliases(&mut registry);
        registry.faults.sort();
        registry
    }

    fn folders(&self, faults: &mut Vec<Fault>) -> Result<(Arc<OwnedFd>, Vec<ConstituencyName>), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.path, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            match (kind_of(&root, &entry), name.parse::<ConstituencyName>()) {
                (FileType::Directory, Ok(name)) => names.push(name),
                (FileType::Directory, Err(error)) => {
                    faults.push(not_served(&name, format!("the folder is not served: {error}")));
                }
                (FileType::Symlink, Ok(_)) if is_folder(&root, &name) => faults.push(not_served(
                    &name,
                    "the folder is not served: it is a link; a constituency is a real folder (use \"aliases\" for a second name)".to_owned(),
                )),
                _ => {}
            }
        }
        names.sort();
        Ok((Arc::new(root), names))
    }

    fn scan_folder(&mut self, root: &Arc<OwnedFd>, name: &ConstituencyName, now: SystemTime, registry: &mut Registry) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(root, name.as_str(), flags, Mode::empty())
            .and_then(|handle| Ok((rustix::fs::fstat(&handle)?, handle)));
        let (stat, handle) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.remembered.remove(name);
                registry.faults.push(not_served(name.as_str(), format!("the folder cannot be opened: {error}")));
                return;
            }
        };
        let identity = (stat.st_dev, stat.st_ino);
        let fresh = || Remembered {
            identity,
            root: Arc::clone(root),
            source: PolicySource::default(),
            listing: None,
            current: None,
        };
        let mut remembered =
            self.remembered.remove(name).filter(|remembered| remembered.identity == identity).unwrap_or_else(fresh);

        let file = self.path.join(name.as_str()).join(POLICY_FILE);
        let bundles: Vec<&str> = self.bundles.iter().map(String::as_str).collect();
        remembered.source.refresh(&handle, &file, &bundles, now);
        if let Some(error) = remembered.source.error() {
            let consequence =
                if remembered.source.policy().is_some() { "the last good policy stays in force" } else { "not served" };
            registry.faults.push(not_served(name.as_str(), format!("{error} ({consequence})")));
        }
        remembered.update(handle, root, name, Stamp::of(&stat, now), &mut self.next_generation);
        if let Some(current) = &remembered.current {
            registry.served.insert(name.clone(), Arc::clone(current));
        }
        self.remembered.insert(name.clone(), remembered);
    }

    fn give_out_aliases(&self, registry: &mut Registry) {
        let mut claims: BTreeMap<&ConstituencyName, Vec<&ConstituencyName>> = BTreeMap::new();
        for constituency in registry.served.values() {
            for alias in &constituency.policy.aliases {
                claims.entry(alias).or_default().push(&constituency.name);
            }
        }
        let mut aliases = BTreeMap::new();
        for (alias, claimants) in claims {
            let reason = match claimants.as_slice() {
                _ if self.remembered.contains_key(alias) => "a folder of that name exists".to_owned(),
                [only] => {
                    aliases.insert(alias.clone(), (*only).clone());
                    continue;
                }
                several => {
                    let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
                    format!("{} claim it", names.join(" and "))
                }
            };
            registry.faults.extend(claimants.into_iter().map(|claimant| Fault {
                subject: claimant.to_string(),
                message: format!("the alias \"{alias}\" has no effect: {reason}"),
                severity: Severity::Warning,
            }));
        }
        registry.aliases = aliases;
    }
}

impl Remembered {
    /// Makes a new [`Constituency`] if anything that it shows has changed; else the current one stays.
    fn update(
        &mut self,
        handle: OwnedFd,
        root: &Arc<OwnedFd>,
        name: &ConstituencyName,
        stamp: Stamp,
        next_generation: &mut u64,
    ) {
        let Some(policy) = self.source.policy() else {
            self.current = None;
            return;
        };
        let listing_holds = self.listing.as_ref().is_some_and(|listing| listing.still_holds(&stamp));
        if let Some(current) = &self.current
            && listing_holds
            && Arc::ptr_eq(&current.policy, policy)
            && is_same_folder(&self.root, root)
        {
            return;
        }
        let with_own_file = own_files(&handle);
        self.listing = Some(stamp);
        if let Some(current) = &self.current
            && *current.with_own_file == with_own_file
            && current.policy == *policy
            && is_same_folder(&self.root, root)
        {
            return;
        }
        let tls_generation = match &self.current {
            Some(current) if current.policy.tls == policy.tls => current.tls_generation,
            _ => {
                *next_generation += 1;
                *next_generation
            }
        };
        self.root = Arc::clone(root);
        self.current = Some(Arc::new(Constituency {
            name: name.clone(),
            policy: Arc::clone(policy),
            tls_generation,
            folder: Arc::new(Folder { handle, root: Arc::clone(root) }),
            with_own_file: Arc::new(with_own_file),
        }));
    }
}

fn is_same_folder(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

/// The phones that have a `<mac>.cfg`: a regular file directly in the folder.
fn own_files(folder: &OwnedFd) -> HashSet<MacAddress> {
    let Ok(entries) = Dir::read_from(folder) else { return HashSet::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_bytes();
            let mac = MacAddress::from_hex(name.strip_suffix(b".cfg")?)?;
            (mac != MacAddress::NOBODY && kind_of(folder, &entry) == FileType::RegularFile).then_some(mac)
        })
        .collect()
}

fn kind_of(folder: &OwnedFd, entry: &rustix::fs::DirEntry) -> FileType {
    match entry.file_type() {
        // Some file systems do not say it in the listing.
        FileType::Unknown => rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
        known => known,
    }
}

fn is_folder(root: &OwnedFd, name: &str) -> bool {
    rustix::fs::statat(root.as_fd(), name, AtFlags::empty())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn not_served(subject: &str, message: String) -> Fault {
    Fault { subject: subject.escape_debug().to_string(), message, severity: Severity::Error }
}
