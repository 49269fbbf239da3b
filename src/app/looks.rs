//! When the files of a trust bundle have changed so that they may be read again. Pure.

use std::collections::BTreeMap;

use crate::files::Stamp;

/// What the files of each bundle look like.
pub(super) type Look = BTreeMap<String, Vec<Option<Stamp>>>;

/// The looks that count: when bundles were read, and the last one.
#[derive(Debug, Default)]
pub(super) struct Looks {
    read: Look,
    last: Look,
}

impl Looks {
    /// The bundles as they were just read.
    pub(super) fn of(read: Look) -> Self {
        Self { last: read.clone(), read }
    }

    /// The names of bundles to read again, as they look `now`. A file that was put in another's place is whole; one
    /// that is written in place may not be, and must have been still since the last look.
    pub(super) fn due(&mut self, now: Look) -> Vec<String> {
        let is_whole = |(before, after): (&Option<Stamp>, &Option<Stamp>)| match (before, after) {
            (Some(before), Some(after)) => before == after || !before.is_same_file(after),
            (None, _) | (_, None) => before == after,
        };
        let mut due = Vec::new();
        for (name, files) in &now {
            let Some(read) = self.read.get(name).filter(|read| *read != files) else { continue };
            let is_replaced = read.len() == files.len() && read.iter().zip(files).all(is_whole);
            if is_replaced || self.last.get(name) == Some(files) {
                due.push(name.clone());
            }
        }
        for name in &due {
            if let Some(files) = now.get(name) {
                self.read.insert(name.clone(), files.clone());
            }
        }
        self.last = now;
        due
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "written in place, as an editor does")]
mod tests {
    use super::*;
    use std::path::Path;

    fn look(path: &Path) -> Look {
        Look::from([("own".to_owned(), vec![Stamp::of(path)])])
    }

    #[test]
    fn a_replaced_file_is_due_at_once_and_one_written_in_place_when_it_is_still() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "one").unwrap();
        let mut looks = Looks::of(look(&path));
        let nothing: [String; 0] = [];
        assert_eq!(looks.due(look(&path)), nothing);
        std::fs::write(folder.path().join("new"), "two").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(looks.due(look(&path)), ["own"]);
        assert_eq!(looks.due(look(&path)), nothing);
        std::fs::write(&path, "half").unwrap();
        assert_eq!(looks.due(look(&path)), nothing);
        std::fs::write(&path, "half and more").unwrap();
        assert_eq!(looks.due(look(&path)), nothing);
        assert_eq!(looks.due(look(&path)), ["own"]);
        assert_eq!(looks.due(look(&path)), nothing);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(looks.due(look(&path)), nothing);
        assert_eq!(looks.due(look(&path)), ["own"]);
    }
}
