//! Putting things where they belong, and taking away what was put there. What an operator has changed is left alone.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};

use super::layout::{Item, Owner, What};

/// How the first line of a unit begins that we wrote; the digest of what follows comes after it.
const MARK: &str = "# Written by `provost install`, and renewed by it until it is changed: use `systemctl edit`. ";

/// Where to work.
#[derive(Debug)]
pub(super) struct InstallPlace {
    pub(super) root: PathBuf,
    /// Say what would be done, and do nothing.
    pub(super) is_dry: bool,
    /// Units are marked as ours, so that they can be renewed: not those of a package, which renews them itself.
    pub(super) has_marks: bool,
    /// The user and the group of the service, where there is one.
    pub(super) service: Option<(u32, u32)>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceOutcome {
    Made,
    Renewed,
    Same,
    /// It was there, and is the operator's.
    Left,
    Removed,
    Absent,
}

impl fmt::Display for PlaceOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Made => "made",
            Self::Renewed => "renewed",
            Self::Same => "as it is",
            Self::Left => "left",
            Self::Removed => "removed",
            Self::Absent => "not there",
        })
    }
}

impl InstallPlace {
    /// Where `path` is below the root.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Sees to it that `item` is there.
    pub(super) fn put(&self, item: &Item) -> anyhow::Result<PlaceOutcome> {
        let path = self.at(&item.path);
        self.put_at(&path, item).with_context(|| format!("{} cannot be made", path.display()))
    }

    fn put_at(&self, path: &Path, item: &Item) -> io::Result<PlaceOutcome> {
        let text = match &item.what {
            What::Folder if path.is_dir() => return Ok(PlaceOutcome::Same),
            What::Folder => {
                if !self.is_dry {
                    make_above(path)?;
                    fs::DirBuilder::new().mode(item.mode & 0o700).create(path)?;
                    self.give(path, item)?;
                }
                return Ok(PlaceOutcome::Made);
            }
            What::Unit(text) if self.has_marks => marked(text).into_bytes(),
            What::Unit(text) | What::Reference(text) => text.clone().into_bytes(),
            What::Once(text) => text.clone(),
        };
        let outcome = match read(path)? {
            None => PlaceOutcome::Made,
            Some(found) if found == text => return Ok(PlaceOutcome::Same),
            Some(found) => match item.what {
                What::Reference(_) => PlaceOutcome::Renewed,
                What::Unit(_) if !self.has_marks || is_untouched(&found) => PlaceOutcome::Renewed,
                _ => return Ok(PlaceOutcome::Left),
            },
        };
        self.write(path, item, &text)?;
        Ok(outcome)
    }

    /// Sees to it that the program at `path` is that in `source`.
    pub(super) fn put_program(&self, source: &Path, path: &str) -> anyhow::Result<PlaceOutcome> {
        let target = self.at(path);
        let put = || -> io::Result<PlaceOutcome> {
            let program = fs::read(source)?;
            let outcome = match read(&target)? {
                None => PlaceOutcome::Made,
                Some(found) if found == program => return Ok(PlaceOutcome::Same),
                Some(_) => PlaceOutcome::Renewed,
            };
            let what = What::Once(Vec::new());
            self.write(&target, &Item { path: path.to_owned(), mode: 0o755, owner: Owner::Root, what }, &program)?;
            Ok(outcome)
        };
        put().with_context(|| format!("{} cannot be made", target.display()))
    }

    /// Takes `item` away if it is as we made it.
    pub(super) fn take_away(&self, item: &Item) -> anyhow::Result<PlaceOutcome> {
        let path = self.at(&item.path);
        let Some(found) = read(&path)? else { return Ok(PlaceOutcome::Absent) };
        let is_ours = match &item.what {
            What::Unit(_) => is_untouched(&found),
            What::Reference(_) => true,
            What::Once(_) | What::Folder => false,
        };
        if !is_ours {
            return Ok(PlaceOutcome::Left);
        }
        self.remove(&item.path)
    }

    /// Takes the file `path` away.
    pub(super) fn remove(&self, path: &str) -> anyhow::Result<PlaceOutcome> {
        let path = self.at(path);
        if !path.exists() {
            return Ok(PlaceOutcome::Absent);
        }
        if !self.is_dry {
            fs::remove_file(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
        }
        Ok(PlaceOutcome::Removed)
    }

    /// Whole or not at all: a unit or a program may be in use meanwhile.
    fn write(&self, path: &Path, item: &Item, text: &[u8]) -> io::Result<()> {
        if self.is_dry {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        make_above(path)?;
        let mut file = tempfile::Builder::new().prefix(".provost-").tempfile_in(folder)?;
        file.write_all(text)?;
        self.give(file.path(), item)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Owner first: a change of owner takes bits of the mode away.
    fn give(&self, path: &Path, item: &Item) -> io::Result<()> {
        let ours = fs::metadata(path)?;
        let (uid, gid) = match (item.owner, self.service) {
            (Owner::Root, _) => (ours.uid(), ours.gid()),
            (Owner::ReadByService, Some((_, group))) => (ours.uid(), group),
            (Owner::Service, Some(service)) => service,
            (_, None) => return Err(io::Error::other("there is no user provost")),
        };
        if (uid, gid) != (ours.uid(), ours.gid()) {
            chown(path, Some(uid), Some(gid))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(item.mode))
    }
}

/// Makes the folders above `path` that are missing, open to everybody whatever the umask: they are nobody's secret.
fn make_above(path: &Path) -> io::Result<()> {
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
    for folder in above.into_iter().rev() {
        fs::create_dir(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `text` below a line that says that it is ours.
fn marked(text: &str) -> String {
    format!("{MARK}{}\n{text}", short_digest(text.as_bytes()))
}

/// Whether nobody has changed what we wrote.
fn is_untouched(found: &[u8]) -> bool {
    let Some(end) = found.iter().position(|byte| *byte == b'\n') else { return false };
    let (first, rest) = (&found[..end], &found[end + 1..]);
    first == format!("{MARK}{}", short_digest(rest)).as_bytes()
}

fn short_digest(text: &[u8]) -> String {
    digest(&SHA256, text).as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen() {
        let unit = marked("[Unit]\nDescription=a\n");
        assert!(is_untouched(unit.as_bytes()));
        assert!(!is_untouched(unit.replace("=a", "=b").as_bytes()));
        assert!(!is_untouched(b"[Unit]\nDescription=a\n") && !is_untouched(b"") && !is_untouched(b"\n"));
    }
}
