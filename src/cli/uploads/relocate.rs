//! `provost uploads move`: moves a phone's uploads after it moved to another constituency, or after a folder was
//! renamed.
//!
//! Files move one by one and replace none, so an interrupted move can be repeated. A file that cannot be moved stays,
//! and the others move.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure};
use rustix::fs::FileType;

use crate::audit::AuditAction;
use crate::cli::audit::{entry, record};
use crate::cli::constituency::folders;
use crate::cli::{print_line, replace_controls};
use crate::config::Config;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::state::FolderHandle;
use crate::wording::counted;

#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// The constituency that has the uploads; its folder may be gone.
    #[arg(long, value_name = "NAME")]
    from: ConstituencyName,
    /// The constituency that the phone moved to.
    #[arg(long, value_name = "NAME")]
    to: ConstituencyName,
}

impl Move {
    /// Moves the uploads beneath `root`, the folder of all uploads.
    pub(super) fn run(&self, config: &Config, root: &Path) -> anyhow::Result<()> {
        let Self { mac, from, to } = self;
        ensure!(from != to, "--from and --to are the same: {from}");
        // A misspelled name would lose the uploads again.
        ensure!(
            folders(&config.constituencies)?.contains(to),
            "constituency {to} not found in {}; no uploads were moved",
            config.constituencies.display()
        );
        let (source, files) = self.source(root).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("no uploads of {mac} to {from}"),
            _ => anyhow!("cannot read the uploads of {mac} to {from}: {error}"),
        })?;
        let target = root.join(to.as_str()).join(mac.to_string());
        let (mut blocked, mut behind_folders, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for file in &files {
            let Err(error) = move_file(&source, file, &target) else { continue };
            let name = replace_controls(&file.to_string_lossy());
            match blocking(&error, file, &target) {
                Some(Blocking::SameName) => blocked.push(name),
                Some(Blocking::FileAbove(path)) => {
                    blocked.push(format!("{name} ({} is a file in {to})", replace_controls(&path.to_string_lossy())));
                }
                Some(Blocking::Folder) => behind_folders.push(name),
                None => failed.push(format!("{name}: {error}")),
            }
        }
        self.remove_empty_folders(root, &files);
        let moved = files.len() - blocked.len() - behind_folders.len() - failed.len();
        print_line(&format_args!("{mac}: {} moved from {from} to {to}", counted(moved, "upload")));
        if moved > 0 {
            let detail = format!("{} from {from}", counted(moved, "upload"));
            record(&config.state, &[entry(AuditAction::UploadsMoved).of(to).phone(*mac).detail(detail)]);
        }
        let mut problems = Vec::new();
        if !blocked.is_empty() {
            problems.push(format!(
                "{to} already has uploads of {mac} with these names, so these stay in {from}: {}; remove one of each (provost \
                 uploads remove {mac} NAME --constituency {from}|{to}) and run the command again",
                blocked.join(", ")
            ));
        }
        if !behind_folders.is_empty() {
            problems.push(format!(
                "{to} has folders with these names, so these uploads stay in {from}: {}; remove them (provost uploads remove \
                 {mac} NAME --constituency {from}), or all uploads in those folders (provost uploads list {mac} \
                 --constituency {to} lists them), and run the command again",
                behind_folders.join(", ")
            ));
        }
        if !failed.is_empty() {
            problems.push(format!("cannot move uploads of {mac} from {from} to {to}: {}", failed.join(", ")));
        }
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(())
    }

    /// The folder of the uploads to move, and the files beneath it. Not found if there are none.
    fn source(&self, root: &Path) -> io::Result<(FolderHandle, Vec<PathBuf>)> {
        let folder = FolderHandle::open(root)?.folder(self.from.as_str())?.folder(self.mac.to_string())?;
        let files = folder.files_beneath()?.into_iter();
        let files: Vec<_> = files.filter(|(_, kind)| *kind == FileType::RegularFile).map(|(path, _)| path).collect();
        if files.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok((folder, files)) }
    }

    /// Removes the folders that held `files` if they are empty now, up to the constituency's own.
    fn remove_empty_folders(&self, root: &Path, files: &[PathBuf]) {
        let Ok(root) = FolderHandle::open(root) else { return };
        // The kernel refuses to remove a folder that is not empty.
        let remove =
            |folder: &Path| root.of_file_beneath(folder).and_then(|(around, name)| around.remove_empty_folder(name));
        for file in files {
            let file = Path::new(self.from.as_str()).join(self.mac.to_string()).join(file);
            let _ = file.ancestors().skip(1).take_while(|folder| remove(folder).is_ok()).count();
        }
    }
}

/// What prevents the move of a file.
enum Blocking {
    /// Something with its name that is not a folder.
    SameName,
    /// A folder with its name.
    Folder,
    /// The file at this path, where a folder above it would be.
    FileAbove(PathBuf),
}

/// What prevents the move of the file `path` to the folder `target`, if it caused `error`.
fn blocking(error: &io::Error, path: &Path, target: &Path) -> Option<Blocking> {
    use io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory};
    if !matches!(error.kind(), AlreadyExists | IsADirectory | NotADirectory) {
        return None;
    }
    let folder = FolderHandle::open(target).ok()?;
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|it| !it.as_os_str().is_empty()).collect();
    above.reverse();
    let file = above.into_iter().find(|it| folder.beneath(it).is_err_and(|error| error.kind() == NotADirectory));
    let is_folder = || folder.of_file_beneath(path).is_ok_and(|(around, name)| around.folder(name).is_ok());
    Some(match file {
        Some(file) => Blocking::FileAbove(file.to_owned()),
        None if is_folder() => Blocking::Folder,
        None => Blocking::SameName,
    })
}

/// Moves the file at `path` beneath `source` to the same path beneath `target`, unless a file exists there. Replaces a
/// folder without files.
fn move_file(source: &FolderHandle, path: &Path, target: &Path) -> io::Result<()> {
    let (from, name) = source.of_file_beneath(path)?;
    let to = FolderHandle::open_or_make(target.join(path).parent().unwrap_or(target))?;
    match from.move_to(&name, &to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && remove_if_without_files(&to, &name).is_ok() => {
            from.move_to(&name, &to)?;
        }
        moved => moved?,
    }
    to.sync()?;
    from.sync()
}

/// Removes the folder `name` and the folders in it, if they contain nothing else. The kernel refuses to remove a folder
/// that is not empty.
fn remove_if_without_files(around: &FolderHandle, name: &OsStr) -> io::Result<()> {
    let folder = around.folder(name)?;
    folder.entries()?.iter().try_for_each(|entry| remove_if_without_files(&folder, &entry.name))?;
    around.remove_empty_folder(name)
}
