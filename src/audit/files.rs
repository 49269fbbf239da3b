//! The files of the audit log: `audit.jsonl`, and `audit.jsonl.1` (newer) to `audit.jsonl.5` (older).
//!
//! The server and commands append to them, so each write holds a lock on the state directory. Root writes as the owner of
//! the state directory, and follows no link.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;

use super::AuditEntry;
use crate::state::FolderHandle;

/// The name of the current file.
pub const FILE: &str = "audit.jsonl";
/// A file of at least this size is rotated, in bytes.
const MAX_BYTES: u64 = 10 << 20;
/// How many rotated files are kept.
const KEPT: usize = 5;
/// The longest line that is read, in bytes. A line of provost is far shorter.
const MAX_LINE: u64 = 16 << 10;
/// How much [`read_last`] reads from the end of each file, and [`read_since`] at first, in bytes.
const TAIL: u64 = 256 << 10;

/// What was read.
#[derive(Debug, Default, Serialize)]
pub struct AuditReading {
    /// The oldest first.
    pub entries: Vec<AuditEntry>,
    /// The files with lines that are not entries, and how many: the end of a line that a power failure cut, or damage.
    pub damaged: Vec<(String, usize)>,
}

/// Appends `entries` to the audit log in the state directory `state`, and syncs it.
///
/// # Errors
/// If they cannot be written whole. The state directory is not created: it would belong to the wrong user.
pub fn append(state: &Path, entries: &[AuditEntry]) -> io::Result<()> {
    append_within(state, entries, MAX_BYTES)
}

fn append_within(state: &Path, entries: &[AuditEntry], max_bytes: u64) -> io::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, entry)?;
        text.push(b'\n');
    }
    let folder = FolderHandle::open(state)?;
    let _lock = folder.lock(state, &|_| {}).map_err(io::Error::other)?;
    let mut file = folder.open_to_append(FILE)?;
    if file.metadata()?.len() >= max_bytes {
        rotate(&folder)?;
        file = folder.open_to_append(FILE)?;
    }
    // A power failure may have cut the last line.
    if !ends_with_newline(&mut file)? {
        text.insert(0, b'\n');
    }
    file.write_all(&text)?;
    file.sync_data()
}

fn rotate(folder: &FolderHandle) -> io::Result<()> {
    for number in (1..KEPT).rev() {
        match folder.rename(rotated(number), rotated(number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    folder.rename(FILE, rotated(1))?;
    folder.sync()
}

fn rotated(number: usize) -> String {
    format!("{FILE}.{number}")
}

fn ends_with_newline(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// The entries of all files in the state directory `state` that `is_wanted`.
///
/// # Errors
/// If a file cannot be read. A file that is missing is none.
pub fn read(state: &Path, is_wanted: &dyn Fn(&AuditEntry) -> bool) -> io::Result<AuditReading> {
    let mut reading = AuditReading::default();
    let Some(folder) = folder(state)? else { return Ok(reading) };
    for name in (1..=KEPT).rev().map(rotated).chain([FILE.to_owned()]) {
        let Some(file) = open(&folder, &name)? else { continue };
        let mut entries = Vec::new();
        let damaged = read_lines(file, |entry| {
            if is_wanted(&entry) {
                entries.push(entry);
            }
        })?;
        reading.entries.extend(entries);
        if damaged > 0 {
            reading.damaged.push((name, damaged));
        }
    }
    Ok(reading)
}

/// The last `count` entries that `is_wanted`, of those near the end of the newest two files: the cost is bounded.
///
/// # Errors
/// If a file cannot be read. A file that is missing is none.
pub fn read_last(state: &Path, count: usize, is_wanted: &dyn Fn(&AuditEntry) -> bool) -> io::Result<AuditReading> {
    let mut reading = AuditReading::default();
    let Some(folder) = folder(state)? else { return Ok(reading) };
    let mut last = VecDeque::new();
    for name in [rotated(1), FILE.to_owned()] {
        let Some(mut file) = open(&folder, &name)? else { continue };
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut file = BufReader::new(file);
        if start > 0 {
            // The rest of a line.
            file.skip_until(b'\n')?;
        }
        let damaged = read_lines(file, |entry| {
            if is_wanted(&entry) {
                last.push_back(entry);
                if last.len() > count {
                    last.pop_front();
                }
            }
        })?;
        if damaged > 0 {
            reading.damaged.push((name, damaged));
        }
    }
    reading.entries = last.into();
    Ok(reading)
}

/// The entries since `time`, in RFC 3339. The cost grows with these entries, not with the log.
///
/// # Errors
/// If a file cannot be read. A file that is missing is none.
pub fn read_since(state: &Path, time: &str) -> io::Result<Vec<AuditEntry>> {
    let Some(folder) = folder(state)? else { return Ok(Vec::new()) };
    let mut newest_first = Vec::new();
    for name in [FILE.to_owned()].into_iter().chain((1..=KEPT).map(rotated)) {
        let Some(file) = open(&folder, &name)? else { break };
        let (entries, has_older) = tail_since(&file, time)?;
        newest_first.push(entries);
        if has_older {
            break;
        }
    }
    Ok(newest_first.into_iter().rev().flatten().collect())
}

/// The entries of `file` since `time`, and whether it has older ones: of a tail that is doubled until it begins with an
/// older one.
fn tail_since(mut file: &File, time: &str) -> io::Result<(Vec<AuditEntry>, bool)> {
    let size = file.metadata()?.len();
    let mut tail = TAIL;
    loop {
        let start = size.saturating_sub(tail);
        file.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::new(file);
        if start > 0 {
            // The rest of a line.
            reader.skip_until(b'\n')?;
        }
        let mut entries = Vec::new();
        read_lines(reader, |entry| entries.push(entry))?;
        let has_older = entries.first().is_some_and(|first: &AuditEntry| first.time.as_str() < time);
        if has_older || start == 0 {
            entries.retain(|entry| entry.time.as_str() >= time);
            return Ok((entries, has_older));
        }
        tail *= 2;
    }
}

fn folder(state: &Path) -> io::Result<Option<FolderHandle>> {
    match FolderHandle::open(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        folder => folder.map(Some),
    }
}

fn open(folder: &FolderHandle, name: &str) -> io::Result<Option<File>> {
    match folder.open_file(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}"))),
    }
}

/// Reads lines, and counts those that are no entries. A line without an end counts too if it is none.
fn read_lines(file: impl Read, mut take: impl FnMut(AuditEntry)) -> io::Result<usize> {
    let mut file = BufReader::new(file);
    let (mut line, mut damaged) = (Vec::new(), 0);
    loop {
        line.clear();
        if file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(damaged);
        }
        if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') {
            file.skip_until(b'\n')?;
        }
        match serde_json::from_slice(&line) {
            Ok(entry) => take(entry),
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(_) => damaged += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::audit::{AuditAction, AuditActor, AuditSource};
    use crate::state;

    fn entry(number: u32) -> AuditEntry {
        let actor = AuditActor {
            by: AuditSource::Command,
            who: "alice".to_owned(),
            claimed_user: Some("eve\n{\"time\":\"forged\"}".to_owned()),
            from: None,
            claimed_from: None,
        };
        AuditEntry::new(1_795_552_267, AuditAction::Denied, actor).detail(number)
    }

    fn numbers(reading: &AuditReading) -> Vec<&str> {
        reading.entries.iter().map(|entry| entry.detail.as_str()).collect()
    }

    #[test]
    fn entry_is_one_private_line_that_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), &[entry(1)]).unwrap();
        append(folder.path(), &[entry(2), entry(3)]).unwrap();
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let reading = read(folder.path(), &|_| true).unwrap();
        assert_eq!((numbers(&reading), reading.damaged.len()), (vec!["1", "2", "3"], 0));
        assert_eq!(reading.entries[0], entry(1));
        assert_eq!(read(&folder.path().join("absent"), &|_| true).unwrap().entries, []);
    }

    #[test]
    fn rotation_keeps_the_newest_files_and_bounds_them() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..500 {
            append_within(folder.path(), &[entry(number)], 1000).unwrap();
        }
        let sizes: Vec<u64> =
            std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), KEPT + 1);
        assert!(sizes.iter().all(|size| *size < 1400), "{sizes:?}");
        let reading = read(folder.path(), &|_| true).unwrap();
        let read_numbers: Vec<u32> = numbers(&reading).iter().map(|number| number.parse().unwrap()).collect();
        let first = read_numbers[0];
        assert_eq!(read_numbers, (first..500).collect::<Vec<_>>(), "in order, without a gap");
        assert_eq!(numbers(&read_last(folder.path(), 3, &|_| true).unwrap()), ["497", "498", "499"]);
        let older = read_last(folder.path(), 2, &|entry| entry.detail != "499").unwrap();
        assert_eq!(numbers(&older), ["497", "498"]);
    }

    #[test]
    fn cut_line_is_counted_and_does_not_swallow_the_next() {
        let folder = tempfile::tempdir().unwrap();
        append(folder.path(), &[entry(1), entry(2)]).unwrap();
        let path = folder.path().join(FILE);
        let text = std::fs::read(&path).unwrap();
        state::write_private(&path, &text[..text.len() - 10]).unwrap();
        let reading = read(folder.path(), &|_| true).unwrap();
        assert_eq!((numbers(&reading), &reading.damaged), (vec!["1"], &vec![(FILE.to_owned(), 1)]));
        append(folder.path(), &[entry(3)]).unwrap();
        let reading = read(folder.path(), &|_| true).unwrap();
        assert_eq!((numbers(&reading), &reading.damaged), (vec!["1", "3"], &vec![(FILE.to_owned(), 1)]));
        // Neither does a line without end.
        state::write_private(&path, &["x".repeat(100_000).as_bytes(), b"\n", &text].concat()).unwrap();
        let reading = read(folder.path(), &|_| true).unwrap();
        assert_eq!((numbers(&reading), &reading.damaged), (vec!["1", "2"], &vec![(FILE.to_owned(), 1)]));
    }

    #[test]
    fn last_entries_of_a_large_file_are_read_from_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<AuditEntry> = (0..10_000).map(entry).collect();
        append(folder.path(), &entries).unwrap();
        let reading = read_last(folder.path(), usize::MAX, &|_| true).unwrap();
        assert!((500..3000).contains(&reading.entries.len()), "{}", reading.entries.len());
        assert_eq!(numbers(&reading).last(), Some(&"9999"));
        assert!(reading.damaged.is_empty());
    }

    #[test]
    fn entries_since_a_time_are_read_however_many_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let at = |time, number| AuditEntry { time: crate::clock::rfc3339(time), ..entry(number) };
        let since = |time| -> Vec<AuditEntry> { read_since(folder.path(), &crate::clock::rfc3339(time)).unwrap() };
        assert_eq!(since(0), []);
        let old: Vec<AuditEntry> = (0..3000).map(|number| at(1_795_552_000, number)).collect();
        let new: Vec<AuditEntry> = (3000..9000).map(|number| at(1_795_552_267, number)).collect();
        append(folder.path(), &old).unwrap();
        // Over two files, each longer than a tail.
        append(folder.path(), &new[..3000]).unwrap();
        append_within(folder.path(), &new[3000..], 1).unwrap();
        assert!(folder.path().join(rotated(1)).metadata().unwrap().len() > 2 * TAIL);
        assert_eq!(since(1_795_552_267), new);
        assert_eq!(since(1_795_552_000).len(), 9000);
        assert_eq!(since(1_795_552_268), []);
    }

    #[test]
    fn concurrent_writers_lose_no_line() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let folder = folder.path();
                scope
                    .spawn(move || (0..25).for_each(|number| append(folder, &[entry(writer * 100 + number)]).unwrap()));
            }
        });
        let reading = read(folder.path(), &|_| true).unwrap();
        assert_eq!((reading.entries.len(), reading.damaged.len()), (200, 0));
    }

    #[test]
    fn link_in_place_of_the_log_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        state::write_private(&other, b"precious\n").unwrap();
        symlink(&other, folder.path().join(FILE)).unwrap();
        assert!(append(folder.path(), &[entry(1)]).is_err());
        assert!(read(folder.path(), &|_| true).is_err());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious\n");
    }
}
