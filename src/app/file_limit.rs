//! How many files the process may have open, and what it has them for.
//!
//! A connection needs a socket, and a file while it transfers one. Besides, there is what the server has open for itself,
//! small files and folders that are kept open for the next request, and the operators' connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::constituency::Registry;
use crate::wording::counted;

/// For logs, listeners, the database, DNS, the certificates' renewal, and the status page's connections.
const OURS: u64 = 192;
/// For small files that each thread keeps open.
const KEPT_PER_THREAD: u64 = 16;
/// The part of the limit that is for folders kept open: one in eight.
const FOLDERS_PART: u64 = 8;
/// Files per connection.
const PER_CONNECTION: u64 = 2;
/// For how many connections there is room however low the limit is, if it allows for their sockets at all.
const LEAST_ROOM: u64 = 32;
/// How many connections a server should have room for, even if it knows few phones.
const FEW: usize = 256;
/// Suggested limits are multiples of this.
const STEP: u64 = 1024;

/// The limit of open files.
#[derive(Debug, Clone, Copy)]
pub struct FileLimit {
    /// `None`: unlimited.
    files: Option<u64>,
    threads: u64,
}

impl FileLimit {
    /// The limit, after raising it as far as the system allows.
    #[must_use]
    pub fn raise() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let raised = limit.current != limit.maximum
            && match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!("the limit of open files stays at {:?}: {error}", limit.current);
                    false
                }
            };
        Self::of(if raised { limit.maximum } else { limit.current })
    }

    /// The limit to which a server that is started from here could raise it.
    #[must_use]
    pub fn highest() -> Self {
        Self::of(getrlimit(Resource::Nofile).maximum)
    }

    fn of(files: Option<u64>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
        Self { files, threads }
    }

    /// How many connections there is room for.
    #[must_use]
    pub fn room(self) -> usize {
        let Some(files) = self.files else { return usize::MAX };
        let room = files.saturating_sub(self.reserve() + files / FOLDERS_PART) / PER_CONNECTION;
        as_usize(room.max(LEAST_ROOM.min(files / PER_CONNECTION)))
    }

    /// How many folders may be kept open.
    #[must_use]
    pub fn open_folders(self) -> usize {
        self.files.map_or(usize::MAX, |files| as_usize(files / FOLDERS_PART))
    }

    /// What to do if there is not room enough for a connection of each phone that `registry` knows, of which no more than
    /// `allowed` may connect at once.
    #[must_use]
    pub fn shortage(self, registry: &Registry, allowed: usize) -> Option<String> {
        let phones = registry.served().map(|constituency| constituency.count_known_phones()).sum::<usize>();
        let wanted = phones.min(allowed).max(FEW.min(allowed));
        (self.room() < wanted).then(|| {
            format!(
                "the limit of open files ({}) leaves room for {}, and there are {}: raise LimitNOFILE to {} (ulimit -n)",
                self.files.unwrap_or(u64::MAX),
                counted(self.room(), "connection"),
                counted(phones, "known phone"),
                self.needed(wanted)
            )
        })
    }

    /// The limit with which there is room for `connections`.
    fn needed(self, connections: usize) -> u64 {
        let without_folders = self.reserve() + PER_CONNECTION * connections as u64;
        (without_folders * FOLDERS_PART).div_ceil(FOLDERS_PART - 1).next_multiple_of(STEP)
    }

    fn reserve(self) -> u64 {
        OURS + KEPT_PER_THREAD * self.threads
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
    fn connections_leave_room_for_their_files_and_for_folders() {
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
    fn the_limit_that_is_asked_for_is_enough() {
        for connections in [1, 256, 1000, 5000, 24_576, 1_000_000] {
            let needed = limit(1024).needed(connections);
            assert!(limit(needed).room() >= connections, "{connections}: {needed}");
            assert!(limit(needed - STEP).room() < connections.max(300), "{connections}: {needed}");
        }
    }
}
