//! Scans the folder `constituencies` into a [`Registry`], and reads only what has changed since the last scan.
//!
//! 1. Open `constituencies`, which may be a symlink or may have been replaced.
//! 2. Each real folder whose name is a DNS label is a constituency.
//! 3. Read its policy if the file changed. If the new policy is invalid, the last good one stays in force.
//! 4. Read `phones.csv` if it changed, and list the phones with a `<mac>.cfg` if the folder changed.
//! 5. Keep constituencies whose folder is missing until it counts as removed (`absence`).
//! 6. Assign aliases. The name of a folder has precedence over any alias.
//!
//! A constituency is identified by its name. A deploy replaces its folder, or the whole tree, and the new folder
//! inherits the cached state of the name.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::absence::Absence;
use super::folder::{Folder, OpenFolders};
use super::last_good::{LastGood, LoadError};
use super::phone_list::{PHONES_FILE, PhoneList};
use super::phone_list_file::{PhoneListSource, SeenList};
use super::policy::POLICY_FILE;
use super::policy_file::{PolicySource, SeenPolicy};
use super::registry::{Constituency, Fault, ListCounts, Registry, Severity, replace_lists};
use super::{ClientAuth, ConstituencyName, ListedPhones, MacAddress, Phones, Policy, ServerDenials};
use crate::files::{FileIdentity, FileStamp, identity};
use crate::wording::counted;

/// The note in the fault of an invalid policy if an older one is in force.
pub const LAST_GOOD: &str = "the last good policy stays in force";

/// The note in the fault of an invalid `phones.csv` if an older one is in force.
const LAST_GOOD_LIST: &str = "the last good list stays in force";

/// The note in the fault of an invalid policy if none is in force.
pub const NOT_SERVED: &str = "not served";

/// How often a folder is read that is replaced during the scan, before it is left to the next scan.
const TRIES: usize = 3;

/// Scans the folder `constituencies` repeatedly and caches the state of each constituency.
#[derive(Debug)]
pub struct Scanner {
    path: PathBuf,
    bundles: Vec<String>,
    root: Option<(FileIdentity, Arc<OwnedFd>)>,
    open_folders: Arc<OpenFolders>,
    absence: Absence,
    /// All existing folders, served or not.
    folders: BTreeSet<ConstituencyName>,
    cached: HashMap<ConstituencyName, CachedConstituency>,
    /// The constituencies that the last scan served; `listed` has all phones on their lists.
    last: BTreeMap<ConstituencyName, Arc<Constituency>>,
    listed: ListedPhones,
    next_generation: u64,
    denials: Arc<ServerDenials>,
    last_good: Option<LastGood>,
    left_out: Option<ConstituencyName>,
    /// The faults of the last scan that are not of one constituency's policy or files.
    faults: Vec<Fault>,
    /// Whether the folders have not been scanned yet, so that stored policies from before the start apply.
    is_first: bool,
    is_incomplete: bool,
    needs_rescan: bool,
    /// The constituencies whose `phones.csv` may be incomplete.
    pending: BTreeSet<ConstituencyName>,
}

/// The state of one constituency as of the last scan.
#[derive(Debug, Default)]
struct CachedConstituency {
    /// The device and inode of its folder.
    identity: FileIdentity,
    absence: Absence,
    source: PolicySource,
    phones: PhoneListSource,
    /// The stamp under which the folder was listed, if it was settled.
    listing: Option<FileStamp>,
    current: Option<Arc<Constituency>>,
    /// Why the stored policy from before the start does not replace the invalid one.
    recall_error: Option<LoadError>,
    /// The phones that the removed policy denied.
    lost_denials: BTreeSet<MacAddress>,
    /// The files whose names differ from those of the policy files only in the case of letters.
    miscased: Vec<String>,
    faults: Vec<Fault>,
}

impl Scanner {
    /// A scanner of the folder `path`. Policies may use the trust bundles with the names `bundles`.
    #[must_use]
    pub fn new(path: PathBuf, bundles: Vec<String>) -> Self {
        Self {
            path,
            bundles,
            root: None,
            open_folders: Arc::default(),
            absence: Absence::default(),
            folders: BTreeSet::new(),
            cached: HashMap::new(),
            last: BTreeMap::new(),
            listed: ListedPhones::default(),
            next_generation: 0,
            denials: Arc::default(),
            last_good: None,
            left_out: None,
            faults: Vec::new(),
            is_first: true,
            is_incomplete: false,
            needs_rescan: false,
            pending: BTreeSet::new(),
        }
    }

    /// Makes constituencies refuse the phones that `denials` denies on the whole server.
    #[must_use]
    pub fn with_denials(mut self, denials: Arc<ServerDenials>) -> Self {
        self.listed.add_denials(Arc::clone(&denials));
        self.denials = denials;
        self
    }

    /// Falls back to the stored policies in `last_good` at the first scan, and stores the policies in force from then
    /// on.
    #[must_use]
    pub fn with_last_good(mut self, last_good: LastGood) -> Self {
        self.last_good = Some(last_good);
        self
    }

    /// Leaves the constituency `name` out.
    #[must_use]
    pub fn without(self, name: ConstituencyName) -> Self {
        Self { left_out: Some(name), ..self }
    }

    /// Limits the number of folders that are kept open.
    #[must_use]
    pub fn keeping_open(self, limit: usize) -> Self {
        Self { open_folders: Arc::new(OpenFolders::new(limit)), ..self }
    }

    /// Sets the names of the trust bundles that policies may use. If they changed, the next scan reads all policies
    /// again, because their validity may have changed.
    pub fn name_bundles(&mut self, bundles: Vec<String>) {
        if self.bundles != bundles {
            self.bundles = bundles;
            self.cached.values_mut().for_each(|cached| cached.source.invalidate());
        }
    }

    /// The path of the scanned folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the last scan was incomplete for a cause that may end soon, so that another scan is due.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether the last scan found something missing that may be in the middle of a replacement, so that another scan
    /// is due at once.
    #[must_use]
    pub fn needs_rescan(&self) -> bool {
        self.needs_rescan
    }

    /// The constituencies whose `phones.csv` was perhaps being written during the last scan, so that another look at them
    /// is due.
    #[must_use]
    pub fn pending(&self) -> &BTreeSet<ConstituencyName> {
        &self.pending
    }

    /// Scans the folders at `now`. Never fails: everything that cannot be read becomes a [`Fault`].
    pub fn scan(&mut self, now: SystemTime) -> Registry {
        let (mut faults, mut is_listed) = (Vec::new(), false);
        let is_whole = (0..TRIES).any(|_| {
            faults.clear();
            self.pending.clear();
            (self.is_incomplete, self.needs_rescan) = (false, false);
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
            // If the tree was replaced during the scan, the scan may have read it while it was being removed.
            self.is_root_in_place()
        });
        self.needs_rescan |= !is_whole;
        if is_listed
            && std::mem::take(&mut self.is_first)
            && let Some(last_good) = &self.last_good
        {
            let has_list = |name: &&ConstituencyName| self.cached.get(*name).is_some_and(|it| it.phones.is_there());
            let with_list = self.folders.iter().filter(has_list).cloned().collect();
            last_good.keep_only(self.folders.clone(), with_list);
        }
        self.faults = faults;
        self.registry()
    }

    /// Scans only the folders `names` at `now`, because only files in them have changed. `None` if that is not enough: the
    /// whole of `constituencies` is to be scanned then.
    pub fn scan_only(&mut self, names: &BTreeSet<ConstituencyName>, now: SystemTime) -> Option<Registry> {
        if self.is_first || self.is_incomplete || self.needs_rescan {
            return None;
        }
        let (identity_of_root, root) = self.root.clone()?;
        let is_in_place = || rustix::fs::stat(&self.path).is_ok_and(|stat| identity(&stat) == identity_of_root);
        if !is_in_place() {
            return None;
        }
        for name in names {
            let before = self.cached.get(name)?.identity;
            let mut faults = Vec::new();
            self.pending.remove(name);
            if !self.scan_folder(&root, name, now, &mut faults) || !faults.is_empty() {
                return None;
            }
            // A replaced folder is not watched yet.
            if self.cached.get(name)?.identity != before {
                return None;
            }
        }
        Some(self.registry())
    }

    /// The registry of what is cached.
    fn registry(&mut self) -> Registry {
        let mut registry = Registry { faults: self.faults.clone(), ..Registry::default() };
        for (name, cached) in &self.cached {
            registry.faults.extend_from_slice(&cached.faults);
            registry.served.extend(cached.current.clone().map(|current| (name.clone(), current)));
        }
        registry.listed = self.list_phones(&registry.served);
        self.assign_aliases(&mut registry);
        registry.faults.sort();
        registry
    }

    /// Whether the path still leads to the scanned folder, or to nothing.
    fn is_root_in_place(&self) -> bool {
        let now = rustix::fs::stat(&self.path).ok().map(|stat| identity(&stat));
        now.is_none_or(|now| self.root.as_ref().is_some_and(|(known, _)| *known == now))
    }

    /// Handles a failure to list `constituencies` itself.
    fn note_unlisted(&mut self, errno: Errno, now: SystemTime) -> Option<Fault> {
        let is_missing = matches!(errno, Errno::NOENT | Errno::NOTDIR);
        if is_missing && !self.cached.is_empty() && !self.absence.note_missing(now) {
            self.needs_rescan = true;
            return None;
        }
        let consequence = if is_resource_shortage(errno) {
            self.is_incomplete = true;
            "the last known state is served"
        } else {
            self.folders.clear();
            self.cached.clear();
            self.is_first = true;
            "nothing is served"
        };
        Some(Fault {
            subject: self.path.display().to_string(),
            message: format!("the folder cannot be read: {errno} ({consequence})"),
            severity: Severity::Error,
        })
    }

    /// Drops the constituencies that are not in `folders`, once they count as removed. Until then, adds them to
    /// `folders`.
    fn forget_removed(&mut self, folders: &mut BTreeSet<ConstituencyName>, now: SystemTime) {
        let present: HashSet<FileIdentity> =
            folders.iter().filter_map(|name| Some(self.cached.get(name)?.identity)).collect();
        let (mut pending, last_good) = (Vec::new(), &self.last_good);
        self.cached.retain(|name, cached| {
            if folders.contains(name) {
                cached.absence.note_present();
                return true;
            }
            // If the folder now has the name of another constituency, it was renamed: remove the old name at once.
            let is_removed =
                present.contains(&cached.identity) || cached.current.is_none() || cached.absence.note_missing(now);
            match last_good {
                Some(last_good) if is_removed => last_good.forget(name),
                _ if is_removed => {}
                _ => pending.push(name.clone()),
            }
            !is_removed
        });
        self.needs_rescan |= !pending.is_empty();
        folders.extend(pending);
    }

    /// Updates the set of listed phones to `served`, by the difference of each changed constituency.
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
                (FileType::Directory, Ok(name)) if self.left_out.as_ref() == Some(&name) => {}
                (FileType::Directory, Ok(name)) => {
                    names.insert(name);
                }
                (FileType::Directory, Err(error)) => {
                    faults.push(not_served(&name, format!("the folder is not served: {error}")));
                }
                (FileType::Symlink, Ok(_)) if is_folder(&root, &name) => faults.push(not_served(
                    &name,
                    "the folder is not served: it is a symlink; use a real folder, or \"aliases\" for a second name"
                        .to_owned(),
                )),
                _ => {}
            }
        }
        Ok((root, names))
    }

    /// Opens `constituencies`. Reuses the file descriptor while it is the same folder.
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

    /// Reads the folder `name`; returns whether it exists.
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
            let mut cached = self.cached.remove(name).unwrap_or_default();
            let before = cached.current.clone();
            self.read_folder(&mut cached, root, name, &stat, &handle, now);
            let is_changed = before.as_ref().map(Arc::as_ptr) != cached.current.as_ref().map(Arc::as_ptr);
            self.cached.insert(name.clone(), cached);
            // If the folder was replaced during the scan, the scan may have read it while it was being removed.
            if !is_changed || is_folder_in_place(root, name, &stat) {
                return true;
            }
        }
        self.needs_rescan = true;
        true
    }

    /// Handles a failure to open the folder `name`.
    fn note_unopened(&mut self, name: &ConstituencyName, errno: Errno) -> Fault {
        let mut consequence = NOT_SERVED;
        self.is_incomplete |= is_resource_shortage(errno);
        if is_resource_shortage(errno) && self.cached.contains_key(name) {
            consequence = "the last known state is served";
        } else {
            self.cached.remove(name);
        }
        not_served(name.as_str(), format!("the folder cannot be opened: {errno} ({consequence})"))
    }

    /// Reads the changes in the folder `name`, which is open as `handle` and has the state `stat`.
    fn read_folder(
        &mut self,
        cached: &mut CachedConstituency,
        root: &Arc<OwnedFd>,
        name: &ConstituencyName,
        stat: &Stat,
        handle: &OwnedFd,
        now: SystemTime,
    ) {
        let identity = identity(stat);
        let path = self.path.join(name.as_str());
        let bundles: Vec<&str> = self.bundles.iter().map(String::as_str).collect();
        let file = path.join(POLICY_FILE);
        let seen = cached.source.refresh(handle, &file, &bundles, now);
        if let Some(last_good) = &self.last_good {
            cached.follow(seen, last_good, name, &file, &bundles, self.is_first);
        }
        let stamp = FileStamp::of_stat(stat);
        // In an unchanged folder, no list appears.
        if cached.phones.is_there() || cached.listing != Some(stamp) {
            let seen = cached.phones.refresh(handle, &path.join(PHONES_FILE), now, self.is_first);
            cached.follow_list(seen, self.last_good.as_ref(), name, self.is_first);
        }
        self.is_incomplete |= cached.source.is_unread() || cached.phones.is_unread();
        self.needs_rescan |= cached.source.is_missing();
        if cached.phones.is_pending() {
            self.pending.insert(name.clone());
        }
        // A new folder is used together with its own policy. While that policy may still appear, keep the old state as
        // a whole. Its list follows when it is complete.
        if cached.identity != identity && cached.source.is_missing() {
            return;
        }
        cached.identity = identity;
        let folder = Folder::new(Arc::clone(root), path, identity, Arc::clone(&self.open_folders));
        let (with_own_file, listed) = cached.list_own_files(handle, stamp, now);
        cached.update(folder, name, with_own_file, &mut self.next_generation, &self.denials);
        self.is_incomplete |= listed.is_err();
        cached.note_faults(name, listed, &self.denials);
    }

    fn assign_aliases(&self, registry: &mut Registry) {
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
                    format!("{} have the same alias", names.join(" and "))
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
    /// Applies the result of reading the policy file: falls back to `last_good`, and updates what it stores. `file` is
    /// the path for error messages.
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
                (self.recall_error, self.lost_denials) = (None, BTreeSet::new());
                last_good.keep(name, text);
            }
            SeenPolicy::Broken => {
                self.lost_denials.clear();
                if is_first && self.source.policy().is_none() {
                    match last_good.load(name, file, bundles) {
                        Ok(policy) => self.source.fall_back_to(policy),
                        Err(reason) => self.recall_error = Some(reason),
                    }
                }
            }
            SeenPolicy::Removed(policy) => {
                self.recall_error = None;
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

    /// Applies the result of reading `phones.csv`: falls back to `last_good`, and updates what it stores.
    fn follow_list(&mut self, seen: SeenList, last_good: Option<&LastGood>, name: &ConstituencyName, is_first: bool) {
        let Some(last_good) = last_good else { return };
        match seen {
            SeenList::Good(list) => last_good.keep_list(name, Some(list)),
            SeenList::Removed => last_good.keep_list(name, None),
            SeenList::Broken if is_first && !self.phones.is_read() => {
                if let Some(list) = last_good.load_list(name) {
                    self.phones.fall_back_to(list);
                }
            }
            SeenList::Broken | SeenList::Same => {}
        }
    }

    /// The phones with files of their own in the folder `handle`, which is listed if it changed. If that fails, these are
    /// the phones that were known, and the next scan tries again.
    fn list_own_files(
        &mut self,
        handle: &OwnedFd,
        stamp: FileStamp,
        now: SystemTime,
    ) -> (Arc<HashSet<MacAddress>>, Result<(), Errno>) {
        let known = self.current.as_ref().map(|current| Arc::clone(&current.with_own_file)).unwrap_or_default();
        if self.source.policy().is_none() {
            self.listing = None;
            self.miscased.clear();
            return (known, Ok(()));
        }
        if self.listing == Some(stamp) {
            return (known, Ok(()));
        }
        match list_files(handle) {
            Ok((found, miscased)) => {
                self.listing = stamp.settled(now);
                self.miscased = miscased;
                (if found == *known { known } else { Arc::new(found) }, Ok(()))
            }
            Err(errno) => {
                self.listing = None;
                (known, Err(errno))
            }
        }
    }

    /// Makes a new [`Constituency`] if the policy, the phones or the folder changed; otherwise keeps the current one.
    fn update(
        &mut self,
        folder: Folder,
        name: &ConstituencyName,
        with_own_file: Arc<HashSet<MacAddress>>,
        next_generation: &mut u64,
        denials: &Arc<ServerDenials>,
    ) {
        let Some(policy) = self.source.policy() else {
            self.current = None;
            return;
        };
        if let Some(current) = &self.current
            && Arc::ptr_eq(&current.policy, policy)
            && Arc::ptr_eq(&current.list, self.phones.list())
            && Arc::ptr_eq(&current.with_own_file, &with_own_file)
            && current.folder.is_same_as(&folder)
        {
            return;
        }
        let tls_generation = match &self.current {
            Some(current) if current.policy.tls.accepts_sessions_of(&policy.tls) => current.tls_generation,
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
            counts: ListCounts::of(policy, self.phones.list(), &with_own_file),
            list: Arc::clone(self.phones.list()),
            with_own_file,
            denials: Arc::clone(denials),
        }));
    }

    /// Collects the faults of the constituency `name`. `listed` is the result of listing the phones' own files. Lost
    /// denials that are also in `denials` are not reported.
    fn note_faults(&mut self, name: &ConstituencyName, listed: Result<(), Errno>, denials: &ServerDenials) {
        self.faults.clear();
        if let Some(error) = self.source.error() {
            let consequence = match (self.source.policy(), &self.recall_error) {
                (Some(_), _) => LAST_GOOD.to_owned(),
                (None, None | Some(LoadError::Absent)) => NOT_SERVED.to_owned(),
                (None, Some(reason)) => format!("{NOT_SERVED}; {reason}"),
            };
            self.faults.push(not_served(name.as_str(), format!("{error} ({consequence})")));
        }
        if let Err(errno) = listed {
            let message = format!("the phones' own files cannot be listed: {errno}");
            self.faults.push(not_served(name.as_str(), message));
        }
        if let Some(error) = self.phones.error() {
            let consequence = if self.phones.is_read() { LAST_GOOD_LIST } else { "its phones are not known" };
            self.faults.push(not_served(name.as_str(), format!("{error} ({consequence})")));
        }
        if let Some(policy) = self.source.policy() {
            let warnings = contradictions(name, policy, self.phones.list());
            self.faults.extend(warnings.into_iter().map(|message| warning(name, message)));
            self.faults.extend(self.miscased.iter().map(|file| {
                let right = file.to_ascii_lowercase();
                let message = format!(
                    "{file} is neither read nor served, because of its upper-case letters; rename it to {right}, or remove it"
                );
                warning(name, message)
            }));
        }
        let lost: Vec<&MacAddress> = self.lost_denials.iter().filter(|mac| !denials.has(**mac)).collect();
        if !lost.is_empty() {
            let message = format!(
                "{POLICY_FILE} was removed, and {} with it ({}): the default policy is in force. \
                 To deny a phone under every policy, run provost deny MAC; to end this warning, create {POLICY_FILE}, even with only {{}}",
                counted(lost.len(), "denial"),
                some_of(lost.into_iter())
            );
            self.faults.push(warning(name, message));
        }
    }
}

/// What `policy` and the list in `phones.csv` say against each other.
fn contradictions(name: &ConstituencyName, policy: &Policy, list: &PhoneList) -> Vec<String> {
    let in_list = policy.denied.iter().filter(|mac| list.contains(**mac)).copied().collect();
    let both = [("\"phones\"", policy.listed_and_denied()), (PHONES_FILE, in_list)];
    let mut found: Vec<String> = both
        .into_iter()
        .filter(|(_, macs)| !macs.is_empty())
        .map(|(list, macs)| {
            format!(
                "{list} and \"denied\" both name {}: the denial takes precedence; remove it from one of the two (provost allow MAC \
                 --constituency {name} removes the denial)",
                some_of(macs.iter())
            )
        })
        .collect();
    let without_effect = match (policy.tls.client_auth, &policy.phones) {
        _ if list.is_empty() => None,
        (ClientAuth::None, _) => Some("\"client_auth\": \"none\""),
        (_, Phones::Any) => Some("\"phones\": \"any\""),
        _ => None,
    };
    found.extend(without_effect.map(|key| format!("{PHONES_FILE} has no effect with {key}; remove one of the two")));
    found
}

/// The first five addresses, and the number of the others.
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

/// Whether an error is a shortage of this process's or the system's resources, and says nothing about the folder.
fn is_resource_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)
}

#[cfg(test)]
thread_local! {
    /// How many folders this thread has opened to scan them: tests count work by it.
    pub(super) static SCANNED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn open_folder(root: &OwnedFd, name: &ConstituencyName) -> Result<(Stat, OwnedFd), Errno> {
    #[cfg(test)]
    SCANNED.set(SCANNED.get() + 1);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(root, name.as_str(), flags, Mode::empty())?;
    Ok((rustix::fs::fstat(&handle)?, handle))
}

fn is_folder_in_place(root: &OwnedFd, name: &ConstituencyName, stat: &Stat) -> bool {
    let now = rustix::fs::statat(root, name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
    now.is_ok_and(|now| identity(&now) == identity(stat))
}

/// The phones that have a `<mac>.cfg`, a regular file directly in the folder; and the files whose names differ from those of
/// the policy files only in the case of letters, sorted.
fn list_files(folder: &OwnedFd) -> Result<(HashSet<MacAddress>, Vec<String>), Errno> {
    let (mut macs, mut miscased) = (HashSet::new(), Vec::new());
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let is_miscased = |file: &str| name.eq_ignore_ascii_case(file.as_bytes()) && name != file.as_bytes();
        if [POLICY_FILE, PHONES_FILE].into_iter().any(is_miscased) && kind_of(folder, &entry) != FileType::Directory {
            miscased.push(entry.file_name().to_string_lossy().into_owned());
        }
        if let Some(mac) = name.strip_suffix(b".cfg").and_then(MacAddress::from_hex)
            && mac != MacAddress::ZERO
            && kind_of(folder, &entry) == FileType::RegularFile
        {
            macs.insert(mac);
        }
    }
    miscased.sort();
    Ok((macs, miscased))
}

fn kind_of(folder: &OwnedFd, entry: &rustix::fs::DirEntry) -> FileType {
    match entry.file_type() {
        // Some file systems do not return the type in the listing.
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
#[expect(clippy::disallowed_methods, reason = "a test writes a policy")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn unchanged_policy_is_read_again_after_bundle_change() {
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
        // A policy that becomes invalid stays in force, and a fault reports it.
        scanner.name_bundles(Vec::new());
        let registry = scanner.scan(later);
        assert_eq!((registry.served().count(), registry.faults().len()), (1, 1));
    }

    /// A scanner of a folder with the constituency `ote`.
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

        /// The registry this many milliseconds after the first scan.
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
    fn briefly_missing_folder_or_tree_stays_in_force() {
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
            // After a removal, a folder of the same name is a new constituency.
            std::fs::remove_dir_all(scene.path("root/ote")).unwrap();
            assert_eq!((scene.names_at(1000), scene.names_at(1200)), (vec!["ote".to_owned()], Vec::new()), "{here}");
            std::fs::create_dir_all(scene.path("root/ote")).unwrap();
            let third = scene.registry_at(1210);
            assert_ne!(third.find("ote").unwrap().tls_generation, before.tls_generation, "{here}");
        }
    }

    #[test]
    fn scan_without_changes_gives_the_same_snapshot() {
        let mut scene = Scene::new();
        std::fs::create_dir(scene.path("root/written")).unwrap();
        std::fs::write(scene.path("root/written").join(POLICY_FILE), "{}").unwrap();
        let first = scene.registry_at(10);
        assert_eq!(first.served().count(), 2);
        assert!(scene.registry_at(20).is_same_as(&first), "one without a policy file, and one with it");
    }

    #[test]
    fn edited_policy_among_300_folders_opens_one_folder() {
        let mut scene = Scene::new();
        for number in 0..300 {
            std::fs::create_dir(scene.path(&format!("root/c{number}"))).unwrap();
        }
        // A fault of `constituencies` itself stays.
        std::fs::create_dir(scene.path("root/Not_A_Label")).unwrap();
        let first = scene.registry_at(0);
        assert_eq!((first.served().count(), first.faults().len()), (301, 1));
        std::fs::write(scene.path("root/c7").join(POLICY_FILE), r#"{ "aliases": ["seven"] }"#).unwrap();
        std::fs::write(scene.path("root/c7/00005e00530c.cfg"), "").unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2000);
        let before = SCANNED.get();
        let one = scene.scanner.scan_only(&BTreeSet::from(["c7".parse().unwrap()]), now).unwrap();
        assert_eq!(SCANNED.get() - before, 1);
        assert!(one.find("seven").is_some_and(|seven| seven.name.as_str() == "c7" && seven.known_phones().len() == 1));
        assert!(one.listed().contains("00005e00530c".parse().unwrap()));
        assert!(scene.scanner.scan(now).is_same_as(&one), "a scan of all finds nothing else");
        assert_eq!(SCANNED.get() - before, 302);
    }

    #[test]
    fn list_written_among_300_folders_takes_looks_at_one_folder() {
        let mut scene = Scene::new();
        for number in 0..300 {
            std::fs::create_dir(scene.path(&format!("root/c{number}"))).unwrap();
        }
        scene.registry_at(0);
        let c7 = BTreeSet::from(["c7".parse().unwrap()]);
        let mut look = |milliseconds: u64, list: Option<&str>| {
            if let Some(list) = list {
                std::fs::write(scene.path("root/c7").join(PHONES_FILE), list).unwrap();
            }
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000 + milliseconds);
            let registry = scene.scanner.scan_only(&c7, now).unwrap();
            let known = registry.find("c7").unwrap().known_phones();
            assert!(known.iter().all(|mac| registry.listed().contains(*mac)));
            (known.len(), scene.scanner.pending().len())
        };
        let before = SCANNED.get();
        assert_eq!(look(100, Some("mac\n00005e00530c\n")), (0, 1));
        assert_eq!(look(350, None), (1, 0));
        assert_eq!(look(400, Some("mac\n00005e0053c7\n00005e0053aa\n")), (1, 1));
        assert_eq!(look(650, None), (2, 0));
        assert_eq!(SCANNED.get() - before, 4);
        let registry = scene.registry_at(700);
        let known = |mac: &str| registry.listed().contains(mac.parse().unwrap());
        assert_eq!(["00005e00530c", "00005e0053c7", "00005e0053aa"].map(known), [false, true, true]);
    }

    #[test]
    fn replaced_folder_keeps_its_list_until_the_new_one_is_complete() {
        let mut scene = Scene::new();
        let write =
            |folder: &Path, mac: &str| std::fs::write(folder.join(PHONES_FILE), format!("mac\n{mac}\n")).unwrap();
        write(&scene.path("root/ote"), "00005e00530c");
        assert!(scene.registry_at(10).find("ote").unwrap().known_phones().is_empty() && !scene.scanner.needs_rescan());
        let first = scene.registry_at(300);
        assert_eq!(first.find("ote").unwrap().known_phones().len(), 1);
        let list = |registry: &Registry| registry.find("ote").unwrap().known_phones();
        // The list is written before the folder is renamed, or after it.
        for (number, at, is_before) in [(1, 400, true), (2, 1000, false)] {
            std::fs::create_dir(scene.path("next")).unwrap();
            if is_before {
                write(&scene.path("next"), "00005e0053c7");
            }
            scene.rename("root/ote", &format!("aside-{number}"));
            scene.rename("next", "root/ote");
            let waiting = scene.registry_at(at);
            assert!(waiting.find("ote").unwrap().folder.is_in_place() && scene.scanner.pending().len() == 1);
            if !is_before {
                assert_eq!(list(&waiting), ["00005e0053c7".parse().unwrap()]);
                write(&scene.path("root/ote"), "00005e00530c");
                scene.registry_at(at + 20);
            }
            assert_eq!(list(&waiting).len(), 1);
            let after = scene.registry_at(at + 300);
            let expected = if is_before { "00005e0053c7" } else { "00005e00530c" };
            assert_eq!(list(&after), [expected.parse().unwrap()]);
            assert!(scene.scanner.pending().is_empty());
        }
    }

    #[test]
    fn scan_of_named_folders_refuses_what_needs_a_scan_of_all() {
        let only = |scene: &mut Scene, name: &str| {
            scene.scanner.scan_only(&BTreeSet::from([name.parse().unwrap()]), SystemTime::UNIX_EPOCH).is_some()
        };
        let new = |change: &dyn Fn(&Scene)| {
            let mut scene = Scene::new();
            std::fs::write(scene.path("root/ote").join(POLICY_FILE), "{}").unwrap();
            scene.registry_at(0);
            assert!(only(&mut scene, "ote"));
            change(&scene);
            scene
        };
        assert!(!only(&mut new(&|_| ()), "new"), "a folder that was never scanned");
        assert!(!only(&mut new(&|scene| scene.rename("root/ote", "aside")), "ote"), "a missing folder");
        let replace = |scene: &Scene| {
            scene.rename("root/ote", "aside");
            std::fs::create_dir(scene.path("root/ote")).unwrap();
            std::fs::write(scene.path("root/ote").join(POLICY_FILE), "{}").unwrap();
        };
        assert!(!only(&mut new(&replace), "ote"), "a replaced folder");
        assert!(!only(&mut new(&|scene| scene.rename("root", "aside")), "ote"), "a missing tree");
        let replace_all = |scene: &Scene| {
            scene.rename("root", "aside");
            std::fs::create_dir_all(scene.path("root/ote")).unwrap();
        };
        assert!(!only(&mut new(&replace_all), "ote"), "a replaced tree");
        let mut scene = new(&|scene| std::fs::remove_file(scene.path("root/ote").join(POLICY_FILE)).unwrap());
        scene.registry_at(10);
        assert!(scene.scanner.needs_rescan() && !only(&mut scene, "ote"), "a policy that may come back");
    }

    #[test]
    fn renamed_folder_gets_its_new_name_at_once() {
        let mut scene = Scene::new();
        scene.rename("root/ote", "root/production");
        assert_eq!(scene.names_at(10), ["production"]);
    }

    #[test]
    fn replacing_folder_waits_for_its_policy() {
        let mut scene = Scene::new();
        let policy = scene.path("root/ote").join(POLICY_FILE);
        std::fs::write(&policy, r#"{ "aliases": ["second"] }"#).unwrap();
        let first = scene.registry_at(10);
        std::fs::create_dir(scene.path("next")).unwrap();
        scene.rename("root/ote", "aside");
        scene.rename("next", "root/ote");
        let waiting = scene.registry_at(20);
        assert!(waiting.is_same_as(&first) && scene.scanner.needs_rescan(), "its files and its policy change together");
        std::fs::write(&policy, r#"{ "aliases": ["third"] }"#).unwrap();
        let second = scene.registry_at(30);
        assert!(second.find("third").is_some_and(|ote| ote.folder.is_in_place()) && second.find("second").is_none());
        // If no policy appears, the default policy applies.
        std::fs::create_dir(scene.path("next")).unwrap();
        scene.rename("root/ote", "aside-2");
        scene.rename("next", "root/ote");
        scene.registry_at(1000);
        let third = scene.registry_at(1200);
        assert!(third.find("ote").is_some_and(|ote| ote.folder.is_in_place()) && third.find("third").is_none());
    }

    #[test]
    fn scan_never_mixes_two_swapped_trees() {
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
