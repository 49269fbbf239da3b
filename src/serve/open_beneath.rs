//! Opens regular files beneath a directory handle, enforced by the kernel (openat2).

use std::fmt::Write;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use hyper::header::HeaderValue;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::access_control::Denial;
use super::path::ServedPath;
use crate::constituency::{Constituency, MacAddress};
use crate::files::FileStamp;

/// A regular file, open for reading, with the metadata for a response.
#[derive(Debug, Clone)]
pub struct OpenFile {
    pub file: Arc<File>,
    /// Its size in bytes.
    pub size: u64,
    /// Its last modification.
    pub modified: SystemTime,
    /// Its strong entity tag, with quotes.
    pub etag: HeaderValue,
    /// Its last modification as an HTTP date.
    pub last_modified: HeaderValue,
    /// Distinguishes the file from every other, and from its earlier states, while it is held open.
    pub(super) stamp: FileStamp,
}

/// The constituency's folder.
///
/// # Errors
/// [`Denial::Replaced`] if another folder has taken its place.
pub(super) fn folder(constituency: &Constituency) -> Result<Arc<OwnedFd>, Denial> {
    constituency.folder.handle().map_err(|errno| match errno {
        Errno::STALE => Denial::Replaced,
        errno => Denial::Failed(format!("the folder of {} cannot be opened: {errno}", constituency.name)),
    })
}

/// Whether the folder has a file of this path, in any case of the MAC address `own`. A symlink as the last segment
/// is not followed.
///
/// # Errors
/// If the folder cannot be opened.
pub(super) fn is_in_folder(path: &ServedPath, own: MacAddress, constituency: &Constituency) -> Result<bool, Denial> {
    let folder = folder(constituency)?;
    let exists =
        |spelling: &str| open(folder.as_fd(), spelling, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::BENEATH).is_ok();
    Ok(exists(path.as_str()) || path.other_cases(own).any(|spelling| exists(&spelling)))
}

/// NONBLOCK: opening a FIFO must not wait for a writer.
pub(super) const READ_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

/// 9999-12-31T23:59:59Z, in Unix seconds.
const END_OF_HTTP_DATES: u64 = 253_402_300_799;

/// The length of an entity tag, in bytes.
const ETAG: usize = 2 * ETAG_HASH + 2;
/// How many bytes of a SHA-256 hash it holds.
const ETAG_HASH: usize = 16;

/// How often to try an open that concurrent renames disturb.
const TRIES: usize = 100;

/// Opens `path` beneath `folder`.
///
/// openat2(2) fails with AGAIN if "the kernel could not ensure that a ".." component didn't escape". Any rename on the
/// machine at that moment can cause this, so the call is retried.
pub(super) fn open(folder: BorrowedFd<'_>, path: &str, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let once = || rustix::fs::openat2(folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    (1..TRIES).map(|_| once()).find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or_else(once)
}

/// Accepts an open handle if it is a regular file's.
pub(super) fn opened(handle: OwnedFd) -> Result<OpenFile, Denial> {
    let stat = rustix::fs::fstat(&handle).map_err(denial)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Denial::Folder),
        _ => return Err(Denial::NotRegular),
    }
    let modified = time_of(stat.st_mtime);
    let text = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
    Ok(OpenFile {
        file: Arc::new(File::from(handle)),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified,
        etag: text(etag(&stat)),
        last_modified: text(httpdate::fmt_http_date(modified)),
        stamp: FileStamp::of_stat(&stat),
    })
}

/// Includes inode and change time, so that a file replaced within one clock tick gets another tag. Hashed, so that the
/// tag reveals neither.
fn etag(stat: &Stat) -> String {
    let times = [stat.st_mtime, stat.st_ctime].map(i64::to_be_bytes);
    let fractions = [stat.st_mtime_nsec, stat.st_ctime_nsec, stat.st_ino].map(u64::to_be_bytes);
    let state = [times.concat(), fractions.concat(), stat.st_size.to_be_bytes().to_vec()].concat();
    let mut etag = String::with_capacity(ETAG);
    etag.push('"');
    for byte in digest::digest(&digest::SHA256, &state).as_ref().iter().take(ETAG_HASH) {
        // Writing to a String does not fail.
        let _ = write!(etag, "{byte:02x}");
    }
    etag.push('"');
    etag
}

/// Converts a file's Unix seconds. HTTP dates end with the year 9999; those of some file systems do not.
fn time_of(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(END_OF_HTTP_DATES))
}

pub(super) fn denial(errno: Errno) -> Denial {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Denial::NotFound,
        // A socket, or a device without a driver.
        Errno::NXIO | Errno::NODEV => Denial::NotRegular,
        errno => Denial::Failed(format!("the file cannot be opened: {errno}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etag_reveals_no_inode_and_no_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut stat = rustix::fs::fstat(&file).unwrap();
        (stat.st_ino, stat.st_size, stat.st_mtime, stat.st_ctime) = (0x1234_5678, 1000, 1_796_000_000, 1_796_000_001);
        (stat.st_mtime_nsec, stat.st_ctime_nsec) = (123_456_789, 987_654_321);
        let tag = etag(&stat);
        assert_eq!(tag.len(), ETAG);
        for secret in [stat.st_ino, 1_796_000_000, 1_796_000_001, stat.st_mtime_nsec, stat.st_ctime_nsec] {
            assert!(!tag.contains(&format!("{secret:x}")) && !tag.contains(&secret.to_string()), "{tag}: {secret}");
        }
        let changes: [fn(&mut Stat); 6] = [
            |it| it.st_ino += 1,
            |it| it.st_size += 1,
            |it| it.st_mtime += 1,
            |it| it.st_mtime_nsec += 1,
            |it| it.st_ctime += 1,
            |it| it.st_ctime_nsec += 1,
        ];
        for change in changes {
            let mut other = stat;
            change(&mut other);
            assert_ne!(etag(&other), tag);
        }
    }

    #[test]
    fn every_file_time_has_an_http_date() {
        let date = |seconds| httpdate::fmt_http_date(time_of(seconds));
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(i64::MIN), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(253_402_300_799), "Fri, 31 Dec 9999 23:59:59 GMT");
        assert_eq!(date(i64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
