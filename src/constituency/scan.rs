//! From folders to a [`Registry`]: reads `constituencies`, and reads again only what has changed.
//!
//! 1. Open `constituencies` itself, which may be a link or have been renamed over.
//! 2. Each real folder whose name is a label is a constituency.
//! 3. Its policy is read if its file changed; a broken new one leaves the last good one in force.
//! 4. Its phones with a file of their own are listed if the folder changed.
//! 5. Aliases are given out; a folder's own name beats any alias.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::policy::POLICY_FILE;
use super::policy_file::{PolicySource, Stamp};
use super::registry::{Constituency, Fault, Folder, Registry, Severity};
use super::{ConstituencyName, MacAddress};

/// What is said of a broken policy while the one before counts.
pub const LAST_GOOD: &str = "the last good policy stays in force";

/// What is said of a broken policy while none counts.
pub const NOT_SERVED: &str = "not served";

/// Reads the folder `constituencies` again and again, remembering what it saw.
#[derive(Debug)]
pub struct Scanner {
    path: PathBuf,
    bundles: Vec<String>,
    root: Option<(Identity, Arc<OwnedFd>)>,
    /// Every folder that there is, served or not.
    folders: BTreeSet<ConstituencyName>,
    remembered: HashMap<ConstituencyName, Remembered>,
    next_generation: u64,
    is_partial: bool,
    is_doubtful: bool,
}

/// Device and inode.
type Identity = (u64, u64);

/// What the last scan knew of one folder.
#[derive(Debug)]
struct Remembered {
    identity: Identity,
    source: PolicySource,
    listing: Option<Stamp>,
    current: Option<Arc<Constituency>>,
}

impl Scanner {
    /// A scanner of `path`. `bundles` are the names of the trust bundles that policies may use.
    #[must_use]
    pub fn new(path: PathBuf, bundles: Vec<String>) -> Self {
        Self {
            path,
            bundles,
            root: None,
            folders: BTreeSet::new(),
            remembered: HashMap::new(),
            next_generation: 0,
            is_partial: false,
            is_doubtful: false,
        }
    }

    /// From now on policies may use the trust bundles of these names: what was wrong before may be good, or the other way
    /// round.
    pub fn name_bundles(&mut self, bundles: Vec<String>) {
        if self.bundles != bundles {
            self.bundles = bundles;
            self.remembered.values_mut().for_each(|remembered| remembered.source.doubt());
        }
    }

    /// The folder that is scanned.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the last scan could not see everything for a reason that may soon be over, so that another is due.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Whether the last scan missed a file that may be away for a moment only, so that another is due at once.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Reads the folders as they are at `now` and gives the snapshot. Never fails: what cannot be read is a [`Fault`].
    pub fn scan(&mut self, now: SystemTime) -> Registry {
        let mut registry = Registry::default();
        (self.is_partial, self.is_doubtful) = (false, false);
        match self.list(&mut registry.faults) {
            Ok((root, folders)) => {
                self.remembered.retain(|name, _| folders.contains(name));
                for name in &folders {
                    self.scan_folder(&root, name, now, &mut registry.faults);
                }
                self.folders = folders;
            }
            Err(errno) => {
                let consequence = if is_our_shortage(errno) {
                    self.is_partial = true;
                    "what was served stays as it was"
                } else {
                    self.folders.clear();
                    self.remembered.clear();
                    "nothing is served"
                };
                registry.faults.push(Fault {
                    subject: self.path.display().to_string(),
                    message: format!("the folder cannot be read: {errno} ({consequence})"),
                    severity: Severity::Error,
                });
            }
        }
        let current = |(name, remembered): (&ConstituencyName, &Remembered)| {
            Some((name.clone(), Arc::clone(remembered.current.as_ref()?)))
        };
        registry.served = self.remembered.iter().filter_map(current).collect();
        self.give_out_aliases(&mut registry);
        registry.faults.sort();
        registry
    }

    fn list(&mut self, faults: &mut Vec<Fault>) -> Result<(Arc<OwnedFd>, BTreeSet<ConstituencyName>), Errno> {
        let root = self.open_root()?;
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            match (kind_of(&root, &entry), name.parse::<ConstituencyName>()) {
                (FileType::Directory, Ok(name)) => {
                    names.insert(name);
                }
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
        Ok((root, names))
    }

    /// The folder `constituencies` as it is now: the same handle as long as it is the same folder.
    fn open_root(&mut self) -> Result<Arc<OwnedFd>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&self.path, flags, Mode::empty())?;
        let identity = identity(&rustix::fs::fstat(&handle)?);
        match &self.root {
            Some((known, root)) if *known == identity => Ok(Arc::clone(root)),
            _ => {
                let root = Arc::new(handle);
                self.root = Some((identity, Arc::clone(&root)));
                Ok(root)
            }
        }
    }

    fn scan_folder(&mut self, root: &Arc<OwnedFd>, name: &ConstituencyName, now: SystemTime, faults: &mut Vec<Fault>) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(root, name.as_str(), flags, Mode::empty())
            .and_then(|handle| Ok((rustix::fs::fstat(&handle)?, handle)));
        let (stat, handle) = match opened {
            Ok(opened) => opened,
            Err(errno) => {
                let mut consequence = NOT_SERVED;
                self.is_partial |= is_our_shortage(errno);
                if is_our_shortage(errno) && self.remembered.contains_key(name) {
                    consequence = "what was served stays as it was";
                } else {
                    self.remembered.remove(name);
                }
                faults.push(not_served(name.as_str(), format!("the folder cannot be opened: {errno} ({consequence})")));
                return;
            }
        };
        let identity = identity(&stat);
        let fresh = || Remembered { identity, source: PolicySource::default(), listing: None, current: None };
        let mut remembered =
            self.remembered.remove(name).filter(|remembered| remembered.identity == identity).unwrap_or_else(fresh);

        let file = self.path.join(name.as_str()).join(POLICY_FILE);
        let bundles: Vec<&str> = self.bundles.iter().map(String::as_str).collect();
        remembered.source.refresh(&handle, &file, &bundles, now);
        if let Some(error) = remembered.source.error() {
            let consequence = if remembered.source.policy().is_some() { LAST_GOOD } else { NOT_SERVED };
            faults.push(not_served(name.as_str(), format!("{error} ({consequence})")));
        }
        self.is_partial |= remembered.source.is_unread();
        self.is_doubtful |= remembered.source.is_away();
        let folder = Folder { handle, root: Arc::clone(root) };
        if let Err(errno) = remembered.update(folder, name, Stamp::of(&stat, now), &mut self.next_generation) {
            self.is_partial = true;
            faults.push(not_served(name.as_str(), format!("the phones' own files cannot be listed: {errno}")));
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
                _ if self.folders.contains(alias) => "a folder of that name exists".to_owned(),
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
    ///
    /// If the phones' own files cannot be listed, those that were known stay, and the next scan tries again.
    fn update(
        &mut self,
        folder: Folder,
        name: &ConstituencyName,
        stamp: Stamp,
        next_generation: &mut u64,
    ) -> Result<(), Errno> {
        let Some(policy) = self.source.policy() else {
            self.current = None;
            return Ok(());
        };
        let known = self.current.as_ref().map(|current| Arc::clone(&current.with_own_file)).unwrap_or_default();
        let listing_holds = self.listing.as_ref().is_some_and(|listing| listing.still_holds(&stamp));
        let (with_own_file, listed) = if listing_holds {
            (known, Ok(()))
        } else {
            match own_files(&folder.handle) {
                Ok(found) => {
                    self.listing = Some(stamp);
                    (if found == *known { known } else { Arc::new(found) }, Ok(()))
                }
                Err(errno) => {
                    self.listing = None;
                    (known, Err(errno))
                }
            }
        };
        if let Some(current) = &self.current
            && Arc::ptr_eq(&current.policy, policy)
            && Arc::ptr_eq(&current.with_own_file, &with_own_file)
            && Arc::ptr_eq(&current.folder.root, &folder.root)
        {
            return listed;
        }
        let tls_generation = match &self.current {
            Some(current) if current.policy.tls == policy.tls => current.tls_generation,
            _ => {
                *next_generation += 1;
                *next_generation
            }
        };
        self.current = Some(Arc::new(Constituency {
            name: name.clone(),
            policy: Arc::clone(policy),
            tls_generation,
            folder: Arc::new(folder),
            with_own_file,
        }));
        listed
    }
}

/// Whether an error says nothing about the folder, but only that we lack what it takes to look.
fn is_our_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// The phones that have a `<mac>.cfg`: a regular file directly in the folder.
fn own_files(folder: &OwnedFd) -> Result<HashSet<MacAddress>, Errno> {
    let mut macs = HashSet::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if let Some(mac) = name.strip_suffix(b".cfg").and_then(MacAddress::from_hex)
            && mac != MacAddress::NOBODY
            && kind_of(folder, &entry) == FileType::RegularFile
        {
            macs.insert(mac);
        }
    }
    Ok(macs)
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a policy, as somebody writes it")]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_policy_that_lay_still_is_read_again_when_there_are_other_bundles() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("own")).unwrap();
        std::fs::write(folder.path().join("own").join(POLICY_FILE), r#"{ "trust": ["own"] }"#).unwrap();
        let later = crate::clock::now() + Duration::from_mins(1);
        let mut scanner = Scanner::new(folder.path().to_owned(), Vec::new());
        for _ in 0..2 {
            let registry = scanner.scan(later);
            assert_eq!((registry.served().count(), registry.faults().len()), (0, 1));
        }
        scanner.name_bundles(vec!["own".to_owned()]);
        let registry = scanner.scan(later);
        assert_eq!((registry.served().count(), registry.faults().len()), (1, 0));
        // What was good stays in force when it is not any more, and that is said.
        scanner.name_bundles(Vec::new());
        let registry = scanner.scan(later);
        assert_eq!((registry.served().count(), registry.faults().len()), (1, 1));
    }
}
