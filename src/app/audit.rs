//! The server's part of the audit log: writes what the page and the API change, and what other programs write to the
//! policies and to the list of denied phones.
//!
//! A command changes a policy's file too. The server sees the changed file, and later the command's line in the log. So a
//! change is held back for [`COMMAND_TIMEOUT`]. What the lines until then explain, phone by phone, is not logged again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::audit::{self, AuditAction, AuditActor, AuditEntry};
use crate::background::BackgroundThread;
use crate::clock;
use crate::constituency::denials::{self, DenialChanges};
use crate::constituency::{Constituency, ConstituencyName, Listing, MacAddress, POLICY_FILE, Registry};
use crate::wording::counted;

/// How long after the last change of a file a command may still log it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// A file that changes all the time is logged this often.
const MAX_WAIT: Duration = Duration::from_mins(1);
/// How often the held changes are looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// The clock of a command's line may be this much before the change was seen, in seconds.
const BEFORE_S: i64 = 60;

/// Writes entries, and keeps the failure for the page.
#[derive(Debug)]
pub(super) struct AuditWriter {
    state: PathBuf,
    failure: ArcSwapOption<String>,
}

impl AuditWriter {
    pub(super) fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), failure: ArcSwapOption::empty() }
    }

    /// Appends `entries`. The changes stay in force if that fails.
    pub(super) fn write(&self, entries: &[AuditEntry]) {
        if entries.is_empty() {
            return;
        }
        match audit::append(&self.state, entries) {
            Ok(()) => self.failure.store(None),
            Err(error) => {
                let file = self.state.join(audit::FILE);
                let message = format!(
                    "{} cannot be written, so changes are in force but not in the audit log: {error}",
                    file.display()
                );
                for entry in entries {
                    tracing::error!("not in the audit log: {entry}");
                }
                tracing::error!("{message}");
                self.failure.store(Some(message.into()));
            }
        }
    }

    /// Why the last entries are missing. `None` if they are not.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.load().as_deref().cloned()
    }
}

/// Sends what changed to the thread that logs it.
#[derive(Debug, Clone)]
pub(super) struct FileChanges(Sender<FileChange>);

/// A constituency before and after a change; `None` if it was not served.
type BeforeAndAfter = [Option<Arc<Constituency>>; 2];

#[derive(Debug)]
enum FileChange {
    Policy(ConstituencyName, BeforeAndAfter),
    Denials { denied: BTreeSet<MacAddress>, lifted: BTreeSet<MacAddress> },
}

impl FileChanges {
    /// Starts the thread. It ends when the handle and its clones are dropped.
    pub(super) fn start(writer: Arc<AuditWriter>) -> std::io::Result<(Self, BackgroundThread)> {
        let (sender, received) = channel();
        let thread = BackgroundThread::start("audit", move || follow(&received, &writer))?;
        Ok((Self(sender), thread))
    }

    /// Takes the constituencies that differ between two registries.
    pub(super) fn observe(&self, before: &Registry, after: &Registry) {
        let find = |registry: &Registry, name: &ConstituencyName| registry.by_folder(name.as_str()).cloned();
        let send = |name: &ConstituencyName, both| {
            // The thread ends only at the shutdown.
            let _ = self.0.send(FileChange::Policy(name.clone(), both));
        };
        for now in after.served() {
            match find(before, &now.name) {
                Some(old) if Arc::ptr_eq(&old, now) => {}
                old => send(&now.name, [old, Some(Arc::clone(now))]),
            }
        }
        for old in before.served() {
            if find(after, &old.name).is_none() {
                send(&old.name, [Some(Arc::clone(old)), None]);
            }
        }
    }

    pub(super) fn observe_denials(&self, changes: &DenialChanges) {
        if changes.denied.is_empty() && changes.lifted.is_empty() {
            return;
        }
        let macs = |phones: &denials::DeniedPhones| phones.keys().copied().collect();
        let _ = self.0.send(FileChange::Denials { denied: macs(&changes.denied), lifted: macs(&changes.lifted) });
    }
}

/// The changes that are held back, each since when, and until when.
#[derive(Debug, Default)]
struct HeldChanges {
    policies: BTreeMap<ConstituencyName, (HeldSince, BeforeAndAfter)>,
    denials: Option<(HeldSince, BTreeSet<MacAddress>, BTreeSet<MacAddress>)>,
}

#[derive(Debug, Clone, Copy)]
struct HeldSince {
    first: Instant,
    last: Instant,
    /// When the first came, in Unix seconds.
    time: i64,
}

impl HeldSince {
    fn now() -> Self {
        let now = clock::monotonic();
        Self { first: now, last: now, time: clock::unix_seconds(clock::now()) }
    }

    fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= COMMAND_TIMEOUT || now.duration_since(self.first) >= MAX_WAIT
    }
}

fn follow(received: &Receiver<FileChange>, writer: &AuditWriter) {
    let mut held = HeldChanges::default();
    loop {
        let is_last = match received.recv_timeout(PERIOD) {
            Ok(change) => {
                held.take(change);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        // At the shutdown, a command may still be about to log its change: what it explains is then logged twice.
        let due = held.take_due(clock::monotonic(), is_last);
        if let Some(earliest) = due.earliest() {
            writer.write(&due.entries(&Explained::read(&writer.state, earliest - BEFORE_S)));
        }
        if is_last {
            return;
        }
    }
}

impl HeldChanges {
    fn take(&mut self, change: FileChange) {
        let now = HeldSince::now();
        match change {
            FileChange::Policy(name, [before, after]) => {
                let (since, both) = self.policies.entry(name).or_insert_with(|| (now, [before, None]));
                since.last = now.last;
                both[1] = after;
            }
            FileChange::Denials { denied, lifted } => {
                let (since, all_denied, all_lifted) =
                    self.denials.get_or_insert_with(|| (now, BTreeSet::new(), BTreeSet::new()));
                since.last = now.last;
                // A phone that was denied and lifted again is as it was.
                for mac in denied {
                    if !all_lifted.remove(&mac) {
                        all_denied.insert(mac);
                    }
                }
                for mac in lifted {
                    if !all_denied.remove(&mac) {
                        all_lifted.insert(mac);
                    }
                }
            }
        }
    }

    /// The changes that are due at `now`, or all.
    fn take_due(&mut self, now: Instant, are_all_due: bool) -> Self {
        let is_due = |since: &HeldSince| are_all_due || since.is_due(now);
        let policies = self.policies.extract_if(.., |_, (since, _)| is_due(since)).collect();
        Self { policies, denials: self.denials.take_if(|(since, ..)| is_due(since)) }
    }

    fn earliest(&self) -> Option<i64> {
        let policies = self.policies.values().map(|(since, _)| since.time);
        policies.chain(self.denials.iter().map(|(since, ..)| since.time)).min()
    }

    fn entries(&self, explained: &Explained) -> Vec<AuditEntry> {
        let time = clock::unix_seconds(clock::now());
        let entry = || AuditEntry::new(time, AuditAction::FileChanged, AuditActor::file());
        let mut entries = Vec::new();
        for (name, (_, [before, after])) in &self.policies {
            let detail = match (before, after) {
                (Some(before), Some(after)) => policy_change(before, after, explained),
                (None, Some(_)) if explained.added.contains(name) => None,
                (None, Some(after)) => {
                    Some(format!("folder added, {}", counted(after.count_listed(Listing::Known), "known phone")))
                }
                (Some(_), None) => Some("folder removed".to_owned()),
                (None, None) => None,
            };
            entries.extend(detail.map(|detail| entry().of(name).detail(detail)));
        }
        if let Some((_, denied, lifted)) = &self.denials {
            let unexplained = |macs: &BTreeSet<MacAddress>, is_denied| {
                macs.iter().filter(|mac| !explained.has(None, **mac, is_denied)).count()
            };
            let (denied, lifted) = (unexplained(denied, true), unexplained(lifted, false));
            if denied + lifted > 0 {
                entries.push(entry().detail(format!("{}: {denied} denied, {lifted} lifted", denials::FILE)));
            }
        }
        entries
    }
}

/// What recent lines of the audit log explain.
#[derive(Debug, Default)]
struct Explained {
    /// Phones that became known or denied, by constituency. On the whole server: denied, or no longer.
    phones: BTreeMap<Option<ConstituencyName>, BTreeSet<(MacAddress, bool)>>,
    /// Constituencies that a command made.
    added: BTreeSet<ConstituencyName>,
    /// Constituencies with any line.
    touched: BTreeSet<ConstituencyName>,
}

impl Explained {
    /// The lines since `time`, in Unix seconds. Without a readable log, nothing is explained.
    fn read(state: &Path, time: i64) -> Self {
        let mut explained = Self::default();
        let entries = audit::read_since(state, &clock::rfc3339(time)).unwrap_or_default();
        for entry in entries.into_iter().filter(|entry| entry.action != AuditAction::FileChanged) {
            if let Some(name) = &entry.constituency {
                explained.touched.insert(name.clone());
                if entry.action == AuditAction::ConstituencyAdded {
                    explained.added.insert(name.clone());
                }
            }
            let is_denied = match entry.action {
                AuditAction::Denied => true,
                AuditAction::Allowed | AuditAction::Pinned | AuditAction::Undenied => false,
                _ => continue,
            };
            let macs = entry.all_macs().map(|mac| (mac, is_denied)).collect::<Vec<_>>();
            explained.phones.entry(entry.constituency).or_default().extend(macs);
        }
        explained
    }

    /// Whether a line says that `mac` became known or denied in `constituency`, or on the whole server.
    fn has(&self, constituency: Option<&ConstituencyName>, mac: MacAddress, is_denied: bool) -> bool {
        let phones = self.phones.get(&constituency.cloned());
        phones.is_some_and(|phones| phones.contains(&(mac, is_denied)))
    }
}

/// What changed in a policy and its lists: the files, and counts. `None` if nothing did, or the log explains all of it.
fn policy_change(before: &Constituency, after: &Constituency, explained: &Explained) -> Option<String> {
    let name = &after.name;
    let is_explained = |mac: MacAddress| {
        let is_denied = after.listing(mac).map(|listing| listing == Listing::Denied);
        is_denied.is_some_and(|is_denied| explained.has(Some(name), mac, is_denied))
    };
    let has_new_settings = !before.policy.has_settings_of(&after.policy);
    let files: Vec<&str> = before
        .changed_files(after)
        .into_iter()
        .filter(|(file, phones)| match phones.as_slice() {
            _ if *file == POLICY_FILE && has_new_settings => true,
            // A note or a pin; a command's line explains it.
            [] => !explained.touched.contains(name),
            phones => !phones.iter().all(|mac| is_explained(*mac)),
        })
        .map(|(file, _)| file)
        .collect();
    if files.is_empty() {
        return None;
    }
    let (mut added, mut removed, mut denied, mut undenied) = (0, 0, 0, 0);
    let mut count = |mac, was: Option<Listing>, is: Option<Listing>| {
        if was != is && !is_explained(mac) {
            added += usize::from(is == Some(Listing::Known));
            denied += usize::from(is == Some(Listing::Denied));
            removed += usize::from(was == Some(Listing::Known));
            undenied += usize::from(was == Some(Listing::Denied));
        }
    };
    for mac in after.listed_phones() {
        count(mac, before.listing(mac), after.listing(mac));
    }
    for mac in before.listed_phones().filter(|mac| after.listing(*mac).is_none()) {
        count(mac, before.listing(mac), None);
    }
    let settings = if has_new_settings { ", settings changed" } else { "" };
    let files = files.join(", ");
    Some(format!("{files}: {added} added, {removed} removed, {denied} denied, {undenied} undenied{settings}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::audit::AuditSource;
    use crate::constituency::scan::Scanner;
    use crate::state;

    /// The registry of one constituency `ote` with `policy`, and `<mac>.cfg` of `files`.
    fn registry(policy: &Value, files: &[&str]) -> Registry {
        let folder = tempfile::tempdir().unwrap();
        let ote = folder.path().join("ote");
        std::fs::create_dir(&ote).unwrap();
        state::write_private(&ote.join("constituency.json"), policy.to_string().as_bytes()).unwrap();
        for mac in files {
            state::write_private(&ote.join(format!("{mac}.cfg")), b"<a/>").unwrap();
        }
        Scanner::new(folder.path().to_owned(), vec!["polycom".to_owned()]).scan(clock::now())
    }

    const A: &str = "00005e005301";
    const B: &str = "00005e005302";
    const C: &str = "00005e005303";

    fn command(action: AuditAction, mac: Option<&str>) -> AuditEntry {
        let actor = AuditActor { by: AuditSource::Command, who: "root".to_owned(), ..AuditActor::file() };
        let entry = AuditEntry::new(clock::unix_seconds(clock::now()), action, actor).of(&"ote".parse().unwrap());
        match mac {
            Some(mac) => entry.phone(mac.parse().unwrap()),
            None => entry,
        }
    }

    /// The details that are logged for the change of `before` to `after`, if commands logged `lines`.
    fn logged(before: Option<&Registry>, after: Option<&Registry>, lines: &[AuditEntry]) -> Vec<String> {
        let state = tempfile::tempdir().unwrap();
        audit::append(state.path(), lines).unwrap();
        let writer = Arc::new(AuditWriter::new(state.path()));
        let (changes, thread) = FileChanges::start(Arc::clone(&writer)).unwrap();
        let empty = Registry::default();
        changes.observe(before.unwrap_or(&empty), after.unwrap_or(&empty));
        drop(changes);
        assert!(thread.wait(Duration::from_mins(1)));
        assert_eq!(writer.failure(), None);
        let is_file = |entry: &AuditEntry| entry.action == AuditAction::FileChanged;
        let entries = audit::read(state.path(), &is_file).unwrap().entries;
        assert!(entries.iter().all(|entry| entry.actor == AuditActor::file() && entry.constituency.is_some()));
        entries.into_iter().map(|entry| entry.detail).collect()
    }

    #[test]
    fn hand_edit_is_logged_with_counts_and_no_contents() {
        let before = registry(&json!({ "phones": { A: "secret place" }, "denied": [C] }), &[]);
        let after = registry(&json!({ "phones": { B: "secret place" }, "denied": [A], "plain_http": true }), &[]);
        let detail = logged(Some(&before), Some(&after), &[]);
        assert_eq!(detail, ["constituency.json: 1 added, 1 removed, 1 denied, 1 undenied, settings changed"]);
        let files = registry(&json!({ "phones": { A: "" }, "denied": [C] }), &[B]);
        let detail = logged(Some(&before), Some(&files), &[]);
        assert_eq!(detail, ["constituency.json, <mac>.cfg: 1 added, 0 removed, 0 denied, 0 undenied"]);
        assert_eq!(logged(None, Some(&before), &[]), ["folder added, 1 known phone"]);
        assert_eq!(logged(Some(&before), None, &[]), ["folder removed"]);
        assert_eq!(logged(Some(&before), Some(&before), &[]), [""; 0]);
    }

    #[test]
    fn change_that_a_command_logged_is_not_logged_as_a_hand_edit() {
        let before = registry(&json!({ "phones": { A: "" } }), &[]);
        let allowed = registry(&json!({ "phones": { A: "", B: "hall" } }), &[]);
        let line = command(AuditAction::Allowed, Some(B));
        assert_eq!(logged(Some(&before), Some(&allowed), std::slice::from_ref(&line)), [""; 0]);
        // A hand edit at the same time is.
        let both = registry(&json!({ "phones": { A: "", B: "hall", C: "" } }), &[]);
        let by_hand = "constituency.json: 1 added, 0 removed, 0 denied, 0 undenied";
        assert_eq!(logged(Some(&before), Some(&both), &[line]), [by_hand]);
        // A new note, by a command and by hand.
        let noted = registry(&json!({ "phones": { A: "kitchen" } }), &[]);
        assert_eq!(logged(Some(&before), Some(&noted), &[command(AuditAction::Allowed, Some(A))]), [""; 0]);
        let noted = logged(Some(&before), Some(&noted), &[]);
        assert_eq!(noted, ["constituency.json: 0 added, 0 removed, 0 denied, 0 undenied"]);
        assert_eq!(logged(None, Some(&before), &[command(AuditAction::ConstituencyAdded, None)]), [""; 0]);
    }

    #[test]
    fn log_that_cannot_be_written_is_a_failure_until_it_can() {
        let state = tempfile::tempdir().unwrap();
        let writer = AuditWriter::new(state.path());
        std::fs::create_dir(state.path().join(audit::FILE)).unwrap();
        writer.write(&[command(AuditAction::Denied, Some(A))]);
        assert!(writer.failure().unwrap().contains("audit.jsonl cannot be written, so changes are in force"));
        std::fs::remove_dir(state.path().join(audit::FILE)).unwrap();
        writer.write(&[command(AuditAction::Denied, Some(A))]);
        assert_eq!(writer.failure(), None);
    }
}
