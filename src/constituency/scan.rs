//! From folders to a [`Registry`]: reads `constituencies`, and reads again only what has changed.
//!
//! 1. Open `constituencies` itself, which may be a link or have been renamed over.
//! 2. Each real folder whose name is a label is a constituency.
//! 3. Its policy is read if its file changed; a broken new one leaves the last good one in force.
//! 4. Its phones with a file of their own are listed if the folder changed.
//! 5. What is missing is kept until that counts as a removal (`absence`).
//! 6. Aliases are given out; a folder's own name beats any alias.
//!
//! A constituency is its name: a deploy replaces its folder, or the whole tree, and what the last scan knew of the name
//! is carried over to the new folder.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::absence::Absence;
use super::folder::{FileIdentity, Folder, OpenFolders, identity};
use super::last_good::{LastGood, NotKept};
use super::policy::POLICY_FILE;
use super::policy_file::{PolicySource, PolicyStamp, SeenPolicy};
use super::registry::{Constituency, Fault, Registry, Severity, replace_lists};
use super::{ConstituencyName, ListedPhones, MacAddress, ServerDenials};
use crate::wording::counted;

/// What is said of a broken policy while the one before counts.
pub const LAST_GOOD: &str = "the last good policy stays in force";

/// What is said of a broken policy while none counts.
pub const NOT_SERVED: &str = "not served";

/// How often something is read that is replaced meanwhile, before that is left to the next scan.
const TRIES: usize = 3;

/// Reads the folder `constituencies` again and again, remembering what it saw.
#[derive(Debug)]
pub struct Scanner {
    path: PathBuf,
    bundles: Vec<String>,
    root: Option<(FileIdentity, Arc<OwnedFd>)>,
    open_folders: Arc<OpenFolders>,
    absence: Absence,
    /// Every folder that there is, served or not.
    folders: BTreeSet<ConstituencyName>,
    remembered: HashMap<ConstituencyName, CachedConstituency>,
    /// What the last scan served, and all phones on its lists.
    last: BTreeMap<ConstituencyName, Arc<Constituency>>,
    listed: ListedPhones,
    next_generation: u64,
    denials: Arc<ServerDenials>,
    last_good: Option<LastGood>,
    /// Whether the folders have not been seen yet, so that what was in force before the start counts.
    is_first: bool,
    is_partial: bool,
    is_doubtful: bool,
}

/// What the last scan knew of one constituency.
#[derive(Debug, Default)]
struct CachedConstituency {
    /// The folder that it was.
    identity: FileIdentity,
    absence: Absence,
    source: PolicySource,
    listing: Option<PolicyStamp>,
    current: Option<Arc<Constituency>>,
    /// Why the policy that was in force before the start does not count, where the one that is there is broken.
    not_kept: Option<NotKept>,
    /// The phones that were denied by the policy that was removed.
    lost_denials: BTreeSet<MacAddress>,
    faults: Vec<Fault>,
}

impl Scanner {
    /// A scanner of `path`. `bundles` are the names of the trust bundles that policies may use.
    #[must_use]
    pub fn new(path: PathBuf, bundles: Vec<String>) -> Self {
        Self {
            path,
            bundles,
            root: None,
            open_folders: Arc::default(),
            absence: Absence::default(),
            folders: BTreeSet::new(),
            remembered: HashMap::new(),
            last: BTreeMap::new(),
            listed: ListedPhones::default(),
            next_generation: 0,
            denials: Arc::default(),
            last_good: None,
            is_first: true,
            is_partial: false,
            is_doubtful: false,
        }
    }

    /// Lets constituencies refuse the phones that are denied on the whole server.
    #[must_use]
    pub fn with_denials(mut self, denials: Arc<ServerDenials>) -> Self {
        self.listed.add_denials(Arc::clone(&denials));
        self.denials = denials;
        self
    }

    /// Falls back to the policies that `last_good` keeps from before the start, and tells it those in force from now on.
    #[must_use]
    pub fn with_last_good(mut self, last_good: LastGood) -> Self {
        self.last_good = Some(last_good);
        self
    }

    /// The same, of which no more than `limit` folders are kept open at once.
    #[must_use]
    pub fn keeping_open(self, limit: usize) -> Self {
        Self { open_folders: Arc::new(OpenFolders::new(limit)), ..self }
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
    pub fn is_incomplete(&self) -> bool {
        self.is_partial
    }

    /// Whether the last scan missed a file that may be away for a moment only, so that another is due at once.
    #[must_use]
    pub fn needs_rescan(&self) -> bool {
        self.is_doubtful
    }

    /// Reads the folders as they are at `now` and gives the snapshot. Never fails: what cannot be read is a [`Fault`].
    pub fn scan(&mut self, now: SystemTime) -> Registry {
        let (mut faults, mut is_listed) = (Vec::new(), false);
        let is_whole = (0..TRIES).any(|_| {
            faults.clear();
            (self.is_partial, self.is_doubtful) = (false, false);
            is_listed = match self.list(&mut faults) {
                Ok((root, mut folders)) => {
                    self.absence.note_present();
                    folders.retain(|name| self.scan_folder(&root, name, now, &mut faults));
                    self.forget_removed(&mut folders, now);
                    self.folders = folders;
                    true
                }
                Err(errno) => {
                    faults.extend(self.note_unlisted(errno, now));
                    false
                }
            };
            // A tree that was replaced meanwhile may have been read while it was removed.
            self.is_root_in_place()
        });
        self.is_doubtful |= !is_whole;
        if is_listed
            && std::mem::take(&mut self.is_first)
            && let Some(last_good) = &self.last_good
        {
            last_good.keep_only(&self.folders);
        }
        let mut registry = Registry { faults, ..Registry::default() };
        for (name, remembered) in &self.remembered {
            registry.faults.extend_from_slice(&remembered.faults);
            registry.served.extend(remembered.current.clone().map(|current| (name.clone(), current)));
        }
        registry.listed = self.list_phones(&registry.served);
        self.give_out_aliases(&mut registry);
        registry.faults.sort();
        registry
    }

    /// Whether the folder that was scanned is what its path leads to, if it leads anywhere.
    fn is_root_in_place(&self) -> bool {
        let now = rustix::fs::stat(&self.path).ok().map(|stat| identity(&stat));
        now.is_none_or(|now| self.root.as_ref().is_some_and(|(known, _)| *known == now))
    }

    /// What is known where `constituencies` itself cannot be listed.
    fn note_unlisted(&mut self, errno: Errno, now: SystemTime) -> Option<Fault> {
        let is_missing = matches!(errno, Errno::NOENT | Errno::NOTDIR);
        if is_missing && !self.remembered.is_empty() && !self.absence.note_missing(now) {
            self.is_doubtful = true;
            return None;
        }
        let consequence = if is_our_shortage(errno) {
            self.is_partial = true;
            "what was served stays as it was"
        } else {
            self.folders.clear();
            self.remembered.clear();
            self.is_first = true;
            "nothing is served"
        };
        Some(Fault {
            subject: self.path.display().to_string(),
            message: format!("the folder cannot be read: {errno} ({consequence})"),
            severity: Severity::Error,
        })
    }

    /// Forgets the constituencies that are not among `folders`, the ones that are there, once that counts as a removal;
    /// until then they are added to them.
    fn forget_removed(&mut self, folders: &mut BTreeSet<ConstituencyName>, now: SystemTime) {
        let there: HashSet<FileIdentity> =
            folders.iter().filter_map(|name| Some(self.remembered.get(name)?.identity)).collect();
        let (mut pending, last_good) = (Vec::new(), &self.last_good);
        self.remembered.retain(|name, remembered| {
            if folders.contains(name) {
                remembered.absence.note_present();
                return true;
            }
            // A folder that has the name of another constituency now is that one.
            let is_removed = there.contains(&remembered.identity)
                || remembered.current.is_none()
                || remembered.absence.note_missing(now);
            match last_good {
                Some(last_good) if is_removed => last_good.forget(name),
                _ if is_removed => {}
                _ => pending.push(name.clone()),
            }
            !is_removed
        });
        self.is_doubtful |= !pending.is_empty();
        folders.extend(pending);
    }

    /// Brings the set of listed phones up to what is `served` now, by the difference of each changed constituency.
    fn list_phones(&mut self, served: &BTreeMap<ConstituencyName, Arc<Constituency>>) -> ListedPhones {
        for (name, after) in served {
            let before = self.last.get(name);
            if !before.is_some_and(|before| Arc::ptr_eq(before, after)) {
                replace_lists(&mut self.listed, before.map(Arc::as_ref), Some(after));
            }
        }
        for (_, gone) in self.last.iter().filter(|(name, _)| !served.contains_key(*name)) {
            replace_lists(&mut self.listed, Some(gone), None);
        }
        self.last.clone_from(served);
        self.listed.clone()
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

    /// Reads the folder `name`, and says whether it is there.
    fn scan_folder(
        &mut self,
        root: &Arc<OwnedFd>,
        name: &ConstituencyName,
        now: SystemTime,
        faults: &mut Vec<Fault>,
    ) -> bool {
        for _ in 0..TRIES {
            let (stat, handle) = match open_folder(root, name) {
                Ok(opened) => opened,
                // Removed or replaced since it was listed.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return false,
                Err(errno) => {
                    faults.push(self.note_unopened(name, errno));
                    return true;
                }
            };
            let mut remembered = self.remembered.remove(name).unwrap_or_default();
            let before = remembered.current.clone();
            self.read_folder(&mut remembered, root, name, (&stat, handle), now);
            let is_changed = before.as_ref().map(Arc::as_ptr) != remembered.current.as_ref().map(Arc::as_ptr);
            self.remembered.insert(name.clone(), remembered);
            // A folder that was replaced meanwhile may have been read while it was removed.
            if !is_changed || is_folder_in_place(root, name, &stat) {
                return true;
            }
        }
        self.is_doubtful = true;
        true
    }

    /// What is known of the folder `name` where it cannot be opened.
    fn note_unopened(&mut self, name: &ConstituencyName, errno: Errno) -> Fault {
        let mut consequence = NOT_SERVED;
        self.is_partial |= is_our_shortage(errno);
        if is_our_shortage(errno) && self.remembered.contains_key(name) {
            consequence = "what was served stays as it was";
        } else {
            self.remembered.remove(name);
        }
        not_served(name.as_str(), format!("the folder cannot be opened: {errno} ({consequence})"))
    }

    /// Reads what has changed in the folder `name`, of which `handle` is open, and `stat` is known.
    fn read_folder(
        &mut self,
        remembered: &mut CachedConstituency,
        root: &Arc<OwnedFd>,
        name: &ConstituencyName,
        (stat, handle): (&Stat, OwnedFd),
        now: SystemTime,
    ) {
        let identity = identity(stat);
        let path = self.path.join(name.as_str());
        let bundles: Vec<&str> = self.bundles.iter().map(String::as_str).collect();
        let file = path.join(POLICY_FILE);
        let seen = remembered.source.refresh(&handle, &file, &bundles, now);
        if let Some(last_good) = &self.last_good {
            remembered.follow(seen, last_good, name, &file, &bundles, self.is_first);
        }
        self.is_partial |= remembered.source.is_unread();
        self.is_doubtful |= remembered.source.is_away();
        // The files of another folder go with its own policy: as long as that may still come, the constituency stays whole.
        if remembered.identity != identity && remembered.source.is_away() {
            return;
        }
        remembered.identity = identity;
        let folder = Folder::new(Arc::clone(root), path, identity, Arc::clone(&self.open_folders));
        let context = (&mut self.next_generation, &self.denials);
        let updated = remembered.update((folder, &handle), name, PolicyStamp::of(stat, now), context);
        self.is_partial |= updated.is_err();
        remembered.note_faults(name, updated, &self.denials);
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

impl CachedConstituency {
    /// Follows what was `seen` of the policy's file, by what `last_good` keeps and is to keep. `file` is its name for
    /// error messages.
    fn follow(
        &mut self,
        seen: SeenPolicy,
        last_good: &LastGood,
        name: &ConstituencyName,
        file: &Path,
        bundles: &[&str],
        is_first: bool,
    ) {
        match seen {
            SeenPolicy::Good(text) => {
                (self.not_kept, self.lost_denials) = (None, BTreeSet::new());
                last_good.keep(name, text);
            }
            SeenPolicy::Broken => {
                self.lost_denials.clear();
                if is_first && self.source.policy().is_none() {
                    match last_good.recall(name, file, bundles) {
                        Ok(policy) => self.source.fall_back_to(policy),
                        Err(reason) => self.not_kept = Some(reason),
                    }
                }
            }
            SeenPolicy::Removed(policy) => {
                self.not_kept = None;
                self.lost_denials = match policy {
                    Some(policy) => policy.denied.clone(),
                    None => last_good.lost_denials(name),
                };
                last_good.note_removed(name, !self.lost_denials.is_empty());
            }
            SeenPolicy::Absent if is_first => {
                self.lost_denials = last_good.lost_denials(name);
                last_good.note_removed(name, !self.lost_denials.is_empty());
            }
            SeenPolicy::Absent | SeenPolicy::Same => {}
        }
    }

    /// Makes a new [`Constituency`] if anything that it shows has changed; else the current one stays.
    ///
    /// If the phones' own files cannot be listed, those that were known stay, and the next scan tries again.
    fn update(
        &mut self,
        (folder, handle): (Folder, &OwnedFd),
        name: &ConstituencyName,
        stamp: PolicyStamp,
        (next_generation, denials): (&mut u64, &Arc<ServerDenials>),
    ) -> Result<(), Errno> {
        let Some(policy) = self.source.policy() else {
            (self.current, self.listing) = (None, None);
            return Ok(());
        };
        let known = self.current.as_ref().map(|current| Arc::clone(&current.with_own_file)).unwrap_or_default();
        let listing_holds = self.listing.as_ref().is_some_and(|listing| listing.still_holds(&stamp));
        let (with_own_file, listed) = if listing_holds {
            (known, Ok(()))
        } else {
            match own_files(handle) {
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
            && current.folder.is_same_as(&folder)
        {
            return listed;
        }
        let tls_generation = match &self.current {
            Some(current) if current.policy.tls.admits_sessions_of(&policy.tls) => current.tls_generation,
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
            denials: Arc::clone(denials),
        }));
        listed
    }

    /// Notes what is wrong with the constituency `name`, whose phones' own files were `listed`. What is denied by `denials`
    /// too is not lost.
    fn note_faults(&mut self, name: &ConstituencyName, listed: Result<(), Errno>, denials: &ServerDenials) {
        self.faults.clear();
        if let Some(error) = self.source.error() {
            let consequence = match (self.source.policy(), &self.not_kept) {
                (Some(_), _) => LAST_GOOD.to_owned(),
                (None, None | Some(NotKept::Absent)) => NOT_SERVED.to_owned(),
                (None, Some(reason)) => format!("{NOT_SERVED}; {reason}"),
            };
            self.faults.push(not_served(name.as_str(), format!("{error} ({consequence})")));
        }
        if let Err(errno) = listed {
            let message = format!("the phones' own files cannot be listed: {errno}");
            self.faults.push(not_served(name.as_str(), message));
        }
        let contradictions = self.source.policy().map(|policy| policy.listed_and_denied()).unwrap_or_default();
        if !contradictions.is_empty() {
            let message = format!(
                "\"phones\" and \"denied\" both name {}: denied wins; remove it from one of the two (provost allow MAC \
                 --constituency {name} removes the denial)",
                some_of(contradictions.iter())
            );
            self.faults.push(warning(name, message));
        }
        let lost: Vec<&MacAddress> = self.lost_denials.iter().filter(|mac| !denials.has(**mac)).collect();
        if !lost.is_empty() {
            let message = format!(
                "{POLICY_FILE} was removed, and {} with it ({}): the default policy is in force. \
                 provost deny MAC denies a phone whatever policies say; a new {POLICY_FILE}, if only {{}}, ends this warning",
                counted(lost.len(), "denial"),
                some_of(lost.into_iter())
            );
            self.faults.push(warning(name, message));
        }
    }
}

/// The first few addresses, and how many more there are.
fn some_of<'a>(macs: impl ExactSizeIterator<Item = &'a MacAddress>) -> String {
    const NAMED: usize = 5;
    let more = macs.len().saturating_sub(NAMED);
    let mut named: Vec<String> = macs.take(NAMED).map(ToString::to_string).collect();
    named.extend((more > 0).then(|| format!("{more} more")));
    named.join(", ")
}

fn warning(name: &ConstituencyName, message: String) -> Fault {
    Fault { subject: name.to_string(), message, severity: Severity::Warning }
}

/// Whether an error says nothing about the folder, but only that we lack what it takes to look.
fn is_our_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)
}

fn open_folder(root: &OwnedFd, name: &ConstituencyName) -> Result<(Stat, OwnedFd), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(root, name.as_str(), flags, Mode::empty())?;
    Ok((rustix::fs::fstat(&handle)?, handle))
}

fn is_folder_in_place(root: &OwnedFd, name: &ConstituencyName, stat: &Stat) -> bool {
    let now = rustix::fs::statat(root, name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
    now.is_ok_and(|now| identity(&now) == identity(stat))
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
    use std::sync::atomic::{AtomicUsize, Ordering};
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

    /// A scanner's view of a folder in which `ote` is served.
    struct Scene {
        folder: tempfile::TempDir,
        scanner: Scanner,
    }

    impl Scene {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(folder.path().join("root/ote")).unwrap();
            let mut scene = Self { scanner: Scanner::new(folder.path().join("root"), Vec::new()), folder };
            assert_eq!(scene.names_at(0), ["ote"]);
            scene
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// What is served so many milliseconds after the first scan.
        fn registry_at(&mut self, milliseconds: u64) -> Registry {
            self.scanner.scan(SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + milliseconds))
        }

        fn names_at(&mut self, milliseconds: u64) -> Vec<String> {
            self.registry_at(milliseconds).served().map(|served| served.name.to_string()).collect()
        }

        fn rename(&self, from: &str, to: &str) {
            std::fs::rename(self.path(from), self.path(to)).unwrap();
        }
    }

    #[test]
    fn a_folder_or_the_tree_that_is_missing_for_a_moment_is_carried_over() {
        for (here, aside) in [("root/ote", "ote"), ("root", "aside"), ("root/ote", "root/.old")] {
            let mut scene = Scene::new();
            let first = scene.registry_at(10);
            scene.rename(here, aside);
            let missing = scene.registry_at(20);
            assert!(missing.is_same_as(&first) && scene.scanner.needs_rescan(), "{here}");
            assert_eq!(missing.faults(), [], "{here}");
            std::fs::create_dir_all(scene.path("root/ote")).unwrap();
            let second = scene.registry_at(30);
            let [before, after] = [&first, &second].map(|registry| registry.find("ote").unwrap());
            assert_eq!(before.tls_generation, after.tls_generation, "{here}");
            assert!(!before.folder.is_in_place() && after.folder.is_in_place() && !scene.scanner.needs_rescan());
            // Removed, it is gone, and what comes is another.
            std::fs::remove_dir_all(scene.path("root/ote")).unwrap();
            assert_eq!((scene.names_at(1000), scene.names_at(1200)), (vec!["ote".to_owned()], Vec::new()), "{here}");
            std::fs::create_dir_all(scene.path("root/ote")).unwrap();
            let third = scene.registry_at(1210);
            assert_ne!(third.find("ote").unwrap().tls_generation, before.tls_generation, "{here}");
        }
    }

    #[test]
    fn a_scan_that_finds_nothing_new_gives_the_same_snapshot() {
        let mut scene = Scene::new();
        std::fs::create_dir(scene.path("root/written")).unwrap();
        std::fs::write(scene.path("root/written").join(POLICY_FILE), "{}").unwrap();
        let first = scene.registry_at(10);
        assert_eq!(first.served().count(), 2);
        assert!(scene.registry_at(20).is_same_as(&first), "one without a policy file, and one with it");
    }

    #[test]
    fn a_folder_under_another_constituencys_name_is_that_one_at_once() {
        let mut scene = Scene::new();
        scene.rename("root/ote", "root/production");
        assert_eq!(scene.names_at(10), ["production"]);
    }

    #[test]
    fn another_folder_waits_for_its_policy_before_it_takes_a_place() {
        let mut scene = Scene::new();
        let policy = scene.path("root/ote").join(POLICY_FILE);
        std::fs::write(&policy, r#"{ "aliases": ["second"] }"#).unwrap();
        let first = scene.registry_at(10);
        std::fs::create_dir(scene.path("next")).unwrap();
        scene.rename("root/ote", "aside");
        scene.rename("next", "root/ote");
        let waiting = scene.registry_at(20);
        assert!(waiting.is_same_as(&first) && scene.scanner.needs_rescan(), "its files go with its own policy");
        std::fs::write(&policy, r#"{ "aliases": ["third"] }"#).unwrap();
        let second = scene.registry_at(30);
        assert!(second.find("third").is_some_and(|ote| ote.folder.is_in_place()) && second.find("second").is_none());
        // A policy that does not come is none.
        std::fs::create_dir(scene.path("next")).unwrap();
        scene.rename("root/ote", "aside-2");
        scene.rename("next", "root/ote");
        scene.registry_at(1000);
        let third = scene.registry_at(1200);
        assert!(third.find("ote").is_some_and(|ote| ote.folder.is_in_place()) && third.find("third").is_none());
    }

    #[test]
    fn no_scan_sees_half_of_a_tree_that_is_swapped_and_removed() {
        const SWAPS: usize = 60;
        const SCANS: usize = 10;
        const PHONES: usize = 100;
        let folder = tempfile::tempdir().unwrap();
        let tree = |number: usize| folder.path().join(format!("tree-{number}"));
        let make = |number: usize| {
            std::fs::create_dir_all(tree(number).join("ote")).unwrap();
            std::fs::write(tree(number).join("ote").join(POLICY_FILE), "{}").unwrap();
            (0..PHONES)
                .for_each(|mac| std::fs::write(tree(number).join(format!("ote/00005e03{mac:04x}.cfg")), "").unwrap());
        };
        let link = folder.path().join("constituencies");
        make(0);
        std::os::unix::fs::symlink(tree(0), &link).unwrap();
        let mut scanner = Scanner::new(link.clone(), Vec::new());
        let generation = scanner.scan(crate::clock::now()).find("ote").unwrap().tls_generation;
        let scans = AtomicUsize::new(0);
        let scanned = || scans.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                for number in (1..).take_while(|number| *number <= SWAPS || scanned() < SCANS) {
                    make(number);
                    let next = folder.path().join("next");
                    std::os::unix::fs::symlink(tree(number), &next).unwrap();
                    std::fs::rename(next, &link).unwrap();
                    std::fs::remove_dir_all(tree(number - 1)).unwrap();
                }
            });
            while !swapping.is_finished() {
                let registry = scanner.scan(crate::clock::now());
                let ote = registry.find("ote").unwrap();
                assert_eq!((ote.known_phones().len(), ote.tls_generation), (PHONES, generation), "scan {}", scanned());
                scans.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}
