//! Opening what a grant allows: beneath a directory handle, by the kernel's own rules, and judged again by its real path.
//!
//! A path without links is opened in one call. Where a link is on the way, the file is opened beneath `constituencies`,
//! and the decision must hold for the path that it really has.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::decision::{Denial, ReadGrant, check_shared};
use super::path;
use super::upload::name::UploadName;
use super::upload::store::UploadStore;
use crate::constituency::{Constituency, Registry};

/// A regular file, open for reading, with what an answer says of it.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
    /// Its last modification.
    pub modified: SystemTime,
    /// Its strong entity tag, with quotes.
    pub etag: String,
}

/// Opens what the grant names: an upload of this phone that lies over the folder, else the folder's file, else an upload.
///
/// # Errors
/// Every reason why there is nothing to send; none of them tells the peer more than 404 or 403.
pub fn open(
    grant: &ReadGrant,
    constituency: &Constituency,
    registry: &Registry,
    uploads: &UploadStore,
) -> Result<Opened, Denial> {
    let name = UploadName::stored(grant.path());
    // Only a name with the phone's own MAC address in it can be an upload of its.
    let own = grant.reader().filter(|mac| path::macs_in(grant.path().as_str()).any(|found| found == *mac));
    let upload = || match own {
        Some(mac) => uploads.open(&constituency.name, mac, &name),
        None => Err(Denial::NotFound),
    };
    if own.is_some() && name.lies_over_the_folder() {
        return match upload() {
            Err(Denial::NotFound) => open_in_folder(grant, constituency, registry),
            found => found,
        };
    }
    match open_in_folder(grant, constituency, registry) {
        Err(Denial::NotFound) if own.is_some() && name.is_kept_back() => upload().and(Err(Denial::KeptBack)),
        Err(Denial::NotFound) => upload(),
        found => found,
    }
}

/// Whether the folder has a file of this path, in any case of its MAC address; links count whatever they lead to.
#[must_use]
pub fn is_in_folder(path: &super::path::ServedPath, constituency: &Constituency) -> bool {
    let exists = |spelling: &str| {
        openat2(constituency.folder.handle(), spelling, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::BENEATH).is_ok()
    };
    exists(path.as_str()) || path.other_cases().any(|spelling| exists(&spelling))
}

/// The exact spelling first, then the MAC address in lower case, then in upper case.
fn open_in_folder(grant: &ReadGrant, constituency: &Constituency, registry: &Registry) -> Result<Opened, Denial> {
    let mut found = open_spelling(grant.path().as_str(), grant, constituency, registry);
    if matches!(found, Err(Denial::NotFound)) {
        for spelling in grant.path().other_cases() {
            found = open_spelling(&spelling, grant, constituency, registry);
            if !matches!(found, Err(Denial::NotFound)) {
                break;
            }
        }
    }
    found
}

fn open_spelling(
    spelling: &str,
    grant: &ReadGrant,
    constituency: &Constituency,
    registry: &Registry,
) -> Result<Opened, Denial> {
    let strict = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match openat2(constituency.folder.handle(), spelling, READ, strict) {
        Ok(handle) => opened(handle),
        Err(Errno::LOOP) => open_through_links(spelling, grant, constituency, registry),
        Err(errno) => Err(denial(errno)),
    }
}

/// Follows links, but never out of `constituencies`, and decides again by where they led.
fn open_through_links(
    spelling: &str,
    grant: &ReadGrant,
    constituency: &Constituency,
    registry: &Registry,
) -> Result<Opened, Denial> {
    let root = constituency.folder.root();
    let below_root = format!("{}/{spelling}", constituency.name);
    let handle = openat2(root, &below_root, READ, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
        .map_err(|errno| match errno {
            Errno::XDEV => Denial::Link(
                "a link on the way is absolute or leaves the folder of the constituencies; write a relative link (`provost check` shows it)".to_owned(),
            ),
            Errno::LOOP => Denial::Link("links lead in a circle".to_owned()),
            errno => denial(errno),
        })?;
    let real = real_path(handle.as_fd(), root)?;
    let (owner, real) = real.split_once('/').ok_or(Denial::NotRegular)?;
    if owner == constituency.name.as_str() {
        grant.covers(real)?;
    } else {
        let owner = registry
            .served()
            .find(|other| other.name.as_str() == owner)
            .ok_or_else(|| Denial::Link(format!("the link leads to {owner}/{real}, which is no constituency")))?;
        check_shared(real, owner)?;
    }
    opened(handle)
}

/// NONBLOCK: opening a FIFO must not wait for its writer.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

pub(super) fn openat2(
    folder: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Takes an open handle for an answer, if it is a regular file's.
pub(super) fn opened(handle: OwnedFd) -> Result<Opened, Denial> {
    let stat = rustix::fs::fstat(&handle).map_err(denial)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Denial::Folder),
        _ => return Err(Denial::NotRegular),
    }
    let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    // The inode and its change time too: a file that was replaced within one tick of the clock is another file.
    let etag = format!(
        "\"{:x}-{:x}-{:x}.{:x}-{:x}.{:x}\"",
        stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec
    );
    Ok(Opened {
        file: File::from(handle),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: SystemTime::UNIX_EPOCH + seconds,
        etag,
    })
}

/// Where an open file really is, relative to `root`.
fn real_path(handle: BorrowedFd<'_>, root: BorrowedFd<'_>) -> Result<String, Denial> {
    let of = |handle: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    let unknown = |error| Denial::Failed(format!("the real path of a link is unknown: {error} (is /proc mounted?)"));
    let (file, root) = (of(handle).map_err(unknown)?, of(root).map_err(unknown)?);
    let real: &Path = file.strip_prefix(&root).map_err(|_| Denial::NotFound)?;
    real.to_str().map(str::to_owned).ok_or(Denial::NotFound)
}

pub(super) fn denial(errno: Errno) -> Denial {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Denial::NotFound,
        // A socket or a device without a driver.
        Errno::NXIO | Errno::NODEV => Denial::NotRegular,
        errno => Denial::Failed(format!("the file cannot be opened: {errno}")),
    }
}
