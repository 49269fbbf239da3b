//! The watcher: scans `constituencies` whenever something changes there, and at least every ten seconds.
//!
//! inotify only triggers a scan; the scan reads the actual state. So a lost event delays a change by seconds and never
//! loses it. If all events are about files in the folders of known constituencies, only these folders are scanned.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use rustix::io::Errno;

use super::ConstituencyName;
use super::registry::Registry;
use super::scan::Scanner;
use crate::background::{Heartbeat, HeartbeatMonitor};
use crate::clock;
use crate::files::{FileIdentity, identity};

#[cfg(test)]
mod tests;

/// The interval of scans while inotify works.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);
/// The interval of scans without inotify, or after an incomplete scan.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How often to check that the path of `constituencies` still leads to the same folder. inotify reports no event in the
/// folder when a symlink on the way to it is swapped, or a parent folder is renamed.
const ROOT_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// A deployment touches many files: scan once, after a pause of this length.
const DEBOUNCE: Duration = Duration::from_millis(30);
/// The upper limit of debouncing, so that steady changes do not postpone the scan without end.
const MAX_DEBOUNCE: Duration = Duration::from_millis(300);

/// How long a callback waits for files that are being written.
const MAX_PENDING: Duration = Duration::from_secs(1);

/// Requests scans from the watcher thread, and stops it.
#[derive(Debug, Clone)]
pub struct WatcherHandle {
    wakes: Sender<Wake>,
    heartbeat: HeartbeatMonitor,
}

enum Wake {
    Changed(Changed),
    /// Scan now, with the trust bundles of these names if there are new ones, and run the callback afterwards.
    ScanRequested(Option<Vec<String>>, Callback),
    /// The kernel removed this watch, because its folder is gone; `None`: all watches are lost.
    Unwatched(Option<WatchDescriptor>),
    Stop,
}

/// What changed.
enum Changed {
    /// Files directly in the folders of these watches.
    In(HashSet<WatchDescriptor>),
    /// Perhaps anything.
    Anything,
}

/// Runs after a scan.
type Callback = Box<dyn FnOnce() + Send>;

impl WatcherHandle {
    /// Requests a scan now, with the trust bundles of these names. `then` runs after the scan, on the watcher thread.
    /// At shutdown it may be dropped without being called.
    pub fn rescan_with(&self, bundles: Vec<String>, then: impl FnOnce() + Send + 'static) {
        // The send fails if the thread has ended.
        let _ = self.wakes.send(Wake::ScanRequested(Some(bundles), Box::new(then)));
    }

    /// Requests a scan now, like [`Self::rescan_with`] with the same bundles. Requests that arrive during a scan share
    /// the next one.
    pub fn rescan(&self, then: impl FnOnce() + Send + 'static) {
        let _ = self.wakes.send(Wake::ScanRequested(None, Box::new(then)));
    }

    /// The sign of life that the thread gives between scans.
    #[must_use]
    pub fn heartbeat(&self) -> HeartbeatMonitor {
        self.heartbeat.clone()
    }

    /// Stops the thread.
    pub fn stop(&self) {
        let _ = self.wakes.send(Wake::Stop);
    }
}

/// Starts the watcher thread. It calls `publish` with each registry that differs from the one before. `first` is the
/// registry that the caller has already published.
///
/// # Errors
/// If the system cannot create a thread.
pub fn spawn_watcher(
    scanner: Scanner,
    first: Registry,
    mut publish: impl FnMut(Registry) + Send + 'static,
) -> std::io::Result<WatcherHandle> {
    let (sender, events) = channel();
    let (heartbeat, monitor) = Heartbeat::start();
    let handle = WatcherHandle { wakes: sender.clone(), heartbeat: monitor };
    let inotify =
        InotifyWatches { sender, watches: None, held: HashMap::new(), names: HashMap::new(), is_complete: true };
    let last_scan = clock::monotonic();
    let mut watcher = Watcher {
        scanner,
        current: first,
        events,
        heartbeat,
        inotify,
        root: None,
        needs_rescan: false,
        last_scan,
        only: None,
        is_failing: false,
        callbacks: Vec::new(),
    };
    std::thread::Builder::new().name("constituencies".to_owned()).spawn(move || {
        loop {
            // Scan before the first wait too: something may have changed before the watches existed.
            let scanned = catch_unwind(AssertUnwindSafe(|| watcher.scan(&mut publish)));
            watcher.note_failure(scanned.is_err());
            for then in watcher.due_callbacks() {
                then();
            }
            if !watcher.wait() {
                return;
            }
        }
    })?;
    Ok(handle)
}

/// The state of the watcher thread.
struct Watcher {
    scanner: Scanner,
    current: Registry,
    events: Receiver<Wake>,
    heartbeat: Heartbeat,
    inotify: InotifyWatches,
    root: Option<FileIdentity>,
    /// Whether `constituencies` may have been replaced during the last scan, so that another one is due.
    needs_rescan: bool,
    /// The last scan of everything.
    last_scan: Instant,
    /// The constituencies to scan next; `None`: everything.
    only: Option<BTreeSet<ConstituencyName>>,
    /// Whether the last scan panicked.
    is_failing: bool,
    /// Callbacks that run after the next scan that is complete, or at the latest after a scan at this time.
    callbacks: Vec<(Instant, Callback)>,
}

impl Watcher {
    fn scan(&mut self, publish: &mut impl FnMut(Registry)) {
        if let Some(names) = self.only.take()
            && let Some(found) = self.scanner.scan_only(&names, clock::now())
        {
            return self.publish(found, publish);
        }
        self.last_scan = clock::monotonic();
        let root = identify(self.scanner.path());
        // Watch first, then scan, so that a change in between triggers another scan.
        self.inotify.watch_all(self.scanner.path(), &self.current);
        let mut found = self.scanner.scan(clock::now());
        if !found.is_same_as(&self.current) {
            if self.inotify.watch_all(self.scanner.path(), &found) {
                // A new folder may have been filled before it was watched: scan again.
                found = self.scanner.scan(clock::now());
            }
            self.publish(found, publish);
        }
        // If `constituencies` was replaced or missing during the scan, the scan may have seen it empty. It may also be
        // the same folder again, but without its watch.
        self.root = identify(self.scanner.path());
        self.needs_rescan = self.root != root || self.inotify.misses(self.root.as_ref());
    }

    fn publish(&mut self, found: Registry, publish: &mut impl FnMut(Registry)) {
        if !found.is_same_as(&self.current) {
            // Replace the current registry only after publishing. If `publish` panics, the next scan finds the
            // difference again.
            let snapshot = found.snapshot();
            publish(found);
            self.current = snapshot;
        }
    }

    /// Logs when scans begin to panic, and when they work again. Meanwhile the last registry stays in use.
    fn note_failure(&mut self, is_failing: bool) {
        match (std::mem::replace(&mut self.is_failing, is_failing), is_failing) {
            (false, true) => tracing::error!(
                "looking at the folders failed by a defect of provost (a panic): what is served stays as it was, and it is tried again every second"
            ),
            (true, false) => tracing::info!("the folders are followed again"),
            _ => {}
        }
    }

    /// Waits until a scan is due; `false` on shutdown.
    fn wait(&mut self) -> bool {
        loop {
            self.heartbeat.beat();
            match self.events.recv_timeout(ROOT_CHECK_INTERVAL) {
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Wake::Changed(changed)) => return self.debounce(changed),
                Ok(Wake::ScanRequested(bundles, then)) => return self.collect_requests(bundles, then),
                Ok(Wake::Unwatched(watch)) => self.inotify.forget(watch.as_ref()),
                Err(RecvTimeoutError::Timeout) => {
                    let is_time = clock::monotonic().duration_since(self.last_scan) >= self.scan_interval();
                    if is_time || self.needs_rescan || identify(self.scanner.path()) != self.root {
                        return true;
                    }
                    if !self.scanner.pending().is_empty() {
                        self.only = Some(self.scanner.pending().clone());
                        return true;
                    }
                }
            }
        }
    }

    fn scan_interval(&self) -> Duration {
        if self.scanner.needs_rescan() {
            ROOT_CHECK_INTERVAL
        } else if self.is_failing || self.scanner.is_incomplete() || !self.inotify.is_complete {
            RETRY_INTERVAL
        } else {
            SCAN_INTERVAL
        }
    }

    /// Collects all pending requests for one scan, without waiting; `false` on shutdown.
    fn collect_requests(&mut self, bundles: Option<Vec<String>>, then: Callback) -> bool {
        self.note_request(bundles, then);
        while let Ok(wake) = self.events.try_recv() {
            match wake {
                Wake::Changed(_) => {}
                Wake::ScanRequested(bundles, then) => self.note_request(bundles, then),
                Wake::Unwatched(watch) => self.inotify.forget(watch.as_ref()),
                Wake::Stop => return false,
            }
        }
        true
    }

    fn note_request(&mut self, bundles: Option<Vec<String>>, then: Callback) {
        if let Some(bundles) = bundles {
            self.scanner.name_bundles(bundles);
        }
        self.callbacks.push((clock::monotonic() + MAX_PENDING, then));
    }

    /// The callbacks to run now. A file that is being written delays them only for a time.
    fn due_callbacks(&mut self) -> Vec<Callback> {
        let (is_complete, now) = (self.scanner.pending().is_empty(), clock::monotonic());
        let all = std::mem::take(&mut self.callbacks);
        let (due, waiting): (Vec<_>, Vec<_>) = all.into_iter().partition(|(latest, _)| is_complete || *latest <= now);
        self.callbacks = waiting;
        due.into_iter().map(|(_, then)| then).collect()
    }

    /// Collects the changes of a short time; `false` on shutdown.
    fn debounce(&mut self, mut all: Changed) -> bool {
        let until = clock::monotonic() + MAX_DEBOUNCE;
        loop {
            let left = until.saturating_duration_since(clock::monotonic());
            match self.events.recv_timeout(DEBOUNCE.min(left)) {
                Ok(Wake::Changed(more)) => all.add(more),
                Ok(Wake::ScanRequested(bundles, then)) => return self.collect_requests(bundles, then),
                Ok(Wake::Unwatched(watch)) => {
                    self.inotify.forget(watch.as_ref());
                    all = Changed::Anything;
                }
                Ok(Wake::Stop) => return false,
                Err(_) => {
                    self.only = self.named(&all);
                    return true;
                }
            }
        }
    }

    /// The constituencies whose files changed, or may be incomplete. `None` if something else may have changed, or if a scan of everything is
    /// due: continuous changes do not postpone it.
    fn named(&self, all: &Changed) -> Option<BTreeSet<ConstituencyName>> {
        let is_due = clock::monotonic().duration_since(self.last_scan) >= self.scan_interval();
        match all {
            Changed::In(folders) if !is_due && !self.is_failing && !self.needs_rescan => {
                let changed = folders.iter().map(|watch| self.inotify.names.get(watch).cloned());
                changed.chain(self.scanner.pending().iter().cloned().map(Some)).collect()
            }
            _ => None,
        }
    }
}

impl Changed {
    fn add(&mut self, more: Self) {
        match (self, more) {
            (Self::In(folders), Self::In(more)) => folders.extend(more),
            (all, _) => *all = Self::Anything,
        }
    }
}

/// The inotify watches: one on `constituencies`, and one on each folder in it.
struct InotifyWatches {
    sender: Sender<Wake>,
    /// `None` while inotify is not available.
    watches: Option<Watches>,
    held: HashMap<FileIdentity, WatchDescriptor>,
    /// The constituencies of the watched folders.
    names: HashMap<WatchDescriptor, ConstituencyName>,
    is_complete: bool,
}

impl InotifyWatches {
    /// Starts inotify if it is not running. Logs once if that fails.
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

    /// Whether `folder` exists and is not watched, although inotify works.
    fn misses(&self, folder: Option<&FileIdentity>) -> bool {
        self.is_complete && self.watches.is_some() && folder.is_some_and(|folder| !self.held.contains_key(folder))
    }

    fn forget(&mut self, gone: Option<&WatchDescriptor>) {
        match gone {
            Some(gone) => {
                self.held.retain(|_, watch| watch != gone);
                self.names.remove(gone);
            }
            None => {
                self.held.clear();
                self.names.clear();
                self.watches = None;
                self.is_complete = false;
            }
        }
    }

    /// Watches exactly the folders of `registry` that exist now. Returns whether there is a new watch.
    fn watch_all(&mut self, root: &Path, registry: &Registry) -> bool {
        self.start();
        let Some(watches) = &mut self.watches else { return false };
        let served = registry.served().map(|constituency| root.join(constituency.name.as_str()));
        let faulty = registry.faults().iter().map(|fault| root.join(&fault.subject));
        let wanted: BTreeMap<FileIdentity, PathBuf> = std::iter::once(root.to_owned())
            .chain(served)
            .chain(faulty)
            .filter_map(|path| Some((identify(&path)?, path)))
            .collect();
        // A folder may have been renamed: its watch stays, its name does not.
        self.names.clear();
        self.held.retain(|identity, watch| {
            let is_expected = wanted.contains_key(identity);
            if !is_expected {
                // This fails if the folder is gone, because the kernel has removed the watch.
                let _ = watches.remove(watch.clone());
            }
            is_expected
        });
        let mut is_new = false;
        let mut failed = None;
        for (identity, path) in wanted {
            let name = path.strip_prefix(root).ok().and_then(|name| name.to_str()?.parse().ok());
            if let Some(watch) = self.held.get(&identity) {
                self.names.extend(name.map(|name| (watch.clone(), name)));
                continue;
            }
            match watches.add(&path, mask()) {
                Ok(watch) => {
                    self.names.extend(name.map(|name| (watch.clone(), name)));
                    self.held.insert(identity, watch);
                    is_new = true;
                }
                // Removed since, or replaced by a file: the scan finds what is there now.
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

    /// Logs when not all folders can be watched, and when all are watched again.
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
    // Without OPEN and ACCESS: serving a file must not trigger a scan.
    WatchMask::ATTRIB
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

fn identify(path: &Path) -> Option<FileIdentity> {
    rustix::fs::stat(path).ok().map(|stat| identity(&stat))
}

/// Forwards inotify events as wakes, until the watcher thread ends or reading fails.
fn forward(mut inotify: Inotify, sender: &Sender<Wake>) {
    let mut buffer = [0; 4096];
    while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
        let mut changed: Option<Changed> = None;
        for event in events {
            if event.mask.contains(EventMask::IGNORED) {
                if sender.send(Wake::Unwatched(Some(event.wd))).is_err() {
                    return;
                }
            } else {
                // Without a name, the event is about the watched folder itself, or events were lost.
                let one = match event.name {
                    Some(_) => Changed::In(HashSet::from([event.wd])),
                    None => Changed::Anything,
                };
                match &mut changed {
                    Some(all) => all.add(one),
                    None => changed = Some(one),
                }
            }
        }
        if let Some(changed) = changed
            && sender.send(Wake::Changed(changed)).is_err()
        {
            return;
        }
    }
    let _ = sender.send(Wake::Unwatched(None));
}
