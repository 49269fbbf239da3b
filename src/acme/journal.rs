//! The journal of our challenge records. A record enters it before it is published in DNS, and leaves it once it is
//! removed.
//!
//! The clean-up removes from DNS what the journal lists. It runs after every attempt, whatever the result, and at
//! start, for records that a crash left behind.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::persistent_state;
use crate::dns::RecordLocation;

/// TXT records with these values at a location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChallengeRecord {
    pub(super) place: RecordLocation,
    pub(super) values: Vec<String>,
}

/// The journal, in memory as on disk.
#[derive(Debug)]
pub(super) struct ChallengeJournal {
    path: PathBuf,
    entries: Vec<ChallengeRecord>,
}

impl ChallengeJournal {
    /// Reads the journal. A damaged file is renamed, and the second value says so.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, Option<String>)> {
        let (entries, damage) = persistent_state::read_json(&path)?;
        Ok((Self { path, entries }, damage))
    }

    pub(super) fn entries(&self) -> &[ChallengeRecord] {
        &self.entries
    }

    /// Adds records that are about to be published.
    pub(super) fn note(&mut self, location: &RecordLocation, values: &[String]) -> io::Result<()> {
        let mut entries = self.entries.clone();
        entries.push(ChallengeRecord { place: location.clone(), values: values.to_vec() });
        self.keep(entries)
    }

    /// Deletes the last entry, whose records were not published after all.
    pub(super) fn withdraw_last(&mut self) -> io::Result<()> {
        let mut entries = self.entries.clone();
        entries.pop();
        self.keep(entries)
    }

    /// Deletes records that are gone from DNS.
    pub(super) fn strike(&mut self, gone: &ChallengeRecord) -> io::Result<()> {
        self.keep(self.entries.iter().filter(|entry| *entry != gone).cloned().collect())
    }

    fn keep(&mut self, entries: Vec<ChallengeRecord>) -> io::Result<()> {
        persistent_state::write_json(&self.path, &entries)?;
        self.entries = entries;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state;

    fn entry(number: usize) -> ChallengeRecord {
        let name = format!("_acme-challenge.{}.example", number % 2);
        let place = RecordLocation { name, zone: "example".to_owned(), via: Vec::new() };
        ChallengeRecord { place, values: vec![format!("v{number}")] }
    }

    #[test]
    fn unreadable_journal_is_renamed_to_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.json");
        state::write_private(&path, b"{").unwrap();
        let (journal, damage) = ChallengeJournal::open(path.clone()).unwrap();
        assert!(journal.entries().is_empty() && damage.unwrap().contains("put aside"));
        assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), b"{");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn entries_survive_reopening_after_any_step(steps in proptest::collection::vec((any::<bool>(), 0usize..6, any::<bool>()), 0..20)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("journal.json");
            let mut journal = ChallengeJournal::open(path.clone()).unwrap().0;
            let mut expected: Vec<ChallengeRecord> = Vec::new();
            for (adds, number, crashes) in steps {
                if adds {
                    journal.note(&entry(number).place, &entry(number).values).unwrap();
                    expected.push(entry(number));
                } else {
                    journal.strike(&entry(number)).unwrap();
                    expected.retain(|kept| *kept != entry(number));
                }
                if crashes {
                    journal = ChallengeJournal::open(path.clone()).unwrap().0;
                }
                prop_assert_eq!(journal.entries(), &expected[..]);
            }
        }
    }
}
