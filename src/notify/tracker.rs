//! Decides when the command runs, and keeps what it has reported. Time is an argument.
//!
//! A change is a headline that appears, changes its kind or goes away; a text alone that changes, such as a count, is
//! none. Changes are reported together once none has come for [`SETTLED_AFTER`], at the latest [`MAX_WAIT`] after the
//! first. So a headline that comes and goes within that time is not reported. The pause between two runs doubles while
//! they follow one another, up to [`MAX_PAUSE`]: a flapping headline cannot send a message each minute for days. A run
//! that fails is repeated after the same pauses.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::NotifyHeadline;
use crate::clock::rfc3339;
use crate::state;

/// The file in the state directory with the headlines that were reported.
pub const FILE: &str = "notified.json";
/// The version of the JSON for the command, and of the file.
const VERSION: u32 = 1;
/// The server reads its certificates and folders before this time.
const START: Duration = Duration::from_secs(5);
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const MAX_WAIT: Duration = Duration::from_secs(30);
const MIN_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_mins(10);
/// After this time without a run, the next pause is the shortest again.
const CALM_AFTER: Duration = Duration::from_mins(30);
/// How long a headline that needs uptime outlives a restart.
const UPTIME: Duration = Duration::from_hours(48);
/// How many headlines and changes the JSON lists. A mail of 10,000 lines helps less.
const MAX_LISTED: usize = 100;
/// The longest text, in characters.
const MAX_TEXT: usize = 1000;

/// Headlines by key.
type Headlines = BTreeMap<String, NotifyHeadline>;

/// The headlines that were reported, those that are seen, and when the next run is due.
#[derive(Debug)]
pub struct Tracker {
    file: PathBuf,
    started: Instant,
    /// What was reported last.
    reported: Headlines,
    /// Reported headlines of the last process that this one cannot see yet.
    held: BTreeSet<String>,
    /// The headlines of the last observation.
    current: Headlines,
    /// When `current` last changed, and first differed from `reported`.
    changed: Instant,
    pending: Option<Instant>,
    last_run: Option<Instant>,
    pause: Duration,
}

/// What a run reports.
#[derive(Debug)]
pub struct Report {
    headlines: Headlines,
    changes: Vec<HeadlineChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct HeadlineChange {
    /// `appeared`, `changed` or `gone`.
    change: &'static str,
    /// The kind before a `changed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_kind: Option<String>,
    #[serde(flatten)]
    headline: NotifyHeadline,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredReport {
    version: u32,
    headlines: Vec<NotifyHeadline>,
}

/// The JSON on the command's standard input.
#[derive(Debug, Serialize)]
struct Message<'a> {
    version: u32,
    host: &'a str,
    domain: &'a str,
    time: String,
    headlines: Vec<&'a NotifyHeadline>,
    changes: Vec<&'a HeadlineChange>,
    /// How many more there are than the lists have.
    more_headlines: usize,
    more_changes: usize,
}

impl Tracker {
    /// A tracker that knows what the last process reported, as the state directory `state` has it. If its file cannot be
    /// read, all headlines are reported anew, and the error is returned too.
    #[must_use]
    pub fn open(state: &Path, now: Instant) -> (Self, Option<String>) {
        let file = state.join(FILE);
        let (reported, unread) = match read(&file) {
            Ok(reported) => (reported, None),
            Err(error) => (Headlines::new(), Some(format!("{} cannot be read: {error}", file.display()))),
        };
        let held = reported.values().filter(|it| it.needs_uptime).map(|it| it.key.clone()).collect();
        let tracker = Self {
            file,
            started: now,
            held,
            current: reported.clone(),
            reported,
            changed: now,
            pending: None,
            last_run: None,
            pause: MIN_PAUSE,
        };
        (tracker, unread)
    }

    /// Takes the headlines at `now`; their `since` is set here. `time` is the same moment in Unix seconds. Returns the
    /// report if a run is due.
    pub fn observe(&mut self, now: Instant, time: i64, headlines: Vec<NotifyHeadline>) -> Option<Report> {
        let mut seen = Headlines::new();
        for mut headline in headlines {
            let before = self.current.get(&headline.key).or_else(|| self.reported.get(&headline.key));
            headline.since = before.map_or_else(|| rfc3339(time), |before| before.since.clone());
            headline.text = harmless(&headline.text);
            headline.object = harmless(&headline.object);
            seen.entry(headline.key.clone()).or_insert(headline);
        }
        self.held.retain(|key| !seen.contains_key(key));
        if now.duration_since(self.started) >= UPTIME {
            self.held.clear();
        }
        let held = self.held.iter().filter_map(|key| self.reported.get(key));
        seen.extend(held.map(|headline| (headline.key.clone(), headline.clone())));
        if !have_same_kinds(&seen, &self.current) {
            self.changed = now;
        }
        self.current = seen;
        if have_same_kinds(&self.current, &self.reported) {
            self.pending = None;
            return None;
        }
        let pending = *self.pending.get_or_insert(now);
        let is_settled = now.duration_since(self.changed) >= SETTLED_AFTER || now.duration_since(pending) >= MAX_WAIT;
        let is_paced = self.last_run.is_none_or(|last| now.duration_since(last) >= self.pause);
        let has_started = now.duration_since(self.started) >= START;
        (is_settled && is_paced && has_started)
            .then(|| Report { changes: self.changes(), headlines: self.current.clone() })
    }

    /// What differs from the last report.
    fn changes(&self) -> Vec<HeadlineChange> {
        let of = |headline: &NotifyHeadline, change, previous_kind| HeadlineChange {
            change,
            previous_kind,
            headline: headline.clone(),
        };
        let mut changes = Vec::new();
        for (key, headline) in &self.current {
            match self.reported.get(key) {
                None => changes.push(of(headline, "appeared", None)),
                Some(before) if before.kind != headline.kind => {
                    changes.push(of(headline, "changed", Some(before.kind.clone())));
                }
                Some(_) => {}
            }
        }
        let gone = self.reported.iter().filter(|(key, _)| !self.current.contains_key(*key));
        changes.extend(gone.map(|(_, headline)| of(headline, "gone", None)));
        changes
    }

    /// Records that a run ended at `now`. If it failed, the same changes are reported again.
    ///
    /// # Errors
    /// If the state file cannot be written: after a restart, the report may be repeated.
    pub fn ended(&mut self, now: Instant, report: Report, is_delivered: bool) -> io::Result<()> {
        let is_calm = self.last_run.is_none_or(|last| now.duration_since(last) >= CALM_AFTER);
        self.pause = if is_calm { MIN_PAUSE } else { (self.pause * 2).min(MAX_PAUSE) };
        self.last_run = Some(now);
        if !is_delivered {
            return Ok(());
        }
        self.pending = None;
        self.reported = report.headlines;
        let stored = StoredReport { version: VERSION, headlines: self.reported.values().cloned().collect() };
        let mut text = serde_json::to_vec_pretty(&stored)?;
        text.push(b'\n');
        state::write_private(&self.file, &text)
    }
}

impl Report {
    /// The JSON for the command, at `time` in Unix seconds.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn message(&self, host: &str, domain: &str, time: i64) -> serde_json::Result<Vec<u8>> {
        let message = Message {
            version: VERSION,
            host,
            domain,
            time: rfc3339(time),
            headlines: self.headlines.values().take(MAX_LISTED).collect(),
            changes: self.changes.iter().take(MAX_LISTED).collect(),
            more_headlines: self.headlines.len().saturating_sub(MAX_LISTED),
            more_changes: self.changes.len().saturating_sub(MAX_LISTED),
        };
        let mut text = serde_json::to_vec(&message)?;
        text.push(b'\n');
        Ok(text)
    }
}

fn have_same_kinds(one: &Headlines, other: &Headlines) -> bool {
    let kinds =
        |headlines: &Headlines| headlines.values().map(|it| (it.key.clone(), it.kind.clone())).collect::<Vec<_>>();
    one.len() == other.len() && kinds(one) == kinds(other)
}

/// A text without control characters, which is not too long for a subject or a chat message.
fn harmless(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

fn read(file: &Path) -> io::Result<Headlines> {
    let text = match state::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Headlines::new()),
        text => text?,
    };
    let stored: StoredReport = serde_json::from_slice(&text)?;
    if stored.version != VERSION {
        return Err(io::Error::other(format!("unknown version {}", stored.version)));
    }
    Ok(stored.headlines.into_iter().map(|headline| (headline.key.clone(), headline)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const TIME: i64 = 1_795_552_267;

    /// A tracker, its state directory and a clock that only the test moves.
    struct Bench {
        state: tempfile::TempDir,
        tracker: Tracker,
        start: Instant,
        passed: Duration,
        runs: Vec<Vec<String>>,
        is_failing: bool,
    }

    fn headline(key: &str, kind: &str) -> NotifyHeadline {
        NotifyHeadline {
            key: key.to_owned(),
            kind: kind.to_owned(),
            object: key.to_owned(),
            level: "error".to_owned(),
            text: format!("{key} is {kind}"),
            since: String::new(),
            needs_uptime: kind == "silent",
        }
    }

    impl Bench {
        fn new() -> Self {
            let (state, start) = (tempfile::tempdir().unwrap(), crate::clock::monotonic());
            let tracker = Tracker::open(state.path(), start).0;
            Self { state, tracker, start, passed: Duration::ZERO, runs: Vec::new(), is_failing: false }
        }

        fn restart(&mut self) {
            let (tracker, unread) = Tracker::open(self.state.path(), self.start + self.passed);
            assert_eq!(unread, None);
            self.tracker = tracker;
        }

        /// Shows `headlines`, written `key kind`, for `seconds`, and looks each second.
        fn show(&mut self, headlines: &[&str], seconds: u64) {
            for _ in 0..seconds {
                self.passed += Duration::from_secs(1);
                let (now, time) = (self.start + self.passed, TIME + i64::try_from(self.passed.as_secs()).unwrap());
                let split = headlines.iter().map(|it| it.split_once(' ').unwrap());
                let headlines = split.map(|(key, kind)| headline(key, kind)).collect();
                let Some(report) = self.tracker.observe(now, time, headlines) else { continue };
                let message: Value = serde_json::from_slice(&report.message("host", "domain", time).unwrap()).unwrap();
                let changes = message["changes"].as_array().unwrap().iter().map(|change| {
                    format!("{} {}", change["change"].as_str().unwrap(), change["key"].as_str().unwrap())
                });
                self.runs.push(changes.collect());
                self.tracker.ended(now, report, !self.is_failing).unwrap();
            }
        }
    }

    #[test]
    fn headline_is_reported_once_when_it_appears_changes_and_goes() {
        let mut bench = Bench::new();
        bench.show(&["rsa ends_soon"], 600);
        assert_eq!(bench.runs, [["appeared rsa"]]);
        bench.show(&["rsa expired"], 600);
        bench.show(&[], 600);
        assert_eq!(bench.runs, [["appeared rsa"], ["changed rsa"], ["gone rsa"]]);
    }

    #[test]
    fn burst_and_brief_headline_are_one_run_or_none() {
        let mut bench = Bench::new();
        bench.show(&[], 60);
        bench.show(&["a x"], 1);
        bench.show(&[], 60);
        assert!(bench.runs.is_empty(), "{:?}", bench.runs);
        bench.show(&["a x"], 1);
        bench.show(&["a x", "b x"], 1);
        bench.show(&["a x", "b x", "c x"], 60);
        assert_eq!(bench.runs, [["appeared a", "appeared b", "appeared c"]]);
    }

    #[test]
    fn flapping_headline_does_not_run_the_command_more_than_every_ten_minutes() {
        let mut bench = Bench::new();
        // A day, with a change every 20 seconds.
        for _ in 0..2160 {
            bench.show(&["a x"], 20);
            bench.show(&[], 20);
        }
        assert!((100..200).contains(&bench.runs.len()), "{}", bench.runs.len());
        // After calm, the next change is reported soon.
        bench.show(&[], 4000);
        let before = bench.runs.len();
        bench.show(&["b x"], 5);
        assert_eq!(bench.runs.len(), before + 1);
    }

    #[test]
    fn rapid_flapping_is_reported_as_it_is_after_half_a_minute() {
        let mut bench = Bench::new();
        for _ in 0..30 {
            bench.show(&["a x", "b x"], 1);
            bench.show(&["a x"], 1);
        }
        assert!(!bench.runs.is_empty() && bench.runs[0].contains(&"appeared a".to_owned()), "{:?}", bench.runs);
    }

    #[test]
    fn restart_repeats_nothing_and_keeps_since() {
        let mut bench = Bench::new();
        bench.show(&["a x"], 60);
        let since = bench.tracker.current["a"].since.clone();
        bench.restart();
        bench.show(&["a x"], 600);
        assert_eq!(bench.runs, [["appeared a"]]);
        assert_eq!(bench.tracker.current["a"].since, since);
        bench.restart();
        bench.show(&["b x"], 60);
        assert_eq!(bench.runs, [vec!["appeared a"], vec!["appeared b", "gone a"]]);
    }

    #[test]
    fn silence_that_a_restart_hides_is_not_reported_as_gone() {
        let mut bench = Bench::new();
        bench.show(&["ote silent"], 60);
        bench.restart();
        bench.show(&[], 6 * 3600);
        bench.show(&["ote silent"], 60);
        assert_eq!(bench.runs, [["appeared ote"]]);
        // Seen again since the start, its end is reported.
        bench.show(&[], 60);
        assert_eq!(bench.runs, [["appeared ote"], ["gone ote"]]);
    }

    #[test]
    fn silence_hidden_for_two_days_is_gone() {
        let mut bench = Bench::new();
        bench.show(&["ote silent"], 60);
        bench.restart();
        bench.show(&[], 48 * 3600 + 60);
        assert_eq!(bench.runs, [["appeared ote"], ["gone ote"]]);
    }

    #[test]
    fn failed_run_is_repeated_with_growing_pauses() {
        let mut bench = Bench { is_failing: true, ..Bench::new() };
        bench.show(&["a x"], 3600);
        assert!((7..15).contains(&bench.runs.len()), "{}", bench.runs.len());
        assert!(bench.runs.iter().all(|run| run == &["appeared a"]));
        bench.is_failing = false;
        let before = bench.runs.len();
        bench.show(&["a x"], 3600);
        assert_eq!(bench.runs.len(), before + 1);
        assert!(state::read_text(&bench.state.path().join(FILE)).unwrap().contains("a is x"));
    }

    #[test]
    fn message_is_bounded_and_has_no_control_characters() {
        let mut bench = Bench::new();
        let many = (0..5000).map(|number| NotifyHeadline {
            text: format!("\u{1b}[2J{}", "long ".repeat(10_000)),
            ..headline(&format!("{number:04}"), "x")
        });
        let many: Vec<NotifyHeadline> = many.collect();
        let mut report = None;
        for second in 0..10 {
            report = report.or(bench.tracker.observe(bench.start + Duration::from_secs(second), TIME, many.clone()));
        }
        let message = report.unwrap().message("host", "domain", TIME).unwrap();
        assert!(message.len() < 300_000, "{}", message.len());
        let message: Value = serde_json::from_slice(&message).unwrap();
        assert_eq!((&message["more_headlines"], &message["version"]), (&4900.into(), &1.into()));
        assert_eq!(message["headlines"][0]["since"], rfc3339(TIME));
        assert!(!message.to_string().contains("\\u001b"));
    }

    #[test]
    fn damaged_file_is_reported_and_everything_is_new() {
        let bench = Bench::new();
        state::write_private(&bench.state.path().join(FILE), b"{").unwrap();
        let (tracker, unread) = Tracker::open(bench.state.path(), bench.start);
        assert!(unread.unwrap().contains("notified.json cannot be read") && tracker.reported.is_empty());
    }
}
