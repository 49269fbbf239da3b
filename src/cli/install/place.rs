//! Installs and removes files. Files that an operator has changed stay.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};

use super::layout::{Item, ItemKind, Owner};

/// The start of the first line of a unit that we wrote. The digest of the rest follows it.
const MARK: &str = "# Written by `provost install`, and renewed by it until it is changed: use `systemctl edit`. ";

/// The installation target.
#[derive(Debug)]
pub(super) struct InstallPlace {
    pub(super) root: PathBuf,
    /// Only report what would be done.
    pub(super) is_dry: bool,
    /// Whether units get a mark, so that they can be renewed. A package renews its own units.
    pub(super) has_marks: bool,
    /// The user and group of the service, if it exists.
    pub(super) service: Option<(u32, u32)>,
}

/// The result for one file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceOutcome {
    Made,
    Renewed,
    Same,
    /// It exists and belongs to the operator.
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
    /// `path` below the root.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Installs `item`.
    pub(super) fn put(&self, item: &Item) -> anyhow::Result<PlaceOutcome> {
        let path = self.at(&item.path);
        self.put_at(&path, item).with_context(|| format!("cannot make {}", path.display()))
    }

    fn put_at(&self, path: &Path, item: &Item) -> io::Result<PlaceOutcome> {
        let text = match &item.what {
            ItemKind::Folder if path.is_dir() => return Ok(PlaceOutcome::Same),
            ItemKind::Folder => {
                if !self.is_dry {
                    make_above(path)?;
                    fs::DirBuilder::new().mode(item.mode & 0o700).create(path)?;
                    self.give(path, item)?;
                }
                return Ok(PlaceOutcome::Made);
            }
            ItemKind::Unit(text) if self.has_marks => marked(text).into_bytes(),
            ItemKind::Unit(text) | ItemKind::Reference(text) => text.clone().into_bytes(),
            ItemKind::Once(text) => text.clone(),
        };
        let outcome = match read(path)? {
            None => PlaceOutcome::Made,
            Some(found) if found == text => return Ok(PlaceOutcome::Same),
            Some(found) => match item.what {
                ItemKind::Reference(_) => PlaceOutcome::Renewed,
                ItemKind::Unit(_) if !self.has_marks || is_untouched(&found) => PlaceOutcome::Renewed,
                _ => return Ok(PlaceOutcome::Left),
            },
        };
        self.write(path, item, &text)?;
        Ok(outcome)
    }

    /// Installs the program from `source` at `path`.
    pub(super) fn put_program(&self, source: &Path, path: &str) -> anyhow::Result<PlaceOutcome> {
        let target = self.at(path);
        let put = || -> io::Result<PlaceOutcome> {
            let program = fs::read(source)?;
            let outcome = match read(&target)? {
                None => PlaceOutcome::Made,
                Some(found) if found == program => return Ok(PlaceOutcome::Same),
                Some(_) => PlaceOutcome::Renewed,
            };
            let what = ItemKind::Once(Vec::new());
            self.write(&target, &Item { path: path.to_owned(), mode: 0o755, owner: Owner::Root, what }, &program)?;
            Ok(outcome)
        };
        put().with_context(|| format!("cannot make {}", target.display()))
    }

    /// Removes `item` if we wrote it and it is unchanged.
    pub(super) fn remove_unchanged(&self, item: &Item) -> anyhow::Result<PlaceOutcome> {
        let path = self.at(&item.path);
        let Some(found) = read(&path)? else { return Ok(PlaceOutcome::Absent) };
        let is_ours = match &item.what {
            ItemKind::Unit(_) => is_untouched(&found),
            ItemKind::Reference(_) => true,
            ItemKind::Once(_) | ItemKind::Folder => false,
        };
        if !is_ours {
            return Ok(PlaceOutcome::Left);
        }
        self.remove(&item.path)
    }

    /// Removes the file `path`.
    pub(super) fn remove(&self, path: &str) -> anyhow::Result<PlaceOutcome> {
        let path = self.at(path);
        if !path.exists() {
            return Ok(PlaceOutcome::Absent);
        }
        if !self.is_dry {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(PlaceOutcome::Removed)
    }

    /// Replaces the file atomically, because a unit or a program may be in use.
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

    /// Sets the owner first, because a change of owner clears bits of the mode.
    fn give(&self, path: &Path, item: &Item) -> io::Result<()> {
        let ours = fs::metadata(path)?;
        let (uid, gid) = match (item.owner, self.service) {
            (Owner::Root, _) => (ours.uid(), ours.gid()),
            (Owner::ReadByService, Some((_, group))) => (ours.uid(), group),
            (Owner::Service, Some(service)) => service,
            (_, None) => return Err(io::Error::other("user provost not found")),
        };
        if (uid, gid) != (ours.uid(), ours.gid()) {
            chown(path, Some(uid), Some(gid))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(item.mode))
    }
}

/// Makes the missing parent folders of `path`, readable for all whatever the umask, because they hold no secrets.
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

/// `text` below a line that marks it as ours.
fn marked(text: &str) -> String {
    format!("{MARK}{}\n{text}", short_digest(text.as_bytes()))
}

/// Whether `found` is a marked file that is unchanged.
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
    fn changed_unit_is_detected_by_its_digest() {
        let unit = marked("[Unit]\nDescription=a\n");
        assert!(is_untouched(unit.as_bytes()));
        assert!(!is_untouched(unit.replace("=a", "=b").as_bytes()));
        assert!(!is_untouched(b"[Unit]\nDescription=a\n") && !is_untouched(b"") && !is_untouched(b"\n"));
    }
}
