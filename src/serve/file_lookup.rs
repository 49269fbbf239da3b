//! Opens the file that a grant allows: beneath a directory handle, enforced by the kernel, with a second check of its
//! real path.
//!
//! A path without symlinks takes one call. If there is a symlink in it, the file is opened beneath `constituencies`,
//! and the grant must hold for its real path.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::ResolveFlags;
use rustix::io::Errno;

use super::access_control::upload_name::UploadName;
use super::access_control::{Denial, ReadGrant, check_shared};
use super::fd_cache;
use super::open_beneath::{self, OpenFile};
use super::symlink_diagnostics;
use super::upload::store::UploadStore;
use crate::constituency::file_names::NameRules;
use crate::constituency::{Constituency, Registry};

/// Opens the granted path: an upload of this phone that overrides the folder, else the folder's file, else an upload.
///
/// # Errors
/// Why there is nothing to send. The peer sees 404 or 403, 500 for a failing disk, or 503 for a replaced folder.
pub fn open(
    grant: &ReadGrant,
    constituency: &Constituency,
    registry: &Registry,
    uploads: &UploadStore,
) -> Result<OpenFile, Denial> {
    // A phone's upload always has its own MAC address in its name.
    let own = grant.reader().filter(|mac| grant.path().spells(*mac));
    let Some(mac) = own else { return open_in_folder(grant, constituency, registry) };
    let name = UploadName::stored(grant.path(), mac);
    let upload = || uploads.open(&constituency.name, mac, &name);
    if name.overrides_folder() {
        return match upload() {
            Err(Denial::NotFound) => open_in_folder(grant, constituency, registry),
            found => found,
        };
    }
    match open_in_folder(grant, constituency, registry) {
        Err(Denial::NotFound) if name.is_write_only() => upload().and(Err(Denial::WriteOnly)),
        Err(Denial::NotFound) => upload(),
        found => found,
    }
}

/// Tries the exact spelling, then the MAC address in lower case, then in upper case.
fn open_in_folder(grant: &ReadGrant, constituency: &Constituency, registry: &Registry) -> Result<OpenFile, Denial> {
    let mut found = open_spelling(grant.path().as_str(), grant, constituency, registry);
    if let (Err(Denial::NotFound), Some(own)) = (&found, grant.reader()) {
        for spelling in grant.path().other_cases(own) {
            found = open_spelling(&spelling, grant, constituency, registry);
            if !matches!(found, Err(Denial::NotFound)) {
                break;
            }
        }
    }
    match found {
        Err(Denial::NotFound) if !constituency.folder.is_in_place() => Err(Denial::Replaced),
        found => found,
    }
}

fn open_spelling(
    spelling: &str,
    grant: &ReadGrant,
    constituency: &Constituency,
    registry: &Registry,
) -> Result<OpenFile, Denial> {
    let folder = open_beneath::folder(constituency)?;
    if let Some(cached) = fd_cache::find(folder.as_fd(), spelling) {
        return Ok(cached);
    }
    let strict = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match open_beneath::open(folder.as_fd(), spelling, open_beneath::READ_FLAGS, strict) {
        Ok(handle) => open_beneath::opened(handle).inspect(|file| fd_cache::insert(file, spelling)),
        Err(Errno::LOOP) => open_through_links(spelling, grant, constituency, registry),
        Err(errno) => Err(open_beneath::denial(errno)),
    }
}

/// Follows symlinks, and checks access to their real path. A symlink that leaves `constituencies` is refused: `openat2`
/// fails with `EXDEV`.
fn open_through_links(
    spelling: &str,
    grant: &ReadGrant,
    constituency: &Constituency,
    registry: &Registry,
) -> Result<OpenFile, Denial> {
    let root = constituency.folder.root();
    let below_root = format!("{}/{spelling}", constituency.name);
    let handle = open_beneath::open(
        root,
        &below_root,
        open_beneath::READ_FLAGS,
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|errno| match errno {
        Errno::XDEV => Denial::Link(
            path_of(root)
                .ok()
                .and_then(|root| symlink_diagnostics::explain(&root, &below_root))
                .unwrap_or_else(|| "a symlink in the path leads out of the folder of the constituencies".to_owned()),
        ),
        Errno::LOOP => Denial::Link("symlinks form a loop".to_owned()),
        errno => open_beneath::denial(errno),
    })?;
    let real = real_path(handle.as_fd(), root)?;
    let (owner, real) = real.split_once('/').ok_or(Denial::NotRegular)?;
    if owner == constituency.name.as_str() {
        grant.covers(real, &NameRules::reading(registry.listed(), constituency))?;
    } else {
        let owner = registry.by_folder(owner).ok_or_else(|| {
            Denial::Link(format!("the symlink leads to {owner}/{real}, and {owner} is not a served constituency"))
        })?;
        check_shared(real, grant.reader(), &NameRules::linked(registry.listed(), constituency, owner))?;
    }
    open_beneath::opened(handle)
}

/// The real path of an open file, relative to `root`.
fn real_path(handle: BorrowedFd<'_>, root: BorrowedFd<'_>) -> Result<String, Denial> {
    let unknown =
        |error| Denial::Failed(format!("the target of a symlink cannot be found: {error} (is /proc mounted?)"));
    let (file, root) = (path_of(handle).map_err(unknown)?, path_of(root).map_err(unknown)?);
    let real: &Path = file.strip_prefix(&root).map_err(|_| Denial::NotFound)?;
    let real = real.to_str().ok_or(Denial::NotFound)?;
    // The kernel appends this if the file was deleted or replaced meanwhile. Strip it, so that it does not hide the
    // extension.
    Ok(real.strip_suffix(" (deleted)").unwrap_or(real).to_owned())
}

/// The path of an open handle, according to the kernel.
fn path_of(handle: BorrowedFd<'_>) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use hyper::Method;

    use super::*;
    use crate::clock;
    use crate::constituency::VISITED;
    use crate::constituency::scan::Scanner;
    use crate::identity::ClientIdentity;
    use crate::serve::access_control::{ClientContext, Grant, RequestTarget, decide};
    use crate::state;

    /// Reads a file through a link into the shared folder of `ucs`, beside `others` constituencies. Returns how many
    /// constituencies the read visits.
    fn visited_beside(others: usize) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("constituencies");
        for number in 0..others {
            fs::create_dir_all(root.join(format!("c{number}"))).unwrap();
        }
        fs::create_dir_all(root.join("ote")).unwrap();
        fs::create_dir_all(root.join("ucs/firmware")).unwrap();
        state::write_private(&root.join("ucs/constituency.json"), br#"{ "shared": ["firmware"] }"#).unwrap();
        state::write_private(&root.join("ucs/firmware/sip.ld"), b"sip").unwrap();
        symlink("../ucs/firmware", root.join("ote/firmware")).unwrap();
        let registry = Scanner::new(root, Vec::new()).scan(clock::now());
        assert_eq!(registry.served().count(), others + 2);

        let ote = registry.find("ote").unwrap();
        let client = ClientContext {
            constituency: Some(ote),
            listed: registry.listed(),
            tls_is_current: true,
            identity: Ok(&ClientIdentity::Plain),
            now: 0,
        };
        let target = RequestTarget { host: Ok(()), method: &Method::GET, path: "/firmware/sip.ld" };
        let Ok(Grant::Read(grant)) = decide(target, &client) else { panic!("refused") };
        let uploads = UploadStore::new(folder.path().join("uploads"), Some(0));
        let before = VISITED.get();
        assert_eq!(open(&grant, ote, &registry, &uploads).unwrap().size, 3);
        VISITED.get() - before
    }

    #[test]
    fn link_into_a_shared_folder_visits_no_other_constituency() {
        assert_eq!([10, 1000].map(visited_beside), [0, 0]);
    }
}
