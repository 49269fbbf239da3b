//! The limit of open file descriptors, and how the process divides it.
//!
//! A connection needs a socket, and a file during a transfer. The server also needs descriptors for itself, for small
//! files and folders cached for the next request, and for operators' connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::constituency::Registry;
use crate::wording::counted;

/// For logs, listeners, the database, DNS, certificate renewal, and operators' connections.
const RESERVED: u64 = 192;
/// Small files that each thread caches.
const CACHED_PER_THREAD: u64 = 16;
/// One in so many descriptors is for cached folders.
const FOLDERS_DIVISOR: u64 = 8;
/// Descriptors per connection.
const PER_CONNECTION: u64 = 2;
/// The least number of connections under a low limit, if the limit allows for their sockets at all.
const MIN_ROOM: u64 = 32;
/// How many connections a server should allow even if it knows few phones.
const MIN_WANTED: usize = 256;
/// Suggested limits are multiples of this.
const STEP: u64 = 1024;

/// The limit of open file descriptors (`RLIMIT_NOFILE`).
#[derive(Debug, Clone, Copy)]
pub struct FileLimit {
    /// `None` is unlimited.
    files: Option<u64>,
    threads: u64,
}

impl FileLimit {
    /// Raises the soft limit to the hard limit, and returns the result.
    #[must_use]
    pub fn raise() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let raised = limit.current != limit.maximum
            && match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!("cannot raise the limit of open files; it stays at {:?}: {error}", limit.current);
                    false
                }
            };
        Self::of(if raised { limit.maximum } else { limit.current })
    }

    /// The hard limit: what a server that is started from here could raise its limit to.
    #[must_use]
    pub fn highest() -> Self {
        Self::of(getrlimit(Resource::Nofile).maximum)
    }

    fn of(files: Option<u64>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
        Self { files, threads }
    }

    /// The number of connections that the limit allows.
    #[must_use]
    pub fn room(self) -> usize {
        let Some(files) = self.files else { return usize::MAX };
        let room = files.saturating_sub(self.reserve() + files / FOLDERS_DIVISOR) / PER_CONNECTION;
        as_usize(room.max(MIN_ROOM.min(files / PER_CONNECTION)))
    }

    /// The number of folders that may be cached.
    #[must_use]
    pub fn open_folders(self) -> usize {
        self.files.map_or(usize::MAX, |files| as_usize(files / FOLDERS_DIVISOR))
    }

    /// The problem and the remedy, if the limit does not allow one connection for each phone that `registry` knows, up
    /// to `allowed` connections.
    #[must_use]
    pub fn shortage(self, registry: &Registry, allowed: usize) -> Option<String> {
        let phones = registry.served().map(|constituency| constituency.count_known_phones()).sum::<usize>();
        let wanted = phones.min(allowed).max(MIN_WANTED.min(allowed));
        (self.room() < wanted).then(|| {
            format!(
                "the limit of open files ({}) is enough for {}, but there are {}; raise LimitNOFILE to {} (ulimit -n)",
                self.files.unwrap_or(u64::MAX),
                counted(self.room(), "connection"),
                counted(phones, "known phone"),
                self.needed(wanted)
            )
        })
    }

    /// The limit that allows `connections`.
    fn needed(self, connections: usize) -> u64 {
        let without_folders = self.reserve() + PER_CONNECTION * connections as u64;
        (without_folders * FOLDERS_DIVISOR).div_ceil(FOLDERS_DIVISOR - 1).next_multiple_of(STEP)
    }

    fn reserve(self) -> u64 {
        RESERVED + CACHED_PER_THREAD * self.threads
    }
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(files: u64) -> FileLimit {
        FileLimit { files: Some(files), threads: 2 }
    }

    #[test]
    fn file_limit_reserves_files_and_folders_per_connection() {
        for files in [1024, 2048, 4096, 20_000, 65_536, 1 << 20] {
            let limit = limit(files);
            let (room, folders) = (limit.room() as u64, limit.open_folders() as u64);
            assert!(2 * room + folders + limit.reserve() <= files, "{files}: {room} connections, {folders} folders");
            assert!(room * 3 > files / 2 || files < 2048, "{files}: {room}");
        }
        assert_eq!((limit(64).room(), limit(32).room(), limit(0).room()), (32, 16, 0));
        let unlimited = FileLimit { files: None, threads: 2 };
        assert_eq!((unlimited.room(), unlimited.open_folders()), (usize::MAX, usize::MAX));
    }

    #[test]
    fn recommended_file_limit_is_enough() {
        for connections in [1, 256, 1000, 5000, 24_576, 1_000_000] {
            let needed = limit(1024).needed(connections);
            assert!(limit(needed).room() >= connections, "{connections}: {needed}");
            assert!(limit(needed - STEP).room() < connections.max(300), "{connections}: {needed}");
        }
    }
}
