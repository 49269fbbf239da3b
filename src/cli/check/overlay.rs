//! What phones have uploaded over the folder's own files: whoever edits such a file wonders why nothing happens.

use std::fs;
use std::path::{Path, PathBuf};

use super::few::report;
use super::shelf::{Found, Shelf};
use super::{Finding, Level};
use crate::constituency::MacAddress;
use crate::serve::decision::upload_name::UploadName;
use crate::serve::path::ServedPath;
use crate::serve::upload::store;

/// Looks at the uploads of the constituency in the state directory `state`.
pub(super) fn check(shelf: &Shelf<'_>, state: &Path, findings: &mut Vec<Finding>) {
    let folder = state.join(store::FOLDER).join(shelf.constituency.name.as_str());
    // There may be none, or they may be the server's alone to read: then that has been said.
    let Ok(phones) = fs::read_dir(&folder) else { return };
    let macs = phones.flatten().filter_map(|entry| MacAddress::from_hex(entry.file_name().as_encoded_bytes()));
    let mut macs: Vec<MacAddress> = macs.collect();
    macs.sort_unstable();
    let hidden = macs.into_iter().flat_map(|mac| {
        let uploads = files_below(&folder.join(mac.to_string()));
        uploads.into_iter().filter_map(move |upload| hidden_by(shelf, mac, &upload))
    });
    report(shelf, hidden.collect(), "files that uploads hide", findings);
}

/// The finding that the `upload` of `mac` hides a file, if it does.
fn hidden_by(shelf: &Shelf<'_>, mac: MacAddress, upload: &str) -> Option<Finding> {
    let path = ServedPath::parse(&format!("/{upload}")).ok()?;
    let is_hidden = UploadName::stored(&path, mac).lies_over_the_folder()
        && matches!(shelf.find(&path, Some(mac)), Found::Regular(_));
    let name = &shelf.constituency.name;
    let message = format!(
        "{mac} gets what it has uploaded instead; provost uploads remove {mac} {upload} --constituency {name} gives it this file"
    );
    is_hidden.then(|| shelf.finding(Level::Warning, upload, message))
}

/// Every file below `folder`, by its path in there.
fn files_below(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder.join(&at)) else { continue };
        for entry in entries.flatten() {
            let path = at.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => files.extend(path.into_os_string().into_string()),
                _ => {}
            }
        }
    }
    files.sort_unstable();
    files
}
