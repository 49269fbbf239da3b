//! Looks at `constituencies` whenever something happens there, and at least every ten seconds.
//!
//! inotify tells when to look; the scan tells what there is. A lost event therefore costs seconds, never truth.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::io::Errno;

use super::registry::Registry;
use super::scan::Scanner;
use crate::clock;

#[cfg(test)]
mod tests;

/// How often to look when inotify tells of changes.
const PERIOD: Duration = Duration::from_secs(10);
/// How often to look when it cannot, or when there was something that could not be seen.
const SHORT_PERIOD: Duration = Duration::from_secs(1);
/// How often to see whether `constituencies` is still the same folder: a link that is swapped, or a folder above it
/// that is renamed, anywhere on the way to it, is no event in it.
const ROOT_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// A deployment touches many files: look once when it pauses.
const DEBOUNCE: Duration = Duration::from_millis(30);
/// ... and at the latest after this time, so that steady changes do not put it off for ever.
const MAX_DEBOUNCE: Duration = Duration::from_millis(300);

/// Wakes the thread that looks, or ends it.
#[derive(Debug, Clone)]
pub struct WatcherHandle(Sender<Wake>);

enum Wake {
    Changed,
    /// A look is wanted now, with the trust bundles of these names if there are others, and this done after it.
    Wanted(Option<Vec<String>>, Then),
    /// The kernel dropped this watch: what it watched is gone. Without one, all of them.
    Unwatched(Option<WatchDescriptor>),
    /// Somebody wants to know whether the thread comes round.
    Asked(Sender<()>),
    Stop,
}

/// What is done after a look.
type Then = Box<dyn FnOnce() + Send>;

/// Device and inode.
type FolderIdentity = (u64, u64);

impl WatcherHandle {
    /// Asks for a look now, with the trust bundles of these names. `then` is done after it, on the thread that looks; at
    /// shutdown it may only be dropped.
    pub fn look_with(&self, bundles: Vec<String>, then: impl FnOnce() + Send + 'static) {
        // The thread may be gone.
        let _ = self.0.send(Wake::Wanted(Some(bundles), Box::new(then)));
    }

    /// Asks for a look now, in the same way. All who ask while the thread is busy get one look together.
    pub fn look(&self, then: impl FnOnce() + Send + 'static) {
        let _ = self.0.send(Wake::Wanted(None, Box::new(then)));
    }

    /// Asks the thread to answer when it comes round; `None` if it has ended.
    #[must_use]
    pub fn ask(&self) -> Option<Receiver<()>> {
        let (answer, answered) = channel();
        self.0.send(Wake::Asked(answer)).ok().map(|()| answered)
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
    mut publish: impl FnMut(Registry) + Send + 'static,
) -> std::io::Result<WatcherHandle> {
    let (sender, events) = channel();
    let waker = WatcherHandle(sender.clone());
    let notices = InotifyWatches { sender, watches: None, held: HashMap::new(), is_complete: true };
    let looked = clock::monotonic();
    let mut follower = Watcher {
        scanner,
        current: first,
        events,
        notices,
        root: None,
        is_unsure: false,
        looked,
        is_failing: false,
        then: Vec::new(),
    };
    std::thread::Builder::new().name("constituencies".to_owned()).spawn(move || {
        loop {
            // Also before the first wait: something may have changed before anything was watched.
            let look = catch_unwind(AssertUnwindSafe(|| follower.look(&mut publish)));
            follower.note_failure(look.is_err());
            for then in std::mem::take(&mut follower.then) {
                then();
            }
            if !follower.wait() {
                return;
            }
        }
    })?;
    Ok(waker)
}

/// The thread that looks.
struct Watcher {
    scanner: Scanner,
    current: Registry,
    events: Receiver<Wake>,
    notices: InotifyWatches,
    root: Option<FolderIdentity>,
    /// Whether the last look may have met a folder that was being exchanged.
    is_unsure: bool,
    looked: Instant,
    /// Whether the last look ended in a panic.
    is_failing: bool,
    /// What is to be done after the next look.
    then: Vec<Then>,
}

impl Watcher {
    fn look(&mut self, publish: &mut impl FnMut(Registry)) {
        self.looked = clock::monotonic();
        let root = identify(self.scanner.path());
        // Watch first, look second: what happens in between wakes again.
        self.notices.watch_all(self.scanner.path(), &self.current);
        let mut found = self.scanner.scan(clock::now());
        if !found.is_same_as(&self.current) {
            if self.notices.watch_all(self.scanner.path(), &found) {
                // A new folder may have been filled before it was watched.
                found = self.scanner.scan(clock::now());
            }
            // Kept only when it is published, so that what a panic kept from that is found again.
            let snapshot = found.snapshot();
            publish(found);
            self.current = snapshot;
        }
        // Away for a part of the look, it may have been found empty, and come back as the same folder, unwatched.
        self.root = identify(self.scanner.path());
        self.is_unsure = self.root != root || self.notices.misses(self.root.as_ref());
    }

    /// Says when looks begin to fail by a defect of ours, and when that is over. What is served stays meanwhile.
    fn note_failure(&mut self, is_failing: bool) {
        match (std::mem::replace(&mut self.is_failing, is_failing), is_failing) {
            (false, true) => tracing::error!(
                "looking at the folders failed by a defect of provost (a panic): what is served stays as it was, and it is tried again every second"
            ),
            (true, false) => tracing::info!("the folders are followed again"),
            _ => {}
        }
    }

    /// Waits until there is a reason to look; `false` when it is time to end.
    fn wait(&mut self) -> bool {
        loop {
            match self.events.recv_timeout(ROOT_CHECK_INTERVAL) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Wake::Changed) => return self.debounce(),
                Ok(Wake::Wanted(bundles, then)) => return self.prepare(bundles, then),
                Ok(Wake::Asked(asker)) => answer(&asker),
                Ok(Wake::Unwatched(watch)) => self.notices.forget(watch.as_ref()),
                Err(RecvTimeoutError::Timeout) => {
                    let is_time = clock::monotonic().duration_since(self.looked) >= self.period();
                    if is_time || self.is_unsure || identify(self.scanner.path()) != self.root {
                        return true;
                    }
                }
            }
        }
    }

    fn period(&self) -> Duration {
        if self.scanner.needs_rescan() {
            ROOT_CHECK_INTERVAL
        } else if self.is_failing || self.scanner.is_incomplete() || !self.notices.is_complete {
            SHORT_PERIOD
        } else {
            PERIOD
        }
    }

    /// Prepares a look that is wanted, and waits for nothing: whatever else has come by now is looked at together.
    fn prepare(&mut self, bundles: Option<Vec<String>>, then: Then) -> bool {
        self.note_wanted(bundles, then);
        while let Ok(wake) = self.events.try_recv() {
            match wake {
                Wake::Changed => {}
                Wake::Wanted(bundles, then) => self.note_wanted(bundles, then),
                Wake::Asked(asker) => answer(&asker),
                Wake::Unwatched(watch) => self.notices.forget(watch.as_ref()),
                Wake::Stop => return false,
            }
        }
        true
    }

    fn note_wanted(&mut self, bundles: Option<Vec<String>>, then: Then) {
        if let Some(bundles) = bundles {
            self.scanner.name_bundles(bundles);
        }
        self.then.push(then);
    }

    fn debounce(&mut self) -> bool {
        let until = clock::monotonic() + MAX_DEBOUNCE;
        loop {
            let left = until.saturating_duration_since(clock::monotonic());
            match self.events.recv_timeout(DEBOUNCE.min(left)) {
                Ok(Wake::Changed) => {}
                Ok(Wake::Wanted(bundles, then)) => return self.prepare(bundles, then),
                Ok(Wake::Asked(asker)) => answer(&asker),
                Ok(Wake::Unwatched(watch)) => self.notices.forget(watch.as_ref()),
                Ok(Wake::Stop) => return false,
                Err(_) => return true,
            }
        }
    }
}

/// The inotify watches: on `constituencies` and on each folder in it.
struct InotifyWatches {
    sender: Sender<Wake>,
    /// `None` as long as inotify is not available.
    watches: Option<Watches>,
    held: HashMap<FolderIdentity, WatchDescriptor>,
    is_complete: bool,
}

impl InotifyWatches {
    /// Starts inotify, unless that is done; says so when it begins to be missing.
    fn start(&mut self) {
        if self.watches.is_some() {
            return;
        }
        let sender = self.sender.clone();
        let started = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            std::thread::Builder::new().name("inotify".to_owned()).spawn(move || forward(inotify, &sender))?;
            Ok(watches)
        });
        match started {
            Ok(watches) => self.watches = Some(watches),
            Err(error) => {
                if std::mem::replace(&mut self.is_complete, false) {
                    tracing::warn!(
                        "inotify is not available ({error}): looking at the folders every second instead; raise the sysctl fs.inotify.max_user_instances"
                    );
                }
            }
        }
    }

    /// Whether the folder is there but is not watched, though it could be.
    fn misses(&self, folder: Option<&FolderIdentity>) -> bool {
        self.is_complete && self.watches.is_some() && folder.is_some_and(|folder| !self.held.contains_key(folder))
    }

    fn forget(&mut self, gone: Option<&WatchDescriptor>) {
        match gone {
            Some(gone) => self.held.retain(|_, watch| watch != gone),
            None => {
                self.held.clear();
                self.watches = None;
                self.is_complete = false;
            }
        }
    }

    /// Watches what is there now, and nothing else any more. Whether anything is watched that was not before.
    fn watch_all(&mut self, root: &Path, registry: &Registry) -> bool {
        self.start();
        let Some(watches) = &mut self.watches else { return false };
        let served = registry.served().map(|constituency| root.join(constituency.name.as_str()));
        let faulty = registry.faults().iter().map(|fault| root.join(&fault.subject));
        let wanted: BTreeMap<FolderIdentity, PathBuf> = std::iter::once(root.to_owned())
            .chain(served)
            .chain(faulty)
            .filter_map(|path| Some((identify(&path)?, path)))
            .collect();
        self.held.retain(|identity, watch| {
            let is_wanted = wanted.contains_key(identity);
            if !is_wanted {
                // A watch whose folder is gone is gone too.
                let _ = watches.remove(watch.clone());
            }
            is_wanted
        });
        let mut is_new = false;
        let mut failed = None;
        for (identity, path) in wanted {
            if self.held.contains_key(&identity) {
                continue;
            }
            match watches.add(&path, mask()) {
                Ok(watch) => {
                    self.held.insert(identity, watch);
                    is_new = true;
                }
                // Gone since, or no folder: whatever took its place is found by the scan.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => {
                    failed = Some((path, error));
                    break;
                }
            }
        }
        self.note(failed);
        is_new
    }

    /// Says when watching begins to be incomplete, and when that is over.
    fn note(&mut self, failed: Option<(PathBuf, std::io::Error)>) {
        let was_complete = std::mem::replace(&mut self.is_complete, failed.is_none());
        match failed {
            Some((path, error)) if was_complete => {
                let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::NOSPC) => "; raise the sysctl fs.inotify.max_user_watches",
                    _ => "",
                };
                tracing::warn!(
                    "{} cannot be watched ({error}): looking at the folders every second instead{hint}",
                    path.display()
                );
            }
            None if !was_complete => tracing::info!("all folders are watched again"),
            _ => {}
        }
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

fn answer(asker: &Sender<()>) {
    // Whoever asked may have gone.
    let _ = asker.send(());
}

fn identify(path: &Path) -> Option<FolderIdentity> {
    rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// Turns events into wakes until nobody listens any more.
fn forward(mut inotify: Inotify, sender: &Sender<Wake>) {
    let mut buffer = [0; 4096];
    while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
        let mut has_changed = false;
        for event in events {
            if event.mask.contains(EventMask::IGNORED) {
                if sender.send(Wake::Unwatched(Some(event.wd))).is_err() {
                    return;
                }
            } else {
                has_changed = true;
            }
        }
        if has_changed && sender.send(Wake::Changed).is_err() {
            return;
        }
    }
    let _ = sender.send(Wake::Unwatched(None));
}
