//! Looks at `constituencies` whenever something happens there, and at least every ten seconds.
//!
//! inotify tells when to look; the scan tells what there is. A lost event therefore costs seconds, never truth.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use inotify::{Inotify, WatchDescriptor, WatchMask, Watches};

use super::registry::Registry;
use super::scan::Scanner;
use crate::clock;

/// How often to look when inotify tells of changes.
const PERIOD: Duration = Duration::from_secs(10);
/// How often to look when it cannot.
const PERIOD_WITHOUT_INOTIFY: Duration = Duration::from_secs(1);
/// A deployment touches many files: look once when it pauses.
const QUIET: Duration = Duration::from_millis(30);
/// ... and at the latest after this time, so that steady changes do not put it off for ever.
const MOST_QUIETS: u32 = 10;

/// Wakes the thread that looks. Dropping every one of them ends it.
#[derive(Debug, Clone)]
pub struct Waker(Sender<Wake>);

enum Wake {
    Changed,
    Stop,
}

impl Waker {
    /// Asks for a look now.
    pub fn wake(&self) {
        // The thread may be gone, at shutdown.
        let _ = self.0.send(Wake::Changed);
    }

    /// Ends the watching.
    pub fn stop(&self) {
        let _ = self.0.send(Wake::Stop);
    }
}

/// Starts a thread that gives `publish` every registry that differs from the one before, `first` being known already.
///
/// # Errors
/// If the system has no thread to spare.
pub fn follow(
    scanner: Scanner,
    first: Registry,
    publish: impl FnMut(&Registry, Registry) + Send + 'static,
) -> std::io::Result<Waker> {
    let (sender, events) = channel();
    let waker = Waker(sender.clone());
    let mut notices = Notices::start(sender);
    notices.watch_all(scanner.path(), &first);
    std::thread::Builder::new()
        .name("constituencies".to_owned())
        .spawn(move || look_again(scanner, first, &events, &mut notices, publish))?;
    Ok(waker)
}

fn look_again(
    mut scanner: Scanner,
    mut current: Registry,
    events: &Receiver<Wake>,
    notices: &mut Notices,
    mut publish: impl FnMut(&Registry, Registry),
) {
    loop {
        let period = if notices.is_complete { PERIOD } else { PERIOD_WITHOUT_INOTIFY };
        match events.recv_timeout(period) {
            Ok(Wake::Changed) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        for _ in 0..MOST_QUIETS {
            match events.recv_timeout(QUIET) {
                Ok(Wake::Changed) => {}
                Ok(Wake::Stop) => return,
                Err(_) => break,
            }
        }
        // Watch first, look second: what happens in between wakes again.
        notices.watch_all(scanner.path(), &current);
        let mut found = scanner.scan(clock::now());
        if !found.is_same_as(&current) {
            notices.watch_all(scanner.path(), &found);
            // A new folder may have been filled before it was watched.
            found = scanner.scan(clock::now());
            let before = std::mem::replace(&mut current, found.snapshot());
            publish(&before, found);
        }
    }
}

/// The inotify watches: on `constituencies`, on the folder it lies in, and on each constituency.
struct Notices {
    watches: Option<Watches>,
    held: Vec<WatchDescriptor>,
    watched: BTreeSet<(PathBuf, u64, u64)>,
    is_complete: bool,
}

impl Notices {
    fn start(sender: Sender<Wake>) -> Self {
        let watches = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            std::thread::Builder::new().name("inotify".to_owned()).spawn(move || forward(inotify, &sender))?;
            Ok(watches)
        });
        if let Err(error) = &watches {
            tracing::warn!(
                "inotify is not available ({error}): looking at the folders every second instead; raise the sysctl fs.inotify.max_user_instances"
            );
        }
        Self { is_complete: watches.is_ok(), watches: watches.ok(), held: Vec::new(), watched: BTreeSet::new() }
    }

    /// Watches what is there now, if it is not what is watched already.
    fn watch_all(&mut self, root: &Path, registry: &Registry) {
        let Some(watches) = &mut self.watches else { return };
        let parent = match root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => root,
        };
        let folders = registry.served().map(|constituency| root.join(constituency.name.as_str()));
        let faulty = registry.faults().iter().map(|fault| root.join(&fault.subject));
        let wanted: BTreeSet<_> = [parent.to_owned(), root.to_owned()]
            .into_iter()
            .chain(folders)
            .chain(faulty)
            .filter_map(|path| identify(&path).map(|(device, inode)| (path, device, inode)))
            .collect();
        if wanted == self.watched {
            return;
        }
        for watch in self.held.drain(..) {
            // A watch whose folder is gone is gone too.
            let _ = watches.remove(watch);
        }
        let was_complete = std::mem::replace(&mut self.is_complete, true);
        for (path, ..) in &wanted {
            match watches.add(path, mask()) {
                Ok(watch) => self.held.push(watch),
                Err(error) => {
                    self.is_complete = false;
                    if was_complete {
                        tracing::warn!(
                            "{} cannot be watched ({error}): looking at the folders every second instead; raise the sysctl fs.inotify.max_user_watches",
                            path.display()
                        );
                        break;
                    }
                }
            }
        }
        self.watched = wanted;
    }
}

fn mask() -> WatchMask {
    // Not OPEN or ACCESS: serving a file must not wake the scanner.
    WatchMask::ATTRIB
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

fn identify(path: &Path) -> Option<(u64, u64)> {
    rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Turns events into wakes until nobody listens any more.
fn forward(mut inotify: Inotify, sender: &Sender<Wake>) {
    let mut buffer = [0; 4096];
    while inotify.read_events_blocking(&mut buffer).is_ok() {
        if sender.send(Wake::Changed).is_err() {
            return;
        }
    }
}
