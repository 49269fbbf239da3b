//! `provost uploads`: lists, prints, removes and moves what phones have uploaded.

mod relocate;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustix::fs::FileType;

use super::audit::{entry, record};
use super::{ConfigArg, code, note, print_line, replace_controls, warn};
use crate::audit::AuditAction;
use crate::clock::rfc3339;
use crate::config::Config;
use crate::constituency::{ConstituencyName, MacAddress};
use crate::serve::access_control::upload_name::UploadName;
use crate::serve::path::ServedPath;
use crate::serve::upload::store;
use crate::state::FolderHandle;

/// What phones have uploaded.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List a phone's uploads: constituency, bytes, time, name.
    List(PhoneUploads),
    /// Write an upload to standard output.
    Cat(ListedUpload),
    /// Remove an upload; if it hid a file of the folder, the phone gets that file again.
    Remove(ListedUpload),
    /// Move a phone's uploads to the constituency that it moved to, or whose folder was renamed. No upload is replaced.
    Move(relocate::Move),
}

#[derive(Debug, clap::Args)]
pub(super) struct PhoneUploads {
    /// The phone.
    #[arg(value_name = "MAC")]
    mac: MacAddress,
    /// Only uploads to this constituency.
    #[arg(long, value_name = "NAME")]
    constituency: Option<ConstituencyName>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListedUpload {
    #[command(flatten)]
    phone: PhoneUploads,
    /// The upload's name, as `list` shows it.
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) fn run(command: &Command, config: &ConfigArg) -> anyhow::Result<ExitCode> {
    let config = config.find()?;
    let root = config.state.join(store::FOLDER);
    Ok(code(match command {
        Command::List(phone) => list(phone, &root),
        Command::Cat(upload) => upload.cat(&root),
        Command::Remove(upload) => upload.remove(&config, &root),
        Command::Move(uploads) => uploads.run(&config, &root),
    }))
}

fn list(phone: &PhoneUploads, root: &Path) -> anyhow::Result<()> {
    let mut is_empty = true;
    for (constituency, folder) in phone.folders(root)? {
        let files = folder.files_beneath().with_context(|| format!("cannot read the uploads to {constituency}"))?;
        for (path, kind) in files {
            let name = replace_controls(&path.to_string_lossy());
            if kind != FileType::RegularFile {
                warn(&format_args!("{constituency}: {name} is not a regular file, so not an upload"));
                continue;
            }
            // The phone may have replaced it meanwhile.
            let Ok(stat) = folder.of_file_beneath(&path).and_then(|(folder, name)| folder.stat(name)) else { continue };
            print_line(&format_args!("{constituency}  {:>9}  {}  {name}", stat.st_size, rfc3339(stat.st_mtime)));
            is_empty = false;
        }
    }
    if is_empty {
        let to = phone.constituency.as_ref().map(|name| format!(" to {name}")).unwrap_or_default();
        note(&format_args!("no uploads of {}{to}", phone.mac));
    }
    Ok(())
}

impl PhoneUploads {
    /// The folders of this phone's uploads, by constituency.
    fn folders(&self, root: &Path) -> anyhow::Result<Vec<(ConstituencyName, FolderHandle)>> {
        let opened = FolderHandle::open(root).and_then(|root| Ok((root.entries()?, root)));
        let (entries, all) = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened.with_context(|| format!("cannot read the uploads in {}", root.display()))?,
        };
        let names = entries.into_iter().filter_map(|entry| entry.name.to_str()?.parse::<ConstituencyName>().ok());
        let wanted = names.filter(|name| self.constituency.as_ref().is_none_or(|wanted| wanted == name));
        let mut folders = Vec::new();
        for name in wanted {
            match all.folder(name.as_str()).and_then(|folder| folder.folder(self.mac.to_string())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => warn(&format_args!("cannot read the uploads of {} to {name}: {error}", self.mac)),
                Ok(folder) => folders.push((name, folder)),
            }
        }
        Ok(folders)
    }
}

/// An upload: a regular file in a phone's folder.
struct FoundUpload {
    constituency: ConstituencyName,
    folder: FolderHandle,
    name: OsString,
}

impl ListedUpload {
    fn cat(&self, root: &Path) -> anyhow::Result<()> {
        let found = self.find(root)?;
        let mut file = found.folder.open_file(&found.name).with_context(|| self.cannot("read", &found))?;
        match io::copy(&mut file, &mut io::stdout()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
            _ => Ok(()),
        }
    }

    fn remove(&self, config: &Config, root: &Path) -> anyhow::Result<()> {
        let found = self.find(root)?;
        let removed = found.folder.remove(&found.name).and_then(|()| found.folder.sync());
        removed.with_context(|| self.cannot("removed", &found))?;
        let Self { name, phone } = self;
        print_line(&format_args!("removed {} of {} from {}", replace_controls(name), phone.mac, found.constituency));
        let removed = entry(AuditAction::UploadRemoved).of(&found.constituency).phone(phone.mac).detail(name);
        record(&config.state, &[removed]);
        Ok(())
    }

    fn cannot(&self, be: &str, found: &FoundUpload) -> String {
        format!("{} of {} in {} cannot be {be}", replace_controls(&self.name), self.phone.mac, found.constituency)
    }

    /// The only upload with this name. Fails if there is none or several.
    fn find(&self, root: &Path) -> anyhow::Result<FoundUpload> {
        let Self { name, phone } = self;
        let asked = ServedPath::parse(&format!("/{name}")).with_context(|| format!("invalid upload name {name:?}"))?;
        let stored = UploadName::stored(&asked, phone.mac);
        let find = |(constituency, folder): (ConstituencyName, FolderHandle)| {
            let (folder, name) = folder.of_file_beneath(Path::new(stored.as_str())).ok()?;
            let kind = FileType::from_raw_mode(folder.stat(&name).ok()?.st_mode);
            (kind == FileType::RegularFile).then_some(FoundUpload { constituency, folder, name })
        };
        let mut found: Vec<FoundUpload> = phone.folders(root)?.into_iter().filter_map(find).collect();
        match (found.pop(), found.is_empty()) {
            (Some(file), true) => Ok(file),
            (None, _) => bail!(
                "upload not found: {1} of {0}; `provost uploads list {2}` lists its uploads",
                phone.mac,
                replace_controls(name),
                phone.mac
            ),
            (Some(last), false) => {
                let names: Vec<String> = found.iter().chain([&last]).map(|it| it.constituency.to_string()).collect();
                bail!(
                    "{} has uploaded {} to {}; choose one with --constituency",
                    phone.mac,
                    replace_controls(name),
                    names.join(" and ")
                )
            }
        }
    }
}
