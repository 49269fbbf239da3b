//! What phones upload over the folder's own files: an administrator who edits such a file wonders why nothing happens.
//!
//! Before: a file in the folder has a name that phones upload, so the first upload will hide it. Afterwards: an upload hides
//! a file, perhaps a newer one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::master_configs::ReadMaster;
use super::served_view::{ServedFile, ServedView};
use super::summarize::{report, some_of};
use super::{Finding, FindingLevel};
use crate::clock::rfc3339;
use crate::constituency::{ClientAuth, MacAddress, PhoneStanding};
use crate::serve::access_control::upload_name::UploadName;
use crate::serve::path::ServedPath;
use crate::serve::upload::store;
use crate::state::FolderHandle;

/// Looks at `files`, all that lie in the folder, and at the uploads of the constituency in the state directory `state`.
pub(super) fn check(
    shelf: &ServedView<'_>,
    files: &[String],
    named: &ReadMaster,
    state: &Path,
    findings: &mut Vec<Finding>,
) {
    let folder = state.join(store::FOLDER).join(shelf.constituency.name.as_str());
    let mut hidden = Vec::new();
    let mut found = Vec::new();
    // There may be none, or they may be the server's alone to read: then that has been said.
    for (mac, uploads) in FolderHandle::open(&folder).iter().flat_map(phones) {
        for upload in files_of(&uploads) {
            if let Some(finding) = hidden_by(shelf, mac, &uploads, &upload) {
                found.push(finding);
                hidden.push(upload);
            }
        }
    }
    report(shelf, found, "files that uploads hide", findings);
    let to_be_hidden = files.iter().filter_map(|file| Overlaid::of(shelf, file, named));
    let to_be_hidden = to_be_hidden.filter(|it| !hidden.iter().any(|upload| upload.eq_ignore_ascii_case(it.file)));
    findings.extend(before_uploads(shelf, to_be_hidden));
}

/// The finding that the `upload` of `mac`, which lies in `uploads`, hides a file, if it does.
fn hidden_by(shelf: &ServedView<'_>, mac: MacAddress, uploads: &FolderHandle, upload: &str) -> Option<Finding> {
    let path = ServedPath::parse(&format!("/{upload}")).ok()?;
    if !UploadName::of(&path, mac).ok()?.lies_over_the_folder() {
        return None;
    }
    let ServedFile::Regular(file) = shelf.find(&path, Some(mac)) else { return None };
    let name = &shelf.constituency.name;
    let command = format!("provost uploads remove {mac} {upload} --constituency {name} gives it this file");
    let message = match newer(&file, uploads, upload) {
        Some((changed, uploaded)) => format!(
            "this file was changed at {changed}, and {mac} still gets what it uploaded before that, at {uploaded}"
        ),
        None => format!("{mac} gets what it has uploaded instead"),
    };
    Some(shelf.finding(FindingLevel::Warning, upload, message).with_remedy(command))
}

/// When `file` was changed, and when `upload` was stored in `uploads`, if that was before.
fn newer(file: &File, uploads: &FolderHandle, upload: &str) -> Option<(String, String)> {
    let time = |stat: Stat| (stat.st_mtime, stat.st_mtime_nsec);
    let changed = rustix::fs::fstat(file).ok().map(time)?;
    let uploaded =
        uploads.of_file_beneath(Path::new(upload)).and_then(|(folder, name)| folder.stat(name)).ok().map(time)?;
    (changed > uploaded).then(|| (rfc3339(changed.0), rfc3339(uploaded.0)))
}

/// A file of the folder whose name is one that a phone uploads.
struct Overlaid<'a> {
    file: &'a str,
    mac: MacAddress,
    /// What stands behind the MAC address: `-phone.cfg`.
    kind: &'a str,
    /// Where a master configuration names it.
    named: Option<&'a str>,
}

impl<'a> Overlaid<'a> {
    /// `file`, if it is one, of a phone that is let in and may upload.
    fn of(shelf: &ServedView<'_>, file: &'a str, named: &'a ReadMaster) -> Option<Self> {
        let constituency = shelf.constituency;
        let policy = &constituency.policy;
        if policy.uploads.is_none() || policy.tls.client_auth == ClientAuth::None {
            return None;
        }
        let (digits, kind) = file.rsplit('/').next()?.split_at_checked(12)?;
        let mac = MacAddress::from_hex(digits.as_bytes())
            .filter(|mac| constituency.standing(*mac) == PhoneStanding::Known)?;
        let path = ServedPath::parse(&format!("/{}", file.replace('%', "%25"))).ok()?;
        let lies_over = UploadName::of(&path, mac).ok()?.lies_over_the_folder();
        lies_over.then(|| Self { file, mac, kind, named: named.named.get(file).map(String::as_str) })
    }
}

/// The findings about files that no upload hides yet: one for each kind.
fn before_uploads<'a>(shelf: &ServedView<'_>, all: impl Iterator<Item = Overlaid<'a>>) -> Vec<Finding> {
    let mut kinds: BTreeMap<(&str, bool), Vec<Overlaid<'a>>> = BTreeMap::new();
    for one in all {
        kinds.entry((one.kind, one.named.is_some())).or_default().push(one);
    }
    let finding = |((kind, is_named), all): ((&str, bool), Vec<Overlaid<'a>>)| {
        let remedy = match kind {
            "-phone.cfg" | "-web.cfg" => "give it another name, such as <mac>-user.cfg, and name that in CONFIG_FILES",
            _ => "provost uploads remove takes an upload back",
        };
        let named: BTreeSet<&str> = all.iter().filter_map(|one| one.named).collect();
        let named =
            if is_named { format!(", although {} names it", some_of(&Vec::from_iter(named))) } else { String::new() };
        match all.as_slice() {
            [one] => {
                let mac = one.mac;
                let message = format!(
                    "phones upload files of this name: once {mac} does, it gets its upload instead of this file{named}"
                );
                shelf.finding(FindingLevel::Warning, one.file, message).with_remedy(remedy)
            }
            all => {
                let files: Vec<&str> = all.iter().map(|one| one.file).collect();
                let message = format!(
                    "phones upload files of these names: {}: once a phone does, it gets its upload instead of the file{named}",
                    some_of(&files)
                );
                shelf.finding(FindingLevel::Warning, "", message).with_remedy(remedy)
            }
        }
    };
    kinds.into_iter().map(finding).collect()
}

/// The phones that have a folder in `folder`, with it.
fn phones(folder: &FolderHandle) -> Vec<(MacAddress, FolderHandle)> {
    let entries = folder.entries().unwrap_or_default();
    let phone = |name: &OsStr| Some((MacAddress::from_hex(name.as_encoded_bytes())?, folder.folder(name).ok()?));
    let mut phones: Vec<_> = entries.iter().filter_map(|entry| phone(&entry.name)).collect();
    phones.sort_by_key(|(mac, _)| *mac);
    phones
}

/// Every regular file of the phone's folder `uploads`, by its path in there.
fn files_of(uploads: &FolderHandle) -> Vec<String> {
    let files = uploads.files_beneath().unwrap_or_default().into_iter();
    let regular = files.filter(|(_, kind)| *kind == FileType::RegularFile);
    regular.filter_map(|(path, _)| path.into_os_string().into_string().ok()).collect()
}
