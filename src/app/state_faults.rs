//! Detects parts of the state directory that cannot be used, and the functions that fail for it. Phones are still
//! served.
//!
//! One function decides, so that the log, the status page, `/readyz` and `check` agree.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustix::fs::{Access, FileType};
use rustix::io::Errno;

use super::state_entries::{EntryKind, STATE_ENTRIES, StateEntry};
use crate::clock;
use crate::config::Config;
use crate::serve::upload::store;
use crate::state::{self, Entry, FolderHandle, kind_of};

/// How many faults are reported.
const MAX_FAULTS: usize = 20;
/// The longest interval of checks.
const MAX_INTERVAL: Duration = Duration::from_secs(5);
/// The symlinks that provost itself makes: to the certificate in use, and one that is about to replace it.
const OWN_LINKS: [&str; 2] = ["current", ".new-"];

/// A part of the state directory that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFault {
    /// What cannot be used.
    pub path: PathBuf,
    /// The problem, what does not work, and the remedy.
    pub message: String,
    /// Whether permissions are the cause, so that another user may have access.
    pub is_permission: bool,
}

/// The current faults.
#[derive(Debug, Default)]
pub(super) struct StateFaults {
    current: ArcSwap<Vec<StateFault>>,
    next_check: Mutex<Option<Instant>>,
}

impl StateFaults {
    /// Checks the state directory, and logs new faults. With many files, not each call checks: checks take at most one
    /// percent of the time.
    pub(super) fn update(&self, config: &Config) {
        let mut next_check = self.next_check.lock();
        let start = clock::monotonic();
        if next_check.is_some_and(|next| start < next) {
            return;
        }
        let before = self.current.load_full();
        let Some(now) = find_faults(config) else { return };
        let end = clock::monotonic();
        *next_check = Some(end + (end.duration_since(start) * 99).min(MAX_INTERVAL));
        if *before == now {
            return;
        }
        now.iter().filter(|fault| !before.contains(fault)).for_each(|fault| tracing::error!("{}", fault.message));
        if now.is_empty() {
            tracing::info!("the state directory {} is writable again", config.state.display());
        }
        self.current.store(now.into());
    }

    /// The messages for the operator.
    pub(super) fn messages(&self) -> Vec<String> {
        self.current.load().iter().map(|fault| fault.message.clone()).collect()
    }

    /// Whether a fault concerns `path`.
    pub(super) fn concern(&self, path: &Path) -> bool {
        self.current.load().iter().any(|fault| fault.path.starts_with(path) || path.starts_with(&fault.path))
    }
}

/// The faults of the state directory that `config` names.
#[must_use]
pub fn state_faults(config: &Config) -> Vec<StateFault> {
    find_faults(config).unwrap_or_default()
}

/// The faults; `None` if the limit of open files prevents the check.
fn find_faults(config: &Config) -> Option<Vec<StateFault>> {
    let mut faults = Vec::new();
    let unwritable = state::why_unwritable(&config.state);
    if let Some(error) = &unwritable {
        let folders = STATE_ENTRIES.iter().filter(|entry| entry.is_written_folder() && entry.is_used(config));
        let mut effects: Vec<&str> = folders.map(|entry| entry.effect).collect();
        effects.dedup();
        faults.extend(folder_fault(&config.state, error, &effects.join(", ")));
    }
    match FolderHandle::open(&config.state) {
        Ok(folder) => {
            let mut check = Check { config, folder: &folder, is_writable: unwritable.is_none(), faults };
            for entry in &STATE_ENTRIES {
                check.entry(entry);
            }
            faults = check.faults;
        }
        Err(error) if is_out_of_descriptors(&error) => return None,
        Err(error) if unwritable.is_none() && error.kind() != io::ErrorKind::NotFound => {
            faults.extend(folder_fault(&config.state, &error, "nothing can be stored"));
        }
        Err(_) => {}
    }
    if let Some(more @ 1..) = faults.len().checked_sub(MAX_FAULTS) {
        faults.truncate(MAX_FAULTS);
        let state = config.state.clone();
        let message = format!("{more} more paths in {} cannot be used", state.display());
        faults.push(StateFault { path: state, message, is_permission: false });
    }
    Some(faults)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

/// A check of the state directory.
struct Check<'a> {
    config: &'a Config,
    /// The state directory.
    folder: &'a FolderHandle,
    /// Whether the state directory can be written. If not, that is reported once.
    is_writable: bool,
    faults: Vec<StateFault>,
}

impl Check<'_> {
    fn entry(&mut self, entry: &StateEntry) {
        let (path, is_used) = (self.config.state.join(entry.name), entry.is_used(self.config));
        match entry.kind {
            EntryKind::File(access) => self.file(self.folder, &path, is_used.then_some(access), entry.effect),
            EntryKind::Socket => self.kind(self.folder, &path, FileType::Socket, entry.effect),
            EntryKind::Folder(access, _) => {
                if let Some(folder) = self.folder(&path, entry, is_used) {
                    self.beneath(&folder, &path, is_used.then_some(access), entry.effect);
                }
            }
            EntryKind::Uploads => {
                if let Some(folder) = self.folder(&path, entry, is_used) {
                    let fault = |(path, message)| StateFault { path, message, is_permission: false };
                    self.faults.extend(store::misplaced(&path).into_iter().map(fault));
                    for Entry { name, .. } in folders_in(&folder) {
                        self.inner(&folder, &name, &path.join(&name), is_used, entry.effect);
                    }
                }
            }
        }
    }

    /// Opens the folder `entry` at `path`, which may be a symlink to one, if it exists.
    fn folder(&mut self, path: &Path, entry: &StateEntry, is_used: bool) -> Option<FolderHandle> {
        self.folder.kind(entry.name).ok()??;
        let must_write = is_used && entry.is_written_folder() && self.is_writable;
        let opened = match state::why_unwritable(path) {
            Some(error) if must_write || error.kind() == io::ErrorKind::NotADirectory => Err(error),
            _ => FolderHandle::open(path).and_then(|folder| folder.readable().map(|_| folder)),
        };
        match opened {
            Ok(folder) => return Some(folder),
            Err(error) if is_used || error.kind() != io::ErrorKind::PermissionDenied => {
                self.faults.extend(folder_fault(path, &error, entry.effect));
            }
            Err(_) => {}
        }
        None
    }

    /// Opens the folder `name` in `folder`, which is at `path`. If the server uses it, it must be able to write to it.
    fn inner(
        &mut self,
        folder: &FolderHandle,
        name: &OsStr,
        path: &Path,
        is_used: bool,
        effect: &str,
    ) -> Option<FolderHandle> {
        let everything = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        let inner = folder.folder(name).ok()?;
        let error = inner.why_inaccessible(".", everything);
        match error.filter(|error| is_used && error.kind() == io::ErrorKind::PermissionDenied) {
            Some(error) => {
                self.faults.extend(folder_fault(path, &error, effect));
                None
            }
            None => Some(inner),
        }
    }

    /// Checks everything beneath `folder` at `path`.
    fn beneath(&mut self, folder: &FolderHandle, path: &Path, access: Option<Access>, effect: &str) {
        for Entry { name, kind } in folder.entries().unwrap_or_default() {
            let path = path.join(&name);
            let is_own_link = || OWN_LINKS.iter().any(|own| name.to_string_lossy().starts_with(own));
            match kind {
                FileType::Symlink if is_own_link() => {}
                // Files of provost have an extension, and folders have none.
                FileType::Directory if path.extension().is_none() => {
                    if let Some(inner) = self.inner(folder, &name, &path, access.is_some(), effect) {
                        self.beneath(&inner, &path, access, effect);
                    }
                }
                _ => self.file(folder, &path, access, effect),
            }
        }
    }

    /// Checks that the entry at `path` in `folder` is a regular file, if it exists, and permits `access`.
    fn file(&mut self, folder: &FolderHandle, path: &Path, access: Option<Access>, effect: &str) {
        let before = self.faults.len();
        self.kind(folder, path, FileType::RegularFile, effect);
        let (Some(access), Some(name), true) = (access, path.file_name(), before == self.faults.len()) else { return };
        // Other errors: a server replaced or removed it meanwhile, or the file system is read-only, as reported.
        let error = folder.why_inaccessible(name, access);
        if let Some(error) = error.filter(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            let (shown, user) = (path.display(), folder.user());
            let message = format!(
                "{shown} cannot be used by this user: {error}; {effect}; give it to that user (chown {user} {shown})"
            );
            self.faults.push(StateFault { path: path.to_owned(), message, is_permission: true });
        }
    }

    /// Checks that the entry at `path` in `folder` is of the kind `wanted`, if it exists.
    fn kind(&mut self, folder: &FolderHandle, path: &Path, wanted: FileType, effect: &str) {
        let Some(Ok(Some(found))) = path.file_name().map(|name| folder.kind(name)) else { return };
        if found == wanted {
            return;
        }
        let remedy = match (found, wanted) {
            (_, FileType::Socket) => "remove it, and restart provost",
            (FileType::Symlink, _) => "put the file itself in its place, or remove it",
            _ => "remove it",
        };
        let (shown, found, wanted) = (path.display(), kind_of(found), kind_of(wanted));
        let message = format!("{shown} cannot be used: it is {found}, not {wanted}; {effect}; {remedy}");
        self.faults.push(StateFault { path: path.to_owned(), message, is_permission: false });
    }
}

fn folders_in(folder: &FolderHandle) -> impl Iterator<Item = Entry> {
    let entries = folder.entries().unwrap_or_default().into_iter();
    entries.filter(|entry| entry.kind == FileType::Directory)
}

/// The fault of `folder`, which `error` describes. That there are too many open files is none: it says nothing of the
/// folder.
fn folder_fault(folder: &Path, error: &io::Error, effect: &str) -> Option<StateFault> {
    if is_out_of_descriptors(error) {
        return None;
    }
    let (shown, is_permission) = (folder.display(), error.kind() == io::ErrorKind::PermissionDenied);
    let message = match error.kind() {
        // It names the problem and the remedy.
        io::ErrorKind::Other => format!("{shown} cannot be used: {error}; {effect}"),
        kind => {
            let user = if is_permission { " by this user" } else { "" };
            let found = match folder.symlink_metadata().map(|it| FileType::from_raw_mode(it.mode())) {
                Ok(FileType::Symlink) if kind == io::ErrorKind::NotADirectory => {
                    ": it is a symbolic link that leads to no folder".to_owned()
                }
                Ok(found) if found != FileType::Directory => format!(": it is {}, not a folder", kind_of(found)),
                _ => String::new(),
            };
            format!("{shown} cannot be written{user}: {error}{found}; {effect}; {}", state::remedy(error))
        }
    };
    Some(StateFault { path: folder.to_owned(), message, is_permission })
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, set_permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use rustix::fs::{CWD, Mode, mknodat};
    use rustix::process::{Gid, Uid};

    use super::super::state_entries::EntryUser;
    use super::*;
    use crate::notify::NotifySettings;

    /// Files in the folders of the state directory, one of each kind that the server or a command opens.
    const INNER: [&str; 15] = [
        "ledger/ledger.sqlite",
        "ledger/ledger.sqlite-wal",
        "ledger/ledger.sqlite-shm",
        "last-good/ote.json",
        "digest/ote.json",
        "certs/rsa-2048/1/key.pem",
        "certs/exact/ote/1/chain.pem",
        "certs/rsa-2048/order.json",
        "accounts/0123456789abcdef/account.key",
        "rehearsal/renewal.json",
        "ca/ca.key",
        "ca/record.jsonl",
        "server-ca/ca.pem",
        "local/ca.key",
        "uploads/ote",
    ];
    const OWNER: u32 = 65_534;

    /// A configuration whose certificates come from ACME, and one of local mode. Together they use every entry but those
    /// of commands.
    fn configs(folder: &Path) -> [Config; 2] {
        let acme = r#"{ "domain": "phones.example.com", "certificate": { "acme": { "terms_of_service_agreed": true,
            "dns": { "primary": "192.0.2.53", "tsig_key_file": "provost.key" } } } }"#;
        let mut acme = Config::parse(&folder.join("provost.json"), acme).unwrap();
        acme.state = folder.join("state");
        acme.notify = Some(NotifySettings { command: vec!["/bin/true".to_owned()] });
        [acme, Config { state: folder.join("state"), ..Config::local() }]
    }

    /// A whole state directory.
    fn make(state: &Path) {
        create_dir_all(state).unwrap();
        for StateEntry { name, kind, .. } in &STATE_ENTRIES {
            match kind {
                EntryKind::File(_) => state::write_private(&state.join(name), b"").unwrap(),
                EntryKind::Folder(..) | EntryKind::Uploads => state::private_folder(&state.join(name)).unwrap(),
                EntryKind::Socket => drop(std::os::unix::net::UnixListener::bind(state.join(name)).unwrap()),
            }
        }
        for path in INNER.map(|path| state.join(path)) {
            state::private_folder(path.parent().unwrap()).unwrap();
            if path.ends_with("uploads/ote") {
                state::private_folder(&path).unwrap();
            } else {
                state::write_private(&path, b"").unwrap();
            }
        }
        symlink("1", state.join("certs/rsa-2048/current")).unwrap();
    }

    type Plant = fn(&Path);
    const KINDS: [(&str, Plant); 5] = [
        ("a FIFO", |path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap()),
        ("a folder", |path| create_dir_all(path).unwrap()),
        ("a file", |path| state::write_private(path, b"").unwrap()),
        ("a symbolic link", |path| symlink("absent", path).unwrap()),
        ("a symbolic link", |path| symlink("/etc/passwd", path).unwrap()),
    ];

    #[test]
    fn every_path_of_wrong_file_type_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let configs = configs(folder.path());
        let state = &configs[0].state;
        make(state);
        assert_eq!(configs.each_ref().map(state_faults), [vec![], vec![]]);
        let entries = STATE_ENTRIES.iter().map(|entry| entry.name);
        let mut seen = 0;
        for path in entries.chain(INNER) {
            let (path, aside) = (state.join(path), folder.path().join("aside"));
            let own = FileType::from_raw_mode(path.symlink_metadata().unwrap().mode());
            std::fs::rename(&path, &aside).unwrap();
            for (kind, plant) in KINDS.into_iter().filter(|(kind, _)| *kind != kind_of(own)) {
                plant(&path);
                for config in &configs {
                    let faults = state_faults(config);
                    let [fault] = &faults[..] else { panic!("{} as {kind}: {faults:?}", path.display()) };
                    assert!(!fault.is_permission && fault.path == path, "{fault:?}");
                    assert!(fault.message.starts_with(&path.display().to_string()), "{fault:?}");
                    let is_moved = path.ends_with("uploads/ote") && kind == "a symbolic link";
                    assert!(fault.message.contains(if is_moved { "is a link or a mount" } else { kind }), "{fault:?}");
                    let is_remedy = |remedy: &&str| fault.message.contains(remedy);
                    let remedies =
                        ["; remove it", " or remove it", "; move away the file in its place", "; link or mount "];
                    assert!(remedies.iter().any(is_remedy), "{fault:?}");
                    seen += 1;
                }
                state::remove_all(&path).unwrap();
            }
            std::fs::rename(&aside, &path).unwrap();
        }
        assert_eq!(configs.each_ref().map(state_faults), [vec![], vec![]]);
        // Four other kinds for each, and five for the socket, with both configurations.
        assert_eq!(seen, ((20 + 15) * 4 + 1) * 2);
    }

    #[test]
    fn inaccessible_paths_are_faults_if_the_server_uses_them() {
        if !rustix::process::geteuid().is_root() {
            println!("NOT RUN inaccessible_paths_are_faults_if_the_server_uses_them: only root has other users");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let configs = configs(folder.path());
        let state = &configs[0].state;
        make(state);
        let mut all = vec![state.clone()];
        all.extend(STATE_ENTRIES.iter().map(|entry| state.join(entry.name)));
        for path in INNER {
            let above = Path::new(path).ancestors().take_while(|it| !it.as_os_str().is_empty());
            all.extend(above.map(|it| state.join(it)));
        }
        for path in &all {
            chown(path, Some(OWNER), Some(OWNER)).unwrap();
        }
        let entries = STATE_ENTRIES.iter().map(|entry| (entry.name, entry));
        let of = |path: &str| STATE_ENTRIES.iter().find(|entry| path.starts_with(entry.name)).unwrap();
        let (mut seen, mut unused) = (0, 0);
        let check = |config: &Config| {
            let config = config.clone();
            // The user of a thread is its own.
            let check = move || {
                rustix::thread::set_thread_groups(&[]).unwrap();
                let (user, group) = (Uid::from_raw(OWNER), Gid::from_raw(OWNER));
                rustix::thread::set_thread_res_gid(Some(group), Some(group), Some(group)).unwrap();
                rustix::thread::set_thread_res_uid(Some(user), Some(user), Some(user)).unwrap();
                state_faults(&config)
            };
            std::thread::spawn(check).join().unwrap()
        };
        assert_eq!(configs.each_ref().map(check), [vec![], vec![]]);
        for (name, entry) in entries.chain(INNER.map(|path| (path, of(path)))) {
            let path = state.join(name);
            chown(&path, Some(0), Some(0)).unwrap();
            for config in &configs {
                let faults = check(config);
                if !entry.is_used(config) || matches!(entry.kind, EntryKind::Socket) {
                    assert_eq!(faults, [], "{name}");
                    unused += 1;
                    continue;
                }
                let [fault] = &faults[..] else { panic!("{name}: {faults:?}") };
                assert!(fault.is_permission && fault.message.starts_with(&path.display().to_string()), "{fault:?}");
                assert!(
                    fault.message.contains(entry.effect) && fault.message.contains("Permission denied"),
                    "{fault:?}"
                );
                seen += 1;
            }
            chown(&path, Some(OWNER), Some(OWNER)).unwrap();
        }
        let used = |user: EntryUser| {
            let of_user = |entry: &&StateEntry| entry.user == user && !matches!(entry.kind, EntryKind::Socket);
            STATE_ENTRIES.iter().filter(of_user).count() + INNER.iter().filter(|path| of(path).user == user).count()
        };
        let expected = 2 * used(EntryUser::Server)
            + used(EntryUser::Acme)
            + used(EntryUser::LocalCa)
            + used(EntryUser::LocalMode)
            + used(EntryUser::Notify);
        assert_eq!((seen, seen + unused), (expected, (STATE_ENTRIES.len() + INNER.len()) * 2));
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn faults_beyond_the_maximum_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let [config, _] = configs(folder.path());
        make(&config.state);
        for number in 0..50 {
            symlink("absent", config.state.join(format!("digest/c{number}.json"))).unwrap();
        }
        let faults = state_faults(&config);
        assert_eq!(faults.len(), MAX_FAULTS + 1);
        assert!(faults[MAX_FAULTS].message.starts_with("30 more paths in "), "{:?}", faults[MAX_FAULTS]);
    }
}
