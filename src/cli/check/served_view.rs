//! A constituency's folder as phones see it: it finds a file exactly if a phone would get it. Reads are bounded. It
//! opens files for the user of `check` and sends them to no client, so it needs no grant.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{Finding, FindingLevel};
use crate::constituency::file_names::NameRules;
use crate::constituency::{Constituency, MacAddress, Registry};
use crate::serve::access_control::check_shared;
use crate::serve::path::{self, ServedPath};
use crate::serve::symlink_diagnostics;
use crate::state::{FolderHandle, is_private_hard_link};

/// The largest file that is read, in bytes. Phones' configurations are far smaller, and firmware is not read.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// The most names in one line, and the most findings of one kind that are printed.
const NAMES: usize = 5;
const LINES: usize = 50;

pub(super) struct ServedView<'a> {
    /// The folder of all constituencies, with symlinks resolved.
    pub(super) root: &'a Path,
    pub(super) constituency: &'a Constituency,
    pub(super) registry: &'a Registry,
    /// Whether common files are served over plain HTTP, too.
    pub(super) over_plain_http: bool,
}

/// The result of a lookup.
#[derive(Debug)]
pub(super) enum ServedFile {
    Regular(File),
    /// There is no such file.
    Absent,
    /// The file exists but is not served, for this reason.
    NotServed(String),
}

/// The content of a file, if it was read.
pub(super) enum ServedContent {
    Bytes(Vec<u8>),
    TooLarge,
    Unreadable(std::io::Error),
}

impl ServedView<'_> {
    /// The path of the folder.
    pub(super) fn folder(&self) -> PathBuf {
        self.root.join(self.constituency.name.as_str())
    }

    /// The folder. Root follows symlinks of other users only with their permissions.
    pub(super) fn handle(&self) -> std::io::Result<FolderHandle> {
        FolderHandle::open_through_links(self.root)?.folder(self.constituency.name.as_str())
    }

    /// A finding about `path` in the folder. The path may end with `:LINE`.
    pub(super) fn finding(&self, level: FindingLevel, path: &str, message: impl Display) -> Finding {
        let name = &self.constituency.name;
        if path.is_empty() {
            Finding::new(level, name, message)
        } else {
            // A name may contain a colon. The line number follows the last one.
            let (file, line) = match path.rsplit_once(':') {
                Some((file, line)) if line.parse::<usize>().is_ok() => (file, line.parse().ok()),
                _ => (path, None),
            };
            Finding::new(level, format_args!("{name}/{path}"), message).in_file(self.folder().join(file), line)
        }
    }

    /// The file that `reader` gets for `path`. `reader` is `None` if clients are not authenticated.
    pub(super) fn find(&self, path: &ServedPath, reader: Option<MacAddress>) -> ServedFile {
        if let Err(foreign) = self.rules().check(path.as_str(), reader) {
            return ServedFile::NotServed(foreign.to_string());
        }
        if path::is_hidden(path.as_str()) {
            return ServedFile::NotServed("files of this name are never served".to_owned());
        }
        let other_cases = reader.into_iter().flat_map(|own| path.other_cases(own));
        let spellings = [path.as_str().to_owned()].into_iter().chain(other_cases);
        let mut found = spellings.map(|spelling| self.open(&spelling, reader));
        found.find(|found| !matches!(found, ServedFile::Absent)).unwrap_or(ServedFile::Absent)
    }

    /// The names in the folder at `path`; none if there is no such folder. Links are followed to other constituencies'
    /// folders, and not outside.
    pub(super) fn names_in(&self, path: &str) -> Vec<OsString> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let below_root = format!("{}/{path}", self.constituency.name);
        let opened = open(self.constituency.folder.root(), &below_root, beneath).and_then(Dir::new);
        let entries = opened.into_iter().flatten().flatten();
        entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned()).collect()
    }

    fn open(&self, spelling: &str, reader: Option<MacAddress>) -> ServedFile {
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        let folder = self.constituency.folder.handle();
        match folder.and_then(|folder| open(folder.as_fd(), spelling, strict)) {
            Ok(handle) => self.regular(handle),
            Err(Errno::LOOP) => self.open_through_links(spelling, reader),
            Err(errno) => failed(errno),
        }
    }

    fn open_through_links(&self, spelling: &str, reader: Option<MacAddress>) -> ServedFile {
        let below_root = format!("{}/{spelling}", self.constituency.name);
        let root = self.constituency.folder.root();
        match open(root, &below_root, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::XDEV) => {
                let reason = symlink_diagnostics::explain(self.root, &below_root);
                ServedFile::NotServed(reason.unwrap_or_else(|| "a symbolic link in its path leads outside".to_owned()))
            }
            Err(Errno::LOOP) => ServedFile::NotServed("its symbolic links form a loop".to_owned()),
            Err(errno) => failed(errno),
            Ok(handle) => match self.check_target(&handle, reader) {
                Ok(()) => self.regular(handle),
                Err(reason) => ServedFile::NotServed(reason),
            },
        }
    }

    fn regular(&self, handle: OwnedFd) -> ServedFile {
        let not_served = |reason: &str| ServedFile::NotServed(reason.to_owned());
        match rustix::fs::fstat(&handle) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                not_served("it is not a regular file")
            }
            Ok(stat) => match self.is_private_hard_link(&stat) {
                Ok(true) => not_served("it is a hard link to a private file of another user; replace it by a copy"),
                Ok(false) => ServedFile::Regular(File::from(handle)),
                Err(error) => ServedFile::NotServed(format!("cannot open it: {error}")),
            },
            Err(errno) => failed(errno),
        }
    }

    fn is_private_hard_link(&self, file: &Stat) -> std::io::Result<bool> {
        is_private_hard_link(file, self.constituency.folder.handle()?.as_fd())
    }

    /// Whether a file opened through symlinks may be served, decided by its real path.
    fn check_target(&self, handle: &OwnedFd, reader: Option<MacAddress>) -> Result<(), String> {
        let real = path_of(handle.as_fd()).map_err(|error| format!("cannot resolve its symbolic link: {error}"))?;
        let real = real.strip_prefix(self.root).ok().and_then(Path::to_str).and_then(|real| real.split_once('/'));
        let (owner, real) = real.ok_or("a symbolic link in its path leads outside")?;
        if owner == self.constituency.name.as_str() {
            if path::is_hidden(real) {
                return Err(format!("its symbolic link leads to {real}, a name that is never served"));
            }
            let leads = |foreign| format!("its symbolic link leads to {real}: {foreign}");
            return self.rules().check(real, reader).map_err(leads);
        }
        let owner = self.registry.by_folder(owner);
        let owner = owner.ok_or("its symbolic link does not lead into a served constituency")?;
        let rules = NameRules::linked(self.registry.listed(), self.constituency, owner);
        check_shared(real, reader, &rules).map_err(|denial| denial.to_string())
    }

    /// The rules for who may read a path in the folder.
    pub(super) fn rules(&self) -> NameRules<'_> {
        NameRules::reading(self.registry.listed(), self.constituency)
    }
}

/// Reads `file`, unless it is too large.
pub(super) fn read(file: File) -> ServedContent {
    let mut bytes = Vec::new();
    match file.take(MAX_BYTES + 1).read_to_end(&mut bytes) {
        Err(error) => ServedContent::Unreadable(error),
        Ok(_) if bytes.len() as u64 > MAX_BYTES => ServedContent::TooLarge,
        Ok(_) => ServedContent::Bytes(bytes),
    }
}

fn open(folder: BorrowedFd<'_>, path: &str, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    // NONBLOCK: opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    // openat2(2) returns AGAIN if a rename interfered.
    let once = || rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve);
    (1..100).map(|_| once()).find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or_else(once)
}

fn failed(errno: Errno) -> ServedFile {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => ServedFile::Absent,
        Errno::NXIO | Errno::NODEV => ServedFile::NotServed("it is not a regular file".to_owned()),
        errno => ServedFile::NotServed(format!("cannot open it: {errno}")),
    }
}

/// The kernel's path of an open handle.
fn path_of(handle: BorrowedFd<'_>) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// The first few of `names`, and the number of the rest.
pub(super) fn some_of<T: Display>(names: &[T]) -> String {
    let mut shown: Vec<String> = names.iter().take(NAMES).map(ToString::to_string).collect();
    if names.len() > NAMES {
        shown.push(format!("{} more", names.len() - NAMES));
    }
    shown.join(", ")
}

/// Adds `all` to the findings: the first ones, and one finding with the number of the rest.
pub(super) fn report(view: &ServedView<'_>, mut all: Vec<Finding>, what: &str, findings: &mut Vec<Finding>) {
    all.sort();
    let more = all.len().saturating_sub(LINES);
    let level = all.get(LINES).map(|finding| finding.level);
    findings.extend(all.into_iter().take(LINES));
    if let Some(level) = level {
        findings.push(view.finding(level, "", format!("{more} more {what}")));
    }
}
