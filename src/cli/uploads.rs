//! `provost uploads`: what phones have uploaded, to look at and to take back.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::{ConfigArg, code, note, say};
use crate::clock::{rfc3339, unix_seconds};
use crate::constituency::{ConstituencyName, MacAddress};
use crate::serve::decision::upload_name::UploadName;
use crate::serve::path::ServedPath;
use crate::state;

/// What phones have uploaded.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List a phone's uploads: constituency, bytes, time, name.
    List(Phone),
    /// Write an upload to standard output, as it is.
    Cat(Upload),
    /// Remove an upload; if it lay over a file of the folder, the phone gets that file again.
    Remove(Upload),
}

#[derive(Debug, clap::Args)]
pub(super) struct Phone {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Only in this constituency.
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Upload {
    #[command(flatten)]
    phone: Phone,
    /// The upload's name, as `list` shows it.
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let root = config.find()?.state.join("uploads");
    Ok(code(match command {
        Command::List(phone) => list(phone, &root),
        Command::Cat(upload) => upload.cat(&root),
        Command::Remove(upload) => upload.remove(&root),
    }))
}

fn list(phone: &Phone, root: &Path) -> anyhow::Result<()> {
    let mut is_empty = true;
    for (constituency, folder) in phone.folders(root)? {
        for file in files_below(&folder)? {
            let metadata = fs::symlink_metadata(&file)?;
            let time = rfc3339(unix_seconds(metadata.modified()?));
            let name = file.strip_prefix(&folder).unwrap_or(&file).display();
            say(&format_args!("{constituency}  {:>9}  {time}  {name}", metadata.len()));
            is_empty = false;
        }
    }
    if is_empty {
        let to = phone.constituency.as_ref().map(|name| format!(" to {name}")).unwrap_or_default();
        note(&format_args!("{} has uploaded nothing{to}", phone.mac));
    }
    Ok(())
}

impl Phone {
    /// The folders of this phone's uploads, by constituency.
    fn folders(&self, root: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("the uploads in {} cannot be read", root.display()))?,
        };
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_wanted = match &self.constituency {
                Some(wanted) => wanted.as_str() == name,
                None => name.parse::<ConstituencyName>().is_ok(),
            };
            let folder = entry.path().join(self.mac.to_string());
            if is_wanted && folder.is_dir() {
                folders.push((name, folder));
            }
        }
        folders.sort();
        Ok(folders)
    }
}

impl Upload {
    fn cat(&self, root: &Path) -> anyhow::Result<()> {
        let path = self.find(root)?;
        let mut file = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        match io::copy(&mut file, &mut io::stdout()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
            _ => Ok(()),
        }
    }

    fn remove(&self, root: &Path) -> anyhow::Result<()> {
        let path = self.find(root)?;
        let removed = fs::remove_file(&path).and_then(|()| state::sync_folder(path.parent().unwrap_or(Path::new("."))));
        removed.with_context(|| format!("{} cannot be removed", path.display()))?;
        say(&format_args!("removed {}", path.display()));
        Ok(())
    }

    /// The one file of this name.
    fn find(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let Self { name, phone } = self;
        let asked = ServedPath::parse(&format!("/{name}")).with_context(|| format!("{name:?} is no upload's name"))?;
        let stored = UploadName::stored(&asked, phone.mac);
        let files =
            phone.folders(root)?.into_iter().map(|(constituency, folder)| (constituency, folder.join(stored.as_str())));
        let mut found: Vec<_> = files.filter(|(_, file)| file.is_file()).collect();
        match (found.pop(), found.is_empty()) {
            (Some((_, file)), true) => Ok(file),
            (None, _) => {
                bail!("{} has no upload {name}; `provost uploads list {}` shows what it has", phone.mac, phone.mac)
            }
            (Some((last, _)), false) => {
                let names: Vec<String> =
                    found.into_iter().map(|(constituency, _)| constituency).chain([last]).collect();
                bail!("{} has uploaded {name} to {}; say which one with --constituency", phone.mac, names.join(" and "))
            }
        }
    }
}

/// Every file below `folder`, in order.
fn files_below(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
